// The pinned example and this one, side by side or as a difference.
import type { ComponentChildren } from "preact";
import { plural } from "../format";
import type { Side } from "../side";
import type { Sides } from "../sides";
import { go, state, UNASKED, type Question, type State } from "../state";
import { readsChoices } from "../task";
import { AttentionDifference } from "./attention-difference";
import { AttentionPanel, AttentionView } from "./attention";
import { ChoiceChoose } from "./choices";
import { ContributionBars, ContributionDifference, ContributionPanel } from "./contributions";
import { DecisionBars, DecisionDifference, DecisionPanel, haveCommon } from "./decision";
import { Choose } from "./frame";
import { LensDifference } from "./lens-difference";
import { LensGrid, LensPanel } from "./lens";
import { TrajectoryDifference } from "./trajectory-difference";
import { TrajectoryChart, TrajectoryPanel } from "./trajectories";
import { trajectoryPair } from "./trajectory";
import { Story } from "./story";
import { TokenPanel, TokenStrip } from "./tokens";

const HOW = [["side", "side by side"], ["diff", "difference"]] as const;

interface Half {
  side: Side;
  pinned: boolean;
  pick: (pos: number, layer?: number | null) => void;
  ask: (question: Partial<Question>) => void;
}

/** Go to a position of the pinned example. */
function pinnedAt(pos: number, { target, vs } = UNASKED): Partial<State> {
  return { pin: { ...state.value.pin!, pos, target, vs } };
}

function halves(first: Side, second: Side): [Half, Half] {
  const pin = state.value.pin!;
  const pinned: Half = {
    side: first,
    pinned: true,
    pick: (pos, layer = state.value.layer) => go({ ...pinnedAt(pos, pos === first.pos ? pin : UNASKED), layer }),
    ask: (question) => go({ pin: { ...pin, ...question } }),
  };
  const own: Half = {
    side: second,
    pinned: false,
    pick: (pos, layer = state.value.layer) => go({ pos, layer, ...(pos === second.pos ? {} : UNASKED) }),
    ask: (question) => go(question),
  };
  return [pinned, own];
}

/** Go to a place in both, so that what lies on each other stays so; where the pinned one ends, in this one alone. */
function together(first: Side, second: Side, pos: number, layer = state.value.layer): void {
  const under = pos + first.pos - second.pos;
  const there = under >= 0 && under < first.tokens.n_tokens;
  go({ pos, layer, ...UNASKED, ...(there ? pinnedAt(under) : {}) });
}

export function Two({ pinned, second }: { pinned: Side; second: Side }) {
  const { cmp } = state.value;
  const first = { ...pinned, shown: second.shown }; // two heads of different places are nothing to compare
  const sides: Sides = [first, second];
  const [left, right] = halves(first, second);
  const both = (make: (half: Half) => ComponentChildren) => (
    <div class="two">
      {[left, right].map((half) => (
        <div class="half" key={half.pinned ? "pinned" : "this"}>
          <Caption side={half.side} pinned={half.pinned} />
          {make(half)}
        </div>
      ))}
    </div>
  );
  const either = (difference: ComponentChildren, make: (half: Half) => ComponentChildren) =>
    cmp === "diff" ? difference : both(make);
  const pick = (pos: number, layer?: number) => together(first, second, pos, layer);
  const note =
    cmp === "diff"
      ? "this minus pinned; positions are counted from the chosen tokens"
      : "pinned left, this right; one scale for both";
  return (
    <>
      <div class="comparing">
        <Choose label="how to compare" value={cmp} options={HOW} onChange={(c) => go({ cmp: c })} />
        <span class="note">{note}</span>
      </div>
      <TokenPanel sides={sides}>
        {both(({ side, pinned: isPinned, pick: pickToken }) => (
          <>
            {readsChoices(side.meta) && !isPinned && <ChoiceChoose side={side} />}
            <TokenStrip
              side={side}
              label={isPinned ? "tokens of the pinned example" : "tokens"}
              onPick={(pos) => pickToken(pos)}
            />
            <Story side={side} />
          </>
        ))}
      </TokenPanel>
      <TrajectoryPanel sides={sides}>
        {cmp === "diff" && trajectoryPair(first, second) ? (
          <TrajectoryDifference first={first} second={second} />
        ) : (
          both(({ side }) => <TrajectoryChart side={side} sides={sides} />)
        )}
      </TrajectoryPanel>
      <ContributionPanel sides={sides}>
        {either(
          <ContributionDifference first={first} second={second} />,
          ({ side }) => <ContributionBars side={side} sides={sides} height={200} />,
        )}
      </ContributionPanel>
      {!readsChoices(second.meta) && !readsChoices(first.meta) && (
        <LensPanel sides={sides}>
          {either(
            <LensDifference first={first} second={second} onPick={pick} />,
            (half) => <LensGrid side={half.side} sides={sides} onPick={half.pick} onVs={(vs) => half.ask({ vs })} />,
          )}
        </LensPanel>
      )}
      <DecisionPanel sides={sides}>
        {cmp === "diff" && haveCommon(first, second) ? (
          <DecisionDifference first={first} second={second} />
        ) : (
          both((half) => <DecisionBars side={half.side} onAsk={half.ask} onPick={(pos) => half.pick(pos)} />)
        )}
      </DecisionPanel>
      <AttentionPanel sides={sides}>
        {either(
          <AttentionDifference first={first} second={second} onPick={(pos) => pick(pos)} />,
          (half) => <AttentionView side={half.side} sides={sides} onPick={(pos) => half.pick(pos)} />,
        )}
      </AttentionPanel>
    </>
  );
}

function Caption({ side, pinned }: { side: Side; pinned: boolean }) {
  const { meta, tokens } = side;
  return (
    <p class="caption">
      <b>{pinned ? "pinned" : "this"}</b> {meta.run_id} · {tokens.example_id} · {plural(tokens.n_tokens, "token")}
    </p>
  );
}
