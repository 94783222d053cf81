// One example as the panels see it: what was loaded of it, at which position, which tokens are in question.
import { signal } from "@preact/signals";
import * as api from "./api";
import type { Lens, Loaded } from "./api";
import type { Contributions, Meta, Race, Tokens } from "./types";
import type { Place } from "./state";

export interface Side {
  place: Place & { choice: number };
  meta: Meta;
  row: number;
  tokens: Tokens;
  lens: Loaded<Lens>;
  contributions: Loaded<Contributions>;
  race: Loaded<Race>;
  /** The position looked at: the one chosen, or that of the decision. */
  pos: number;
  /** Which depths, candidates and so on belong to it; -1 where the lens has nothing there. */
  slot: number;
  target: Token | null;
  rival: Token | null;
}

export interface Token {
  id: number;
  text: string;
}

/** The position under the pointer: what can be said of it at once is shown while the pointer is there. */
export const peek = signal<{ run: string; row: number; pos: number } | null>(null);

/** Return the side as seen from the position under the pointer; what would have to be asked for is left out. */
export function glance(side: Side): Side {
  const at = peek.value;
  if (!at || at.run !== side.place.run || at.row !== side.row || at.pos === side.pos || !side.lens.value) return side;
  const there = { ...side, pos: at.pos, slot: side.lens.value.slotOf.get(at.pos) ?? -1, contributions: {} };
  return there.slot < 0 ? side : { ...there, ...question(there, null) };
}

export interface Candidate extends Token {
  prob: number;
  target: boolean;
}

/** Find the row of an example; a static page has no server to ask, and looks through the list. */
export function rowOf(meta: Meta, ex: string, bundle: boolean): Loaded<{ row: number }> {
  if (ex === "") return { value: { row: 0 } };
  const parts = Math.ceil(meta.n / meta.rows_per_part);
  if (!bundle) return api.rowOf(meta.key, ex);
  for (let part = 0; part < parts; part++) {
    const rows = api.rows(meta.key, part);
    if (!rows.value) return rows.error ? { error: rows.error } : {};
    const at = rows.value.id.indexOf(ex);
    if (at >= 0) return { value: { row: part * meta.rows_per_part + at } };
  }
  return { error: `No example ${ex} here.` };
}

export function sideOf(place: Place, bundle: boolean, vs: number | null): Loaded<Side> {
  const meta = api.meta(place.run);
  if (!meta.value) return { error: meta.error };
  const found = rowOf(meta.value, place.ex, bundle);
  if (!found.value) return { error: found.error };
  const row = found.value.row;
  const choice = meta.value.by_choice ? chosen(meta.value, place, row) : 0;
  if (choice === null) return {};
  const tokens = api.tokens(place.run, row, choice);
  if (!tokens.value) return { error: tokens.error };
  const lens = meta.value.lens ? api.lens(place.run, row) : {};
  const decided = tokens.value.decision?.pos ?? null;
  const last = Math.max(0, tokens.value.n_tokens - 1);
  const pos = Math.min(last, place.pos ?? decided ?? last);
  const at = meta.value.by_choice ? 0 : pos;
  const contributions = meta.value.contributions ? api.contributions(place.run, row, at) : {};
  const followed = meta.value.by_choice || meta.value.objective === "csqa_choice";
  const race = followed && !meta.value.missing.race ? api.race(place.run, row) : {};
  const side: Side = {
    place: { ...place, choice },
    meta: meta.value,
    row,
    tokens: tokens.value,
    lens,
    contributions,
    race,
    pos,
    slot: lens.value?.slotOf.get(pos) ?? -1,
    target: null,
    rival: null,
  };
  return { value: { ...side, ...question(side, vs) } };
}

/** Return the choice looked at: the one asked for, else the one that the model gave; null while that is not known. */
function chosen(meta: Meta, place: Place, row: number): number | null {
  if (place.choice !== null) return Math.min(place.choice, (meta.n_choices ?? 1) - 1);
  const choices = api.tokens(place.run, row, 0).value?.choices;
  return choices ? Math.max(0, choices.findIndex((c) => c.given)) : null;
}

