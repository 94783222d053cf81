// Which part of the model wrote the lead: bars that add up to the difference of the two logits.
import * as Plot from "@observablehq/plot";
import { Chart } from "../chart";
import { brief, signed } from "../format";
import { lead, type Lead, type Side } from "../side";
import { go, state } from "../state";
import { Command, Empty, Panel, Waiting } from "./frame";
import { shown } from "./tokens";

export function ContributionPanel({ sides, children }: { sides: Side[]; children: preact.ComponentChildren }) {
  const side = sides[sides.length - 1];
  const found = lead(side);
  const partial = side.meta.partial.contributions;
  return (
    <Panel
      name="contributions"
      title="Contributions"
      note={
        side.target && side.rival ? (
          <>
            logits towards <b class="is-target">{brief(side.target.text)}</b> (up) or <b class="is-rival">{brief(side.rival.text)}</b> (down)
          </>
        ) : ""
      }
      data={found ? () => ({ example_id: side.tokens.example_id, position: side.pos, target: side.target, against: side.rival, ...found }) : undefined}
      link={`api/${side.place.run}/e/${side.row}/contributions/${side.meta.by_choice ? 0 : side.pos}.json`}
      python={side.contributions.value?.python}
      path={side.meta.path}
    >
      {children}
      {partial && (
        <p class="hint">
          Only where the decision was made. For every position: <Command text={partial} />
        </p>
      )}
    </Panel>
  );
}

interface Bar {
  i: number;
  part: string;
  layer: number | null;
  logits: number;
  running: number;
}

export function bars(found: Lead): Bar[] {
  let running = 0;
  return found.parts.map((part, i) => {
    running += found.values[i];
    const layer = part.includes(" ") ? Number(part.split(" ")[1]) : null;
    return { i, part, layer, logits: found.values[i], running };
  });
}

export function ContributionBars({ side, most, height = 210 }: { side: Side; most?: number; height?: number }) {
  const missing = side.meta.missing.contributions;
  if (missing) return <Empty missing={missing} what="contributions" />;
  const found = lead(side);
  if (!found) {
    if (side.contributions.error || !side.contributions.value) return <Waiting error={side.contributions.error} lines={9} />;
    return <p class="empty" role="note">These two were not compared: choose another token to compare with.</p>;
  }
  const all = bars(found);
  const scale = most ?? Math.max(...all.map((b) => Math.max(Math.abs(b.logits), Math.abs(b.running))), 1e-6);
  const label = `Contributions in logits: ${all.map((b) => `${b.part} ${signed(b.logits)}`).join(", ")}. Sum ${signed(found.total)}.`;
  const layer = state.value.layer;
  return (
    <>
      <Chart label={label} height={height} version={JSON.stringify([all, scale, layer, height])} make={(width) => draw(all, scale, width, height, layer)} />
      <p class="sum">
        Σ = Δlogit = <b class={found.total >= 0 ? "is-target" : "is-rival"}>{signed(found.total)}</b>
        <span class="key"><i class="swatch attn" /> attention <i class="swatch mlp" /> MLP <i class="swatch line" /> running sum</span>
      </p>
      <Heads side={side} found={found} />
    </>
  );
}

function draw(all: Bar[], most: number, width: number, height: number, layer: number | null): Element {
  const room = (width - 50) / all.length;
  const shorten = (part: string) => (part === "remainder" ? "bias" : part === "embed" ? "emb" : room > 38 ? part : part.replace("attn ", "a").replace("mlp ", "m"));
  const sparse = room < 25;
  const colour = (b: Bar) => (b.logits >= 0 ? "var(--target)" : "var(--rival)");
  const plot = Plot.plot({
    width,
    height,
    marginLeft: 38,
    marginRight: 8,
    marginTop: 14,
    marginBottom: 30,
    style: { background: "transparent", color: "var(--muted)", fontSize: "11px", overflow: "visible" },
    x: {
      type: "band", domain: all.map((b) => b.i), padding: room > 14 ? 0.22 : 0.1, label: null, tickSize: 0,
      tickFormat: (i: number) => (sparse && !(all[i].part.startsWith("attn") && (all[i].layer ?? 0) % Math.ceil(10 / room) === 0) ? "" : sparse ? String(all[i].layer) : shorten(all[i].part)),
    },
    y: { domain: [-most * 1.08, most * 1.08], label: "logits", labelArrow: "none", grid: true, ticks: 5 },
    marks: [
      layer === null ? null : Plot.barY(all.filter((b) => b.layer === layer), { x: "i", y1: -most * 1.08, y2: most * 1.08, fill: "var(--chosen)", inset: -3 }),
      Plot.barY(all, { x: "i", y: "logits", fill: colour, fillOpacity: (b: Bar) => (b.part.startsWith("mlp") ? 0.55 : 1), title: (b: Bar) => `${b.part}: ${signed(b.logits)} logits, running sum ${signed(b.running)}` }),
      Plot.ruleY([0], { stroke: "var(--line-strong)" }),
      Plot.line(all, { x: "i", y: "running", stroke: "var(--ink)", strokeWidth: 1.3, curve: "step" }),
      ...(room > 30 ? [true, false].map((up) => Plot.text(all.filter((b) => b.logits >= 0 === up), { x: "i", y: "logits", text: (b: Bar) => signed(b.logits, most < 1 ? 2 : 1), dy: up ? -7 : 8, fill: "var(--muted)", fontSize: 10 })) : []),
    ].filter(Boolean),
  });
  interactive(plot, all);
  return plot;
}

