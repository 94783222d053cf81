// One example as the panels see it: what was loaded of it, at which position, which tokens are in question.
import { signal } from "@preact/signals";
import * as api from "./api";
import type { Lens } from "./api";
import type { Loaded } from "./cache";
import { layerOf } from "./format";
import { UNASKED, type Pinned, type Place, type Question } from "./state";
import { betweenChoices, countOfChoices, readsChoices } from "./task";
import type { ByChoice, Choice, Contributions, Meta, Tokens } from "./types";

export interface Side {
  place: Place & { choice: number };
  meta: Meta;
  row: number;
  tokens: Tokens;
  lens: Loaded<Lens>;
  contributions: Loaded<Contributions>;
  byChoice: Loaded<ByChoice>;
  /** The position looked at: the one chosen, or that of the decision. */
  pos: number;
  /** Which depths, candidates and so on belong to it; -1 where the lens has nothing there. */
  slot: number;
  target: Token | null;
  competitor: Token | null;
  /** The layer and head whose attention is shown. */
  shown: Shown;
}

export interface Token {
  id: number;
  text: string;
}

export interface Shown {
  layer: number | null;
  head: number | null;
}

/** What the reader chose; where it is null, the side finds the most telling itself. */
export type Asked = Shown & Question;

/** The positions under the pointer: what can be said of them at once is shown while the pointer is there. */
interface Peeked {
  run: string;
  row: number;
  pos: number;
}

export const peek = signal<Peeked[]>([]);

function look(at: Peeked[]): void {
  if (JSON.stringify(at) !== JSON.stringify(peek.value)) peek.value = at; // pointers move within a cell
}

const peeked = (side: Side, pos: number): Peeked => ({ run: side.place.run, row: side.row, pos });

export function peekAt(side: Side, pos: number | null): void {
  look(pos === null ? [] : [peeked(side, pos)]);
}

/** Look at a position of the second and at the one of the first that lies under it. */
export function peekAtBoth(first: Side, second: Side, pos: number | null): void {
  look(pos === null ? [] : [peeked(second, pos), peeked(first, pos + first.pos - second.pos)]);
}

/** Return the side as seen from the position under the pointer; what would have to be asked for is left out. */
export function glance(side: Side): Side {
  const at = peek.value.find(({ run, row }) => run === side.place.run && row === side.row);
  if (!at || at.pos === side.pos || !side.lens.value) return side;
  const there = { ...side, pos: at.pos, slot: side.lens.value.slotOf.get(at.pos) ?? -1, contributions: {} };
  return there.slot < 0 ? side : { ...there, ...question(there, UNASKED) };
}

/** Find the row of an example; a static page has no server to ask, and looks through the list. */
export function exampleRow(meta: Meta, ex: string): Loaded<{ row: number }> {
  if (ex === "") return { value: { row: 0 } };
  if (!api.bundled()) return api.rowNamed(meta.key, ex);
  for (let part = 0; part * meta.rows_per_part < meta.n; part++) {
    const rows = api.rows(meta.key, part);
    if (!rows.value) return rows.error ? { error: rows.error } : {};
    const at = rows.value.id.indexOf(ex);
    if (at >= 0) return { value: { row: part * meta.rows_per_part + at } };
  }
  return { error: `No example ${ex} here.` };
}

/** Return an example as far as it is here; `error` once a part that nothing can be shown without cannot be had. */
export function sideOf(place: Place, asked: Asked): Loaded<Side> {
  const meta = api.meta(place.run);
  if (!meta.value) return { error: meta.error };
  const found = exampleRow(meta.value, place.ex);
  if (!found.value) return { error: found.error };
  const row = found.value.row;
  const choice = chosen(meta.value, place, row);
  if (choice.value === undefined) return { error: choice.error };
  const tokens = api.tokens(place.run, row, choice.value);
  if (!tokens.value) return { error: tokens.error };
  return { value: assembled({ ...place, choice: choice.value }, meta.value, row, tokens.value, asked) };
}

function assembled(place: Side["place"], meta: Meta, row: number, tokens: Tokens, asked: Asked): Side {
  const lens = meta.lens ? api.lens(place.run, row) : {};
  const last = Math.max(0, tokens.n_tokens - 1);
  const pos = Math.min(last, place.pos ?? tokens.decision?.pos ?? last);
  const at = readsChoices(meta) ? 0 : pos;
  const followed = betweenChoices(meta) && !meta.missing.by_choice;
  const here = tokens.decisions.find((d) => d.pos === pos);
  const side: Side = {
    place,
    meta,
    row,
    tokens: here ? { ...tokens, decision: here } : tokens,
    lens,
    contributions: meta.contributions ? api.contributions(place.run, row, at) : {},
    byChoice: followed ? api.byChoice(place.run, row) : {},
    pos,
    slot: lens.value?.slotOf.get(pos) ?? -1,
    target: null,
    competitor: null,
    shown: { layer: null, head: null },
  };
  const compared = { ...side, ...question(side, asked) };
  return { ...compared, shown: shownOf(compared, asked) };
}

/** Return the choice looked at: the one asked for, else the one that the model gave. */
function chosen(meta: Meta, place: Place, row: number): Loaded<number> {
  if (!readsChoices(meta)) return { value: 0 };
  if (place.choice !== null) return { value: Math.min(place.choice, countOfChoices(meta) - 1) };
  const first = api.tokens(place.run, row, 0);
  if (!first.value) return { error: first.error };
  return { value: Math.max(0, (first.value.choices ?? []).findIndex((c) => c.given)) };
}

/** Return what pins a side: where it stands, and what is compared there. */
export function pinOf(side: Side, { target, vs }: Question): Pinned {
  const { run, choice } = side.place;
  return { run, ex: side.tokens.example_id, pos: side.pos, choice, target, vs };
}

