// Bars of contributions with their running sum, drawn.
import * as Plot from "@observablehq/plot";
import { layerOf, signed } from "../format";
import type { Lead } from "../side";
import { go } from "../state";

export interface Bar {
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
    return { i, part, layer: layerOf(part), logits: found.values[i], running };
  });
}

interface Look {
  /** Where the axis ends, in logits. */
  most: number;
  width: number;
  height: number;
  /** The layer that is chosen. */
  layer: number | null;
}

/** Return the name of a bar for the room it has; none where its neighbour's name says it. */
function labelOf(bar: Bar, room: number): string {
  if (room < 25) {
    const named = bar.part.startsWith("attn") && bar.layer! % Math.ceil(10 / room) === 0;
    return named ? String(bar.layer) : "";
  }
  if (bar.part === "remainder") return "bias";
  if (bar.part === "embed") return "emb";
  return room > 38 ? bar.part : bar.part.replace("attn ", "a").replace("mlp ", "m");
}

export function drawBars(all: Bar[], { most, width, height, layer }: Look): Element {
  const room = (width - 50) / all.length;
  const end = most * 1.08;
  const colour = (b: Bar) => (b.logits >= 0 ? "var(--target)" : "var(--competitor)");
  const isMlp = (b: Bar) => b.part.startsWith("mlp");
  const title = (b: Bar) => `${b.part}: ${signed(b.logits)} logits, running sum ${signed(b.running)}`;
  const values = (up: boolean) =>
    Plot.text(all.filter((b) => b.logits >= 0 === up), {
      x: "i", y: "logits", text: (b: Bar) => signed(b.logits, most < 1 ? 2 : 1), dy: up ? -7 : 8,
      fill: "var(--muted)", stroke: "var(--panel)", strokeWidth: 3, fontSize: 10,
    });
  const chosen = all.filter((b) => layer !== null && b.layer === layer);
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
      tickFormat: (i: number) => labelOf(all[i], room),
    },
    y: { domain: [-end, end], label: "logits", labelArrow: "none", grid: true, ticks: 5 },
    marks: [
      Plot.barY(chosen, { x: "i", y1: -end, y2: end, fill: "var(--chosen)", inset: -3 }),
      Plot.barY(all.filter((b) => !isMlp(b)), { x: "i", y: "logits", fill: colour, title }),
      // MLPs are outlined: a paler fill would be too faint to see.
      Plot.barY(all.filter(isMlp), {
        x: "i", y: "logits", fill: "var(--panel)", stroke: colour, strokeWidth: room > 10 ? 1.8 : 1,
        insetLeft: 0.9, insetRight: 0.9, title,
      }),
      Plot.ruleY([0], { stroke: "var(--line-strong)" }),
      Plot.line(all, { x: "i", y: "running", stroke: "var(--ink)", strokeWidth: 1.3, curve: "step" }),
      ...(room > 30 ? [values(true), values(false)] : []),
    ],
  });
  chooseByClick(plot, all);
  return plot;
}

interface BandScale {
  apply: (value: number) => number;
  bandwidth: number;
  step: number;
}

/** Let a click on a bar choose its layer: the bars are found again by where they lie. */
function chooseByClick(plot: Element, all: Bar[]): void {
  const svg = (plot.tagName.toLowerCase() === "svg" ? plot : plot.querySelector("svg")) as SVGSVGElement | null;
  if (!svg) return;
  svg.style.cursor = "pointer";
  svg.addEventListener("click", (event) => {
    const scale = (plot as unknown as { scale: (name: string) => BandScale }).scale("x");
    const x = event.clientX - svg.getBoundingClientRect().left;
    const gap = (scale.step - scale.bandwidth) / 2;
    const bar = all.find(({ i }) => x >= scale.apply(i) - gap && x < scale.apply(i) + scale.bandwidth + gap);
    if (bar?.layer != null) go({ layer: bar.layer });
  });
}
