// What the page asks of a run's kind of decision: the server's words for it, and what follows from them.
import type { Meta } from "./types";

/** Whether the model reads each choice by itself, so that a choice is looked at, and no position of a text. */
export function readsChoices({ task }: Meta): boolean {
  switch (task.choices) {
    case "sequences":
      return true;
    case "tokens":
    case null:
      return false;
    default:
      return unknown(task.choices);
  }
}

/** Whether the decision is between choices, which can be followed through the layers. */
export const betweenChoices = ({ task }: Meta): boolean => task.choices !== null;

/** How many choices are read by themselves; 0 where none is. */
export const countOfChoices = (meta: Meta): number => (readsChoices(meta) ? (meta.task.n_choices ?? 1) : 0);

/** Whether each token is predicted at the one before, and not where it stands. */
export const foresees = (meta: Meta): boolean => !readsChoices(meta) && !meta.task.fills_gaps;

function unknown(choices: never): never {
  throw new Error(`This page knows no choices ${JSON.stringify(choices)}: the server is newer; load the page again.`);
}
