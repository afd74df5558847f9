/**
 * Who is told, and how very many are told at once.
 *
 * What must stay true: frames of a watcher go up in revision; what it was not sent is made up for by a `sync` or a merged
 * commit; nothing is kept for a watcher beyond the bounds named in `WatchSettings`.
 */
import type { Credential } from "./auth.ts";
import type { Principal } from "./http.ts";
import type { OpenStream, Pushing, Sink } from "./streams.ts";
import { Batch, goodbye, hello, joined, type Frame } from "./watch_frames.ts";

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
  /** Once a second. */
  tick(nowMs: number): void;
}

interface StreamHooks {
  /** The latest state, pushed within one read of it. */
  resync(watcher: StreamWatcher): Promise<void>;
  /** It takes and needs nothing any more. */
  closed(watcher: StreamWatcher): void;
}

/** A stream of server-sent events. */
export class StreamWatcher implements Watcher, Pushing {
  epoch = 0;
  revision = 0;
  principal: Principal;
  readonly credential: Credential;
  readonly stream: ReadableStream<Uint8Array>;
  readonly #settings: WatchSettings;
  readonly #hooks: StreamHooks;
  #sink: Sink | null = null;
  /** The client keeps up: what comes goes straight to it. */
  #keepsUp = false;
  #queue: Frame[] = [];
  #queueBytes = 0;
  /** Its queue overflowed: all it is told next is what is new by then. */
  #isLagging = false;
  #isResyncing = false;
  /** Cursor of the last frame on its way to the client. */
  told: string | null = null;
  readonly #endsAt: number;
  /** Since when it has not read although there was something; 0: it reads. */
  #stuckSince = 0;
  #isClosed = false;

  constructor(
    caller: { readonly principal: Principal; readonly credential: Credential },
    settings: WatchSettings,
    openStream: OpenStream,
    hooks: StreamHooks,
  ) {
    this.principal = caller.principal;
    this.credential = caller.credential;
    this.#settings = settings;
    this.#hooks = hooks;
    this.#endsAt = Date.now() + settings.ageMs * (0.8 + Math.random() * 0.4);
    this.stream = openStream(this);
  }

  open(sink: Sink): void {
    this.#sink = sink;
    this.#keepsUp = sink.write(hello);
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
  begin(frames: readonly Frame[]): void {
    this.#give(frames);
  }

  #give(frames: readonly Frame[]): void {
    if (frames.length === 0) return;
    if (this.#sink === null) {
      for (const frame of frames) this.#add(frame);
      return;
    }
    this.told = frames.findLast((frame) => frame.id !== null)?.id ?? this.told;
    this.#keepsUp = this.#sink.write(joined(frames)) && !this.#isClosed;
  }

