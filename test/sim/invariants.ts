/**
 * What must hold after every step of a simulated run, whatever the seed did: one row each, named as the extended Raft
 * paper (figure 3), the thesis or this project's architecture name it.
 */
import { frameItems, ItemKind, parseRaftItem } from "../../src/host/codec.ts";
import { environmentName } from "../../src/host/cold_replicas.ts";
import type { Replica } from "../../src/host/replica.ts";
import { rowsOf } from "../host/memory_environment.ts";
import { MessageType, type ConfState } from "../../src/raft/types.ts";
import type { Lane } from "../../src/host/ports.ts";
import type { SimNode, World } from "./world.ts";

type Violated = (violation: string) => void;

/** A live replica and where it runs. A new life of the same replica is another one. */
interface Seen {
  readonly node: SimNode;
  readonly replica: Replica;
  readonly name: string;
  term: number;
  commit: number;
  applied: number;
  /** Entries up to here were compared with the committed ones. */
  compared: number;
  /** Of the present leadership: how far its log was, and the term there. */
  ledTerm: number;
  ledLast: number;
  ledLastTerm: number;
  /** Where its configuration was compared with the others'. */
  confAt: number;
  /** Its tenant's time, as it was seen last. */
  time: number;
  /** Its log as it was checked last. */
  first: number;
  stored: number;
  last: number;
}

/** Facts that outlive replicas. */
interface Facts {
  /** Who led group/term. */
  readonly leaders: Map<string, string>;
  /**
   * Per group: term and digest of each entry that anybody applied, and the term in which that one was then: it was
   * committed in that term at the latest.
   */
  readonly committed: Map<
    number,
    Map<number, { readonly term: number; readonly digest: string; readonly by: number }>
  >;
  /** Whom a voter gave its vote: group/term/voter. */
  readonly votes: Map<string, number>;
  /** The configuration at each applied index: group/incarnation/index. */
  readonly confs: Map<string, string>;
  /** Where each replica is: group/incarnation/id. */
  readonly places: Map<string, string>;
  /** The last two configurations that anybody applied, newest first, with where they were seen first. */
  readonly recent: Map<string, { readonly at: number; readonly conf: ConfState }[]>;
}

interface Invariant {
  readonly name: string;
  /** Where it is from. */
  readonly source: string;
  readonly check: (seen: Seen, facts: Facts, violated: Violated) => void;
}

