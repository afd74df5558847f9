/**
 * Who is told, and how very many are told at once.
 *
 * What must stay true: frames of a watcher go up in revision; what it was not sent is made up for by a `sync` or a merged
 * commit; nothing is kept for a watcher beyond the bounds named in `WatchSettings`.
 */
import type { Credential } from "./auth.ts";
import type { Principal } from "./http.ts";
import type { Bandwidth, Held } from "./limits.ts";
import type { OpenStream, Pushing, Sink } from "./streams.ts";
import {
  Batch,
  bookmark,
  comment,
  goodbye,
  hello,
  joined,
  parseCursor,
  type Frame,
} from "./watch_frames.ts";

export interface WatchSettings {
  /** A silent watcher hears a bookmark after this long; below the 15 s that are promised. */
  readonly bookmarkMs: number;
  /** Watches and long polls open at once on this node. */
  readonly watchersMax: number;
  /** Of one tenant: what one has open must leave room for the others. */
  readonly watchersPerTenantMax: number;
  /** Distinct filters watched at once on this node. */
  readonly feedsMax: number;
  /** What is kept for one that reads slowly, before it is only told of the latest state. */
  readonly queueFramesMax: number;
  readonly queueBytesMax: number;
  /** One that reads nothing for this long is sent away. */
  readonly slowMs: number;
  /**
   * A stream ends after this long, give or take a fifth, so that a node that was away gets its share of them back. The
   * client goes on from its cursor.
   */
  readonly ageMs: number;
  /** A feed without watchers is kept this long: polls and reconnects come back to it. */
  readonly lingerMs: number;
}

/** One who is told. `push` never blocks and never throws. */
export interface Watcher {
  /** Up to where it was told everything. */
  epoch: number;
  revision: number;
  /** What it missed before it joined, or the first part of it. */
  begin(frames: readonly Frame[], isPart: boolean): void;
  principal: Principal;
  readonly credential: Credential;
  push(batch: Batch): void;
  /** The last frame; nothing is pushed afterwards. */
  end(reason: string): void;
  /** Behind what its feed got; a bookmark would promise too much. */
  readonly isBehind: boolean;
  /** Where within the time of a publish that is spread it is told: 0 at once, 1 last; below 1. */
  readonly phase: number;
  /**
   * After `bookmarkMs` without a word says that it is at its cursor still: it would else think the connection broken.
   * Monotonic, like that of `tick`.
   */
  reassure(nowMs: number): void;
  /** Once a second. */
  tick(nowMs: number): void;
}

interface StreamHooks {
  /** The latest state, pushed within one read of it. */
  resync(watcher: StreamWatcher): Promise<void>;
  /** It takes and needs nothing any more. */
  closed(watcher: StreamWatcher): void;
}

export interface StreamOptions {
  readonly principal: Principal;
  readonly credential: Credential;
  readonly phase: number;
  /** Cursor that it begins with; null: none. */
  readonly told: string | null;
  /** Every revision, or the end of the stream: what it is not told is kept for it, never merged. */
  readonly every: boolean;
  /** Its bookmarks are messages, for clients of OFREP. */
  readonly flags: boolean;
  readonly bandwidth: Bandwidth;
  readonly settings: WatchSettings;
  readonly openStream: OpenStream;
}

/** A stream of server-sent events. */
export class StreamWatcher implements Watcher, Pushing, Held {
  epoch = 0;
  revision = 0;
  principal: Principal;
  readonly credential: Credential;
  readonly phase: number;
  readonly stream: ReadableStream<Uint8Array>;
  readonly #options: StreamOptions;
  readonly #hooks: StreamHooks;
  #sink: Sink | null = null;
  /** The client takes more. */
  #reads = false;
  /** Until its tenant may be sent more. */
  #isHeld = false;
  /** It reads, and has all that it was to be told: what comes goes straight to it. */
  #keepsUp = false;
  #queue: Frame[] = [];
  #queueBytes = 0;
  /** What it should have been told is not kept: all it is told next is what is new by then. */
  #isLagging = false;
  #isResyncing = false;
  /** Cursor of the last frame on its way to the client. */
  told: string | null;
  readonly #endsAt: number;
  /** Since when it has not read although there was something; 0: it reads. */
  #stuckSince = 0;
  /** Something was written since the last tick; a look at the clock for each write would cost more. */
  #wasWritten = false;
  #quietSince: number;
  #isClosed = false;

