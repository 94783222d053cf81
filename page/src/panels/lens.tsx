// The logit lens: what the model would say at every position if it ended after each layer.
import { signal } from "@preact/signals";
import { colours, css, SCALES, signedScale, theme } from "../colour";
import { brief, depth, number, prob, word } from "../format";
import { Grid, type Cell } from "../grid";
import { peek, textOf, type Side } from "../side";
import { go, state, type Statistic } from "../state";
import { Choose, Command, Empty, Panel, Waiting } from "./frame";

const STATISTICS = [
  ["prob", "prob"],
  ["rank", "rank"],
  ["entropy", "H"],
  ["kl", "KL"],
] as const;

export const EXPLAINED: Record<Statistic, string> = {
  prob: "probability of the token that comes next",
  rank: "rank of the token that comes next",
  entropy: "entropy (nats)",
  kl: "KL divergence of the end from here (nats)",
};

export const fitted = signal(false);
const hovered = signal<{ side: Side; cell: Cell; x: number; y: number } | null>(null);

export function LensPanel({ sides, children }: { sides: Side[]; children: preact.ComponentChildren }) {
  const side = sides[sides.length - 1];
  const { stat } = state.value;
  const partial = side.meta.partial.lens;
  return (
    <Panel
      name="lens"
      title="Lens"
      note={side.meta.lens ? "if it ended after each layer" : ""}
      controls={
        side.meta.lens && (
          <>
            <Choose label="statistic" value={stat} options={STATISTICS} onChange={(s) => go({ stat: s })} />
            <button aria-pressed={fitted.value} onClick={() => (fitted.value = !fitted.value)} title="show all positions at once">
              fit
            </button>
          </>
        )
      }
      data={side.lens.value && (() => dataOf(side))}
      link={`api/${side.place.run}/e/${side.row}/lens/${stat}.json`}
      python={side.lens.value?.python.replace("['prob']", `['${stat}']`)}
      path={side.meta.path}
    >
      {children}
      {side.meta.lens && <Legend side={side} />}
      {partial && (
        <p class="hint">
          Only where the decision was made. For every position: <Command text={partial} />
        </p>
      )}
      <Tooltip />
    </Panel>
  );
}

/** What the colours mean, from one end of the scale to the other. */
function Legend({ side }: { side: Side }) {
  const { stat, cmp, pin } = state.value;
  const diff = pin !== null && cmp === "diff";
  const table = colours(diff ? "signed" : "magnitude", theme.value);
  const stops = Array.from({ length: 9 }, (_, i) => css(table, (255 * i) / 8)).join(",");
  const scale = side.meta.lens!.scale;
  const ends = diff
    ? { prob: ["−1", "+1"], rank: ["÷1000", "×1000"], entropy: [`−${number(scale.entropy / 2, 1)}`, `+${number(scale.entropy / 2, 1)}`], kl: [`−${number(scale.kl / 2, 1)}`, `+${number(scale.kl / 2, 1)}`] }[stat]
    : { prob: ["0", "1"], rank: [number(side.meta.lens!.vocab_size), "1"], entropy: ["0", number(scale.entropy, 1)], kl: ["0", number(scale.kl, 1)] }[stat];
  return (
    <p class="legend">
      <span>{ends[0]}</span>
      <i style={{ background: `linear-gradient(90deg, ${stops})` }} />
      <span>{ends[1]}</span>
      <span>{EXPLAINED[stat]}{diff ? ", this minus pinned" : "; in the cell: the most probable"}</span>
    </p>
  );
}

function dataOf(side: Side) {
  const lens = side.lens.value!;
  const shape = (values: Float32Array) => Array.from({ length: lens.depths }, (_, d) => Array.from(values.subarray(d * lens.pos.length, (d + 1) * lens.pos.length), (v) => Number(v.toPrecision(4))));
  return { example_id: side.tokens.example_id, statistic: state.value.stat, axes: ["depth", "position"], positions: lens.pos, values: shape(lens.values[state.value.stat]) };
}

export function LensGrid({ side, which, onPick }: { side: Side; which: string; onPick: (pos: number) => void }) {
  const missing = side.meta.missing.lens;
  if (missing) return <Empty missing={missing} what="lens" />;
  const lens = side.lens.value;
  if (!lens) return <Waiting error={side.lens.error} lines={8} />;
  const { stat, layer } = state.value;
  const most = stat === "rank" ? side.meta.lens!.vocab_size : stat === "prob" ? 1 : side.meta.lens!.scale[stat];
  const scale = SCALES[stat](most);
  const slots = lens.pos.length;
  const values = lens.values[stat];
  const flip = (row: number) => lens.depths - 1 - row;
  const at = (row: number, col: number) => scale(values[flip(row) * slots + col]);
  const width = fitted.value ? Math.max(2, Math.min(58, 560 / slots)) : 58;
  const shownDepth = layer === null ? lens.depths - 1 : Math.min(lens.depths - 1, layer + 1);
  const say = (cell: Cell) => told(side, flip(cell.row), cell.col);
  return (
    <Grid
      label={`Lens of ${which}`}
      rows={lens.depths}
      cols={slots}
      cellWidth={width}
      cellHeight={lens.depths > 26 ? 15 : 21}
      rowLabelWidth={74}
      colLabelHeight={20}
      at={at}
      table={colours("magnitude", theme.value)}
      text={(row, col) => brief(textOf(lens, lens.topIds[(flip(row) * slots + col) * lens.top]))}
      rowLabel={(row) => depth(flip(row))}
      colLabel={(col) => word(side.tokens.tokens[lens.pos[col]])}
      selected={side.slot < 0 ? null : { row: flip(shownDepth), col: side.slot }}
      markCol={side.slot}
      padding={side.tokens.padding}
      version={[lens, stat, fitted.value, side.slot, shownDepth].map(String).join() + side.tokens.example_id}
      say={say}
      onPick={(cell) => {
        onPick(lens.pos[cell.col]);
        go({ layer: Math.max(0, flip(cell.row) - 1) });
      }}
      onHover={(cell, x, y) => {
        hovered.value = cell ? { side, cell: { row: flip(cell.row), col: cell.col }, x, y } : null;
        peek.value = cell ? { row: side.row, run: side.place.run, pos: lens.pos[cell.col] } : null;
      }}
    />
  );
}

