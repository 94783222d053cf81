// Which run this is, and what can be done with the whole page.
import { against, pin, said, switchRun, tell } from "../actions";
import { flush } from "../address";
import { theme, toggleTheme } from "../colour";
import type { Side } from "../side";
import { state } from "../state";
import type { Meta, Runs } from "../types";
import { copy } from "./frame";
import { helping } from "./help";

async function copyLink(): Promise<void> {
  flush();
  tell((await copy(location.href)) ? "Link copied." : "Copy it from the address bar.");
}

function about(meta: Meta): string {
  const data = [meta.dataset, meta.split].filter(Boolean).join("/");
  const size = [`${meta.n.toLocaleString("en")} examples`, `T = ${meta.T}`, `${meta.L} layers × ${meta.H} heads`];
  return [meta.model, data, ...size].filter(Boolean).join(" · ");
}

export function Header({ meta, runs, side }: { meta: Meta; runs: Runs; side: Side | undefined }) {
  const pinned = state.value.pin;
  const correct = side?.tokens.decision?.correct;
  const other = theme.value === "light" ? "dark" : "light";
  return (
    <header class="top">
      <h1>
        {runs.runs.length > 1 ? (
          <select aria-label="run" value={meta.key} onChange={(e) => void switchRun(e.currentTarget.value)}>
            {runs.runs.map((r) => <option key={r.key} value={r.key}>{r.run_id}</option>)}
          </select>
        ) : (
          meta.run_id
        )}
      </h1>
      <p class="about">{about(meta)}</p>
      <div class="actions">
        <span role="status" class="said">{said.value}</span>
        {!pinned && side && correct != null && (
          <button
            onClick={() => void against(meta, side)}
            title="pin this example and open a similar one that turned out the other way (c)"
          >
            compare with a {correct ? "wrong" : "right"} one
          </button>
        )}
        <button aria-pressed={pinned !== null} onClick={() => pin(side)} title="keep this example beside the next (p)">
          {pinned ? "unpin" : "pin"}
        </button>
        <button onClick={() => void copyLink()}>copy link</button>
        <button onClick={toggleTheme} aria-label={`${other} colours`} title="light or dark">
          {theme.value === "light" ? "◐" : "◑"}
        </button>
        <button
          onClick={() => (helping.value = !helping.value)}
          aria-label="help"
          aria-expanded={helping.value}
          title="help (?)"
        >
          ?
        </button>
      </div>
      {meta.uncertified && <p class="warning" role="alert">{meta.uncertified}</p>}
    </header>
  );
}