export const invariants: readonly Invariant[] = [
  {
    name: "election safety",
    source: "Raft fig. 3, §5.2",
    check({ node, replica }, facts, violated) {
      if (!replica.raft.isLeader) return;
      const key = `${replica.group}/${replica.raft.term}`;
      const other = facts.leaders.get(key);
      if (other === undefined) facts.leaders.set(key, node.name);
      else if (other !== node.name) {
        violated(
          `${other} and ${node.name} both lead group ${replica.group} in term ${replica.raft.term}`,
        );
      }
    },
  },
  {
    name: "leader completeness",
    source: "Raft fig. 3, §5.4",
    check({ replica, name, ledTerm }, facts, violated) {
      // Once for each leadership, before `leader append-only` has noted it.
      if (!replica.raft.isLeader || ledTerm === replica.raft.term) return;
      for (const [index, entry] of facts.committed.get(replica.group) ?? []) {
        // A leader of an earlier term than the one in which it was committed need not have it: the votes of term 5 may
        // arrive when term 6 has committed an entry of term 4 (simulation, seed 3002237).
        if (index < replica.log.firstIndex() || entry.by >= replica.raft.term) continue;
        const own = replica.log.term(index);
        if (own !== entry.term) {
          violated(
            `${name} leads term ${replica.raft.term} without entry ${index} of term ${entry.term} (has ${own})`,
          );
          return;
        }
      }
    },
  },
  {
    name: "leader append-only",
    source: "Raft fig. 3, §5.3",
    check(seen, _facts, violated) {
      const { raft, log } = seen.replica;
      if (!raft.isLeader) {
        seen.ledTerm = 0;
        return;
      }
      const last = raft.lastIndex;
      if (seen.ledTerm === raft.term) {
        const kept = log.term(seen.ledLast);
        if (last < seen.ledLast)
          violated(`${seen.name} shortened its own log from ${seen.ledLast} to ${last}`);
        else if (kept !== -1 && kept !== seen.ledLastTerm)
          violated(`${seen.name} replaced its own entry ${seen.ledLast}`);
      }
      // What is not yet handed to the log is not looked at before it is.
      seen.ledTerm = raft.term;
      seen.ledLast = Math.min(last, log.lastIndex());
      seen.ledLastTerm = log.term(seen.ledLast);
    },
  },
  {
    name: "state-machine safety; committed entries never change",
    source: "Raft fig. 3, §5.4.3",
    check(seen, facts, violated) {
      const { replica, name } = seen;
      // A purged tenant may begin anew for a moment on a node that has not heard of the purge.
      if (replica.tenant.startsWith("e")) return;
      const applied = replica.raft.appliedIndex;
      let committed = facts.committed.get(replica.group);
      if (committed === undefined) {
        committed = new Map();
        facts.committed.set(replica.group, committed);
      }
      const from = Math.max(seen.compared + 1, replica.log.firstIndex());
      const entries =
        from > applied ? [] : (replica.log.entries(from, applied + 1, Infinity) ?? []);
      for (const entry of entries) {
        const digest = `${entry.term}:${entry.kind}:${hash(entry.data)}`;
        const known = committed.get(entry.index);
        if (known === undefined) {
          committed.set(entry.index, { term: entry.term, digest, by: replica.raft.term });
        } else if (known.digest !== digest) {
          violated(`${name} applied ${digest} at ${entry.index}, others ${known.digest}`);
        }
      }
      seen.compared = applied;
    },
  },
  {
    name: "term, commit and applied index only grow",
    source: "Raft fig. 2",
    check(seen, _facts, violated) {
      const { term, commitIndex, appliedIndex } = seen.replica.raft;
      if (term < seen.term) violated(`${seen.name}: term went back from ${seen.term} to ${term}`);
      if (commitIndex < seen.commit)
        violated(`${seen.name}: commit went back from ${seen.commit} to ${commitIndex}`);
      if (appliedIndex < seen.applied)
        violated(`${seen.name}: applied went back from ${seen.applied} to ${appliedIndex}`);
      seen.term = term;
      seen.commit = commitIndex;
      seen.applied = appliedIndex;
    },
  },
  {
    name: "a replica's id is given once",
    source: "architecture, invariant 9",
    check({ node, replica, name, confAt }, facts, violated) {
      if (confAt !== -1) return;
      const key = `${replica.group}/${replica.incarnation}/${replica.id}`;
      const other = facts.places.get(key);
      if (other === undefined) facts.places.set(key, node.diskName);
      else if (other !== node.diskName) violated(`${name} is ${key}, which was on ${other}`);
    },
  },
  {
    name: "equal logs, equal configurations",
    source: "Raft thesis §4.1; applied, not appended (src/raft/DESIGN.md)",
    check(seen, facts, violated) {
      const { replica, name } = seen;
      const at = replica.raft.appliedIndex;
      if (at === seen.confAt) return;
      seen.confAt = at;
      const group = `${replica.group}/${replica.incarnation}`;
      const conf = JSON.stringify(replica.conf);
      const key = `${group}/${at}`;
      const other = facts.confs.get(key);
      if (other === undefined) facts.confs.set(key, conf);
      else if (other !== conf) violated(`${name} has ${conf} at ${at}, others ${other}`);
      const recent = facts.recent.get(group) ?? [];
      if (recent[0] === undefined || recent[0].at < at) {
        if (JSON.stringify(recent[0]?.conf) === conf) return;
        facts.recent.set(group, [{ at, conf: replica.conf }, ...recent.slice(0, 1)]);
      }
    },
  },
  {
    name: "a tenant's time never goes back",
    source: "src/machine/machine.ts; wall clocks here jump by an hour",
    check(seen, _facts, violated) {
      const time = seen.replica.view.get<{ at: number }>("meta")?.at ?? 0;
      if (time < seen.time)
        violated(`${seen.name}: from ${seen.time} to ${time} at ${seen.replica.raft.appliedIndex}`);
      seen.time = time;
    },
  },
  {
    name: "purged ≤ snapshot ≤ applied ≤ committed ≤ last",
    source: "openraft's invariants, after Vanlightly's TLA+",
    check({ replica, name }, _facts, violated) {
      const { commitIndex, appliedIndex, lastIndex } = replica.raft;
      const purged = replica.log.firstIndex() - 1;
      if (purged > appliedIndex || appliedIndex > commitIndex || commitIndex > lastIndex) {
        violated(
          `${name}: purged ${purged}, applied ${appliedIndex}, committed ${commitIndex}, last ${lastIndex}`,
        );
      }
    },
  },
];

/** How many events pass between two comparisons of whole logs and quorums: they cost as much as the logs are long. */
const WHOLE_EVERY = 512;
const STEP_EVERY = 8;

