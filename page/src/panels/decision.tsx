// What the model says at one position: its most probable tokens, or the choices of a question.
import { number, prob, signedProb, word } from "../format";
import { script } from "../script";
import { candidates, choiceId, choicesAt, glance, isKnown, textOf, type Side } from "../side";
import { current, dataOf, type Sides } from "../sides";
import { state, type Question } from "../state";
import { Panel, Waiting } from "./frame";

const MOST = 7;

interface Line {
  id: number;
  name: string;
  prob: number;
  target: boolean;
  competitor: boolean;
  tag: string;
}

function lines(side: Side): Line[] {
  const among = { target: side.target?.id, competitor: side.competitor?.id };
  const choices = choicesAt(side);
  if (choices) {
    return choices.map((c) => {
      const id = choiceId(side, c);
      const tag = c.right ? "right" : c.given ? "given" : "";
      const [target, competitor] = [id === among.target, id === among.competitor];
      return { id, name: `${c.label}  ${c.text}`, prob: c.prob, target, competitor, tag };
    });
  }
  const list = [...candidates(side)].sort((a, b) => b.prob - a.prob);
  const known = isKnown(side);
  const asked = new Set([among.target, among.competitor]);
  const shown = list.filter((c, i) => i < MOST || c.target || asked.has(c.id));
  return shown.map((c) => {
    const tag = c.target && known ? "actual" : "";
    const [target, competitor] = [c.id === among.target, c.id === among.competitor];
    return { id: c.id, name: word(c.text), prob: c.prob, target, competitor, tag };
  });
}

function values(side: Side): unknown {
  return {
    example_id: side.tokens.example_id,
    position: side.pos,
    probabilities: lines(side).map(({ id, name, prob: p, tag }) => ({ id, token: name, prob: p, tag })),
  };
}

export function DecisionPanel({ sides, children }: { sides: Sides; children: preact.ComponentChildren }) {
  const side = current(sides);
  const seen = glance(side);
  const difference = sides.length === 2 && state.value.cmp === "diff" ? () => pairs(sides[0], sides[1]) : undefined;
  const after = `what the model says ${seen.meta.task.words.where} ${word(seen.tokens.tokens[seen.pos])}`;
  return (
    <Panel
      name="decision"
      title="Decision"
      note={choicesAt(seen) ? "probability of each choice" : after}
      data={() => dataOf(sides, values, difference)}
      python={script(side, side.tokens.python.decision)}
    >
      {children}
    </Panel>
  );
}

interface Props {
  side: Side;
  onAsk: (question: Partial<Question>) => void;
  onPick: (pos: number) => void;
}

export function DecisionBars({ side: chosen, onAsk, onPick }: Props) {
  const side = glance(chosen);
  const all = lines(side);
  if (all.length === 0) return <Nothing side={side} onPick={onPick} />;
  const most = Math.max(...all.map((line) => line.prob), 1e-9);
  return (
    <>
      <ul class="bars">
        {all.map((line) => (
          <li key={line.id} class="bar-line">
            <button
              class={`bar${line.target ? " is-target" : ""}${line.competitor ? " is-competitor" : ""}`}
              disabled={line.target}
              aria-pressed={line.competitor}
              title={line.target ? "the target of the comparison" : "compare the target with this one"}
              onClick={() => onAsk({ vs: line.id })}
            >
              <span class="bar-name">{line.name}</span>
              <span class="bar-track"><i style={{ width: `${(100 * line.prob) / most}%` }} /></span>
              <span class="bar-value">{prob(line.prob)}</span>
              <span class="bar-tag">{line.tag || (line.competitor ? "against" : line.target ? "target" : "")}</span>
            </button>
            <button
              class="bar-aim"
              aria-label={`make ${line.name} the target`}
              aria-pressed={line.target}
              title={line.target ? "the target of the comparison" : "make it the target of the comparison"}
              onClick={() => onAsk(aimedAt(line))}
            >
              ◎
            </button>
          </li>
        ))}
      </ul>
      <Summary side={side} />
    </>
  );
}

