import { expect, it } from "vitest";
import { format, parse, START, type State } from "../src/state";

it("says nothing of what stands at its start", () => expect(format(START)).toBe(""));

it("comes back the same from its address", () => {
  const state: State = {
    ...START, run: "r1", ex: "a b&c~d", pos: 3, choice: 4, layer: 0, head: 11, target: 31, vs: 262, stat: "kl", fit: true,
    colour: "off", only: "wrong", q: "the “fox”", sort: "-entropy", ranges: { entropy: [2, null] },
    kinds: { of_kind: "story" }, pin: { run: "r0", ex: "tiny-1", pos: 7, choice: 2, target: 4, vs: 9 }, cmp: "diff",
  };
  expect(parse(format(state))).toEqual(state);
});

it("keeps names that hold the mark between the parts of a pin", () => {
  for (const ex of ["a~b", "100%", "~", "a%7Eb", "é~ü"]) {
    const pin = { run: "r0", ex, pos: null, choice: null, target: null, vs: 3 };
    expect(parse(format({ ...START, pin })).pin).toEqual(pin);
  }
  expect(parse("?pin=r0~100%25~4").pin).toEqual({ run: "r0", ex: "100%", pos: 4, choice: null, target: null, vs: null });
});

it("leaves what cannot be read at its start", () => {
  const search = "?pos=-1&layer=x&head=1e3&stat=no&colour=&only=both&f.entropy=a..b&f.margin=3&pin=~&cmp=%00&fit=2";
  expect(parse(search)).toEqual({ ...START, ranges: { entropy: [null, null] } });
});
