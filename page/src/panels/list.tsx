// The rows of the list: only those in view are there.
import { useEffect, useLayoutEffect, useMemo, useRef, useState } from "preact/hooks";
import * as api from "../api";
import { word } from "../format";
import type { Columns } from "../list";
import { useRovingFocus } from "../roving";
import { open } from "../state";
import type { Meta } from "../types";

const ROW = 46;
const BEYOND = 4; // rows kept above and below the view

interface Props {
  meta: Meta;
  rows: Uint32Array;
  row: number;
  columns: Columns;
  waiting: boolean;
}

export function List({ meta, rows, row, columns, waiting }: Props) {
  const box = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  useLayoutEffect(() => {
    const element = box.current!;
    const observer = new ResizeObserver(() => setHeight(element.clientHeight));
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  const at = useMemo(() => rows.indexOf(row), [rows, row]);
  useEffect(() => {
    const element = box.current!;
    if (at < 0) return;
    const [from, to] = [at * ROW, (at + 1) * ROW];
    if (from < element.scrollTop || to > element.scrollTop + element.clientHeight) {
      element.scrollTop = from - element.clientHeight / 3;
    }
  }, [at, rows.length]);
  useRovingFocus(box, row);
  const first = Math.max(0, Math.floor(top / ROW) - BEYOND);
  const last = Math.min(rows.length, Math.ceil((top + height) / ROW) + BEYOND);
  const stop = at >= first && at < last ? at : first; // what the Tab key leads to
  return (
    <div
      class="list"
      ref={box}
      onScroll={() => setTop(box.current!.scrollTop)}
      role="listbox"
      aria-label="list of examples"
    >
      {rows.length === 0 && <p class="empty" role="note">{waiting ? "Loading…" : "No example is like that."}</p>}
      <div role="presentation" style={{ height: `${rows.length * ROW}px` }}>
        {Array.from(rows.subarray(first, last), (r, i) => (
          <Item
            key={r}
            meta={meta}
            row={r}
            at={first + i}
            count={rows.length}
            chosen={r === row}
            stop={first + i === stop}
            columns={columns}
          />
        ))}
      </div>
    </div>
  );
}

interface ItemProps {
  meta: Meta;
  row: number;
  at: number;
  count: number;
  chosen: boolean;
  stop: boolean;
  columns: Columns;
}

function Item({ meta, row, at, count, chosen, stop, columns }: ItemProps) {
  const { value: part, error } = api.rows(meta.key, Math.floor(row / meta.rows_per_part));
  const i = row % meta.rows_per_part;
  const correct = columns.correct?.[row];
  const [mark, outcome] = correct === 1 ? ["✓", "right"] : correct === 0 ? ["✗", "wrong"] : ["·", "unknown"];
  const [target, said] = [part?.target?.[i], part?.said?.[i]];
  const figure = (name: string, short: string): string => {
    const value = columns[name]?.[row];
    return value === undefined || Number.isNaN(value) ? "" : `${short} ${value.toFixed(1)}`;
  };
  return (
    <button
      class={`item${chosen ? " chosen" : ""}`}
      role="option"
      aria-selected={chosen}
      aria-setsize={count}
      aria-posinset={at + 1}
      tabIndex={stop ? 0 : -1}
      style={{ transform: `translateY(${at * ROW}px)` }}
      title={part ? `${part.id[i]}\n${part.text[i]}` : (error ?? "")}
      onClick={() => part && open(part.id[i])}
    >
      <span class={`mark ${outcome}`} aria-label={outcome}>{mark}</span>
      <span class={meta.task.list_from_end ? "item-text from-end" : "item-text"}>
        <bdi>{part?.text[i] ?? (error && "could not be loaded") ?? ""}</bdi>
      </span>
      <span class="item-figures">
        {said != null && <code class={correct === 0 ? "is-competitor" : "is-target"}>{word(said)}</code>}
        {correct === 0 && target != null && <> for <code class="is-target">{word(target)}</code></>}
        <span class="item-numbers">
          {[figure("entropy", "H"), figure("margin", "m")].filter(Boolean).join(" · ")}
        </span>
      </span>
    </button>
  );
}
