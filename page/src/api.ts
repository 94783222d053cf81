// What can be asked for, and how the answers are read.
import { json, load, type Loaded } from "./cache";
import type { ByChoice, Contributions, LensHead, Meta, Outcomes, Rows, Runs, Tokens } from "./types";

const bytes = (body: ArrayBuffer): Uint8Array => new Uint8Array(body);
const floats = (body: ArrayBuffer): Float32Array => new Float32Array(body);
const half = (body: ArrayBuffer): Float32Array => halves(body);
const raw = (body: ArrayBuffer): ArrayBuffer => body;

const HALF = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const infinite = fraction ? NaN : Infinity;
  const normal = (1 + fraction / 1024) * 2 ** (exponent - 15);
  const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? infinite : normal;
  HALF[bits] = bits & 0x8000 ? -size : size;
}

/** Decode little-endian float16. */
export function halves(buffer: ArrayBuffer, offset = 0, count = (buffer.byteLength - offset) >> 1): Float32Array {
  const bits = new Uint16Array(buffer, offset, count);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = HALF[bits[i]];
  return values;
}

const encoded = encodeURIComponent;
const ofChoice = (run: string, row: number, choice: number): string => `${run}/e/${row}/c${choice}`;

export const runs = () => load<Runs>("runs.json", json, true);
/** Whether this is a static page: there is no server to search, or to write numbers out as text. */
export const bundled = (): boolean => runs().value?.bundle ?? false;
/** Whether attention can be had as numbers, and not only as it is drawn. */
export const exact = (): boolean => runs().value?.exact ?? true;
export const meta = (run: string) => load<Meta>(`${run}/meta.json`, json, true);
export const rows = (run: string, part: number) => load<Rows>(`${run}/rows/${part}.json`, json);
export const column = (run: string, name: string, part: number) =>
  load(`${run}/columns/${encoded(name)}/${part}.bin`, floats, true);
export const search = (run: string, q: string) => load(`${run}/search?q=${encoded(q)}`, bytes);
export const rowNamed = (run: string, ex: string) => load<{ row: number }>(`${run}/row?example=${encoded(ex)}`, json);
export const tokens = (run: string, row: number, choice: number) =>
  load<Tokens>(`${ofChoice(run, row, choice)}/tokens.json`, json);
export const outcomes = (run: string, row: number) => load<Outcomes | null>(`${run}/e/${row}/outcomes.json`, json);
export const byChoice = (run: string, row: number) => load<ByChoice>(`${run}/e/${row}/by_choice.json`, json);
export const contributions = (run: string, row: number, pos: number) =>
  load<Contributions>(`${run}/e/${row}/contributions/${pos}.json`, json);
export const thumbs = (run: string, row: number, choice: number, layer: number) =>
  load(`${ofChoice(run, row, choice)}/attn/${layer}/thumbs.u8`, bytes);
export const headDrawn = (run: string, row: number, choice: number, layer: number, head: number) =>
  load(`${ofChoice(run, row, choice)}/attn/${layer}/${head}.u8`, bytes);
export const headValues = (run: string, row: number, choice: number, layer: number, head: number, block: number) =>
  load(`${ofChoice(run, row, choice)}/attn/${layer}/${head}/${block}.f16`, half);

/** What the lens says of one example; numbers lie [depth][slot]. */
export interface Lens extends LensHead {
  values: Record<string, Float32Array>;
  topIds: Int32Array;
  topProbs: Float32Array;
  candidateProbs: Float32Array;
  slotOf: Map<number, number>;
}

const assembled = new WeakMap<ArrayBuffer, Lens>();

export function lens(run: string, row: number): Loaded<Lens> {
  const base = `${run}/e/${row}`;
  const head = load<LensHead>(`${base}/lens.json`, json);
  if (!head.value) return { error: head.error };
  const count = Math.ceil((head.value.depths * head.value.pos.length) / head.value.states_per_block);
  const blocks = Array.from({ length: count }, (_, i) => load(`${base}/lens/${i}.bin`, raw));
  const failed = blocks.find((part) => part.error);
  if (failed) return { error: failed.error };
  if (blocks.some((block) => !block.value)) return {};
  const found = blocks.map((block) => block.value as ArrayBuffer);
  let made = count > 0 ? assembled.get(found[0]) : undefined;
  if (!made) {
    made = assemble(head.value, found);
    if (count > 0) assembled.set(found[0], made);
  }
  return { value: made };
}

/** Put blocks together: of some states each, depth by depth, what `lens_block` on the other side puts in. */
export function assemble(head: LensHead, blocks: ArrayBuffer[]): Lens {
  const each = head.depths * head.pos.length;
  const width = head.candidates[0]?.length ?? 0;
  const names = head.statistics.filter((name) => name !== "rank");
  const values: Record<string, Float32Array> = {};
  for (const name of head.statistics) values[name] = new Float32Array(each);
  const topIds = new Int32Array(each * head.top);
  const topProbs = new Float32Array(each * head.top);
  const candidateProbs = new Float32Array(each * width);
  let done = 0;
  for (const block of blocks) {
    const states = block.byteLength / (4 + 2 * names.length + 6 * head.top + 2 * width);
    let at = 0;
    const whole = (count: number) => new Int32Array(block, (at += 4 * count) - 4 * count, count);
    const half = (count: number) => halves(block, (at += 2 * count) - 2 * count, count);
    values.rank.set(whole(states), done);
    topIds.set(whole(states * head.top), done * head.top);
    for (const name of names) values[name].set(half(states), done);
    topProbs.set(half(states * head.top), done * head.top);
    candidateProbs.set(half(states * width), done * width);
    done += states;
  }
  const slotOf = new Map(head.pos.map((p, i) => [p, i]));
  return { ...head, values, topIds, topProbs, candidateProbs, slotOf };
}
