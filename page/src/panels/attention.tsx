// Where the heads look: all of a layer small, one of them large.
import * as api from "../api";
import { attentionDifferences, headOf, lookedAt, queryAt, queryRow, type Drawn } from "../attended";
import { colours, SCALES, theme } from "../colour";
import type { Cell } from "../drawing";
import { prob, word } from "../format";
import { Grid } from "../grid";
import { Legend, PROBABILITIES } from "../legend";
import { script } from "../script";
import { peekAt, type Side } from "../side";
import { current, dataOf, keyOf, naming, type Sides } from "../sides";
import { go, state } from "../state";
import { useWidth } from "../width";
import { Empty, Panel, Waiting } from "./frame";
import { cellSize, LABEL, LABELLED } from "./matrix";
import { Thumbs } from "./thumbs";

export function AttentionPanel({ sides, children }: { sides: Sides; children: preact.ComponentChildren }) {
  const side = current(sides);
  const { layer, head } = side.shown;
  const axes = side.meta.attention;
  const base = `api/${side.place.run}/e/${side.row}/c${side.place.choice}/attn/${layer}/${head}`;
  const diff = sides.length === 2 && state.value.cmp === "diff";
  const difference = diff ? () => attentionDifferences(sides[0], sides[1]) : undefined;
  return (
    <Panel
      name="attention"
      title="Attention"
      note={layer === null ? "" : `head ${head}: each row looks at the columns`}
      controls={axes && layer !== null && <LayerChoice layers={axes.layers} layer={layer} />}
      data={axes ? () => dataOf(sides, values, difference) : undefined}
      link={axes && !api.bundled() ? `${base}/0.json` : undefined}
      python={layer === null || head === null ? undefined : script(side, side.tokens.python.attention, { layer, head })}
    >
      {children}
    </Panel>
  );
}

function LayerChoice({ layers, layer }: { layers: number[]; layer: number }) {
  const at = layers.indexOf(layer);
  const asked = state.value.layer;
  return (
    <>
      {asked !== null && asked !== layer && <span class="note">no attention of layer {asked} was kept</span>}
      <span class="choose" role="group" aria-label="layer">
        <button aria-label="layer before" title="[" disabled={at <= 0} onClick={() => go({ layer: layers[at - 1] })}>
          ‹
        </button>
        <label class="sr" for="attention-layer">layer</label>
        <select
          id="attention-layer"
          value={String(layer)}
          onChange={(e) => go({ layer: Number(e.currentTarget.value) })}
        >
          {layers.map((l) => <option key={l} value={String(l)}>layer {l}</option>)}
        </select>
        <button
          aria-label="next layer"
          title="]"
          disabled={at >= layers.length - 1}
          onClick={() => go({ layer: layers[at + 1] })}
        >
          ›
        </button>
      </span>
    </>
  );
}

function values(side: Side): unknown {
  const drawn = headOf(side).value;
  const row = (r: number) => drawn!.values.subarray(r * drawn!.cols, (r + 1) * drawn!.cols);
  const attention =
    drawn && Array.from({ length: drawn.rows }, (_, r) => Array.from(row(r), (v) => Number(v.toPrecision(3))));
  return {
    example_id: side.tokens.example_id,
    ...side.shown,
    axes: ["query", "key"],
    ...side.tokens.attention,
    attention: attention ?? null,
  };
}

interface ViewProps {
  side: Side;
  sides: Sides;
  onPick: (pos: number) => void;
}

export function AttentionView(p: ViewProps) {
  const missing = p.side.meta.missing.attention;
  if (missing) return <Empty missing={missing} what="attention" />;
  const drawn = headOf(p.side);
  return (
    <div class="attention">
      {p.side.tokens.attention && <Thumbs side={p.side} />}
      {drawn.value ? <Matrix {...p} drawn={drawn.value} /> : <Waiting error={drawn.error} lines={14} />}
    </div>
  );
}

function Matrix({ side, sides, drawn, onPick }: ViewProps & { drawn: Drawn }) {
  const [box, width] = useWidth<HTMLDivElement>();
  const layout = side.tokens.attention!;
  const row = queryRow(side);
  const looks = lookedAt(side);
  const scale = SCALES.prob(1);
  const size = cellSize(width, drawn.rows, drawn.cols);
  const labelled = size >= LABELLED;
  const token = (pos: number) => word(side.tokens.tokens[pos]);
  const chosen = row < 0 ? null : Math.floor(row / drawn.pool);
  const value = ({ row: r, col }: Cell): number => {
    const exact = looks !== null && drawn.pool === 1 && r === row;
    return exact ? looks[col] : drawn.values[r * drawn.cols + col];
  };
  const say = (cell: Cell): string => {
    const [query, key] = [queryAt(layout, cell.row), cell.col * drawn.pool];
    const pooled = drawn.pool > 1 ? `, the most of ${drawn.pool} × ${drawn.pool}` : "";
    return `${token(query)} (${query}) looks at ${token(key)} (${key}): ${prob(value(cell))}${pooled}`;
  };
  const top = strongest(looks, 4);
  const start = chosen === null ? null : { row: chosen, col: Math.floor((top[0]?.key ?? 0) / drawn.pool) };
  const table = colours("magnitude", theme.value);
  return (
    <div class="matrix" ref={box}>
      {top.length > 0 && (
        <p class="looks">
          <code>{token(side.pos)}</code> looks at{" "}
          {top.map(({ key, p }) => (
            <button key={key} class="plain" onClick={() => onPick(key)} title={`position ${key}`}>
              <code>{token(key)}</code> {prob(p)}
            </button>
          ))}
        </p>
      )}
      {row < 0 && <p class="hint">No attention was kept from this position.</p>}
      <Grid
        key={keyOf(side)}
        label={`Attention of layer ${side.shown.layer}, head ${side.shown.head}, ${naming(sides, side)}`}
        rows={drawn.rows}
        cols={drawn.cols}
        cellWidth={size}
        cellHeight={drawn.rows === 1 ? 24 : size}
        rowLabelWidth={labelled || drawn.rows === 1 ? LABEL : 0}
        colLabelHeight={labelled ? 66 : 0}
        colLabelsBelow
        slanted
        at={(r, c) => scale(drawn.values[r * drawn.cols + c])}
        table={table}
        rowLabel={(r) => token(queryAt(layout, r))}
        colLabel={(c) => token(c * drawn.pool)}
        selected={null}
        start={start}
        markRow={chosen}
        version={[drawn.values]}
        say={say}
        onPick={(cell) => onPick(queryAt(layout, cell.row))}
        onHover={(cell) => peekAt(side, cell && queryAt(layout, cell.row))}
      />
      <Legend table={table} scale={scale} ticks={PROBABILITIES}>probability of attention</Legend>
    </div>
  );
}

const FAINT = 0.005;

/** Return the keys that are looked at most. */
function strongest(looks: Float32Array | null, count: number): { key: number; p: number }[] {
  const all = Array.from(looks ?? [], (p, key) => ({ key, p }));
  return all.sort((a, b) => b.p - a.p).slice(0, count).filter(({ p }) => p > FAINT);
}
