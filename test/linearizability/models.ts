/** The sequential objects that histories are checked against. */
import { assert } from "../../src/lib/assert.ts";
import type { Model } from "./checker.ts";
import { unknown } from "./history.ts";

// --- a register ------------------------------------------------------------------------------------------------------

export type RegisterInput =
  | { readonly op: "read" }
  | { readonly op: "write"; readonly value: string | number }
  | { readonly op: "cas"; readonly from: string | number; readonly to: string | number };

/** What a read saw; whether a cas found what it asked for; of a write nothing is looked at. */
export type RegisterOutput = string | number | boolean;

export function register(
  init: string | number,
): Model<string | number, RegisterInput, RegisterOutput> {
  return {
    init,
    step(state, input, output) {
      switch (input.op) {
        case "read":
          return output === unknown || output === state ? state : null;
        case "write":
          return input.value;
        case "cas": {
          const found = state === input.from;
          if (output !== unknown && output !== found) return null;
          return found ? input.to : state;
        }
      }
    },
    stateKey: (state) => state,
  };
}

// --- keys and values -------------------------------------------------------------------------------------------------

export type KvInput =
  | { readonly op: "get"; readonly key: string }
  | { readonly op: "put" | "append"; readonly key: string; readonly value: string };

/** What a get saw; of the others nothing is looked at. A key without a value holds the empty text. */
export const kv: Model<string, KvInput, string> = {
  init: "",
  step(state, input, output) {
    switch (input.op) {
      case "get":
        return output === unknown || output === state ? state : null;
      case "put":
        return input.value;
      case "append":
        return state + input.value;
    }
  },
  stateKey: (state) => state,
  partitionKey: (input) => input.key,
};

// --- a register with revisions ---------------------------------------------------------------------------------------

export interface Versioned {
  readonly value: string | number | null;
  readonly revision: number;
}

export type VersionedInput =
  | { readonly op: "publish"; readonly config: string; readonly value: string | number }
  | { readonly op: "read"; readonly config: string };

/** The revision that a publish was given; what a read saw. */
export type VersionedOutput = number | Versioned;

/** The value is known, the revision is this one or, after a publish that did not tell, any from this one on. */
interface VersionedState extends Versioned {
  readonly exact: boolean;
}

/**
 * A config that is published and read. Each publish gets a revision above those before it, not necessarily the next
 * one: other configs share the count.
 */
export function versionedRegister(
  initial: Versioned = { value: null, revision: 0 },
): Model<VersionedState, VersionedInput, VersionedOutput> {
  return {
    init: { ...initial, exact: true },
    step(state, input, output) {
      if (input.op === "read") {
        if (output === unknown) return state;
        assert(typeof output === "object", "a read has a value and a revision");
        const { value, revision } = output;
        if (value !== state.value) return null;
        if (state.exact) return revision === state.revision ? state : null;
        return revision < state.revision ? null : { value, revision, exact: true };
      }
      const { value } = input;
      if (output === unknown) {
        // Of two in a row that nobody saw, the first may as well never have taken effect: the bound need not rise.
        const least = state.exact ? state.revision + 1 : state.revision;
        return { value, revision: least, exact: false };
      }
      assert(typeof output === "number", "a publish has a revision");
      return output > state.revision ? { value, revision: output, exact: true } : null;
    },
    stateKey: ({ value, revision, exact }) =>
      `${revision}${exact ? "=" : "+"}${typeof value === "string" ? `"${value}` : value}`,
    partitionKey: (input) => input.config,
  };
}
