/**
 * Networks of their own for nodes on one machine (Linux, root): a bridge, and a network namespace per node with one link
 * to it. Links are cut, in both directions or one, and made slow; no connection is closed by that. Names carry this
 * process's id, and what processes left behind that are gone is removed before anything is made.
 */
import { execFileSync } from "node:child_process";
import { existsSync } from "node:fs";
import process from "node:process";

function ip(...args: readonly string[]): string {
  return execFileSync("ip", args, { encoding: "utf8", stdio: ["ignore", "pipe", "pipe"] });
}

const prefix = "cfx";
/** Nobody answers there. */
const nowhere = "02:00:00:00:00:fe";

/** What keeps this machine from having namespaces; null: nothing. */
export function whyNoNamespaces(): string | null {
  if (process.platform !== "linux") return "network namespaces are Linux's";
  if (process.getuid?.() !== 0) return "network namespaces need root";
  const name = `${prefix}-${process.pid}-try`;
  try {
    ip("netns", "add", name);
    ip("netns", "del", name);
    return null;
  } catch (error) {
    return `\`ip netns add\` does not work here: ${String(error).split("\n")[0]}`;
  }
}

export class Networks {
  /** Of the bridge: where all namespaces reach this one. */
  readonly host: string;
  readonly #names = new Map<string, number>();
  readonly #bridge = `${prefix}b${process.pid}`;
  readonly #subnet: string;
  readonly #atExit = (): void => this.close();

  constructor() {
    removeLeftovers();
    // Of the block for benchmarks of networks (RFC 2544), which nothing else here uses.
    this.#subnet = `198.18.${process.pid % 256}`;
    this.host = `${this.#subnet}.1`;
    process.on("exit", this.#atExit);
    ip("link", "add", this.#bridge, "type", "bridge");
    ip("addr", "add", `${this.host}/24`, "dev", this.#bridge);
    ip("link", "set", this.#bridge, "up");
  }

  /** @returns its address, and what runs a command there */
  add(name: string): { readonly host: string; readonly command: readonly string[] } {
    const number = this.#names.size + 2;
    this.#names.set(name, number);
    const [space, link] = [this.#space(name), this.#link(name)];
    ip("netns", "add", space);
    ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", space);
    ip("link", "set", link, "master", this.#bridge);
    ip("link", "set", link, "up");
    const host = this.#address(name);
    ip("-n", space, "addr", "add", `${host}/24`, "dev", "eth0");
    ip("-n", space, "link", "set", "eth0", "up");
    ip("-n", space, "link", "set", "lo", "up");
    return { host, command: ["ip", "netns", "exec", space] };
  }

  #space(name: string): string {
    return `${prefix}-${process.pid}-${name}`;
  }

  #link(name: string): string {
    return `${prefix}${process.pid}${name}`;
  }

  #address(name: string): string {
    return `${this.#subnet}.${this.#names.get(name)}`;
  }

  /** Nothing passes, in either direction. */
  cut(name: string): void {
    ip("link", "set", this.#link(name), "down");
  }

  /** What it sends arrives nowhere; what is sent to it arrives. */
  mute(name: string): void {
    const place = [this.host, "lladdr", nowhere, "dev", "eth0", "nud", "permanent"];
    ip("-n", this.#space(name), "neigh", "replace", ...place);
  }

  /** What is sent to it arrives nowhere; what it sends arrives. */
  deafen(name: string): void {
    const place = [this.#address(name), "lladdr", nowhere, "dev", this.#bridge, "nud", "permanent"];
    ip("neigh", "replace", ...place);
  }

  /** Half a megabyte a second in each direction, with a queue that makes everybody late. */
  slow(name: string): void {
    const shape = ["root", "tbf", "rate", "4mbit", "burst", "8kb", "latency", "400ms"];
    execFileSync("tc", ["qdisc", "replace", "dev", this.#link(name), ...shape]);
    execFileSync("tc", ["-n", this.#space(name), "qdisc", "replace", "dev", "eth0", ...shape]);
  }

  /** All as it was. */
  heal(name: string): void {
    ip("link", "set", this.#link(name), "up");
    for (const args of [
      ["-n", this.#space(name), "neigh", "del", this.host, "dev", "eth0"],
      ["neigh", "del", this.#address(name), "dev", this.#bridge],
    ])
      quietly("ip", args);
    quietly("tc", ["qdisc", "del", "dev", this.#link(name), "root"]);
    quietly("tc", ["-n", this.#space(name), "qdisc", "del", "dev", "eth0", "root"]);
  }

  /** Removes all of it; processes in the namespaces should have ended. */
  close(): void {
    process.off("exit", this.#atExit);
    // The links go with their namespaces.
    for (const name of this.#names.keys()) quietly("ip", ["netns", "del", this.#space(name)]);
    quietly("ip", ["link", "del", this.#bridge]);
    this.#names.clear();
  }
}

/** What may not be there. */
function quietly(command: string, args: readonly string[]): void {
  try {
    execFileSync(command, args, { stdio: "ignore" });
  } catch {
    // It was not.
  }
}

/** Of test runs that were killed. */
function removeLeftovers(): void {
  const isGone = (pid: string | undefined): boolean =>
    pid !== undefined && !existsSync(`/proc/${pid}`);
  for (const line of ip("netns", "list").split("\n")) {
    const name = line.split(" ")[0] ?? "";
    if (isGone(new RegExp(`^${prefix}-(\\d+)-`).exec(name)?.[1]))
      quietly("ip", ["netns", "del", name]);
  }
  for (const [, name, pid] of ip("-o", "link").matchAll(new RegExp(`: (${prefix}b(\\d+)):`, "g")))
    if (isGone(pid)) quietly("ip", ["link", "del", name as string]);
}
