// The candidates (or choices) layer by layer: where the one that wins in the end takes the lead.
import { Chart } from "../chart";
import { prob } from "../format";
import { choicesAt, glance, type Side } from "../side";
import { current, dataOf, type Sides } from "../sides";
import { state } from "../state";
import { script } from "../script";
import { Empty, Panel, Waiting } from "./frame";
import { drawTrajectories, trajectoryPair, trajectories } from "./trajectory";

function values(side: Side): unknown {
  const rounded = (probs: number[]) => probs.map((p) => Number(p.toPrecision(4)));
  const list = trajectories(side).map(({ id, name, probs }) => ({ id, name, probs: rounded(probs) }));
  return { example_id: side.tokens.example_id, position: side.pos, axes: ["depth"], trajectories: list };
}

export function TrajectoryPanel({ sides, children }: { sides: Sides; children: preact.ComponentChildren }) {
  const side = current(sides);
  const seen = glance(side);
  const ofChoices = choicesAt(seen) !== null;
  const diff = sides.length === 2 && state.value.cmp === "diff";
  const difference = diff ? () => trajectoryPair(sides[0], sides[1])?.differences ?? null : undefined;
  const python = ofChoices ? side.byChoice.value?.python : side.lens.value?.python.trajectories;
  return (
    <Panel
      name="trajectories"
      title={ofChoices ? "Lens by choice" : "Trajectories"}
      note={ofChoices ? "probability among the choices" : "probability after each layer"}
      data={() => dataOf(sides, values, difference)}
      link={`api/${side.place.run}/e/${side.row}/${ofChoices ? "by_choice" : "lens"}.json`}
      python={script(side, python, ofChoices ? {} : { pos: side.pos })}
    >
      {children}
    </Panel>
  );
}

/** The largest probability of several examples, to draw them on one scale. */
function tallest(sides: Side[]): number {
  return Math.max(1e-6, ...sides.flatMap((side) => trajectories(side).flatMap((r) => r.probs)));
}

export function TrajectoryChart({ side: chosen, sides, height = 230 }: { side: Side; sides: Sides; height?: number }) {
  const side = glance(chosen);
  const ofChoices = choicesAt(side) !== null;
  const missing = ofChoices ? side.meta.missing.by_choice : side.meta.missing.lens;
  if (missing) return <Empty missing={missing} what={ofChoices ? "lens by choice" : "lens"} />;
  const all = trajectories(side);
  if (all.length === 0) {
    const waits = ofChoices ? side.byChoice : side.lens;
    if (!waits.value) return <Waiting error={waits.error} lines={8} />;
    return <p class="empty" role="note">Nothing was kept at this position.</p>;
  }
  const most = tallest(sides.map(glance));
  const end = all[0].probs.length - 1;
  const leader = [...all].sort((a, b) => b.probs[end] - a.probs[end])[0];
  const written = all.map((r) => `${r.name}: ${r.probs.map(prob).join(", ")}`).join(". ");
  return (
    <Chart
      label={`Probabilities by layer. ${written}. ${leader.name} leads in the end.`}
      height={height}
      version={JSON.stringify([all, state.value.layer, height, most])}
      make={(width) => drawTrajectories(all, width, height, most)}
    />
  );
}
