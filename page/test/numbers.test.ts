import { describe, expect, it } from "vitest";
import { assemble, halves } from "../src/api";
import { colours, inkOn, ramp, SCALES } from "../src/colour";
import { brief, depth, layerOf, number, prob, signed, word } from "../src/format";
import { spread } from "../src/panels/trajectory";

it("decodes float16", () => {
  const raw = Uint16Array.of(0x3c00, 0xc000, 0x3555, 0x0001, 0x7bff, 0x0000, 0x7c00);
  const values = [...halves(raw.buffer)];
  expect(values.slice(0, 2)).toEqual([1, -2]);
  expect(values[2]).toBeCloseTo(1 / 3, 3);
  expect(values[3]).toBe(2 ** -24);
  expect(values.slice(4)).toEqual([65504, 0, Infinity]);
});

it("puts the blocks of a lens together", () => {
  const [half, one, zero] = [0x3800, 0x3c00, 0];
  const block = (whole: number[], halved: number[]) => {
    const buffer = new ArrayBuffer(whole.length * 4 + halved.length * 2);
    new Int32Array(buffer, 0, whole.length).set(whole);
    new Uint16Array(buffer, whole.length * 4, halved.length).set(halved);
    return buffer;
  };
  const head = {
    pos: [0, 4], known: [1, 0], depths: 2, top: 1, statistics: ["prob", "rank"], states_per_block: 3,
    candidates: [[1], [2]], words: {}, python: { lens: "", trajectories: "" },
  };
  // Three states, then one: ranks, ids; probabilities of target, of the most probable, of the candidate.
  const first = block([4, 50_257, 6, 7, 8, 9], [one, half, zero, one, half, zero, half, one, one]);
  const lens = assemble(head, [first, block([3, 10], [half, one, zero])]);
  expect([...lens.topIds]).toEqual([7, 8, 9, 10]);
  expect([...lens.topProbs]).toEqual([1, 0.5, 0, 1]);
  expect([...lens.candidateProbs]).toEqual([0.5, 1, 1, 0]);
  expect([...lens.values.prob]).toEqual([1, 0.5, 0, 0.5]);
  expect([...lens.values.rank]).toEqual([4, 50_257, 6, 3]);
  expect(lens.slotOf.get(4)).toBe(1);
});

describe("writing", () => {
  it("probabilities", () => expect([0.24583, 0.004, 0.00005, 0.9968, 0.99999, 0, NaN].map(prob)).toEqual(["0.25", "0.0040", "5e−5", "0.997", "1.00", "0", "–"]));
  it("signs", () => expect([1.234, -0.5, 0, -0.0004, null].map((v) => signed(v))).toEqual(["+1.23", "−0.50", "0.00", "−0.0004", "–"]));
  it("small numbers by figures that matter", () => {
    expect([0.0012, 0.05, 0.25, 2, 1234.5, -0.004].map((v) => number(v))).toEqual(["0.0012", "0.050", "0.25", "2", "1,235", "−0.0040"]);
    expect([number(0.04, 0), number(1e-9)]).toEqual(["0", "1.0e−9"]);
  });
  it("the layer of a part", () => expect(["embed", "attn 3", "mlp 11", "remainder"].map(layerOf)).toEqual([null, 3, 11, null]));
  it("tokens", () => {
    expect(word(" the\n")).toBe("\u2423the⏎");
    expect([brief(" the"), brief(" "), depth(0), depth(3)]).toEqual(["the", "\u2423", "embedding", "layer 2"]);
  });
});

describe("colours", () => {
  it("go from one end to the other", () => {
    const table = ramp(["#000000", "#ffffff"]);
    expect([table[0], table[3 * 255], Math.round(table[3 * 128] / 4)]).toEqual([0, 255, 32]);
  });
  it("carry ink that reads: contrast of 4.5 everywhere", () => {
    const channel = (v: number) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]: number[]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    for (const theme of ["light", "dark"] as const) {
      for (const kind of ["magnitude", "signed"] as const) {
        const table = colours(kind, theme);
        for (let at = 0; at < 256; at++) {
          const ink = inkOn(table, at);
          const [a, b] = [luminance([...table.subarray(3 * at, 3 * at + 3)]), luminance([1, 3, 5].map((i) => parseInt(ink.slice(i, i + 2), 16)))];
          expect((Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), `${theme} ${kind} ${at}`).toBeGreaterThan(4.5);
        }
      }
    }
  });
  it("scale within the table", () => {
    expect([SCALES.prob(1)(0), SCALES.prob(1)(2), SCALES.rank(100)(1), SCALES.rank(100)(100), SCALES.kl(4)(1)]).toEqual([0, 255, 255, 0, 127.5]);
  });
});

it("moves labels apart and keeps them on the chart", () => {
  const placed = spread([{ y: 0.5 }, { y: 0.49 }, { y: 0 }, { y: 0.01 }], 0.1, 1);
  expect(placed.map((p) => p.y)).toEqual([...placed.map((p) => p.y)].sort((a, b) => b - a));
  placed.slice(1).forEach((p, i) => expect(placed[i].y - p.y).toBeGreaterThan(0.09));
  expect(placed[3].y).toBeGreaterThanOrEqual(0);
});
