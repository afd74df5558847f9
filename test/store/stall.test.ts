import { describe, expect, test } from "vitest";
import { DiskStall, stallLookMs } from "../../src/store/stall.ts";

function watched(limitMs: number): {
  stall: DiskStall;
  slow: number[];
  stalled: string[];
  pass: (looks: number) => void;
  suspend: (ms: number) => void;
} {
  const slow: number[] = [];
  const stalled: string[] = [];
  const stall = new DiskStall({
    limitMs,
    onSlow: (ms) => slow.push(ms),
    onStall: ({ message }) => stalled.push(message),
  });
  let now = 1_000_000;
  const pass = (looks: number): void => {
    for (let n = 0; n < looks; n++) stall.look((now += stallLookMs));
  };
  const suspend = (ms: number): void => stall.look((now += ms));
  stall.look(now);
  return { stall, slow, stalled, pass, suspend };
}

describe("a disk", () => {
  test("that ends its writes is never slow, however many there are", () => {
    const { stall, slow, stalled, pass } = watched(20_000);
    let end = stall.begin();
    for (let n = 0; n < 1_000; n++) {
      const next = stall.begin();
      end();
      end = next;
      pass(1);
    }
    end();
    pass(100);
    expect([slow, stalled, stall.oldestMs]).toEqual([[], [], 0]);
  });

  test("that does not end one is said to be slow, then fine again or stalled, each once", () => {
    const { stall, slow, stalled, pass } = watched(20_000);
    let end = stall.begin();
    pass(10);
    expect(slow).toEqual([5_000]);
    pass(20);
    end();
    pass(1);
    expect(slow).toEqual([5_000, 0]);
    end = stall.begin();
    pass(39);
    expect(stalled).toEqual([]);
    pass(20);
    expect(stalled).toHaveLength(1);
    expect(stalled[0]).toContain("within 20 s (CONFLUX_DISK_STALL)");
  });

  test("is not blamed for the time in which the process did not run", () => {
    const { stall, stalled, pass, suspend } = watched(20_000);
    stall.begin();
    suspend(3_600_000);
    pass(10);
    expect(stalled).toEqual([]);
    expect(stall.oldestMs).toBeLessThanOrEqual(7_000);
  });

  test("may take as long as it likes where nobody set a limit", () => {
    const { stall, slow, stalled, pass } = watched(0);
    stall.begin();
    pass(10_000);
    expect([slow, stalled]).toEqual([[], []]);
    expect(stall.oldestMs).toBe(5_000_000);
  });
});
