// What colours mean: the ramp, and true values where they stand on it.
import type { ComponentChildren } from "preact";
import { css, type Scale } from "./colour";

interface Props {
  table: Uint8Array;
  scale: Scale;
  ticks: number[];
  write?: (value: number) => string;
  children: ComponentChildren;
}

const rounded = (value: number): string => value.toLocaleString("en", { maximumSignificantDigits: 2 });

export function Legend({ table, scale, ticks, write = rounded, children }: Props) {
  const stops = Array.from({ length: 9 }, (_, i) => css(table, (255 * i) / 8)).join(",");
  return (
    <div class="legend">
      <span class="ramp">
        <i style={{ background: `linear-gradient(90deg, ${stops})` }} />
        {ticks.map((value) => (
          <span key={value} style={{ left: `${scale(value) / 2.55}%` }}>{write(value)}</span>
        ))}
      </span>
      <span>{children}</span>
    </div>
  );
}

/** Round values that lie well apart on a scale of probabilities, which is their root. */
export const PROBABILITIES = [0, 0.05, 0.25, 0.5, 1];

/** Return round values from 1 to the vocabulary's size, for ranks, whose scale is logarithmic. */
export function ranks(vocabulary: number): number[] {
  const powers = Math.floor(Math.log10(Math.max(1, vocabulary)) + 1e-9);
  return Array.from({ length: powers + 1 }, (_, i) => 10 ** i);
}

/** Return shares of the largest value, rounded to one figure that matters. */
export function shares(most: number, of: number[]): number[] {
  return [...new Set(of.map((share) => Number((share * most).toPrecision(share === 1 ? 2 : 1))))];
}
