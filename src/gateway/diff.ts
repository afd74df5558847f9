/**
 * Differences of two texts line by line, in unified form. The shortest script by Myers' algorithm ("An O(ND) Difference
 * Algorithm and Its Variations", 1986), up to a bound: texts that differ in more are shown as replaced whole.
 */

const contextLines = 3;
/** Work and memory grow with its square. */
const differencesMax = 1_000;

interface Edit {
  readonly kind: " " | "-" | "+";
  readonly line: string;
}

/** Empty when the texts are equal. */
export function unifiedDiff(from: string, to: string, names: readonly [string, string]): string {
  if (from === to) return "";
  const [before, after] = [linesOf(from), linesOf(to)];
  const head = equalLines(before, after, (lines, i) => lines[i]);
  const tail = equalLines(before.slice(head), after.slice(head), (lines, i) => lines.at(-1 - i));
  const first = Math.max(0, head - contextLines);
  const end = before.length - tail;
  const above = before.slice(first, head);
  const below = before.slice(end, end + Math.min(tail, contextLines));
  const [gone, come] = [before.slice(head, end), after.slice(head, after.length - tail)];
  const edits = script(gone, come);
  const hunks =
    edits === null
      ? replaced(first + 1, above, gone, come, below)
      : hunksOf([...above.map(unchanged), ...edits, ...below.map(unchanged)], first + 1);
  return `--- ${names[0]}\n+++ ${names[1]}\n${hunks}`;
}

function unchanged(line: string): Edit {
  return { kind: " ", line };
}

/** All of one in the place of all of the other. */
function replaced(
  firstLine: number,
  above: readonly string[],
  gone: readonly string[],
  come: readonly string[],
  below: readonly string[],
): string {
  const around = above.length + below.length;
  const marked = (mark: string, lines: readonly string[]): string =>
    lines.length === 0 ? "" : `${mark}${lines.join(`\n${mark}`)}\n`;
  return (
    `@@ -${start(firstLine, around + gone.length)} +${start(firstLine, around + come.length)} @@\n` +
    marked(" ", above) +
    marked("-", gone) +
    marked("+", come) +
    marked(" ", below)
  );
}

/** How many lines are equal from one end on. */
function equalLines(
  a: readonly string[],
  b: readonly string[],
  at: (lines: readonly string[], i: number) => string | undefined,
): number {
  const most = Math.min(a.length, b.length);
  let count = 0;
  while (count < most && at(a, count) === at(b, count)) count++;
  return count;
}

/** `firstLine`: of both texts, from 1. */
function hunksOf(edits: readonly Edit[], firstLine: number): string {
  const hunks: string[] = [];
  let fromLine = firstLine;
  let toLine = firstLine;
  let i = 0;
  while (i < edits.length) {
    if (edits[i]?.kind === " ") {
      fromLine++;
      toLine++;
      i++;
      continue;
    }
    const before = Math.min(contextLines, i);
    let end = i;
    // A hunk goes on while the next change is so near that the lines around both would touch.
    for (let j = i; j < edits.length && j - end <= 2 * contextLines; j++)
      if (edits[j]?.kind !== " ") end = j;
    const part = edits.slice(i - before, Math.min(edits.length, end + 1 + contextLines));
    const fromCount = part.filter((edit) => edit.kind !== "+").length;
    const toCount = part.filter((edit) => edit.kind !== "-").length;
    hunks.push(
      `@@ -${start(fromLine - before, fromCount)} +${start(toLine - before, toCount)} @@\n` +
        part.map((edit) => `${edit.kind}${edit.line}\n`).join(""),
    );
    for (const edit of edits.slice(i, end + 1)) {
      if (edit.kind !== "+") fromLine++;
      if (edit.kind !== "-") toLine++;
    }
    i = end + 1;
  }
  return hunks.join("");
}

function start(line: number, count: number): string {
  return `${count === 0 ? line - 1 : line},${count}`;
}

function linesOf(text: string): readonly string[] {
  if (text === "") return [];
  return (text.endsWith("\n") ? text.slice(0, -1) : text).split("\n");
}

/** Null when finding the shortest would take too long. */
function script(from: readonly string[], to: readonly string[]): readonly Edit[] | null {
  const trace: Int32Array[] = [];
  const offset = differencesMax + 1;
  const furthest = new Int32Array(2 * offset + 1);
  for (let d = 0; d <= differencesMax; d++) {
    for (let k = -d; k <= d; k += 2) {
      const down =
        k === -d ||
        (k !== d && (furthest[offset + k - 1] as number) < (furthest[offset + k + 1] as number));
      let x = down
        ? (furthest[offset + k + 1] as number)
        : (furthest[offset + k - 1] as number) + 1;
      while (x < from.length && x - k < to.length && from[x] === to[x - k]) x++;
      furthest[offset + k] = x;
      if (x >= from.length && x - k >= to.length) {
        trace.push(furthest.slice(offset - d - 1, offset + d + 2));
        return walkBack(trace, from, to);
      }
    }
    trace.push(furthest.slice(offset - d - 1, offset + d + 2));
  }
  return null;
}

/** From the end to the beginning through the furthest points that each number of differences reached. */
function walkBack(
  trace: readonly Int32Array[],
  from: readonly string[],
  to: readonly string[],
): readonly Edit[] {
  const edits: Edit[] = [];
  let x = from.length;
  let y = to.length;
  for (let d = trace.length - 1; d > 0; d--) {
    const before = trace[d - 1] as Int32Array;
    const at = (k: number): number => before[k + d] ?? -1;
    const k = x - y;
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const fromX = down ? at(k + 1) : at(k - 1);
    const fromY = fromX - (down ? k + 1 : k - 1);
    const middleX = down ? fromX : fromX + 1;
    for (; x > middleX; x--, y--) edits.push({ kind: " ", line: from[x - 1] as string });
    if (down) edits.push({ kind: "+", line: to[fromY] as string });
    else edits.push({ kind: "-", line: from[fromX] as string });
    x = fromX;
    y = fromY;
  }
  for (; x > 0; x--) edits.push({ kind: " ", line: from[x - 1] as string });
  return edits.reverse();
}
