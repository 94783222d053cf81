// The list of examples: filter, sort, find the odd ones.
import { computed, signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import * as api from "../api";
import { number, word } from "../format";
import { bins, select, sentence, type Columns } from "../list";
import { go, open, state } from "../state";
import type { Figure, Meta } from "../types";
import { Choose } from "./frame";

const ROW = 46;
const BINS = 28;

/** The figures of a run as far as they are here. */
export function columnsOf(meta: Meta): { columns: Columns; complete: boolean; error?: string } {
  const columns: Columns = {};
  let complete = true;
  let error: string | undefined;
  for (const figure of meta.figures) {
    const parts = Array.from({ length: Math.ceil(meta.n / meta.values_per_part) }, (_, i) => api.column(meta.key, figure.name, i));
    error ??= parts.find((p) => p.error)?.error;
    if (parts.some((p) => !p.value)) complete = false;
    else columns[figure.name] = parts.length === 1 ? parts[0].value! : joined(`${meta.key} ${figure.name}`, parts.map((p) => p.value!));
  }
  return { columns, complete, error };
}

const kept = new Map<string, Float32Array>();

function joined(key: string, parts: Float32Array[]): Float32Array {
  const made = kept.get(key);
  if (made) return made;
  const all = new Float32Array(parts.reduce((n, p) => n + p.length, 0));
  parts.reduce((at, p) => (all.set(p, at), at + p.length), 0);
  kept.set(key, all);
  return all;
}

/** Which examples contain the text; a static page looks through what the list shows. */
function found(meta: Meta, q: string, bundle: boolean): { bits: Uint8Array | null; waiting: boolean } {
  if (q === "") return { bits: null, waiting: false };
  if (!bundle) {
    const answer = api.search(meta.key, q);
    return { bits: answer.value ?? null, waiting: !answer.value };
  }
  const bits = new Uint8Array(Math.ceil(meta.n / 8));
  let waiting = false;
  for (let part = 0; part * meta.rows_per_part < meta.n; part++) {
    const rows = api.rows(meta.key, part).value;
    if (!rows) waiting = true;
    rows?.text.forEach((text, i) => {
      const row = part * meta.rows_per_part + i;
      if (text.toLowerCase().includes(q.toLowerCase())) bits[row >> 3] |= 1 << (row & 7);
    });
  }
  return { bits, waiting };
}

export const bundled = signal(false);

/** The rows that are listed, in their order. */
export const listed = computed<{ rows: Uint32Array; waiting: boolean }>(() => {
  const { run, only, ranges, kinds, q, sort } = state.value;
  const meta = api.meta(run).value;
  if (!meta) return { rows: new Uint32Array(0), waiting: true };
  const { columns, complete } = columnsOf(meta);
  const { bits, waiting } = found(meta, q, bundled.value);
  return { rows: select(meta.n, columns, meta.figures, { only, ranges, kinds, q, sort }, bits), waiting: waiting || !complete };
});

/** Return the name of the example at a place of the list, once it is here. */
export function idOf(meta: Meta, row: number): string | undefined {
  return api.rows(meta.key, Math.floor(row / meta.rows_per_part)).value?.id[row % meta.rows_per_part];
}

export function Examples({ meta, row }: { meta: Meta; row: number }) {
  const { only, q, sort, kinds } = state.value;
  const { columns, error } = columnsOf(meta);
  const { rows, waiting } = listed.value;
  const said = sentence(meta.figures, state.value);
  const counted = meta.figures.filter((f) => f.name === "entropy" || f.name === "margin" || (f.name === "true_prob" && f.known));
  const categories = meta.figures.filter((f) => f.categories);
  const sorts = meta.figures.filter((f) => f.name !== "correct" && !f.categories);
  return (
    <nav class="examples" aria-label="examples">
      <header>
        <h2>Examples</h2>
        <span class="count" role="status">
          <b>{rows.length.toLocaleString("en")}</b> of {meta.n.toLocaleString("en")}
        </span>
      </header>
      <div class="filters">
        {columns.correct && <Choose label="which examples" value={only} options={[["all", "all"], ["wrong", "wrong"], ["right", "right"]] as const} onChange={(v) => go({ only: v })} />}
        {categories.map((f) => (
          <label key={f.name}>
            <span class="sr">{f.label}</span>
            <select value={kinds[f.name] ?? ""} onChange={(e) => go({ kinds: without(kinds, f.name, e.currentTarget.value) })}>
              <option value="">any {f.label}</option>
              {f.categories!.map((c) => <option key={c} value={c}>{c}</option>)}
            </select>
          </label>
        ))}
        <input id="search" type="search" placeholder="text contains…" aria-label="text contains" value={q} maxLength={200} onInput={(e) => go({ q: e.currentTarget.value })} />
        <label>
          <span class="sr">sort by</span>
          <select value={sort} onChange={(e) => go({ sort: e.currentTarget.value })}>
            <option value="">in the run's order</option>
            {sorts.flatMap((f) => [<option key={f.name} value={f.name}>{f.label} ↑</option>, <option key={`-${f.name}`} value={`-${f.name}`}>{f.label} ↓</option>])}
          </select>
        </label>
        {counted.slice(0, 3).map((f) => columns[f.name] && <Histogram key={f.name} figure={f} values={columns[f.name]} correct={columns.correct} />)}
      </div>
      {said && (
        <p class="sentence">
          Only {said}. <button class="plain" onClick={() => go({ only: "all", ranges: {}, kinds: {}, q: "" })}>show all</button>
        </p>
      )}
      {error && <p class="empty" role="alert">{error}</p>}
      <List meta={meta} rows={rows} row={row} columns={columns} waiting={waiting} />
    </nav>
  );
}

function without(kinds: Record<string, string>, name: string, kind: string): Record<string, string> {
  const next = { ...kinds, [name]: kind };
  if (kind === "") delete next[name];
  return next;
}

function Histogram({ figure, values, correct }: { figure: Figure; values: Float32Array; correct: Float32Array | undefined }) {
  const svg = useRef<SVGSVGElement>(null);
  const [start, setStart] = useState<number | null>(null);
  const counted = useMemo(() => bins(values, correct, figure, BINS), [values, correct, figure]);
  const [low, high] = state.value.ranges[figure.name] ?? [null, null];
  const span = counted.high - counted.low;
  const place = (v: number) => (100 * (v - counted.low)) / span;
  const valueAt = (event: PointerEvent): number => {
    const box = svg.current!.getBoundingClientRect();
    return counted.low + span * Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
  };
  const set = (a: number | null, b: number | null) => {
    const ranges = { ...state.value.ranges };
    const [from, to] = [a === null || a <= counted.low ? null : a, b === null || b >= counted.high ? null : b];
    if (from === null && to === null) delete ranges[figure.name];
    else ranges[figure.name] = [from, to];
    go({ ranges });
  };
  const rounded = (v: number) => Number(v.toPrecision(3));
  const drag = (event: PointerEvent) => {
    if (start === null) return;
    const now = valueAt(event);
    set(rounded(Math.min(start, now)), rounded(Math.max(start, now)));
  };
  const tall = (n: number) => (n === 0 ? 0 : Math.max(0.6, 26 * Math.sqrt(n / counted.most)));
  const short = figure.label.split(",")[0];
  return (
    <fieldset class="histogram">
      <legend>{short}{figure.unit && ` (${figure.unit})`}</legend>
      <svg
        ref={svg}
        viewBox="0 0 100 28"
        preserveAspectRatio="none"
        aria-hidden="true"
        onPointerDown={(e) => {
          e.currentTarget.setPointerCapture(e.pointerId);
          setStart(valueAt(e));
        }}
        onPointerMove={drag}
        onPointerUp={(e) => {
          if (start !== null && Math.abs(valueAt(e) - start) < span / 100) set(null, null);
          setStart(null);
        }}
      >
        {(low !== null || high !== null) && <rect class="brushed" x={place(low ?? counted.low)} width={Math.max(0.5, place(high ?? counted.high) - place(low ?? counted.low))} y={0} height={28} />}
        {Array.from({ length: BINS }, (_, i) => {
          const all = tall(counted.right[i] + counted.wrong[i]);
          const wrong = counted.wrong[i] === 0 ? 0 : Math.max(2.5, (all * counted.wrong[i]) / (counted.right[i] + counted.wrong[i]));
          const x = (100 * i) / BINS;
          return (
            <g key={i}>
              <rect class="bin" x={x + 0.3} width={100 / BINS - 0.6} y={28 - all} height={all} />
              <rect class="bin-wrong" x={x + 0.3} width={100 / BINS - 0.6} y={28 - wrong} height={wrong} />
            </g>
          );
        })}
      </svg>
      <div class="ends">
        <input type="number" step="any" aria-label={`${short} from`} placeholder={number(counted.low)} value={low ?? ""} onChange={(e) => set(e.currentTarget.value === "" ? null : Number(e.currentTarget.value), high)} />
        <input type="number" step="any" aria-label={`${short} to`} placeholder={number(counted.high)} value={high ?? ""} onChange={(e) => set(low, e.currentTarget.value === "" ? null : Number(e.currentTarget.value))} />
      </div>
    </fieldset>
  );
}

function List({ meta, rows, row, columns, waiting }: { meta: Meta; rows: Uint32Array; row: number; columns: Columns; waiting: boolean }) {
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  useLayoutEffect(() => {
    const element = box.current!;
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const at = useMemo(() => rows.indexOf(row), [rows, row]);
  useEffect(() => {
    const element = box.current!;
    if (at < 0) return;
    if (at * ROW < element.scrollTop || (at + 1) * ROW > element.scrollTop + element.clientHeight) element.scrollTop = at * ROW - element.clientHeight / 3;
  }, [at, rows.length]);
  const first = Math.max(0, Math.floor(top / ROW) - 4);
  const last = Math.min(rows.length, Math.ceil((top + height) / ROW) + 4);
  return (
    <div class="list" ref={box} onScroll={() => setTop(box.current!.scrollTop)} role="listbox" aria-label="list of examples">
      {rows.length === 0 && <p class="empty" role="note">{waiting ? "Loading…" : "No example is like that."}</p>}
      <div style={{ height: `${rows.length * ROW}px` }}>
        {Array.from(rows.subarray(first, last), (r, i) => <Item key={r} meta={meta} row={r} top={(first + i) * ROW} chosen={r === row} columns={columns} />)}
      </div>
    </div>
  );
}

function Item({ meta, row, top, chosen, columns }: { meta: Meta; row: number; top: number; chosen: boolean; columns: Columns }) {
  const part = api.rows(meta.key, Math.floor(row / meta.rows_per_part)).value;
  const i = row % meta.rows_per_part;
  const correct = columns.correct?.[row];
  const entropy = columns.entropy?.[row];
  const margin = columns.margin?.[row];
  const [target, said] = [part?.target?.[i], part?.said?.[i]];
  return (
    <button
      class={`item${chosen ? " chosen" : ""}`}
      role="option"
      aria-selected={chosen}
      style={{ transform: `translateY(${top}px)` }}
      title={part ? `${part.id[i]}\n${part.text[i]}` : ""}
      onClick={() => part && open(part.id[i])}
    >
      <span class={`mark ${correct === 1 ? "right" : correct === 0 ? "wrong" : ""}`} aria-label={correct === 1 ? "right" : correct === 0 ? "wrong" : "unknown"}>
        {correct === 1 ? "✓" : correct === 0 ? "✗" : "·"}
      </span>
      <span class={meta.objective === "csqa_choice" || meta.by_choice ? "item-text" : "item-text from-end"}><bdi>{part?.text[i] ?? ""}</bdi></span>
      <span class="item-figures">
        {said != null && <code class={correct === 0 ? "is-rival" : "is-target"}>{word(said)}</code>}
        {correct === 0 && target != null && <> for <code class="is-target">{word(target)}</code></>}
        <span class="item-numbers">{entropy !== undefined && !Number.isNaN(entropy) && <>H {entropy.toFixed(1)}</>}{margin !== undefined && !Number.isNaN(margin) && <> · m {margin.toFixed(1)}</>}</span>
      </span>
    </button>
  );
}
