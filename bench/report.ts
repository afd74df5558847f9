/** What programs of bench/ write into bench/results: a table that says how it was made, and a plot beside it. */
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";
import path from "node:path";

export interface Quantiles {
  readonly count: number;
  readonly p50: number;
  readonly p99: number;
  readonly max: number;
  /** 101 of them, from the least to the greatest. */
  readonly curve: readonly number[];
}

/** Sorts what it is given. */
export function quantiles(values: number[]): Quantiles {
  values.sort((a, b) => a - b);
  const at = (share: number): number =>
    values[Math.min(values.length - 1, Math.floor(values.length * share))] ?? Number.NaN;
  return {
    count: values.length,
    p50: at(0.5),
    p99: at(0.99),
    max: values.at(-1) ?? Number.NaN,
    curve: Array.from({ length: 101 }, (_, i) => at(i / 100)),
  };
}

export interface Row {
  readonly what: string;
  readonly figure: string;
  /** What the project promises; "" where it promises nothing. */
  readonly wanted: string;
}

export interface Curve {
  readonly name: string;
  /** Milliseconds by share, as `quantiles` gives them. */
  readonly curve: readonly number[];
}

export interface Report {
  /** Of the program in bench/, and of the files. */
  readonly name: string;
  readonly title: string;
  readonly args: readonly string[];
  /** What ran where, after the machine's name. */
  readonly setting: string;
  /** Load average before it began. */
  readonly load: number;
  /** What the figures mean; Markdown. */
  readonly text: string;
  readonly rows: readonly Row[];
  /** Title of the plot and what is in it; without curves there is none. */
  readonly plot: string;
  readonly curves: readonly Curve[];
}

/** Of the sources that ran; where that is not known, nothing. */
function revision(): string {
  try {
    const short = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" });
    return ` of ${short.trim()}`;
  } catch {
    return "";
  }
}

export function printRows(rows: readonly Row[]): void {
  const width = Math.max(...rows.map(({ what }) => what.length)) + 2;
  for (const { what, figure, wanted } of rows)
    console.log(`${what.padEnd(width)}${figure}${wanted === "" ? "" : `   (wanted: ${wanted})`}`);
}

/** Writes `<name>.md`, and `<name>.svg` where there are curves. */
export function writeReport(report: Report): void {
  const { name, title, args, setting, load, text, rows, plot: caption, curves } = report;
  const folder = path.join(import.meta.dirname, "results");
  mkdirSync(folder, { recursive: true });
  const table = rows.map(({ what, figure, wanted }) => `| ${what} | ${figure} | ${wanted} |`);
  const command = ["bun", `bench/${name}.ts`, ...args].join(" ");
  const date = new Date().toISOString().slice(0, 10);
  const machine = `${cpus().length} × ${cpus()[0]?.model}`;
  writeFileSync(
    path.join(folder, `${name}.md`),
    `# ${title}

\`${command}\`${revision()}, ${date}, ${machine}, ${setting}; load average before: ${load.toFixed(1)}.
${text}

| what | measured | wanted |
| --- | --- | --- |
${table.join("\n")}
${curves.length === 0 ? "" : `\n![${caption}](${name}.svg)\n`}`,
  );
  if (curves.length > 0) writeFileSync(path.join(folder, `${name}.svg`), plot(curves));
}

const colours = ["#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a"];

function plot(curves: readonly Curve[]): string {
  const [width, height, left, bottom, top] = [720, 360, 60, 40, 20 + 18 * curves.length];
  const most = Math.max(1, ...curves.flatMap(({ curve }) => curve));
  const x = (share: number): number => left + (share * (width - left - 20)) / 100;
  const y = (value: number): number => height - bottom - (value / most) * (height - bottom - top);
  const lines = curves.map(
    ({ curve }, i) =>
      `<polyline fill="none" stroke="${colours[i]}" stroke-width="2" points="${curve.map((value, share) => `${x(share).toFixed(1)},${y(value).toFixed(1)}`).join(" ")}"/>`,
  );
  const legend = curves.map(
    ({ name }, i) => `<text x="${left}" y="${18 * (i + 1)}" fill="${colours[i]}">${name}</text>`,
  );
  const ticks = [0, 0.25, 0.5, 0.75, 1].flatMap((share) => [
    `<text x="${left - 6}" y="${y(most * share) + 4}" text-anchor="end">${(most * share).toFixed(0)} ms</text>`,
    `<line x1="${left}" x2="${width - 20}" y1="${y(most * share)}" y2="${y(most * share)}" stroke="#d0d7de"/>`,
    `<text x="${x(share * 100)}" y="${height - bottom + 18}" text-anchor="middle">${share * 100} %</text>`,
  ]);
  return `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${height}" font-family="sans-serif" font-size="12">
<rect width="${width}" height="${height}" fill="#fff"/>
${[...ticks, ...lines, ...legend].join("\n")}
</svg>
`;
}
