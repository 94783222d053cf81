// One sentence on how the decision came about.
import { brief, depth, prob, signed, word } from "../format";
import { atDecision, candidates, type Side } from "../side";
import { story } from "../story";

export function Verdict({ side }: { side: Side }) {
  const { decision, choices } = side.tokens;
  if (choices && atDecision(side)) {
    const given = choices.find((c) => c.given);
    const right = choices.find((c) => c.right);
    return (
      <>
        <Mark correct={decision?.correct ?? null} /> answers <b class={given === right ? "is-target" : "is-rival"}>{given?.label} {given?.text}</b> ({prob(given?.prob)})
        {right && given !== right ? <>; right is <b class="is-target">{right.label} {right.text}</b> ({prob(right.prob)})</> : null}
        {!right && "; the answer is not known"}.
      </>
    );
  }
  const list = candidates(side);
  const top = [...list].sort((a, b) => b.prob - a.prob)[0];
  const target = list.find((c) => c.target);
  if (!top) return null;
  const known = side.lens.value ? side.slot >= 0 && side.lens.value.known[side.slot] === 1 : (decision?.known ?? false);
  const right = known ? top.id === target?.id : null;
  return (
    <>
      <Mark correct={right} /> after <code>{word(side.tokens.tokens[side.pos])}</code> says{" "}
      <b class={right === false ? "is-rival" : "is-target"}><code>{word(top.text)}</code></b> ({prob(top.prob)})
      {right === false && target ? <>; the text goes on <b class="is-target"><code>{word(target.text)}</code></b> ({prob(target.prob)})</> : null}
      {right === null && "; the text ends here"}.
    </>
  );
}

export function Mark({ correct }: { correct: boolean | null }) {
  if (correct === null) return <span class="mark">?</span>;
  return <span class={`mark ${correct ? "right" : "wrong"}`}>{correct ? "✓ Right" : "✗ Wrong"}</span>;
}

export function Story({ side }: { side: Side }) {
  const told = story(side);
  if (!told || !side.target || !side.rival) return <p class="story"><Verdict side={side} /></p>;
  const [first, second] = told.ahead ? [side.target, side.rival] : [side.rival, side.target];
  const name = (token: typeof first) => (
    <b class={token === side.target ? "is-target" : "is-rival"}>
      <code>{side.meta.by_choice || (side.tokens.choices && atDecision(side)) ? token.text : brief(token.text)}</code>
    </b>
  );
  const steps = side.lens.value?.depths ?? side.race.value?.probs.length ?? 0;
  return (
    <p class="story">
      <Verdict side={side} />{" "}
      {told.from !== null && steps > 1 && (
        <>
          {told.turned ? <>{name(second)} was ahead until then: </> : null}
          {name(first)} leads {name(second)} {told.from === 0 ? "from the start" : <>from <b>{depth(told.from)}</b> on</>}.{" "}
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
  return <>{parts.map((p, i) => <span key={p.part}>{i > 0 && " and "}<b>{p.part}</b> {signed(Math.abs(p.logits)).slice(1)}</span>)}</>;
}
