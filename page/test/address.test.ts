import { afterEach, beforeEach, expect, it, vi } from "vitest";

let page: typeof import("../src/state");
const written: string[] = [];
const place = { pathname: "/", search: "", hash: "" };

beforeEach(async () => {
  vi.resetModules();
  vi.useFakeTimers({ now: 1e6 });
  written.length = 0;
  place.search = "";
  const write = (how: string) => (_: unknown, __: string, url: string) => {
    place.search = url.slice(1);
    written.push(`${how} ${url}`);
  };
  vi.stubGlobal("location", place);
  vi.stubGlobal("history", { pushState: write("push"), replaceState: write("replace") });
  page = await import("../src/state");
  page.go({ ex: "a" });
  vi.advanceTimersByTime(5000);
  written.length = 0;
});
afterEach(() => {
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

it("changes the state at once and the address not too often", () => {
  for (let pos = 0; pos < 60; pos++) {
    page.go({ pos });
    expect(page.state.value.pos).toBe(pos);
    vi.advanceTimersByTime(16);
  }
  vi.advanceTimersByTime(1000);
  expect(written.length).toBeLessThan(6);
  expect(written.at(-1)).toBe("replace /?ex=a&pos=59");
});

it("makes one step of the history of a held arrow key", () => {
  for (const ex of ["b", "c", "d", "e"]) {
    page.open(ex);
    vi.advanceTimersByTime(100);
  }
  vi.advanceTimersByTime(2000);
  expect(written.map((w) => w.split(" ")[0]).filter((how) => how === "push")).toHaveLength(1);
  expect(written[0]).toBe("push /?ex=b");
  expect(written.at(-1)).toBe("replace /?ex=e");
  page.open("f");
  expect(written.at(-1)).toBe("push /?ex=f");
});

it("keeps where a step began", () => {
  page.go({ pos: 1 });
  page.go({ pos: 2 }); // not written yet
  page.open("b");
  expect(written).toEqual(["replace /?ex=a&pos=1", "replace /?ex=a&pos=2", "push /?ex=b"]);
});

it("mends without a step", () => {
  page.amend({ run: "r1" });
  expect(written).toEqual(["replace /?run=r1&ex=a"]);
});

it("hands out parts of the state that stay the same", () => {
  const before = page.filters.value;
  page.go({ pos: 5, layer: 1 });
  expect(page.filters.value).toBe(before);
  page.go({ only: "wrong" });
  expect(page.filters.value).not.toBe(before);
});
