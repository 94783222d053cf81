// Where one head looks, as numbers: from the bytes that are drawn, and exactly where there is a server to ask.
import * as api from "./api";
import type { Loaded } from "./cache";
import type { Side } from "./side";
import type { AttentionLayout } from "./types";

/** A head's matrix; of a long text, every cell is the largest of pool × pool values. */
export interface Drawn {
  rows: number;
  cols: number;
  pool: number;
  values: Float32Array;
}

const decoded = new WeakMap<Uint8Array, Float32Array>();

/** Bytes are drawn as 255 · √p. */
function probabilities(bytes: Uint8Array): Float32Array {
  let values = decoded.get(bytes);
  if (!values) {
    values = Float32Array.from(bytes, (byte) => (byte / 255) ** 2);
    decoded.set(bytes, values);
  }
  return values;
}

/** Return the matrix of the head that is shown. */
export function headOf(side: Side): Loaded<Drawn> {
  const { layer, head } = side.shown;
  const layout = side.tokens.attention;
  if (layer === null || head === null || !layout) return { error: "This example has no attention." };
  const axes = side.meta.attention;
  if (!axes?.layers.includes(layer) || !axes.heads.includes(head)) {
    return { error: `${side.meta.run_id} has no attention of layer ${layer}, head ${head}.` };
  }
  const bytes = api.headDrawn(side.place.run, side.row, side.place.choice, layer, head);
  if (!bytes.value) return { error: bytes.error };
  const { pool } = layout;
  const [rows, cols] = [layout.rows, layout.keys].map((n) => Math.ceil(n / pool));
  return { value: { rows, cols, pool, values: probabilities(bytes.value) } };
}

/** Return the row of attention that belongs to the side's position, −1 where none was kept. */
export function queryRow(side: Side): number {
  const layout = side.tokens.attention;
  return layout ? rowAt(layout, side.pos) : -1;
}

function rowAt(layout: AttentionLayout, pos: number): number {
  if (layout.queries !== null) return layout.queries.indexOf(pos);
  return pos >= 0 && pos < layout.rows ? pos : -1;
}

/** Return the token position of a row of the matrix (the first of those that make it). */
export function queryAt(layout: AttentionLayout, row: number): number {
  return layout.queries ? layout.queries[row * layout.pool] : row * layout.pool;
}

/** Return where the shown head looks from the side's position; null where that is not known, or not yet. */
export function lookedAt(side: Side): Float32Array | null {
  const drawn = headOf(side).value;
  const row = queryRow(side);
  if (!drawn || row < 0) return null;
  const { block, keys } = side.tokens.attention!;
  const { layer, head } = side.shown;
  if (api.exact()) {
    const at = Math.floor(row / block);
    const exact = api.headValues(side.place.run, side.row, side.place.choice, layer!, head!, at).value;
    const from = (row - at * block) * keys;
    if (exact) return exact.subarray(from, from + keys);
  }
  return drawn.pool === 1 ? drawn.values.subarray(row * drawn.cols, (row + 1) * drawn.cols) : null;
}

/** For every row and column of one matrix those of another that lie over it; −1 where there is nothing. */
export interface Overlay {
  rows: number[];
  cols: number[];
}

/** Lay two matrices over each other so that token p of `top` lies on token p + shift of `under`. */
export function overlay(top: AttentionLayout, under: AttentionLayout, shift: number): Overlay {
  const rows = Array.from({ length: Math.ceil(top.rows / top.pool) }, (_, r) => {
    const at = rowAt(under, queryAt(top, r) + shift);
    return at < 0 ? -1 : Math.floor(at / under.pool);
  });
  const cols = Array.from({ length: Math.ceil(top.keys / top.pool) }, (_, c) => {
    const at = c * top.pool + shift;
    return at < 0 || at >= under.keys ? -1 : Math.floor(at / under.pool);
  });
  return { rows, cols };
}

interface Differences {
  axes: string[];
  shift: number;
  pool: number;
  /** [row][column] of this example's matrix; null where the pinned one has nothing. */
  values: (number | null)[][];
}

/** Return this matrix minus the pinned one, the positions looked at laid over each other. */
export function attentionDifferences(first: Side, second: Side): Differences | null {
  const [a, b] = [headOf(first).value, headOf(second).value];
  if (!a || !b) return null;
  const shift = first.pos - second.pos;
  const under = overlay(second.tokens.attention!, first.tokens.attention!, shift);
  const values = under.rows.map((row, r) =>
    under.cols.map((col, c) => (row < 0 || col < 0 ? null : b.values[r * b.cols + c] - a.values[row * a.cols + col])),
  );
  return { axes: ["query", "key"], shift, pool: b.pool, values };
}
