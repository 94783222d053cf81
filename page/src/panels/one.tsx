// One example: what it says, and how that came about.
import { TrajectoryChart, TrajectoryPanel } from "./trajectories";
import { AttentionPanel, AttentionView } from "./attention";
import { ChoiceChoose } from "./choices";
import { ContributionBars, ContributionPanel } from "./contributions";
import { DecisionBars, DecisionPanel } from "./decision";
import { LensGrid, LensPanel } from "./lens";
import { Story } from "./story";
import { TokenPanel, TokenStrip } from "./tokens";
import type { Side } from "../side";
import type { Sides } from "../sides";
import { readsChoices } from "../task";
import { go, state, UNASKED, type Question } from "../state";

export function One({ side }: { side: Side }) {
  const sides: Sides = [side];
  const byChoice = readsChoices(side.meta);
  const pick = (pos: number, layer = state.value.layer) =>
    go({ pos, layer, ...(pos === side.pos ? {} : UNASKED) });
  const ask = (question: Partial<Question>) => go(question);
  const compare = (vs: number) => ask({ vs });
  const trajectories = (
    <TrajectoryPanel sides={sides}>
      <TrajectoryChart side={side} sides={sides} height={byChoice ? 250 : 230} />
    </TrajectoryPanel>
  );
  return (
    <>
      <TokenPanel sides={sides}>
        {byChoice && <ChoiceChoose side={side} />}
        <TokenStrip side={side} label="tokens" onPick={(pos) => pick(pos)} />
        <Story side={side} />
      </TokenPanel>
      <div class={byChoice ? "panels of-choices" : "panels"}>
        {byChoice ? trajectories : (
          <LensPanel sides={sides}>
            <LensGrid side={side} sides={sides} onPick={pick} onVs={compare} />
          </LensPanel>
        )}
        <DecisionPanel sides={sides}>
          <DecisionBars side={side} onAsk={ask} onPick={(pos) => pick(pos)} />
        </DecisionPanel>
        <ContributionPanel sides={sides}><ContributionBars side={side} sides={sides} /></ContributionPanel>
        {!byChoice && trajectories}
        <AttentionPanel sides={sides}>
          <AttentionView side={side} sides={sides} onPick={(pos) => pick(pos)} />
        </AttentionPanel>
      </div>
    </>
  );
}
