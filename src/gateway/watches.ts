/**
 * Watches: frames read from the applied log, as a stream of server-sent events or by long polling.
 *
 * A feed is one subscription at the host for one filter; all watchers with that filter share it and its encoded frames.
 * A watcher joins a feed within one synchronous read of the state: it is told what lies between its cursor and that
 * state, and from the next revision on gets what the feed gets. That is what makes it gapless.
 *
 * What must stay true: frames of a watcher go up in revision; what it was not sent is either nothing it asked for or made
 * up for by a `sync`; nothing is kept for a watcher beyond the bounds named here.
 */
import { Problem } from "../api/problems.ts";
import type { CommitEvent, ConfigService, TenantView } from "../host/ports.ts";
import { watchesLevel } from "../machine/command.ts";
import { rootKeyKey, tenantKey } from "../machine/keys.ts";
import { getQuotas } from "../machine/queries.ts";
import { defaultQuotas, type Quotas, type StoredChange, type TenantRow } from "../machine/rows.ts";
import { systemTenant } from "../model/names.ts";
import type { Access } from "./access.ts";
import { authorize, credentialOf, principalIn, unauthorized, type Credential } from "./auth.ts";
import {
  canonical,
  durationMs,
  invalid,
  json,
  minRevisionOf,
  type Answer,
  type Call,
  type Principal,
} from "./http.ts";
import type { Peers } from "./peers.ts";
import type { Secrets } from "./secrets.ts";
import type { Bandwidth, Limits } from "./limits.ts";
import type { OpenStream } from "./streams.ts";
import {
  Broadcast,
  PollWatcher,
  StreamWatcher,
  type Watcher,
  type WatchSettings,
} from "./watchers.ts";
import {
  Batch,
  bookmark,
  Frame,
  goodbye,
  parseCursor,
  sizeOf,
  type Cursor,
} from "./watch_frames.ts";
import {
  catchUpBytesMax,
  sourceOf,
  type Filter,
  type Source,
  type SyncReason,
} from "./watch_sources.ts";

const settingsDefault: WatchSettings = {
  bookmarkMs: 12_000,
  watchersMax: 20_000,
  watchersPerTenantMax: 15_000,
  feedsMax: 20_000,
  // A burst is applied in one turn, before even a fast reader gets to read; frames are shared, so keeping them is cheap.
  queueFramesMax: 8_192,
  queueBytesMax: 4 * 1024 * 1024,
  slowMs: 30_000,
  ageMs: 3_600_000,
  lingerMs: 60_000,
};

const tickMs = 1_000;
/** Of the routes that are served here. */
export const watchTag = "watch";
const waitMsMax = 60_000;
/** Of what one missed who wants every revision, as long as its tenant may be sent no more. */
const waitingBytesMax = 64 * 1024;
/** For so long one that would not wait for news waits for its turn, where the tenant was sent what it may be. */
const turnMsMin = 1_000;
/** How long each poll of a relay waits at the other node. */
const relayWaitMs = 10_000;
const relayGiveUpMs = 30_000;
const relayRetryMs = 200;
/** Answers that are kept for those who were left out, of one relay. */
const missedMax = 16;
/** How often one that joins may find its relay ahead of it again. */
const relayJoinPollsMax = 10;

const endOfKey = goodbye("unauthorized").data;

// --- feeds -----------------------------------------------------------------------------------------------------------------

class Feed {
  readonly key: string;
  readonly filter: Filter;
  readonly source: Source;
  readonly broadcast = new Broadcast();
  readonly #limits: Limits;
  readonly #nowMs: () => number;
  epoch = 0;
  revision = 0;
  isEnded = false;
  unsubscribe: () => void = () => {};
  lastFrameAt = performance.now();
  emptySince = performance.now();
  /** Made for one watcher, good for all that come with it; kept until the next tick. */
  #snapshots = new Map<string, Frame>();

  constructor(key: string, filter: Filter, secrets: Secrets, limits: Limits, nowMs: () => number) {
    this.key = key;
    this.#nowMs = nowMs;
    this.filter = filter;
    this.#limits = limits;
    this.source = sourceOf(filter, secrets);
  }

  begin(view: TenantView): void {
    this.epoch = view.epoch;
    this.revision = view.revision;
    this.source.begin(view);
  }

  commit(event: CommitEvent, view: TenantView): void {
    this.revision = event.revision;
    this.#snapshots.clear();
    this.#limits.bandwidthIn(view);
    this.#revoke(event.changes, view);
    const made = this.source.commit(event, view);
    if (made !== null) this.#send(made);
  }

