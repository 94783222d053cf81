import { expect, test } from "vitest";
import { betweenChoices, countOfChoices, foresees, readsChoices } from "../src/task";
import type { Task } from "../src/types";
import { metaOf } from "./sides";

const kind = (more: Partial<Task>) => metaOf({ task: { ...metaOf().task, name: "a kind of tomorrow", ...more } });

test("what the page does follows from what the server says of the kind, and not from its name", () => {
  const plain = kind({});
  expect([readsChoices(plain), betweenChoices(plain), countOfChoices(plain), foresees(plain)]).toEqual([false, false, 0, true]);
  const read = kind({ choices: "sequences", n_choices: 5 });
  expect([readsChoices(read), betweenChoices(read), countOfChoices(read), foresees(read)]).toEqual([true, true, 5, false]);
  const prompt = kind({ choices: "tokens" });
  expect([readsChoices(prompt), betweenChoices(prompt), countOfChoices(prompt), foresees(prompt)]).toEqual([false, true, 0, true]);
  expect(foresees(kind({ fills_gaps: true }))).toBe(false);
});

test("a way of choosing that the page does not know is an error", () => {
  const newer = kind({ choices: "spans" as unknown as "tokens" });
  expect(() => readsChoices(newer)).toThrow('no choices "spans"');
});
