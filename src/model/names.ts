/**
 * The grammar of everything that has a name. Names become parts of row keys, URLs and file names, so they hold neither
 * slashes nor capitals, and they never begin or end with a sign. Each check gives null, or one sentence that says what
 * is allowed.
 */

const namePattern = /^[a-z0-9](?:[a-z0-9._-]{0,126}[a-z0-9])?$/;
const tenantPattern = /^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$/;
const keyIdPattern = /^[A-Za-z0-9]{1,64}$/;
const labelNamePattern = /^[A-Za-z0-9_](?:[A-Za-z0-9_./-]{0,62}[A-Za-z0-9_])?$/;
const idempotencyPattern = /^[\x21-\x7e]{1,255}$/;

/** The directory's own tenant: outside the grammar, so that nobody can create it. */
export const systemTenant = "_system";

export const labelsMax = 64;
export const labelValueLengthMax = 1_024;
export const tagsMax = 64;

export function isName(name: string): boolean {
  return namePattern.test(name);
}

export function isTenantName(name: string): boolean {
  return tenantPattern.test(name);
}

export function isIdempotencyKey(key: string): boolean {
  return idempotencyPattern.test(key);
}

/** A name as an error may show it: shortened, and with nothing in it that could break a line or a terminal. */
export function shown(text: string): string {
  const short = text.length > 64 ? `${text.slice(0, 64)}…` : text;
  return JSON.stringify(short);
}

function lowercaseSentence(kind: string, given: string, length: number, signs: string): string {
  return (
    `Name the ${kind} with 1 to ${length} of a-z, 0-9, ${signs}, ` +
    `beginning and ending with a letter or digit: got ${shown(given)}`
  );
}

export function checkConfigName(name: string): string | null {
  return isName(name) ? null : lowercaseSentence("config", name, 128, `".", "_" and "-"`);
}

export function checkNamespaceName(name: string): string | null {
  return isName(name) ? null : lowercaseSentence("namespace", name, 128, `".", "_" and "-"`);
}

export function checkTenantName(name: string): string | null {
  return isTenantName(name) ? null : lowercaseSentence("tenant", name, 63, `and "-"`);
}

export function checkRuleId(id: string): string | null {
  return isName(id) ? null : lowercaseSentence("rule", id, 128, `".", "_" and "-"`);
}

export function checkKeyId(id: string): string | null {
  return keyIdPattern.test(id)
    ? null
    : `Give the key an id of 1 to 64 letters and digits: got ${shown(id)}`;
}

export function checkIdempotencyKey(key: string): string | null {
  return isIdempotencyKey(key)
    ? null
    : "Give an idempotency key of 1 to 255 printable ASCII characters without spaces";
}

/** Without what JSON escapes: tags are names in replicated rows, which every engine must read alike (see json.ts). */
// oxlint-disable-next-line no-control-regex -- these are what is not allowed
const tagNamePattern = /^[^\u0000-\u001f"\\\ud800-\udfff]{1,128}$/u;

export function checkTagName(name: string): string | null {
  return tagNamePattern.test(name)
    ? null
    : `Name the tag with 1 to 128 characters without quotes, backslashes and control characters: got ${shown(name)}`;
}

export function checkLabelName(name: string): string | null {
  return labelNamePattern.test(name)
    ? null
    : `Name the label with 1 to 64 of A-Z, a-z, 0-9, "_", ".", "/" and "-", ` +
        `beginning and ending with a letter, digit or "_": got ${shown(name)}`;
}

export function checkLabelValue(value: string): string | null {
  return value.length <= labelValueLengthMax
    ? null
    : `Shorten the label's value to ${labelValueLengthMax} characters: it has ${value.length}`;
}

/** All labels of a request. Pointers are relative to the labels. */
export function checkLabels(
  labels: Readonly<Record<string, string>>,
): readonly { readonly pointer: string; readonly detail: string }[] {
  const errors: { pointer: string; detail: string }[] = [];
  const entries = Object.entries(labels);
  if (entries.length > labelsMax)
    return [
      { pointer: "", detail: `Give at most ${labelsMax} labels: there are ${entries.length}` },
    ];
  for (const [name, value] of entries) {
    const detail = checkLabelName(name) ?? checkLabelValue(value);
    if (detail !== null) errors.push({ pointer: `/${escapePointer(name)}`, detail });
  }
  return errors;
}

/** One step of a JSON Pointer (RFC 6901 §3). */
export function escapePointer(step: string): string {
  return step.replaceAll("~", "~0").replaceAll("/", "~1");
}