  /** Tells the watcher what lies between its cursor and this state, and counts it in. */
  join(watcher: Watcher, view: TenantView, since: Cursor | "now" | null): void {
    const bandwidth = this.#limits.bandwidthIn(view);
    const frames = this.#missed(view, since);
    const last = frames.at(-1) as Frame;
    const isPart = last.revision < view.revision && last.event === "bookmark";
    // Parts do not wait, and it would come for one after the other; of what is not merged not much may wait for long.
    const isRefused =
      watcher instanceof StreamWatcher &&
      (isPart
        ? !bandwidth.isOpen
        : this.isEvery && !bandwidth.isFree && sizeOf(frames) > waitingBytesMax);
    if (isRefused) throw sentEnough(bandwidth);
    watcher.epoch = view.epoch;
    watcher.revision = view.revision;
    if (!isPart) this.watchers.add(watcher);
    watcher.begin(frames, isPart);
    // It comes back for the rest when it has read this much.
    if (isPart) watcher.end("more");
  }

  #missed(view: TenantView, since: Cursor | "now" | null): readonly Frame[] {
    const { source } = this;
    if (since === "now") return [bookmark(view, this.filter)];
    if (since === null) return [this.#snapshot(view, "begin")];
    const isOurs = since.epoch === view.epoch && since.revision <= view.revision;
    const frames = isOurs ? source.since(since, view) : null;
    if (frames === null && this.isEvery)
      throw new Problem(
        "cursor-compacted",
        "This cursor is compacted or of another history: list what there is now, and watch from there",
      );
    if (frames === null) return [this.#snapshot(view, "cursor")];
    if (sizeOf(frames) > catchUpBytesMax && !this.isEvery) return [this.#snapshot(view, "slow")];
    return frames.length === 0 ? [bookmark(view, this.filter)] : frames;
  }

  /** Whether its watchers want every revision, or none. */
  get isEvery(): boolean {
    return this.filter.kind === "tenant" && this.filter.every;
  }

  /** One encoding for all who come in the same second and find the same. */
  #snapshot(view: TenantView, why: SyncReason): Frame {
    const key = `${view.epoch} ${view.revision} ${why}`;
    let made = this.#snapshots.get(key);
    if (made === undefined) {
      made = this.source.snapshot(view, why);
      this.#snapshots.set(key, made);
    }
    return made;
  }

  /** What makes up for what was left out since the cursor: the latest of each, or everything. */
  latest(view: TenantView, told: string | null): Frame {
    const key = `${view.epoch} ${view.revision} after ${told}`;
    const before = this.#snapshots.get(key);
    if (before !== undefined) return before;
    const cursor = told === null ? null : parseCursor(told);
    const merged =
      cursor === null || cursor.epoch !== view.epoch ? null : this.source.merged(cursor, view);
    if (merged === null || merged.data.length > catchUpBytesMax)
      // It may have had to wait for the first it is told, and been neither slow nor there before.
      return this.#snapshot(view, cursor === null ? "begin" : "slow");
    // Where a tenant is told late, most of its watchers missed the same.
    this.#snapshots.set(key, merged);
    return merged;
  }

  get watchers(): Set<Watcher> {
    return this.broadcast.watchers;
  }

  #send(made: Frame): void {
    this.lastFrameAt = performance.now();
    this.broadcast.send(made);
  }

  /** A key that is gone takes its watches with it. */
  #revoke(changes: readonly StoredChange[], view: TenantView): void {
    for (const change of changes) {
      if (change.type !== "key-delete" && change.type !== "key") continue;
      for (const watcher of this.watchers) {
        const { credential, principal } = watcher;
        if (credential.kind !== "tenant" && credential.kind !== "stream") continue;
        if (principal.keyId !== change.name) continue;
        // One that was rotated has an end now.
        const now = principalIn(view, credential, this.#nowMs());
        if (now === null) watcher.end("unauthorized");
        else watcher.principal = now;
      }
    }
  }

  /** @param nowMs monotonic; `wallMs` is what the ends of keys are held against */
  tick(nowMs: number, wallMs: number, settings: WatchSettings): void {
    this.#snapshots.clear();
    for (const watcher of this.watchers) {
      const { expiresAt } = watcher.principal;
      if (expiresAt !== null && expiresAt <= wallMs) watcher.end("unauthorized");
      else watcher.tick(nowMs);
      // By the clock of each: what all others were told just now says nothing to it.
      if (watcher.isBehind || this.broadcast.holdsBack(watcher)) watcher.reassure(nowMs);
    }
    if (nowMs - this.lastFrameAt < settings.bookmarkMs) return;
    this.#send(bookmark(this, this.filter));
  }

