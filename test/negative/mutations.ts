/**
 * The bugs that are planted, room by room: each a single change that brings back a mistake others made before us. `rule`
 * names the line of the checklist in docs/rules.md that it breaks; rules that begin with H, J or M0 are this
 * project's own: of the host's order, the journal and the machine.
 */
import { readdirSync } from "node:fs";
import path from "node:path";
import { root } from "./planting.ts";
import type { Killer, Mutation } from "./planting.ts";

/** All tests of a room: whoever adds one helps. The slow ones last. */
function testsOf(folder: string, last: readonly string[] = []): Killer {
  const files = readdirSync(path.join(root, folder))
    .filter((file) => file.endsWith(".test.ts") && !last.includes(file))
    .sort();
  return { kind: "test", files: [...files, ...last].map((file) => `${folder}/${file}`) };
}

const raft = testsOf("test/raft", ["network.test.ts"]);
const leases: Killer = {
  kind: "test",
  files: ["test/raft/leases.test.ts", "test/host/leases.test.ts"],
};
/** Storms alone: what they find without a test that looks for it. */
const leaseStorms: Killer = { kind: "test", files: ["test/sim/leases.test.ts"] };
const host = testsOf("test/host", ["replica.test.ts"]);
const journal: Killer = {
  kind: "test",
  files: ["test/store/journal.test.ts", "test/store/journal_property.test.ts"],
};
const machine: Killer = {
  kind: "test",
  files: [
    "test/machine/machine.test.ts",
    "test/machine/restore.test.ts",
    "test/machine/properties.test.ts",
  ],
};
/** The first of the seeds that every change passes (infra/test.mjs). */
const sim: Killer = { kind: "sim", seeds: 300, from: 1 };

