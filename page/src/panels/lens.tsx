// The logit lens: what the model would say at every position if it ended after each layer.
import { signal } from "@preact/signals";
import { colours, SCALES, theme } from "../colour";
import type { Cell } from "../drawing";
import { brief, depth, number, prob, word } from "../format";
import { Grid, type Point } from "../grid";
import { Legend, PROBABILITIES, ranks, shares } from "../legend";
import { lensEnd } from "../scales";
import { script } from "../script";
import { choicesAt, peekAt, textOf, type Side } from "../side";
import { current, dataOf, keyOf, naming, type Sides } from "../sides";
import { go, state, type Statistic } from "../state";
import { Choose, Command, Empty, Panel, Waiting } from "./frame";
import { DifferenceLegend, differences } from "./lens-difference";

const STATISTICS = [
  ["prob", "prob"],
  ["rank", "rank"],
  ["entropy", "H"],
  ["kl", "KL"],
] as const;

const EXPLAINED: Record<Statistic, string> = {
  prob: "probability of the token that comes next",
  rank: "rank of the token that comes next",
  entropy: "entropy (nats)",
  kl: "KL divergence of the end from here (nats)",
};

interface Hovered {
  side: Side;
  depth: number;
  slot: number;
  at: Point;
}

const hovered = signal<Hovered | null>(null);

export function LensPanel({ sides, children }: { sides: Sides; children: preact.ComponentChildren }) {
  const side = current(sides);
  const { stat, fit, cmp } = state.value;
  const partial = side.meta.partial.lens;
  const diff = sides.length === 2 && cmp === "diff";
  const difference = diff ? () => differences(sides[0], sides[1], stat) : undefined;
  return (
    <Panel
      name="lens"
      title="Lens"
      note={side.meta.lens ? "if it ended after each layer" : ""}
      controls={
        side.meta.lens && (
          <>
            <Choose label="statistic" value={stat} options={STATISTICS} onChange={(s) => go({ stat: s })} />
            <button aria-pressed={fit} onClick={() => go({ fit: !fit })} title="show all positions at once">fit</button>
          </>
        )
      }
      data={side.lens.value && (() => dataOf(sides, values, difference))}
      link={`api/${side.place.run}/e/${side.row}/lens/${stat}.json`}
      python={script(side, side.lens.value?.python.lens, { stat })}
    >
      {children}
      {diff && side.meta.lens && (
        <DifferenceLegend sides={sides}>{EXPLAINED[stat]}, this minus pinned</DifferenceLegend>
      )}
      {!diff && side.meta.lens && <LensLegend sides={sides} />}
      {partial && (
        <p class="hint">
          Only where decisions were made. For every position: <Command text={partial} />
        </p>
      )}
      <Tooltip />
    </Panel>
  );
}

function LensLegend({ sides }: { sides: Sides }) {
  const { stat } = state.value;
  const most = lensEnd(sides, stat);
  const ticks = {
    prob: PROBABILITIES,
    rank: ranks(most),
    entropy: shares(most, [0, 0.5, 1]),
    kl: shares(most, [0, 1 / 16, 1 / 4, 1]),
  }[stat];
  return (
    <Legend table={colours("magnitude", theme.value)} scale={SCALES[stat](most)} ticks={ticks}>
      {EXPLAINED[stat]}; in the cell: the most probable
    </Legend>
  );
}

function values(side: Side): unknown {
  const lens = side.lens.value;
  if (!lens) return null;
  const { stat } = state.value;
  const slots = lens.pos.length;
  const row = (d: number) => lens.values[stat].subarray(d * slots, (d + 1) * slots);
  return {
    example_id: side.tokens.example_id,
    statistic: stat,
    axes: ["depth", "position"],
    positions: lens.pos,
    values: Array.from({ length: lens.depths }, (_, d) => Array.from(row(d), (v) => Number(v.toPrecision(4)))),
  };
}

interface GridProps {
  side: Side;
  sides: Sides;
  onPick: (pos: number, layer: number) => void;
  onVs: (id: number) => void;
}

