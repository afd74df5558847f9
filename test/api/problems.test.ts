import { describe, expect, test } from "vitest";
import { Problem, problems, type ProblemCode } from "../../src/api/problems.ts";

const codes = Object.keys(problems) as ProblemCode[];

describe("problems", () => {
  test.each(codes)("%s has a status of an error and a title", (code) => {
    const { status, title, retryable } = problems[code];
    expect(code).toMatch(/^[a-z]+(-[a-z]+)*$/);
    expect(status).toBeGreaterThanOrEqual(400);
    expect(status).toBeLessThan(600);
    expect(title).toMatch(/^[A-Z].*[^.]$/);
    const problem = new Problem(code, "detail");
    expect(problem.status).toBe(status);
    // What may help when repeated says when; what cannot never invites to try.
    expect(problem.retryAfter !== null).toBe(retryable);
  });

  test("titles tell codes apart", () => {
    expect(new Set(codes.map((code) => problems[code].title)).size).toBe(codes.length);
  });
});
