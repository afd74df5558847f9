/** Keeps the last known good values of a browser in its storage. */
import type { Cache } from "./client.ts";

/** @param storage `localStorage`, or whatever has its two methods; one key per client that differs in what it asks for */
export function storageCache(
  storage: Pick<Storage, "getItem" | "setItem">,
  key = "conflux",
): Cache {
  return {
    load: () => storage.getItem(key),
    save: (text) => storage.setItem(key, text),
  };
}