/** Let a click on a bar choose its layer: the bars are found again by where they lie. */
function interactive(plot: Element, all: Bar[]): void {
  const svg = (plot.tagName.toLowerCase() === "svg" ? plot : plot.querySelector("svg")) as SVGSVGElement | null;
  if (!svg) return;
  svg.style.cursor = "pointer";
  svg.addEventListener("click", (event) => {
    const scale = (plot as unknown as { scale: (n: string) => { apply: (v: number) => number; bandwidth: number; step: number } }).scale("x");
    const x = event.clientX - svg.getBoundingClientRect().left;
    const bar = all.find((b) => x >= scale.apply(b.i) - (scale.step - scale.bandwidth) / 2 && x < scale.apply(b.i) + scale.bandwidth + (scale.step - scale.bandwidth) / 2);
    if (bar?.layer != null) go({ layer: bar.layer });
  });
}

/** The layer whose attention pushes most. */
function strongest(found: Lead): number {
  const attn = found.values.filter((_, i) => found.parts[i].startsWith("attn ")).map(Math.abs);
  return Math.max(0, attn.indexOf(Math.max(...attn)));
}

/** The heads of the chosen layer by what they push; the layer that pushes most where none is chosen. */
function Heads({ side, found }: { side: Side; found: Lead }) {
  const layers = found.parts.flatMap((p) => (p.startsWith("attn ") ? [Number(p.slice(5))] : []));
  const layer = state.value.layer ?? shown(side).layer ?? strongest(found);
  const select = (
    <label>
      layer{" "}
      <select value={String(layer)} onChange={(e) => go({ layer: Number(e.currentTarget.value) })}>
        {layers.map((l) => (
          <option key={l} value={String(l)}>{l}: attn {signed(found.values[2 * l + 1])}, mlp {signed(found.values[2 * l + 2])}</option>
        ))}
      </select>
    </label>
  );
  if (!found.heads) {
    return (
      <div class="heads">
        {select}
        {!side.meta.by_choice && <span class="hint">Attention is not split by head: that needs --capture attn qkv resid.</span>}
      </div>
    );
  }
  const heads = (found.heads[layer] ?? []).map((v, h) => ({ h, v })).sort((a, b) => Math.abs(b.v) - Math.abs(a.v)).slice(0, 12);
  const most = Math.max(...heads.map((x) => Math.abs(x.v)), 1e-6);
  return (
    <div class="heads">
      {select}
      {heads.map(({ h, v }) => (
        <button key={h} class="head-chip" aria-pressed={shown(side).head === h && shown(side).layer === layer} title={`head ${h} of layer ${layer}: ${signed(v)} logits`} onClick={() => go({ layer, head: h })}>
          head {h} <i style={{ width: `${Math.max(2, (26 * Math.abs(v)) / most)}px`, background: `var(--${v >= 0 ? "target" : "rival"})` }} /> {signed(v)}
        </button>
      ))}
    </div>
  );
}

/** Both examples part by part, one bar beside the other. */
export function ContributionPairs({ first, second }: { first: Side; second: Side }) {
  const [a, b] = [lead(first), lead(second)];
  const missing = first.meta.missing.contributions ?? second.meta.missing.contributions;
  if (missing) return <Empty missing={missing} what="contributions" />;
  if (!a || !b) return <Waiting error={first.contributions.error ?? second.contributions.error} lines={9} />;
  if (a.parts.length !== b.parts.length) return <p class="empty">These models have other parts: look at them side by side.</p>;
  const all = a.parts.map((part, i) => ({ i, part, layer: part.includes(" ") ? Number(part.split(" ")[1]) : null, logits: b.values[i] - a.values[i], running: 0 }));
  let running = 0;
  for (const bar of all) bar.running = running += bar.logits;
  const scale = Math.max(...all.map((x) => Math.max(Math.abs(x.logits), Math.abs(x.running))), 1e-6);
  const label = `Differences of contributions: ${all.map((x) => `${x.part} ${signed(x.logits)}`).join(", ")}.`;
  const layer = state.value.layer;
  return (
    <>
      <Chart label={label} height={230} version={JSON.stringify([all, scale, layer])} make={(width) => draw(all, scale, width, 230, layer)} />
      <p class="sum">
        this minus pinned, each against its own competitor; Σ = <b>{signed(b.total - a.total)}</b> = {signed(b.total)} − ({signed(a.total)})
        <span class="key"><i class="swatch attn" /> attention <i class="swatch mlp" /> MLP <i class="swatch line" /> running sum</span>
      </p>
    </>
  );
}
