import { expect, it } from "vitest";
import { format, parse, START } from "../src/state";

it("says nothing of what stands at its start", () => expect(format(START)).toBe(""));

it("comes back the same from its address", () => {
  const state = {
    ...START, run: "r1", ex: "a b&c~d", pos: 3, layer: 0, head: 11, vs: 262, stat: "kl" as const, colour: "off" as const, only: "wrong" as const, q: "the “fox”", sort: "-entropy",
    ranges: { entropy: [2, null] as [number | null, number | null] }, kinds: { of_kind: "story" }, pin: { run: "r0", ex: "tiny-1", pos: 7, choice: 2 }, cmp: "diff" as const, choice: 4,
  };
  expect(parse(format(state))).toEqual(state);
});

it("leaves what cannot be read at its start", () => {
  const state = parse("?pos=-1&layer=x&head=1e3&stat=nonsense&colour=&only=both&f.entropy=a..b&f.margin=3&pin=~&cmp=%00");
  expect(state).toEqual({ ...START, ranges: { entropy: [null, null] } });
});
