// The probability of each candidate layer by layer: how two examples' targets differ, and how it is drawn.
import * as Plot from "@observablehq/plot";
import { brief, depth, prob } from "../format";
import { candidates, choiceId, choicesAt, path, type Side } from "../side";
import { state } from "../state";

export interface Trajectory {
  id: number;
  name: string;
  probs: number[];
  kind: "target" | "competitor" | "other";
}

const MOST = 5;

export function trajectories(side: Side): Trajectory[] {
  const kind = (id: number): Trajectory["kind"] =>
    id === side.target?.id ? "target" : id === side.competitor?.id ? "competitor" : "other";
  const choices = choicesAt(side);
  if (choices) {
    const byChoice = side.byChoice.value;
    if (!byChoice) return [];
    return choices.map((c, i) => {
      const id = choiceId(side, c);
      return { id, name: `${c.label} ${c.text}`, probs: byChoice.probs.map((d) => d[i]), kind: kind(id) };
    });
  }
  const list = [...candidates(side)].sort((a, b) => b.prob - a.prob);
  const asked = [side.target?.id, side.competitor?.id];
  const chosen = list.filter((c, i) => i < MOST || c.target || asked.includes(c.id));
  return chosen.flatMap((c) => {
    const probs = path(side, c.id);
    return probs ? [{ id: c.id, name: brief(c.text), probs, kind: kind(c.id) }] : [];
  });
}

interface Pair {
  pinned: Trajectory;
  own: Trajectory;
  /** This minus pinned, by depth. */
  differences: number[];
}

/** Return both targets' probabilities by depth; null where one is not here, or the models have other depths. */
export function trajectoryPair(first: Side, second: Side): Pair | null {
  const [pinned, own] = [first, second].map((side) => trajectories(side).find((r) => r.kind === "target"));
  if (!pinned || !own || pinned.probs.length !== own.probs.length) return null;
  return { pinned, own, differences: own.probs.map((p, d) => p - pinned.probs[d]) };
}

/** What has no room for its zeros. */
const RARE = { tickFormat: (p: number) => (p === 0 ? "0" : Number(p.toPrecision(2)).toExponential().replace("-", "−")) };

export function drawTrajectories(all: Trajectory[], width: number, height: number, most: number): Element {
  const end = all[0].probs.length - 1;
  const points = all.flatMap((r) => r.probs.map((p, d) => ({ d, p, ...r })));
  const names = spread(all.map((r) => ({ ...r, y: r.probs[end] })), 14 / (height - 46), most);
  const colour = (r: { kind: string }) => `var(--${r.kind})`;
  const name = (r: Trajectory) => `${r.name.length > 13 ? r.name.slice(0, 12) + "…" : r.name} ${prob(r.probs[end])}`;
  const layer = state.value.layer;
  const every = end <= 14 ? 1 : Math.ceil(end / 12);
  const ticks = Array.from({ length: end + 1 }, (_, d) => d).filter((d) => d % every === 0);
  return Plot.plot({
    width,
    height,
    marginLeft: 40,
    marginRight: Math.min(130, width / 3),
    marginTop: 12,
    marginBottom: 34,
    style: { background: "transparent", color: "var(--muted)", fontSize: "11px", overflow: "visible" },
    x: {
      domain: [0, end], ticks, tickFormat: (d: number) => (d === 0 ? "emb" : String(d - 1)),
      label: "after layer", labelArrow: "none", labelAnchor: "center",
    },
    y: { domain: [0, Math.min(1, most * 1.04)], label: null, grid: true, ticks: 5, ...(most < 0.001 ? RARE : {}) },
    marks: [
      Plot.ruleX(layer === null ? [] : [Math.min(end, layer + 1)], {
        stroke: "var(--line-strong)", strokeDasharray: "3,3",
      }),
      Plot.line(points, {
        x: "d", y: "p", z: "id", stroke: colour, strokeWidth: (q: Trajectory) => (q.kind === "other" ? 1.2 : 2.6),
      }),
      Plot.dot(points.filter((q) => q.kind !== "other"), {
        x: "d", y: "p", fill: colour, r: 3, symbol: (q: Trajectory) => (q.kind === "competitor" ? "square" : "circle"),
        stroke: "var(--panel)", strokeWidth: 1,
        title: (q: (typeof points)[number]) => `${q.name}, ${depth(q.d)}: ${prob(q.p)}`,
      }),
      ...[true, false].map((other) =>
        Plot.text(names.filter((r) => (r.kind === "other") === other), {
          x: end, y: "y", text: name, textAnchor: "start", dx: 9,
          fill: colour, fontWeight: other ? 400 : 700, fontSize: 11.5,
        }),
      ),
    ],
  });
}

/** Move labels apart that would lie on each other; `gap` is a share of the height, `most` what stands at its top. */
export function spread<T extends { y: number }>(labels: T[], gap: number, most: number): T[] {
  const step = gap * Math.min(1, most * 1.04);
  const sorted = [...labels].sort((a, b) => b.y - a.y);
  for (let i = 1; i < sorted.length; i++) {
    sorted[i] = { ...sorted[i], y: Math.min(sorted[i].y, sorted[i - 1].y - step) };
  }
  let floor = 0;
  for (let i = sorted.length - 1; i >= 0 && sorted[i].y < floor; i--) {
    sorted[i] = { ...sorted[i], y: floor };
    floor += step;
  }
  return sorted;
}
