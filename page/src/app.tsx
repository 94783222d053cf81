// The page: one example, or a pinned one beside it.
import type { Signal } from "@preact/signals";
import { useEffect, useLayoutEffect, useRef } from "preact/hooks";
import * as api from "./api";
import { changed, retry, unreachable, type Loaded } from "./cache";
import { theme } from "./colour";
import { columnsOf, idOf } from "./examples";
import { follow } from "./keyboard";
import { telling } from "./list";
import { Examples } from "./panels/examples";
import { Guard, SheetDialog, Waiting } from "./panels/frame";
import { Header } from "./panels/header";
import { Help } from "./panels/help";
import { One } from "./panels/one";
import { Two } from "./panels/two";
import { notice, runOf, settle } from "./settle";
import { sideOf, type Side } from "./side";
import { amend, beginWith, here, state } from "./state";
import type { Meta, Runs } from "./types";

export function App() {
  const runs = api.runs();
  useEffect(() => {
    document.documentElement.dataset.theme = theme.value;
  }, [theme.value]);
  const first = runs.value?.runs[0].key;
  useEffect(() => {
    if (first !== undefined) beginWith(first);
  }, [first]);
  if (!runs.value) return <Alone error={runs.error} />;
  const meta = api.meta(runOf(state.value, runs.value));
  if (!meta.value) return <Alone error={meta.error} />;
  return (
    <Guard what="The page">
      <Run meta={meta.value} runs={runs.value} />
    </Guard>
  );
}

function Alone({ error }: { error?: string }) {
  return (
    <main class="only">
      {unreachable.value ? <Unreachable /> : <Waiting error={error} />}
    </main>
  );
}

/** Says that the server is gone; it is asked again now and then, or at a click. */
function Unreachable() {
  if (unreachable.value === null) return null;
  return (
    <p class="unreachable" role="alert">
      {unreachable.value} <button onClick={() => void retry()}>try again</button>
    </p>
  );
}

function Notice({ of }: { of: Signal<string> }) {
  if (of.value === "") return null;
  return (
    <p class="notice" role="status">
      {of.value} <button class="plain" onClick={() => (of.value = "")}>dismiss</button>
    </p>
  );
}

/** Begin with the most telling example where the address names none. */
function useBeginning(meta: Meta): void {
  const { columns, complete } = columnsOf(meta);
  const begin = state.value.ex === "" && complete ? telling(meta.n, columns) : -1;
  const id = begin >= 0 ? idOf(meta, begin).value : undefined;
  useEffect(() => {
    if (state.value.ex === "" && id !== undefined) amend({ ex: id });
  }, [id]);
}

/** Ask for nothing that the run does not have. */
function useSettled(meta: Meta, runs: Runs): void {
  useEffect(() => {
    const { patch, notes } = settle(state.value, runs, meta);
    if (notes.length === 0) return;
    amend(patch);
    notice.value = notes.join(" ");
  }, [state.value, meta, runs]);
}

/** Return the side to show: while the next example of a run is on its way, the one before. */
function useLast(loaded: Loaded<Side>, run: string): Side | undefined {
  const last = useRef<Side | undefined>(undefined);
  if (loaded.value) last.current = loaded.value;
  else if (loaded.error || last.current?.place.run !== run) last.current = undefined;
  return last.current;
}

function Run({ meta, runs }: { meta: Meta; runs: Runs }) {
  useBeginning(meta);
  useSettled(meta, runs);
  useEffect(() => {
    document.title = `${meta.run_id} · decision traces`;
  }, [meta.run_id]);
  const place = { ...here.value, run: meta.key };
  const { pin, target, vs, layer, head } = state.value;
  const loaded = place.ex === "" ? {} : sideOf(place, { target, vs, layer, head });
  const pinned = pin && sideOf(pin, { target: pin.target, vs: pin.vs, layer, head });
  const side = useLast(loaded, place.run);
  useLayoutEffect(() => follow(loaded.value), [loaded.value]); // before it is painted: a key may follow at once
  const main = useRef<HTMLElement>(null);
  const skip = (event: MouseEvent) => {
    event.preventDefault(); // the address is the state: no #main in it
    main.current?.focus();
  };
  return (
    <>
      <a class="skip" href="#main" onClick={skip}>skip to the example</a>
      <Header meta={meta} runs={runs} side={side} />
      <Help />
      <Examples meta={meta} row={side?.row ?? -1} />
      <main ref={main} id="main" tabIndex={-1} class={pin ? "compare" : ""} aria-busy={!loaded.value}>
        <Unreachable />
        <Notice of={changed} />
        <Notice of={notice} />
        {loaded.error && !unreachable.value && <p class="empty" role="alert">{loaded.error}</p>}
        {pinned?.error && !unreachable.value && <p class="empty" role="alert">The pinned example: {pinned.error}</p>}
        {side && (
          // What is still shown of the example before must not be clicked for the one that is coming.
          <div class="example" inert={side.tokens.example_id !== place.ex}>
            <Shown side={side} pinned={pinned} />
          </div>
        )}
        {!side && !loaded.error && <Waiting lines={10} />}
      </main>
      <SheetDialog />
    </>
  );
}

function Shown({ side, pinned }: { side: Side; pinned: Loaded<Side> | null }) {
  if (pinned && !pinned.value && !pinned.error) return <Waiting lines={10} />;
  return (
    <Guard what="This example">
      {pinned?.value ? <Two pinned={pinned.value} second={side} /> : <One side={side} />}
    </Guard>
  );
}
