import { effect } from "@preact/signals";
import { afterEach, beforeEach, expect, it, vi } from "vitest";

// The cache is a module's own: every test takes a fresh one.
let cache: typeof import("../src/cache");
const asked: string[] = [];
let answer: (path: string) => Promise<Response>;

beforeEach(async () => {
  vi.resetModules();
  vi.useFakeTimers();
  asked.length = 0;
  vi.stubGlobal("document", { baseURI: "http://page.test/" });
  vi.stubGlobal("fetch", (url: URL) => {
    asked.push(url.pathname.slice("/api/".length));
    return answer(asked[asked.length - 1]);
  });
  cache = await import("../src/cache");
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

const settled = () => vi.advanceTimersByTimeAsync(1);
const gone = () => Promise.reject(new TypeError("Failed to fetch"));
const text = (value: unknown) => Promise.resolve(new Response(JSON.stringify(value)));
const read = (path: string, kept = false) => cache.load<unknown>(path, cache.json, kept);

it("asks a stopped server once for each thing, says so, and asks again after a while", async () => {
  answer = gone;
  const seen: string[] = [];
  const stop = effect(() => void seen.push(["a.json", "b.json"].map((p) => read(p).error ?? "").join("|")));
  await settled();
  expect(asked).toEqual(["a.json", "b.json"]); // and not for ever
  expect(cache.unreachable.value).toContain("Is decision-traces view still running?");
  expect(seen.at(-1)).toContain("does not answer");
  await vi.advanceTimersByTimeAsync(5000);
  expect(asked.slice(2)).toEqual(["a.json"]); // one probe, not all that failed
  answer = () => text(1);
  await vi.advanceTimersByTimeAsync(5000);
  expect(asked.slice(3)).toEqual(["a.json", "b.json"]);
  expect(cache.unreachable.value).toBeNull();
  expect([read("a.json").value, read("b.json").value]).toEqual([1, 1]);
  stop();
});

it("asks again at once when told to", async () => {
  answer = gone;
  read("a.json");
  await settled();
  answer = () => text("back");
  await cache.retry();
  expect(read("a.json")).toEqual({ value: "back" });
  await vi.advanceTimersByTimeAsync(60_000);
  expect(asked.length).toBe(2);
});

it("keeps what cannot be read and what the server refuses as sentences", async () => {
  answer = (path) => {
    if (path === "torn.json") return Promise.resolve(new Response("{"));
    const body = path === "said.json" ? '{"error":"No run."}' : path === "bare.json" ? "{}" : "<html>";
    return Promise.resolve(new Response(body, { status: 404, statusText: "Not Found" }));
  };
  const paths = ["torn.json", "said.json", "bare.json", "page.json"];
  paths.forEach((path) => read(path));
  await settled();
  const [torn, ...others] = paths.map((path) => read(path).error);
  expect(torn).toContain("torn.json cannot be read");
  expect(others).toEqual(["No run.", "The server answers 404 Not Found.", "The server answers 404 Not Found."]);
  await vi.advanceTimersByTimeAsync(60_000);
  expect(asked.length).toBe(4);
});

it("drops what was read longest ago when it holds too much, never what the page is built on", async () => {
  const large = () => Promise.resolve(new Response(new Uint8Array(20 * 2 ** 20)));
  answer = large;
  const bytes = (path: string, kept = false) => cache.load(path, (b) => b.byteLength, kept);
  bytes("meta", true);
  for (const path of ["a", "b", "c"]) bytes(path);
  await settled();
  bytes("a"); // read again: b is now the oldest
  bytes("d");
  await settled();
  asked.length = 0;
  for (const path of ["meta", "a", "c", "d", "b"]) bytes(path);
  expect(asked).toEqual(["b"]);
});

it("forgets what it has of a run that was replaced, says so, and asks for what is looked at again", async () => {
  let version = "a.1";
  const of = (path: string) => new Response(`"${path} of ${version}"`, { headers: { "X-Run": version } });
  answer = (path) => Promise.resolve(path === "other/x" ? new Response('"other"') : of(path));
  const seen: unknown[] = [];
  const stop = effect(() => void seen.push(read("r/meta", true).value));
  read("r/rows");
  read("other/x");
  await settled();
  expect([seen.at(-1), cache.changed.value]).toEqual(["r/meta of a.1", ""]);
  version = "b.1";
  asked.length = 0;
  read("r/new");
  await settled();
  expect(read("r/new").value).toBe("r/new of b.1");
  expect(cache.changed.value).toMatch(/^The run r was replaced at \d\d:\d\d; you see the new one\.$/);
  expect(seen.slice(-2)).toEqual([undefined, "r/meta of b.1"]);
  expect(asked).toEqual(["r/new", "r/meta"]); // and nothing that nobody looks at
  read("r/rows");
  read("other/x");
  await settled();
  expect([read("r/rows").value, read("other/x").value]).toEqual(["r/rows of b.1", "other"]);
  version = "b.2";
  read("r/newer");
  await settled();
  expect(cache.changed.value).toContain("What is computed on r changed at");
  stop();
});

it("does not take an answer that was on its way when its run was replaced", async () => {
  let arrive = (_: Response) => {};
  const late = new Promise<Response>((resolve) => (arrive = resolve));
  const of = (version: string) => new Response(`"${version}"`, { headers: { "X-Run": version } });
  answer = (path) => (path === "r/late" ? late : Promise.resolve(of(path === "r/old" ? "a.1" : "b.1")));
  read("r/old");
  await settled();
  read("r/late");
  read("r/new");
  await settled();
  const said = cache.changed.value;
  answer = () => Promise.resolve(of("b.1"));
  arrive(of("a.1"));
  await settled();
  cache.changed.value = "";
  expect(said).toContain("replaced");
  read("r/late");
  await settled();
  expect([read("r/late").value, cache.changed.value]).toEqual(["b.1", ""]);
});

it("waits until something is there", async () => {
  answer = () => text([3]);
  await expect(cache.when(() => read("later.json").value)).resolves.toEqual([3]);
});
