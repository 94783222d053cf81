// The attention of one head in two examples, this one minus the pinned one.
import { useMemo } from "preact/hooks";
import { attentionDifferences, headOf, queryAt, queryRow, type Drawn } from "../attended";
import { colours, signedScale, theme } from "../colour";
import type { Cell } from "../drawing";
import { signed, word } from "../format";
import { Grid } from "../grid";
import { Legend } from "../legend";
import { peekAtBoth, type Side } from "../side";
import { keyOf } from "../sides";
import { useWidth } from "../width";
import { Empty, Waiting } from "./frame";
import { cellSize, LABELLED } from "./matrix";
import { Thumbs } from "./thumbs";

const root = (v: number): number => Math.sign(v) * Math.sqrt(Math.abs(v));

interface Props {
  first: Side;
  second: Side;
  onPick: (pos: number) => void;
}

export function AttentionDifference(p: Props) {
  const { first, second } = p;
  const missing = first.meta.missing.attention ?? second.meta.missing.attention;
  if (missing) return <Empty missing={missing} what="attention" />;
  const [a, b] = [headOf(first), headOf(second)];
  return (
    <div class="attention">
      {second.tokens.attention && <Thumbs side={second} />}
      {a.value && b.value ? (
        <Matrix {...p} under={a.value} over={b.value} />
      ) : (
        <Waiting error={a.error ?? b.error} lines={14} />
      )}
    </div>
  );
}

function Matrix({ first, second, under, over, onPick }: Props & { under: Drawn; over: Drawn }) {
  const shift = first.pos - second.pos;
  const found = useMemo(() => attentionDifferences(first, second)!, [under.values, over.values, shift]);
  const [box, width] = useWidth<HTMLDivElement>();
  const layout = second.tokens.attention!;
  const [rows, cols] = [found.values.length, found.values[0]?.length ?? 0];
  const size = cellSize(width, rows, Math.max(1, cols));
  const labelled = size >= LABELLED;
  const linear = signedScale(1);
  const scale = (v: number) => linear(root(v));
  const table = colours("signed", theme.value);
  const token = (pos: number) => word(second.tokens.tokens[pos]);
  const row = queryRow(second);
  const value = (r: number, c: number) => found.values[r][c] ?? NaN;
  const say = (cell: Cell): string => {
    const v = value(cell.row, cell.col);
    const what = Number.isNaN(v) ? "nothing to compare" : `${signed(v)} against the pinned one`;
    return `${token(queryAt(layout, cell.row))} looks at ${token(cell.col * found.pool)}: ${what}`;
  };
  const chosen = row < 0 ? null : Math.floor(row / found.pool);
  return (
    <div class="matrix" ref={box}>
      <Grid
        key={`${keyOf(first)} ${keyOf(second)}`}
        label="Difference of attention, this minus pinned"
        rows={rows}
        cols={cols}
        cellWidth={size}
        cellHeight={rows === 1 ? 24 : size}
        rowLabelWidth={labelled ? 76 : 0}
        colLabelHeight={labelled ? 66 : 0}
        colLabelsBelow
        slanted
        at={(r, c) => scale(value(r, c))}
        table={table}
        rowLabel={(r) => token(queryAt(layout, r))}
        colLabel={(c) => token(c * found.pool)}
        selected={null}
        start={chosen === null ? null : { row: chosen, col: 0 }}
        markRow={chosen}
        version={[found]}
        say={say}
        onPick={(cell) => onPick(queryAt(layout, cell.row))}
        onHover={(cell) => peekAtBoth(first, second, cell && queryAt(layout, cell.row))}
      />
      <Legend table={table} scale={scale} ticks={[-1, -0.25, 0, 0.25, 1]} write={(v) => (v === 0 ? "0" : signed(v))}>
        difference of attention, this minus pinned
      </Legend>
    </div>
  );
}
