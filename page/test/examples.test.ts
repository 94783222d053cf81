import { afterEach, beforeEach, expect, it, vi } from "vitest";
import type { Listed } from "../src/examples";
import { metaOf } from "./sides";

let page: typeof import("../src/state");
let listed: { readonly value: Listed };
let answers: Record<string, (value: Response) => void>;

const figure = { name: "correct", label: "right", unit: "", min: 0, max: 1, known: 3, categories: null };
const json = (value: unknown) => new Response(JSON.stringify(value));

beforeEach(async () => {
  vi.resetModules();
  answers = {};
  const place = { pathname: "/", search: "", hash: "" };
  vi.stubGlobal("location", place);
  vi.stubGlobal("history", { pushState: () => {}, replaceState: () => {} });
  vi.stubGlobal("document", { baseURI: "http://page.test/" });
  vi.stubGlobal("fetch", (url: URL) => {
    const path = url.pathname.slice("/api/".length) + url.search;
    if (path === "runs.json") return Promise.resolve(json({ bundle: false, runs: [] }));
    if (path.endsWith("meta.json")) return Promise.resolve(json(metaOf({ n: 3, figures: [figure] })));
    if (path.includes("columns/")) return Promise.resolve(new Response(Float32Array.of(1, 0, 1)));
    return new Promise<Response>((resolve) => (answers[path] = resolve));
  });
  page = await import("../src/state");
  ({ listed } = await import("../src/examples"));
  await vi.waitUntil(() => listed.value.rows.length === 3 && !listed.value.waiting);
});
afterEach(() => vi.unstubAllGlobals());

const rows = () => [...listed.value.rows];

it("keeps the rows before while a search is on its way", async () => {
  page.go({ only: "right" });
  expect(rows()).toEqual([0, 2]);
  page.go({ q: "fox" });
  expect([rows(), listed.value.waiting]).toEqual([[0, 2], true]);
  answers["r0/search?q=fox"](new Response(Uint8Array.of(0b100)));
  await vi.waitUntil(() => !listed.value.waiting);
  expect(rows()).toEqual([2]);
});

it("shows no rows as found when the search fails, and says why", async () => {
  page.go({ q: "fox" });
  expect(rows()).toEqual([0, 1, 2]);
  const body = '{"error":"q: too long."}';
  answers["r0/search?q=fox"](new Response(body, { status: 400 }));
  await vi.waitUntil(() => !listed.value.waiting);
  expect([rows(), listed.value.error]).toEqual([[], "q: too long."]);
});
