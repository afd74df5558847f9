/**
 * From what a client sent to an action that may be proposed: names and rules checked, content parsed and held against
 * the config's schema. The machine trusts what is in a command, so nothing unchecked may get past here.
 */
import { Problem, type ProblemDetailError } from "../api/problems.ts";
import type { TransactionOperation } from "../api/schemas.ts";
import type { ConfigAction, Content } from "../machine/command.ts";
import type { ConfigRow } from "../machine/rows.ts";
import { contentHash, prepareContent, type ContentError } from "../model/content.ts";
import {
  checkConfigName,
  checkNamespaceName,
  checkTagName,
  escapePointer,
  tagsMax,
} from "../model/names.ts";
import { defaultFormat, type ContentFormat } from "../model/release.ts";
import { validateRules } from "../model/rules.ts";
import { checkSchema, validateAgainst } from "../model/schema.ts";
import { utf8Length } from "../model/utf8.ts";
import { invalid } from "./http.ts";
import { secretBytesMax, type Secrets } from "./secrets.ts";

/** What a change of a config depends on. */
export interface Shape {
  readonly format: ContentFormat;
  readonly schema: { readonly text: string; readonly hash: string } | null;
  readonly secret: boolean;
  readonly latestVersion: number;
  readonly latestHash: string | null;
}

export function shapeOf(row: ConfigRow | null): Shape | null {
  if (row === null) return null;
  const { format, schema, secret = false, latestVersion, latestHash } = row;
  return { format, schema, secret, latestVersion, latestHash };
}

/** What may be found out about the state while actions are built. */
export interface Known {
  /** Of a config that exists, and is not deleted. */
  shape(namespace: string, name: string): Shape | null;
  readonly contentBytesMax: number;
  readonly tenant: string;
  readonly secrets: Secrets;
}

/**
 * The action of an operation as the API takes it. `pointer` is where the operation stands in the body.
 * @throws Problem
 */
export function buildAction(
  operation: TransactionOperation,
  known: Known,
  pointer: string,
): ConfigAction {
  checkNames(operation, pointer);
  switch (operation.op) {
    case "config.put":
      return buildPut(operation, known, pointer);
    case "version.create":
    case "publish": {
      const { namespace, name, message } = operation;
      const shape = known.shape(namespace, name);
      if (shape === null) throw noConfig(namespace, name, pointer);
      return {
        op: operation.op,
        namespace,
        name,
        content: buildContent(shape, operation, known, `${pointer}/content`),
        schemaHash: shape.schema?.hash ?? null,
        format: shape.format,
        ...(message !== undefined && { message }),
      };
    }
    case "release.put": {
      const { rules, ...rest } = operation;
      const errors = validateRules(rules, { rulesMax: Number.POSITIVE_INFINITY });
      if (errors.length > 0) throw invalidAt(errors, `${pointer}/rules`);
      return { ...rest, rules: rules };
    }
    case "config.delete":
    case "config.undelete":
    case "version.delete":
    case "rollback":
      return operation;
    case "namespace.put":
      return operation;
    default:
      throw invalid("Unknown operation");
  }
}

function noConfig(namespace: string, name: string, pointer: string): Problem {
  const detail = `There is no config ${namespace}/${name}`;
  // Of one operation alone the path says where.
  return new Problem("not-found", detail, { errors: pointer === "" ? [] : [{ pointer, detail }] });
}

function checkNames(operation: TransactionOperation, pointer: string): void {
  const wrong = (field: string, detail: string | null): void => {
    if (detail !== null)
      throw new Problem("invalid-name", detail, {
        errors: [{ pointer: `${pointer}/${field}`, detail }],
      });
  };
  wrong("namespace", checkNamespaceName(operation.namespace));
  if (operation.op !== "namespace.put") wrong("name", checkConfigName(operation.name));
  else if (typeof operation.extends === "string")
    wrong("extends", checkNamespaceName(operation.extends));
}

type PutOperation = TransactionOperation & { readonly op: "config.put" };

function buildPut(operation: PutOperation, known: Known, pointer: string): ConfigAction {
  const { namespace, name, format, content, schema, description, tags, secret } = operation;
  if (tags !== undefined && Object.keys(tags).length > tagsMax)
    throw invalid(`Give at most ${tagsMax} tags`, [
      { pointer: `${pointer}/tags`, detail: `There are ${Object.keys(tags).length}` },
    ]);
  for (const tag of Object.keys(tags ?? {})) {
    const detail = checkTagName(tag);
    if (detail !== null)
      throw invalid(detail, [{ pointer: `${pointer}/tags/${escapePointer(tag)}`, detail }]);
  }
  const shape = resultingShape(operation, known, pointer);
  if (secret === true) {
    known.secrets.needKey();
    if (shape.format === "flag")
      throw invalid("Flags cannot be secret: whoever evaluates them would learn them", [
        { pointer: `${pointer}/secret`, detail: "Not with the format flag" },
      ]);
  }
  return {
    op: "config.put",
    namespace,
    name,
    ...(format !== undefined && { format }),
    ...(description !== undefined && { description }),
    ...(tags !== undefined && { tags }),
    ...(schema !== undefined && { schema: shape.schema }),
    ...(secret !== undefined && { secret }),
    ...(content !== undefined && {
      content: buildContent(shape, { namespace, name, content }, known, `${pointer}/content`),
    }),
  };
}

