// In words: who was ahead when, and what turned it. Everything said is read off the arrays that the panels draw.
import { lead, path, type Side } from "./side";

export interface Story {
  /** Depth from which the one that is ahead in the end stays ahead; null where the lens says nothing. */
  from: number | null;
  /** Whether the target is ahead in the end. */
  ahead: boolean;
  /** Whether the other one was ahead before. */
  turned: boolean;
  /** The parts that pushed most towards the one that is ahead in the end, largest first. */
  pushes: { part: string; logits: number }[];
  /** The parts that pushed most against it. */
  pulls: { part: string; logits: number }[];
}

export function story(side: Side): Story | null {
  if (!side.target || !side.rival) return null;
  const found = lead(side);
  const race = side.race.value;
  let ours = path(side, side.target.id);
  let theirs = path(side, side.rival.id);
  if (race && side.meta.by_choice) {
    const [a, b] = [side.target.id, side.rival.id];
    ours = race.probs.map((depth) => depth[a]);
    theirs = race.probs.map((depth) => depth[b]);
  }
  if (!ours || !theirs) {
    if (!found) return null;
    return { from: null, ahead: found.total > 0, turned: false, ...pushing(found.parts, found.values, found.total > 0) };
  }
  const leads = ours.map((p, d) => p - theirs[d]);
  const ahead = leads[leads.length - 1] > 0;
  let from = leads.length - 1;
  while (from > 0 && leads[from - 1] !== 0 && leads[from - 1] > 0 === ahead) from--;
  const turned = leads.slice(1, from).some((v, i) => v > 0 !== ahead && Math.max(ours[i + 1], theirs[i + 1]) > 0.02);
  return { from, ahead, turned, ...(found ? pushing(found.parts, found.values, ahead) : { pushes: [], pulls: [] }) };
}

function pushing(parts: string[], values: number[], ahead: boolean): Pick<Story, "pushes" | "pulls"> {
  const ranked = parts
    .map((part, i) => ({ part, logits: values[i] }))
    .filter(({ part }) => part !== "remainder")
    .sort((a, b) => (ahead ? b.logits - a.logits : a.logits - b.logits));
  const towards = ranked.filter((r) => r.logits > 0 === ahead && r.logits !== 0);
  const against = ranked.filter((r) => r.logits > 0 !== ahead && r.logits !== 0).reverse();
  return { pushes: towards.slice(0, 2), pulls: against.slice(0, 2) };
}
