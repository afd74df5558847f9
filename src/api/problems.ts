/**
 * Every problem a client can meet, once: code → status, title, and whether repeating the same request may help. The
 * gateway renders them as RFC 9457 problem+json; the SDK rebuilds the same class from it.
 */

export interface ProblemKind {
  readonly status: number;
  readonly title: string;
  readonly retryable: boolean;
}

export const problems = {
  invalid: { status: 400, title: "Request is not valid", retryable: false },
  "malformed-json": { status: 400, title: "Body is not valid JSON", retryable: false },
  "invalid-content": {
    status: 422,
    title: "Content does not fit its format or schema",
    retryable: false,
  },
  "invalid-name": { status: 400, title: "Name is outside the grammar", retryable: false },
  unauthorized: { status: 401, title: "No valid key was given", retryable: false },
  forbidden: { status: 403, title: "This key may not do that", retryable: false },
  "not-found": { status: 404, title: "Not found", retryable: false },
  "method-not-allowed": { status: 405, title: "Method is not allowed here", retryable: false },
  "already-exists": { status: 409, title: "Already exists", retryable: false },
  conflict: { status: 409, title: "Conflicts with the present state", retryable: false },
  "in-use": { status: 409, title: "Still in use", retryable: false },
  protected: { status: 409, title: "Namespace is protected", retryable: false },
  "cursor-compacted": {
    status: 410,
    title: "History after the cursor is not kept",
    retryable: false,
  },
  "tenant-deleted": { status: 410, title: "Tenant is deleted", retryable: false },
  "precondition-failed": { status: 412, title: "Precondition failed", retryable: false },
  "body-too-large": { status: 413, title: "Body is larger than allowed", retryable: false },
  "unsupported-media-type": {
    status: 415,
    title: "Content-Type is not supported",
    retryable: false,
  },
  "idempotency-mismatch": {
    status: 422,
    title: "Idempotency-Key was used with another request",
    retryable: false,
  },
  "quota-exceeded": { status: 429, title: "Quota is used up", retryable: false },
  "too-many-requests": { status: 429, title: "Too many requests", retryable: true },
  "secrets-unavailable": {
    status: 503,
    title: "Secrets cannot be sealed or opened here",
    retryable: false,
  },
  "issuer-unavailable": {
    status: 503,
    title: "Keys of the token's issuer cannot be read",
    retryable: true,
  },
  overloaded: { status: 503, title: "Node has too much to do", retryable: true },
  "no-quorum": { status: 503, title: "Too few replicas answer", retryable: true },
  "not-caught-up": { status: 503, title: "Revision is not here yet", retryable: true },
  "not-ready": { status: 503, title: "Node is starting or stopping", retryable: true },
  "disk-full": { status: 503, title: "Disk is nearly full", retryable: true },
  restoring: { status: 503, title: "Tenant is being restored", retryable: true },
  "replica-halted": { status: 503, title: "Replica was stopped by a fault", retryable: true },
  "outcome-unknown": { status: 504, title: "Outcome is not known", retryable: true },
  internal: { status: 500, title: "Internal error", retryable: false },
} as const satisfies Record<string, ProblemKind>;

export type ProblemCode = keyof typeof problems;

/** A place in the request and what is wrong there. `pointer` is a JSON Pointer (RFC 6901). */
export interface ProblemDetailError {
  readonly pointer: string;
  readonly detail: string;
}

/** An expected failure, told to the caller as it is. Anything else that is thrown becomes `internal`. */
export class Problem extends Error {
  override readonly name = "Problem";
  readonly code: ProblemCode;
  readonly errors: readonly ProblemDetailError[];
  /** Seconds after which repeating makes sense; null where the table says it never does. */
  readonly retryAfter: number | null;

  constructor(
    code: ProblemCode,
    detail: string,
    options: { errors?: readonly ProblemDetailError[]; retryAfter?: number; cause?: unknown } = {},
  ) {
    super(detail, options.cause === undefined ? undefined : { cause: options.cause });
    this.code = code;
    this.errors = options.errors ?? [];
    this.retryAfter = options.retryAfter ?? (problems[code].retryable ? 1 : null);
  }

  get status(): number {
    return problems[this.code].status;
  }
}

export function outcomeUnknown(): Problem {
  return new Problem(
    "outcome-unknown",
    "The change may or may not have been made: repeat it with the same Idempotency-Key to find out",
  );
}

/**
 * The tenant was here when the question came, and is not any more: it was moved to other nodes, or purged. Nothing was
 * done; `locate` tells where to ask now.
 */
export class NotHere extends Problem {
  constructor(tenant: string, node = "this node") {
    super("not-ready", `Tenant "${tenant}" has just left ${node}: repeat the request`);
  }
}

/** The body of a problem+json answer. */
export interface ProblemBody {
  readonly type: string;
  readonly title: string;
  readonly status: number;
  readonly detail: string;
  readonly code: ProblemCode;
  readonly requestId: string;
  readonly errors?: readonly ProblemDetailError[];
}
