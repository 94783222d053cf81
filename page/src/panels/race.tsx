// The candidates (or choices) layer by layer: where the one that wins in the end takes the lead.
import { Chart } from "../chart";
import { prob } from "../format";
import { choicesAt, glance, type Side } from "../side";
import { current, dataOf, type Sides } from "../sides";
import { state } from "../state";
import { script } from "../script";
import { Empty, Panel, Waiting } from "./frame";
import { drawRace, racePair, runners } from "./runners";

function values(side: Side): unknown {
  const rounded = (probs: number[]) => probs.map((p) => Number(p.toPrecision(4)));
  const list = runners(side).map(({ id, name, probs }) => ({ id, name, probs: rounded(probs) }));
  return { example_id: side.tokens.example_id, position: side.pos, axes: ["depth"], runners: list };
}

export function RacePanel({ sides, children }: { sides: Sides; children: preact.ComponentChildren }) {
  const side = current(sides);
  const seen = glance(side);
  const ofChoices = choicesAt(seen) !== null;
  const diff = sides.length === 2 && state.value.cmp === "diff";
  const difference = diff ? () => racePair(sides[0], sides[1])?.differences ?? null : undefined;
  const python = ofChoices ? side.race.value?.python : side.lens.value?.python.race;
  return (
    <Panel
      name="race"
      title={ofChoices ? "Choice race" : "Race"}
      note={ofChoices ? "probability among the choices" : "probability after each layer"}
      data={() => dataOf(sides, values, difference)}
      link={`api/${side.place.run}/e/${side.row}/${ofChoices ? "race" : "lens"}.json`}
      python={script(side, python, ofChoices ? {} : { pos: side.pos })}
    >
      {children}
    </Panel>
  );
}

/** The largest probability in some races, to draw them on one scale. */
function tallest(sides: Side[]): number {
  return Math.max(1e-6, ...sides.flatMap((side) => runners(side).flatMap((r) => r.probs)));
}

export function RaceChart({ side: chosen, sides, height = 230 }: { side: Side; sides: Sides; height?: number }) {
  const side = glance(chosen);
  const ofChoices = choicesAt(side) !== null;
  const missing = ofChoices ? side.meta.missing.race : side.meta.missing.lens;
  if (missing) return <Empty missing={missing} what="race" />;
  const all = runners(side);
  if (all.length === 0) {
    const waits = ofChoices ? side.race : side.lens;
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
      make={(width) => drawRace(all, width, height, most)}
    />
  );
}
