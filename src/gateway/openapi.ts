/**
 * OpenAPI 3.1 from the route table. Schemas that carry an `$id` become components; what is said of a route here is what
 * the gateway itself goes by, so the document cannot say anything else than what happens.
 */
import type { TSchema } from "@sinclair/typebox";
import { documentedAs, OfrepFailure, ProblemAnswer } from "../api/schemas.ts";
import type { Route } from "./route.ts";

type Json = Record<string, unknown>;

export function openApi(routes: readonly Route[], version: string): Json {
  const components: Json = {};
  const paths: Record<string, Json> = {};
  for (const route of routes) {
    const path = route.path.replace(/:([a-z]+)/g, "{$1}");
    const operations = (paths[path] ??= {});
    operations[route.method.toLowerCase()] = operation(route, components);
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "Conflux",
      version,
      description:
        "Configuration as a serverless service: a Raft group per tenant, watchable, durable, multi-tenant. " +
        "Every answer from a tenant's own state carries Conflux-Revision, its commit counter. What the cluster's directory answers " +
        "(tenants, issuers, nodes) carries none: the revision in its bodies and ETags is the directory's. " +
        "Every problem is RFC 9457 problem+json.",
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    servers: [{ url: "/" }],
    tags: [...new Set(routes.map((route) => route.tag))].map((name) => ({ name })),
    paths,
    components: {
      schemas: components,
      securitySchemes: {
        bearer: { type: "http", scheme: "bearer" },
        apiKey: { type: "apiKey", in: "header", name: "X-API-Key" },
      },
    },
  };
}

/** What else an answer of this status says, and clients may count on. A dry run made nothing that has an address. */
export function headersOf(route: Route, status: number): Readonly<Record<string, string>> {
  const isOfTenant = route.path.startsWith("/v1/tenants/:tenant") && !route.byDirectory;
  return {
    ...(isOfTenant &&
      status < 300 && { "Conflux-Revision": "The tenant's revision that this answer reflects" }),
    // Of many there is not one address.
    ...(status === 201 && route.id !== "createTenants" && { Location: "Where it is from now on" }),
  };
}

function operation(route: Route, components: Json): Json {
  const responses: Json = {};
  for (const [status, { description, schema, media = "application/json" }] of Object.entries(
    route.responses,
  )) {
    const headers = Object.entries(headersOf(route, Number(status)));
    responses[status] = {
      description,
      ...(headers.length > 0 && {
        headers: Object.fromEntries(
          headers.map(([name, what]) => [name, { description: what, schema: { type: "string" } }]),
        ),
      }),
      ...(schema !== undefined && {
        content: { [media]: { schema: schemaOf(schema, components) } },
      }),
    };
  }
  responses["default"] =
    route.errors === "ofrep"
      ? {
          description: "A failure",
          content: { "application/json": { schema: schemaOf(OfrepFailure, components) } },
        }
      : {
          description: "A problem",
          content: { "application/problem+json": { schema: schemaOf(ProblemAnswer, components) } },
        };
  return {
    operationId: route.id,
    summary: route.summary,
    tags: [route.tag],
    security: route.access.scope === "public" ? [] : [{ bearer: [] }, { apiKey: [] }],
    "x-conflux-access": {
      scope: route.access.scope,
      kinds: ["root", ...route.access.kinds],
      limited: route.access.limited,
    },
    ...parametersOf(route, components),
    ...(route.body !== null && {
      requestBody: {
        required: route.bodyRequired,
        content: { "application/json": { schema: schemaOf(route.body, components) } },
      },
    }),
    responses,
  };
}

function parametersOf(route: Route, components: Json): Json {
  const parameters: Json[] = [];
  for (const [, name] of route.path.matchAll(/:([a-z]+)/g))
    parameters.push({ name, in: "path", required: true, schema: { type: "string" } });
  for (const [name, schema] of Object.entries(route.query?.properties ?? {})) {
    const { description, ...rest } = schemaOf(schema, components);
    parameters.push({
      name,
      in: "query",
      ...(description !== undefined && { description }),
      schema: rest,
    });
  }
  if (route.labels)
    parameters.push({
      name: "label.{name}",
      in: "query",
      description: "A label of the client, e.g. label.region=eu; at most 64 of them",
      schema: { type: "string", maxLength: 1_024 },
    });
  const header = (name: string, description: string): void => {
    parameters.push({ name, in: "header", description, schema: { type: "string" } });
  };
  if (route.read !== undefined)
    header("Conflux-Min-Revision", "Wait until this revision is here, else 503 not-caught-up");
  if (route.change)
    header("Idempotency-Key", "A repeat with the same key gives the first answer, once executed");
  if (route.guarded) header("If-Match", "ETag that must still hold, or * for any; else 412");
  if (route.guarded && route.method === "PUT") header("If-None-Match", "*: create only");
  return parameters.length === 0 ? {} : { parameters };
}

/** JSON Schema as it may be served: components by reference, choices of constants as enum. */
function schemaOf(schema: TSchema, components: Json): Json {
  const documented = (schema as { [documentedAs]?: TSchema })[documentedAs];
  if (documented !== undefined) return schemaOf(documented, components);
  const { $id, ...rest } = schema;
  if ($id === undefined) return plain(rest, components);
  if (!Object.hasOwn(components, $id)) {
    // Reserved before it is filled: a schema may contain itself.
    components[$id] = {};
    Object.assign(components[$id] as Json, plain(rest, components));
  }
  return { $ref: `#/components/schemas/${$id}` };
}

function plain(schema: Json, components: Json): Json {
  const choices = schema["anyOf"] as TSchema[] | undefined;
  if (choices !== undefined && choices.every((choice) => typeof choice["const"] === "string")) {
    const { anyOf: _, ...rest } = schema;
    return { ...rest, type: "string", enum: choices.map((choice) => choice["const"] as string) };
  }
  const served: Json = {};
  for (const [keyword, value] of Object.entries(schema)) {
    if (keyword === "properties" || keyword === "patternProperties")
      served[keyword] = Object.fromEntries(
        Object.entries(value as Record<string, TSchema>).map(([name, property]) => [
          name,
          schemaOf(property, components),
        ]),
      );
    else if (keyword === "items" || (keyword === "additionalProperties" && isObject(value)))
      served[keyword] = schemaOf(value as TSchema, components);
    else if (keyword === "anyOf" || keyword === "allOf")
      served[keyword] = (value as TSchema[]).map((one) => schemaOf(one, components));
    else served[keyword] = value;
  }
  return served;
}

function isObject(value: unknown): boolean {
  return typeof value === "object" && value !== null;
}
