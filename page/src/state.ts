// The state of the page is its URL: what is parsed here is all that a copied link carries.
import { computed, signal, type ReadonlySignal } from "@preact/signals";
import { keepAddress, stopKeeping } from "./address";

export type Statistic = "prob" | "rank" | "entropy" | "kl";
export type Colouring = "prob" | "entropy" | "rank" | "attention" | "off";

export interface Place {
  run: string;
  ex: string;
  pos: number | null;
  /** Of runs that keep activations for each choice; null for the one that was answered. */
  choice: number | null;
}

/** Which two tokens (or choices) are compared; null for the ones that suggest themselves. */
export interface Question {
  target: number | null;
  vs: number | null;
}

export const UNASKED: Question = { target: null, vs: null };

export interface Pinned extends Place, Question {}

export interface State extends Place, Question {
  layer: number | null;
  head: number | null;
  stat: Statistic;
  /** Whether a lens shows all its positions at once. */
  fit: boolean;
  colour: Colouring;
  only: "all" | "wrong" | "right";
  q: string;
  sort: string;
  ranges: Record<string, [number | null, number | null]>;
  kinds: Record<string, string>;
  pin: Pinned | null;
  cmp: "side" | "diff";
}

export const START: State = {
  run: "",
  ex: "",
  pos: null,
  choice: null,
  layer: null,
  head: null,
  ...UNASKED,
  stat: "prob",
  fit: false,
  colour: "prob",
  only: "all",
  q: "",
  sort: "",
  ranges: {},
  kinds: {},
  pin: null,
  cmp: "side",
};

const STATS: readonly string[] = ["prob", "rank", "entropy", "kl"];
const COLOURS: readonly string[] = ["prob", "entropy", "rank", "attention", "off"];
const PLAIN = [
  "run", "ex", "pos", "choice", "layer", "head", "target", "vs", "stat", "colour", "only", "q", "sort", "cmp",
] as const;

function whole(text: string | null | undefined): number | null {
  return text != null && /^\d{1,9}$/.test(text) ? Number(text) : null;
}

function real(text: string): number | null {
  const value = Number(text);
  return text !== "" && Number.isFinite(value) ? value : null;
}

function oneOf<T extends string>(text: string | null, valid: readonly string[], otherwise: T): T {
  return text !== null && valid.includes(text) ? (text as T) : otherwise;
}

// A pin is one parameter of parts between "~"; a name may hold a "~" itself.
const escaped = (part: unknown): string => encodeURIComponent(String(part ?? "")).replaceAll("~", "%7E");

function unescaped(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

function pinOf(text: string | null): Pinned | null {
  const [run, ex, pos, choice, vs, target] = (text ?? "").split("~").map(unescaped);
  const asked = { vs: whole(vs), target: whole(target) };
  return run && ex ? { run, ex, pos: whole(pos), choice: whole(choice), ...asked } : null;
}

function pinText({ run, ex, pos, choice, vs, target }: Pinned): string {
  return [run, ex, pos, choice, vs, target].map(escaped).join("~").replace(/~+$/, "");
}

/** Read a state out of a query string; what cannot be read is left at its start. */
export function parse(search: string): State {
  const q = new URLSearchParams(search);
  const state: State = { ...START, ranges: {}, kinds: {} };
  state.run = q.get("run") ?? START.run;
  state.ex = q.get("ex") ?? "";
  state.pos = whole(q.get("pos"));
  state.choice = whole(q.get("choice"));
  state.layer = whole(q.get("layer"));
  state.head = whole(q.get("head"));
  state.target = whole(q.get("target"));
  state.vs = whole(q.get("vs"));
  state.stat = oneOf(q.get("stat"), STATS, "prob");
  state.fit = q.get("fit") === "1";
  state.colour = oneOf(q.get("colour"), COLOURS, "prob");
  state.only = oneOf(q.get("only"), ["all", "wrong", "right"], "all");
  state.q = q.get("q") ?? "";
  state.sort = q.get("sort") ?? "";
  state.cmp = oneOf(q.get("cmp"), ["side", "diff"], "side");
  for (const [key, value] of q) {
    const [low, high] = value.split("..");
    if (key.startsWith("f.") && high !== undefined) state.ranges[key.slice(2)] = [real(low), real(high)];
    if (key.startsWith("k.")) state.kinds[key.slice(2)] = value;
  }
  state.pin = pinOf(q.get("pin"));
  return state;
}

/** Write a state as a query string; what stands at its start is left out. */
export function format(state: State): string {
  const q = new URLSearchParams();
  for (const key of PLAIN) {
    const value = state[key];
    if (value !== START[key] && value !== null && value !== "") q.set(key, String(value));
  }
  if (state.fit) q.set("fit", "1");
  for (const [name, [low, high]] of Object.entries(state.ranges)) q.set(`f.${name}`, `${low ?? ""}..${high ?? ""}`);
  for (const [name, kind] of Object.entries(state.kinds)) q.set(`k.${name}`, kind);
  if (state.pin) q.set("pin", pinText(state.pin));
  const text = q.toString();
  return text ? `?${text}` : "";
}

export const state = signal<State>(parse(typeof location === "undefined" ? "" : location.search));

/** Say which run is shown where the address names none. */
export function beginWith(run: string): void {
  START.run = run;
  if (state.value.run === "") state.value = { ...state.value, run };
}

/** Change the state and with it the URL. Going to another example is a step in the browser's history. */
export function go(patch: Partial<State>): void {
  const before = state.value;
  const next = { ...before, ...patch };
  state.value = next;
  const moved = next.ex !== before.ex || next.run !== before.run || (next.pin === null) !== (before.pin === null);
  keepAddress(format(state.value), moved && before.ex !== "");
}

/** Mend the state without a step in the history: going back must not lead to what had to be mended. */
export function amend(patch: Partial<State>): void {
  state.value = { ...state.value, ...patch };
  keepAddress(format(state.value), false);
}

/** Go to another example: what belonged to the old one alone is forgotten. */
export function open(ex: string): void {
  go({ ex, pos: null, choice: null, ...UNASKED });
}

if (typeof window !== "undefined") {
  window.addEventListener("popstate", () => {
    stopKeeping();
    state.value = parse(location.search);
  });
}

/** A part of the state that stays the same object, and disturbs nobody, while other parts change. */
function part<K extends keyof State>(...keys: K[]): ReadonlySignal<Pick<State, K>> {
  let last: Pick<State, K> | undefined;
  return computed(() => {
    const now = state.value;
    if (!last || keys.some((key) => !Object.is(last![key], now[key]))) {
      last = Object.fromEntries(keys.map((key) => [key, now[key]])) as Pick<State, K>;
    }
    return last;
  });
}

export const here: ReadonlySignal<Place> = part("run", "ex", "pos", "choice");
export const filters = part("run", "only", "ranges", "kinds", "q", "sort");
