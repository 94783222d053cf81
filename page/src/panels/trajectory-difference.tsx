// The target's way through the layers in two examples, with the difference as numbers.
import { Chart } from "../chart";
import { prob, signedProb } from "../format";
import { glance, type Side } from "../side";
import { state } from "../state";
import { drawTrajectories, trajectoryPair, type Trajectory } from "./trajectory";

export function TrajectoryDifference({ first, second }: { first: Side; second: Side }) {
  const found = trajectoryPair(glance(first), glance(second));
  if (!found) return <p class="empty" role="note">These two cannot be compared: look at them side by side.</p>;
  const { pinned, own, differences } = found;
  const all: Trajectory[] = [
    { ...own, id: 0, name: `this ${own.name}` },
    { ...pinned, id: 1, name: `pinned ${pinned.name}`, kind: "other" },
  ];
  const most = Math.max(1e-6, ...own.probs, ...pinned.probs);
  const told = all.map((r) => `${r.name}: ${r.probs.map(prob).join(", ")}`).join(". ");
  return (
    <>
      <Chart
        label={`Probability of the target by layer. ${told}.`}
        height={200}
        version={JSON.stringify([all, state.value.layer])}
        make={(width) => drawTrajectories(all, width, 200, most)}
      />
      <p class="figures">
        this − pinned: {differences.map((v, d) => `${d === 0 ? "emb" : d - 1}: ${signedProb(v)}`).join(" · ")}
      </p>
    </>
  );
}
