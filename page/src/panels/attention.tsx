// Where the heads look: all of a layer small, one of them large.
import { useEffect, useRef } from "preact/hooks";
import * as api from "../api";
import { colours, css, SCALES, signedScale, theme } from "../colour";
import { prob, signed, word } from "../format";
import { Grid, type Cell } from "../grid";
import { lead, type Side } from "../side";
import { go } from "../state";
import { Empty, Panel, Waiting } from "./frame";
import { rowOf, shown } from "./tokens";
import { useWidth } from "../width";

export function AttentionPanel({ sides, children }: { sides: Side[]; children: preact.ComponentChildren }) {
  const side = sides[sides.length - 1];
  const { layer, head } = shown(side);
  const axes = side.meta.attention;
  const base = `api/${side.place.run}/e/${side.row}/c${side.place.choice}/attn/${layer}/${head}`;
  const accessor = side.meta.by_choice ? `st.mcq_attn(${quoted(side)}, choice_idx=${side.place.choice}` : `st.attn(${quoted(side)}, side=${side.meta.attention?.array.startsWith("enc") ? '"enc"' : '"dec"'}`;
  return (
    <Panel
      name="attention"
      title="Attention"
      note={layer === null ? "" : `head ${head}: each row looks at the columns`}
      controls={
        axes && layer !== null && (
          <span class="choose" role="group" aria-label="layer">
            <button aria-label="layer before" title="[" disabled={axes.layers.indexOf(layer) <= 0} onClick={() => go({ layer: axes.layers[axes.layers.indexOf(layer) - 1] })}>‹</button>
            <label class="sr" for="attention-layer">layer</label>
            <select id="attention-layer" value={String(layer)} onChange={(e) => go({ layer: Number(e.currentTarget.value) })}>
              {axes.layers.map((l) => <option key={l} value={String(l)}>layer {l}</option>)}
            </select>
            <button aria-label="next layer" title="]" disabled={axes.layers.indexOf(layer) >= axes.layers.length - 1} onClick={() => go({ layer: axes.layers[axes.layers.indexOf(layer) + 1] })}>›</button>
          </span>
        )
      }
      data={axes ? () => dataOf(side) : undefined}
      link={axes ? `${base}/0.json` : undefined}
      python={axes ? `${accessor}, layer=${layer}, head=${head}, trim=True)` : undefined}
      path={side.meta.path}
    >
      {children}
    </Panel>
  );
}

const quoted = (side: Side) => JSON.stringify(side.tokens.example_id);

function dataOf(side: Side) {
  const { layer, head } = shown(side);
  const drawn = headOf(side);
  return { example_id: side.tokens.example_id, layer, head, axes: ["query", "key"], ...side.tokens.attention, attention: drawn && split(drawn.values, drawn.cols) };
}

function split(values: Float32Array, cols: number): number[][] {
  return Array.from({ length: values.length / cols }, (_, r) => Array.from(values.subarray(r * cols, (r + 1) * cols), (v) => Number(v.toPrecision(3))));
}

interface Drawn {
  rows: number;
  cols: number;
  pool: number;
  values: Float32Array;
  exact: boolean;
  key: string;
}

const decoded = new WeakMap<Uint8Array, Float32Array>();

/** The large matrix: from bytes at once, in exact halves as soon as they are here. */
function headOf(side: Side): Drawn | null {
  const { layer, head } = shown(side);
  const layout = side.tokens.attention;
  if (layer === null || head === null || !layout) return null;
  const bytes = api.headDrawn(side.place.run, side.row, side.place.choice, layer, head).value;
  if (!bytes) return null;
  let values = decoded.get(bytes);
  if (!values) {
    values = new Float32Array(bytes.length);
    for (let i = 0; i < bytes.length; i++) values[i] = (bytes[i] / 255) ** 2;
    decoded.set(bytes, values);
  }
  const cols = Math.ceil(layout.keys / layout.pool);
  const key = [side.place.run, side.row, side.place.choice, layer, head].join();
  return { rows: Math.ceil(layout.rows / layout.pool), cols, pool: layout.pool, values, exact: false, key };
}

