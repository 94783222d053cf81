// The state of the page is its URL: what is parsed here is all that a copied link carries.
import { computed, signal } from "@preact/signals";

export type Statistic = "prob" | "rank" | "entropy" | "kl";
export type Colouring = "prob" | "entropy" | "rank" | "attention" | "off";

export interface Place {
  run: string;
  ex: string;
  pos: number | null;
  /** Of runs with an inner path for each choice; null for the one that was given. */
  choice: number | null;
}

export interface State extends Place {
  layer: number | null;
  head: number | null;
  vs: number | null;
  stat: Statistic;
  colour: Colouring;
  only: "all" | "wrong" | "right";
  q: string;
  sort: string;
  ranges: Record<string, [number | null, number | null]>;
  kinds: Record<string, string>;
  pin: Place | null;
  cmp: "side" | "diff";
}

export const START: State = {
  run: "r0",
  ex: "",
  pos: null,
  choice: null,
  layer: null,
  head: null,
  vs: null,
  stat: "prob",
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

/** Read a state out of a query string; what cannot be read is left at its start. */
export function parse(search: string): State {
  const q = new URLSearchParams(search);
  const state: State = { ...START, ranges: {}, kinds: {} };
  state.run = q.get("run") ?? "r0";
  state.ex = q.get("ex") ?? "";
  state.pos = whole(q.get("pos"));
  state.choice = whole(q.get("choice"));
  state.layer = whole(q.get("layer"));
  state.head = whole(q.get("head"));
  state.vs = whole(q.get("vs"));
  state.stat = oneOf(q.get("stat"), STATS, "prob");
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
  const pin = q.get("pin")?.split("~");
  if (pin && pin.length >= 2 && pin[1]) {
    state.pin = { run: pin[0], ex: pin[1], pos: whole(pin[2]), choice: whole(pin[3]) };
  }
  return state;
}

/** Write a state as a query string; what stands at its start is left out. */
export function format(state: State): string {
  const q = new URLSearchParams();
  for (const key of ["run", "ex", "pos", "choice", "layer", "head", "vs", "stat", "colour", "only", "q", "sort", "cmp"] as const) {
    const value = state[key];
    if (value !== START[key] && value !== null && value !== "") q.set(key, String(value));
  }
  for (const [name, [low, high]] of Object.entries(state.ranges)) q.set(`f.${name}`, `${low ?? ""}..${high ?? ""}`);
  for (const [name, kind] of Object.entries(state.kinds)) q.set(`k.${name}`, kind);
  if (state.pin) q.set("pin", [state.pin.run, state.pin.ex, state.pin.pos ?? "", state.pin.choice ?? ""].join("~").replace(/~+$/, ""));
  const text = q.toString();
  return text ? `?${text}` : "";
}

export const state = signal<State>(parse(typeof location === "undefined" ? "" : location.search));

/** Change the state and with it the URL. Going to another example is a step in the browser's history. */
export function go(patch: Partial<State>): void {
  const before = state.value;
  const next = { ...before, ...patch };
  const url = location.pathname + format(next) + location.hash;
  const step = next.ex !== before.ex || next.run !== before.run || (next.pin === null) !== (before.pin === null);
  if (url !== location.pathname + location.search + location.hash) {
    if (step && before.ex !== "") history.pushState(null, "", url);
    else history.replaceState(null, "", url);
  }
  state.value = next;
}

/** Go to another example: what belonged to the old one alone is forgotten. */
export function open(ex: string, run?: string): void {
  go({ ex, run: run ?? state.value.run, pos: null, vs: null, choice: null });
}

if (typeof window !== "undefined") {
  window.addEventListener("popstate", () => {
    state.value = parse(location.search);
  });
}

export const here = computed<Place>(() => {
  const { run, ex, pos, choice } = state.value;
  return { run, ex, pos, choice };
});
