// The text, token by token: where to look, and how well each token was foreseen.
import { useLayoutEffect, useRef } from "preact/hooks";
import * as api from "../api";
import { lookedAt } from "../attended";
import { colours, css, inkOn, SCALES, theme } from "../colour";
import { number, prob, word } from "../format";
import { useRovingFocus } from "../roving";
import { script } from "../script";
import { peekAt, type Side } from "../side";
import { current, dataOf, keyOf, type Sides } from "../sides";
import { go, state, type Colouring } from "../state";
import { foresees, readsChoices } from "../task";
import { Choose, Panel } from "./frame";

interface Figures {
  values: ArrayLike<number | null>;
  /** What the model said instead; empty where tokens are coloured by attention. */
  said: (string | null)[];
}

/** How well the token at each position was foreseen at the one before. */
export function foreseen(side: Side, colouring: Colouring): Figures {
  if (colouring === "off") return { values: [], said: [] };
  if (colouring === "attention") return { values: lookedAt(side) ?? [], said: [] };
  const n = side.tokens.n_tokens;
  const values: (number | null)[] = new Array<number | null>(n).fill(null);
  const said: (string | null)[] = new Array<string | null>(n).fill(null);
  const stored = api.outcomes(side.place.run, side.row).value;
  const lens = side.lens.value;
  if (stored) {
    const of = { prob: stored.true_prob, entropy: stored.entropy, rank: stored.rank }[colouring];
    stored.pos.forEach((pos, i) => {
      if (pos + 1 >= n) return;
      values[pos + 1] = of[i];
      said[pos + 1] = stored.pred[i];
    });
  } else if (lens) {
    const end = (lens.depths - 1) * lens.pos.length;
    lens.pos.forEach((pos, slot) => {
      if (pos + 1 >= n || !lens.known[slot]) return;
      values[pos + 1] = lens.values[colouring][end + slot];
      said[pos + 1] = lens.words[lens.topIds[(end + slot) * lens.top]] ?? null;
    });
  }
  return { values, said };
}

function scaleOf(side: Side, colouring: Colouring) {
  if (colouring === "rank") return SCALES.rank(side.meta.lens?.vocab_size ?? 50000);
  if (colouring === "entropy") return SCALES.entropy(side.meta.lens?.scale.entropy ?? 8);
  return SCALES.prob(1);
}

function about(colouring: Colouring, pos: number, value: number | null | undefined, said: string | null): string {
  if (value == null) return `position ${pos}`;
  const written = colouring === "prob" || colouring === "attention" ? prob(value) : number(value);
  const instead = said ? `; the model said ${word(said)}` : "";
  return `position ${pos}, ${colouring} ${written}${instead}`;
}

export function TokenStrip({ side, label, onPick }: { side: Side; label: string; onPick: (pos: number) => void }) {
  const colouring = state.value.colour;
  const { values, said } = foreseen(side, colouring);
  const table = colours("magnitude", theme.value);
  const scale = scaleOf(side, colouring);
  const decided = side.tokens.decision?.pos;
  const box = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const element = box.current;
    const chosen = element?.children[side.pos] as HTMLElement | undefined;
    if (element && chosen) element.scrollTop = chosen.offsetTop - element.offsetTop - element.clientHeight / 2;
  }, [side.pos, keyOf(side)]);
  useRovingFocus(box, `${keyOf(side)} ${side.pos}`);
  return (
    <div ref={box} class="tokens" role="listbox" aria-label={label} aria-orientation="horizontal">
      {side.tokens.tokens.map((token, pos) => {
        const value = values[pos];
        const at = value == null ? null : scale(value);
        const looked = pos === side.pos;
        const truth = pos === side.pos + 1 && foresees(side.meta) && side.target !== null;
        const decides = pos === decided || side.tokens.decisions.some((d) => d.pos === pos);
        const kinds = [looked && "looked", truth && "truth", decides && "decided"].filter(Boolean).join(" ");
        return (
          <button
            key={pos}
            role="option"
            aria-selected={looked}
            tabIndex={looked ? 0 : -1}
            class={`token ${kinds}`}
            style={at === null ? undefined : { background: css(table, at), color: inkOn(table, at) }}
            title={`${word(token)}: ${about(colouring, pos, value, said[pos])}`}
            onClick={() => onPick(pos)}
            onPointerEnter={() => peekAt(side, pos)}
            onPointerLeave={() => peekAt(side, null)}
          >
            {word(token)}
          </button>
        );
      })}
      {side.tokens.padding > 0 && (
        <span class="pad" title={`${side.tokens.padding} positions of padding, which hold nothing`}>
          +{side.tokens.padding} padding
        </span>
      )}
    </div>
  );
}

const COLOURINGS = [
  ["prob", "probability"],
  ["entropy", "entropy"],
  ["rank", "rank"],
  ["attention", "attention"],
  ["off", "off"],
] as const;

const EXPLAINED: Record<Colouring, string> = {
  prob: "how probable each token was at the one before",
  entropy: "entropy of the prediction of each token (nats)",
  rank: "rank of each token in its prediction",
  attention: "where the shown head looks from the chosen token",
  off: "",
};

export function TokenPanel({ sides, children }: { sides: Sides; children: preact.ComponentChildren }) {
  const side = current(sides);
  const { colour } = state.value;
  const foreseeing = !readsChoices(side.meta);
  return (
    <Panel
      name="tokens"
      title={side.meta.task.words.tokens}
      note={foreseeing || colour === "attention" ? EXPLAINED[colour] : ""}
      controls={
        <Choose
          label="colour tokens by"
          value={colour}
          options={foreseeing ? COLOURINGS : COLOURINGS.slice(3)}
          onChange={(c) => go({ colour: c })}
        />
      }
      data={() => dataOf(sides, ({ tokens }) => tokens)}
      link={`api/${side.place.run}/e/${side.row}/c${side.place.choice}/tokens.json`}
      python={script(side, side.tokens.python.tokens)}
    >
      {children}
    </Panel>
  );
}
