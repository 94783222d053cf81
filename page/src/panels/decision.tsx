// What the model says at one position: its most probable tokens, or the choices of a question.
import { number, prob, word } from "../format";
import { atDecision, candidates, textOf, type Side } from "../side";
import { go } from "../state";
import { Panel, Waiting } from "./frame";

const MOST = 7;

interface Line {
  id: number;
  name: string;
  prob: number;
  target: boolean;
  rival: boolean;
  tag: string;
}

function lines(side: Side): Line[] {
  const { choices } = side.tokens;
  if (choices && atDecision(side)) {
    return choices.map((c, i) => {
      const id = side.meta.by_choice ? i : c.id;
      return { id, name: `${c.label}  ${c.text}`, prob: c.prob, target: id === side.target?.id, rival: id === side.rival?.id, tag: c.right ? "right" : c.given ? "given" : "" };
    });
  }
  const list = [...candidates(side)].sort((a, b) => b.prob - a.prob);
  const known = side.lens.value ? side.slot >= 0 && side.lens.value.known[side.slot] === 1 : (side.tokens.decision?.known ?? false);
  const shown = list.filter((c, i) => i < MOST || c.target || c.id === side.rival?.id);
  return shown.map((c) => ({ id: c.id, name: word(c.text), prob: c.prob, target: c.target, rival: c.id === side.rival?.id, tag: c.target && known ? "actual" : "" }));
}

export function DecisionPanel({ sides, children }: { sides: Side[]; children: preact.ComponentChildren }) {
  const side = sides[sides.length - 1];
  return (
    <Panel
      name="decision"
      title="Decision"
      note={side.tokens.choices && atDecision(side) ? "probability of each choice" : `what the model says after ${word(side.tokens.tokens[side.pos])}`}
      data={() => lines(side).map(({ id, name, prob: p, tag }) => ({ id, token: name, prob: p, tag }))}
      python={`st.tokens.iloc[${side.row}]`}
      path={side.meta.path}
    >
      {children}
    </Panel>
  );
}

export function DecisionBars({ side }: { side: Side }) {
  const all = lines(side);
  const lens = side.lens.value;
  const { decision } = side.tokens;
  const ofChoices = side.tokens.choices !== null && atDecision(side);
  if (all.length === 0) {
    if (side.meta.lens && !lens) return <Waiting error={side.lens.error} lines={7} />;
    return (
      <p class="empty" role="note">
        {decision?.pos != null && decision.pos !== side.pos ? (
          <>
            Nothing was kept of the prediction at this position.{" "}
            <button onClick={() => go({ pos: decision.pos })}>Go to the decision</button>
          </>
        ) : (
          "This run makes no prediction."
        )}
      </p>
    );
  }
  const most = Math.max(...all.map((line) => line.prob), 1e-9);
  const at = lens && side.slot >= 0 ? (lens.depths - 1) * lens.pos.length + side.slot : -1;
  const entropy = at >= 0 ? lens!.values.entropy[at] : decision?.pos === side.pos ? decision?.entropy : null;
  const rank = at >= 0 && lens!.known[side.slot] ? lens!.values.rank[at] : decision?.pos === side.pos ? decision?.rank : null;
  return (
    <>
      <ul class="bars">
        {all.map((line) => (
          <li key={line.id}>
            <button
              class={`bar${line.target ? " is-target" : ""}${line.rival ? " is-rival" : ""}`}
              disabled={line.target}
              aria-pressed={line.rival}
              title={line.target ? "the target of the comparison" : "compare the target with this one"}
              onClick={() => go({ vs: line.id })}
            >
              <span class="bar-name">{line.name}</span>
              <span class="bar-track"><i style={{ width: `${(100 * line.prob) / most}%` }} /></span>
              <span class="bar-value">{prob(line.prob)}</span>
              <span class="bar-tag">{line.tag || (line.rival ? "against" : "")}</span>
            </button>
          </li>
        ))}
      </ul>
      {(entropy != null || rank != null) && (
        <p class="figures">
          {ofChoices && lens && <>over the whole vocabulary: top <code>{word(textOf(lens, lens.topIds[at * lens.top]))}</code> {prob(lens.topProbs[at * lens.top])}, </>}
          {entropy != null && <>entropy {number(entropy)} nats</>}
          {rank != null && <>, {ofChoices ? "right choice" : "actual token"} has rank {number(rank, 0)}</>}
        </p>
      )}
    </>
  );
}
