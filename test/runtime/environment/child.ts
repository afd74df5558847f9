/** Tells how it was begun, each time it is, completes its environment, and tells what it is given to read. */
import { readFileSync, writeSync } from "node:fs";
import process from "node:process";
import { completeEnvironment, runtimeVariables } from "../../../src/runtime/environment.ts";
import { runtime } from "../../../src/runtime/runtime.ts";

const { pid, env, argv } = process;
const variables = Object.fromEntries(
  Object.keys(runtimeVariables[runtime.name]).flatMap((name) =>
    env[name] === undefined ? [] : [[name, env[name]]],
  ),
);
const say = (what: object): number => writeSync(1, `${JSON.stringify({ pid, ...what })}\n`);
say({ variables, words: argv.slice(2) });
completeEnvironment();
say({ input: readFileSync(0, "utf8") });
