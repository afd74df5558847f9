/**
 * The door of the SDK for programs that use configuration. Runs on Bun, Deno, Node and in browsers; needs nothing but
 * `fetch`. (Programs that manage configuration take `admin.ts`, which this door leaves out to stay small.)
 */
export { Conflux, defaultTiming } from "./client.ts";
export type {
  Bootstrap,
  Cache,
  Change,
  ConfigTypes,
  ConfluxOptions,
  Entry,
  Source,
  StandardSchema,
  State,
  Status,
  Timing,
} from "./client.ts";
export { storageCache } from "./cache.ts";
export { differences } from "./diff.ts";
export type { Difference } from "./diff.ts";
export { ServerProblem, Unreachable } from "./http.ts";
export type { Fetch, Token } from "./http.ts";
export { Problem } from "../api/problems.ts";
export type { ProblemCode } from "../api/problems.ts";
export type { ContentFormat, Labels } from "../model/release.ts";