/** Return the question that makes a line the target; its competitor, if it was that, is looked for anew. */
function aimedAt(line: Line): Partial<Question> {
  return line.competitor ? { target: line.id, vs: null } : { target: line.id };
}

function Nothing({ side, onPick }: { side: Side; onPick: (pos: number) => void }) {
  const decided = side.tokens.decision?.pos;
  if (side.meta.lens && !side.lens.value) return <Waiting error={side.lens.error} lines={7} />;
  if (decided == null || decided === side.pos) {
    return <p class="empty" role="note">This run makes no prediction.</p>;
  }
  return (
    <p class="empty" role="note">
      Nothing was kept of the prediction at this position.{" "}
      <button onClick={() => onPick(decided)}>Go to the decision</button>
    </p>
  );
}

/** Entropy and rank at the end of the model. */
function Summary({ side }: { side: Side }) {
  const lens = side.lens.value;
  const decision = side.tokens.decision?.pos === side.pos ? side.tokens.decision : null;
  const ofChoices = choicesAt(side) !== null;
  const at = lens && side.slot >= 0 ? (lens.depths - 1) * lens.pos.length + side.slot : -1;
  const entropy = at >= 0 ? lens!.values.entropy[at] : decision?.entropy;
  const rank = at >= 0 && lens!.known[side.slot] ? lens!.values.rank[at] : decision?.rank;
  if (entropy == null && rank == null) return null;
  return (
    <p class="figures">
      {ofChoices && at >= 0 && (
        <>
          over the whole vocabulary: top <code>{word(textOf(lens!, lens!.topIds[at * lens!.top]))}</code>{" "}
          {prob(lens!.topProbs[at * lens!.top])},{" "}
        </>
      )}
      {entropy != null && <>entropy {number(entropy)} nats</>}
      {rank != null && <>, {ofChoices ? "right choice" : "actual token"} has rank {number(rank, 0)}</>}
    </p>
  );
}

interface Pair {
  id: number;
  token: string;
  pinned: number | null;
  this: number | null;
  difference: number | null;
}

/** Return both sides' probabilities, choice by choice or token by token. */
function pairs(first: Side, second: Side): Pair[] {
  const [a, b] = [lines(first), lines(second)];
  const all = new Map([...b, ...a].map((line) => [line.id, line.name]));
  const probOf = (side: Side, list: Line[], id: number): number | null =>
    (list.find((line) => line.id === id) ?? candidates(side).find((c) => c.id === id))?.prob ?? null;
  return [...all].map(([id, token]) => {
    const [was, is] = [probOf(first, a, id), probOf(second, b, id)];
    return { id, token, pinned: was, this: is, difference: was === null || is === null ? null : is - was };
  });
}

/** Return whether the two say anything that can be subtracted: other texts go on with other tokens. */
export function haveCommon(first: Side, second: Side): boolean {
  return pairs(first, second).some((pair) => pair.difference !== null);
}

/** Both sides' probabilities in one table, with their difference. */
export function DecisionDifference({ first, second }: { first: Side; second: Side }) {
  const all = pairs(glance(first), glance(second));
  if (all.length === 0) return <p class="empty" role="note">Nothing was kept of these predictions.</p>;
  return (
    <table class="pairs">
      <thead>
        <tr>
          {["says", "pinned", "this", "this − pinned"].map((name) => <th key={name} scope="col">{name}</th>)}
        </tr>
      </thead>
      <tbody>
        {all.map((pair) => (
          <tr key={pair.id}>
            <th scope="row"><code>{pair.token}</code></th>
            <td>{prob(pair.pinned)}</td>
            <td>{prob(pair.this)}</td>
            <td>{signedProb(pair.difference)}</td>
          </tr>
        ))}
      </tbody>
    </table>
  );
}
