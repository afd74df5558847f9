/** The hooks, rendered by React on a server and in a document. */
import { Window } from "happy-dom";
import { act, createElement } from "react";
import type { ReactElement } from "react";
import { hydrateRoot } from "react-dom/client";
import { renderToString } from "react-dom/server";
import { expect, onTestFinished, test } from "vitest";
import { Conflux } from "../../src/sdk/mod.ts";
import { ConfluxProvider, useConfig } from "../../src/sdk/react.ts";
import { TestConflux } from "../../src/sdk/testing.ts";

let renders = 0;

function Banner(): ReactElement {
  renders += 1;
  const { text } = useConfig("banner", { text: "default" });
  const max = useConfig<number>("max");
  return createElement("p", null, `${text} ${max ?? "none"}`);
}

const app = (client: Conflux): ReactElement =>
  createElement(ConfluxProvider, { client }, createElement(Banner));

test("hooks begin in the browser with what the server rendered, and follow only what they use", async () => {
  const onServer = new TestConflux<Record<string, unknown>>({ banner: { text: "hello" } });
  const html = renderToString(app(onServer));
  expect(html).toBe("<p>hello none</p>");
  const window = new Window();
  const before = new Map(
    ["window", "document"].map((name) => [name, Reflect.get(globalThis, name) as unknown]),
  );
  Object.assign(globalThis, { window, document: window.document, IS_REACT_ACT_ENVIRONMENT: true });
  onTestFinished(async () => {
    for (const [name, value] of before) Reflect.set(globalThis, name, value);
    await window.happyDOM.close();
  });
  const errors: unknown[] = [];
  const client = new TestConflux<Record<string, unknown>>({ banner: { text: "hello" } });
  window.document.body.innerHTML = `<div id="root">${html}</div>`;
  const element = window.document.getElementById("root") as unknown as Element;
  const root = await act(async () =>
    hydrateRoot(element, app(client), { onRecoverableError: (error) => errors.push(error) }),
  );
  expect([element.textContent, errors]).toEqual(["hello none", []]);
  act(() => client.set("banner", { text: "changed" }));
  expect(element.textContent).toBe("changed none");
  const counted = renders;
  act(() => client.set("other", 1));
  expect(renders).toBe(counted);
  act(() => client.setAll({ banner: { text: "both" }, max: 3 }));
  expect(element.textContent).toBe("both 3");
  act(() => client.delete("banner"));
  expect(element.textContent).toBe("default 3");
  act(() => root.unmount());
});

test("without a provider they say what is missing", () => {
  expect(() => renderToString(createElement(Banner))).toThrow("Wrap the application");
});

test("what a server's client holds begins another one without a flicker", async () => {
  const onServer = new TestConflux({ banner: { text: "hello" } });
  const bootstrap = JSON.stringify(onServer.snapshot());
  const inBrowser = new Conflux({ tenant: "test", offline: true, bootstrap });
  expect(renderToString(app(inBrowser))).toBe("<p>hello none</p>");
  await inBrowser.close();
});