  push(batch: Batch): void {
    if (this.#keepsUp) {
      this.told = batch.id ?? this.told;
      this.#keepsUp = (this.#sink as Sink).write(batch.bytes);
      return;
    }
    if (this.#isClosed || this.#isLagging) return;
    for (const frame of batch.frames) if (!this.#isLagging) this.#keep(frame);
  }

  #keep(frame: Frame): void {
    const { queueFramesMax, queueBytesMax } = this.#settings;
    if (
      this.#queue.length > 0 &&
      (this.#queue.length >= queueFramesMax ||
        this.#queueBytes + frame.bytes.length > queueBytesMax)
    ) {
      this.#isLagging = true;
      this.#queue = [];
      this.#queueBytes = 0;
      return;
    }
    this.#add(frame);
  }

  #add(frame: Frame): void {
    if (this.#stuckSince === 0) this.#stuckSince = Date.now();
    this.#queue.push(frame);
    this.#queueBytes += frame.bytes.length;
  }

  /** It has read all that it was given. */
  drained(): void {
    if (this.#isClosed && this.#queue.length === 0) return;
    this.#stuckSince = 0;
    if (this.#isLagging) {
      if (!this.#isResyncing) void this.#resync();
      return;
    }
    this.#keepsUp = !this.#isClosed;
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

  /** What makes up for all that was left out. Called within a read of the state it leads to. */
  catchUp(frame: Frame): void {
    if (this.#isClosed) return;
    this.#isLagging = false;
    this.epoch = frame.epoch;
    this.revision = frame.revision;
    this.#give([frame]);
  }

  end(reason: string): void {
    if (this.#isClosed) return;
    const last = [...this.#queue, goodbye(reason)];
    this.#queue = [];
    this.#close();
    // Before the answer begins it waits for that.
    this.#give(last);
    this.#sink?.end();
  }

  tick(nowMs: number): void {
    if (this.#stuckSince !== 0 && nowMs - this.#stuckSince > this.#settings.slowMs)
      this.end("slow");
    else if (nowMs >= this.#endsAt) this.end("age");
  }

  #close(): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#keepsUp = false;
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
  readonly #done: () => void;

  constructor(
    caller: { readonly principal: Principal; readonly credential: Credential },
    done: () => void,
  ) {
    this.principal = caller.principal;
    this.credential = caller.credential;
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

/**
 * Tells all watchers of one feed, in rounds: each takes what has gathered and walks the watchers in slices of time. The
 * busier it gets, the more goes out at once, so a write per watcher and round is what a commit costs, never more.
 */
export class Broadcast {
  readonly watchers = new Set<Watcher>();
  #waiting: Frame[] = [];
  #waitingBytes = 0;
  #batch: Batch | null = null;
  #round: Iterator<Watcher> | null = null;
  #isScheduled = false;
  #roundAt = 0;

  send(frame: Frame): void {
    if (this.watchers.size === 0) return;
    this.#waiting.push(frame);
    this.#waitingBytes += frame.data.length;
    if (this.#waiting.length > roundFramesMax || this.#waitingBytes > roundBytesMax)
      this.#tellNow();
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    // After this turn: a burst is applied in one.
    queueMicrotask(() => this.#slice());
  }

  /** Tells one at once what it has not been told yet. */
  settle(watcher: Watcher): void {
    if (!this.watchers.has(watcher)) return;
    if (this.#batch !== null) tell(watcher, this.#batch);
    if (this.#waiting.length > 0) tell(watcher, new Batch(this.#waiting));
  }

  /** Ends the round under way, and makes the next, in this turn. */
  #tellNow(): void {
    for (let next = this.#round?.next(); next?.done === false; next = this.#round?.next())
      tell(next.value, this.#batch as Batch);
    const batch = this.#take();
    for (const watcher of this.watchers) tell(watcher, batch);
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
      this.#batch = this.#take();
      this.#round = this.watchers.values();
      this.#roundAt = performance.now();
    }
    for (let told = 0; told < sliceWatchers; told++) {
      const next = this.#round.next();
      if (next.done === true) return this.#roundDone();
      tell(next.value, this.#batch as Batch);
    }
    setImmediate(() => this.#slice());
  }

  #roundDone(): void {
    const tookMs = performance.now() - this.#roundAt;
    this.#round = null;
    this.#batch = null;
    if (this.#waiting.length === 0 && tookMs < 1) this.#isScheduled = false;
    else setTimeout(() => this.#rested(), Math.min(tookMs, restMsMax));
  }

  #rested(): void {
    if (this.#waiting.length > 0) this.#slice();
    else this.#isScheduled = false;
  }
}

/** In order of revision, whatever it was told when it joined. */
function tell(watcher: Watcher, batch: Batch): void {
  let { epoch, revision } = watcher;
  // Nearly always, and for each of thousands: all of it is news.
  if (
    epoch === batch.epoch &&
    revision <= batch.after &&
    !(batch.hasBookmark && watcher.isBehind)
  ) {
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
    if (!isNews || (frame.event === "bookmark" && watcher.isBehind)) return false;
    ({ epoch, revision } = frame);
    return true;
  });
  if (news.length === 0) return;
  watcher.epoch = epoch;
  watcher.revision = revision;
  watcher.push(news.length === batch.frames.length ? batch : new Batch(news));
}
