// Which choice's activations are looked at.
import type { Side } from "../side";
import { go } from "../state";

export function ChoiceChoose({ side }: { side: Side }) {
  return (
    <span class="choose choices" role="group" aria-label="choice">
      {(side.tokens.choices ?? []).map((c, i) => (
        <button key={i} aria-pressed={i === side.place.choice} onClick={() => go({ choice: i, pos: null })}>
          {c.label} {c.text} {c.right && "✓"}
          {c.given && !c.right && "✗"}
        </button>
      ))}
    </span>
  );
}
