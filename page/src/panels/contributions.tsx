// Which part of the model wrote the lead: bars that add up to the difference of the two logits.
import { Chart } from "../chart";
import { brief, signed } from "../format";
import { contributionEnd } from "../scales";
import { script } from "../script";
import { lead, minus, strongestLayer, type Lead, type Side } from "../side";
import { current, dataOf, type Sides } from "../sides";
import { go, state } from "../state";
import { readsChoices } from "../task";
import { bars, drawBars } from "./bars";
import { Command, Empty, Panel, Waiting } from "./frame";

export function ContributionPanel({ sides, children }: { sides: Sides; children: preact.ComponentChildren }) {
  const side = current(sides);
  const partial = side.meta.partial.contributions;
  const difference = sides.length === 2 && state.value.cmp === "diff" ? () => between(sides[0], sides[1]) : undefined;
  return (
    <Panel
      name="contributions"
      title="Contributions"
      note={
        side.target && side.competitor ? (
          <>
            logits towards <b class="is-target">{brief(side.target.text)}</b> (up) or{" "}
            <b class="is-competitor">{brief(side.competitor.text)}</b> (down)
          </>
        ) : ""
      }
      data={lead(side) ? () => dataOf(sides, values, difference) : undefined}
      link={`api/${side.place.run}/e/${side.row}/contributions/${readsChoices(side.meta) ? 0 : side.pos}.json`}
      python={script(side, side.contributions.value?.python)}
    >
      {children}
      {partial && (
        <p class="hint">
          Only where decisions were made. For every position: <Command text={partial} />
        </p>
      )}
    </Panel>
  );
}

function values(side: Side): unknown {
  const { tokens, pos, target, competitor } = side;
  return { example_id: tokens.example_id, position: pos, target, against: competitor, ...lead(side) };
}

/** Return the contributions of this example minus those of the pinned one; null where they have other parts. */
function between(first: Side, second: Side): Lead | null {
  const [a, b] = [lead(first), lead(second)];
  return a && b && a.parts.length === b.parts.length ? minus(b, a) : null;
}

export function ContributionBars({ side, sides, height = 210 }: { side: Side; sides: Sides; height?: number }) {
  const missing = side.meta.missing.contributions;
  if (missing) return <Empty missing={missing} what="contributions" />;
  const found = lead(side);
  if (!found) {
    const { value, error } = side.contributions;
    if (error || !value) return <Waiting error={error} lines={9} />;
    return <p class="empty" role="note">These two were not compared: choose another token to compare with.</p>;
  }
  const most = contributionEnd(sides.flatMap((s) => lead(s)?.values ? [lead(s)!.values] : []));
  const cap = side.contributions.value?.logit_cap ?? null;
  return (
    <>
      <Bars found={found} most={most} height={height} what="Contributions in logits" />
      <p class="sum">
        <span>
          Σ = Δlogit{cap === null ? "" : " before the cap"} = <b class={found.total >= 0 ? "is-target" : "is-competitor"}>{signed(found.total)}</b>
        </span>
        <Key />
      </p>
      {cap !== null && (
        <p class="hint">
          The model caps its logits at {cap}, behind this sum: only the lead before the cap is one.
        </p>
      )}
      <Heads side={side} found={found} />
    </>
  );
}

function Bars({ found, most, height, what }: { found: Lead; most: number; height: number; what: string }) {
  const all = bars(found);
  const { layer } = state.value;
  const label = `${what}: ${all.map((b) => `${b.part} ${signed(b.logits)}`).join(", ")}. Sum ${signed(found.total)}.`;
  return (
    <Chart
      label={label}
      height={height}
      version={JSON.stringify([all, most, layer, height])}
      make={(width) => drawBars(all, { most, width, height, layer })}
    />
  );
}

function Key() {
  return (
    <span class="key">
      <i class="swatch attn" /> attention <i class="swatch mlp" /> MLP <i class="swatch line" /> running sum
    </span>
  );
}

const MOST_HEADS = 12;

/** The heads of the chosen layer by what they push; the layer that pushes most where none is chosen. */
function Heads({ side, found }: { side: Side; found: Lead }) {
  const layers = found.parts.flatMap((p) => (p.startsWith("attn ") ? [Number(p.slice(5))] : []));
  const { shown } = side;
  const layer = state.value.layer ?? shown.layer ?? strongestLayer(found) ?? 0;
  const select = (
    <label>
      layer{" "}
      <select value={String(layer)} onChange={(e) => go({ layer: Number(e.currentTarget.value) })}>
        {layers.map((l) => (
          <option key={l} value={String(l)}>
            {l}: attn {signed(found.values[2 * l + 1])}, mlp {signed(found.values[2 * l + 2])}
          </option>
        ))}
      </select>
    </label>
  );
  if (!found.heads) {
    return (
      <div class="heads">
        {select}
        {!readsChoices(side.meta) && (
          <span class="hint">Attention is not split by head: that needs --capture attn qkv resid, at all positions.</span>
        )}
      </div>
    );
  }
  const heads = (found.heads[layer] ?? []).map((v, h) => ({ h, v }));
  const largest = heads.sort((a, b) => Math.abs(b.v) - Math.abs(a.v)).slice(0, MOST_HEADS);
  const most = Math.max(...largest.map((x) => Math.abs(x.v)), 1e-6);
  return (
    <div class="heads">
      {select}
      {largest.map(({ h, v }) => (
        <button
          key={h}
          class="head-chip"
          aria-pressed={shown.head === h && shown.layer === layer}
          title={`head ${h} of layer ${layer}: ${signed(v)} logits`}
          onClick={() => go({ layer, head: h })}
        >
          head {h}{" "}
          <i
            style={{
              width: `${Math.max(2, (26 * Math.abs(v)) / most)}px`,
              background: `var(--${v >= 0 ? "target" : "competitor"})`,
            }}
          />{" "}
          {signed(v)}
        </button>
      ))}
    </div>
  );
}

/** This example minus the pinned one, part by part. */
export function ContributionDifference({ first, second }: { first: Side; second: Side }) {
  const missing = first.meta.missing.contributions ?? second.meta.missing.contributions;
  if (missing) return <Empty missing={missing} what="contributions" />;
  const [a, b] = [lead(first), lead(second)];
  if (!a || !b) return <Waiting error={first.contributions.error ?? second.contributions.error} lines={9} />;
  const found = between(first, second);
  if (!found) return <p class="empty" role="note">These models have other parts: look at them side by side.</p>;
  const most = contributionEnd([found.values]);
  return (
    <>
      <Bars found={found} most={most} height={230} what="Differences of contributions in logits" />
      <p class="sum">
        <span>
          this minus pinned, each against its own competitor; Σ = <b>{signed(found.total)}</b> = {signed(b.total)} − (
          {signed(a.total)})
        </span>
        <Key />
      </p>
      <Heads side={second} found={found} />
    </>
  );
}