/** What a config's shape is after the operation. */
export function resultingShape(operation: PutOperation, known: Known, pointer: string): Shape {
  const { namespace, name, format, schema } = operation;
  const before = known.shape(namespace, name);
  return {
    secret: before?.secret ?? operation.secret ?? false,
    latestVersion: before?.latestVersion ?? 0,
    latestHash: before?.latestHash ?? null,
    format: format ?? before?.format ?? defaultFormat,
    schema:
      schema === undefined
        ? (before?.schema ?? null)
        : schema === null
          ? null
          : buildSchema(schema, `${pointer}/schema`),
  };
}

function buildSchema(input: unknown, pointer: string): NonNullable<Shape["schema"]> {
  const { text, errors } = prepareContent("json", input);
  const wrong = errors.length > 0 ? errors : checkSchema(text);
  if (wrong.length > 0) throw invalidContent("The schema cannot be used", wrong, pointer);
  return { text, hash: contentHash(text) };
}

function buildContent(
  shape: Shape,
  of: { readonly namespace: string; readonly name: string; readonly content?: unknown },
  known: Known,
  pointer: string,
): Content {
  const input = of.content;
  // Before it is parsed: parsers are bounded by the quota.
  if (typeof input === "string") guardBytes(utf8Length(input), known, pointer);
  const prepared = prepareContent(shape.format, input);
  const { text, errors } = prepared;
  const told = (all: readonly ContentError[]): readonly ContentError[] =>
    shape.secret ? all.slice(0, 1).map(withoutWords) : all;
  if (errors.length > 0)
    throw invalidContent(`The content is not valid ${shape.format}`, told(errors), pointer);
  const bytes = utf8Length(text);
  guardBytes(bytes, known, pointer);
  if (shape.schema !== null) {
    const broken = validateAgainst(shape.schema.text, prepared.value);
    if (broken.length > 0)
      throw invalidContent("The content does not fit the config's schema", told(broken), pointer);
  }
  return shape.secret
    ? sealed(shape, of, known, { text, bytes, pointer })
    : { text, hash: contentHash(text), bytes };
}

/** Pointers and reasons name what stands there, and errors end up in the logs of whoever asked. */
function withoutWords({ line, column }: ContentError): ContentError {
  return {
    pointer: "",
    detail: "What is wrong is not told of a secret",
    ...(line !== undefined && { line }),
    ...(column !== undefined && { column }),
  };
}

function sealed(
  shape: Shape,
  { namespace, name }: { readonly namespace: string; readonly name: string },
  { secrets, tenant }: Known,
  plain: { readonly text: string; readonly bytes: number; readonly pointer: string },
): Content {
  const { text, bytes, pointer } = plain;
  if (bytes > secretBytesMax)
    throw new Problem("body-too-large", `Keep secrets within ${secretBytesMax} bytes`, {
      errors: [{ pointer, detail: `Has ${bytes} bytes` }],
    });
  const place = { tenant, namespace, name, version: shape.latestVersion + 1 };
  const hash = secrets.hash(place, text);
  return { text: secrets.seal(place, text), hash, bytes, secret: { version: place.version } };
}

function guardBytes(bytes: number, known: Known, pointer: string): void {
  if (bytes > known.contentBytesMax)
    throw new Problem(
      "body-too-large",
      `Keep the content within ${known.contentBytesMax} bytes: it has ${bytes}`,
      { errors: [{ pointer, detail: `Has ${bytes} bytes` }] },
    );
}

function invalidContent(detail: string, errors: readonly ContentError[], pointer: string): Problem {
  const places: ProblemDetailError[] = errors.map((error) => ({
    pointer: pointer + error.pointer,
    detail:
      error.line === undefined
        ? error.detail
        : `${error.detail} (line ${error.line}, column ${error.column})`,
  }));
  const first = places[0];
  return new Problem(
    "invalid-content",
    first === undefined ? detail : `${detail}: ${first.detail}`,
    {
      errors: places,
    },
  );
}

function invalidAt(errors: readonly ProblemDetailError[], pointer: string): Problem {
  const places = errors.map((error) => ({ ...error, pointer: pointer + error.pointer }));
  const first = places[0] as ProblemDetailError;
  return invalid(`${first.pointer}: ${first.detail}`, places);
}
