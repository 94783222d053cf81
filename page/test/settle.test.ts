import { expect, it } from "vitest";
import { runOf, settle } from "../src/settle";
import { START } from "../src/state";
import type { Figure } from "../src/types";
import { metaOf } from "./sides";

const figure = (name: string, categories: string[] | null = null): Figure => ({
  name, label: name, unit: "", min: 0, max: 1, known: 1, categories,
});
const runs = { version: "", bundle: false, exact: true, runs: [{ key: "r0", run_id: "run" }] };
const meta = metaOf({ figures: [figure("correct"), figure("entropy"), figure("of_kind", ["copy"])] });

it("changes nothing of what the run has", () => {
  const state = {
    ...START, layer: 1, head: 1, only: "wrong" as const, sort: "-entropy", kinds: { of_kind: "copy" },
    ranges: { entropy: [0, 1] as [number, number] }, pin: { run: "r0", ex: "a", pos: 0, choice: null, target: null, vs: null },
  };
  expect(settle(state, runs, meta)).toEqual({ patch: {}, notes: [] });
});

it("takes back what the run does not have, and says what", () => {
  const state = {
    ...START, run: "r9", layer: 99, head: 7, choice: 2, sort: "margin", kinds: { of_kind: "story", of_x: "y" },
    ranges: { rank: [1, 2] as [number, number], entropy: [0, 1] as [number, number] },
    pin: { run: "r8", ex: "a", pos: 0, choice: null, target: null, vs: null },
  };
  expect(runOf(state, runs)).toBe("r0");
  const { patch, notes } = settle(state, runs, meta);
  expect(patch).toEqual({
    run: "r0", layer: null, head: null, choice: null, sort: "", kinds: {}, ranges: { entropy: [0, 1] }, pin: null,
  });
  const said = notes.join(" ");
  for (const part of ["no run r9", "no layer 99", "no head 7", "no choice 2", "margin", "rank", "of_kind = story", "r8"]) {
    expect(said).toContain(part);
  }
  expect(settle({ ...state, ...patch }, runs, meta).notes).toEqual([]); // once is enough
});

it("shows all where nobody knows what is right", () => {
  expect(settle({ ...START, only: "wrong" }, runs, metaOf()).patch).toEqual({ only: "all" });
});
