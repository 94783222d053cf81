// One example, or a pinned one and this one: what panels share when there are two.
import type { Side } from "./side";

/** The pinned one first, where there is one; this one last. */
export type Sides = [Side] | [Side, Side];

export function current(sides: Sides): Side {
  return sides[sides.length - 1];
}

/** Return what a panel's "data" gives: of one example, or of both and, where it is drawn, their difference. */
export function dataOf(sides: Sides, of: (side: Side) => unknown, difference?: () => unknown): unknown {
  if (sides.length === 1) return of(sides[0]);
  const both = { pinned: of(sides[0]), this: of(sides[1]) };
  return difference ? { ...both, difference: difference() } : both;
}

/** Return a name for one of the sides, to tell two grids apart. */
export function naming(sides: Sides, side: Side): string {
  return sides.length === 2 && side === sides[0] ? "the pinned example" : "this example";
}

/** Return what tells one example from another: a panel must not keep its cursor from the one before. */
export function keyOf(side: Side): string {
  return [side.place.run, side.row, side.place.choice].join();
}