  end(reason: string): void {
    if (this.isEnded) return;
    this.isEnded = true;
    this.unsubscribe();
    this.broadcast.end(reason);
  }
}

export interface WatchesOptions {
  readonly secrets: Secrets;
  readonly service: ConfigService;
  readonly peers: Peers;
  readonly settings: Partial<WatchSettings>;
  readonly failed: (error: unknown) => void;
  readonly openStream: OpenStream;
  readonly limits: Limits;
}

interface Caller {
  readonly principal: Principal;
  readonly credential: Credential;
  readonly phase: number;
}

export class Watches {
  readonly #service: ConfigService;
  readonly #peers: Peers;
  readonly #secrets: Secrets;
  readonly #settings: WatchSettings;
  readonly #failed: (error: unknown) => void;
  readonly #openStream: OpenStream;
  readonly #limits: Limits;
  readonly #feeds = new Map<string, Promise<Feed>>();
  readonly #open = new Set<Feed>();
  readonly #relays = new Map<string, Relay>();
  readonly #timer: { unref?: () => void };
  #directory: Promise<() => void> | null = null;
  #isClosed = false;
  /** Watches and long polls open now. */
  count = 0;
  readonly #countOfTenant = new Map<string, number>();

  constructor(options: WatchesOptions) {
    this.#service = options.service;
    this.#secrets = options.secrets;
    this.#peers = options.peers;
    this.#settings = { ...settingsDefault, ...options.settings };
    this.#failed = options.failed;
    this.#openStream = options.openStream;
    this.#limits = options.limits;
    this.#timer = setInterval(() => this.#tick(), Math.min(tickMs, this.#settings.bookmarkMs));
    this.#timer.unref?.();
  }

