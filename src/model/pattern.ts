/**
 * Regular expressions of JSON Schema in linear time. The engines' own backtrack: a short expression of a tenant could
 * stop a node for minutes. Here all ways to match are followed at once (Thompson 1968, as described by Russ Cox,
 * https://swtch.com/~rsc/regexp/regexp2.html): at most one step per character and instruction. Only whether a text
 * matches is asked, so there are no captures, and lazy is the same as greedy.
 *
 * The syntax is that of ECMAScript with the `u` flag, without looking around and without back references. What one
 * character may be (classes, escapes, properties) is left to the engine, one character at a time.
 */

export const patternLengthMax = 512;
const instructionsMax = 5_000;
/** Stamps of instructions that are made in the time of a step. */
const stampsPerStep = 64;

type Test = (point: number, text: string) => boolean;

type Node =
  | { readonly type: "one"; readonly test: Test }
  | { readonly type: "assert"; readonly kind: Assertion }
  | { readonly type: "all"; readonly nodes: readonly Node[] }
  | { readonly type: "any"; readonly nodes: readonly Node[] }
  | { readonly type: "repeat"; readonly node: Node; readonly min: number; readonly max: number };

type Assertion = "^" | "$" | "b" | "B";

type Instruction =
  | { readonly op: "one"; readonly test: Test }
  | { readonly op: "assert"; readonly kind: Assertion }
  | { readonly op: "split"; x: number; y: number }
  | { readonly op: "jump"; x: number }
  | { readonly op: "match" };

/** Counts the steps of a match, and throws when they are too many. */
export type StepCounter = (steps: number) => void;

export class Pattern {
  readonly #program: readonly Instruction[];

  private constructor(program: readonly Instruction[]) {
    this.#program = program;
  }

  /** The pattern, or a sentence that says what is not allowed. */
  static compile(source: string): Pattern | string {
    if (source.length > patternLengthMax)
      return `Shorten the pattern to ${patternLengthMax} characters: it has ${source.length}`;
    try {
      // Holds the syntax, so that the parser below may take it for granted.
      void new RegExp(source, "u");
    } catch {
      return "Give a regular expression of ECMAScript with the u flag: this is none";
    }
    const parser = new Parser(source);
    const node = parser.parse();
    if (parser.refusal !== null) return parser.refusal;
    const program: Instruction[] = [];
    if (!emit(node, program)) return "Write the pattern with fewer repetitions: it grows too large";
    program.push({ op: "match" });
    return new Pattern(program);
  }

  /** How many instructions it has. */
  get size(): number {
    return this.#program.length;
  }

  test(text: string, count: StepCounter): boolean {
    const program = this.#program;
    let steps = 1 + program.length / stampsPerStep;
    // Which instructions wait at this character: a stamp per instruction keeps each once.
    const stamps = new Int32Array(program.length).fill(-1);
    let current: number[] = [];
    let next: number[] = [];
    const stack: number[] = [];
    let hasMatched = false;
    const follow = (start: number, at: number, list: number[], before: number, after: number) => {
      stack.push(start);
      for (let i = stack.pop(); i !== undefined; i = stack.pop()) {
        if (stamps[i] === at) continue;
        stamps[i] = at;
        steps++;
        const instruction = program[i] as Instruction;
        switch (instruction.op) {
          case "one":
            list.push(i);
            break;
          case "assert":
            if (holds(instruction.kind, before, after)) stack.push(i + 1);
            break;
          case "split":
            stack.push(instruction.x, instruction.y);
            break;
          case "jump":
            stack.push(instruction.x);
            break;
          case "match":
            hasMatched = true;
            break;
        }
      }
    };
    let before = -1;
    for (let at = 0; ;) {
      const point = at < text.length ? (text.codePointAt(at) as number) : -1;
      // A match may begin anywhere: an anchor is an instruction like others.
      follow(0, at, current, before, point);
      count(steps);
      if (hasMatched || point < 0) return hasMatched;
      steps = 1;
      const width = point > 0xffff ? 2 : 1;
      const character = text.slice(at, at + width);
      at += width;
      const following = at < text.length ? (text.codePointAt(at) as number) : -1;
      for (const i of current) {
        const instruction = program[i] as Extract<Instruction, { op: "one" }>;
        if (instruction.test(point, character)) follow(i + 1, at, next, point, following);
      }
      if (hasMatched) return true;
      before = point;
      [current, next] = [next, current];
      next.length = 0;
    }
  }
}

function isWord(point: number): boolean {
  return (
    (point >= 0x30 && point <= 0x39) ||
    (point >= 0x41 && point <= 0x5a) ||
    (point >= 0x61 && point <= 0x7a) ||
    point === 0x5f
  );
}

/** -1 stands for the ends of the text. */
function holds(kind: Assertion, before: number, after: number): boolean {
  switch (kind) {
    case "^":
      return before < 0;
    case "$":
      return after < 0;
    case "b":
      return isWord(before) !== isWord(after);
    case "B":
      return isWord(before) === isWord(after);
  }
}

// --- from text to a tree ---------------------------------------------------------------------------------------------

class Parser {
  refusal: string | null = null;
  readonly #source: string;
  readonly #tests = new Map<string, Test>();
  #at = 0;

  constructor(source: string) {
    this.#source = source;
  }

