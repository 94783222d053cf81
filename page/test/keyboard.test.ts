import { afterEach, beforeEach, expect, it, vi } from "vitest";
import { metaOf } from "./sides";

let page: typeof import("../src/state");
let answers: Record<string, (value: unknown) => void>;
let press: (key: string) => void;

const json = (value: unknown) => new Response(JSON.stringify(value));

beforeEach(async () => {
  vi.resetModules();
  answers = {};
  vi.stubGlobal("location", { pathname: "/", search: "?run=r0&ex=e1", hash: "" });
  vi.stubGlobal("history", { pushState: () => {}, replaceState: () => {} });
  vi.stubGlobal("document", {
    baseURI: "http://page.test/",
    addEventListener: (_: string, told: (event: unknown) => void) => {
      press = (key) => told({ key, target: { closest: () => null }, preventDefault: () => {} });
    },
  });
  vi.stubGlobal("window", { addEventListener: () => {} });
  vi.stubGlobal("fetch", (url: URL) => {
    const path = url.pathname.slice("/api/".length) + url.search;
    if (path === "runs.json") return Promise.resolve(json({ bundle: false, runs: [] }));
    if (path.endsWith("meta.json")) return Promise.resolve(json(metaOf({ n: 6, rows_per_part: 4 })));
    return new Promise<Response>((resolve) => (answers[path] = (value) => resolve(json(value))));
  });
  page = await import("../src/state");
  await import("../src/keyboard").then(({ listen }) => listen());
});
afterEach(() => vi.unstubAllGlobals());

const asked = (path: string) => vi.waitUntil(() => path in answers);
const settled = () => new Promise((resolve) => setTimeout(resolve, 0));
const ids = (...id: string[]) => ({ id, text: id });

it("follows the keys that were pressed before the example and the list were here", async () => {
  press("ArrowDown");
  press("ArrowDown");
  await asked("r0/row?example=e1");
  press("ArrowUp");
  answers["r0/row?example=e1"]({ row: 1 });
  await asked("r0/rows/0.json");
  press("ArrowDown");
  answers["r0/rows/0.json"](ids("e0", "e1", "e2", "e3"));
  await vi.waitUntil(() => page.state.value.ex !== "e1");
  expect(page.state.value.ex).toBe("e3");
  press("ArrowDown"); // from an example that is not here yet, to a part of the list that is not either
  press("ArrowDown");
  press("ArrowDown");
  await asked("r0/rows/1.json");
  answers["r0/rows/1.json"](ids("e4", "e5"));
  await vi.waitUntil(() => page.state.value.ex !== "e3");
  expect(page.state.value.ex).toBe("e5"); // the last one: there is none three steps on
});

it("leaves the keys be when the reader has gone elsewhere meanwhile", async () => {
  press("ArrowDown");
  await asked("r0/row?example=e1");
  page.open("e5");
  answers["r0/row?example=e1"]({ row: 1 });
  await settled();
  expect(page.state.value.ex).toBe("e5");
  press("ArrowUp");
  await asked("r0/row?example=e5");
  answers["r0/row?example=e5"]({ row: 5 });
  await asked("r0/rows/1.json");
  answers["r0/rows/1.json"](ids("e4", "e5"));
  await vi.waitUntil(() => page.state.value.ex !== "e5");
  expect(page.state.value.ex).toBe("e4");
});

it("stays where the example is not in the run", async () => {
  press("ArrowDown");
  await asked("r0/row?example=e1");
  answers["r0/row?example=e1"](undefined); // an answer that is no JSON: an error
  await settled();
  await settled();
  press("ArrowDown");
  await settled();
  expect(page.state.value.ex).toBe("e1");
});
