// Which examples are listed: their figures, what was searched for, and the order asked for.
import { computed } from "@preact/signals";
import * as api from "./api";
import type { Loaded } from "./cache";
import { select, type Columns } from "./list";
import { filters } from "./state";
import type { Meta } from "./types";

export interface Figures {
  columns: Columns;
  complete: boolean;
  error?: string;
}

/** The figures of a run as far as they are here. */
export function columnsOf(meta: Meta): Figures {
  const columns: Columns = {};
  let complete = true;
  let error: string | undefined;
  const count = Math.ceil(meta.n / meta.values_per_part);
  for (const { name } of meta.figures) {
    const parts = Array.from({ length: count }, (_, i) => api.column(meta.key, name, i));
    error ??= parts.find((p) => p.error)?.error;
    if (parts.some((p) => !p.value)) complete = false;
    else columns[name] = joined(parts.map((p) => p.value!));
  }
  return { columns, complete, error };
}

const made = new WeakMap<Float32Array, Float32Array>();

function joined(parts: Float32Array[]): Float32Array {
  if (parts.length === 1) return parts[0];
  let all = made.get(parts[0]);
  if (all) return all;
  all = new Float32Array(parts.reduce((n, p) => n + p.length, 0));
  parts.reduce((at, p) => (all!.set(p, at), at + p.length), 0);
  made.set(parts[0], all);
  return all;
}

interface Found {
  /** One bit an example; null where all are. */
  bits: Uint8Array | null;
  waiting: boolean;
  error?: string;
}

/** Which examples contain the text; a static page looks through what the list shows. */
function found(meta: Meta, q: string): Found {
  if (q === "") return { bits: null, waiting: false };
  if (!api.bundled()) {
    const { value, error } = api.search(meta.key, q);
    return { bits: value ?? null, waiting: !value && !error, error };
  }
  const all: Found = { bits: new Uint8Array(Math.ceil(meta.n / 8)), waiting: false };
  const sought = q.toLowerCase();
  for (let part = 0; part * meta.rows_per_part < meta.n; part++) {
    const rows = api.rows(meta.key, part);
    all.error ??= rows.error;
    if (!rows.value && !rows.error) all.waiting = true;
    rows.value?.text.forEach((text, i) => {
      const row = part * meta.rows_per_part + i;
      if (text.toLowerCase().includes(sought)) all.bits![row >> 3] |= 1 << (row & 7);
    });
  }
  return all;
}

export interface Listed {
  run: string;
  rows: Uint32Array;
  waiting: boolean;
  error?: string;
}

const NONE = new Uint32Array(0);
let last: Listed = { run: "", rows: NONE, waiting: true };
let lastOf: Meta | undefined;

/** The rows that are listed, in their order; while a search is on its way, those that were listed before. */
export const listed = computed<Listed>(() => {
  const asked = filters.value;
  const meta = api.meta(asked.run).value;
  if (!meta) return { run: asked.run, rows: NONE, waiting: true };
  const { columns, complete, error } = columnsOf(meta);
  const text = found(meta, asked.q);
  if (text.bits === null && asked.q !== "") {
    const rows = text.waiting && lastOf === meta ? last.rows : NONE;
    return { run: asked.run, rows, waiting: text.waiting, error: text.error };
  }
  const rows = select(meta.n, columns, meta.figures, asked, text.bits);
  lastOf = meta;
  last = { run: asked.run, rows, waiting: text.waiting || !complete, error: error ?? text.error };
  return last;
});

/** Return the name of the example at a place of the list, as far as it is here. */
export function idOf(meta: Meta, row: number): Loaded<string> {
  const { value, error } = api.rows(meta.key, Math.floor(row / meta.rows_per_part));
  return { value: value?.id[row % meta.rows_per_part], error };
}
