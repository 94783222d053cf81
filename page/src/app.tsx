// The page: one example, or a pinned one beside it.
import { useEffect } from "preact/hooks";
import * as api from "./api";
import { theme } from "./colour";
import { plural } from "./format";
import { follow } from "./keyboard";
import { telling } from "./list";
import { AttentionDifference, AttentionPanel, AttentionView } from "./panels/attention";
import { ContributionBars, ContributionPairs, ContributionPanel } from "./panels/contributions";
import { DecisionBars, DecisionPanel } from "./panels/decision";
import { bundled, columnsOf, Examples, idOf } from "./panels/examples";
import { Choose, SheetDialog, Waiting } from "./panels/frame";
import { Header, Help } from "./panels/header";
import { LensDifference, LensGrid, LensPanel } from "./panels/lens";
import { RaceChart, RacePanel, tallest } from "./panels/race";
import { Story } from "./panels/story";
import { TokenPanel, TokenStrip } from "./panels/tokens";
import { glance, lead, sideOf, type Side } from "./side";
import { go, here, state } from "./state";
import type { Meta, Runs } from "./types";

export function App() {
  const runs = api.runs();
  useEffect(() => {
    document.documentElement.dataset.theme = theme.value;
  }, [theme.value]);
  if (!runs.value) return <main class="only"><Waiting error={runs.error} /></main>;
  bundled.value = runs.value.bundle;
  const key = runs.value.runs.some((r) => r.key === state.value.run) ? state.value.run : runs.value.runs[0].key;
  const meta = api.meta(key);
  if (!meta.value) return <main class="only"><Waiting error={meta.error} /></main>;
  return <Run meta={meta.value} runs={runs.value} />;
}

/** Begin with the most telling example where the address names none. */
function useBeginning(meta: Meta): void {
  const { columns, complete } = columnsOf(meta);
  const begin = state.value.ex === "" && complete ? telling(meta.n, columns) : -1;
  const id = begin >= 0 ? idOf(meta, begin) : undefined;
  useEffect(() => {
    if (state.value.ex === "" && id !== undefined) go({ ex: id });
  }, [id]);
}

let lastSide: Side | undefined;

function Run({ meta, runs }: { meta: Meta; runs: Runs }) {
  useBeginning(meta);
  useEffect(() => {
    document.title = `${meta.run_id} · decision traces`;
  }, [meta.run_id]);
  const place = here.value;
  const { pin, vs } = state.value;
  const loaded = place.ex === "" ? {} : sideOf(place, runs.bundle, vs);
  const pinned = pin ? sideOf(pin, runs.bundle, null) : undefined;
  if (loaded.value) lastSide = loaded.value;
  const side = loaded.value ?? (loaded.error ? undefined : lastSide);
  useEffect(() => follow(loaded.value), [loaded.value]);
  return (
    <>
      <Header meta={meta} runs={runs} side={side} />
      <Help />
      <Examples meta={meta} row={side?.row ?? -1} />
      <main class={pin ? "compare" : ""} aria-busy={!loaded.value}>
        {loaded.error && <p class="empty" role="alert">{loaded.error}</p>}
        {pinned?.error && <p class="empty" role="alert">The pinned example: {pinned.error}</p>}
        {side && !pin && <One side={side} bundle={runs.bundle} />}
        {side && pin && pinned?.value && <Two first={pinned.value} second={side} bundle={runs.bundle} />}
        {!side && !loaded.error && <Waiting lines={10} />}
      </main>
      <SheetDialog />
    </>
  );
}

const pick = (pos: number) => go({ pos, vs: null });

