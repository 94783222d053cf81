// The Python behind a panel: the run's own lines, what was chosen here, and what reads the panel's numbers.
import type { Side } from "./side";
import type { Statistic } from "./state";

/** What the page chooses; all else, whatever others named, comes from the server as literals of Python. */
interface Chosen {
  layer?: number;
  head?: number;
  pos?: number;
  stat?: Statistic;
}

export function script(side: Side, reading: string | null | undefined, chosen: Chosen = {}): string | undefined {
  if (!reading) return undefined;
  const given = Object.entries(chosen).map(([name, value]) => `${name} = ${JSON.stringify(value)}`);
  return [side.meta.python, ...given, reading].join("\n");
}