export class Invariants {
  world: World | null = null;
  readonly #violated: Violated;
  readonly #facts: Facts = {
    leaders: new Map(),
    committed: new Map(),
    votes: new Map(),
    confs: new Map(),
    places: new Map(),
    recent: new Map(),
  };
  /** The newest vote that left each replica: group/incarnation/voter. */
  readonly #promises = new Map<string, { readonly term: number; readonly vote: number }>();
  readonly #seen = new WeakMap<Replica, Seen>();
  /** Each row of the table, with where its violations go. */
  readonly #rows: readonly { readonly check: Invariant["check"]; readonly violated: Violated }[];
  #steps = 0;

  constructor(violated: Violated) {
    this.#violated = violated;
    this.#rows = invariants.map(({ name, check }) => ({
      check,
      violated: (violation) => violated(`${name}: ${violation}`),
    }));
  }

  /** Told of every leader as it is elected, so that none is missed between two steps. */
  leader(group: number, term: number, node: string): void {
    const key = `${group}/${term}`;
    const other = this.#facts.leaders.get(key);
    if (other === undefined) this.#facts.leaders.set(key, node);
    else if (other !== node) {
      this.#violated(
        `election safety: ${other} and ${node} both lead group ${group} in term ${term}`,
      );
    }
  }

  /** One vote per term, also over restarts (Raft §5.2, fig. 2): what leaves a node was promised. */
  sent(lane: Lane, bytes: Uint8Array): void {
    if (lane !== "control") return;
    for (const { kind, item } of frameItems(bytes)) {
      if (kind !== ItemKind.raft) continue;
      const { group, incarnation, message } = parseRaftItem(item);
      if (message.type !== MessageType.requestVoteResponse || message.reject) continue;
      if (this.#isPassing(group)) continue;
      const key = `${group}/${incarnation}/${message.term}/${message.from}`;
      const other = this.#facts.votes.get(key);
      const promise = `${group}/${incarnation}/${message.from}`;
      if ((this.#promises.get(promise)?.term ?? 0) < message.term)
        this.#promises.set(promise, { term: message.term, vote: message.to });
      if (other === undefined) this.#facts.votes.set(key, message.to);
      else if (other !== message.to) {
        this.#violated(
          `one vote per term: ${message.from} of group ${group} voted for ${other} and ${message.to} in term ${message.term}`,
        );
      }
    }
  }

  /** Of a tenant that comes and goes: purged, it may be woken anew where the purge is not known, and remembers nothing. */
  #isPassing(group: number): boolean {
    for (const { host } of (this.world as World).nodes) {
      const tenant = host?.directory.byGroup(group)?.tenant;
      if (tenant !== undefined) return tenant.startsWith("e");
    }
    return group !== 1;
  }

  step(): void {
    this.#steps += 1;
    if (this.#steps % STEP_EVERY !== 0) return;
    for (const seen of this.#live()) {
      if (!hasNews(seen)) continue;
      for (const { check, violated } of this.#rows) check(seen, this.#facts, violated);
    }
    if (this.#steps % WHOLE_EVERY === 0) this.#whole();
  }

  *#live(): Generator<Seen> {
    for (const node of (this.world as World).nodes) {
      for (const replica of node.host?.replicas() ?? []) {
        if (replica.halted !== null || replica.installing) continue;
        let seen = this.#seen.get(replica);
        if (seen === undefined) {
          const name = `${node.name}/${replica.tenant}/${replica.incarnation}/${replica.id}`;
          seen = {
            node,
            replica,
            name,
            term: 0,
            commit: 0,
            applied: 0,
            compared: 0,
            ledTerm: 0,
            ledLast: 0,
            ledLastTerm: 0,
            confAt: -1,
            time: 0,
            first: -1,
            stored: -1,
            last: -1,
          };
          this.#seen.set(replica, seen);
          this.#keptPromises(seen);
        }
        yield seen;
      }
    }
  }

  /** What left was durable (Raft fig. 2): a new life, when first seen, knows every vote that an earlier one gave. */
  #keptPromises({ node, replica, name }: Seen): void {
    const { group, incarnation, id: own, tenant } = replica;
    const promised = this.#promises.get(`${group}/${incarnation}/${own}`);
    // A purged tenant's replica forgets all; a directory that is behind may wake it once more, for nobody's good or harm.
    const purged = node.environments.removed.has(environmentName({ tenant, group, replica: own }));
    if (promised === undefined || purged) return;
    const { term, vote } = replica.raft.status();
    if (term < promised.term || (term === promised.term && vote !== promised.vote)) {
      this.#violated(
        `promises survive crashes: ${name} voted for ${promised.vote} in term ${promised.term}, and knows of ${vote} in ${term}`,
      );
    }
  }

  #whole(): void {
    const groups = new Map<string, Seen[]>();
    for (const seen of this.#live()) {
      const key = `${seen.replica.group}/${seen.replica.incarnation}`;
      groups.set(key, [...(groups.get(key) ?? []), seen]);
    }
    for (const members of groups.values()) {
      this.#committedOnQuorum(members);
      for (const left of members) {
        for (const right of members)
          if (left.replica.id < right.replica.id) this.#logMatching(left.replica, right.replica);
      }
    }
  }

  /** Log matching (Raft fig. 3, §5.3): entries of equal index and term have equal logs before them. */
  #logMatching(left: Replica, right: Replica): void {
    const first = Math.max(left.log.firstIndex(), right.log.firstIndex());
    const last = Math.min(left.log.lastIndex(), right.log.lastIndex());
    let matched = false;
    for (let index = last; index >= first; index--) {
      const same = left.log.term(index) === right.log.term(index);
      if (matched && !same) {
        this.#violated(
          `log matching: group ${left.group} replicas ${left.id} and ${right.id} differ at ${index}`,
        );
        return;
      }
      matched ||= same;
    }
  }

  /**
   * Committed is on a quorum, durably (Raft §5.3, §10.2.1 of the thesis), of the newest configuration or of the one
   * before, by which the newest entry may have been committed. Judged when all of them are there to look at.
   */
  #committedOnQuorum(members: readonly Seen[]): void {
    const [first] = members;
    if (first === undefined) return;
    const recent = this.#facts.recent.get(`${first.replica.group}/${first.replica.incarnation}`);
    const confs = (recent ?? []).map(({ conf }) => conf);
    const ids = new Set(members.map(({ replica }) => replica.id));
    const voters = (conf: ConfState): readonly number[] => [...conf.voters, ...conf.votersOutgoing];
    if (!confs.every((conf) => voters(conf).every((id) => ids.has(id)))) return;
    const commit = Math.max(...members.map(({ replica }) => replica.raft.commitIndex));
    // Who waits for an installation knows of commits whose entries it has not taken yet.
    const terms = members.map(({ replica }) => replica.log.term(commit)).filter((own) => own >= 0);
    const term = Math.max(...terms);
    const holding = new Set(
      members
        .filter(({ replica }) => {
          const own = replica.log.term(commit);
          return (
            replica.durableIndex >= commit && (own === term || commit < replica.log.firstIndex())
          );
        })
        .map(({ replica }) => replica.id),
    );
    const isQuorum = (half: readonly number[]): boolean =>
      half.length === 0 || half.filter((id) => holding.has(id)).length * 2 > half.length;
    if (!confs.some((conf) => isQuorum(conf.voters) && isQuorum(conf.votersOutgoing))) {
      this.#violated(
        `committed is on a quorum: entry ${commit} of ${first.name} is durable on ${[...holding].join()} of ${JSON.stringify(confs)}`,
      );
    }
  }

  /** After healing: equal applied index means equal state, row by row; but for those left behind. */
  final(isLeft: (replica: Replica, on: SimNode) => boolean): void {
    const states = new Map<number, { name: string; rows: string }>();
    for (const { node, replica } of this.#live()) {
      if (isLeft(replica, node)) continue;
      const rows = JSON.stringify(rowsOf(replica));
      const other = states.get(replica.group);
      if (other === undefined) states.set(replica.group, { name: node.name, rows });
      else if (other.rows !== rows) {
        this.#violated(
          `equal logs, equal states: group ${replica.group} on ${other.name} and ${node.name}`,
        );
      }
    }
  }
}

/**
 * Everything that the rows of the table look at is a matter of these numbers: of a replica where none of them moved since
 * it was checked there is nothing to be found, and that is nearly every one at nearly every step.
 */
function hasNews(seen: Seen): boolean {
  const { raft, log } = seen.replica;
  const [first, stored, last] = [log.firstIndex(), log.lastIndex(), raft.lastIndex];
  const isSame =
    raft.term === seen.term &&
    raft.commitIndex === seen.commit &&
    raft.appliedIndex === seen.applied &&
    first === seen.first &&
    stored === seen.stored &&
    last === seen.last &&
    (raft.isLeader
      ? seen.ledTerm === raft.term && log.term(seen.ledLast) === seen.ledLastTerm
      : seen.ledTerm === 0);
  seen.first = first;
  seen.stored = stored;
  seen.last = last;
  return !isSame;
}

function hash(bytes: Uint8Array): number {
  let value = 0x811c9dc5;
  for (const byte of bytes) value = Math.imul(value ^ byte, 0x01000193);
  return value >>> 0;
}