  close(reason: string): void {
    if (this.#isClosed) return;
    this.#isClosed = true;
    clearInterval(this.#timer as ReturnType<typeof setInterval>);
    for (const feed of this.#open) feed.end(reason);
    for (const relay of this.#relays.values()) relay.end(reason);
    this.#relays.clear();
    this.#open.clear();
    this.#feeds.clear();
    void this.#directory?.then((end) => end());
  }

  /** Whether the route is a watch: it is relayed, not forwarded, and waits without being a request under way. */
  isWatch(route: { readonly tag: string }): boolean {
    return route.tag === watchTag;
  }

  // --- here ------------------------------------------------------------------------------------------------------------

  async stream(call: Call, filter: Filter, access: Access): Promise<Answer> {
    if (call.head) return streamAnswer(null);
    const caller = callerOf(call);
    const since = sinceOf(call);
    this.#admit(filter.tenant);
    let feed: Feed | null = null;
    const options = {
      ...caller,
      told: since === null || since === "now" ? null : `${since.epoch}-${since.revision}`,
      every: filter.kind === "tenant" && filter.every,
      flags: filter.kind === "flags",
      bandwidth: this.#limits.bandwidth(filter.tenant),
      settings: this.#settings,
      openStream: this.#openStream,
    };
    const watcher = new StreamWatcher(options, {
      resync: async (lagging) => {
        const of = feed;
        if (of === null || of.isEnded) return lagging.end("moved");
        if (of.isEvery) return lagging.end("slow");
        await this.#service.read(filter.tenant, { consistency: "stale" }, (view) =>
          lagging.catchUp([of.latest(view, lagging.told)]),
        );
      },
      closed: (closing) => {
        this.#dismiss(filter.tenant);
        if (feed !== null) this.#leave(feed, closing);
      },
    });
    try {
      feed = await this.#join(call, filter, access, watcher, since);
      // Closed while it joined: what was meant to clean up did not know the feed yet.
      if (watcher.isClosed) this.#leave(feed, watcher);
    } catch (error) {
      watcher.gone();
      throw error;
    }
    return streamAnswer(watcher.stream);
  }

  async poll(call: Call, filter: Filter, access: Access, waitMs: number): Promise<Answer> {
    const caller = callerOf(call);
    const since = sinceOf(call);
    const endsAt = performance.now() + waitMs;
    this.#admit(filter.tenant);
    const bandwidth = this.#limits.bandwidth(filter.tenant);
    bandwidth.open++;
    let happened: () => void = () => {};
    const something = new Promise<void>((resolve) => {
      happened = resolve;
    });
    const watcher = new PollWatcher(caller, happened);
    let feed: Feed | null = null;
    try {
      if (!bandwidth.isFree) await this.#turn(filter.tenant, waitMs);
      feed = await this.#join(call, filter, access, watcher, since);
      const leftMs = endsAt - performance.now();
      if (watcher.frames.length === 0 && leftMs > 0) {
        const timer = setTimeout(happened, leftMs);
        await something;
        clearTimeout(timer);
        // The time may be over while a round has not come to it yet.
        feed.broadcast.settle(watcher);
      }
      const frames = watcher.frames.length > 0 ? watcher.frames : [bookmark(feed, filter)];
      call.revision = Math.max(feed.revision, call.revision ?? 0);
      const answer = pollAnswer(frames);
      const bytes = Buffer.byteLength(answer.body as string);
      if (frames.every((one) => one.event === "bookmark")) bandwidth.sentQuietly(bytes);
      else bandwidth.sent(bytes);
      return answer;
    } finally {
      bandwidth.open--;
      this.#dismiss(filter.tenant);
      if (feed !== null) this.#leave(feed, watcher);
    }
  }

  /** @throws Problem `too-many-requests` where none comes in time */
  async #turn(tenant: string, waitMs: number): Promise<void> {
    // Without a feed nobody told it of a quota that was changed.
    const bandwidth = await this.#service.read(tenant, { consistency: "stale" }, (view) =>
      this.#limits.bandwidthIn(view),
    );
    if (!(await bandwidth.turnWithin(Math.max(waitMs, turnMsMin)))) throw sentEnough(bandwidth);
  }

  #admit(tenant: string): void {
    if (this.#isClosed) throw new Problem("not-ready", "This node is stopping");
    const ofTenant = this.#countOfTenant.get(tenant) ?? 0;
    if (ofTenant >= this.#settings.watchersPerTenantMax)
      throw new Problem("overloaded", "This tenant has too many watches open on this node", {
        retryAfter: 5,
      });
    if (this.count >= this.#settings.watchersMax)
      throw new Problem("overloaded", "This node has too many watches open", { retryAfter: 5 });
    this.count++;
    this.#countOfTenant.set(tenant, ofTenant + 1);
  }

  #dismiss(tenant: string): void {
    this.count--;
    const left = (this.#countOfTenant.get(tenant) ?? 1) - 1;
    if (left === 0) this.#countOfTenant.delete(tenant);
    else this.#countOfTenant.set(tenant, left);
  }

  async #join(
    call: Call,
    filter: Filter,
    access: Access,
    watcher: Watcher,
    since: Cursor | "now" | null,
  ): Promise<Feed> {
    const minRevision = minRevisionOf(call.request);
    for (;;) {
      const feed = await this.#feed(filter);
      const enter = (view: TenantView, isNewest: boolean): boolean => {
        if (feed.isEnded) return false;
        // Seen elsewhere, and not yet here: what this node knows would lead back in time.
        if (!isNewest && isAhead(since, view))
          throw new Problem("not-caught-up", "This node is behind the cursor", { retryAfter: 1 });
        call.revision = view.revision;
        recheck(view, watcher, access, filter, this.#service.nowMs());
        this.#guardWatchers(filter.tenant, getQuotas(view).watchers);
        feed.join(watcher, view, since);
        return true;
      };
      if (await this.#readNewest(filter.tenant, minRevision, enter)) return feed;
    }
  }

  /** The newest state where that can be had; without a quorum what is known here, which a later commit continues. */
  async #readNewest<T>(
    tenant: string,
    minRevision: number | undefined,
    query: (view: TenantView, isNewest: boolean) => T,
  ): Promise<T> {
    const atLeast = minRevision === undefined ? {} : { minRevision };
    let isNewest = true;
    // What is thrown inside must not look to the host like a fault of the replica.
    const attempt = (view: TenantView): { value: T } | { error: unknown } => {
      try {
        return { value: query(view, isNewest) };
      } catch (error) {
        return { error };
      }
    };
    let result: { value: T } | { error: unknown };
    try {
      result = await this.#service.read(
        tenant,
        { consistency: "linearizable", timeoutMs: 2_000, ...atLeast },
        attempt,
      );
    } catch (error) {
      if (!(error instanceof Problem) || error.code !== "no-quorum") throw error;
      isNewest = false;
      result = await this.#service.read(tenant, { consistency: "stale", ...atLeast }, attempt);
    }
    if ("error" in result) throw result.error;
    return result.value;
  }

  #leave(feed: Feed, watcher: Watcher): void {
    feed.broadcast.leave(watcher);
    if (feed.watchers.size === 0) feed.emptySince = performance.now();
  }

  #feed(filter: Filter): Promise<Feed> {
    const key = canonical(filter);
    let feed = this.#feeds.get(key);
    if (feed === undefined) {
      if (this.#feeds.size >= this.#settings.feedsMax) this.#dropEmpty();
      if (this.#feeds.size >= this.#settings.feedsMax)
        throw new Problem("overloaded", "This node watches too many different things");
      feed = this.#openFeed(key, filter);
      this.#feeds.set(key, feed);
      feed.catch(() => this.#feeds.delete(key));
    }
    return feed;
  }

  async #openFeed(key: string, filter: Filter): Promise<Feed> {
    this.#followDirectory();
    const feed = new Feed(key, filter, this.#secrets, this.#limits, () => this.#service.nowMs());
    feed.unsubscribe = await this.#service.watch(filter.tenant, (view) => feed.begin(view), {
      commit: (event, view) =>
        // Another history: cursors of the old one get a sync when they come back.
        view.epoch === feed.epoch ? feed.commit(event, view) : this.#endFeed(feed, "restored"),
      end: (reason) => this.#endFeed(feed, reason),
    });
    this.#open.add(feed);
    return feed;
  }

  #endFeed(feed: Feed, reason: string): void {
    this.#feeds.delete(feed.key);
    this.#open.delete(feed);
    feed.end(reason === "tenant-deleted" ? "unauthorized" : reason);
  }