export function AttentionView({ side, bundle, onPick }: { side: Side; bundle: boolean; onPick: (pos: number) => void }) {
  const missing = side.meta.missing.attention;
  if (missing) return <Empty missing={missing} what="attention" />;
  const layout = side.tokens.attention;
  const { layer, head } = shown(side);
  if (!layout || layer === null || head === null) return <Empty missing={{ why: "This example has no attention.", command: "" }} what="attention" />;
  return (
    <div class="attention">
      <Thumbs side={side} layer={layer} head={head} />
      <Matrix side={side} bundle={bundle} layer={layer} head={head} onPick={onPick} />
    </div>
  );
}

function Thumbs({ side, layer, head }: { side: Side; layer: number; head: number }) {
  const layout = side.tokens.attention!;
  const bytes = api.thumbs(side.place.run, side.row, side.place.choice, layer).value;
  const found = lead(side);
  const pushes = found?.heads?.[layer];
  const heads = side.meta.attention!.heads;
  const order = heads.map((h, i) => ({ h, i })).sort((a, b) => (pushes ? Math.abs(pushes[b.h]) - Math.abs(pushes[a.h]) : a.h - b.h));
  const rows = Math.ceil(layout.rows / layout.thumb_pool);
  const cols = Math.ceil(layout.keys / layout.thumb_pool);
  return (
    <div class="thumbs" role="group" aria-label={`heads of layer ${layer}${pushes ? ", those that push most first" : ""}`}>
      {order.map(({ h, i }) => (
        <button key={h} class="thumb" aria-pressed={h === head} aria-label={`head ${h}${pushes ? `, ${signed(pushes[h])} logits` : ""}`} onClick={() => go({ head: h, layer })}>
          <Thumb bytes={bytes?.subarray(i * rows * cols, (i + 1) * rows * cols)} rows={rows} cols={cols} />
          <span>
            {h}
            {pushes && <em class={pushes[h] >= 0 ? "is-target" : "is-rival"}> {signed(pushes[h], 1)}</em>}
          </span>
        </button>
      ))}
    </div>
  );
}

