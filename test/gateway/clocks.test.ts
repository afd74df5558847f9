/** The wall clock of the process is put forward and back by hours under a gateway: what lasts a while lasts as long as it did. */
import { afterEach, beforeEach, expect, test } from "vitest";
import { SteadyClock } from "../../src/gateway/retention.ts";
import { parseStreamToken, streamToken, streamTokenHolds } from "../../src/gateway/tokens.ts";
import { FrameReader, Harness, type Frame } from "./harness.ts";

const T = "/v1/tenants/acme";
const N = `${T}/namespaces/app`;
const hourMs = 3_600_000;
const dateNow = Date.now;

let h: Harness;
let readers: FrameReader[] = [];

function setWallClock(byMs: number): void {
  Date.now = () => dateNow() + byMs;
}

beforeEach(async () => {
  h = new Harness({ settings: { watch: { bookmarkMs: 30, slowMs: 2 * hourMs } } });
  await h.tenant("acme");
});

afterEach(async () => {
  Date.now = dateNow;
  for (const reader of readers) await reader.cancel().catch(() => {});
  readers = [];
  h.close();
});

async function subscribe(path: string): Promise<FrameReader> {
  const reader = new FrameReader(await h.gateway().fetch(h.request("GET", path)));
  readers.push(reader);
  return reader;
}

test.each([-5 * hourMs, 5 * hourMs])(
  "a watch goes on as it was when the wall clock is set by %d ms: neither silence nor an early end",
  async (byMs) => {
    const reader = await subscribe(`${N}/watch`);
    expect((await reader.next())?.event).toBe("sync");
    setWallClock(byMs);
    for (let n = 0; n < 4; n++) expect((await reader.next())?.event).toBe("bookmark");
    await h.call("PUT", `${N}/configs/a`, { body: { content: 1 } });
    expect(((await reader.nextNews()) as Frame).data.changes).toMatchObject([{ name: "a" }]);
  },
);

test.each([-5 * hourMs, 5 * hourMs])(
  "who waits for its turn hears signs of life when the wall clock is set by %d ms",
  async (byMs) => {
    const reader = await subscribe(`${N}/watch`);
    await reader.next();
    await h.call("PATCH", T, { body: { quotas: { watchBytesPerSecond: 0 } } });
    await h.call("GET", `${T}/usage`);
    for (let n = 0; n < 3; n++) await h.call("PUT", `${N}/configs/a`, { body: { content: n } });
    setWallClock(byMs);
    let frame = (await reader.next()) as Frame;
    for (let same = 0, cursor = frame.id; same < 4; frame = (await reader.next()) as Frame) {
      expect(frame.event).toBe("bookmark");
      same = frame.id === cursor ? same + 1 : 0;
      cursor = frame.id;
    }
  },
);

test("rates neither fill nor stop because the wall clock is set", async () => {
  const { token } = await h.key("acme", "read");
  await h.call("PATCH", T, { body: { quotas: { requestsPerSecondPerKey: 1 } } });
  await h.call("GET", `${T}/usage`);
  const ask = async (): Promise<number> =>
    (await h.call("GET", `${T}/namespaces`, { token })).status;
  const statuses: number[] = [];
  while (statuses.at(-1) !== 429 && statuses.length < 100) statuses.push(await ask());
  expect(statuses.at(-1)).toBe(429);
  setWallClock(5 * hourMs);
  expect(await ask()).toBe(429);
  setWallClock(-5 * hourMs);
  let status = 429;
  // At one a second there is one soon, however far the clock was set back.
  for (let n = 0; status === 429 && n < 100; n++) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    status = await ask();
  }
  expect(status).toBe(200);
});

test("a tenant's time stands still while the wall clock is behind it, and everything else goes on", async () => {
  setWallClock(hourMs);
  await h.call("PUT", `${N}/configs/a`, {
    body: { content: 1 },
    headers: { "idempotency-key": "k" },
  });
  setWallClock(-hourMs);
  for (let n = 0; n < 3; n++)
    expect((await h.call("PUT", `${N}/configs/b${n}`, { body: { content: n } })).status).toBe(201);
  const again = await h.call("PUT", `${N}/configs/a`, {
    body: { content: 1 },
    headers: { "idempotency-key": "k" },
  });
  expect(again.headers.get("idempotent-replay")).toBe("true");
  const audits = (await h.call("GET", `${T}/audit`)).body.items as { at: string }[];
  const times = audits.map(({ at }) => Date.parse(at));
  expect(times).toEqual(times.toSorted((a, b) => a - b));
  expect(times.at(-1)).toBeGreaterThan(dateNow());
});

test("a stream's token of the window that begins is good at a node whose clock is a little behind, older and later ones are not", () => {
  const windowMs = 12 * hourMs;
  const made = { tenant: "t", namespace: "n", keyId: "k", epoch: 1, window: 10 };
  const token = parseStreamToken(streamToken(made, "ab"));
  const holds = (ms: number): boolean =>
    streamTokenHolds({ ...(token as NonNullable<typeof token>), tenant: "t" }, "ab", {
      epoch: 1,
      ms,
    });
  expect([9, 10, 11, 12, 13].map((window) => holds(window * windowMs - 1))).toEqual([
    false,
    true,
    true,
    true,
    false,
  ]);
});

test("SteadyClock takes a wall clock that was put forward at its word only after it has gone on from there", () => {
  const clock = new SteadyClock(0, 0);
  expect(clock.isSteady(hourMs, hourMs)).toBe(true);
  expect(clock.isSteady(10 * 24 * hourMs, 2 * hourMs)).toBe(false);
  expect(clock.isSteady(10 * 24 * hourMs + hourMs, 3 * hourMs)).toBe(true);
  // Set right again: what is earlier purges less.
  expect(clock.isSteady(4 * hourMs, 4 * hourMs)).toBe(true);
});
