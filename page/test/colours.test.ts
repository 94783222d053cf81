import { describe, expect, it } from "vitest";
import { paint } from "../src/drawing";
import { ranks, shares } from "../src/legend";
import css from "../src/style.css?raw";

function variables(selector: string): Record<string, string> {
  const block = css.slice(css.indexOf(`${selector} {`), css.indexOf("}", css.indexOf(`${selector} {`)));
  return Object.fromEntries([...block.matchAll(/--([\w-]+): (#[0-9a-f]{6})/g)].map(([, name, value]) => [name, value]));
}

function luminance(hex: string): number {
  const [r, g, b] = [1, 3, 5].map((i) => {
    const v = parseInt(hex.slice(i, i + 2), 16) / 255;
    return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function contrast(a: string, b: string): number {
  const [dark, light] = [luminance(a), luminance(b)].sort((x, y) => x - y);
  return (light + 0.05) / (dark + 0.05);
}

describe.each([":root", ':root[data-theme="dark"]'])("colours of %s", (selector) => {
  const colour = variables(selector);
  it.each(["ink", "muted", "target", "competitor", "other"])("%s reads as text", (name) => {
    const grounds = name === "other" ? ["panel"] : ["panel", "chosen"];
    for (const ground of grounds) expect(contrast(colour[name], colour[ground]), ground).toBeGreaterThanOrEqual(4.5);
  });
  it("lines can be seen", () => {
    expect(contrast(colour["line-strong"], colour.panel)).toBeGreaterThanOrEqual(3);
  });
});

it("paints tiny cells as pixels and leaves out what is not known", () => {
  const pixels = new Uint8ClampedArray(8);
  const table = new Uint8Array(768).fill(9);
  expect(paint(pixels, { rows: 1, cols: 2, at: (_, c) => (c === 0 ? 255 : NaN), table })).toBe(true);
  expect([...pixels]).toEqual([9, 9, 9, 255, 0, 0, 0, 0]);
});

it("marks scales at round values", () => {
  expect(ranks(50257)).toEqual([1, 10, 100, 1000, 10000]);
  expect(shares(8.37, [0, 1 / 16, 1 / 4, 1])).toEqual([0, 0.5, 2, 8.4]);
});
