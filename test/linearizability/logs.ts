/** Reads recorded histories: Jepsen's log of an etcd register, and the maps of a key-value run, one event a line. */
import { History, type Operation } from "./history.ts";
import type { KvInput, RegisterInput, RegisterOutput } from "./models.ts";

/** The register before the first write; what a read of it gives. */
export const NIL = "nil";

export function readRegisterLog(text: string): Operation<RegisterInput, RegisterOutput>[] {
  const history = new History<RegisterInput, RegisterOutput>();
  const open = new Open();
  for (const line of lines(text)) {
    const match = /(\d+)\s+:(invoke|ok|fail|info)\s+:(read|write|cas)\s+(.*)$/.exec(line);
    if (match === null) throw new Error(`Cannot read the event: ${line}`);
    const [, client = "", event, op, value = ""] = match;
    if (event === "invoke") {
      const [from = "", to = ""] = value.replace(/[[\]]/g, "").split(" ");
      const input: RegisterInput =
        op === "read"
          ? { op }
          : op === "write"
            ? { op, value: value.trim() }
            : { op: "cas", from, to };
      open.begin(client, history.call(client, input));
      continue;
    }
    const id = open.end(client);
    // Nobody learns what a timed-out one did; but a read did nothing, whatever it is called.
    if (value === ":timed-out") {
      if (op === "read") history.refused(id);
    } else if (op === "cas") history.returned(id, event === "ok");
    else if (event === "ok") history.returned(id, op === "read" ? value.trim() : true);
    else throw new Error(`Cannot read the event: ${line}`);
  }
  return history.operations();
}

export function readKvLog(text: string): Operation<KvInput, string>[] {
  const history = new History<KvInput, string>();
  const open = new Open();
  for (const line of lines(text)) {
    const match =
      /^\{:process (\d+), :type :(invoke|ok), :f :(get|put|append), :key "(.*)", :value (?:nil|"(.*)")\}$/.exec(
        line,
      );
    if (match === null) throw new Error(`Cannot read the event: ${line}`);
    const [, client = "", event, op, key = "", value = ""] = match;
    if (event === "ok") history.returned(open.end(client), op === "get" ? value : "");
    else if (op === "get") open.begin(client, history.call(client, { op, key }));
    else {
      const input: KvInput = { op: op === "put" ? "put" : "append", key, value };
      open.begin(client, history.call(client, input));
    }
  }
  return history.operations();
}

/** The operation each client waits for. */
class Open {
  readonly #ids = new Map<string, number>();

  begin(client: string, id: number): void {
    if (this.#ids.has(client)) throw new Error(`Client ${client} calls twice at once`);
    this.#ids.set(client, id);
  }

  end(client: string): number {
    const id = this.#ids.get(client);
    if (id === undefined) throw new Error(`Client ${client} ends what it did not call`);
    this.#ids.delete(client);
    return id;
  }
}

const lines = (text: string): string[] => text.split("\n").filter((line) => line.trim() !== "");
