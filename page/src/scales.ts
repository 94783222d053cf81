// Where scales end: colours' are fixed per run, axes fit what is drawn; one for all that is compared.
import type { Sides } from "./sides";
import type { Statistic } from "./state";

/** Return the largest value of a lens's colour scale. */
export function lensEnd(sides: Sides, stat: Statistic): number {
  if (stat === "prob") return 1;
  const ends = sides.flatMap(({ meta: { lens } }) => {
    if (!lens) return [];
    return [stat === "rank" ? lens.vocab_size : lens.scale[stat]];
  });
  return Math.max(1e-6, ...ends);
}

/** Return the largest size on a difference's scale, of rank in powers of ten. */
export function differenceEnd(sides: Sides, stat: Statistic): number {
  return { prob: 1, rank: 3, entropy: lensEnd(sides, stat) / 2, kl: lensEnd(sides, stat) / 2 }[stat];
}

/** Return the largest value and running sum of what is drawn on one axis: a close decision fills it, too. */
export function contributionEnd(values: number[][]): number {
  let most = 1e-6;
  for (const bars of values) {
    let sum = 0;
    for (const bar of bars) {
      sum += bar;
      most = Math.max(most, Math.abs(bar), Math.abs(sum));
    }
  }
  return most;
}
