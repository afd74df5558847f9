/**
 * React hooks over the client: a component renders again when, and only when, the value it asked for changes. On a server
 * they give what the client holds; with its `snapshot()` as `bootstrap` the browser begins with the same, so that nothing
 * flickers.
 */
import { createContext, createElement, useCallback, useContext, useSyncExternalStore } from "react";
import type { FunctionComponentElement, ProviderProps, ReactNode } from "react";
import type { ConfigTypes, Conflux } from "./client.ts";

// oxlint-disable-next-line typescript/no-explicit-any -- a context cannot be generic; the hooks' callers say their types
type AnyConflux = Conflux<any>;

const ConfluxContext = createContext<AnyConflux | null>(null);

/** Gives the client to all components within. */
export function ConfluxProvider(properties: {
  readonly client: AnyConflux;
  readonly children?: ReactNode;
}): FunctionComponentElement<ProviderProps<AnyConflux | null>> {
  return createElement(ConfluxContext.Provider, { value: properties.client }, properties.children);
}

/** @throws Error outside of a `ConfluxProvider` */
export function useConflux<T extends ConfigTypes = Record<string, unknown>>(): Conflux<T> {
  const client = useContext(ConfluxContext);
  if (client === null) throw new Error("Wrap the application in a ConfluxProvider");
  return client;
}

/** The value now, and every one that follows; `fallback` where nothing is released. */
export function useConfig<V>(name: string, fallback: V): V;
export function useConfig<V = unknown>(name: string): V | undefined;
export function useConfig(name: string, fallback?: unknown): unknown {
  const client = useConflux();
  const subscribe = useCallback(
    (changed: () => void) =>
      client.onChange((change) => {
        if (change.name === name) changed();
      }),
    [client, name],
  );
  // The same object until it changes: the client reads each content once.
  const read = (): unknown => client.get(name);
  const value = useSyncExternalStore(subscribe, read, read);
  return value === undefined ? fallback : value;
}
