// One sentence on how the decision came about.
import { brief, depth, prob, signed, word } from "../format";
import { candidates, choiceId, choicesAt, isKnown, isRight, textOf, type Side } from "../side";
import { story } from "../story";

function Verdict({ side }: { side: Side }) {
  const choices = choicesAt(side);
  if (choices) {
    const given = choices.find((c) => c.given);
    const right = choices.find((c) => c.right);
    return (
      <>
        <Mark correct={side.tokens.decision?.correct ?? null} /> answers{" "}
        <b class={given && shade(side, choiceId(side, given))}>{given?.label} {given?.text}</b> ({prob(given?.prob)})
        {right && given !== right && (
          <>; right is <b class={shade(side, choiceId(side, right))}>{right.label} {right.text}</b> ({prob(right.prob)})</>
        )}
        {!right && "; the answer is not known"}.
      </>
    );
  }
  const top = said(side);
  const actual = candidates(side).find((c) => c.target);
  if (!top) return null;
  const right = isRight(side);
  const { words } = side.meta.task;
  return (
    <>
      <Mark correct={right} /> {words.where} <code>{word(side.tokens.tokens[side.pos])}</code> says{" "}
      <b class={shade(side, top.id)}><code>{word(top.text)}</code></b> ({prob(top.prob)})
      {right === false && actual && (
        <>; {words.truth} <b class={shade(side, actual.id)}><code>{word(actual.text)}</code></b> ({prob(actual.prob)})</>
      )}
      {!isKnown(side) && "; the text ends here"}.
    </>
  );
}

/** The colour of a token or choice: that of the target or its competitor, where it is one of them. */
function shade(side: Side, id: number): string | undefined {
  return id === side.target?.id ? "is-target" : id === side.competitor?.id ? "is-competitor" : undefined;
}

/** What the model says at the side's position: what it ranks first, which equal float16 probabilities cannot tell. */
function said(side: Side): { id: number; text: string; prob: number | null } | null {
  const { decision } = side.tokens;
  const lens = side.lens.value;
  if (decision?.pred && decision.pos === side.pos) {
    const { id, text, prob: sure } = decision.pred;
    return { id, text: lens?.words[id] ?? text, prob: sure };
  }
  if (!lens || side.slot < 0) return null;
  const at = ((lens.depths - 1) * lens.pos.length + side.slot) * lens.top;
  return { id: lens.topIds[at], text: textOf(lens, lens.topIds[at]), prob: lens.topProbs[at] };
}

function Mark({ correct }: { correct: boolean | null }) {
  if (correct === null) return <span class="mark">?</span>;
  return <span class={`mark ${correct ? "right" : "wrong"}`}>{correct ? "✓ Right" : "✗ Wrong"}</span>;
}

export function Story({ side }: { side: Side }) {
  const told = story(side);
  if (!told || !side.target || !side.competitor) return <p class="story"><Verdict side={side} /></p>;
  const [first, second] = told.ahead ? [side.target, side.competitor] : [side.competitor, side.target];
  const name = (token: typeof first) => (
    <b class={token === side.target ? "is-target" : "is-competitor"}>
      <code>{choicesAt(side) ? token.text : brief(token.text)}</code>
    </b>
  );
  const steps = side.lens.value?.depths ?? side.byChoice.value?.probs.length ?? 0;
  const since = told.from === 0 ? "from the start" : <>from <b>{depth(told.from ?? 0)}</b> on</>;
  return (
    <p class="story">
      <Verdict side={side} />{" "}
      {told.from !== null && steps > 1 && (
        <>
          {told.turned && <>{name(second)} was ahead until then: </>}
          {name(first)} leads {name(second)} {since}.{" "}
        </>
      )}
      {told.pushes.length > 0 && (
        <>
          Pushed towards {name(first)} by <Parts parts={told.pushes} />
          {told.pulls.length > 0 && <>; towards {name(second)} by <Parts parts={told.pulls} /></>} (logits).
        </>
      )}
    </p>
  );
}

function Parts({ parts }: { parts: { part: string; logits: number }[] }) {
  return (
    <>
      {parts.map((p, i) => (
        <span key={p.part}>
          {i > 0 && " and "}<b>{p.part}</b> {signed(Math.abs(p.logits)).slice(1)}
        </span>
      ))}
    </>
  );
}