function Thumb({ bytes, rows, cols }: { bytes: Uint8Array | undefined; rows: number; cols: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  useEffect(() => {
    const context = canvas.current?.getContext("2d");
    if (!context || !bytes || rows === 0 || cols === 0) return;
    const table = colours("magnitude", theme.value);
    const image = context.createImageData(cols, rows);
    for (let i = 0; i < rows * cols; i++) {
      image.data.set(table.subarray(3 * bytes[i], 3 * bytes[i] + 3), 4 * i);
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  }, [bytes, rows, cols, theme.value]);
  return <canvas ref={canvas} width={Math.max(1, cols)} height={Math.max(1, rows)} aria-hidden="true" />;
}

/** Exact values of one row, where there is a server to ask for them. */
function exactRow(side: Side, bundle: boolean, layer: number, head: number, row: number): Float32Array | null {
  const layout = side.tokens.attention!;
  if (bundle || row < 0) return null;
  const block = Math.floor(row / layout.block);
  const values = api.headValues(side.place.run, side.row, side.place.choice, layer, head, block).value;
  const from = (row - block * layout.block) * layout.keys;
  return values ? values.subarray(from, from + layout.keys) : null;
}

function Matrix({ side, bundle, layer, head, onPick }: { side: Side; bundle: boolean; layer: number; head: number; onPick: (pos: number) => void }) {
  const [box, width] = useWidth<HTMLDivElement>();
  const drawn = headOf(side);
  const layout = side.tokens.attention!;
  const row = rowOf(side);
  const answer = api.headDrawn(side.place.run, side.row, side.place.choice, layer, head);
  if (!drawn) return <div class="matrix" ref={box}><Waiting error={answer.error} lines={14} /></div>;
  const exact = exactRow(side, bundle, layer, head, row);
  const shownRow = exact ?? (row >= 0 && drawn.pool === 1 ? drawn.values.subarray(row * drawn.cols, (row + 1) * drawn.cols) : null);
  const scale = SCALES.prob(1);
  const labelled = 84;
  const room = Math.min((width - labelled) / drawn.cols, 560 / Math.max(1, drawn.rows));
  const size = room >= 9 ? Math.min(22, Math.floor(room)) : Math.max(1, Math.min(9, Math.min(width / drawn.cols, 560 / Math.max(1, drawn.rows))));
  const query = (r: number) => (layout.queries ? layout.queries[r * drawn.pool] : r * drawn.pool);
  const token = (pos: number) => word(side.tokens.tokens[pos]);
  const value = (cell: Cell) => (exact && drawn.pool === 1 && cell.row === row ? exact[cell.col] : drawn.values[cell.row * drawn.cols + cell.col]);
  const top = shownRow ? Array.from(shownRow, (v, k) => ({ v, k })).sort((a, b) => b.v - a.v).slice(0, 4).filter((x) => x.v > 0.005) : [];
  return (
    <div class="matrix" ref={box}>
      {top.length > 0 && (
        <p class="looks">
          <code>{token(side.pos)}</code> looks at{" "}
          {top.map(({ v, k }) => (
            <button key={k} class="plain" onClick={() => onPick(k)} title={`position ${k}`}>
              <code>{token(k)}</code> {prob(v)}
            </button>
          ))}
        </p>
      )}
      {row < 0 && <p class="hint">No attention was kept from this position.</p>}
      <Grid
        label={`Attention of layer ${layer}, head ${head}`}
        rows={drawn.rows}
        cols={drawn.cols}
        cellWidth={size}
        cellHeight={drawn.rows === 1 ? 24 : size}
        rowLabelWidth={size >= 9 || drawn.rows === 1 ? labelled : 0}
        colLabelHeight={size >= 9 ? 66 : 0}
        colLabelsBelow
        slanted
        at={(r, c) => scale(drawn.values[r * drawn.cols + c])}
        table={colours("magnitude", theme.value)}
        rowLabel={(r) => token(query(r))}
        colLabel={(c) => token(c * drawn.pool)}
        selected={null}
        markRow={row < 0 ? null : Math.floor(row / drawn.pool)}
        version={`${drawn.key} ${row}`}
        say={(cell) => `${token(query(cell.row))} (${query(cell.row)}) looks at ${token(cell.col * drawn.pool)} (${cell.col * drawn.pool}): ${prob(value(cell))}${drawn.pool > 1 ? `, the most of ${drawn.pool} × ${drawn.pool}` : ""}`}
        onPick={(cell) => onPick(query(cell.row))}
      />
    </div>
  );
}

/** The difference of two matrices of one shape. */
export function AttentionDifference({ first, second }: { first: Side; second: Side }) {
  const missing = first.meta.missing.attention ?? second.meta.missing.attention;
  if (missing) return <Empty missing={missing} what="attention" />;
  const [a, b] = [headOf(first), headOf(second)];
  if (!a || !b) return <Waiting lines={14} />;
  const shift = first.pos - second.pos;
  const scale = signedScale(1);
  const size = Math.max(2, Math.min(24, Math.floor(440 / b.cols) || 2));
  const token = (pos: number) => word(second.tokens.tokens[pos]);
  const difference = (r: number, c: number) => {
    const [y, x] = [r + shift, c + shift];
    if (y < 0 || x < 0 || y >= a.rows || x >= a.cols) return NaN;
    return b.values[r * b.cols + c] - a.values[y * a.cols + x];
  };
  return (
    <Grid
      label="Difference of attention, this minus pinned"
      rows={b.rows}
      cols={b.cols}
      cellWidth={size}
      cellHeight={size}
      rowLabelWidth={size >= 9 ? 76 : 0}
      colLabelHeight={size >= 9 ? 66 : 0}
      colLabelsBelow
      slanted
      at={(r, c) => scale(Math.sign(difference(r, c)) * Math.sqrt(Math.abs(difference(r, c))))}
      table={colours("signed", theme.value)}
      rowLabel={token}
      colLabel={token}
      selected={null}
      markRow={rowOf(second)}
      version={`${a.key} ${b.key} ${shift}`}
      say={(cell) => `${token(cell.row)} looks at ${token(cell.col)}: ${Number.isNaN(difference(cell.row, cell.col)) ? "nothing to compare" : signed(difference(cell.row, cell.col)) + " against the pinned one"}`}
      onPick={(cell) => go({ pos: cell.row })}
    />
  );
}

export const swatch = (at: number) => css(colours("magnitude", theme.value), at);