const ofRaft: readonly Mutation[] = [
  {
    id: "last-voter-let-into-the-log",
    rule: "M10",
    breaks: "A change after which nobody could vote is let into the log",
    file: "src/raft/raft.ts",
    find: ` || !leavesVoters(this.#conf, change);`,
    replace: `;`,
    killers: [raft],
  },
  {
    id: "refusal-tells-no-commit",
    rule: "M8",
    breaks:
      "Who needs the vote of one that was removed, and refuses it, never learns of the removal",
    file: "src/raft/raft.ts",
    find: `        answer.commit = commit;
        answer.logTerm = term;`,
    replace: ``,
    killers: [raft],
  },
  {
    id: "learner-asks-nobody",
    rule: "T5",
    breaks: "A learner that forgot its leader and lacks nothing is never spoken to again",
    file: "src/raft/raft.ts",
    find: `      this.#seekLeader();`,
    replace: ``,
    killers: [raft],
  },
  // --- votes and terms -----------------------------------------------------------------------------------------------
  {
    id: "leads-before-its-own-vote",
    rule: "E5",
    breaks:
      "A candidate leads a term that a crash makes it forget, and after it once more with other entries",
    file: "src/raft/raft.ts",
    find: `if (this.#role === "candidate" && this.#self?.vote === Vote.none) return;`,
    replace: ``,
    killers: [raft],
  },
  {
    id: "vote-not-persisted",
    rule: "E1",
    breaks: "A vote is given and never written down, so a restart gives it again",
    file: "src/raft/raft.ts",
    find: `      hardState = { term: this.#term, vote: this.#vote, commit: log.commit };
      this.#handedOut = hardState;`,
    replace: `      this.#handedOut = { term: this.#term, vote: this.#vote, commit: log.commit };
      hardState = { ...this.#handedOut, vote: NONE };`,
    killers: [raft, sim],
  },
  {
    id: "vote-before-durable",
    rule: "E1",
    breaks: "The answer to a request for votes leaves before the vote is durable",
    file: "src/raft/raft.ts",
    find: `      }
      this.#after.push(answer);
    } else {`,
    replace: `      }
      this.#messages.push(answer);
    } else {`,
    killers: [raft, sim],
  },
  {
    id: "acceptance-before-durable",
    rule: "E1",
    breaks: "A follower accepts entries before they are durable",
    file: "src/raft/raft.ts",
    find: `    answer.commit = log.commit;
    answer.context = this.#bind();
    this.#after.push(answer);`,
    replace: `    answer.commit = log.commit;
    answer.context = this.#bind();
    this.#messages.push(answer);`,
    killers: [raft, sim],
  },
  {
    id: "own-vote-before-durable",
    rule: "E16",
    breaks: "A candidate counts its own vote before it is durable",
    file: "src/raft/raft.ts",
    find: `        own.term = term;
        this.#own.push(own);
        continue;`,
    replace: `        own.term = term;
        this.#step(own);
        continue;`,
    killers: [raft, sim],
  },
  {
    id: "second-vote-in-a-term",
    rule: "E2",
    breaks: "Who voted already votes for another one in the same term",
    file: "src/raft/raft.ts",
    find: `      (this.#vote === NONE && this.#lead === NONE) ||`,
    replace: `      this.#lead === NONE ||`,
    killers: [raft, sim],
  },
  {
    id: "vote-kept-over-terms",
    rule: "E2",
    breaks: "A new term begins with the vote of the last one",
    file: "src/raft/raft.ts",
    find: `      this.#vote = NONE;
      this.#retired = false;`,
    replace: `      this.#retired = false;`,
    killers: [raft, sim],
  },
  {
    id: "up-to-date-by-length",
    rule: "E4",
    breaks: "The longer log wins, whatever its last term",
    file: "src/raft/log.ts",
    find: `    return lastTerm > own || (lastTerm === own && lastIndex >= this.lastIndex);`,
    replace: `    return own >= 0 && lastTerm >= 0 && lastIndex >= this.lastIndex;`,
    killers: [raft, sim],
  },
  {
    id: "up-to-date-by-term",
    rule: "E4",
    breaks: "An equal last term is enough, however short the log",
    file: "src/raft/log.ts",
    find: `    return lastTerm > own || (lastTerm === own && lastIndex >= this.lastIndex);`,
    replace: `    return lastIndex >= 0 && lastTerm >= own;`,
    killers: [raft, sim],
  },
  {
    id: "two-leaders-tolerated",
    rule: "E5",
    breaks: "A leader follows another leader of its own term instead of stopping",
    file: "src/raft/raft.ts",
    find: `        assert(false, \`Replica \${m.from} leads term \${m.term}, and so does this one\`);
        return;`,
    replace: `        this.#becomeFollower(m.term, m.from);
        return;`,
    killers: [raft],
  },
  {
    id: "half-is-a-majority",
    rule: "E6",
    breaks: "Half of an even number of voters elects",
    file: "src/raft/quorum.ts",
    find: `  const quorum = Math.floor(count / 2) + 1;`,
    replace: `  const quorum = Math.ceil(count / 2);`,
    killers: [raft],
  },
  {
    id: "half-commits",
    rule: "L10",
    breaks: "Half of an even number of voters commits",
    file: "src/raft/quorum.ts",
    find: `scratch[count - (Math.floor(count / 2) + 1)]`,
    replace: `scratch[count - Math.ceil(count / 2)]`,
    killers: [raft],
  },
  {
    id: "last-answer-counts",
    rule: "E6",
    breaks: "A later answer of the same voter replaces its first",
    file: "src/raft/raft.ts",
    find: `    if (voter !== undefined && voter.vote === Vote.none) {`,
    replace: `    if (voter !== undefined) {`,
    killers: [raft],
  },
  {
    id: "pre-vote-raises-term",
    rule: "E7",
    breaks: "A pre-vote moves the term of who is asked",
    file: "src/raft/raft.ts",
    find: `        // A request about a term that nobody has entered yet.
        return;`,
    replace: `        this.#becomeFollower(m.term, NONE);
        return;`,
    killers: [raft],
  },
  {
    id: "pre-vote-granted-in-own-term",
    rule: "E7",
    breaks: "A granted pre-vote carries the responder's term, so that it is taken for old",
    file: "src/raft/raft.ts",
    find: `      answer.term = m.term;
      if (!isPreVote) {`,
    replace: `      if (!isPreVote) {`,
    killers: [raft, sim],
  },
  {
    id: "old-pre-vote-dropped",
    rule: "E7",
    breaks:
      "A pre-vote of an earlier term is dropped instead of refused: two camps block each other",
    file: "src/raft/raft.ts",
    find: `        this.#refuseVote(MessageType.preVoteResponse, m.from);`,
    replace: `        this.#introduceTo(m.from);`,
    killers: [raft],
  },
  {
    id: "pre-vote-counts-as-vote",
    rule: "E8",
    breaks: "A late pre-vote counts as a vote of the election that followed",
    file: "src/raft/raft.ts",
    find: `        if (this.#role === "preCandidate") this.#countVote(m);`,
    replace: `        this.#countVote(m);`,
    killers: [raft, sim],
  },
  {
    id: "no-stickiness",
    rule: "E9",
    breaks: "Who hears from a leader helps to depose it",
    file: "src/raft/raft.ts",
    find: `(this.#isBound(m.from) || this.#inLease(m.from))) {`,
    replace: `this.#isBound(m.from)) {`,
    killers: [raft],
  },
  {
    id: "silent-at-higher-term",
    rule: "E10",
    breaks: "A replica ahead of the leader's term says nothing, and is never reached again",
    file: "src/raft/raft.ts",
    find: `        if (checkQuorum || preVote) {`,
    replace: `        if (checkQuorum && !preVote) {`,
    killers: [raft, sim],
  },
  {
    id: "leads-without-quorum",
    rule: "E11",
    breaks: "A leader that lost its quorum leads on",
    file: "src/raft/raft.ts",
    find: `      if (checkQuorum) this.#checkQuorum();`,
    replace: `      if (checkQuorum && this.#peers.length === 0) this.#checkQuorum();`,
    killers: [raft],
  },
  {
    id: "same-timeout-for-all",
    rule: "E12",
    breaks: "Election time-outs are not drawn: candidates split the vote in step",
    file: "src/raft/raft.ts",
    find: `    this.#electionTimeout = electionTicks + random(electionTicks);`,
    replace: `    this.#electionTimeout = electionTicks + 0 * random(electionTicks);`,
    killers: [raft],
  },
  {
    id: "campaigns-before-applying-change",
    rule: "E13",
    breaks: "A replica campaigns with a committed configuration change that it has not applied",
    file: "src/raft/raft.ts",
    find: `!this.#isPromotable() || this.#hasUnappliedConfChange()) return;`,
    replace: `!this.#isPromotable()) return;`,
    killers: [raft],
  },
  {
    id: "learner-campaigns",
    rule: "E13",
    breaks: "A learner campaigns",
    file: "src/raft/raft.ts",
    find: `    return this.#self !== null && !this.#self.isLearner && !this.#log.hasSnapshot;`,
    replace: `    return this.#self !== null && !this.#log.hasSnapshot;`,
    killers: [raft],
  },
  {
    id: "learner-refuses-vote",
    rule: "E14",
    breaks:
      "A learner that is asked does not vote, though it may be promoted where it is asked from",
    file: "src/raft/raft.ts",
    find: `    if (free && !isBound && this.#log`,
    replace: `    if (free && !isBound && this.#self?.isLearner !== true && this.#log`,
    killers: [raft],
  },
  {
    id: "candidate-ignores-leader",
    rule: "E17",
    breaks: "A candidate ignores the appends of who won its term",
    file: "src/raft/raft.ts",
    find: `      case MessageType.appendEntries:
        this.#becomeFollower(m.term, m.from);
        this.#takeEntries(m);
        return;
      case MessageType.heartbeat:
        this.#becomeFollower(m.term, m.from);`,
    replace: `      case MessageType.appendEntries:
        return;
      case MessageType.heartbeat:
        this.#becomeFollower(m.term, m.from);`,
    killers: [raft],
  },
  {
    id: "answer-of-later-term-ignored",
    rule: "E18",
    breaks: "An answer of a later term does not depose the leader",
    file: "src/raft/raft.ts",
    find: `      default:
        this.#becomeFollower(m.term, NONE);
    }
  }`,
    replace: `      case MessageType.appendEntriesResponse:
        return;
      default:
        this.#becomeFollower(m.term, NONE);
    }
  }`,
    killers: [raft, sim],
  },
  // --- log and commit ------------------------------------------------------------------------------------------------
  {
    id: "delayed-append-cuts",
    rule: "L2",
    breaks: "A late, shorter append deletes entries that match",
    file: "src/raft/log.ts",
    find: `      if (!this.matches(entry.index, entry.term)) break;`,
    replace: `      if (entry.index > this.commit) break;`,
    killers: [raft, sim],
  },
  {
    id: "commit-beyond-message",
    rule: "L3",
    breaks: "A follower commits entries that the message did not verify",
    file: "src/raft/log.ts",
    find: `    this.commitTo(Math.min(commit, last));`,
    replace: `    this.commitTo(Math.min(commit, this.lastIndex));`,
    killers: [raft, sim],
  },
  {
    id: "heartbeat-commit-unbounded",
    rule: "L4",
    breaks:
      "A heartbeat carries the leader's commit index, not what the follower is known to hold of it",
    file: "src/raft/raft.ts",
    find: `    m.commit = Math.min(peer.match, this.#log.commit);`,
    replace: `    m.commit = this.#log.commit;`,
    killers: [raft, sim],
  },
  {
    id: "committed-entries-replaced",
    rule: "L5",
    breaks: "A committed entry can be overwritten without anybody noticing",
    file: "src/raft/log.ts",
    find: `    assert(first.index > this.commit, \`Entry`,
    replace: `    assert(first.index > 0, \`Entry`,
    killers: [raft],
  },
  {
    id: "old-terms-counted",
    rule: "L6",
    breaks: "Entries of an earlier term are committed by counting (paper, figure 8)",
    file: "src/raft/raft.ts",
    find: `    if (this.#log.term(index) !== this.#term) return false;`,
    replace: `    if (this.#log.term(index) > this.#term) return false;`,
    killers: [raft, sim],
  },
  {
    id: "leader-counts-unwritten",
    rule: "L7",
    breaks: "A leader counts itself for entries that are not on its disk yet",
    file: "src/raft/raft.ts",
    find: `    this.#log.append(entries);
    const index = this.#log.lastIndex;`,
    replace: `    this.#log.append(entries);
    const index = this.#log.lastIndex;
    if (this.#self !== null) this.#self.match = index;`,
    killers: [raft, sim],
  },
  {
    id: "match-goes-back",
    rule: "L9",
    breaks: "An old acknowledgement moves what a follower is known to hold back",
    file: "src/raft/progress.ts",
    find: `    if (index <= this.match) return false;
    this.match = index;`,
    replace: `    if (index === this.match) return false;
    this.match = index;`,
    killers: [raft],
  },
  {
    id: "old-terms-acknowledge",
    rule: "L11",
    breaks: "Acknowledgements of an earlier term count in this one",
    file: "src/raft/raft.ts",
    find: `      this.#answerOutdated(m);
      return;
    }
    if (m.reject`,
    replace: `      if (m.type !== MessageType.appendEntriesResponse) {
        this.#answerOutdated(m);
        return;
      }
    }
    if (m.reject`,
    killers: [raft, sim],
  },
  {
    id: "old-rejection-counts",
    rule: "L11",
    breaks: "A rejection of an older probe moves the next one",
    file: "src/raft/progress.ts",
    find: `      if (this.next - 1 !== rejected) return false;`,
    replace: `      if (this.next <= 0) return false;`,
    killers: [raft],
  },
  {
    id: "probe-entry-by-entry",
    rule: "L12",
    breaks: "A follower's rejection gives no hint, so that a leader goes back one entry at a time",
    file: "src/raft/raft.ts",
    find: `        answer.rejectHint = hint;
        answer.logTerm = term === UNKNOWN_TERM ? 0 : term;`,
    replace: `        answer.rejectHint = Math.max(hint, m.index - 1) + 0 * term;`,
    killers: [raft],
  },
  {
    id: "inflight-never-freed",
    rule: "L13",
    breaks: "The window of messages under way never empties",
    file: "src/raft/raft.ts",
    find: `      peer.inflights.freeTo(m.index);`,
    replace: `      peer.inflights.freeTo(0);`,
    killers: [raft],
  },
  {
    id: "heartbeat-does-not-resume",
    rule: "L13",
    breaks: "When everything under way is lost, no heartbeat gets sending going again",
    file: "src/raft/raft.ts",
    find: `    peer.paused = false;
    // Also when its window is full`,
    replace: `    // Also when its window is full`,
    killers: [raft],
  },
  {
    id: "caught-up-stays-probed",
    rule: "L14",
    breaks: "A follower that has everything stays in probe until the next proposal",
    file: "src/raft/raft.ts",
    find: `    if (peer.match < this.#log.lastIndex || peer.state === "probe")`,
    replace: `    if (peer.match < this.#log.lastIndex)`,
    killers: [raft],
  },
  {
    id: "acknowledgement-of-older-term",
    rule: "L15",
    breaks:
      "Storage's acknowledgement of an older term marks entries that only look the same durable (ABA)",
    file: "src/raft/raft.ts",
    find: `    if (append.ackIndex !== 0 && append.ackTerm === this.#term) {`,
    replace: `    if (append.ackIndex !== 0) {`,
    killers: [raft, sim],
  },
  {
    id: "acknowledgement-of-replaced-entry",
    rule: "L16",
    breaks: "Storage's acknowledgement of a replaced entry marks the one in its place durable",
    file: "src/raft/log.ts",
    find: `    if (entry === undefined || entry.term !== term) return;`,
    replace: `    if (entry === undefined) return;`,
    killers: [raft],
  },
  {
    id: "applied-before-durable",
    rule: "L18",
    breaks: "Entries are applied before they are durable here",
    file: "src/raft/log.ts",
    find: `Math.min(this.commit, this.#offset - 1);`,
    replace: `this.commit;`,
    killers: [raft],
  },
  {
    id: "replaced-entries-not-written",
    rule: "L19",
    breaks: "What replaces entries already handed to storage is not handed out again",
    file: "src/raft/log.ts",
    find: `      this.#inProgress = Math.min(this.#inProgress, first.index);`,
    replace: `      this.#inProgress = Math.max(this.#inProgress, first.index);`,
    killers: [raft],
  },
  {
    id: "limit-holds-up-empty-entries",
    rule: "L20",
    breaks: "The limit on uncommitted bytes also refuses what must always pass",
    file: "src/raft/raft.ts",
    find: `    if (waiting > 0 && bytes > 0 && waiting + bytes >`,
    replace: `    if (waiting > 0 && waiting + Math.max(bytes, 1) >`,
    killers: [raft],
  },
  {
    id: "uncommitted-bytes-kept-over-terms",
    rule: "L20",
    breaks: "A new leader counts the uncommitted bytes of its last term",
    file: "src/raft/raft.ts",
    find: `    this.#pendingConfIndex = 0;
    this.#uncommittedBytes = 0;`,
    replace: `    this.#pendingConfIndex = 0;`,
    killers: [raft],
  },
  {
    id: "commit-not-spread",
    rule: "L21",
    breaks: "A follower that answers late is not told that its entries are committed",
    file: "src/raft/raft.ts",
    find: `    } else if (other && peer.canBumpCommit(this.#log.commit)) {`,
    replace: `    } else if (!other && peer.canBumpCommit(this.#log.commit)) {`,
    killers: [raft],
  },
  // --- snapshots -----------------------------------------------------------------------------------------------------
  {
    id: "snapshot-over-newer-log",
    rule: "S1",
    breaks:
      "A snapshot that the log already covers replaces it, with entries behind that were accepted",
    file: "src/raft/raft.ts",
    find: `    if (log.matches(index, term)) {
      log.commitTo(index);
      return false;
    }`,
    replace: ``,
    killers: [raft, sim],
  },
  {
    id: "snapshot-takes-back",
    rule: "S1",
    breaks: "A snapshot older than the commit index is taken",
    file: "src/raft/raft.ts",
    find: `    if (index <= log.commit) {
      const own`,
    replace: `    if (index < 0) {
      const own`,
    killers: [raft, sim],
  },
  {
    id: "contradicting-snapshot-ignored",
    rule: "S2",
    breaks: "A snapshot that contradicts what is committed here goes unnoticed",
    file: "src/raft/raft.ts",
    find: `      assert(own === UNKNOWN_TERM || own === term, "a snapshot contradicts`,
    replace: `      assert(own >= UNKNOWN_TERM || own === term, "a snapshot contradicts`,
    killers: [raft],
  },
  {
    id: "snapshot-without-members",
    rule: "S3",
    breaks: "A snapshot's configuration is not taken over",
    file: "src/raft/raft.ts",
    find: `    this.#switchMembers(restoreMembers(confState, this.#newProgress));
    return true;`,
    replace: `    return true;`,
    killers: [raft],
  },
  {
    id: "applies-while-installing",
    rule: "S4",
    breaks: "Entries are applied while a snapshot is being installed",
    file: "src/raft/log.ts",
    find: `    return !this.#applyingPaused && this.#snapshot === null && this.applying < this.#appliable;`,
    replace: `    return !this.#applyingPaused && this.applying < this.#appliable;`,
    killers: [raft, sim],
  },
  {
    id: "snapshot-of-compacted-never-sent",
    rule: "S6",
    breaks: "A follower behind the start of the log gets nothing until something new is proposed",
    file: "src/raft/raft.ts",
    find: `    if (logTerm === UNKNOWN_TERM) return this.#maybeSendSnapshot(peer);`,
    replace: `    if (logTerm === UNKNOWN_TERM) return false;`,
    killers: [raft, sim],
  },
  {
    id: "success-by-append-ignored",
    rule: "S7",
    breaks:
      "A follower that came by its state another way stays silent until the snapshot's end is reported",
    file: "src/raft/raft.ts",
    find: `      if (peer.match + 1 >= this.#log.firstIndex) peer.becomeReplicate();`,
    replace: ``,
    killers: [raft],
  },
  {
    id: "other-snapshot-installed",
    rule: "S9",
    breaks: "The end of an older install counts for the snapshot that came after it",
    file: "src/raft/log.ts",
    find: `    if (this.#snapshot === null || this.#snapshot.index !== index) return;`,
    replace: `    if (this.#snapshot === null || index === 0) return;`,
    killers: [raft, sim],
  },
  {
    id: "failed-snapshot-forgotten",
    rule: "S10",
    breaks: "A peer to which a snapshot failed is never tried again",
    file: "src/raft/raft.ts",
    find: `    if (!ok) peer.pendingSnapshot = 0;
    peer.becomeProbe();`,
    replace: `    if (!ok) return;
    peer.becomeProbe();`,
    killers: [raft, sim],
  },
  // --- members -------------------------------------------------------------------------------------------------------
  {
    id: "two-changes-at-once",
    rule: "M1",
    breaks: "A second configuration change is taken while one is under way",
    file: "src/raft/raft.ts",
    find: `    const pending = this.#pendingConfIndex > this.#log.applied;`,
    replace: `    const pending = this.#pendingConfIndex > this.#log.lastIndex;`,
    killers: [raft],
  },
  {
    id: "change-before-own-commit",
    rule: "M2",
    breaks: "A new leader takes a configuration change before it applied what it inherited",
    file: "src/raft/raft.ts",
    find: `    this.#pendingConfIndex = this.#log.lastIndex;
    for (const context of asked)`,
    replace: `    for (const context of asked)`,
    killers: [raft],
  },
  {
    id: "old-half-does-not-commit",
    rule: "M3",
    breaks: "In a joint configuration the new half alone commits",
    file: "src/raft/quorum.ts",
    find: `  return outgoing.length === 0 ? first : Math.min(first, majorityCommitted(outgoing, acknowledged));`,
    replace: `  return outgoing.length < 0 ? majorityCommitted(outgoing, acknowledged) : first;`,
    killers: [raft],
  },
  {
    id: "old-half-does-not-vote",
    rule: "M3",
    breaks: "In a joint configuration the new half alone elects",
    file: "src/raft/quorum.ts",
    find: `  if (outgoing.length === 0) return first;
  const second`,
    replace: `  if (outgoing.length >= 0) return first;
  const second`,
    killers: [raft],
  },
  {
    id: "old-half-does-not-confirm-reads",
    rule: "M3",
    breaks: "In a joint configuration the new half alone confirms reads",
    file: "src/raft/raft.ts",
    find: `    const round = jointCommitted(voters, votersOutgoing, this.#readConfirmedOf);
    for`,
    replace: `    const round = jointCommitted(voters, votersOutgoing.slice(0, 0), this.#readConfirmedOf);
    for`,
    killers: [raft],
  },
  {
    id: "removed-leader-takes-proposals",
    rule: "M6",
    breaks: "A leader that was removed takes proposals on",
    file: "src/raft/raft.ts",
    find: `    if (this.#role !== "leader" || this.#self === null || this.#leavingAt !== 0)
      return "not-leader";`,
    replace: `    if (this.#role !== "leader") return "not-leader";`,
    killers: [raft],
  },
  {
    id: "removed-leader-stays",
    rule: "M6",
    breaks: "A leader that was removed never steps down",
    file: "src/raft/raft.ts",
    find: `      if (!this.#config.stepDownOnRemoval) return;`,
    replace: `      if (this.#config.stepDownOnRemoval) return;`,
    killers: [raft],
  },
  {
    id: "answers-of-removed-count",
    rule: "M8",
    breaks: "Answers of replicas that were removed depose the leader",
    file: "src/raft/raft.ts",
    find: `    if (isAnswer(m.type) && this.#peer(m.from) === undefined) return false;`,
    replace: ``,
    killers: [raft],
  },
  {
    id: "learners-count",
    rule: "M9",
    breaks: "Learners are counted in the quorum that commits",
    file: "src/raft/raft.ts",
    find: `    const index = jointCommitted(voters, votersOutgoing, this.#matchOf);`,
    replace: `    const all = [...voters, ...this.#conf.learners];
    const index = jointCommitted(all, votersOutgoing, this.#matchOf);`,
    killers: [raft],
  },
  {
    id: "last-voter-removed",
    rule: "M10",
    breaks: "The last voter can be removed",
    file: "src/raft/confchange.ts",
    find: `    return this.#voters.size === 0 ? "removed all voters" : null;`,
    replace: `    return this.#voters.size < 0 ? "removed all voters" : null;`,
    killers: [raft],
  },
  {
    id: "joint-never-left",
    rule: "M11",
    breaks: "Nobody leaves a joint configuration that is to be left by itself",
    file: "src/raft/raft.ts",
    find: `    this.#uncommittedBytes = Math.max(0, this.#uncommittedBytes - bytes);
    this.#leaveJointIfDue();`,
    replace: `    this.#uncommittedBytes = Math.max(0, this.#uncommittedBytes - bytes);`,
    killers: [raft],
  },
  {
    id: "transfer-target-unready",
    rule: "M12",
    breaks: "The target of a transfer campaigns without the entries expected of it",
    file: "src/raft/raft.ts",
    find: `        if (this.#log.lastIndex >= m.context) this.#startElection("transfer");`,
    replace: `        this.#startElection("transfer");`,
    killers: [raft],
  },
  {
    id: "proposals-during-transfer",
    rule: "M12",
    breaks: "Proposals are taken while leadership is handed over",
    file: "src/raft/raft.ts",
    find: `    return this.#transferee === NONE ? null : "transferring";`,
    replace: `    return null;`,
    killers: [raft],
  },
  {
    id: "transfer-never-given-up",
    rule: "M12",
    breaks: "A transfer whose target does not take over is never given up",
    file: "src/raft/raft.ts",
    find: `        this.#transferee = NONE;
        this.#leaveJointIfDue();`,
    replace: `        this.#leaveJointIfDue();`,
    killers: [raft],
  },
  {
    id: "lease-kept-over-transfer",
    rule: "M12",
    breaks: "A leader that told another one to campaign goes on serving lease reads",
    file: "src/raft/raft.ts",
    find: `    this.#leaseVoid = true;
    const m`,
    replace: `    const m`,
    killers: [leaseStorms, raft],
  },
  {
    id: "simple-change-of-two-voters",
    rule: "M3",
    breaks: "Two voters change at once without a joint configuration",
    file: "src/raft/confchange.ts",
    find: `    return refuse("more than one voter changed without entering joint config");`,
    replace: `    return draft.finish(create);`,
    killers: [raft],
  },
  // --- reads and leases ----------------------------------------------------------------------------------------------
  {
    id: "read-before-own-commit",
    rule: "R1",
    breaks: "A leader answers reads before it committed an entry of its own term",
    file: "src/raft/raft.ts",
    find: `    if (this.#log.term(this.#log.commit) !== this.#term) {`,
    replace: `    if (this.#log.term(this.#log.commit) > this.#term) {`,
    killers: [raft, sim],
  },
  {
    id: "only-voter-reads-early",
    rule: "R1",
    breaks: "An only voter answers reads before it committed an entry of its own term",
    file: "src/raft/raft.ts",
    find: `    if (this.#log.term(this.#log.commit) !== this.#term) {`,
    replace: `    if (voters.length > 1 && this.#log.term(this.#log.commit) !== this.#term) {`,
    killers: [raft, sim],
  },
  {
    id: "election-answers-what-it-cannot-know",
    rule: "R1",
    breaks: "A new leader answers reads from a log of which more may be committed than it knows",
    file: "src/raft/raft.ts",
    find: `    if (commit === lastIndex && this.#askedAs !== 0) this.#answerRead(this.#id, context, commit);`,
    replace: `    if (commit <= lastIndex) this.#answerRead(this.#id, context, commit);`,
    killers: [raft, sim],
  },
  {
    id: "votes-answer-later-reads",
    rule: "R2",
    breaks: "A read is confirmed by votes that were given before it came",
    file: "src/raft/raft.ts",
    find: `      if (this.#role !== "preCandidate" || this.#readsAsked.length >= READS_ASKED_MAX) return false;`,
    replace: `      if (this.#role === "follower" || this.#readsAsked.length >= READS_ASKED_MAX) return false;`,
    killers: [raft, sim],
  },
  {
    id: "votes-of-an-earlier-life-answer-reads",
    rule: "R2",
    breaks: "A read is confirmed by votes that an earlier life of the replica asked for",
    file: "src/raft/raft.ts",
    find: `      if (isOld && !m.reject && m.from !== this.#id) this.#askedAs = 0;`,
    replace: `      if (isOld && m.reject && m.from !== this.#id) this.#askedAs = 0;`,
    killers: [raft],
  },
  {
    id: "read-joins-sent-round",
    rule: "R2",
    breaks: "A read is confirmed by heartbeats that left before it came",
    file: "src/raft/reads.ts",
    find: `  close(): void {
    this.#open = false;`,
    replace: `  close(): void {
    this.#open = this.#pending.length > 0;`,
    killers: [raft, sim],
  },
  {
    id: "any-heartbeat-confirms",
    rule: "R3",
    breaks: "The answer to an earlier heartbeat confirms the newest read",
    file: "src/raft/raft.ts",
    find: `    if (m.context > peer.readConfirmed) {
      peer.readConfirmed = m.context;`,
    replace: `    if (this.#reads.round > peer.readConfirmed) {
      peer.readConfirmed = this.#reads.round;`,
    killers: [raft, sim],
  },
  {
    id: "read-without-asking",
    rule: "R2",
    breaks: "A leader answers reads without asking anybody whether it still leads",
    file: "src/raft/raft.ts",
    find: `    if (this.#isOnlyVoter() || this.#holdsLease()) {`,
    replace: `    if (this.#isVoter(this.#id)) {`,
    killers: [raft, sim],
  },
  {
    id: "answer-to-an-earlier-life",
    rule: "R3",
    breaks: "After a restart a replica takes answers to the reads of its earlier life for its own",
    file: "src/raft/raft.ts",
    find: `      this.#forwardSequence = this.#config.random(0x1_0000_0000) * 0x10_0000;`,
    replace: `      this.#forwardSequence = 0;`,
    killers: [raft],
  },
  {
    id: "lease-from-last-heartbeat",
    rule: "R6",
    breaks: "A lease counts from the newest heartbeat sent, answered or not",
    file: "src/raft/reads.ts",
    find: `      if (began.round <= round) return began.tick;`,
    replace: `      if (round > 0) return began.tick;`,
    killers: [raft],
  },
  {
    id: "lease-too-long",
    rule: "R6",
    breaks: "A lease lasts beyond the election time-out that protects it",
    file: "src/raft/raft.ts",
    find: `this.#leaderTicks - began <= this.#config.electionTicks - 2;`,
    replace: `this.#leaderTicks - began <= this.#config.electionTicks * 2;`,
    killers: [raft],
  },
  {
    id: "lease-without-check-quorum",
    rule: "R8",
    breaks: "Leases can be turned on without what they rest on",
    file: "src/raft/raft.ts",
    find: `      config.readOnly !== "lease" || (config.checkQuorum && config.supports === null),`,
    replace: `      config.readOnly !== "lease" || config.electionTicks > 0,`,
    killers: [raft],
  },
  {
    id: "leader-forgotten-under-lease",
    rule: "R8",
    breaks: "A follower forgets a leader that counts on its silence",
    file: "src/raft/raft.ts",
    find: `    if (this.#role !== "follower" || this.#config.readOnly === "lease") return;`,
    replace: `    if (this.#role !== "follower") return;`,
    killers: [raft],
  },
  // --- liveness from outside -----------------------------------------------------------------------------------------
  {
    id: "restarted-leader-trusted",
    rule: "T4",
    breaks: "Followers go on trusting a leader that asks for votes itself",
    file: "src/raft/raft.ts",
    find: `        if (m.from === this.#lead && this.#supports !== null) this.forgetLeader();`,
    replace: ``,
    killers: [raft, sim],
  },
  {
    id: "challenge-taken-for-noise",
    rule: "T5",
    breaks:
      "A leader whose group went on without it leads for ever where its voters' nodes are alive, and refuses its vote",
    file: "src/raft/raft.ts",
    find: `this.#peer(by) === undefined) this.#challenge = 2;`,
    replace: `this.#peer(by) === undefined) this.#challenge = 0;`,
    killers: [raft],
  },
  {
    id: "challenge-judged-at-once",
    rule: "T5",
    breaks: "A leader that is asked for signs of its quorum steps down before anybody could answer",
    file: "src/raft/raft.ts",
    find: `    const activeOf = this.#challenge === 1 ? this.#answeredOf : this.#activeOf;`,
    replace: `    const activeOf = this.#challenge > 0 ? this.#answeredOf : this.#activeOf;`,
    killers: [raft],
  },
  {
    id: "leader-not-introduced",
    rule: "T5",
    breaks: "A leader without regular heartbeats does not tell a restarted follower of itself",
    file: "src/raft/raft.ts",
    find: `    if (peer !== undefined) this.#sendHeartbeat(peer, this.#reads.asking);`,
    replace: ``,
    killers: [raft, sim],
  },
  {
    id: "rests-too-early",
    rule: "T4",
    breaks: "A leader comes to rest while a follower does not know that all is committed",
    file: "src/raft/raft.ts",
    find: `      peer.match === this.#log.lastIndex &&
      peer.knownCommit >= this.#log.commit`,
    replace: `      peer.match === this.#log.lastIndex`,
    killers: [raft, sim],
  },
  {
    id: "retires-silently",
    rule: "T5",
    breaks:
      "A leader that steps down tells nobody, and its node being alive everybody waits for it",
    file: "src/raft/raft.ts",
    find: `    if (retires) this.#retire();`,
    replace: ``,
    killers: [raft],
  },
];