/** Return whether a side stands where its example's decision was made. */
export function atDecision(side: Side): boolean {
  return readsChoices(side.meta) || side.pos === side.tokens.decision?.pos;
}

/** Return the choices of a question where it is they that are decided between. */
export function choicesAt(side: Side): Choice[] | null {
  return atDecision(side) ? side.tokens.choices : null;
}

/**
 * Return the target and what it is compared with: what was asked for, else what comes next (or is right), and the
 * most probable competitor of the target.
 */
export function question(side: Side, { target: aim, vs }: Question): { target: Token | null; competitor: Token | null } {
  const choices = choicesAt(side);
  if (choices) {
    const chosen = choices.find((c) => choiceId(side, c) === aim);
    const right = chosen ?? choices.find((c) => c.right) ?? choices.find((c) => c.given);
    const others = choices.filter((c) => c !== right).sort((a, b) => b.logit - a.logit);
    const asked = others.find((c) => choiceId(side, c) === vs) ?? others[0];
    const named = (c: Choice | undefined) => (c ? { id: choiceId(side, c), text: `${c.label} ${c.text}` } : null);
    return { target: named(right), competitor: named(asked) };
  }
  const { decision } = side.tokens;
  const list = candidates(side);
  if (list.length === 0) return { target: decision?.true ?? decision?.pred ?? null, competitor: null };
  const target = list.find((c) => c.id === aim) ?? list.find((c) => c.target) ?? list[0];
  const others = list.filter((c) => c.id !== target.id);
  const asked = vs === null ? undefined : others.find((c) => c.id === vs);
  const strongest = [...others].sort((a, b) => b.prob - a.prob)[0] ?? null;
  return { target, competitor: asked ?? strongest };
}

/** The id of a choice in contributions and in the lens by choice: its number, or where choices are tokens, its token. */
export function choiceId(side: Side, choice: Choice): number {
  return readsChoices(side.meta) ? (side.tokens.choices ?? []).indexOf(choice) : choice.id;
}

export interface Candidate extends Token {
  prob: number;
  /** Whether it is the target where no other was chosen: what really comes next, where that is known. */
  target: boolean;
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
  const named = (t: { id: number; text: string; prob: number | null }, target: boolean): Candidate => ({
    id: t.id, text: t.text, prob: t.prob ?? NaN, target,
  });
  const list = decision.top.map((t) => named(t, t.id === truth?.id));
  if (truth && !list.some((t) => t.target)) list.unshift(named(truth, true));
  return list;
}

/** Return whether the target at the side's position is the token that really comes next. */
export function isKnown(side: Side): boolean {
  const lens = side.lens.value;
  return lens ? side.slot >= 0 && lens.known[side.slot] === 1 : (side.tokens.decision?.known ?? false);
}

/**
 * Return whether the model says what really comes next; null where that is not known.
 * Probabilities are kept in float16, in which two may be equal: the rank and the run's own verdict are exact.
 */
export function isRight(side: Side): boolean | null {
  const { decision } = side.tokens;
  if (atDecision(side) && decision?.correct != null) return decision.correct;
  if (!isKnown(side)) return null;
  const lens = side.lens.value;
  return lens ? lens.values.rank[(lens.depths - 1) * lens.pos.length + side.slot] === 1 : null;
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

/** Return what each part adds to the lead of the target over its competitor: the difference of two rows. */
export function lead(side: Side): Lead | null {
  const found = side.contributions.value;
  if (!found || !side.target || !side.competitor) return null;
  const of = (id: number) => found.candidates.findIndex((c) => c.id === id);
  const [target, competitor] = [of(side.target.id), of(side.competitor.id)];
  if (target < 0 || competitor < 0) return null;
  const row = (at: number): Omit<Lead, "total"> => ({
    parts: found.parts, values: found.values[at], heads: found.heads?.[at] ?? null,
  });
  return minus(row(competitor), row(target)); // each row is the lead of the target over one candidate
}

/** Return one lead less another, part by part. */
export function minus(a: Omit<Lead, "total">, b: Omit<Lead, "total">): Lead {
  const values = a.values.map((v, i) => v - b.values[i]);
  const heads = a.heads && b.heads && a.heads.map((layer, l) => layer.map((v, h) => v - b.heads![l][h]));
  return { parts: a.parts, values, heads, total: values.reduce((sum, v) => sum + v, 0) };
}

/** Return the layer whose attention pushes most, by its parts; null where there is no such part. */
export function strongestLayer(found: Lead): number | null {
  let best: number | null = null;
  let most = -1;
  found.parts.forEach((part, i) => {
    if (part.startsWith("attn ") && Math.abs(found.values[i]) > most) {
      most = Math.abs(found.values[i]);
      best = layerOf(part);
    }
  });
  return best;
}

/** The layer and head shown: those asked for, else the head that pushes most, else the last layer's first. */
function shownOf(side: Side, { layer, head }: Shown): Shown {
  const axes = side.meta.attention;
  if (!axes) return { layer: null, head: null };
  const pushes = lead(side)?.heads ?? null;
  const strongest = (layers: number[]): { l: number; h: number } => {
    const size = ({ l, h }: { l: number; h: number }) => Math.abs(pushes?.[l]?.[h] ?? 0);
    return layers.flatMap((l) => axes.heads.map((h) => ({ l, h }))).reduce((a, b) => (size(b) > size(a) ? b : a));
  };
  const kept = layer !== null && axes.layers.includes(layer);
  const at = kept ? layer : pushes ? strongest(axes.layers).l : axes.layers[axes.layers.length - 1];
  return { layer: at, head: head !== null && axes.heads.includes(head) ? head : strongest([at]).h };
}
