// Keys that work anywhere but in fields and grids.
import { against, pin } from "./actions";
import * as api from "./api";
import { idOf, listed } from "./examples";
import { sheet } from "./panels/frame";
import { helping } from "./panels/help";
import type { Side } from "./side";
import { go, open, state, UNASKED } from "./state";

let followed: Side | undefined;
/** The row gone to by key while its example is still on its way, so that keys can be pressed quickly. */
let ahead: number | null = null;

/** Say which example is shown; undefined while one is loading. */
export function follow(now: Side | undefined): void {
  followed = now;
  if (shown()) ahead = null;
}

/** Return the example that keys act on: never the one before, while another is on its way. */
function shown(): Side | undefined {
  const { run, ex } = state.value;
  return followed?.tokens.example_id === ex && followed.place.run === run ? followed : undefined;
}

function example(step: number): void {
  const meta = api.meta(state.value.run).value;
  const row = ahead ?? shown()?.row;
  if (!meta || row === undefined) return;
  const { rows } = listed.value;
  const at = rows.indexOf(row);
  const next = at < 0 ? 0 : at + step;
  const id = next >= 0 && next < rows.length ? idOf(meta, rows[next]) : undefined;
  if (id === undefined) return;
  ahead = rows[next];
  open(id);
}

function token(step: number): void {
  const side = shown();
  if (!side) return;
  const pos = side.pos + step;
  if (pos >= 0 && pos < side.tokens.n_tokens) go({ pos, ...UNASKED });
}

function along(values: number[], now: number | null, step: number): number | null {
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
  const next = along(layers, state.value.layer ?? side.shown.layer, step);
  if (next !== null) go({ layer: next });
}

function head(step: number): void {
  const side = shown();
  if (!side?.meta.attention) return;
  const next = along(side.meta.attention.heads, side.shown.head, step);
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
