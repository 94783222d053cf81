// The text, token by token: where to look, and how well each token was foreseen.
import { useLayoutEffect, useRef } from "preact/hooks";
import * as api from "../api";
import { colours, css, inkOn, SCALES, theme } from "../colour";
import { number, prob, word } from "../format";
import { lead, peek, type Side } from "../side";
import { go, state, type Colouring } from "../state";
import { Choose, Panel } from "./frame";

interface Figures {
  values: (number | null)[];
  said: (string | null)[];
}

/** How well the token at each position was foreseen at the one before. */
export function foreseen(side: Side, colouring: Colouring): Figures {
  const n = side.tokens.n_tokens;
  const values: (number | null)[] = new Array<number | null>(n).fill(null);
  const said: (string | null)[] = new Array<string | null>(n).fill(null);
  const stored = api.outcomes(side.place.run, side.row).value;
  const lens = side.lens.value;
  if (stored) {
    stored.pos.forEach((pos, i) => {
      if (pos + 1 >= n) return;
      values[pos + 1] = (colouring === "entropy" ? stored.entropy : colouring === "rank" ? stored.rank : stored.true_prob)[i];
      said[pos + 1] = stored.pred[i];
    });
  } else if (lens) {
    const end = (lens.depths - 1) * lens.pos.length;
    lens.pos.forEach((pos, slot) => {
      if (pos + 1 >= n || !lens.known[slot]) return;
      values[pos + 1] = lens.values[colouring === "off" || colouring === "attention" ? "prob" : colouring][end + slot];
      said[pos + 1] = lens.words[lens.topIds[(end + slot) * lens.top]] ?? null;
    });
  }
  return { values, said };
}

function attended(side: Side): (number | null)[] {
  const { layer, head } = shown(side);
  const layout = side.tokens.attention;
  if (layer === null || head === null || !layout) return [];
  const block = Math.floor(rowOf(side) / layout.block);
  const values = rowOf(side) < 0 ? undefined : api.headValues(side.place.run, side.row, side.place.choice, layer, head, block).value;
  if (!values) return [];
  const from = (rowOf(side) - block * layout.block) * layout.keys;
  return Array.from(values.subarray(from, from + layout.keys));
}

/** The row of attention that belongs to the side's position, −1 where none was kept. */
export function rowOf(side: Side): number {
  const layout = side.tokens.attention;
  if (!layout) return -1;
  return layout.queries === null ? side.pos : layout.queries.indexOf(side.pos);
}

/** The layer and head that attention shows: those chosen, else the head that pushes most, else the last layer's first. */
export function shown(side: Side): { layer: number | null; head: number | null } {
  const axes = side.meta.attention;
  if (!axes) return { layer: null, head: null };
  const { layer, head } = state.value;
  const heads = lead(side)?.heads ?? null;
  const strength = (l: number, h: number) => Math.abs(heads?.[l]?.[h] ?? 0);
  const strongest = (layers: number[]) =>
    layers.flatMap((l) => axes.heads.map((h) => ({ l, h }))).reduce((a, b) => (strength(b.l, b.h) > strength(a.l, a.h) ? b : a));
  const last = axes.layers[axes.layers.length - 1];
  const at = layer !== null && axes.layers.includes(layer) ? layer : heads ? strongest(axes.layers).l : last;
  return { layer: at, head: head !== null && axes.heads.includes(head) ? head : strongest([at]).h };
}

export function TokenStrip({ side, onPick }: { side: Side; onPick: (pos: number) => void }) {
  const colouring = state.value.colour;
  const { values, said } = foreseen(side, colouring);
  const shares = colouring === "attention" ? attended(side) : [];
  const table = colours("magnitude", theme.value);
  const lensScale = side.meta.lens?.scale;
  const most = colouring === "rank" ? (side.meta.lens?.vocab_size ?? 50000) : colouring === "entropy" ? (lensScale?.entropy ?? 8) : 1;
  const scale = (SCALES[colouring === "attention" || colouring === "off" ? "prob" : colouring] ?? SCALES.prob)(most);
  const decided = side.tokens.decision?.pos;
  const box = useRef<HTMLDivElement>(null);
  useLayoutEffect(() => {
    const chosen = box.current?.children[side.pos] as HTMLElement | undefined;
    if (chosen && box.current) box.current.scrollTop = chosen.offsetTop - box.current.offsetTop - box.current.clientHeight / 2;
  }, [side.pos, side.tokens.example_id]);
  return (
    <div ref={box} class="tokens" role="listbox" aria-label="tokens" aria-orientation="horizontal">
      {side.tokens.tokens.map((token, pos) => {
        const value = colouring === "off" ? null : colouring === "attention" ? shares[pos] : values[pos];
        const at = value == null ? null : scale(value);
        const looked = pos === side.pos;
        const truth = pos === side.pos + 1 && !side.meta.by_choice && side.target !== null;
        const about =
          value == null ? `position ${pos}` : colouring === "attention" ? `position ${pos}, attention ${prob(value)}` : `position ${pos}, ${colouring} ${colouring === "prob" ? prob(value) : number(value)}${said[pos] ? `; the model said ${word(said[pos])}` : ""}`;
        return (
          <button
            key={pos}
            role="option"
            aria-selected={looked}
            class={`token${looked ? " looked" : ""}${truth ? " truth" : ""}${pos === decided ? " decided" : ""}`}
            style={at === null ? undefined : { background: css(table, at), color: inkOn(table, at) }}
            title={`${word(token)}: ${about}`}
            onClick={() => onPick(pos)}
            onPointerEnter={() => (peek.value = { run: side.place.run, row: side.row, pos })}
            onPointerLeave={() => (peek.value = null)}
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

export function TokenPanel({ side, children }: { side: Side; children: preact.ComponentChildren }) {
  const { colour } = state.value;
  const explained: Record<Colouring, string> = {
    prob: "how probable each token was at the one before",
    entropy: "entropy of the prediction of each token (nats)",
    rank: "rank of each token in its prediction",
    attention: "where the shown head looks from the chosen token",
    off: "",
  };
  return (
    <Panel
      name="tokens"
      title={side.meta.by_choice ? "Question and choice" : "Tokens"}
      note={side.meta.by_choice && colour !== "attention" ? "" : explained[colour]}
      controls={<Choose label="colour tokens by" value={colour} options={side.meta.by_choice ? COLOURINGS.slice(3) : COLOURINGS} onChange={(c) => go({ colour: c })} />}
      data={() => side.tokens}
      link={`api/${side.place.run}/e/${side.row}/c${side.place.choice}/tokens.json`}
      python={side.tokens.python}
      path={side.meta.path}
    >
      {children}
    </Panel>
  );
}
