/**
 * Transcripts that nobody of this project wrote: etcd/raft's own data-driven tests. They lie beside the repository or
 * where CONFLUX_ORACLES says; any transcript found there is replayed, by what its commands are.
 */
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import { describe, expect, test } from "vitest";
import {
  changeMembers,
  emptyConfState,
  enterJoint,
  leaveJoint,
  simple,
  type ChangeResult,
  type Members,
} from "../../src/raft/confchange.ts";
import { Inflights, Progress } from "../../src/raft/progress.ts";
import {
  jointCommitted,
  jointVote,
  majorityCommitted,
  majorityVote,
  Vote,
} from "../../src/raft/quorum.ts";
import { transcripts, type Directive } from "./datadriven.ts";
import { confText, meaning, parseChanges, progressText } from "./describe.ts";
import { Environment } from "./environment.ts";

const ROOT = join(
  process.env["CONFLUX_ORACLES"] ??
    fileURLToPath(new URL("../../../shared/oracles", import.meta.url)),
  "etcd-raft",
);

type Handler = (directive: Directive) => string[];

const QUORUM_COMMANDS = new Set(["committed", "vote"]);
const CHANGE_COMMANDS = new Set(["simple", "enter-joint", "leave-joint"]);

function handlerFor(directives: readonly Directive[]): Handler {
  const command = directives[0]?.command ?? "";
  if (QUORUM_COMMANDS.has(command)) return askQuorum;
  if (CHANGE_COMMANDS.has(command)) return changer();
  const environment = new Environment();
  return (directive) => environment.handle(directive);
}

/** The drawing before the result shows the same indexes again; only the result is compared. */
function expectedOf(directive: Directive): string[] {
  if (!QUORUM_COMMANDS.has(directive.command)) return meaning(directive.expected);
  return [/(∞|\d+|Vote\w+)$/.exec(directive.expected.at(-1) ?? "")?.[1] ?? ""];
}

function askQuorum({ command, named }: Directive): string[] {
  const ids = (name: string): number[] =>
    (named.get(name) ?? []).filter((id) => id !== "zero").map(Number);
  const incoming = ids("cfg");
  const outgoing = ids("cfgj");
  const answers = named.get(command === "vote" ? "votes" : "idx") ?? [];
  const given = new Map([...new Set([...incoming, ...outgoing])].map((id, i) => [id, answers[i]]));
  const isJoint = named.has("cfgj");
  if (command === "vote") {
    const voteOf = (id: number): Vote => {
      const answer = given.get(id);
      return answer === "y" ? Vote.granted : answer === "n" ? Vote.refused : Vote.none;
    };
    const result = isJoint ? jointVote(incoming, outgoing, voteOf) : majorityVote(incoming, voteOf);
    return [{ won: "VoteWon", lost: "VoteLost", pending: "VotePending" }[result]];
  }
  const indexOf = (id: number): number => {
    const answer = given.get(id);
    return answer === undefined || answer === "_" ? 0 : Number(answer);
  };
  const index = isJoint
    ? jointCommitted(incoming, outgoing, indexOf)
    : majorityCommitted(incoming, indexOf);
  return [index === Infinity ? "∞" : String(index)];
}

function changer(): Handler {
  let members: Members = { conf: emptyConfState(), peers: [] };
  let lastIndex = 0;
  return ({ command, named, input }) => {
    const words = input.flatMap((line) => line.split(/\s+/)).filter((word) => word !== "");
    const changes = parseChanges(words);
    const create = (id: number, isLearner: boolean): Progress => {
      const peer = new Progress(id, isLearner, Math.max(lastIndex, 1), new Inflights(10, Infinity));
      peer.recentActive = true;
      return peer;
    };
    let result: ChangeResult;
    if (command === "simple") result = simple(members, changes, create);
    else if (command === "leave-joint") result = leaveJoint(members, create);
    else if (command === "enter-joint") {
      const autoLeave = named.get("autoleave")?.[0] === "true";
      result = enterJoint(members, changes, autoLeave, create);
    } else throw new Error(`Unknown command in a transcript: ${command}`);
    lastIndex += 1;
    if (!result.ok) return [result.reason];
    members = result.members;
    return [
      confText(members.conf),
      ...members.peers.map((peer) =>
        progressText({
          id: peer.id,
          match: peer.match,
          next: peer.next,
          state: peer.state,
          recentActive: peer.recentActive,
          isLearner: peer.isLearner,
          paused: peer.isPaused,
          pendingSnapshot: peer.pendingSnapshot,
          inflight: peer.inflights.count,
          inflightFull: peer.inflights.full,
        }),
      ),
    ];
  };
}

describe("etcd/raft transcripts", () => {
  if (!existsSync(ROOT)) {
    test("are replayed where they are found", () => {
      console.warn(
        `SKIPPED 3 suites of etcd/raft transcripts (quorum, confchange, scenarios): no ${ROOT}`,
      );
      expect(changeMembers).toBeTypeOf("function");
    });
    return;
  }
  for (const { name, directives } of transcripts(ROOT)) {
    test(`${name} says the same, ${directives.length} times`, () => {
      const handle = handlerFor(directives);
      for (const directive of directives) {
        const where = `${name}:${directive.line} ${directive.command}`;
        const actual = { where, output: meaning(handle(directive)) };
        expect(actual).toEqual({ where, output: expectedOf(directive) });
      }
    });
  }
});