const ofHost: readonly Mutation[] = [
  // --- versions and balance --------------------------------------------------------------------------------------------
  {
    id: "level-of-the-newest",
    rule: "H5",
    breaks: "A newer version proposes what the older ones beside it do not know",
    file: "src/host/versions.ts",
    find: `    return Math.min(this.#level() ?? levelFirst, this.#levels.max);`,
    replace: `    return this.#levels.max;`,
    killers: [host],
  },
  {
    id: "unknown-level-applied",
    rule: "H5",
    breaks:
      "A command of a level that is not known here is applied as what it would have been before",
    file: "src/host/replica.ts",
    find: `        if (level > this.#semanticsMax) {`,
    replace: `        if (level > Infinity) {`,
    killers: [host],
  },
  {
    id: "vote-not-in-journal",
    rule: "E3",
    breaks: "The record in the journal leaves the vote out",
    file: "src/host/codec.ts",
    find: `    writer.u53(hard.vote);`,
    replace: `    writer.u53(0);`,
    killers: [host, sim],
  },
  {
    id: "hard-state-not-recovered",
    rule: "E1",
    breaks: "A restart reads the entries of the journal and not its terms and votes",
    file: "src/host/recovery.ts",
    find: `    if (parsed.hard !== null) log.recoverHardState(parsed.hard);`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "answers-before-journal",
    rule: "D3",
    breaks: "What depends on an append leaves when it is handed to the journal",
    file: "src/host/replica.ts",
    find: `        this.#cut(cut);
      }
      this.#appendsInFlight.push(append);`,
    replace: `        this.#cut(cut);
      }
      for (const message of append.responses) this.#hooks.send(this, message);
      this.#appendsInFlight.push(append);`,
    killers: [host, sim],
  },
  {
    id: "journal-not-awaited",
    rule: "D3",
    breaks: "Appends count as durable as soon as the journal took them",
    file: "src/host/turns.ts",
    find: `      first = this.#journal.append(batch, () => this.#persisted(batch, first));`,
    replace: `      first = this.#journal.append(batch, () => {});
      this.#persisted(batch, first);`,
    killers: [host, sim],
  },
  {
    id: "journal-released-too-early",
    rule: "H1",
    breaks: "A checkpoint releases records that were appended while it was written",
    file: "src/host/node_host.ts",
    find: `    this.#options.journal.release(replica.group, replica.sequenceStored);`,
    replace: `    this.#options.journal.release(replica.group, replica.sequenceSubmitted);`,
    killers: [host, sim],
  },
  {
    id: "checkpoint-claims-too-much",
    rule: "H1",
    breaks: "A checkpoint says to hold journal records that are not durable yet",
    file: "src/host/replica.ts",
    find: `    const applied = this.raft.appliedIndex;
    const sequence = this.sequenceDurable;`,
    replace: `    const applied = this.raft.appliedIndex;
    const sequence = this.sequenceSubmitted;`,
    killers: [host, sim],
  },
  {
    id: "checkpoint-of-entries-not-durable",
    rule: "L8",
    breaks: "A checkpoint holds entries whose term is not durable yet",
    file: "src/host/replica.ts",
    find: `    const log = this.log.checkpoint(this.#durableIndex, this.#compactTo(applied));`,
    replace: `    const log = this.log.checkpoint(this.log.lastIndex(), this.#compactTo(applied));`,
    killers: [host, sim],
  },
  {
    id: "checkpoint-while-cut",
    rule: "L5",
    breaks: "A checkpoint begins while an append that cuts the log is on its way",
    file: "src/host/replica.ts",
    find: `    if (this.#cutting.size > 0) return false;`,
    replace: `    if (this.#cutting.size > 99) return false;`,
    killers: [host, sim],
  },
  {
    id: "cut-during-checkpoint-forgotten",
    rule: "L19",
    breaks: "Entries replaced while a checkpoint is written count as stored",
    file: "src/host/replica.ts",
    find: `    this.log.checkpointed(log, this.#cutSince);`,
    replace: `    this.log.checkpointed(log, null);`,
    killers: [host, sim],
  },
  {
    id: "checkpoint-of-old-hard-state",
    rule: "E1",
    breaks:
      "A checkpoint holds the term and vote of the last start, and the journal forgets the newer ones",
    file: "src/host/replica.ts",
    find: `    if (append.hardState !== null) this.#durableHard = append.hardState;`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "applied-index-not-with-rows",
    rule: "S11",
    breaks: "Rows are stored with an older applied index, so that a restart applies an entry twice",
    file: "src/host/replica.ts",
    find: `          applied,
          appliedTerm: this.#appliedTerm,
          first: log.first,`,
    replace: `          applied: Math.max(log.first - 1, applied - 1),
          appliedTerm: this.#appliedTerm,
          first: log.first,`,
    killers: [host, sim],
  },
  {
    id: "replay-of-checkpointed",
    rule: "S8",
    breaks: "A restart replays journal records that the environment already holds",
    file: "src/host/recovery.ts",
    find: `    if (meta !== null && record.sequence <= meta.sequence) continue;`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "cut-entries-stay-stored",
    rule: "L19",
    breaks: "Entries cut off the log stay in the environment and come back",
    file: "src/host/group_log.ts",
    find: `        this.#stored = first.index - 1;`,
    replace: `        this.#stored = first.index;`,
    killers: [host],
  },
  {
    id: "stale-entries-not-deleted",
    rule: "L19",
    breaks: "Entries cut off the log are never deleted from the environment",
    file: "src/host/group_log.ts",
    find: `    if (this.#storedEnd > this.#stored) {`,
    replace: `    if (this.#storedEnd < this.#stored) {`,
    killers: [host],
  },
  {
    id: "compaction-forgets-its-term",
    rule: "S8",
    breaks: "After compaction the term before the first entry is that of another one",
    file: "src/host/group_log.ts",
    find: `    this.#first = first;
    this.#firstTerm = firstTerm;
    return`,
    replace: `    this.#first = first;
    return`,
    killers: [host],
  },
  {
    id: "read-before-applied",
    rule: "R4",
    breaks: "A confirmed read is served before its index is applied here",
    file: "src/host/replica.ts",
    find: `    const applied = this.raft.appliedIndex;
    const blocked`,
    replace: `    const applied = Infinity;
    const blocked`,
    killers: [host, sim],
  },
  {
    id: "read-from-last-round",
    rule: "R2",
    breaks: "A read that comes while a round is under way takes that round's index",
    file: "src/host/replica.ts",
    find: `    this.#waiting += 1;
    this.#readsWaiting.push({ deadline, done, evenUnborn });`,
    replace: `    this.#waiting += 1;
    const [round] = this.#readRounds.values();
    if (round === undefined) this.#readsWaiting.push({ deadline, done, evenUnborn });
    else (round.reads as Read[]).push({ deadline, done, evenUnborn });`,
    killers: [host, sim],
  },
  {
    id: "journal-follows-before-snapshot",
    rule: "S5",
    breaks: "A snapshot is installed while older appends are on their way into the journal",
    file: "src/host/replica.ts",
    find: `        if (this.#appendsInFlight.length > 0 || this.#storing) return;`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "staged-over-offered",
    rule: "S9",
    breaks: "A snapshot that waits to be installed makes room for the rows of the next one",
    file: "src/host/replica.ts",
    find: `    if (this.halted !== null || this.#installing || this.#offered.length > 0) return null;`,
    replace: `    if (this.halted !== null) return null;`,
    killers: [host, sim],
  },
  {
    id: "old-rows-over-snapshot",
    rule: "S5",
    breaks: "Rows applied before a snapshot lie over it",
    file: "src/host/replica.ts",
    find: `    this.#state.reset();
    this.#installing = false;`,
    replace: `    this.#installing = false;`,
    killers: [host, sim],
  },
  {
    id: "older-rows-while-installing",
    rule: "S5",
    breaks:
      "While a snapshot is installed the rows of the last checkpoint are seen: a directory goes back in time",
    file: "src/host/replica.ts",
    find: `    this.#state.hold();`,
    replace: `    this.#state.reset();`,
    killers: [host, sim],
  },
  {
    id: "environment-shows-through",
    rule: "S5",
    breaks:
      "While a snapshot is installed rows of the new state are seen between those of the old one",
    file: "src/host/tenant_state.ts",
    find: `    const text = this.#held === null ? this.#environment.get(key) : this.#held.get(key);`,
    replace: `    const text = this.#environment.get(key);`,
    killers: [host],
  },
  {
    id: "snapshot-parts-mixed",
    rule: "S9",
    breaks: "Parts of two transfers are put together to one snapshot",
    file: "src/host/snapshots.ts",
    find: `    const isOfAnother = incoming?.from !== from || incoming.transfer !== part.transfer;`,
    replace: `    const isOfAnother = incoming === undefined;`,
    killers: [host],
  },
  {
    id: "restore-half",
    rule: "S9",
    breaks: "A restore is finished whatever the backup's own counters say",
    file: "src/machine/restore.ts",
    find: `    if (state.counts[field] !== meta[field])`,
    replace: `    if (state.rows < 0)`,
    killers: [machine],
  },
  {
    id: "snapshot-part-missing",
    rule: "S9",
    breaks: "Parts are taken whatever the checksum over them and those before them says",
    file: "src/host/snapshots.ts",
    find: `    if (chainOf(incoming.chain, part.rows) !== part.chain) return;`,
    replace: ``,
    killers: [host],
  },
  {
    id: "watch-skips-silently",
    rule: "C4",
    breaks: "Watchers are not told that a snapshot skipped revisions",
    file: "src/host/node_host.ts",
    find: `        this.hub.end(replica.group, "resync");`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "watch-twice",
    rule: "C4",
    breaks: "Watchers are told of each commit twice",
    file: "src/host/node_host.ts",
    find: `    this.hub.publish(replica.group, event, replica.view);`,
    replace: `    this.hub.publish(replica.group, event, replica.view);
    this.hub.publish(replica.group, event, replica.view);`,
    killers: [host, sim],
  },
  {
    id: "watch-before-apply",
    rule: "C4",
    breaks: "Watchers are told of a commit before reads show it",
    file: "src/host/replica.ts",
    find: `        this.#appliedTerm = entry.term;
        this.raft.applied(entry.index, bytes);
        if (applied.commit !== null) this.#hooks.committed(this, applied.commit);`,
    replace: `        this.#appliedTerm = entry.term;
        if (applied.commit !== null) this.#hooks.committed(this, applied.commit);
        this.raft.applied(entry.index, bytes);`,
    killers: [host, sim],
  },
  {
    id: "retry-without-key",
    rule: "C5",
    breaks: "A change that may have been made is tried again without an idempotency key",
    file: "src/host/requests.ts",
    find: `        if (proposal.repeatable) return this.#proposeLater(proposal);
        return failProposal(proposal, outcomeUnknown());`,
    replace: `        return this.#proposeLater(proposal);`,
    killers: [host, sim],
  },
  {
    id: "uncertain-called-failed",
    rule: "C2",
    breaks: "A change that may have been made is reported as certainly not made",
    file: "src/host/requests.ts",
    find: `  proposal.done(proposal.uncertain ? outcomeUnknown() : problem);`,
    replace: `  proposal.done(problem);`,
    killers: [host, sim],
  },
  {
    id: "halted-called-refused",
    rule: "C3",
    breaks:
      "A change in the log is called refused when its replica stops or moves away, and is made by the others",
    file: "src/host/replica.ts",
    find: `    this.#failAll({ kind: "unknown" }, "halted");`,
    replace: `    this.#failAll({ kind: "halted", reason }, "halted");`,
    killers: [host],
  },
  {
    id: "call-executed-twice",
    rule: "T1",
    breaks: "A call whose frame arrives twice is executed twice",
    file: "src/host/rpc.ts",
    find: ` || !this.#isNew(from, boot, id)) return;`,
    replace: `) return;`,
    killers: [host, sim],
  },
  {
    id: "call-of-older-boot",
    rule: "T10",
    breaks: "Calls of a caller's earlier life are executed",
    file: "src/host/rpc.ts",
    find: `    if (taken.boot > boot || id`,
    replace: `    if (id`,
    killers: [host],
  },
  {
    id: "call-for-an-earlier-life",
    rule: "C5",
    breaks: "A call that was meant for an earlier life of a node is executed in this one once more",
    file: "src/host/rpc.ts",
    find: `    if (toBoot !== 0 && toBoot !== this.#boot) return;`,
    replace: ``,
    killers: [host],
  },
  {
    id: "called-back-serve-not",
    rule: "M9",
    breaks: "Replicas that were sent away and called back do not serve until the move is settled",
    file: "src/host/requests.ts",
    find: `(replica) => isLeaving(replica) || wasSettled(replica));`,
    replace: `(replica) => isLeaving(replica) || replica.state === undefined);`,
    killers: [host, sim],
  },
  {
    id: "called-back-count-not",
    rule: "M9",
    breaks:
      "Replicas that were sent away and called back do not count, so nobody takes the place of one that is lost",
    file: "src/host/reconciler.ts",
    find: `    const voters = settledReplicas(row.placement.replicas);`,
    replace: `    const voters = row.placement.replicas.filter(({ state }) => state !== "joining");`,
    killers: [host, sim],
  },
  {
    id: "called-back-as-new",
    rule: "M9",
    breaks: "The directory forgets of a replica that was called back that it had a vote",
    file: "src/machine/directory.ts",
    find: `settled: wasSettled(replica) };`,
    replace: `settled: replica.state === undefined };`,
    killers: [machine, host],
  },
  {
    id: "answer-of-anybody",
    rule: "T2",
    breaks: "The answer of a node that was not asked ends a call",
    file: "src/host/rpc.ts",
    find: `      if (call === undefined || call.node !== from) return;`,
    replace: `      if (call === undefined) return;`,
    killers: [host],
  },
  {
    id: "unknown-called-not-sent",
    rule: "C2",
    breaks: "A call without an answer counts as never sent",
    file: "src/host/rpc.ts",
    find: `      if (call.deadline <= now) this.#end(id, { kind: "unknown" });`,
    replace: `      if (call.deadline <= now) this.#end(id, { kind: "not-sent" });`,
    killers: [host, sim],
  },
  {
    id: "other-incarnation-accepted",
    rule: "T2",
    breaks: "Messages of a tenant's earlier incarnation are taken",
    file: "src/host/node_host.ts",
    find: `    if (replica === null || replica.incarnation !== incarnation || replica.id !== message.to)`,
    replace: `    if (replica === null || replica.id !== message.to)`,
    killers: [host],
  },
  {
    id: "sender-not-checked",
    rule: "M8",
    breaks: "A message counts although the node it came from does not hold that replica",
    file: "src/host/node_host.ts",
    find: `    if (!this.#isOn(from, replica, message.from)) return;
    if (replica.halted !== null) {`,
    replace: `    if (replica.halted !== null) {`,
    killers: [host],
  },
  {
    id: "address-of-anybody",
    rule: "M8",
    breaks: "A replica that the directory never placed is taken for one that joins",
    file: "src/host/node_host.ts",
    find: `    return (isPlaced === true || replica.group === SYSTEM_GROUP) && replica.meet(id, node);`,
    replace: `    return replica.meet(id, node);`,
    killers: [host],
  },
  {
    id: "settled-before-known",
    rule: "M11",
    breaks: "Old members are gone before those who stay know, durably, that they need not be asked",
    file: "src/host/membership.ts",
    find: `    if (this.#isKnown(replica, generation)) this.#settle(group, action);`,
    replace: `    this.#settle(group, action);`,
    killers: [host, sim],
  },
  {
    id: "promoted-behind",
    rule: "M9",
    breaks: "A learner gets its vote before it has the log",
    file: "src/host/membership.ts",
    find: `  if (!wanted.every((id) => isVoter(id) || keepsUp(id))) return wait;`,
    replace: ``,
    killers: [host],
  },
  {
    id: "leader-removes-itself",
    rule: "M6",
    breaks: "A leader that is to leave removes itself instead of handing over",
    file: "src/host/membership.ts",
    find: `  if (wanted.includes(self)) {`,
    replace: `  if (conf.voters.length > 1) {`,
    killers: [host],
  },
  {
    id: "configuration-without-a-quorum",
    rule: "M15",
    breaks: "Members are changed into a configuration whose majority is down",
    file: "src/host/membership.ts",
    find: `  if (able.length * 2 <= wanted.length) return wait;`,
    replace: ``,
    killers: [host],
  },
  {
    id: "node-speaks-for-its-replica",
    rule: "M15",
    breaks:
      "A voter whose node is alive counts for a new configuration, though its replica is stopped or far behind",
    file: "src/host/membership.ts",
    find: `    ({ id, node }) => id === self || (supports(node) && keepsUp(id)),`,
    replace: `    ({ node }) => supports(node),`,
    killers: [host],
  },
  {
    id: "given-up-move-goes-on",
    rule: "H4",
    breaks:
      "What a leader with an old directory changed stays, when the directory calls the tenant settled",
    file: "src/host/membership.ts",
    find: `    if (group !== SYSTEM_GROUP) this.#doubted.add(group);`,
    replace: `    if (group === SYSTEM_GROUP) this.#doubted.add(group);`,
    killers: [host],
  },
  {
    id: "leader-acts-on-old-news",
    rule: "M9",
    breaks:
      "Who comes to lead a group makes of it what an earlier directory wanted, and a vote goes to one that was sent away",
    file: "src/host/membership.ts",
    find: `    if (this.#currentIn.get(leader) === term) return true;`,
    replace: `    if (this.#currentIn.get(leader) !== term) return true;`,
    killers: [host, sim],
  },
  {
    id: "stray-voter-stays",
    rule: "M9",
    breaks: "A voter that no placement knows keeps its vote for ever",
    file: "src/host/membership.ts",
    find: `  const strays = [...conf.learners, ...conf.voters].filter(`,
    replace: `  const strays = conf.learners.filter(`,
    killers: [host],
  },
  {
    id: "stray-learner-stays",
    rule: "H4",
    breaks: "A learner that no placement knows is sent the log for ever",
    file: "src/host/membership.ts",
    find: `    ...[...target.leaving.filter(isMember), ...strays].map((id) => ({`,
    replace: `    ...target.leaving.filter(isMember).map((id) => ({`,
    killers: [host, sim],
  },
  {
    id: "removed-with-its-vote",
    rule: "M7",
    breaks:
      "A node that leaves is gone from the directory while it has a vote in the directory's own group",
    file: "src/host/reconciler.ts",
    find: `    if (this.#hooks.votes(node)) return true;`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "removed-with-its-tenants",
    rule: "M15",
    breaks: "A node that leaves is gone from the directory while tenants are on it",
    file: "src/host/reconciler.ts",
    find: `      for (const { node } of row.placement.replicas) this.#seenOn.add(node);`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "vote-taken-too-soon",
    rule: "M15",
    breaks:
      "A node that is to leave loses its vote although it cannot leave, and fewer losses are survived",
    file: "src/host/reconciler.ts",
    find: `      return !this.#emptied.has(row.node) && row.role`,
    replace: `      return row.phase !== "leaving" && row.role`,
    killers: [host],
  },
  {
    id: "drained-node-filled",
    rule: "M15",
    breaks: "Replicas are placed on a node that is being drained",
    file: "src/host/reconciler.ts",
    find: `      return known !== undefined && isPlaceable(known) && !isGone(known);`,
    replace: `      return known !== undefined && !isGone(known);`,
    killers: [host],
  },
  {
    id: "newcomer-asks-the-first-only",
    rule: "M7",
    breaks:
      "Where all initial nodes were replaced, two that come back with nothing begin another cluster",
    file: "src/host/entry.ts",
    find: `    const nodes = new Set([...this.#peers, ...this.#hooks.known()]);`,
    replace: `    const nodes = new Set(this.#peers);`,
    killers: [host, sim],
  },
  {
    id: "asked-and-not-asking-back",
    rule: "M7",
    breaks: "Of nodes that first start together one comes in as another one, and a voter is lost",
    file: "src/host/node_host.ts",
    find: `      this.#entry?.askedBy(from, this.#clock.monotonicMs());`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "leads-without-directory",
    rule: "H4",
    breaks: "A node whose directory is damaged leads tenants that it can neither move nor leave",
    file: "src/host/leaderships.ts",
    find: `    const blind = this.isBlind;`,
    replace: `    const blind = false;`,
    killers: [host],
  },
  {
    id: "led-without-room",
    rule: "D2",
    breaks:
      "Leaderships of a node short of disk are offered to whoever votes, and go back and forth between nodes without room",
    file: "src/host/leaderships.ts",
    find: `      return node !== undefined && this.#parts.versions.newsOf(node)?.leaders != null;`,
    replace: `      return node !== undefined;`,
    killers: [host],
  },
  {
    id: "passed-term-asked-later",
    rule: "E12",
    breaks:
      "Who asked about a term that has passed, and was told so, waits before it asks about the next one",
    file: "src/host/elections.ts",
    find: `        if (isNews && message.type`,
    replace: `        if (isNews && lost > CAMPAIGN_TRIES && message.type`,
    killers: [host],
  },
  {
    id: "unborn-over-more",
    rule: "R4",
    breaks:
      "A change is judged by a tenant's beginning where its log holds more, a key revoked since among it",
    file: "src/host/replica.ts",
    find: `proposed.index === 2 && this.raft.appliedIndex < 2`,
    replace: `this.raft.appliedIndex < 2`,
    killers: [host],
  },
  {
    id: "first-write-waits-for-the-beginning",
    rule: "T5",
    breaks: "The first write to a tenant waits for an exchange of its own",
    file: "src/host/replica.ts",
    find: `    this.#noticeLeader();
    this.#serveUnborn();`,
    replace: `    this.#serveUnborn();`,
    killers: [host],
  },
  {
    id: "split-votes-wait",
    rule: "E12",
    breaks:
      "Two that asked for votes at once, the third being gone, wait for a timer of one to two seconds",
    file: "src/host/elections.ts",
    find: `!message.reject || raft.awaitsVotes) return;`,
    replace: `!message.reject || raft.role !== "follower") return;`,
    killers: [host],
  },
  {
    id: "asks-whom-it-voted-for",
    rule: "E12",
    breaks:
      "A replica that has just given its vote asks for votes itself, as somebody waits there too: the new leader steps down",
    file: "src/host/elections.ts",
    find: `message.type === MessageType.requestVote && raft.hasVotedFor(message)`,
    replace: `message.type === MessageType.appendEntries && raft.hasVotedFor(message)`,
    killers: [host],
  },
  {
    id: "early-votes-lost",
    rule: "E12",
    breaks:
      "A request for votes is dropped where the directory does not know the tenant yet, and its election waits for a timer",
    file: "src/host/node_host.ts",
    find: `const isVote = message.type === MessageType.requestVote;`,
    replace: `const isVote = message.type === MessageType.timeoutNow;`,
    killers: [host],
  },
  {
    id: "never-behind",
    rule: "T9",
    breaks: "Changes are taken however much waits for checkpoints, in the journal and in memory",
    file: "src/host/checkpoints.ts",
    find: `    if (isBehind === this.isBehind) return;`,
    replace: `    if (isBehind === this.isBehind || !this.isBehind) return;`,
    killers: [host],
  },
  {
    id: "deletion-not-told",
    rule: "T8",
    breaks:
      "Who deleted a tenant is answered while other nodes still take requests to it, and may acknowledge what then goes with it",
    file: "src/host/care.ts",
    find: `[self, ...others].map(`,
    replace: `[self].map(`,
    killers: [host],
  },
  {
    id: "deletion-told-to-few",
    rule: "T8",
    breaks:
      "Where many are deleted at a time, some are answered while other nodes still take requests to them",
    file: "src/host/care.ts",
    find: `(!last.isBegun || last.revision >= revision)`,
    replace: `true`,
    killers: [host],
  },
  {
    id: "directory-forgets-who-it-was",
    rule: "M7",
    breaks:
      "A node whose replica of the directory has lost its environment's name, but not its journal, takes the id of the disk that was there before its own",
    file: "src/host/cold_replicas.ts",
    find: `      newestOf(names.filter((name) => replicaNamed(name)?.group === SYSTEM_GROUP)) ??
      creationIn(this.records(SYSTEM_GROUP));`,
    replace: `      newestOf(names.filter((name) => replicaNamed(name)?.group === SYSTEM_GROUP));`,
    killers: [{ kind: "sim", seeds: 1, from: 790_000_295 }],
  },
  {
    id: "promises-of-who-may-be-forgotten",
    rule: "J2",
    breaks:
      "A new replica votes before the name of its environment is durable: without it, and with damage of the journal, nobody knew that it had",
    file: "src/host/turns.ts",
    find: `      replica.environment.whenKept((error) => {
        if (error !== null) return this.#hooks.failed(replica, error);
        this.act(replica, () => {
          replica.persisted(append, first + offset);
          replica.resumeLane();
        });
      });`,
    replace: `      this.act(replica, () => {
        replica.persisted(append, first + offset);
        replica.resumeLane();
      });`,
    killers: [host],
  },
  {
    id: "held-for-ever",
    rule: "T9",
    breaks:
      "Writes that a node holds back when it stops are never answered, though nothing was proposed",
    file: "src/host/requests.ts",
    find: `    this.#admission.stop();`,
    replace: ``,
    killers: [host],
  },
  {
    id: "let-go-at-once",
    rule: "T9",
    breaks: "Where writes need not wait any more, all that were held begin in one turn",
    file: "src/host/admission.ts",
    find: `      if (writes <= 0 || bytes <= 0) return;
      const share = Math.max(1, Math.floor(writes / (loads.length - at)));`,
    replace: `      const share = Infinity;`,
    killers: [host],
  },
  {
    id: "acts-on-who-slept",
    rule: "T8",
    breaks:
      "What was meant for a replica is done to the object that it was before it slept: a leadership is given away that the one awake keeps its lease of",
    file: "src/host/turns.ts",
    find: `    if (replica.halted !== null || this.#hooks.present(replica.group) !== replica) return;`,
    replace: `    if (replica.halted !== null) return;`,
    killers: [host],
  },
  {
    id: "who-cannot-wake-leads",
    rule: "T5",
    breaks:
      "Nobody asks a leader that does not answer whether it leads: one that cannot wake is trusted for ever",
    file: "src/host/requests.ts",
    find: `        if (replica !== null && leader === null && replica.leaderNode === target)`,
    replace: `        if (false as boolean)`,
    killers: [host],
  },
  {
    id: "sleeping-leader-moves-nowhere",
    rule: "T5",
    breaks: "A leader that sleeps cannot be given to another node",
    file: "src/host/care.ts",
    find: `    const replica = this.#hooks.wake(group);
    if (replica !== null) replica.usedAt = this.#parts.clock.monotonicMs();
    return replica;`,
    replace: `    return this.#hooks.present(group);`,
    killers: [host],
  },
  {
    id: "sleeps-without-directory",
    rule: "H4",
    breaks: "A leader on a node whose directory is damaged sleeps, and nobody can move its group",
    file: "src/host/node_host.ts",
    find: `    return raft.isLeader && this.#leaderships.isBlind && this.#leaderships.hasHeirs(replica);`,
    replace: `    return false;`,
    killers: [host],
  },
  {
    id: "begins-anew-under-old-directory",
    rule: "M7",
    breaks:
      "A directory that is behind after a crash lets a removed replica begin anew, its votes forgotten",
    file: "src/host/cold_replicas.ts",
    find: `    if (isFresh && !this.#directoryIsCurrent && !this.#confirmed.has(group)) return null;`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "journal-forgets-first",
    rule: "E1",
    breaks:
      "The journal forgets a replica that leaves before its environment is gone: it comes back without its votes",
    file: "src/host/cold_replicas.ts",
    find: `    this.#endAll(replica.group, this.#removeWhenStored(replica));`,
    replace: `    this.#forgetRecords(replica.group);
    this.#endAll(replica.group, this.#removeWhenStored(replica));`,
    killers: [host],
  },
  {
    id: "members-not-in-the-state",
    rule: "M9",
    breaks: "A snapshot, or a restart, knows the members and not where they are",
    file: "src/host/replica.ts",
    find: `    this.#state.put(membersKey, members);`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "empty-disk-votes",
    rule: "M7",
    breaks:
      "A node comes in under its old id although its disk is empty and others know a directory",
    file: "src/host/entry.ts",
    find: `    if ([...this.#answers.values()].includes("directory")) {`,
    replace: `    if (this.#answers.size > 2) {`,
    killers: [host, sim],
  },
  {
    id: "lost-replica-begins-anew",
    rule: "M7",
    breaks: "A node with a new disk takes up the replicas that were placed on the old one",
    file: "src/host/replicas.ts",
    find: `    if (own === undefined || !this.#isOwn(own, row)) return null;`,
    replace: `    if (own === undefined) return null;`,
    killers: [host, sim],
  },
  {
    id: "replaced-too-soon",
    rule: "M15",
    breaks: "Replicas are given another place although their node was away for a moment only",
    file: "src/host/reconciler.ts",
    find: `      now - (this.#silentSince.get(node) ?? now) > this.#replaceAfterMs;`,
    replace: `      this.#silentSince.has(node);`,
    killers: [host],
  },
  {
    id: "damaged-replica-votes",
    rule: "E15",
    breaks: "A replica whose journal is damaged goes on voting",
    file: "src/host/replicas.ts",
    find: `      replica.halt(\`Journal is damaged: \${damage}\`);`,
    replace: ``,
    killers: [host],
  },
  {
    id: "halted-pins-the-journal",
    rule: "J1",
    breaks:
      "A replica that a fault stopped pins the journal's segments, and all that follow, for ever",
    file: "src/host/checkpoints.ts",
    find: `        if (pinning.has(group)) this.#hooks.giveWay(replica);`,
    replace: ``,
    killers: [host],
  },
  {
    id: "lost-records-stop-newer",
    rule: "H2",
    breaks: "Records that were lost once stop a replica that was made long after",
    file: "src/host/cold_replicas.ts",
    find: `    if (this.#mayLack?.has(environmentName({ tenant, group, replica })) === false) return null;`,
    replace: ``,
    killers: [host],
  },
  {
    id: "no-room-is-damage",
    rule: "H2",
    breaks: "A tenant that found too many others busy counts as unreadable until the next start",
    file: "src/host/replicas.ts",
    find: `      if (error instanceof Problem && error.retryAfter !== null) return this.#noRoom(group, error);`,
    replace: ``,
    killers: [host],
  },
  {
    id: "offered-again-and-again",
    rule: "M12",
    breaks:
      "A leadership is offered again and again to who does not take it over, and others never go",
    file: "src/host/balance.ts",
    find: ` || failed.includes(id)) continue;`,
    replace: ` || failed.length < 0) continue;`,
    killers: [host],
  },
  {
    id: "fault-not-contained",
    rule: "H2",
    breaks: "A broken invariant of one replica ends the work of its neighbours",
    file: "src/host/turns.ts",
    find: `      replica.halt(reason);
      this.#ticking.delete(replica);`,
    replace: `      this.#ticking.delete(replica);`,
    killers: [host],
  },
  {
    id: "support-without-heartbeats",
    rule: "R7",
    breaks: "A node that fell silent is supported for ever",
    file: "src/host/liveness.ts",
    find: `      if (peer.alive && now - peer.heardAt > SUPPORT_MS) this`,
    replace: `      if (peer.alive && now - peer.heardAt > SUPPORT_MS * 1_000) this`,
    killers: [host],
  },
  {
    id: "older-boot-is-alive",
    rule: "T10",
    breaks: "A late heartbeat of a node's earlier life keeps it supported",
    file: "src/host/liveness.ts",
    find: `    if (boot < peer.boot) return;`,
    replace: ``,
    killers: [host],
  },
  {
    id: "call-numbers-again",
    rule: "T10",
    breaks:
      "After a restart call numbers begin anew, and an answer to the earlier life passes for one of this",
    file: "src/host/rpc.ts",
    find: `    this.#next = firstId(boot);`,
    replace: `    this.#next = firstId(0 * boot);`,
    killers: [host],
  },
  {
    id: "directory-behind-drops-log",
    rule: "H4",
    breaks:
      "A directory that is behind takes a tenant for gone, and its records are dropped from the journal",
    file: "src/host/node_host.ts",
    find: `      this.requests.read(SYSTEM_TENANT, { consistency: "linearizable" }, (error) => {
        done(error === null);`,
    replace: `      this.requests.read(SYSTEM_TENANT, { consistency: "stale" }, (error) => {
        done(error === null);`,
    killers: [host, sim],
  },
  {
    id: "hard-state-behind-snapshot",
    rule: "E1",
    breaks:
      "A hard state older than the one a snapshot was installed with follows it into the journal",
    file: "src/host/replica.ts",
    find: `    this.#commitUnwritten = null;
    this.#hardSubmitted = hard;`,
    replace: ``,
    killers: [host, sim],
  },
  {
    id: "restart-unnoticed",
    rule: "T10",
    breaks: "A node that restarts before its silence was noticed keeps the support it had",
    file: "src/host/liveness.ts",
    find: `    if (peer.alive && boot > peer.boot) this`,
    replace: `    if (peer.alive && boot < peer.boot) this`,
    killers: [host],
  },
  {
    id: "own-freeze-kills-others",
    rule: "R9",
    breaks: "A process that was frozen takes everybody else for dead",
    file: "src/host/liveness.ts",
    find: `      if (pause > 0) peer.heardAt = Math.min(now, peer.heardAt + pause);`,
    replace: ``,
    killers: [host],
  },
  {
    id: "frozen-rows-invisible",
    rule: "H3",
    breaks: "Rows under way into the environment are invisible meanwhile",
    file: "src/host/tenant_state.ts",
    find: `    if (cell === undefined && this.#frozen !== null) cell = this.#frozen.get(key);`,
    replace: ``,
    killers: [host],
  },
];

