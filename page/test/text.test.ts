import { expect, it } from "vitest";

/** What makes markup or a program of a text. Names and texts of a run are data, which Preact and Plot set as text. */
const OBEYED =
  /\b(innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|srcdoc|createContextualFragment|DOMParser|eval)\b|\bdocument\s*\.\s*write|\bFunction\s*\(|\bset(Timeout|Interval)\s*\(\s*["'`]|javascript:|\.html\s*\(/;

const sources = import.meta.glob<string>(["../src/**/*.{ts,tsx}", "../index.html"], {
  query: "?raw",
  import: "default",
  eager: true,
});

it("makes no markup and no program of a text of a run", () => {
  expect(Object.keys(sources).length).toBeGreaterThan(30);
  expect(Object.keys(sources).filter((name) => OBEYED.test(sources[name]))).toEqual([]);
});

it("would find it", () => {
  const planted = ["node.innerHTML = name", "eval(name)", "document.write(name)", 'new Function("x")', "d3.html(name)"];
  expect(planted.filter((text) => !OBEYED.test(text))).toEqual([]);
});
