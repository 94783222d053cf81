// Asking the server, each thing once: a request is a signal that holds its answer.
import { batch, effect, signal, type Signal } from "@preact/signals";
import { credentials } from "./token";

export interface Loaded<T> {
  value?: T;
  error?: string;
}

type Decode<T> = (body: ArrayBuffer) => T;

interface Entry {
  path: string;
  decode: Decode<unknown>;
  answer: Signal<Loaded<unknown>>;
  /** What it weighs against the budget; 0 until there is an answer. */
  bytes: number;
  /** Never dropped: what the whole page is built on. */
  kept: boolean;
  failed: boolean;
}

const BUDGET = 96 * 2 ** 20;
const LEAST = 1024; // an empty answer takes memory, too
const AGAIN_MS = 5000;
const cache = new Map<string, Entry>();
let held = 0;
let timer: ReturnType<typeof setTimeout> | undefined;

/** Why the server cannot be reached; null while it can. */
export const unreachable = signal<string | null>(null);

/** The version of each run that its answers named last: the run's own and, behind a dot, that of what was computed. */
const versions = new Map<string, string>();

/** What is said once a run is not the one that it was. */
export const changed = signal("");

/** Ask for a path under api/, once; reading the answer's value subscribes to it. */
export function load<T>(path: string, decode: Decode<T>, kept = false): Loaded<T> {
  let entry = cache.get(path);
  if (entry) cache.delete(path);
  else {
    entry = { path, decode, answer: signal({}), bytes: 0, kept, failed: false };
    void ask(entry);
  }
  cache.set(path, entry); // at the end: what was read last is dropped last
  return entry.answer.value as Loaded<T>;
}

/** Ask for one entry; return whether the server answered. A failure stays in the entry until it is asked again. */
async function ask(entry: Entry): Promise<boolean> {
  entry.failed = false;
  try {
    const response = await fetch(new URL(`api/${entry.path}`, document.baseURI), credentials);
    const body = await response.arrayBuffer();
    unreachable.value = null;
    if (cache.get(entry.path) !== entry) return true; // forgotten meanwhile: it is of a run that is no more
    compare(entry, response.headers.get("X-Run"));
    settle(entry, response.ok ? decoded(entry, body) : { error: said(response, body) }, body.byteLength);
    return true;
  } catch (error) {
    entry.failed = true;
    const reason = (error as Error).message;
    unreachable.value = `The server does not answer (${reason}). Is decision-traces view still running?`;
    entry.answer.value = { error: unreachable.value };
    timer ??= setTimeout(() => void retry(), AGAIN_MS);
    return false;
  }
}

/** See whether an answer is of the same run as those before; if not, forget these. */
function compare(entry: Entry, version: string | null): void {
  if (version === null) return; // of no run, or of a static page
  const run = runOf(entry);
  const before = versions.get(run);
  versions.set(run, version);
  if (before === undefined || before === version) return;
  const at = new Date().toTimeString().slice(0, 5);
  const same = before.split(".")[0] === version.split(".")[0];
  batch(() => {
    forget(run, entry);
    changed.value = same
      ? `What is computed on ${run} changed at ${at}; you see the new results.`
      : `The run ${run} was replaced at ${at}; you see the new one.`;
  });
}

const runOf = (entry: Entry): string => entry.path.split("/", 1)[0];

/** Forget all of a run but one entry; what is still looked at is asked for again. */
function forget(run: string, but: Entry): void {
  for (const old of [...cache.values()]) {
    if (old === but || runOf(old) !== run) continue;
    cache.delete(old.path);
    held -= old.bytes;
    old.answer.value = {};
  }
}

/** Ask again for what failed: for one thing first, for the others once the server is back. */
export async function retry(): Promise<void> {
  clearTimeout(timer);
  timer = undefined;
  const [first, ...others] = [...cache.values()].filter((entry) => entry.failed);
  if (first && (await ask(first))) others.forEach((entry) => void ask(entry));
}

function settle(entry: Entry, answer: Loaded<unknown>, bytes: number): void {
  entry.bytes = Math.max(LEAST, bytes);
  held += entry.bytes;
  for (const old of cache.values()) {
    if (held <= BUDGET) break;
    if (old === entry || old.kept || old.bytes === 0) continue;
    cache.delete(old.path);
    held -= old.bytes;
  }
  entry.answer.value = answer;
}

function decoded(entry: Entry, body: ArrayBuffer): Loaded<unknown> {
  try {
    return { value: entry.decode(body) };
  } catch (error) {
    return { error: `The server's answer to ${entry.path} cannot be read (${(error as Error).message}).` };
  }
}

function said(response: Response, body: ArrayBuffer): string {
  const otherwise = `The server answers ${response.status} ${response.statusText}.`;
  try {
    return json<{ error?: string }>(body).error ?? otherwise;
  } catch {
    return otherwise;
  }
}

export function json<T>(body: ArrayBuffer): T {
  return JSON.parse(new TextDecoder().decode(body)) as T;
}

/** Wait until what is read from signals is there. */
export function when<T>(read: () => T | undefined): Promise<T> {
  return new Promise((resolve) => {
    const stop = effect(() => {
      const value = read();
      if (value === undefined) return;
      resolve(value);
      queueMicrotask(() => stop());
    });
  });
}
