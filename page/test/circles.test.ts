import { expect, it } from "vitest";

type Sources = Record<string, string>;

const sources = import.meta.glob<string>("../src/**/*.{ts,tsx}", { query: "?raw", import: "default", eager: true });

/** Return the sources that one names: values and types alike, passed on with `export … from`, or loaded with `import()`. */
function importsOf(name: string, all: Sources): string[] {
  const named = [...all[name].matchAll(/\b(?:from|import)\s*\(?\s*["'](\.[^"']+)["']/g)].map(([, path]) => path);
  return named.filter((path) => !path.endsWith(".css")).map((path) => {
    const place = new URL(path, `file:///page/test/${name}`).pathname.replace("/page/", "../");
    const found = [`${place}.ts`, `${place}.tsx`].find((file) => file in all);
    if (!found) throw new Error(`${name} imports ${path}, which is not a source.`);
    return found;
  });
}

/** Return a circle for every import that leads back to a source on the way to it. */
function circles(all: Sources): string[] {
  const done = new Set<string>();
  const follow = (name: string, way: string[]): string[] => {
    if (way.includes(name)) return [[...way.slice(way.indexOf(name)), name].join(" → ")];
    if (done.has(name)) return [];
    const found = importsOf(name, all).flatMap((next) => follow(next, [...way, name]));
    done.add(name);
    return found;
  };
  return Object.keys(all).flatMap((name) => follow(name, []));
}

it("has no sources that import each other", () => {
  expect(Object.keys(sources).length).toBeGreaterThan(40);
  expect(circles(sources)).toEqual([]);
});

it("would find them", () => {
  const planted = {
    "../src/main.tsx": 'import "./style.css";\nimport { render } from "preact";\nimport { a } from "./a";',
    "../src/a.ts": 'import {\n  b,\n  type B,\n} from "./panels/b";\nimport * as leaf from "./leaf";',
    "../src/panels/b.tsx": 'import type { C } from "../c";\nimport { leaf } from "../leaf";',
    "../src/c.ts": 'export { a } from "./a";',
    "../src/d.ts": 'type Leaf = import("./e").Leaf;',
    "../src/e.ts": 'const d = () => import("./d");',
    "../src/leaf.ts": "",
  };
  expect(circles(planted)).toEqual([
    "../src/a.ts → ../src/panels/b.tsx → ../src/c.ts → ../src/a.ts",
    "../src/d.ts → ../src/e.ts → ../src/d.ts",
  ]);
});