const ofJournal: readonly Mutation[] = [
  {
    id: "failed-sync-retried",
    rule: "D1",
    breaks: "A write that failed is tried again, though the pages may be gone",
    file: "src/store/journal.ts",
    find: `    file.write(segment.bytes, bytes, (error) => {
      if (error !== null) return this.#fail(error);`,
    replace: `    file.write(segment.bytes, bytes, (error) => {
      if (error !== null) {
        this.#busy = false;
        this.#writing = null;
        return this.#turn();
      }`,
    killers: [journal],
  },
  {
    id: "works-after-error",
    rule: "D1",
    breaks: "After an error of the disk the journal goes on taking appends",
    file: "src/store/journal.ts",
    find: `    this.#stopped = error;
    this.#batches.length = 0;`,
    replace: `    this.#batches.length = 0;`,
    killers: [journal],
  },
  {
    id: "acknowledged-before-write",
    rule: "D3",
    breaks: "Appends are acknowledged when their write begins",
    file: "src/store/journal.ts",
    find: `    this.#writing = batch;
    file.write(`,
    replace: `    this.#writing = batch;
    for (const done of batch.dones.splice(0)) done();
    file.write(`,
    killers: [journal, sim],
  },
  {
    id: "segment-name-not-durable",
    rule: "D3",
    breaks: "Records are acknowledged in a segment whose name is not durable",
    file: "src/store/journal.ts",
    find: `    this.#disk.syncDirectory((error) => {
      if (error !== null) return this.#fail(error);
      this.#syncs += 2;`,
    replace: `    [null].forEach((error) => {
      if (error !== null) return this.#fail(error);
      this.#syncs += 2;`,
    killers: [journal, sim],
  },
  {
    id: "list-of-live-groups-after-a-loss",
    rule: "D4",
    breaks:
      "After a loss whose groups are not known the next start takes a list without them for complete",
    file: "src/store/journal.ts",
    find: `    if (!this.#isLiveKnown || this.#segments.length === 0) return null;`,
    replace: `    if (this.#segments.length === 0) return null;`,
    killers: [journal],
  },
  {
    id: "torn-tail-not-cut",
    rule: "D5",
    breaks: "A torn end stays, and is damage once a segment follows it",
    file: "src/store/journal.ts",
    find: `      if (torn === null) return this.#opened(replayed, done);`,
    replace: `      if (torn === null || torn.at > 0) return this.#opened(replayed, done);`,
    killers: [journal, sim],
  },
  {
    id: "torn-tail-is-damage",
    rule: "D5",
    breaks: "A write cut short by a crash counts as damage",
    file: "src/store/journal_format.ts",
    find: `  if (cut === undefined) return { header, records, live, damage, end, torn: null };`,
    replace: `  if (cut === undefined || cut.at > 0) return { header, records, live, damage, end, torn: null };`,
    killers: [journal, sim],
  },
  {
    id: "damage-before-last-write-cut",
    rule: "D5",
    breaks: "Damage in the middle counts as a torn end, and everything after it is dropped",
    file: "src/store/journal_format.ts",
    find: `(place) => place.at >= lastWrite && looksUnwritten(bytes, place));`,
    replace: `(place) => looksUnwritten(bytes, place));`,
    killers: [journal],
  },
  {
    id: "damage-is-torn",
    rule: "D5",
    breaks: "Bytes of the last write that are there and wrong count as never written",
    file: "src/store/journal_format.ts",
    find: `(place) => place.at >= lastWrite && looksUnwritten(bytes, place));`,
    replace: `(place) => place.at >= lastWrite);`,
    killers: [journal],
  },
  {
    id: "earlier-segment-cut",
    rule: "D5",
    breaks: "The end of a segment that others follow is taken for torn",
    file: "src/store/journal_format.ts",
    find: `    if (!this.#last) return { header, records, live, damage, end, torn: null };`,
    replace: ``,
    killers: [journal],
  },
  {
    id: "payload-not-verified",
    rule: "D4",
    breaks: "A flipped bit in a payload goes unnoticed",
    file: "src/store/journal_format.ts",
    find: `  return end <= bytes.byteLength && crc32(bytes, start, end) === view.getUint32(at + 8, true);`,
    replace: `  return end <= bytes.byteLength;`,
    killers: [journal],
  },
  {
    id: "missing-segment-unnoticed",
    rule: "D6",
    breaks: "A segment that is gone goes unnoticed",
    file: "src/store/journal.ts",
    find: `    if (newer !== null && newer.number !== number + 1)`,
    replace: `    if (newer !== null && newer.number < 0)`,
    killers: [journal],
  },
  {
    id: "unreleased-segment-removed",
    rule: "J1",
    breaks: "The oldest segment is removed although records in it are not released",
    file: "src/store/journal.ts",
    find: `this.#segments.length === 1 || oldest.live.size > 0) return;`,
    replace: `this.#segments.length === 1) return;`,
    killers: [journal, sim],
  },
  {
    id: "release-covers-later-records",
    rule: "J1",
    breaks: "Releasing a group's older records releases the newer ones too",
    file: "src/store/journal.ts",
    find: `  if (last <= sequence) live.delete(group);`,
    replace: `  live.delete(group);`,
    killers: [journal, sim],
  },
  {
    id: "sequences-given-again",
    rule: "J2",
    breaks: "After a crash the journal hands out sequences again that it handed out before",
    file: "src/store/journal.ts",
    find: `    this.#nextSequence =
      (Math.floor(replayed.sequenceMax / sequencesPerOpening) + 1) * sequencesPerOpening;`,
    replace: `    this.#nextSequence = replayed.sequenceMax + 1;`,
    killers: [journal, sim],
  },
  {
    id: "sequences-begin-anew",
    rule: "J2",
    breaks:
      "After the header of the only, empty segment rotted, sequences begin where environments are beyond already: what follows is not replayed",
    file: "src/store/journal.ts",
    find: `sequenceMax = sequencesUpTo(numberMax);`,
    replace: `sequenceMax = 0;`,
    killers: [journal],
  },
  {
    id: "notes-between-batches",
    rule: "J2",
    breaks: "A note of releases takes a sequence behind records that are written after it",
    file: "src/store/journal.ts",
    find: `    if (this.#releases.size > 0 && this.#batches.length === 1) this.#noteReleases(batch);`,
    replace: `    if (this.#releases.size > 0) this.#noteReleases(batch);`,
    killers: [journal, sim],
  },
  {
    id: "fault-keeps-others-waiting",
    rule: "H2",
    breaks: "What one group throws keeps the others from their acknowledgement",
    file: "src/store/journal.ts",
    find: `        failure ??= { error };`,
    replace: `        throw error;`,
    killers: [journal],
  },
  {
    id: "pending-unbounded",
    rule: "D2",
    breaks: "Appends are taken without bound while the disk stands still",
    file: "src/store/journal.ts",
    find: `    if (this.#pendingBytes + bytes > this.pendingBytesMax)`,
    replace: `    if (this.#pendingBytes + bytes < 0)`,
    killers: [journal],
  },
];

