/** Keeps the last known good values of a process in a file. Bun, Deno and Node; a door of its own, because browsers have no files. */
import { randomUUID } from "node:crypto";
import { mkdir, readFile, rename, rm, writeFile } from "node:fs/promises";
import { dirname } from "node:path";
import type { Cache } from "./client.ts";

/** Written whole or not at all, readable by its owner only; one file per client that differs in what it asks for. */
export function fileCache(path: string): Cache {
  return {
    load: async () => {
      try {
        return await readFile(path, "utf8");
      } catch (error) {
        if ((error as { code?: string }).code === "ENOENT") return null;
        throw error;
      }
    },
    save: async (text) => {
      await mkdir(dirname(path), { recursive: true });
      // Beside it, so that the rename stays on one file system; of its own name, because processes may share the file.
      const aside = `${path}.${randomUUID()}.new`;
      try {
        await writeFile(aside, text, { mode: 0o600, flush: true });
        await rename(aside, path);
      } catch (error) {
        await rm(aside, { force: true });
        throw error;
      }
    },
  };
}