function One({ side, bundle }: { side: Side; bundle: boolean }) {
  const middle = side.meta.by_choice;
  const seen = glance(side);
  return (
    <>
      <TokenPanel side={side}>
        {middle && <ChoiceChoose side={side} />}
        <TokenStrip side={side} onPick={pick} />
        <Story side={side} />
      </TokenPanel>
      <div class={middle ? "panels of-choices" : "panels"}>
        {middle ? (
          <RacePanel sides={[side]}><RaceChart side={side} height={250} /></RacePanel>
        ) : (
          <LensPanel sides={[side]}><LensGrid side={side} which="this example" onPick={pick} /></LensPanel>
        )}
        <DecisionPanel sides={[seen]}><DecisionBars side={seen} /></DecisionPanel>
        <ContributionPanel sides={[side]}><ContributionBars side={side} /></ContributionPanel>
        {!middle && <RacePanel sides={[seen]}><RaceChart side={seen} /></RacePanel>}
        <AttentionPanel sides={[side]}><AttentionView side={side} bundle={bundle} onPick={pick} /></AttentionPanel>
      </div>
    </>
  );
}

function ChoiceChoose({ side }: { side: Side }) {
  const choices = side.tokens.choices ?? [];
  return (
    <span class="choose choices" role="group" aria-label="choice">
      {choices.map((c, i) => (
        <button key={i} aria-pressed={i === side.place.choice} onClick={() => go({ choice: i, pos: null })}>
          {c.label} {c.text} {c.right ? "✓" : ""}{c.given && !c.right ? "✗" : ""}
        </button>
      ))}
    </span>
  );
}

function Two({ first, second, bundle }: { first: Side; second: Side; bundle: boolean }) {
  const { cmp, pin } = state.value;
  const sides = [first, second];
  const diff = cmp === "diff";
  const both = (make: (side: Side, pinned: boolean) => preact.ComponentChildren) => (
    <div class="two">
      <div class="half"><Caption side={first} pinned />{make(first, true)}</div>
      <div class="half"><Caption side={second} />{make(second, false)}</div>
    </div>
  );
  const picker = (pinned: boolean) => (pos: number) => (pinned ? go({ pin: { ...pin!, pos } }) : pick(pos));
  const leads = sides.map(lead);
  const most = Math.max(0.1, ...leads.flatMap((l) => (l ? [...l.values.map(Math.abs), ...running(l.values)] : [])));
  const middle = second.meta.by_choice || first.meta.by_choice;
  return (
    <>
      <div class="comparing">
        <Choose label="how to compare" value={cmp} options={[["side", "side by side"], ["diff", "difference"]] as const} onChange={(c) => go({ cmp: c })} />
        <span class="note">{diff ? "this minus pinned; positions are counted from the chosen tokens" : "pinned left, this right; one scale for both"}</span>
      </div>
      <TokenPanel side={second}>
        {both((side, pinned) => (
          <>
            {side.meta.by_choice && !pinned && <ChoiceChoose side={side} />}
            <TokenStrip side={side} onPick={picker(pinned)} />
            <Story side={side} />
          </>
        ))}
      </TokenPanel>
      <RacePanel sides={sides}>{both((side) => <RaceChart side={side} most={Math.max(tallest(first), tallest(second))} />)}</RacePanel>
      <ContributionPanel sides={sides}>
        {diff ? <ContributionPairs first={first} second={second} /> : both((side) => <ContributionBars side={side} most={most} height={200} />)}
      </ContributionPanel>
      {!middle && (
        <LensPanel sides={sides}>
          {diff ? <LensDifference first={first} second={second} /> : both((side, pinned) => <LensGrid side={side} which={pinned ? "the pinned example" : "this example"} onPick={picker(pinned)} />)}
        </LensPanel>
      )}
      <DecisionPanel sides={sides}>{both((side) => <DecisionBars side={side} />)}</DecisionPanel>
      <AttentionPanel sides={sides}>
        {diff ? <AttentionDifference first={first} second={second} /> : both((side, pinned) => <AttentionView side={side} bundle={bundle} onPick={picker(pinned)} />)}
      </AttentionPanel>
    </>
  );
}

function running(values: number[]): number[] {
  let sum = 0;
  return values.map((v) => Math.abs((sum += v)));
}

function Caption({ side, pinned }: { side: Side; pinned?: boolean }) {
  return (
    <p class="caption">
      <b>{pinned ? "pinned" : "this"}</b> {side.meta.run_id} · {side.tokens.example_id} · {plural(side.tokens.n_tokens, "token")}
    </p>
  );
}