  constructor(options: StreamOptions, hooks: StreamHooks) {
    this.#options = options;
    this.principal = options.principal;
    this.credential = options.credential;
    this.phase = options.phase;
    this.told = options.told;
    this.#hooks = hooks;
    this.#quietSince = performance.now();
    this.#endsAt = this.#quietSince + options.settings.ageMs * (0.8 + Math.random() * 0.4);
    options.bandwidth.open++;
    this.stream = options.openStream(this);
  }

  open(sink: Sink): void {
    this.#sink = sink;
    this.#reads = this.#write(hello, true);
    this.#keepsUp = this.#reads && !this.#isHeld;
    // What came before the answer began. Without that, the stream says when it is read.
    if (this.isBehind) this.drained();
    if (this.#isClosed) sink.end();
  }

  get isBehind(): boolean {
    return this.#isLagging || this.#queue.length > 0;
  }

  get isClosed(): boolean {
    return this.#isClosed;
  }

  /** Leaves in one piece, whatever the bounds of the queue: it is bounded itself, and made up for nothing else. */
  begin(frames: readonly Frame[], isPart = false): void {
    const isNews = frames.some((frame) => frame.event !== "bookmark");
    if (!isNews || isPart || !this.#mustWait()) this.#give(frames);
    else if (this.#options.every) for (const frame of frames) this.#add(frame);
    else this.#lag();
  }

  #write(bytes: Uint8Array<ArrayBuffer>, isQuiet: boolean): boolean {
    const { bandwidth } = this.#options;
    if (isQuiet) bandwidth.sentQuietly(bytes.length);
    else bandwidth.sent(bytes.length);
    this.#wasWritten = true;
    return (this.#sink as Sink).write(bytes);
  }

  #give(frames: readonly Frame[]): void {
    if (frames.length === 0) return;
    if (this.#sink === null) {
      for (const frame of frames) this.#add(frame);
      return;
    }
    this.told = frames.findLast((frame) => frame.id !== null)?.id ?? this.told;
    this.#reads = this.#write(joined(frames), false);
    this.#keepsUp = this.#reads && !this.#isClosed;
  }

  push(batch: Batch): void {
    if (this.#keepsUp) {
      if (batch.isQuiet || !this.#mustWait()) {
        this.told = batch.id ?? this.told;
        this.#reads = this.#keepsUp = this.#write(batch.bytes, batch.isQuiet);
        return;
      }
    }
    if (this.#isClosed || this.#isLagging) return;
    this.#keepAll(batch.frames);
  }

  /** Whether the tenant was sent as much as it may be; then it waits for its turn. */
  #mustWait(): boolean {
    const { bandwidth } = this.#options;
    if (this.#isHeld || bandwidth.isFree) return this.#isHeld;
    this.#isHeld = true;
    this.#keepsUp = false;
    bandwidth.wait(this);
    return true;
  }

  #keepAll(frames: readonly Frame[]): void {
    // Of a tenant that may be sent no more all watches wait, so nothing is kept for them but what must be.
    if (this.#isHeld && !this.#options.every) this.#lag();
    else for (const frame of frames) if (!this.#isLagging) this.#keep(frame);
  }

  #keep(frame: Frame): void {
    const { queueFramesMax, queueBytesMax } = this.#options.settings;
    const isFull =
      this.#queue.length >= queueFramesMax || this.#queueBytes + frame.bytes.length > queueBytesMax;
    if (this.#queue.length > 0 && isFull) this.#lag();
    else this.#add(frame);
  }

  #lag(): void {
    if (this.#stuckSince === 0 && !this.#reads) this.#stuckSince = performance.now();
    this.#isLagging = true;
    this.#queue = [];
    this.#queueBytes = 0;
  }

  #add(frame: Frame): void {
    if (this.#stuckSince === 0 && !this.#reads) this.#stuckSince = performance.now();
    this.#queue.push(frame);
    this.#queueBytes += frame.bytes.length;
  }

  /** It has read all that it was given. */
  drained(): void {
    if (this.#isClosed && this.#queue.length === 0) return;
    this.#stuckSince = 0;
    this.#reads = true;
    if (!this.isBehind) this.#keepsUp = !this.#isHeld && !this.#isClosed;
    else if (this.#isClosed || !this.#mustWait()) void this.#goOn();
  }

  /** Its tenant may be sent more. */
  async turn(): Promise<void> {
    this.#isHeld = false;
    if (!this.#reads || this.#isClosed) return;
    if (this.isBehind) await this.#goOn();
    else this.#keepsUp = true;
  }

  /** What was left out or kept, once it may have that. */
  async #goOn(): Promise<void> {
    if (this.#isLagging) {
      if (!this.#isResyncing) await this.#resync();
      return;
    }
    const queued = this.#queue;
    this.#queue = [];
    this.#queueBytes = 0;
    this.#give(queued);
  }

  gone(): void {
    this.#queue = [];
    this.#close();
  }

  async #resync(): Promise<void> {
    this.#isResyncing = true;
    try {
      await this.#hooks.resync(this);
    } catch {
      this.end("moved");
    } finally {
      this.#isResyncing = false;
    }
  }

  /**
   * What makes up for all that was left out, at least one frame. Called within a read of the state it leads to, or in the
   * turn in which nothing newer was sent here.
   */
  catchUp(frames: readonly Frame[]): void {
    const last = frames.at(-1);
    if (this.#isClosed || last === undefined) return;
    this.#isLagging = false;
    this.epoch = last.epoch;
    this.revision = last.revision;
    this.#give(frames);
  }

  reassure(nowMs: number): void {
    if (!this.#reads || this.#isClosed) return;
    if (nowMs - this.#quietSince < this.#options.settings.bookmarkMs) return;
    const at = this.told === null ? null : parseCursor(this.told);
    const kind = this.#options.flags ? "flags" : "";
    this.#reads = this.#write(at === null ? comment : bookmark(at, { kind }).bytes, true);
    this.#quietSince = nowMs;
    this.#keepsUp &&= this.#reads;
  }

  end(reason: string): void {
    if (this.#isClosed) return;
    const last = [...this.#queue, goodbye(reason)];
    this.#queue = [];
    this.#isLagging = false;
    this.#close();
    // Before the answer begins it waits for that.
    this.#give(last);
    this.#sink?.end();
  }

  tick(nowMs: number): void {
    if (this.#wasWritten) this.#quietSince = nowMs;
    this.#wasWritten = false;
    if (this.#stuckSince !== 0 && nowMs - this.#stuckSince > this.#options.settings.slowMs)
      this.end("slow");
    else if (nowMs >= this.#endsAt) this.end("age");
  }

  #close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#keepsUp = false;
    const { bandwidth } = this.#options;
    bandwidth.open--;
    bandwidth.leave(this);
    this.#hooks.closed(this);
  }
}

/** A long poll: ends with the first thing that happens. */
export class PollWatcher implements Watcher {
  epoch = 0;
  revision = 0;
  principal: Principal;
  readonly credential: Credential;
  readonly frames: Frame[] = [];
  readonly isBehind = false;
  readonly phase: number;
  readonly #done: () => void;

  constructor(caller: Pick<StreamOptions, "principal" | "credential" | "phase">, done: () => void) {
    this.principal = caller.principal;
    this.credential = caller.credential;
    this.phase = caller.phase;
    this.#done = done;
  }

  begin(frames: readonly Frame[], isPart: boolean): void {
    for (const missed of frames)
      if (isPart || missed.event !== "bookmark") this.frames.push(missed);
    if (this.frames.length > 0) this.#done();
  }

  push(batch: Batch): void {
    this.begin(batch.frames, false);
  }

  end(reason: string): void {
    this.frames.push(goodbye(reason));
    this.#done();
  }

  tick(): void {}

  reassure(): void {}
}

// --- telling very many -------------------------------------------------------------------------------------------------------

/**
 * How many are told in one turn of the event loop: a write to a socket costs 10 to 15 µs, nearly all of it the system's,
 * so this is 2 ms of the turn, which consensus and everybody else share. A number, not a time: some runtimes write after
 * this code has returned.
 */
const sliceWatchers = 128;
/** After a round a broadcast rests for as long as the round took, at most this; what comes meanwhile goes together. */
const restMsMax = 10;
/** What may gather between two rounds. Beyond it all are told at once, into their own bounded queues. */
const roundFramesMax = 1_024;
const roundBytesMax = 4 * 1024 * 1024;
/** What may be held back of publishes that are spread. Beyond it all are told, with as many as gather in a round. */
const heldFramesMax = 64;
const heldBytesMax = 1024 * 1024;
/** Between two looks at who is due to be told of what is held back. */
const spreadStepMs = 50;

/** Time as a broadcast needs it. */
export interface Clock {
  /** Milliseconds that never go back. */
  now(): number;
  /** @returns a function that takes it back */
  after(ms: number, run: () => void): () => void;
}

const realClock: Clock = {
  now: () => performance.now(),
  after: (ms, run) => {
    const timer: { unref?: () => void } = setTimeout(run, ms);
    timer.unref?.();
    return () => clearTimeout(timer as ReturnType<typeof setTimeout>);
  },
};

interface HeldBack {
  readonly frame: Frame;
  /** When it came. */
  readonly at: number;
}

/**
 * Tells all watchers of one feed, in rounds: each takes what has gathered and walks the watchers in slices. The busier it
 * gets, the more goes out at once, so a write per watcher and round is what a commit costs, never more.
 *
 * A commit that is spread is held back here, once for all, until each watcher's moment within its time has come; a round
 * then tells those who are due. Order outweighs it: a frame goes at the latest with the next one that is due earlier, so
 * a commit that is not spread takes all before it along, and so does what would be more than is kept.
 */
export class Broadcast {
  readonly watchers = new Set<Watcher>();
  readonly #clock: Clock;
  /** All of them come before what waits, and that before what is held back. */
  #batch: Batch | null = null;
  #waiting: Frame[] = [];
  #waitingBytes = 0;
  /** In order of revision. */
  #held: HeldBack[] = [];
  #heldBytes = 0;
  /** Of what is held back, by how many frames it is, for the round under way. */
  #due: (Batch | undefined)[] = [];
  /** When the next one is due, as far as the last round saw. */
  #dueAt = Number.POSITIVE_INFINITY;
  #stopTimer: (() => void) | null = null;
  #round: Iterator<Watcher> | null = null;
  #isScheduled = false;
  #roundAt = 0;

  constructor(clock: Clock = realClock) {
    this.#clock = clock;
  }

  send(frame: Frame): void {
    if (this.watchers.size === 0) return this.#dropHeld();
    if (frame.event === "commit" && frame.spreadMs > 0) this.#hold(frame);
    else this.#tellSoon(frame);
  }

  #tellSoon(frame: Frame): void {
    // A bookmark tells nothing, so nothing goes before its time because of one.
    if (frame.event !== "bookmark") this.#releaseHeld();
    this.#waiting.push(frame);
    this.#waitingBytes += frame.data.length;
    this.#boundWaiting();
    this.#schedule();
  }

  #boundWaiting(): void {
    if (this.#waiting.length > roundFramesMax || this.#waitingBytes > roundBytesMax)
      this.#tellNow();
  }

  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    // After this turn: a burst is applied in one.
    queueMicrotask(() => this.#slice());
  }

  #hold(frame: Frame): void {
    const isFull =
      this.#held.length >= heldFramesMax || this.#heldBytes + frame.data.length > heldBytesMax;
    if (isFull) {
      this.#releaseHeld();
      this.#boundWaiting();
    }
    this.#held.push({ frame, at: this.#clock.now() });
    this.#heldBytes += frame.data.length;
    // Who is due, and when the next ones will be, is seen in a round.
    this.#dueAt = 0;
    this.#schedule();
  }

  /** What is held back goes out now, in order, to all who were not told yet. */
  #releaseHeld(): void {
    for (const { frame } of this.#held) this.#waiting.push(frame);
    this.#waitingBytes += this.#heldBytes;
    this.#dropHeld();
  }

  #dropHeld(): void {
    this.#held = [];
    this.#heldBytes = 0;
    this.#due = [];
    this.#dueAt = Number.POSITIVE_INFINITY;
    this.#stopTimer?.();
    this.#stopTimer = null;
  }

  /** For the last one nothing is held back, and no timer set. */
  leave(watcher: Watcher): void {
    this.watchers.delete(watcher);
    if (this.watchers.size === 0) this.#dropHeld();
  }

  end(reason: string): void {
    for (const watcher of this.watchers) watcher.end(reason);
    this.watchers.clear();
    this.#dropHeld();
  }

  /** Whether something is held back of which it was not told. */
  holdsBack(watcher: Watcher): boolean {
    const last = this.#held.at(-1)?.frame;
    return last !== undefined && last.epoch === watcher.epoch && last.revision > watcher.revision;
  }

  /** Tells one at once what it has not been told yet. */
  settle(watcher: Watcher): void {
    if (!this.watchers.has(watcher)) return;
    if (this.#batch !== null) this.#tell(watcher, this.#batch);
    const rest = [...this.#waiting, ...this.#held.map(({ frame }) => frame)];
    if (rest.length > 0) this.#tell(watcher, new Batch(rest));
  }

  /** Ends the round under way, and makes the next, in this turn. */
  #tellNow(): void {
    for (let next = this.#round?.next(); next?.done === false; next = this.#round?.next())
      this.#tellOne(next.value);
    const batch = this.#take();
    for (const watcher of this.watchers) this.#tell(watcher, batch);
    this.#round = null;
    this.#batch = null;
  }

  #take(): Batch {
    const batch = new Batch(this.#waiting);
    this.#waiting = [];
    this.#waitingBytes = 0;
    return batch;
  }

  #slice(): void {
    if (this.#round === null) {
      this.#roundAt = this.#clock.now();
      if (this.#waiting.length > 0) this.#batch = this.#take();
      else this.#beginDue();
      this.#round = this.watchers.values();
    }
    // One who is not due is asked and not written to.
    for (let told = 0; told < sliceWatchers;) {
      const next = this.#round.next();
      if (next.done === true) return this.#roundDone();
      told += this.#tellOne(next.value) ? 1 : 1 / 16;
    }
    setImmediate(() => this.#slice());
  }

  #tellOne(watcher: Watcher): boolean {
    const batch = this.#batch ?? this.#dueOf(watcher);
    if (batch !== null) this.#tell(watcher, batch);
    return batch !== null;
  }

  /** A round of those who are due, which its beginning decides. */
  #beginDue(): void {
    this.#due = [];
    this.#dueAt = Number.POSITIVE_INFINITY;
    this.#batch = null;
  }

  /** As much of what is held back as it is due; null: nothing that it was not told. */
  #dueOf(watcher: Watcher): Batch | null {
    let count = 0;
    for (let i = this.#held.length - 1; i >= 0 && count === 0; i--) {
      const { frame, at } = this.#held[i] as HeldBack;
      if (frame.epoch === watcher.epoch && frame.revision <= watcher.revision) return null;
      const dueAt = at + watcher.phase * frame.spreadMs;
      if (dueAt <= this.#roundAt) count = i + 1;
      else this.#dueAt = Math.min(this.#dueAt, dueAt);
    }
    if (count === 0) return null;
    const due = this.#due[count] ?? new Batch(this.#held.slice(0, count).map(({ frame }) => frame));
    this.#due[count] = due;
    return due;
  }

  #roundDone(): void {
    const endedAt = this.#clock.now();
    // All were told of what was due for all when the round began.
    if (this.#batch === null) this.#forgetTold();
    this.#round = null;
    this.#batch = null;
    this.#due = [];
    const tookMs = endedAt - this.#roundAt;
    if (this.#waiting.length === 0 && tookMs < 1) this.#rested();
    else this.#clock.after(Math.min(tookMs, restMsMax), () => this.#rested());
  }

  #forgetTold(): void {
    const isOver = ({ frame, at }: HeldBack): boolean => at + frame.spreadMs <= this.#roundAt;
    const told = this.#held.findLastIndex(isOver) + 1;
    for (const { frame } of this.#held.slice(0, told)) this.#heldBytes -= frame.data.length;
    this.#held = this.#held.slice(told);
  }

  #rested(): void {
    if (this.#waiting.length > 0) return this.#slice();
    this.#isScheduled = false;
    this.#stopTimer?.();
    this.#stopTimer = null;
    if (this.#held.length === 0) return;
    if (this.watchers.size === 0) return this.#dropHeld();
    const now = this.#clock.now();
    // When all were told it is kept until its time is over, and then let go.
    const last = Math.max(...this.#held.map(({ frame, at }) => at + frame.spreadMs));
    const isNew = this.#dueAt === 0;
    const dueMs = isNew ? 0 : Math.max(spreadStepMs, Math.min(this.#dueAt, last) - now);
    this.#stopTimer = this.#clock.after(dueMs, () => {
      this.#stopTimer = null;
      this.#schedule();
    });
  }

  /** In order of revision, whatever it was told when it joined. */
  #tell(watcher: Watcher, batch: Batch): void {
    let { epoch, revision } = watcher;
    const isBehind = batch.hasBookmark && (watcher.isBehind || this.holdsBack(watcher));
    // Nearly always, and for each of thousands: all of it is news.
    if (epoch === batch.epoch && revision <= batch.after && !isBehind) {
      watcher.revision = batch.revision;
      watcher.push(batch);
      return;
    }
    const news = batch.frames.filter((frame) => {
      const isNews =
        frame.epoch !== epoch
          ? frame.event === "sync"
          : frame.event === "commit"
            ? frame.revision > revision
            : frame.revision >= revision;
      // A bookmark for one who is behind would promise too much.
      if (!isNews || (frame.event === "bookmark" && isBehind)) return false;
      ({ epoch, revision } = frame);
      return true;
    });
    if (news.length === 0) return;
    watcher.epoch = epoch;
    watcher.revision = revision;
    watcher.push(news.length === batch.frames.length ? batch : new Batch(news));
  }
}
