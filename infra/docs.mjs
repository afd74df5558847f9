// @ts-check
/** Writes the documents that are made from the sources; test/tidy.test.ts compares them. Run by Bun: `npm run docs`. */
import { writeFileSync } from "node:fs";
import { accessDocument } from "../src/gateway/access.ts";
import { routes } from "../src/gateway/gateway.ts";

writeFileSync(new URL("../docs/access.md", import.meta.url), accessDocument(routes));
