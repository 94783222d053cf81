import { afterEach, describe, expect, it } from "vitest";
import { overlay } from "../src/attended";
import { differences } from "../src/panels/lens-difference";
import { contributionEnd, lensEnd } from "../src/scales";
import { glance, isRight, lead, minus, peek, peekAt, peekAtBoth, question, strongestLayer } from "../src/side";
import { dataOf } from "../src/sides";
import { story } from "../src/story";
import { layout, lensOf, metaOf, sideWith } from "./sides";

describe("the verdict", () => {
  const tied: [number, number][] = [[0.1, 0.3], [0.25, 0.25], [0.25, 0.25]];
  it("of equal float16 probabilities is the rank's", () => {
    const [first, second] = [sideWith(lensOf(tied, 1)), sideWith(lensOf(tied, 2))];
    expect([isRight(first), isRight(second)]).toEqual([true, false]);
    expect([story(first)?.ahead, story(second)?.ahead]).toEqual([true, false]);
  });
  it("at the decision is the run's own", () => {
    const side = sideWith(lensOf(tied, 2));
    const decision = { pos: 2, correct: true, known: true };
    expect(isRight({ ...side, tokens: { ...side.tokens, decision } })).toBe(true);
    expect(isRight({ ...side, tokens: { ...side.tokens, decision: { ...decision, pos: 1 } } })).toBe(false);
  });
  it("is none where the text ends", () => expect(isRight(sideWith(lensOf(tied, 1, 0)))).toBeNull());
});

describe("glance", () => {
  afterEach(() => peekAt(sideWith(lensOf([], 1)), null));
  it("looks from under the pointer, each side from its own place", () => {
    const lens = { ...lensOf([[0.5, 0.2]], 1), slotOf: new Map([[1, 0], [2, 0], [3, 0]]) };
    const second = sideWith(lens);
    const first = { ...sideWith(lens), row: 4, pos: 3 };
    peekAtBoth(first, second, 1);
    expect([glance(first).pos, glance(second).pos]).toEqual([2, 1]);
    peekAt(second, 3);
    expect([glance(first).pos, glance(second).pos]).toEqual([3, 3]);
    const before = peek.value;
    peekAt(second, 3);
    expect(peek.value).toBe(before); // nothing is drawn again while the pointer stays in a cell
  });
});

describe("the question", () => {
  const side = sideWith(lensOf([[0.5, 0.2]], 1));
  const asked = (target: number | null, vs: number | null) => {
    const found = question(side, { target, vs });
    return [found.target?.id, found.competitor?.id];
  };
  it("is the actual token against its most probable competitor", () => expect(asked(null, null)).toEqual([7, 8]));
  it("is any candidate against any other", () => expect(asked(8, 7)).toEqual([8, 7]));
  it("is never a token against itself", () => expect([asked(8, 8), asked(7, 7)]).toEqual([[8, 7], [7, 8]]));
  it("is the usual one where another is asked for that is no candidate", () => expect(asked(99, 98)).toEqual([7, 8]));
});

describe("contributions", () => {
  const contributions = {
    value: {
      pos: 2, of: "token" as const, candidates: [{ id: 7, text: "" }, { id: 8, text: "" }],
      logit_cap: null, parts: ["embed", "attn 0", "mlp 0", "attn 1", "mlp 1", "remainder"],
      values: [[0, 0, 0, 0, 0, 0], [1, 0.5, -2, -3, 1, 0.25]], heads: [[[0, 0]], [[0.5, 0]]], python: "",
    },
  };
  const side = sideWith(lensOf([[0.5, 0.2]], 1), { contributions });
  it("of the target over its competitor are a difference of rows", () => {
    expect(lead(side)).toEqual({
      parts: contributions.value.parts, values: [1, 0.5, -2, -3, 1, 0.25], heads: [[0.5, 0]], total: -2.25,
    });
    const turned = lead({ ...side, target: side.competitor, competitor: side.target })!;
    expect([turned.values, turned.heads, turned.total]).toEqual([[-1, -0.5, 2, 3, -1, -0.25], [[-0.5, 0]], 2.25]);
    expect(strongestLayer(lead(side)!)).toBe(1);
    expect(minus(lead(side)!, lead(side)!).total).toBe(0);
  });
  it("fill their axis, running sum and all", () => {
    expect(contributionEnd([[1, -4, 1], [2]])).toBe(4);
    expect(contributionEnd([[1, 2, -1]])).toBe(3);
  });
});

describe("two examples", () => {
  it("share the larger of their scales", () => {
    const side = sideWith(lensOf([[0.5, 0.2]], 1));
    const lens = { all_positions: true, scale: { entropy: 9, kl: 2 }, vocab_size: 50 };
    const other = { ...side, meta: metaOf({ lens }) };
    expect([lensEnd([side, other], "entropy"), lensEnd([side, other], "kl")]).toEqual([9, 8]);
    expect([lensEnd([side, other], "rank"), lensEnd([side], "prob")]).toEqual([100, 1]);
  });
  it("give the data of both and their difference", () => {
    const [a, b] = [sideWith(lensOf([[0.5, 0.2]], 1)), sideWith(lensOf([[0.75, 0.1]], 1))];
    expect(dataOf([a], (s) => s.pos)).toBe(2);
    expect(dataOf([a, b], (s) => s.pos, () => 0)).toEqual({ pinned: 2, this: 2, difference: 0 });
    expect(differences(a, b, "prob")?.values).toEqual([[0.25]]);
    expect(differences({ ...a, pos: 3 }, b, "prob")?.values).toEqual([[null]]); // nothing lies under it
  });
});

describe("attention laid over attention", () => {
  it("counts tokens, not rows", () => {
    const some = layout({ queries: [1, 3], rows: 2 });
    expect(overlay(some, layout(), 0)).toEqual({ rows: [1, 3], cols: [0, 1, 2, 3] });
    expect(overlay(layout(), some, 0).rows).toEqual([-1, 0, -1, 1]);
    expect(overlay(layout(), layout(), 1)).toEqual({ rows: [1, 2, 3, -1], cols: [1, 2, 3, -1] });
  });
  it("minds that a cell may be several tokens", () => {
    const long = layout({ keys: 8, rows: 8, pool: 2 });
    expect(overlay(long, long, 0)).toEqual({ rows: [0, 1, 2, 3], cols: [0, 1, 2, 3] });
    expect(overlay(long, long, 2)).toEqual({ rows: [1, 2, 3, -1], cols: [1, 2, 3, -1] });
    expect(overlay(layout(), long, 0).rows).toEqual([0, 0, 1, 1]);
  });
});