const ofMachine: readonly Mutation[] = [
  {
    id: "idempotency-not-checked",
    rule: "C1",
    breaks: "A repeat with the same idempotency key is done again",
    file: "src/machine/machine.ts",
    find: `    if (first !== null) return { outcome: first, commit: null };`,
    replace: ``,
    killers: [machine],
  },
  {
    id: "idempotency-by-key-only",
    rule: "C1",
    breaks: "Another request under a used idempotency key gets the first one's answer",
    file: "src/machine/machine.ts",
    find: `  if (row.fingerprint !== fingerprint)`,
    replace: `  if (row.fingerprint === "")`,
    killers: [machine],
  },
  {
    id: "idempotency-never-expires",
    rule: "C1",
    breaks: "Records of idempotency never end",
    file: "src/machine/machine.ts",
    find: `  return row.at < draft.at - idempotencyAgeMs;`,
    replace: `  return row.at < draft.at - idempotencyAgeMs * 1_000;`,
    killers: [machine],
  },
  {
    id: "idempotency-of-nothing-forgotten",
    rule: "C1",
    breaks: "A request that changed nothing is not remembered, and does something later",
    file: "src/machine/machine.ts",
    find: `  if (commit !== null || draft.isTouched || idempotency !== undefined) {`,
    replace: `  if (commit !== null || draft.isTouched) {`,
    killers: [machine],
  },
  {
    id: "precondition-ignored",
    rule: "M01",
    breaks: "If-Match is not compared",
    file: "src/machine/draft.ts",
    find: `  if (ifMatch === "*" || ifMatch.includes(tagOf(draft.meta.epoch, row.revision))) return;`,
    replace: `  if (ifMatch.length >= 0) return;`,
    killers: [machine],
  },
  {
    id: "tag-of-another-history",
    rule: "M01",
    breaks: "An entity tag of before a restore matches another change of the same revision",
    file: "src/machine/draft.ts",
    find: `  if (ifMatch === "*" || ifMatch.includes(tagOf(draft.meta.epoch, row.revision))) return;`,
    replace: `  if (ifMatch === "*" || ifMatch.some((tag) => String(tag).endsWith(\`-\${row.revision}\`))) return;`,
    killers: [machine],
  },
  {
    id: "bare-revision-after-restore",
    rule: "M01",
    breaks: "A revision without its epoch holds although the tenant was restored",
    file: "src/machine/draft.ts",
    find: `  if (draft.semantics >= tagsLevel) draft.meta.isContinued = true;`,
    replace: `  if (draft.semantics > tagsLevel) draft.meta.isContinued = true;`,
    killers: [machine],
  },
  {
    id: "creation-overwrites",
    rule: "M01",
    breaks: "If-None-Match does not keep what exists",
    file: "src/machine/draft.ts",
    find: `  if (ifNoneMatch !== undefined && row !== undefined)`,
    replace: `  if (ifNoneMatch === undefined && row === null)`,
    killers: [machine],
  },
  {
    id: "refusal-leaves-rows",
    rule: "M02",
    breaks: "A refused command leaves some of its rows",
    file: "src/machine/draft.ts",
    find: `    else own.row = row;
  }`,
    replace: `    else own.row = row;
    if (row !== undefined) this.#base.put(key, row);
  }`,
    killers: [machine],
  },
  {
    id: "revision-given-twice",
    rule: "M03",
    breaks: "Two commits have the same revision",
    file: "src/machine/machine.ts",
    find: `  meta.revision = revision;`,
    replace: `  meta.revision = revision - (revision % 2 === 0 ? 1 : 0);`,
    killers: [machine],
  },
  {
    id: "history-with-gaps",
    rule: "C4",
    breaks: "History has no row for a commit",
    file: "src/machine/machine.ts",
    find: `  draft.add(historyKey(revision), commit);`,
    replace: `  if (draft.changes.length > 1) draft.add(historyKey(revision), commit);`,
    killers: [machine],
  },
  {
    id: "time-goes-back",
    rule: "R10",
    breaks: "The clock of a new leader takes a tenant's time back",
    file: "src/machine/draft.ts",
    find: `Math.max(meta.at, command.at)`,
    replace: `command.at`,
    killers: [machine],
  },
  {
    id: "replicas-differ",
    rule: "L1",
    breaks: "Replicas make different rows of the same command",
    file: "src/machine/configs.ts",
    find: `    uid: \`\${draft.meta.epoch}-`,
    replace: `    uid: \`\${Math.random()}-`,
    killers: [machine, sim],
  },
  {
    id: "transaction-conditions-ignored",
    rule: "M01",
    breaks: "A transaction is done although its condition does not hold",
    file: "src/machine/machine.ts",
    find: `  if (isOther)
    refuse(`,
    replace: `  if (isOther && isContinued === true)
    refuse(`,
    killers: [machine],
  },
  {
    id: "version-numbers-again",
    rule: "M04",
    breaks: "The number of a deleted version is given again",
    file: "src/machine/configs.ts",
    find: `    version: row.latestVersion + 1,`,
    replace: `    version: row.versions + 1,`,
    killers: [machine],
  },
  {
    id: "version-in-force-deleted",
    rule: "M04",
    breaks: "A version that a release names can be deleted",
    file: "src/machine/configs.ts",
    find: `    if (isReleased(before, number))
      refuse("in-use"`,
    replace: `    if (isReleased(before, -number))
      refuse("in-use"`,
    killers: [machine],
  },
  {
    id: "rollout-reshuffled",
    rule: "M05",
    breaks: "An edit of a release draws a rollout's salt anew, so that other clients are first",
    file: "src/machine/configs.ts",
    find: `        salt: rule.rollout.salt ?? before ?? `,
    replace: `        salt: rule.rollout.salt ?? `,
    killers: [machine],
  },
  {
    id: "scope-of-transaction-ignored",
    rule: "M06",
    breaks: "A key for one namespace changes others by a transaction",
    file: "src/machine/machine.ts",
    find: `    for (const one of action.then) guardConfigAction(key, one);`,
    replace: ``,
    killers: [machine],
  },
  {
    id: "expired-key-accepted",
    rule: "M06",
    breaks: "A key works after it expired",
    file: "src/machine/machine.ts",
    find: `  if (key.expiresAt !== null && key.expiresAt <= draft.at)
    refuse("unauthorized"`,
    replace: `  if (key.expiresAt !== null && key.expiresAt < 0)
    refuse("unauthorized"`,
    killers: [machine],
  },
  {
    id: "replica-number-given-again",
    rule: "M7",
    breaks: "A new replica gets the number of one that left, and with it its votes",
    file: "src/machine/directory.ts",
    find: `id: nextReplica++, state: "joining"`,
    replace: `id: replicas.length + 1, state: "joining"`,
    killers: [machine],
  },
  {
    id: "placed-on-who-leaves",
    rule: "M15",
    breaks:
      "A tenant is placed on a node that leaves, behind the back of who looks whether it is empty",
    file: "src/machine/directory.ts",
    find: `  if (draft.semantics < 6 || system === undefined) return;`,
    replace: `  if (draft.semantics < 99 || system === undefined) return;`,
    killers: [machine],
  },
  {
    id: "lost-replica-comes-back",
    rule: "M7",
    breaks: "A replica that lost what it promised joins its group again under its number",
    file: "src/machine/directory.ts",
    find: `    if (replica.state === "lost" || lost.includes(replica.id))\n`,
    replace: `    if (lost.includes(replica.id))\n`,
    killers: [machine],
  },
  {
    id: "settled-for-an-earlier-move",
    rule: "M1",
    breaks: "The end of one move is taken for the end of the next",
    file: "src/machine/directory.ts",
    find: `  if (action.generation !== generation)`,
    replace: `  if (action.generation > generation)`,
    killers: [machine],
  },
  {
    id: "group-number-given-again",
    rule: "M7",
    breaks: "A new tenant gets the group of one that was purged",
    file: "src/machine/directory.ts",
    find: `  draft.meta.nextGroup = group + 1;`,
    replace: `  draft.meta.nextGroup = systemGroup + 2 + (draft.meta.tenants ?? 0);`,
    killers: [machine],
  },
  {
    id: "initialised-twice",
    rule: "C1",
    breaks: "The second leader's initialisation begins the tenant's history anew",
    file: "src/machine/machine.ts",
    find: `    return { created: false, result: { tenant, epoch: meta.epoch } };`,
    replace: ``,
    killers: [machine],
  },
];

