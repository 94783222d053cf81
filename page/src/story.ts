// In words: who was ahead when, and what turned it. Everything said is read off the arrays that the panels draw.
import { candidates, choicesAt, isRight, lead, path, type Side } from "./side";
import { readsChoices } from "./task";

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

const SEEN = 0.02; // a lead among less probable tokens than this is none to speak of

export function story(side: Side): Story | null {
  if (!side.target || !side.competitor) return null;
  const found = lead(side);
  const paths = pathsOf(side, side.target.id, side.competitor.id);
  if (!paths) {
    if (!found) return null;
    const ahead = found.total > 0;
    return { from: null, ahead, turned: false, ...pushing(found.parts, found.values, ahead) };
  }
  const [ours, theirs] = paths;
  const leads = ours.map((p, d) => p - theirs[d]);
  const end = leads[leads.length - 1];
  // Two that are equal in float16 need not be: the verdict decides, then the logits.
  const actual = candidates(side).find((c) => c.target)?.id;
  const tied = choicesAt(side) || side.target.id !== actual ? null : isRight(side);
  const ahead = end !== 0 ? end > 0 : (tied ?? (found?.total ?? 0) > 0);
  let from = leads.length - 1;
  while (from > 0 && leads[from - 1] !== 0 && leads[from - 1] > 0 === ahead) from--;
  const other = (v: number, d: number) => v > 0 !== ahead && Math.max(ours[d + 1], theirs[d + 1]) > SEEN;
  const turned = leads.slice(1, from).some(other);
  const pushes = found ? pushing(found.parts, found.values, ahead) : { pushes: [], pulls: [] };
  return { from, ahead, turned, ...pushes };
}

function pathsOf(side: Side, target: number, competitor: number): [number[], number[]] | null {
  const byChoice = side.byChoice.value;
  if (byChoice && readsChoices(side.meta)) return [byChoice.probs.map((d) => d[target]), byChoice.probs.map((d) => d[competitor])];
  const [ours, theirs] = [path(side, target), path(side, competitor)];
  return ours && theirs ? [ours, theirs] : null;
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
