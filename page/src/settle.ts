// Bringing what an address asks for in line with what the run has, and saying what it does not have.
import { signal } from "@preact/signals";
import type { State } from "./state";
import { countOfChoices } from "./task";
import type { Meta, Runs } from "./types";

/** What the address asked for and the run does not have; shown until it is read. */
export const notice = signal("");

export interface Settled {
  patch: Partial<State>;
  notes: string[];
}

/** Return the run that the address names, or the first one. */
export function runOf(state: State, runs: Runs): string {
  return runs.runs.some((r) => r.key === state.run) ? state.run : runs.runs[0].key;
}

/** Return what has to change in a state so that everything in it exists in the run. */
export function settle(state: State, runs: Runs, meta: Meta): Settled {
  const patch: Partial<State> = {};
  const notes: string[] = [];
  if (state.run !== "" && state.run !== meta.key) {
    patch.run = meta.key;
    notes.push(`There is no run ${state.run} here; shown is ${meta.run_id}.`);
  }
  axes(state, meta, patch, notes);
  figures(state, meta, patch, notes);
  if (state.pin && !runs.runs.some((r) => r.key === state.pin!.run)) {
    patch.pin = null;
    notes.push(`There is no run ${state.pin.run} here to pin an example of.`);
  }
  return { patch, notes };
}

function axes(state: State, meta: Meta, patch: Partial<State>, notes: string[]): void {
  if (state.layer !== null && state.layer >= meta.L) {
    patch.layer = null;
    notes.push(`There is no layer ${state.layer}: layers go from 0 to ${meta.L - 1}.`);
  }
  const heads = meta.attention?.heads;
  if (state.head !== null && !(heads ? heads.includes(state.head) : state.head < meta.H)) {
    patch.head = null;
    notes.push(`There is no head ${state.head}${heads ? `: this run keeps ${heads.join(", ")}` : ""}.`);
  }
  if (state.choice !== null && state.choice >= countOfChoices(meta)) {
    patch.choice = null;
    notes.push(`There is no choice ${state.choice} with activations of its own.`);
  }
}

function figures(state: State, meta: Meta, patch: Partial<State>, notes: string[]): void {
  const has = (name: string) => meta.figures.some((f) => f.name === name);
  const gone: string[] = [];
  const sort = state.sort.replace(/^-/, "");
  if (sort !== "" && !has(sort)) {
    patch.sort = "";
    gone.push(sort);
  }
  const ranges = Object.keys(state.ranges).filter((name) => !has(name));
  if (ranges.length > 0) patch.ranges = without(state.ranges, ranges);
  const known = (name: string) =>
    meta.figures.some((f) => f.name === name && f.categories?.includes(state.kinds[name]));
  const kinds = Object.keys(state.kinds).filter((name) => !known(name));
  if (kinds.length > 0) patch.kinds = without(state.kinds, kinds);
  gone.push(...ranges, ...kinds.map((name) => `${name} = ${state.kinds[name]}`));
  if (state.only !== "all" && !has("correct")) {
    patch.only = "all";
    gone.push("right and wrong");
  }
  if (gone.length > 0) notes.push(`This run has nothing to filter or sort by: ${[...new Set(gone)].join(", ")}.`);
}

export function without<T>(all: Record<string, T>, names: string[]): Record<string, T> {
  return Object.fromEntries(Object.entries(all).filter(([name]) => !names.includes(name)));
}
