// What a button or a key does to the whole page, where it takes more than one step.
import { signal } from "@preact/signals";
import * as api from "./api";
import { when } from "./cache";
import { columnsOf, idOf } from "./examples";
import { counterpart } from "./list";
import { exampleRow, pinOf, type Side } from "./side";
import { go, state, UNASKED } from "./state";
import type { Meta } from "./types";

export const said = signal("");
let fading: ReturnType<typeof setTimeout> | undefined;

export function tell(text: string): void {
  said.value = text;
  clearTimeout(fading);
  fading = setTimeout(() => (said.value = ""), 4000);
}

/** Pin an example, or unpin the one that is. */
export function pin(side: Side | undefined): void {
  if (state.value.pin) go({ pin: null });
  else if (side) go({ pin: pinOf(side, state.value) });
}

/** Pin this example and open one that turned out the other way. */
export async function against(meta: Meta, side: Side): Promise<void> {
  const figures = await when(() => {
    const found = columnsOf(meta);
    return found.complete || found.error !== undefined ? found : undefined;
  });
  const other = counterpart(side.row, meta.n, figures.columns, meta.figures);
  if (other < 0) {
    tell(figures.error ?? "There is no example that turned out the other way.");
    return;
  }
  const id = await when(() => {
    const found = idOf(meta, other);
    return found.value !== undefined || found.error !== undefined ? found : undefined;
  });
  const { run, ex } = state.value;
  if (run !== side.place.run || ex !== side.tokens.example_id) return; // the reader has gone on
  if (id.value === undefined) tell(id.error ?? "The list cannot be read.");
  else go({ pin: pinOf(side, state.value), ex: id.value, pos: null, choice: null, ...UNASKED });
}

let wanted = "";

/** Show another run: the same example if it has it, else its most telling one. */
export async function switchRun(key: string): Promise<void> {
  wanted = key;
  const { ex } = state.value;
  const meta = await when(() => {
    const found = api.meta(key);
    return found.value || found.error ? found : undefined;
  });
  if (!meta.value) {
    tell(meta.error ?? "");
    return;
  }
  const there = await when(() => {
    const found = exampleRow(meta.value!, ex);
    return found.value || found.error ? found : undefined;
  });
  if (wanted !== key) return; // yet another one was chosen since
  const kept = there.value ? ex : "";
  if (kept === "" && ex !== "") tell(`${meta.value.run_id} has no example ${ex}.`);
  go({ run: key, ex: kept, pos: null, choice: null, layer: null, head: null, kinds: {}, ...UNASKED });
}
