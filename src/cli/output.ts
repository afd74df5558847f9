/** What the command writes: tables for people, JSON and YAML for programs, progress for terminals, errors for both. */
import process from "node:process";
import { stringify } from "yaml";
import { Problem, ServerProblem, Unanswered, Unreachable } from "../sdk/admin.ts";
import { ManifestError } from "./apply.ts";
import { UsageError } from "./arguments.ts";
import { ImportError } from "./import/importing.ts";

export type Format = "table" | "json" | "yaml";
export const formats: readonly Format[] = ["table", "json", "yaml"];

export function print(text: string): void {
  process.stdout.write(`${text}\n`);
}

/** As JSON or YAML; as a table in the words of `table`. */
export function show(value: unknown, format: Format, table: () => string): void {
  if (format === "json") print(JSON.stringify(value, null, 2));
  else if (format === "yaml") process.stdout.write(stringify(value));
  else print(table());
}

/** What comes from a server must not move the cursor of the terminal it is shown on. */
export function plainText(text: string): string {
  // oxlint-disable-next-line no-control-regex
  return text.replace(/[\u0000-\u001f\u007f-\u009f]/g, (sign) => {
    return sign === "\t" ? " " : `\\u${sign.charCodeAt(0).toString(16).padStart(4, "0")}`;
  });
}

export type Cell = string | number | boolean | null | undefined;

/** Left-aligned columns; `-` for nothing. */
export function table(head: readonly string[], rows: readonly (readonly Cell[])[]): string {
  const texts = [
    head,
    ...rows.map((row) =>
      row.map((cell) => {
        const text = cell === null || cell === undefined || cell === "" ? "-" : String(cell);
        return plainText(text.length > 80 ? `${text.slice(0, 79)}…` : text);
      }),
    ),
  ];
  const widths = head.map((_, i) => Math.max(...texts.map((row) => (row[i] ?? "").length)));
  return texts
    .map((row) =>
      row
        .map((text, i) => text.padEnd(widths[i] as number))
        .join("  ")
        .trimEnd(),
    )
    .join("\n");
}

/** A content as it is; on a terminal the prompt begins on a line of its own. */
export function printContent(content: string): void {
  process.stdout.write(content);
  if (process.stdout.isTTY && !content.endsWith("\n")) process.stdout.write("\n");
}

/** `name  value` lines. */
export function fields(pairs: readonly (readonly [string, Cell])[]): string {
  const width = Math.max(...pairs.map(([name]) => name.length)) + 2;
  return pairs
    .map(([name, value]) => {
      const text = value === null || value === undefined || value === "" ? "-" : String(value);
      return `${name.padEnd(width)}${plainText(text)}`;
    })
    .join("\n");
}

/** One line on a terminal that is written over; nothing elsewhere. */
export class ProgressLine {
  readonly #isOn = process.stderr.isTTY && process.env["TERM"] !== "dumb";
  #at = 0;

  show(text: string): void {
    const now = performance.now();
    if (!this.#isOn || now - this.#at < 50) return;
    this.#at = now;
    process.stderr.write(`\r\u001b[2K${plainText(text)}`);
  }

  end(): void {
    if (this.#isOn && this.#at > 0) process.stderr.write("\r\u001b[2K");
  }
}

/** What somebody who sees a code can do about it. */
const advice: Partial<Record<string, string>> = {
  unauthorized:
    "Give a valid key by --token or CONFLUX_TOKEN; a local node's root token is in its data folder, in `root-token`",
  forbidden:
    "Use a key of a kind that may do this, of this tenant and namespace (`conflux keys list`)",
  "not-found": "Check --tenant, --namespace and the name; `conflux get` lists what is there",
  "tenant-deleted": "`conflux tenants undelete` brings a deleted tenant back",
  "precondition-failed": "Somebody changed it meanwhile: look at it again, then repeat",
  conflict: "Look at what is there (`conflux describe`), then repeat",
  protected:
    "Allow it first: `conflux namespaces set NAME --unprotect`, or `protected: false` in the manifest",
  "quota-exceeded":
    "Delete what is not needed, or have an operator raise the quota (`conflux tenants update NAME --quota`)",
  "too-many-requests": "Repeat later, with fewer requests at once",
  "no-quorum": "See which nodes answer: `conflux cluster status`",
  "not-ready": "The node is starting or stopping: repeat in a moment, or ask another one",
  "outcome-unknown": "It may or may not have happened: look at it, then repeat",
  internal: "The node's log has it under the request id",
};

/** An error as the person at the terminal needs it: what, why, which request, what to do. */
export function errorText(error: unknown): string {
  if (error instanceof UsageError) return `error: ${error.message}`;
  if (error instanceof ManifestError)
    return `error: Manifests are not valid; nothing was changed\n${indent(error.message)}`;
  if (error instanceof ImportError)
    return `error: Nothing was imported\n${indent(error.problems.map(plainText).join("\n"))}`;
  if (error instanceof Problem) {
    const remote = error instanceof ServerProblem ? error : null;
    const lines = [
      `error: ${plainText(remote?.title ?? error.code)} (${error.code}, HTTP ${error.status})`,
      `  ${plainText(error.message)}`,
    ];
    for (const { pointer, detail } of error.errors)
      if (detail !== error.message) lines.push(`  at ${plainText(pointer)}: ${plainText(detail)}`);
    if (remote !== null && remote.requestId !== "")
      lines.push(`  request id: ${plainText(remote.requestId)}`);
    const hint = advice[error.code];
    if (hint !== undefined) lines.push(`  ${hint}`);
    return lines.join("\n");
  }
  if (error instanceof Unanswered)
    return `error: ${plainText(error.message)}\n  The change was sent and may have been made: look at what is there, then repeat it`;
  if (error instanceof Unreachable)
    return `error: ${plainText(error.message)}\n  Start a node with \`conflux start\`, or say where one is by --url or CONFLUX_URL (several with commas)`;
  return `error: ${error instanceof Error ? error.message : String(error)}`;
}

function indent(text: string): string {
  return text.replaceAll(/^/gm, "  ");
}
