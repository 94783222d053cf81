// Which run this is, and what can be done with the whole page.
import { signal } from "@preact/signals";
import { theme, toggleTheme } from "../colour";
import { counterpart } from "../list";
import type { Side } from "../side";
import { go, open, state } from "../state";
import type { Meta, Runs } from "../types";
import { columnsOf, idOf } from "./examples";
import { copy } from "./frame";

export const helping = signal(false);
const said = signal("");

function tell(text: string): void {
  said.value = text;
  setTimeout(() => (said.value = ""), 2500);
}

export function pin(side: Side | undefined): void {
  if (state.value.pin) go({ pin: null });
  else if (side) go({ pin: { run: side.place.run, ex: side.tokens.example_id, pos: side.pos, choice: side.place.choice } });
}

/** Pin this example and open one that turned out the other way. */
export function against(meta: Meta, side: Side): void {
  const { columns } = columnsOf(meta);
  const other = counterpart(side.row, meta.n, columns, meta.figures);
  const id = other < 0 ? undefined : idOf(meta, other);
  if (other < 0) tell("There is no example that turned out the other way.");
  else if (id === undefined) tell("The list is still loading; try again.");
  else {
    pinNow(side);
    open(id);
  }
}

function pinNow(side: Side): void {
  go({ pin: { run: side.place.run, ex: side.tokens.example_id, pos: side.pos, choice: side.place.choice } });
}

export function Header({ meta, runs, side }: { meta: Meta; runs: Runs; side: Side | undefined }) {
  const pinned = state.value.pin;
  const correct = side?.tokens.decision?.correct;
  return (
    <header class="top">
      <h1>
        {runs.runs.length > 1 ? (
          <select aria-label="run" value={meta.key} onChange={(e) => go({ run: e.currentTarget.value })}>
            {runs.runs.map((r) => <option key={r.key} value={r.key}>{r.run_id}</option>)}
          </select>
        ) : (
          meta.run_id
        )}
      </h1>
      <p class="about">
        {[meta.model, [meta.dataset, meta.split].filter(Boolean).join("/"), `${meta.n.toLocaleString("en")} examples`, `T = ${meta.T}`, `${meta.L} layers × ${meta.H} heads`].filter(Boolean).join(" · ")}
      </p>
      <div class="actions">
        <span role="status" class="said">{said.value}</span>
        {!pinned && side && correct != null && (
          <button onClick={() => against(meta, side)} title="pin this example and open a similar one that turned out the other way">
            compare with a {correct ? "wrong" : "right"} one
          </button>
        )}
        <button aria-pressed={pinned !== null} onClick={() => pin(side)} title="keep this example beside the next (p)">{pinned ? "unpin" : "pin"}</button>
        <button onClick={() => void copy(location.href).then((done) => tell(done ? "Link copied." : "Copy it from the address bar."))}>copy link</button>
        <button onClick={toggleTheme} aria-label={`${theme.value === "light" ? "dark" : "light"} colours`} title="light or dark">{theme.value === "light" ? "◐" : "◑"}</button>
        <button onClick={() => (helping.value = !helping.value)} aria-label="help" aria-expanded={helping.value} title="help (?)">?</button>
      </div>
      {meta.uncertified && <p class="warning" role="alert">{meta.uncertified}</p>}
    </header>
  );
}

export function Help() {
  if (!helping.value) return null;
  const keys: [string, string][] = [
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
  return (
    <aside class="help" aria-label="help">
      <dl>{keys.map(([k, what]) => <div key={k}><dt><kbd>{k}</kbd></dt><dd>{what}</dd></div>)}</dl>
      <ul>
        <li><b class="is-target">Blue ●</b> is the target: the token that comes next, or the right choice. <b class="is-rival">Orange ■</b> is what it is compared with: click another in <i>Decision</i> to change it.</li>
        <li><b>Lens</b>: the model's own final norm and unembedding, applied after every layer. Hover for the ten most probable tokens, click to go there.</li>
        <li><b>Contributions</b>: what embedding, attention and MLPs write along target − competitor, the final norm held fixed. They add up to the difference of the two logits. Click a bar for its layer's heads.</li>
        <li><b>Attention</b>: the colour grows with the square root of the probability. The framed row is the chosen token's.</li>
        <li>Hatched: padding, or positions that were not kept. The address holds all you see: copy it, send it.</li>
      </ul>
    </aside>
  );
}
