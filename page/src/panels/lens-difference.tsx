// Two lenses in one grid: this one minus the pinned one, laid over each other at the positions looked at.
import type { ComponentChildren } from "preact";
import { colours, signedScale, theme } from "../colour";
import { depth, number, signed, word } from "../format";
import { Grid } from "../grid";
import { Legend } from "../legend";
import { differenceEnd } from "../scales";
import { peekAtBoth, type Side } from "../side";
import { keyOf, type Sides } from "../sides";
import { state, type Statistic } from "../state";
import { Empty, Waiting } from "./frame";

const UNITS: Record<Statistic, string> = { prob: "", rank: " powers of ten of rank", entropy: " nats", kl: " nats" };

interface Differences {
  axes: string[];
  unit: string;
  /** Token positions of this example; the pinned one's lie `shift` further on. */
  positions: number[];
  shift: number;
  /** [depth][position]; null where the pinned one has nothing. */
  values: (number | null)[][];
}

/** Return this lens minus the pinned one; null where they cannot be laid over each other, or are not here. */
export function differences(first: Side, second: Side, stat: Statistic): Differences | null {
  const [a, b] = [first.lens.value, second.lens.value];
  if (!a || !b || a.depths !== b.depths) return null;
  const shift = first.pos - second.pos;
  const log = (v: number) => (stat === "rank" ? Math.log10(Math.max(1, v)) : v);
  const under = b.pos.map((p) => a.slotOf.get(p + shift) ?? -1);
  const values = Array.from({ length: b.depths }, (_, d) =>
    under.map((slot, col) => {
      if (slot < 0) return null;
      return log(b.values[stat][d * b.pos.length + col]) - log(a.values[stat][d * a.pos.length + slot]);
    }),
  );
  return { axes: ["depth", "position"], unit: UNITS[stat].trim(), positions: b.pos, shift, values };
}

export function DifferenceLegend({ sides, children }: { sides: Sides; children: ComponentChildren }) {
  const { stat } = state.value;
  const most = differenceEnd(sides, stat);
  const end = stat === "prob" || stat === "rank" ? most : Number(most.toPrecision(2));
  const write = (v: number) => {
    if (v === 0) return "0";
    return stat === "rank" ? `${v < 0 ? "÷" : "×"}1000` : signed(v, 1);
  };
  return (
    <Legend table={colours("signed", theme.value)} scale={signedScale(most)} ticks={[-end, 0, end]} write={write}>
      {children}
    </Legend>
  );
}

interface Props {
  first: Side;
  second: Side;
  onPick: (pos: number, layer: number) => void;
}

export function LensDifference({ first, second, onPick }: Props) {
  const [a, b] = [first.lens.value, second.lens.value];
  const missing = first.meta.missing.lens ?? second.meta.missing.lens;
  if (missing) return <Empty missing={missing} what="lens" />;
  if (!a || !b) return <Waiting error={first.lens.error ?? second.lens.error} lines={8} />;
  const { stat, layer, fit } = state.value;
  const found = differences(first, second, stat);
  if (!found) {
    const layers = `${a.depths - 1} and ${b.depths - 1} layers`;
    return <p class="empty" role="note">These models have {layers}: look at them side by side.</p>;
  }
  const flip = (row: number) => b.depths - 1 - row;
  const value = (row: number, col: number) => found.values[flip(row)][col] ?? NaN;
  const text = (v: number) => (Number.isNaN(v) ? "" : Math.abs(v) < 0.005 ? "0" : signed(v));
  const scale = signedScale(differenceEnd([first, second], stat));
  const slot = b.slotOf.get(second.pos) ?? null;
  const shownDepth = layer === null ? b.depths - 1 : Math.min(b.depths - 1, layer + 1);
  const say = (row: number, col: number): string => {
    const pos = b.pos[col];
    const pair = `${word(second.tokens.tokens[pos])} against ${word(first.tokens.tokens[pos + found.shift])}`;
    const v = value(row, col);
    return `${depth(flip(row))}, ${pair}: ${Number.isNaN(v) ? "nothing to compare" : number(v, 3) + UNITS[stat]}`;
  };
  return (
    <Grid
      key={`${keyOf(first)} ${keyOf(second)}`}
      label="Difference of the two lenses, this minus pinned"
      rows={b.depths}
      cols={b.pos.length}
      cellWidth={fit ? Math.max(2, Math.min(58, 900 / b.pos.length)) : 58}
      cellHeight={b.depths > 26 ? 15 : 21}
      rowLabelWidth={74}
      colLabelHeight={20}
      at={(row, col) => scale(value(row, col))}
      table={colours("signed", theme.value)}
      text={(row, col) => text(value(row, col))}
      rowLabel={(row) => depth(flip(row))}
      colLabel={(col) => word(second.tokens.tokens[b.pos[col]])}
      selected={slot === null ? null : { row: flip(shownDepth), col: slot }}
      markCol={slot}
      padding={second.tokens.padding}
      version={[a, b, stat, found.shift]}
      say={(cell) => say(cell.row, cell.col)}
      onPick={(cell) => onPick(b.pos[cell.col], Math.max(0, flip(cell.row) - 1))}
      onHover={(cell) => peekAtBoth(first, second, cell && b.pos[cell.col])}
    />
  );
}