// --- leader leases ---------------------------------------------------------------------------------------------------------

const ofLeases: readonly Mutation[] = [
  {
    id: "lease-from-receipt",
    rule: "R6",
    breaks: "A lease counts from when the answer came, not from when the heartbeat left",
    file: "src/host/leases.ts",
    find: `(peer.sent?.monotonicUs ?? -1)) peer.sent = echo;`,
    replace: `(peer.sent?.monotonicUs ?? -1)) {
      const { clock } = this.#options;
      const monotonicUs = Math.floor(clock.monotonicMs() * 1_000);
      peer.sent = { ...echo, monotonicUs, wallMs: clock.wallMs() };
    }`,
    killers: [leases, leaseStorms],
  },
  {
    id: "lease-drift-ignored",
    rule: "R10",
    breaks: "A lease lasts as long by the leader's clock as support does by its followers'",
    file: "src/host/leases.ts",
    find: `(SUPPORT_MS * (1 - drift)) / (1 + drift);`,
    replace: `SUPPORT_MS;`,
    killers: [leases, leaseStorms],
  },
  {
    id: "lease-over-a-suspension",
    rule: "R9",
    breaks: "A machine that was suspended goes on with the lease it had before",
    file: "src/host/leases.ts",
    find: `    if (wallMs < 0 || wallMs >= this.#leaseMs) return 0;`,
    replace: `    void wallMs;`,
    killers: [leases, leaseStorms],
  },
  {
    id: "lease-of-another-epoch",
    rule: "R7",
    breaks: "A leader counts a node that vouches for it again, whose replica forgot it meanwhile",
    file: "src/raft/raft.ts",
    find: `epoch !== 0 && this.#leases?.held(id) === epoch ?`,
    replace: `epoch !== 0 && this.#leases?.held(id) !== 0 ?`,
    killers: [leases, leaseStorms],
  },
  {
    id: "lease-before-own-commit",
    rule: "R1",
    breaks: "A new leader reads by its lease before it committed in its own term",
    file: "src/raft/raft.ts",
    find: `    if (this.#role !== "leader" || this.#log.term(this.#log.commit) !== this.#term) return -1;`,
    replace: `    if (this.#role !== "leader") return -1;`,
    killers: [leases, leaseStorms],
  },
  {
    id: "lease-while-members-change",
    rule: "R6",
    breaks: "A leader counts the majority of a configuration that is about to be another one",
    file: "src/raft/raft.ts",
    find: `!this.#self.isLearner && !this.hasPendingConfChange;`,
    replace: `!this.#self.isLearner;`,
    killers: [leases, leaseStorms],
  },
  {
    id: "vote-after-a-restart-within-support",
    rule: "R7",
    breaks: "A node that was started anew votes at once, whatever it promised before",
    file: "src/host/leases.ts",
    find: `!isNew() && clock.monotonicMs() < this.#barredUntilMs,`,
    replace: `false,`,
    killers: [leases, leaseStorms],
  },
  {
    id: "bond-forgotten-asleep",
    rule: "R7",
    breaks: "A replica that slept wakes free, while its leader counts on it",
    file: "src/host/leases.ts",
    find: `if (bond !== null) this.#sleeping.set(group, { replica, bond });`,
    replace: `void [group, replica, bond];`,
    killers: [leases, leaseStorms],
  },
  {
    id: "bond-ends-with-the-term",
    rule: "R7",
    breaks: "A follower that hears of a later term, which nobody leads, is free",
    file: "src/raft/raft.ts",
    find: `    this.#lead = NONE;
    this.#electionElapsed = 0;
    this.#heartbeatElapsed = 0;`,
    replace: `    this.#lead = NONE;
    this.#bond = null;
    this.#electionElapsed = 0;
    this.#heartbeatElapsed = 0;`,
    killers: [leases, leaseStorms],
  },
  {
    id: "bond-does-not-bind-its-own",
    rule: "R7",
    breaks: "A follower that promised to help nobody else campaigns itself",
    file: "src/raft/raft.ts",
    find: `    } else if (this.#isBound(this.#id)) {`,
    replace: `    } else if (this.isBarred) {`,
    killers: [leases, leaseStorms],
  },
  {
    id: "sleeper-counts-rounds-anew",
    rule: "R2",
    breaks: "A leader that slept takes late confirmations of earlier reads for those of later ones",
    file: "src/raft/raft.ts",
    find: `    this.#reads.resume(round);`,
    replace: `    this.#reads.resume(round - round);`,
    killers: [leases],
  },
  {
    id: "sleeper-assumes-support",
    rule: "R7",
    breaks:
      "A leader that slept takes its followers to be bound in whatever epoch their nodes support it now",
    file: "src/raft/raft.ts",
    find: `peer.resume(last, bound[at] as number);`,
    replace: `peer.resume(last, bound[at] === undefined ? 0 : (this.#leases?.held(peer.id) ?? 0));`,
    killers: [leases, leaseStorms],
  },
  {
    id: "sleeper-leads-on-though-disowned",
    rule: "R7",
    breaks: "A leader's followers are told that it leads no more, and it wakes leading",
    file: "src/host/node_host.ts",
    find: `    if (term === 0) return;
    this.#sleepers.forget(group);`,
    replace: `    if (term === 0) return;`,
    killers: [host, leaseStorms],
  },
  {
    id: "sleeper-leads-on-after-a-transfer",
    rule: "R7",
    breaks: "A leader that let somebody past the promises made to it reads by them after a sleep",
    file: "src/raft/raft.ts",
    find: ` || this.#supports === null || this.#leaseVoid) return null;`,
    replace: ` || this.#supports === null) return null;`,
    killers: [leases],
  },
];

export const mutations: readonly Mutation[] = [
  ...ofRaft,
  ...ofLeases,
  ...ofHost,
  ...ofJournal,
  ...ofMachine,
];
