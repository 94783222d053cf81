// Keys that work anywhere but in fields and grids.
import { against, pin } from "./actions";
import * as api from "./api";
import { when } from "./cache";
import { idOf, listed } from "./examples";
import { sheet } from "./panels/frame";
import { helping } from "./panels/help";
import { exampleRow, type Side } from "./side";
import { go, open, state, UNASKED } from "./state";

let followed: Side | undefined;

/** Say which example is shown; undefined while one is loading. */
export function follow(now: Side | undefined): void {
  followed = now;
}

/** Return the example that keys act on: never the one before, while another is on its way. */
function shown(): Side | undefined {
  const { run, ex } = state.value;
  return followed?.tokens.example_id === ex && followed.place.run === run ? followed : undefined;
}

/** Steps through the list that are still to be gone; null while none is. */
let owed: number | null = null;
/** The example that steps led to last: its row is known before it is here. */
let reached = { run: "", ex: "", row: -1 };

/** Go along the list. A key pressed while the list is on its way is followed once it is here. */
function example(step: number): void {
  const begun = owed !== null;
  owed = (owed ?? 0) + step;
  if (begun) return;
  const { run, ex } = state.value;
  const stayed = () => state.value.run === run && state.value.ex === ex;
  void when(() => (stayed() ? along(run, ex, owed!) : null)).then((next) => {
    owed = null;
    if (next === null || !stayed()) return;
    reached = { run, ...next };
    open(next.ex);
  });
}

/** Return the example so many steps on; null where there is none, undefined while that is not known. */
function along(run: string, ex: string, steps: number): { ex: string; row: number } | null | undefined {
  const meta = api.meta(run);
  if (!meta.value) return meta.error === undefined ? undefined : null;
  const known = reached.run === run && reached.ex === ex;
  const found = known ? { value: reached } : exampleRow(meta.value, ex);
  if (!found.value) return found.error === undefined ? undefined : null;
  const { rows, waiting, error } = listed.value;
  const at = rows.indexOf(found.value.row);
  if (at < 0 && waiting && error === undefined) return undefined;
  const row = rows[at < 0 ? 0 : Math.min(Math.max(at + steps, 0), rows.length - 1)];
  if (row === undefined || row === found.value.row) return null;
  const id = idOf(meta.value, row);
  if (id.value === undefined) return id.error === undefined ? undefined : null;
  return { ex: id.value, row };
}

function token(step: number): void {
  const side = shown();
  if (!side) return;
  const pos = side.pos + step;
  if (pos >= 0 && pos < side.tokens.n_tokens) go({ pos, ...UNASKED });
}

function neighbour(values: number[], now: number | null, step: number): number | null {
  const at = values.indexOf(now ?? -1) + step;
  return at >= 0 && at < values.length ? values[at] : null;
}

const ACTIONS: Record<string, () => void> = {
  ArrowUp: () => example(-1),
  ArrowDown: () => example(1),
  ArrowLeft: () => token(-1),
  ArrowRight: () => token(1),
  "[": () => layer(-1),
  "]": () => layer(1),
  "{": () => head(-1),
  "}": () => head(1),
  d: () => go({ pos: null, ...UNASKED }),
  p: () => pin(shown()),
  c: compare,
  "?": () => void (helping.value = !helping.value),
  "/": () => document.getElementById("search")?.focus(),
  Escape: () => void (helping.value = false),
};

function layer(step: number): void {
  const side = shown();
  if (!side) return;
  const layers = side.meta.attention?.layers ?? Array.from({ length: side.meta.L }, (_, i) => i);
  const next = neighbour(layers, state.value.layer ?? side.shown.layer, step);
  if (next !== null) go({ layer: next });
}

function head(step: number): void {
  const side = shown();
  if (!side?.meta.attention) return;
  const next = neighbour(side.meta.attention.heads, side.shown.head, step);
  if (next !== null) go({ head: next });
}

function compare(): void {
  const side = shown();
  if (side?.tokens.decision?.correct != null) void against(side.meta, side);
}

export function listen(): void {
  document.addEventListener("keydown", (event) => {
    const target = event.target as HTMLElement;
    if (event.ctrlKey || event.metaKey || event.altKey || sheet.value) return;
    if (target.closest("input, select, textarea, pre") && event.key !== "Escape") return;
    const action = ACTIONS[event.key];
    if (!action) return;
    event.preventDefault();
    action();
  });
}
