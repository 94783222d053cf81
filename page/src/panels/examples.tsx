// The list of examples: filter, sort, find the odd ones.
import { useEffect, useRef, useState } from "preact/hooks";
import { columnsOf, listed } from "../examples";
import { sentence } from "../list";
import { filters, go } from "../state";
import type { Meta } from "../types";
import { Choose } from "./frame";
import { Histogram } from "./histogram";
import { List } from "./list";

const WHICH = [["all", "all"], ["wrong", "wrong"], ["right", "right"]] as const;
const MOST_HISTOGRAMS = 3;

export function Examples({ meta, row }: { meta: Meta; row: number }) {
  const asked = filters.value;
  const { only, q, sort, kinds } = asked;
  const { columns } = columnsOf(meta);
  const { rows, waiting, error } = listed.value;
  const filtered = sentence(meta.figures, asked);
  const counted = meta.figures.filter(
    (f) => f.name === "entropy" || f.name === "margin" || (f.name === "true_prob" && f.known > 0),
  );
  const categories = meta.figures.filter((f) => f.categories);
  const sorts = meta.figures.filter((f) => f.name !== "correct" && !f.categories);
  return (
    <nav class="examples" aria-label="examples">
      <header>
        <h2>Examples</h2>
        <span class="count" role="status" aria-busy={waiting}>
          <b>{rows.length.toLocaleString("en")}</b> of {meta.n.toLocaleString("en")}
        </span>
      </header>
      <div class="filters">
        {columns.correct && (
          <Choose label="which examples" value={only} options={WHICH} onChange={(v) => go({ only: v })} />
        )}
        {categories.map((f) => (
          <label key={f.name}>
            <span class="sr">{f.label}</span>
            <select
              value={kinds[f.name] ?? ""}
              onChange={(e) => go({ kinds: withKind(kinds, f.name, e.currentTarget.value) })}
            >
              <option value="">any {f.label}</option>
              {f.categories!.map((c) => <option key={c} value={c}>{c}</option>)}
            </select>
          </label>
        ))}
        <Search q={q} />
        <label>
          <span class="sr">sort by</span>
          <select value={sort} onChange={(e) => go({ sort: e.currentTarget.value })}>
            <option value="">in the run's order</option>
            {sorts.flatMap((f) => [
              <option key={f.name} value={f.name}>{f.label} ↑</option>,
              <option key={`-${f.name}`} value={`-${f.name}`}>{f.label} ↓</option>,
            ])}
          </select>
        </label>
        {counted.slice(0, MOST_HISTOGRAMS).map((f) => {
          const values = columns[f.name];
          return values && <Histogram key={f.name} figure={f} values={values} correct={columns.correct} />;
        })}
      </div>
      {filtered && (
        <p class="sentence">
          Only {filtered}.{" "}
          <button class="plain" onClick={() => go({ only: "all", ranges: {}, kinds: {}, q: "" })}>show all</button>
        </p>
      )}
      {error && <p class="empty" role="alert">{error}</p>}
      <List meta={meta} rows={rows} row={row} columns={columns} waiting={waiting} />
    </nav>
  );
}

function withKind(kinds: Record<string, string>, name: string, kind: string): Record<string, string> {
  const next = { ...kinds, [name]: kind };
  if (kind === "") delete next[name];
  return next;
}

const PAUSE_MS = 100; // between two key strokes; a search reads the texts of the whole run

/** The field to search in: it asks once the typing pauses. */
function Search({ q }: { q: string }) {
  const [text, setText] = useState(q);
  const timer = useRef<ReturnType<typeof setTimeout>>(undefined);
  useEffect(() => {
    clearTimeout(timer.current); // somebody else has changed it: what was being typed is void
    setText(q);
  }, [q]);
  const type = (typed: string) => {
    setText(typed);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => go({ q: typed }), PAUSE_MS);
  };
  return (
    <input
      id="search"
      type="search"
      placeholder="text contains…"
      aria-label="text contains"
      value={text}
      maxLength={200}
      onInput={(e) => type(e.currentTarget.value)}
    />
  );
}