function told(side: Side, d: number, slot: number): string {
  const lens = side.lens.value!;
  const at = d * lens.pos.length + slot;
  const target = lens.candidates[slot][0];
  const name = lens.known[slot] ? "next is" : "says";
  return (
    `${depth(d)}, after ${word(side.tokens.tokens[lens.pos[slot]])} (position ${lens.pos[slot]}): top ${word(textOf(lens, lens.topIds[at * lens.top]))} ${prob(lens.topProbs[at * lens.top])}; ` +
    `${name} ${word(textOf(lens, target))}: p ${prob(lens.values.prob[at])}, rank ${number(lens.values.rank[at], 0)}, H ${number(lens.values.entropy[at])} nats, KL ${number(lens.values.kl[at])} nats`
  );
}

/** The ten most probable tokens of the cell under the pointer. */
function Tooltip() {
  const now = hovered.value;
  const lens = now?.side.lens.value;
  if (!now || !lens || now.cell.col >= lens.pos.length || now.cell.row >= lens.depths) return null;
  const at = now.cell.row * lens.pos.length + now.cell.col;
  const target = lens.candidates[now.cell.col][0];
  const x = Math.min(now.x + 16, innerWidth - 230);
  const y = Math.min(now.y + 14, innerHeight - 250);
  return (
    <div class="tooltip" style={{ left: `${x}px`, top: `${y}px` }} aria-hidden="true">
      <p>
        {depth(now.cell.row)}, after <code>{word(now.side.tokens.tokens[lens.pos[now.cell.col]])}</code>
      </p>
      <table>
        <tbody>
          {Array.from({ length: lens.top }, (_, k) => {
            const id = lens.topIds[at * lens.top + k];
            const p = lens.topProbs[at * lens.top + k];
            return (
              <tr key={k} class={id === target ? "is-target" : ""}>
                <td><code>{word(textOf(lens, id))}</code></td>
                <td class="bar-cell"><i style={{ width: `${Math.max(1, 70 * p)}px` }} /></td>
                <td>{prob(p)}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
    </div>
  );
}

/** Two examples in one grid: second minus first, laid over each other at the positions looked at. */
export function LensDifference({ first, second }: { first: Side; second: Side }) {
  const [a, b] = [first.lens.value, second.lens.value];
  const missing = first.meta.missing.lens ?? second.meta.missing.lens;
  if (missing) return <Empty missing={missing} what="lens" />;
  if (!a || !b) return <Waiting error={first.lens.error ?? second.lens.error} lines={8} />;
  if (a.depths !== b.depths) return <p class="empty">These models have {a.depths - 1} and {b.depths - 1} layers: look at them side by side.</p>;
  const { stat } = state.value;
  const shift = first.pos - second.pos;
  const slots = b.pos.map((p) => ({ pos: p, first: a.slotOf.get(p + shift) ?? -1, second: b.slotOf.get(p)! }));
  const log = (v: number) => (stat === "rank" ? Math.log10(Math.max(1, v)) : v);
  const difference = (row: number, col: number) => {
    const d = b.depths - 1 - row;
    const at = slots[col];
    if (at.first < 0) return NaN;
    return log(b.values[stat][d * b.pos.length + at.second]) - log(a.values[stat][d * a.pos.length + at.first]);
  };
  const most = stat === "prob" ? 1 : stat === "rank" ? 3 : (second.meta.lens!.scale[stat] || 1) / 2;
  const scale = signedScale(most);
  const unit = { prob: "", rank: " (powers of ten of rank)", entropy: " nats", kl: " nats" }[stat];
  return (
    <Grid
      label="Difference of the two lenses, this minus pinned"
      rows={b.depths}
      cols={slots.length}
      cellWidth={fitted.value ? Math.max(2, Math.min(58, 900 / slots.length)) : 58}
      cellHeight={21}
      rowLabelWidth={74}
      colLabelHeight={20}
      at={(row, col) => scale(difference(row, col))}
      table={colours("signed", theme.value)}
      text={(row, col) => { const v = difference(row, col); return Number.isNaN(v) ? "" : Math.abs(v) < 0.005 ? "0" : (v > 0 ? "+" : "−") + Math.abs(v).toFixed(2); }}
      rowLabel={(row) => depth(b.depths - 1 - row)}
      colLabel={(col) => word(second.tokens.tokens[slots[col].pos])}
      selected={null}
      markCol={b.slotOf.get(second.pos) ?? null}
      version={`${first.tokens.example_id} ${second.tokens.example_id} ${stat} ${first.pos} ${second.pos} ${fitted.value}`}
      say={(cell) => { const v = difference(cell.row, cell.col); return `${depth(b.depths - 1 - cell.row)}, ${word(second.tokens.tokens[slots[cell.col].pos])} against ${word(first.tokens.tokens[slots[cell.col].pos + shift])}: ${Number.isNaN(v) ? "nothing to compare" : number(v, 3) + unit}`; }}
      onPick={(cell) => go({ pos: slots[cell.col].pos })}
    />
  );
}
