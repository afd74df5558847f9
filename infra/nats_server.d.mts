/** Types of nats_server.mjs, which is plain JavaScript because it runs before anything is installed. */

export interface NatsServer {
  /** `nats://<host>:<port>` */
  readonly url: string;
  readonly port: number;
  readonly pid: number;
  /** Ends it in order, or by force after five seconds. */
  stop(): Promise<void>;
  /** Ends it at once, as a crash would. */
  kill(): Promise<void>;
  /** E.g. SIGSTOP, SIGCONT, SIGHUP (reads its configuration again). */
  signal(signal: NodeJS.Signals): void;
}

/** @throws {Error} when CONFLUX_NATS_SERVER names no executable */
export function findNatsServer(): string | null;

/** @throws {Error} that says how to get it */
export function ensureNatsServer(options?: { log?: (line: string) => void }): Promise<string>;

/** @throws {Error} with the end of its log when it does not come up */
export function startNatsServer(options?: {
  port?: number;
  /** 127.0.0.1 without it. */
  host?: string;
  /** Text of a configuration file; host and port are set beside it. */
  config?: string;
  /** Folder to keep its log in, made if need be; else the log goes when the server does. */
  dir?: string;
  /** Or the file to log to. */
  logFile?: string;
}): Promise<NatsServer>;
