import { describe, expect, it } from "vitest";
import { bins, counterpart, select, sentence, telling } from "../src/list";
import type { Figure } from "../src/types";

const figure = (name: string, more: Partial<Figure> = {}): Figure => ({ name, label: name, unit: "", min: 0, max: 4, known: 5, categories: null, ...more });
const columns = {
  correct: Float32Array.of(1, 0, 0, 1, NaN),
  entropy: Float32Array.of(0.5, 3, 1, 2, NaN),
  true_prob: Float32Array.of(0.9, 0.1, 0.4, 0.8, NaN),
  n_tokens: Float32Array.of(5, 9, 7, 9, 1),
  of_kind: Float32Array.of(0, 1, 1, 1, 0),
};
const figures = [figure("correct"), figure("entropy", { unit: "nats" }), figure("of_kind", { label: "kind", categories: ["copy", "story"] })];
const none = { only: "all" as const, ranges: {}, kinds: {}, q: "", sort: "" };

describe("select", () => {
  it("keeps the run's order", () => expect([...select(5, columns, figures, none, null)]).toEqual([0, 1, 2, 3, 4]));
  it("takes wrong ones alone; unknown ones are neither", () => {
    expect([...select(5, columns, figures, { ...none, only: "wrong" }, null)]).toEqual([1, 2]);
    expect([...select(5, columns, figures, { ...none, only: "right" }, null)]).toEqual([0, 3]);
  });
  it("filters by range, kind and found text together", () => {
    expect([...select(5, columns, figures, { ...none, ranges: { entropy: [1, null] } }, null)]).toEqual([1, 2, 3]);
    expect([...select(5, columns, figures, { ...none, kinds: { of_kind: "copy" } }, null)]).toEqual([0, 4]);
    expect([...select(5, columns, figures, none, Uint8Array.of(0b01001))]).toEqual([0, 3]);
  });
  it("sorts, those without a figure last either way", () => {
    expect([...select(5, columns, figures, { ...none, sort: "entropy" }, null)]).toEqual([0, 2, 3, 1, 4]);
    expect([...select(5, columns, figures, { ...none, sort: "-entropy" }, null)]).toEqual([1, 3, 2, 0, 4]);
  });
  it("is quick with a hundred thousand", () => {
    const many = { entropy: Float32Array.from({ length: 100_000 }, (_, i) => (i * 7919) % 100_003) };
    const began = performance.now();
    select(100_000, many, figures, { ...none, sort: "-entropy", ranges: { entropy: [10, 90_000] } }, null);
    expect(performance.now() - began).toBeLessThan(400);
  });
});

describe("sentence", () => {
  it("reads", () => {
    expect(sentence(figures, { ...none, only: "wrong", ranges: { entropy: [2, null] } })).toBe("wrong and entropy ≥ 2 nats");
    expect(sentence(figures, { ...none, kinds: { of_kind: "story" }, q: "fox", ranges: { entropy: [0.25, 1.5] } })).toBe(
      "kind is story and entropy from 0.25 to 1.50 nats and containing “fox”",
    );
    expect(sentence(figures, none)).toBe("");
  });
});

describe("examples worth opening", () => {
  it("begins with the wrong one that was nearly right", () => expect(telling(5, columns)).toBe(2));
  it("begins with the first where nothing is known", () => expect(telling(3, {})).toBe(0));
  it("finds one of the same kind that turned out the other way", () => {
    expect(counterpart(1, 5, columns, figures)).toBe(3);
    expect(counterpart(4, 5, columns, figures)).toBe(-1);
  });
});

it("counts bins, the wrong ones apart", () => {
  const counted = bins(columns.entropy, columns.correct, figure("entropy"), 4);
  expect([...counted.right]).toEqual([1, 0, 1, 0]);
  expect([...counted.wrong]).toEqual([0, 1, 0, 1]);
});
