// What the keys do and what the panels mean.
import { signal } from "@preact/signals";

export const helping = signal(false);

const KEYS: [string, string][] = [
  ["↑ ↓", "example before, next"],
  ["← →", "token before, next"],
  ["[ ]", "layer before, next"],
  ["{ }", "head before, next"],
  ["d", "back to where the decision was made"],
  ["p", "pin this example, or unpin"],
  ["c", "compare with one that turned out the other way"],
  ["/", "search the texts"],
  ["?", "this help"],
];

export function Help() {
  if (!helping.value) return null;
  return (
    <aside class="help" aria-label="help">
      <dl>{KEYS.map(([k, what]) => <div key={k}><dt><kbd>{k}</kbd></dt><dd>{what}</dd></div>)}</dl>
      <ul>
        <li>
          <b class="is-target">Blue ●</b> is the target: the token that comes next, or the right choice, until ◎ in{" "}
          <i>Decision</i> makes another one the target. <b class="is-competitor">Orange ■</b> is its
          competitor: the most probable other answer. Click another in <i>Decision</i> or among the lens's most
          probable to change it.
        </li>
        <li>
          <b>Lens</b>: the model's own final norm and unembedding, applied after every layer. Hover for the ten most
          probable tokens, click to go there.
        </li>
        <li>
          <b>Trajectories</b>, <b>Lens by choice</b>: the probability of each candidate, or of each choice, after every
          layer.
        </li>
        <li>
          <b>Contributions</b>: what embedding, attention and MLPs write along target − competitor, the final norm held
          fixed. They add up to the difference of the two logits. Click a bar for its layer's heads.
        </li>
        <li>
          <b>Attention</b>: the colour grows with the square root of the probability. The framed row is that of the
          chosen token.
        </li>
        <li>
          <b>Compared</b>: the pinned example left, this one right. As a difference, this minus pinned, the chosen
          tokens laid over each other; a click goes to that place in both, ← and → move this one alone.
        </li>
        <li>Hatched: padding, or positions that were not kept. The address holds all you see: copy it, send it.</li>
      </ul>
    </aside>
  );
}