  parse(): Node {
    const branches: Node[] = [this.#branch()];
    while (this.#source[this.#at] === "|") {
      this.#at++;
      branches.push(this.#branch());
    }
    return branches.length === 1 ? (branches[0] as Node) : { type: "any", nodes: branches };
  }

  #branch(): Node {
    const nodes: Node[] = [];
    while (this.#at < this.#source.length && !"|)".includes(this.#source[this.#at] as string))
      nodes.push(this.#repeated(this.#one()));
    return nodes.length === 1 ? (nodes[0] as Node) : { type: "all", nodes };
  }

  #repeated(node: Node): Node {
    const match = /^(?:[*+?]|\{(\d+)(,(\d*))?\})/.exec(this.#source.slice(this.#at));
    if (match === null) return node;
    this.#at += match[0].length;
    if (this.#source[this.#at] === "?") this.#at++;
    if (match[0] === "*") return { type: "repeat", node, min: 0, max: Number.POSITIVE_INFINITY };
    if (match[0] === "+") return { type: "repeat", node, min: 1, max: Number.POSITIVE_INFINITY };
    if (match[0] === "?") return { type: "repeat", node, min: 0, max: 1 };
    const min = Number(match[1]);
    const max =
      match[2] === undefined ? min : match[3] === "" ? Number.POSITIVE_INFINITY : Number(match[3]);
    return { type: "repeat", node, min, max };
  }

  #one(): Node {
    const source = this.#source;
    const at = this.#at;
    const unit = source[at] as string;
    if (unit === "(") return this.#group();
    if (unit === "^" || unit === "$") {
      this.#at++;
      return { type: "assert", kind: unit };
    }
    if (unit === "\\" && (source[at + 1] === "b" || source[at + 1] === "B")) {
      this.#at += 2;
      return { type: "assert", kind: source[at + 1] as "b" | "B" };
    }
    if (unit === "\\" && /[1-9k]/.test(source[at + 1] ?? "")) {
      this.refusal ??= "Write the pattern without back references";
      this.#at += 2;
      return { type: "all", nodes: [] };
    }
    this.#at = unit === "[" ? classEnd(source, at) : atomEnd(source, at);
    return { type: "one", test: this.#test(source.slice(at, this.#at)) };
  }

  #group(): Node {
    const opening = /^\((?:\?:|\?<[^=!>][^>]*>|(?!\?))/.exec(this.#source.slice(this.#at));
    if (opening === null) this.refusal ??= "Write the pattern without looking ahead or behind";
    this.#at += opening?.[0].length ?? 3;
    const node = this.parse();
    this.#at++;
    return node;
  }

  #test(atom: string): Test {
    const known = this.#tests.get(atom);
    if (known !== undefined) return known;
    const test = testOf(atom);
    this.#tests.set(atom, test);
    return test;
  }
}

function classEnd(source: string, start: number): number {
  for (let i = start + 1; i < source.length; i++) {
    if (source[i] === "\\") i++;
    else if (source[i] === "]") return i + 1;
  }
  return source.length;
}

const escapePattern =
  /^\\(?:[pP]\{[^}]*\}|u\{[0-9a-fA-F]+\}|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|c[A-Za-z]|[\s\S])/u;

function atomEnd(source: string, at: number): number {
  if (source[at] !== "\\") return at + ((source.codePointAt(at) as number) > 0xffff ? 2 : 1);
  return at + (escapePattern.exec(source.slice(at))?.[0].length ?? 1);
}

function testOf(atom: string): Test {
  if (!/[\\[.]/.test(atom)) {
    const own = atom.codePointAt(0);
    return (point) => point === own;
  }
  const expression = new RegExp(`^${atom}$`, "u");
  const ascii: boolean[] = Array.from({ length: 128 }, (_, point) =>
    expression.test(String.fromCharCode(point)),
  );
  return (point, text) => ascii[point] ?? expression.test(text);
}

// --- from a tree to instructions -------------------------------------------------------------------------------------------

/** False when the program would be too large: counted repetitions are written out. */
function emit(node: Node, program: Instruction[]): boolean {
  if (program.length > instructionsMax) return false;
  switch (node.type) {
    case "one":
      program.push({ op: "one", test: node.test });
      return true;
    case "assert":
      program.push({ op: "assert", kind: node.kind });
      return true;
    case "all":
      return node.nodes.every((one) => emit(one, program));
    case "any":
      return emitAny(node.nodes, program);
    case "repeat":
      return emitRepeat(node, program);
  }
}

function emitAny(nodes: readonly Node[], program: Instruction[]): boolean {
  const jumps: { op: "jump"; x: number }[] = [];
  for (const [i, node] of nodes.entries()) {
    const split = { op: "split" as const, x: program.length + 1, y: 0 };
    const isLast = i === nodes.length - 1;
    if (!isLast) program.push(split);
    if (!emit(node, program)) return false;
    if (isLast) break;
    const jump = { op: "jump" as const, x: 0 };
    jumps.push(jump);
    program.push(jump);
    split.y = program.length;
  }
  for (const jump of jumps) jump.x = program.length;
  return true;
}

function emitRepeat(
  { node, min, max }: Extract<Node, { type: "repeat" }>,
  program: Instruction[],
): boolean {
  const isEndless = max === Number.POSITIVE_INFINITY;
  if (min > instructionsMax || (!isEndless && max > instructionsMax)) return false;
  for (let i = 0; i < min; i++) if (!emit(node, program)) return false;
  if (isEndless) {
    const split = { op: "split" as const, x: program.length + 1, y: 0 };
    program.push(split);
    if (!emit(node, program)) return false;
    program.push({ op: "jump", x: program.indexOf(split) });
    split.y = program.length;
    return true;
  }
  const splits: { op: "split"; x: number; y: number }[] = [];
  for (let i = min; i < max; i++) {
    const split = { op: "split" as const, x: program.length + 1, y: 0 };
    splits.push(split);
    program.push(split);
    if (!emit(node, program)) return false;
  }
  for (const split of splits) split.y = program.length;
  return true;
}