  #dropEmpty(): void {
    for (const feed of this.#open) if (feed.watchers.size === 0) this.#endFeed(feed, "moved");
  }

  /** Deleted tenants and revoked root keys are known there first. */
  #followDirectory(): void {
    this.#directory ??= this.#service
      .watch(systemTenant, () => {}, {
        commit: (event, view) => this.#directoryChanged(event, view),
        end: () => {
          this.#directory = null;
        },
      })
      .catch((error: unknown) => {
        this.#directory = null;
        this.#failed(error);
        return () => {};
      });
  }

  #directoryChanged(event: CommitEvent, view: TenantView): void {
    for (const change of event.changes) {
      if (change.type === "tenant") {
        const row = view.get<TenantRow>(tenantKey(change.name));
        for (const relay of this.#relays.values())
          if (relay.tenant === change.name)
            this.#limits.bandwidthBy(change.name, this.#quotasOf(change.name));
        if (row !== undefined && row.deletedAt === null) continue;
        for (const feed of this.#open)
          if (feed.filter.tenant === change.name) this.#endFeed(feed, "tenant-deleted");
      }
      if (change.type !== "key" && change.type !== "issuer") continue;
      for (const feed of this.#open)
        for (const watcher of feed.watchers) {
          const { credential } = watcher;
          const isGone =
            change.type === "issuer"
              ? // Whoever still may comes back with a token that is checked anew.
                watcher.principal.issuer === change.name
              : credential.kind === "root" && view.get(rootKeyKey(credential.hash)) === undefined;
          if (isGone) watcher.end("unauthorized");
        }
    }
  }

  #tick(): void {
    const now = performance.now();
    const wallMs = this.#service.nowMs();
    for (const feed of this.#open) {
      if (feed.watchers.size === 0 && now - feed.emptySince > this.#settings.lingerMs) {
        this.#endFeed(feed, "moved");
        continue;
      }
      feed.tick(now, wallMs, this.#settings);
    }
    for (const relay of this.#relays.values()) relay.tick(now);
  }

  // --- for tenants that are elsewhere ------------------------------------------------------------------------------------

  /**
   * Watches through a node that holds the tenant, by its long-poll form. The cursor makes it gapless also when that node
   * dies and another one goes on. All watchers with the same filter and key share one relay, and each first catches up
   * with it by polls of its own.
   */
  async relay(call: Call, nodes: readonly string[]): Promise<Answer> {
    const wait = call.query.get("wait");
    if (wait !== null)
      return this.#peers.forward(call, nodes, null, { timeoutMs: waitMsOf(wait) + 5_000 });
    const first = await this.#relayPoll(call, nodes, null, 0);
    if (first.frames === null) return first.answer;
    if (call.head) return streamAnswer(null);
    const tenant = call.params["tenant"] as string;
    const every = call.query.get("history") === "every";
    const bandwidth = this.#limits.bandwidthBy(tenant, this.#quotasOf(tenant));
    if (every && !bandwidth.isFree && sizeOf(first.frames) > waitingBytesMax)
      throw sentEnough(bandwidth);
    this.#admitRelayed(tenant);
    this.#followDirectory();
    let relay: Relay | null = null;
    const path = call.target.split("?", 1)[0] as string;
    const options = {
      principal: relayPrincipal,
      credential: { kind: "broken" as const },
      phase: phaseOf(call),
      told: null,
      every,
      flags: path.endsWith("/events"),
      bandwidth,
      settings: this.#settings,
      openStream: this.#openStream,
    };
    const watcher = new StreamWatcher(options, {
      resync: async (lagging) => {
        const of = relay;
        if (of === null || of.isEnded) return lagging.end("moved");
        if (every) return lagging.end("slow");
        await this.#catchUpRelayed(call, of, lagging);
      },
      closed: (closing) => {
        this.#dismiss(tenant);
        if (relay !== null) this.#leaveRelay(relay, closing);
      },
    });
    let { cursor, frames } = first;
    watcher.begin(frames.filter((one) => one.event !== "goodbye"));
    const key = relayKey(call);
    for (let polls = 0; !watcher.isClosed; polls++) {
      const end = frames.find((one) => one.event === "goodbye");
      // Also one whose relay runs away from it for so long goes on anew.
      if (end !== undefined || polls === relayJoinPollsMax) {
        watcher.end(end === undefined ? "moved" : end.reason);
        break;
      }
      const running = this.#relays.get(key);
      const at = parseCursor(cursor ?? "");
      if (running === undefined || (at !== null && !running.isAheadOf(at))) {
        relay = running ?? this.#openRelay(key, call, cursor);
        watcher.epoch = at?.epoch ?? 0;
        watcher.revision = at?.revision ?? 0;
        relay.watchers.add(watcher);
        break;
      }
      // It was counted in, and has been told something: it comes back with its cursor.
      const next = await this.#relayPoll(call, nodes, cursor, 0).catch(() => null);
      if (next === null || next.frames === null) {
        watcher.end("moved");
        break;
      }
      cursor = next.cursor ?? cursor;
      ({ frames } = next);
      watcher.push(new Batch(frames.filter((one) => one.event !== "goodbye")));
    }
    return streamAnswer(watcher.stream);
  }

  /** What it missed is not kept here: it is told what a poll from its cursor says, as far as the relay is or further. */
  async #catchUpRelayed(call: Call, relay: Relay, lagging: StreamWatcher): Promise<void> {
    const frames: Frame[] = [];
    let cursor = lagging.told;
    for (let polls = 0; polls < relayJoinPollsMax && !relay.isEnded; polls++) {
      const missed = relay.missed.get(cursor ?? "") ?? (await this.#missedBy(call, relay, cursor));
      if (missed === null) return lagging.end("moved");
      frames.push(...missed.frames);
      ({ cursor } = missed);
      const at = parseCursor(cursor ?? "");
      // From here to the relay's next frame nothing fits in between.
      if (at !== null && !relay.isAheadOf(at)) return lagging.catchUp(frames);
    }
    lagging.end("moved");
  }

  /** By a poll whose answer is good for all that were told as much, until there is news; null: it says that they end. */
  async #missedBy(call: Call, relay: Relay, cursor: string | null): Promise<Missed | null> {
    const place = await this.#service.locate(call.params["tenant"] as string);
    if (place === null || place.local) return null;
    const polled = await this.#relayPoll(call, place.nodes, cursor, 0);
    if (polled.frames === null || polled.frames.some((one) => one.event === "goodbye")) return null;
    const missed = { frames: polled.frames, cursor: polled.cursor ?? cursor };
    // Without a cursor it is asked from where the caller began, which is each one's own.
    if (cursor !== null && relay.missed.size < missedMax) relay.missed.set(cursor, missed);
    return missed;
  }

  /** Of a tenant whose state is elsewhere; the directory is here. */
  #quotasOf(tenant: string): Required<Quotas> {
    const row = this.#service.viewNow(systemTenant)?.get<TenantRow>(tenantKey(tenant));
    return { ...defaultQuotas, ...row?.quotas };
  }

  #admitRelayed(tenant: string): void {
    this.#admit(tenant);
    try {
      this.#guardWatchers(tenant, this.#quotasOf(tenant).watchers);
    } catch (error) {
      this.#dismiss(tenant);
      throw error;
    }
  }

  /** @throws Problem `quota-exceeded`; the new one is counted already */
  #guardWatchers(tenant: string, watchersMax: number): void {
    if ((this.#countOfTenant.get(tenant) ?? 0) > watchersMax)
      throw new Problem(
        "quota-exceeded",
        `Close watches that are not needed: the tenant may have ${watchersMax} open on each node`,
      );
  }

  #openRelay(key: string, call: Call, cursor: string | null): Relay {
    const relay = new Relay(key, call.params["tenant"] as string, cursor);
    this.#relays.set(key, relay);
    void this.#relayOn(call, relay);
    return relay;
  }

  #leaveRelay(relay: Relay, watcher: StreamWatcher): void {
    relay.broadcast.leave(watcher);
    if (relay.watchers.size === 0) this.#endRelay(relay, "moved");
  }

  #endRelay(relay: Relay, reason: string): void {
    if (this.#relays.get(relay.key) === relay) this.#relays.delete(relay.key);
    relay.end(reason);
  }

  async #relayOn(call: Call, relay: Relay): Promise<void> {
    const tenant = call.params["tenant"] as string;
    let heardAt = performance.now();
    while (!relay.isEnded) {
      try {
        const place = await this.#service.locate(tenant);
        // It moved to this node: the clients come back and are served here.
        if (place === null || place.local) return this.#endRelay(relay, "moved");
        const polled = await this.#relayPoll(call, place.nodes, relay.cursor, relayWaitMs);
        if (polled.frames === null) {
          const { status, headers } = polled.answer;
          const waitMs = status === 429 ? 1_000 * Number(headers["retry-after"]) : Number.NaN;
          if (waitMs <= relayGiveUpMs) {
            // Its polls count as requests; who watches here made one.
            heardAt = performance.now();
            relay.isHeld = true;
            await Promise.race([relay.ended, pause(waitMs)]);
            continue;
          }
          // A cursor that is compacted they hear of when they come back.
          const isOfCursor = status === 410 && call.query.get("history") === "every";
          if (status < 500)
            return this.#endRelay(relay, status === 429 || isOfCursor ? "moved" : "unauthorized");
          throw new Problem("no-quorum", "The other node cannot watch it now");
        }
        heardAt = performance.now();
        relay.isHeld = false;
        for (const relayed of polled.frames)
          if (relayed.event !== "goodbye") relay.send(relayed);
          else if (relayed.data === endOfKey) return this.#endRelay(relay, "unauthorized");
          else await Promise.race([relay.ended, pause(relayRetryMs)]);
      } catch (error) {
        // The tenant was deleted: waiting does not help.
        if (error instanceof Problem && error.status < 500)
          return this.#endRelay(relay, "unauthorized");
        if (performance.now() - heardAt > relayGiveUpMs) {
          this.#failed(error);
          return this.#endRelay(relay, "moved");
        }
        await Promise.race([relay.ended, pause(relayRetryMs)]);
      }
    }
  }

  /** One poll; `frames` is null when it was refused, and `answer` says why. */
  async #relayPoll(
    call: Call,
    nodes: readonly string[],
    cursor: string | null,
    waitMs: number,
  ): Promise<{ frames: Frame[] | null; cursor: string | null; answer: Answer }> {
    const query = new URLSearchParams(call.query);
    query.set("wait", `${waitMs}ms`);
    // What is spread is held back here, for each by itself. Nodes from before there was such a thing refuse the word.
    if (this.#service.semantics >= watchesLevel) query.set("spread", "false");
    else query.delete("spread");
    if (cursor !== null) query.set("since", cursor);
    const path = call.target.split("?", 1)[0] as string;
    // A resumed stream names its cursor in a header that would outweigh ours.
    const answer = await this.#peers.forward(call, nodes, null, {
      target: `${path}?${query}`,
      timeoutMs: waitMs + 5_000,
      ...(cursor !== null && { without: "last-event-id" }),
    });
    if (answer.status !== 200) return { frames: null, cursor: null, answer };
    const text = new TextDecoder().decode(answer.body as Uint8Array);
    const { frames } = JSON.parse(text) as {
      frames: { event: Frame["event"]; id?: string; data: unknown }[];
    };
    const made = frames.map(
      ({ event, id, data }) =>
        new Frame(
          event,
          id ?? null,
          parseCursor(id ?? "") ?? { epoch: 0, revision: 0 },
          JSON.stringify(data),
          (data as { readonly spreadMs?: number }).spreadMs,
        ),
    );
    return { frames: made, cursor: made.findLast((one) => one.id !== null)?.id ?? null, answer };
  }
}

