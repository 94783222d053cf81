// Asking the server, each thing once: a request is a signal that holds its answer.
import { signal, type Signal } from "@preact/signals";
import type { Contributions, LensHead, Meta, Outcomes, Race, Rows, Runs, Tokens } from "./types";

export interface Loaded<T> {
  value?: T;
  error?: string;
}

const MOST = 600;
const cache = new Map<string, Signal<Loaded<unknown>>>();

async function said(response: Response): Promise<string> {
  try {
    return ((await response.json()) as { error: string }).error;
  } catch {
    return `The server answers ${response.status} ${response.statusText}.`;
  }
}

/** Ask for a path under api/, once; reading the answer's value subscribes to it. */
export function load<T>(path: string, decode: (response: Response) => Promise<T>): Loaded<T> {
  let found = cache.get(path) as Signal<Loaded<T>> | undefined;
  if (!found) {
    const made = signal<Loaded<T>>({});
    found = made;
    cache.set(path, made as Signal<Loaded<unknown>>);
    if (cache.size > MOST) cache.delete(cache.keys().next().value as string);
    void fetchInto(path, made, decode);
  }
  return found.value;
}

async function fetchInto<T>(path: string, into: Signal<Loaded<T>>, decode: (r: Response) => Promise<T>): Promise<void> {
  try {
    const response = await fetch(new URL(`api/${path}`, document.baseURI));
    into.value = response.ok ? { value: await decode(response) } : { error: await said(response) };
  } catch (error) {
    cache.delete(path); // asked again when it is next looked at
    into.value = { error: `The server does not answer (${(error as Error).message}). Is decision-traces view still running?` };
  }
}

const json = <T>(response: Response): Promise<T> => response.json() as Promise<T>;
const bytes = async (response: Response): Promise<Uint8Array> => new Uint8Array(await response.arrayBuffer());

const HALF = new Float32Array(65536);
for (let bits = 0; bits < 65536; bits++) {
  const exponent = (bits >> 10) & 31;
  const fraction = bits & 1023;
  const size = exponent === 0 ? fraction * 2 ** -24 : exponent === 31 ? (fraction ? NaN : Infinity) : (1 + fraction / 1024) * 2 ** (exponent - 15);
  HALF[bits] = bits & 0x8000 ? -size : size;
}

/** Decode little-endian float16. */
export function halves(buffer: ArrayBuffer, offset = 0, count = (buffer.byteLength - offset) >> 1): Float32Array {
  const raw = new Uint16Array(buffer, offset, count);
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) values[i] = HALF[raw[i]];
  return values;
}

const half = async (response: Response): Promise<Float32Array> => halves(await response.arrayBuffer());

export const runs = () => load<Runs>("runs.json", json);
export const meta = (run: string) => load<Meta>(`${run}/meta.json`, json);
export const rows = (run: string, part: number) => load<Rows>(`${run}/rows/${part}.json`, json);
export const column = (run: string, name: string, part: number) =>
  load(`${run}/columns/${encodeURIComponent(name)}/${part}.bin`, async (r) => new Float32Array(await r.arrayBuffer()));
export const search = (run: string, q: string) => load(`${run}/search?q=${encodeURIComponent(q)}`, bytes);
export const rowOf = (run: string, ex: string) => load<{ row: number }>(`${run}/row?example=${encodeURIComponent(ex)}`, json);
export const tokens = (run: string, row: number, choice: number) => load<Tokens>(`${run}/e/${row}/c${choice}/tokens.json`, json);
export const outcomes = (run: string, row: number) => load<Outcomes | null>(`${run}/e/${row}/outcomes.json`, json);
export const race = (run: string, row: number) => load<Race>(`${run}/e/${row}/race.json`, json);
export const contributions = (run: string, row: number, pos: number) =>
  load<Contributions>(`${run}/e/${row}/contributions/${pos}.json`, json);
export const thumbs = (run: string, row: number, choice: number, layer: number) =>
  load(`${run}/e/${row}/c${choice}/attn/${layer}/thumbs.u8`, bytes);
export const headDrawn = (run: string, row: number, choice: number, layer: number, head: number) =>
  load(`${run}/e/${row}/c${choice}/attn/${layer}/${head}.u8`, bytes);
export const headValues = (run: string, row: number, choice: number, layer: number, head: number, block: number) =>
  load(`${run}/e/${row}/c${choice}/attn/${layer}/${head}/${block}.f16`, half);

/** What the lens says of one example; numbers lie [depth][slot]. */
export interface Lens extends LensHead {
  values: Record<string, Float32Array>;
  topIds: Int32Array;
  topProbs: Float32Array;
  candidateProbs: Float32Array;
  slotOf: Map<number, number>;
  of: Float32Array;
}

export function lens(run: string, row: number): Loaded<Lens> {
  const base = `${run}/e/${row}`;
  const head = load<LensHead>(`${base}/lens.json`, json);
  const numbers = load(`${base}/lens/statistics.f16`, half);
  if (!head.value) return { error: head.error };
  const blocks = Array.from({ length: Math.ceil(head.value.depths / head.value.depths_per_block) }, (_, i) =>
    load(`${base}/lens/top/${i}.bin`, (r) => r.arrayBuffer()),
  );
  const failed = [numbers, ...blocks].find((part) => part.error);
  if (failed) return { error: failed.error };
  if (!numbers.value || blocks.some((block) => !block.value)) return {};
  const key = `${base}/lens`;
  let made = together.get(key);
  if (!made || made.of !== numbers.value) {
    made = assemble(head.value, numbers.value, blocks.map((block) => block.value as ArrayBuffer));
    together.set(key, made);
    if (together.size > 24) together.delete(together.keys().next().value as string);
  }
  return { value: made };
}

const together = new Map<string, Lens>();

export function assemble(head: LensHead, numbers: Float32Array, blocks: ArrayBuffer[]): Lens {
  const slots = head.pos.length;
  const each = head.depths * slots;
  const width = head.candidates[0]?.length ?? 0;
  const values: Record<string, Float32Array> = {};
  head.statistics.forEach((name, i) => (values[name] = numbers.subarray(i * each, (i + 1) * each)));
  const topIds = new Int32Array(each * head.top);
  const topProbs = new Float32Array(each * head.top);
  const candidateProbs = new Float32Array(each * width);
  let done = 0;
  for (const block of blocks) {
    const states = block.byteLength / (6 * head.top + 2 * width) || 0;
    const count = states * head.top;
    topIds.set(new Int32Array(block, 0, count), done * head.top);
    topProbs.set(halves(block, count * 4, count), done * head.top);
    candidateProbs.set(halves(block, count * 6, states * width), done * width);
    done += states;
  }
  return { ...head, values, topIds, topProbs, candidateProbs, slotOf: new Map(head.pos.map((p, i) => [p, i])), of: numbers };
}
