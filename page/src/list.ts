// The list of examples: filtering, sorting, and saying in words what is filtered.
import type { Figure } from "./types";
import type { State } from "./state";
import { number } from "./format";

export type Columns = Record<string, Float32Array>;
type Filters = Pick<State, "only" | "ranges" | "kinds" | "q" | "sort">;

/** Return the rows that pass, in the order asked for. Rows without the figure sorted by come last. */
export function select(
  n: number,
  columns: Columns,
  figures: Figure[],
  filters: Filters,
  found: Uint8Array | null,
): Uint32Array {
  const rows = new Uint32Array(n);
  const correct = columns["correct"];
  const wanted = filters.only === "all" ? null : filters.only === "right" ? 1 : 0;
  const ranges = Object.entries(filters.ranges)
    .filter(([name]) => columns[name])
    .map(([name, [low, high]]) => ({ values: columns[name], low: low ?? -Infinity, high: high ?? Infinity }));
  const kinds = Object.entries(filters.kinds).flatMap(([name, kind]) => {
    const code = figures.find((f) => f.name === name)?.categories?.indexOf(kind);
    return code === undefined || !columns[name] ? [] : [{ values: columns[name], code }];
  });
  let count = 0;
  for (let row = 0; row < n; row++) {
    if (wanted !== null && (!correct || correct[row] !== wanted)) continue;
    if (found && !(found[row >> 3] & (1 << (row & 7)))) continue;
    if (ranges.some(({ values, low, high }) => !(values[row] >= low && values[row] <= high))) continue;
    if (kinds.some(({ values, code }) => values[row] !== code)) continue;
    rows[count++] = row;
  }
  return order(rows.subarray(0, count), columns, filters.sort);
}

function order(rows: Uint32Array, columns: Columns, sort: string): Uint32Array {
  const down = sort.startsWith("-");
  const values = columns[down ? sort.slice(1) : sort];
  if (!values) return rows;
  const keys = new Float64Array(rows.length);
  for (let i = 0; i < rows.length; i++) {
    const value = values[rows[i]];
    keys[i] = Number.isNaN(value) ? Infinity : down ? -value : value;
  }
  const at = new Uint32Array(rows.length).map((_, i) => i).sort((a, b) => keys[a] - keys[b] || a - b);
  return at.map((i) => rows[i]);
}

/** Say what is filtered: "wrong and entropy ≥ 2.0". */
export function sentence(figures: Figure[], filters: Filters): string {
  const parts: string[] = [];
  if (filters.only !== "all") parts.push(filters.only);
  for (const [name, kind] of Object.entries(filters.kinds)) {
    const figure = figures.find((f) => f.name === name);
    if (figure) parts.push(`${figure.label} is ${kind}`);
  }
  for (const [name, [low, high]] of Object.entries(filters.ranges)) {
    const figure = figures.find((f) => f.name === name);
    if (!figure) continue;
    const label = figure.label.split(",")[0];
    const unit = figure.unit ? ` ${figure.unit}` : "";
    if (low !== null && high !== null) parts.push(`${label} from ${number(low)} to ${number(high)}${unit}`);
    else if (low !== null) parts.push(`${label} ≥ ${number(low)}${unit}`);
    else if (high !== null) parts.push(`${label} ≤ ${number(high)}${unit}`);
  }
  if (filters.q) parts.push(`containing “${filters.q}”`);
  return parts.join(" and ");
}

export interface Bins {
  low: number;
  high: number;
  right: Uint32Array;
  wrong: Uint32Array;
  most: number;
}

/** Count a figure in bins, the wrong ones apart. */
export function bins(values: Float32Array, correct: Float32Array | undefined, figure: Figure, count: number): Bins {
  const low = figure.min;
  const high = figure.max > figure.min ? figure.max : figure.min + 1;
  const right = new Uint32Array(count);
  const wrong = new Uint32Array(count);
  for (let row = 0; row < values.length; row++) {
    if (Number.isNaN(values[row])) continue;
    const at = Math.min(count - 1, Math.floor(((values[row] - low) / (high - low)) * count));
    (correct && correct[row] === 0 ? wrong : right)[at]++;
  }
  let most = 1;
  for (let i = 0; i < count; i++) most = Math.max(most, right[i] + wrong[i]);
  return { low, high, right, wrong, most };
}

/** Return the example to begin with: the closest of the wrong ones, where the truth was nearly said. */
export function telling(n: number, columns: Columns): number {
  const correct = columns["correct"];
  const near = columns["true_prob"] ?? columns["margin"];
  if (!correct || !near) return 0;
  const sign = columns["true_prob"] ? 1 : -1;
  let best = -1;
  for (let row = 0; row < n; row++) {
    if (correct[row] !== 0 || Number.isNaN(near[row])) continue;
    if (best < 0 || sign * near[row] > sign * near[best]) best = row;
  }
  return Math.max(best, 0);
}

/** Return an example that turned out the other way and is otherwise as like as can be; −1 where there is none. */
export function counterpart(row: number, n: number, columns: Columns, figures: Figure[]): number {
  const correct = columns["correct"];
  if (!correct || Number.isNaN(correct[row])) return -1;
  const kinds = figures.filter((f) => f.categories && columns[f.name]).map((f) => columns[f.name]);
  const lengths = columns["n_tokens"];
  const entropy = columns["entropy"];
  let best = -1;
  let least = Infinity;
  for (let other = 0; other < n; other++) {
    if (other === row || correct[other] !== 1 - correct[row]) continue;
    let distance = kinds.reduce((sum, kind) => sum + (kind[other] === kind[row] ? 0 : 1000), 0);
    if (lengths) distance += Math.abs(lengths[other] - lengths[row]);
    if (entropy) distance += Math.abs(entropy[other] - entropy[row]) / 10;
    if (distance < least) [least, best] = [distance, other];
  }
  return best;
}