/** Return whether a side stands where its example's decision was made. */
export function atDecision(side: Side): boolean {
  return side.meta.by_choice || side.pos === side.tokens.decision?.pos;
}

/** Return the target and what it is compared with: what was asked for, or its strongest rival. */
export function question(side: Side, vs: number | null): { target: Token | null; rival: Token | null } {
  const { choices, decision } = side.tokens;
  if (choices && atDecision(side)) {
    const right = choices.find((c) => c.right) ?? choices.find((c) => c.given);
    const others = choices.filter((c) => c !== right).sort((a, b) => b.logit - a.logit);
    const asked = others.find((c) => idOf(side, c) === vs) ?? others[0];
    const named = (c: (typeof choices)[number] | undefined) => (c ? { id: idOf(side, c), text: `${c.label} ${c.text}` } : null);
    return { target: named(right), rival: named(asked) };
  }
  const list = candidates(side);
  if (list.length === 0) return { target: decision?.true ?? decision?.pred ?? null, rival: null };
  const target = list.find((c) => c.target) ?? list[0];
  const others = list.filter((c) => c.id !== target.id);
  const asked = vs === null ? undefined : (others.find((c) => c.id === vs) ?? undefined);
  const strongest = [...others].sort((a, b) => b.prob - a.prob)[0] ?? null;
  return { target, rival: asked ?? strongest };
}

function idOf(side: Side, choice: { id: number; label: string }): number {
  return side.meta.by_choice ? (side.tokens.choices ?? []).findIndex((c) => c.label === choice.label) : choice.id;
}

/** Return the tokens in question at the side's position, with their probability at the end of the model. */
export function candidates(side: Side): Candidate[] {
  const lens = side.lens.value;
  if (lens && side.slot >= 0) {
    const ids = lens.candidates[side.slot];
    const end = lens.depths - 1;
    const seen = new Set<number>();
    return ids.flatMap((id, k) => {
      if (id < 0 || seen.has(id)) return [];
      seen.add(id);
      return [{ id, text: textOf(lens, id), prob: candidateProb(lens, end, side.slot, k), target: k === 0 }];
    });
  }
  const decision = side.tokens.decision;
  if (!decision?.top || side.pos !== decision.pos) return [];
  const truth = decision.true;
  const list = decision.top.map((t) => ({ id: t.id, text: t.text, prob: t.prob ?? NaN, target: t.id === truth?.id }));
  if (truth && !list.some((t) => t.target)) list.unshift({ id: truth.id, text: truth.text, prob: truth.prob ?? NaN, target: true });
  return list;
}

export function textOf(lens: Lens, id: number): string {
  return lens.words[id] ?? `#${id}`;
}

export function candidateProb(lens: Lens, depth: number, slot: number, k: number): number {
  const width = lens.candidates[0]?.length ?? 0;
  return lens.candidateProbs[(depth * lens.pos.length + slot) * width + k];
}

/** Return the probability of one candidate at every depth, null where it is not followed. */
export function path(side: Side, id: number): number[] | null {
  const lens = side.lens.value;
  if (!lens || side.slot < 0) return null;
  const k = lens.candidates[side.slot].indexOf(id);
  return k < 0 ? null : Array.from({ length: lens.depths }, (_, d) => candidateProb(lens, d, side.slot, k));
}

export interface Lead {
  parts: string[];
  values: number[];
  /** [layer][head], or null. */
  heads: number[][] | null;
  total: number;
}

/** Return what each part adds to the lead of the target over its rival: the difference of two rows. */
export function lead(side: Side): Lead | null {
  const found = side.contributions.value;
  if (!found || !side.target || !side.rival) return null;
  const of = (id: number) => found.candidates.findIndex((c) => c.id === id);
  const [target, rival] = [of(side.target.id), of(side.rival.id)];
  if (target < 0 || rival < 0) return null;
  const values = found.values[rival].map((v, i) => v - found.values[target][i]);
  const heads = found.heads ? found.heads[rival].map((layer, l) => layer.map((v, h) => v - found.heads![target][l][h])) : null;
  return { parts: found.parts, values, heads, total: values.reduce((a, b) => a + b, 0) };
}