interface Missed {
  readonly frames: readonly Frame[];
  /** Where they end. */
  readonly cursor: string | null;
}

/** A feed whose frames come from another node. */
class Relay {
  readonly key: string;
  readonly tenant: string;
  readonly broadcast = new Broadcast();
  /** By what they were told: what its watchers missed that were left out, until it sends more. */
  readonly missed = new Map<string, Missed>();
  readonly ended: Promise<void>;
  isEnded = false;
  /** The other node answers, and not with frames: it was asked too often, or the tenant sent what it may be. */
  isHeld = false;
  /** Of the last frame it was given. */
  cursor: string | null;
  #end: () => void = () => {};

  constructor(key: string, tenant: string, cursor: string | null) {
    this.key = key;
    this.tenant = tenant;
    this.cursor = cursor;
    this.ended = new Promise((resolve) => (this.#end = resolve));
  }

  /** Whether it has sent what one at this cursor was not told. */
  isAheadOf(at: Cursor): boolean {
    const own = parseCursor(this.cursor ?? "");
    if (own === null) return false;
    if (own.epoch !== at.epoch) return own.epoch > at.epoch;
    return own.revision > at.revision;
  }

  get watchers(): Set<Watcher> {
    return this.broadcast.watchers;
  }

  tick(nowMs: number): void {
    for (const watcher of this.watchers) {
      watcher.tick(nowMs);
      if (this.isHeld || watcher.isBehind || this.broadcast.holdsBack(watcher))
        watcher.reassure(nowMs);
    }
  }

  send(relayed: Frame): void {
    this.missed.clear();
    this.cursor = relayed.id ?? this.cursor;
    this.broadcast.send(relayed);
  }

  end(reason: string): void {
    if (this.isEnded) return;
    this.isEnded = true;
    this.#end();
    this.broadcast.end(reason);
  }
}

/** What its watchers share: what is watched, and the key that may. */
function relayKey(call: Call): string {
  const query = new URLSearchParams(call.query);
  query.delete("since");
  query.delete("spread");
  query.sort();
  const path = call.target.split("?", 1)[0] as string;
  return `${call.token} ${path}?${query}`;
}

/** Who watches through a relay is known to the other node, which checks the key at every poll. */
const relayPrincipal: Principal = { kind: "client", keyId: "", namespaces: null, expiresAt: null };

function sentEnough(bandwidth: Bandwidth): Problem {
  return new Problem(
    "too-many-requests",
    "Watch by a stream, or ask less often: the tenant's watches were sent what they may be on this node",
    { retryAfter: bandwidth.waitSeconds },
  );
}

function pause(ms: number): Promise<void> {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

/** The key may have gone between its check and this moment, from which on its end is heard of. */
function recheck(
  view: TenantView,
  watcher: Watcher,
  access: Access,
  filter: Filter,
  nowMs: number,
): void {
  const { credential } = watcher;
  if (credential.kind !== "tenant" && credential.kind !== "stream") return;
  const principal = principalIn(view, credential, nowMs);
  if (principal === null) throw unauthorized();
  authorize(access, principal, filter.namespace ?? undefined);
}

function isAhead(since: Cursor | "now" | null, view: TenantView): boolean {
  return (
    since !== null &&
    since !== "now" &&
    since.epoch === view.epoch &&
    since.revision > view.revision
  );
}

function callerOf(call: Call): Caller {
  if (call.principal === null || call.token === null) throw new Error("A watch needs a principal");
  return {
    principal: call.principal,
    credential: credentialOf(call.token),
    phase: phaseOf(call),
  };
}

/** Each connection has its own, so that those of one application are told one after the other. */
function phaseOf(call: Call): number {
  return call.query.get("spread") === "false" ? 0 : Math.random();
}

function streamAnswer(body: ReadableStream<Uint8Array> | null): Answer {
  return {
    status: 200,
    headers: {
      "content-type": "text/event-stream",
      "cache-control": "no-cache, no-transform",
      "x-accel-buffering": "no",
    },
    body,
  };
}

function pollAnswer(frames: readonly Frame[]): Answer {
  const answer = json(null);
  return { ...answer, body: `{"frames":[${frames.map((one) => one.json).join(",")}]}` };
}

/** @throws Problem `invalid` */
export function waitMsOf(text: string): number {
  return durationMs("wait", text, waitMsMax);
}

/** Where the caller left off; null: nowhere. @throws Problem `invalid` */
function sinceOf(call: Call): Cursor | "now" | null {
  // Browsers send it when they reconnect, to the address with the cursor that they began with.
  const last = call.request.headers.get("last-event-id");
  if (last !== null && last !== "") return parseCursor(last);
  const since = call.query.get("since");
  if (since === null || since === "") return null;
  if (since === "now") return "now";
  const cursor = parseCursor(since);
  if (cursor === null)
    throw invalid("Give since as <epoch>-<revision>, as a frame's id gave it, or as now", [
      { pointer: "/query/since", detail: "Not a cursor" },
    ]);
  return cursor;
}
