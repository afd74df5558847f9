/** The allowed word that was probably meant, for errors about words that are not allowed. */

/** Optimal string alignment: insertions, deletions, replacements and swaps of neighbours. */
function distance(a: string, b: string): number {
  let before: number[] = [];
  let above = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i += 1) {
    const row = [i];
    for (let j = 1; j <= b.length; j += 1) {
      const replaced = (above[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1);
      let least = Math.min(replaced, (above[j] as number) + 1, (row[j - 1] as number) + 1);
      if (i > 1 && j > 1 && a[i - 1] === b[j - 2] && a[i - 2] === b[j - 1])
        least = Math.min(least, (before[j - 2] as number) + 1);
      row.push(least);
    }
    before = above;
    above = row;
  }
  return above[b.length] as number;
}

/** Null when nothing is near: of a short word most of the letters must be right. */
export function nearest(word: string, allowed: readonly string[]): string | null {
  let best: string | null = null;
  let bestDistance = Math.max(word.length > 3 ? 2 : 1, Math.floor(word.length / 3)) + 1;
  for (const one of allowed) {
    const beginsSo = word.length >= 2 && one.startsWith(word);
    const d = beginsSo ? 1 : distance(word, one);
    if (d < bestDistance) [best, bestDistance] = [one, d];
  }
  return best;
}

/** `; did you mean x?`, or what is allowed. */
export function suggestion(word: string, allowed: readonly string[]): string {
  const near = nearest(word, allowed);
  return near === null ? `allowed are ${allowed.join(", ")}` : `did you mean ${near}?`;
}
