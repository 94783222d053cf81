"""Five-choice questions in the CSQA form, answered by the commonplaces."""

from random import Random
from typing import NamedTuple

from decision_traces.data._tinyworld.commonplaces import TOPICS, Topic
from decision_traces.data._tinyworld.items import Item, Source, shuffled
from decision_traces.data._tinyworld.words import LETTERS


class Asked(NamedTuple):
    """A question with its five choices and the letter of the right one."""

    question: str
    choices: tuple[str, ...]
    key: str


def make_question(source: Source) -> Item:
    """Return a five-choice question; open questions, answered by a word, often stand before it."""
    rng = source.rng
    drawn = source.draw(_draw_question, _question_world)
    before = [_open_question(rng) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
    right = drawn.choices[LETTERS.index(drawn.key)]
    text = " ".join([*before, f"{question_prompt(drawn.question, drawn.choices)} {right}"])
    return Item("question", text, (_question_world(drawn),), drawn.question, drawn.choices, drawn.key)


def question_prompt(question: str, choices: tuple[str, ...]) -> str:
    """Return `Question: ... A one, B two, ... Answer:`, to be followed by a space and the right word."""
    listed = ", ".join(f"{letter} {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return f"Question: {question} {listed}. Answer:"


def _open_question(rng: Random) -> str:
    """Return a question with its answer in words; a commonplace, so the same in every split."""
    topic, thing = _draw_commonplace(rng)
    return f"Question: {rng.choice(topic.asked).format(x=thing)} Answer: {topic.answers[thing]}."


def _draw_commonplace(rng: Random) -> tuple[Topic, str]:
    """Return a family and the thing asked about, each commonplace as likely as any other."""
    topic = rng.choices(TOPICS, weights=[len(t.answers) for t in TOPICS])[0]
    return topic, rng.choice(tuple(topic.answers))


def _draw_question(rng: Random) -> Asked:
    topic, thing = _draw_commonplace(rng)
    right = topic.answers[thing]
    choices = shuffled(rng, [right, *_wrong_choices(rng, topic, thing)])
    stem = rng.choice(topic.asked).format(x=thing)
    return Asked(stem, tuple(choices), LETTERS[choices.index(right)])


def _wrong_choices(rng: Random, topic: Topic, thing: str) -> list[str]:
    """Return four wrong choices: three of the same family as the right one, one of any family."""
    right = {topic.answers[thing], *topic.near_misses.get(thing, ())}
    near = rng.sample([a for a in topic.answers.values() if a not in right], 3)
    others = [a for t in TOPICS if t is not topic for a in t.answers.values()]
    return [*near, rng.choice(sorted(set(others) - right))]


def _question_world(asked: Asked) -> str:
    """Write out what is asked and what is offered, whatever the order of the choices."""
    return f"question: {asked.question} " + " ".join(sorted(asked.choices))