export function LensGrid({ side, sides, onPick, onVs }: GridProps) {
  const missing = side.meta.missing.lens;
  if (missing) return <Empty missing={missing} what="lens" />;
  const lens = side.lens.value;
  if (!lens) return <Waiting error={side.lens.error} lines={8} />;
  const { stat, layer, fit } = state.value;
  const most = lensEnd(sides, stat);
  const scale = SCALES[stat](most);
  const slots = lens.pos.length;
  const numbers = lens.values[stat];
  const flip = (row: number) => lens.depths - 1 - row;
  const index = (row: number, col: number) => flip(row) * slots + col;
  const shownDepth = layer === null ? lens.depths - 1 : Math.min(lens.depths - 1, layer + 1);
  const hover = (cell: Cell | null, at: Point) => {
    hovered.value = cell && { side, depth: flip(cell.row), slot: cell.col, at };
    peekAt(side, cell && lens.pos[cell.col]);
  };
  return (
    <>
      <Grid
        key={keyOf(side)}
        label={`Lens of ${naming(sides, side)}`}
        rows={lens.depths}
        cols={slots}
        cellWidth={fit ? Math.max(2, Math.min(58, 560 / slots)) : 58}
        cellHeight={lens.depths > 26 ? 15 : 21}
        rowLabelWidth={74}
        colLabelHeight={20}
        at={(row, col) => scale(numbers[index(row, col)])}
        table={colours("magnitude", theme.value)}
        text={(row, col) => brief(textOf(lens, lens.topIds[index(row, col) * lens.top]))}
        rowLabel={(row) => depth(flip(row))}
        colLabel={(col) => word(side.tokens.tokens[lens.pos[col]])}
        selected={side.slot < 0 ? null : { row: flip(shownDepth), col: side.slot }}
        markCol={side.slot}
        padding={side.tokens.padding}
        version={[lens, stat, most]}
        say={(cell) => told(side, flip(cell.row), cell.col)}
        more={(cell) => `Most probable: ${topOf(side, flip(cell.row), cell.col).map(said).join(", ")}.`}
        onPick={(cell) => onPick(lens.pos[cell.col], Math.max(0, flip(cell.row) - 1))}
        onHover={hover}
      />
      {side.slot >= 0 && <Top side={side} depth={shownDepth} onVs={onVs} />}
    </>
  );
}

function told(side: Side, d: number, slot: number): string {
  const lens = side.lens.value!;
  const at = d * lens.pos.length + slot;
  const top = `${word(textOf(lens, lens.topIds[at * lens.top]))} ${prob(lens.topProbs[at * lens.top])}`;
  const target = `${lens.known[slot] ? "next is" : "says"} ${word(textOf(lens, lens.candidates[slot][0]))}`;
  const { prob: probs, rank, entropy, kl } = lens.values;
  return (
    `${depth(d)}, after ${word(side.tokens.tokens[lens.pos[slot]])} (position ${lens.pos[slot]}): top ${top}; ` +
    `${target}: p ${prob(probs[at])}, rank ${number(rank[at], 0)}, ` +
    `H ${number(entropy[at])} nats, KL ${number(kl[at])} nats`
  );
}

interface Probable {
  id: number;
  text: string;
  prob: number;
}

const said = ({ text, prob: p }: Probable): string => `${word(text)} ${prob(p)}`;

/** Return the most probable tokens of one cell, best first. */
function topOf(side: Side, d: number, slot: number): Probable[] {
  const lens = side.lens.value!;
  const from = (d * lens.pos.length + slot) * lens.top;
  return Array.from({ length: lens.top }, (_, k) => {
    const id = lens.topIds[from + k];
    return { id, text: textOf(lens, id), prob: lens.topProbs[from + k] };
  });
}

/** The most probable tokens of the chosen cell: a click on one compares the target with it. */
function Top({ side, depth: d, onVs }: { side: Side; depth: number; onVs: (id: number) => void }) {
  const choices = choicesAt(side);
  const followed = new Set(choices ? choices.map((c) => c.id) : side.lens.value!.candidates[side.slot]);
  return (
    <p class="top-tokens" role="group" aria-label={`most probable, ${depth(d)}`}>
      <span class="note">{depth(d)}:</span>
      {topOf(side, d, side.slot).map((token) => {
        const kind = token.id === side.target?.id ? "is-target" : token.id === side.competitor?.id ? "is-competitor" : "";
        const why = followed.has(token.id)
          ? "compare the target with this one"
          : choices
            ? "only the choices can be compared with here"
            : "only what is among the ten most probable at the end can be compared with";
        return (
          <button
            key={token.id}
            class={kind}
            disabled={!followed.has(token.id) || token.id === side.target?.id}
            aria-pressed={token.id === side.competitor?.id}
            title={token.id === side.target?.id ? "the target of the comparison" : why}
            onClick={() => onVs(token.id)}
          >
            <code>{word(token.text)}</code> {prob(token.prob)}
          </button>
        );
      })}
    </p>
  );
}

/** The ten most probable tokens of the cell under the pointer. */
function Tooltip() {
  const now = hovered.value;
  const lens = now?.side.lens.value;
  if (!now || !lens) return null;
  const target = lens.candidates[now.slot][0];
  const x = Math.min(now.at.x + 16, innerWidth - 230);
  const y = Math.min(now.at.y + 14, innerHeight - 250);
  return (
    <div class="tooltip" style={{ left: `${x}px`, top: `${y}px` }} aria-hidden="true">
      <p>
        {depth(now.depth)}, after <code>{word(now.side.tokens.tokens[lens.pos[now.slot]])}</code>
      </p>
      <table>
        <tbody>
          {topOf(now.side, now.depth, now.slot).map((token, k) => (
            <tr key={k} class={token.id === target ? "is-target" : ""}>
              <td><code>{word(token.text)}</code></td>
              <td class="bar-cell"><i style={{ width: `${Math.max(1, 70 * token.prob)}px` }} /></td>
              <td>{prob(token.prob)}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}
