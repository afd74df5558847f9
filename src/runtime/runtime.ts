/**
 * Which of the three runtimes this is, and the few of its globals that this room touches, typed as narrowly as they are
 * used: the compiler knows Node's types only.
 */
import process from "node:process";

export type RuntimeName = "bun" | "deno" | "node";

export interface BunServer {
  readonly port: number;
  requestIP(request: Request): { readonly address: string } | null;
  stop(closeActiveConnections?: boolean): Promise<void>;
}

export interface BunGlobal {
  readonly version: string;
  serve(options: {
    hostname: string;
    port: number;
    idleTimeout: number;
    maxRequestBodySize: number;
    development: boolean;
    reusePort: boolean;
    fetch(request: Request, server: BunServer): Response | Promise<Response>;
    error(error: Error): Response;
  }): BunServer;
}

export interface DenoServer {
  readonly addr: { readonly port: number };
  readonly finished: Promise<void>;
}

export interface DenoGlobal {
  readonly version: { readonly deno: string };
  serve(
    options: {
      hostname: string;
      port: number;
      signal: AbortSignal;
      onListen(): void;
      onError(error: unknown): Response;
    },
    handler: (
      request: Request,
      info: {
        readonly remoteAddr: { readonly hostname?: string };
        /** Settles when the answer was sent, or could not be. */
        readonly completed: Promise<void>;
      },
    ) => Response | Promise<Response>,
  ): DenoServer;
}

const globals = globalThis as { readonly Bun?: BunGlobal; readonly Deno?: DenoGlobal };

export const bun: BunGlobal | undefined = globals.Bun;
export const deno: DenoGlobal | undefined = globals.Deno;

export interface Runtime {
  readonly name: RuntimeName;
  readonly version: string;
}

/** Bun and Deno both imitate Node's `process`, so they are asked first. */
export const runtime: Runtime =
  bun !== undefined
    ? { name: "bun", version: bun.version }
    : deno !== undefined
      ? { name: "deno", version: deno.version.deno }
      : { name: "node", version: process.versions.node };
