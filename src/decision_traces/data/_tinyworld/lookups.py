"""Items whose answer stands earlier in the text: facts asked back, copies, induction."""

from dataclasses import dataclass
from random import Random

from decision_traces.data._tinyworld import words
from decision_traces.data._tinyworld.items import Item, Source, shuffled


@dataclass(frozen=True, slots=True)
class Relation:
    """One thing that can be said of a person.

    Attributes:
        told: The statement, with `{n}` for the person and `{v}` for the value.
        asked: Questions for the value, with `{n}` last.
        asked_back: The question for the person, with `{v}`; only training texts ask it.
        values: What the value can be.
    """

    told: str
    asked: tuple[str, ...]
    asked_back: str
    values: tuple[str, ...]


RELATIONS = {
    "home": Relation(
        "{n} lives in the {v} house.",
        ("What colour is the house of {n}?", "Which house is the home of {n}?"),
        "Who lives in the {v} house?",
        words.COLOURS,
    ),
    "pet": Relation(
        "{n} keeps a {v}.",
        ("What is the pet of {n}?", "Which animal is kept by {n}?"),
        "Who keeps the {v}?",
        words.ANIMALS,
    ),
    "food": Relation(
        "{n} likes {v}.",
        ("What is the best food for {n}?", "Which food is liked by {n}?"),
        "Who likes {v}?",
        words.FOODS,
    ),
    "job": Relation(
        "{n} is a {v}.",
        ("What is the work of {n}?", "Which work is done by {n}?"),
        "Who is the {v}?",
        words.JOBS,
    ),
    "place": Relation(
        "{n} is at the {v}.",
        ("Where is {n}?", "Where would you find {n}?"),
        "Who is at the {v}?",
        words.PLACES,
    ),
    "thing": Relation(
        "{n} carries a {v}.",
        ("What is in the hands of {n}?", "Which thing is carried by {n}?"),
        "Who carries the {v}?",
        words.OBJECTS,
    ),
}
Fact = tuple[str, str, str]  # (relation, person, value)


# How often a question of a training text asks for the person.
BACK = 0.25


def make_fact(source: Source) -> Item:
    """Return an item that states two to seven facts of a world and asks for the value of one to four of them."""
    return _tell_and_ask(source, 0.0)


def make_fact_either_way(source: Source) -> Item:
    """Return an item like a fact in which questions ask for a value or, less often, for a person: for training.

    With the second kind of question the heads that look facts up appear much sooner.
    """
    return _tell_and_ask(source, BACK)


def _tell_and_ask(source: Source, back: float) -> Item:
    rng = source.rng
    facts = source.draw(_draw_facts, _facts_world)
    statements = [RELATIONS[r].told.format(n=n, v=v) for r, n, v in facts]
    # Not all of them: a model would learn to answer by elimination.
    asked_facts = rng.sample(facts, min(len(facts), rng.choice((1, 2, 3) if len(facts) > 5 else (1, 2, 3, 4))))
    text = " ".join([*statements, *(_ask(rng, fact, back) for fact in asked_facts)])
    return Item("fact", text.removesuffix("."), (_facts_world(facts),))


def _draw_facts(rng: Random) -> list[Fact]:
    """Return the facts of a random world in a random order; no value is true of two persons."""
    people = rng.sample(words.NAMES, rng.choice((2, 2, 3, 3, 4)))
    relations = rng.sample(tuple(RELATIONS), rng.choice((1, 1, 2, 2, 3)))
    facts = []
    for relation in relations:
        values = rng.sample(RELATIONS[relation].values, len(people))
        facts += [(relation, n, v) for n, v in zip(people, values, strict=True)]
    return rng.sample(facts, min(len(facts), rng.choice((2, 3, 4, 5, 6, 7))))


def _facts_world(facts: list[Fact]) -> str:
    """Write a world out: its facts, whatever the order in which they are told."""
    return "facts: " + "; ".join(sorted(" ".join(fact) for fact in facts))


def _ask(rng: Random, fact: Fact, back: float) -> str:
    """Ask for the value of a fact, or with chance `back` for the person."""
    relation, name, value = fact
    if rng.random() < back:
        return f"Question: {RELATIONS[relation].asked_back.format(v=value)} Answer: {name}."
    return f"Question: {rng.choice(RELATIONS[relation].asked).format(n=name)} Answer: {value}."


def make_copy(source: Source) -> Item:
    """Return an item that says four to twelve random words and then some of them again."""
    rng = source.rng

    def draw(rng: Random) -> list[str]:
        return rng.sample(words.ANY_WORDS, rng.randint(4, 12))

    spoken = source.draw(draw, lambda spoken: "words: " + " ".join(spoken))
    again = spoken[: rng.randint(2, len(spoken))]
    one, other = rng.sample(words.NAMES, 2)
    first, second = rng.choice(
        (("Words:", "Again:"), ("Read this:", "Copy:"), (f"{one} says:", f"{other} says the same:"))
    )
    return Item("copy", f"{first} {' '.join(spoken)}. {second} {' '.join(again)}", ("words: " + " ".join(spoken),))


def make_induction(source: Source) -> Item:
    """Return an item of random words or pairs in which the last word but one was met before."""
    return _make_pairs(source) if source.rng.random() < 0.5 else _make_stream(source)


def _make_pairs(source: Source) -> Item:
    """Return pairs of random words, some of them told twice; the last is one that was told before."""
    rng = source.rng

    def draw(rng: Random) -> list[str]:
        return rng.sample(words.ANY_WORDS, 2 * rng.randint(3, 8))

    drawn = source.draw(draw, lambda drawn: "pairs: " + " ".join(drawn))
    pairs = [f"{a} - {b}" for a, b in zip(drawn[::2], drawn[1::2], strict=True)]
    again = rng.sample(pairs, rng.randint(1, min(6, len(pairs))))
    return Item("induction", ", ".join([*pairs, *again]), ("pairs: " + " ".join(drawn),))


def _make_stream(source: Source) -> Item:
    """Return a stream of random words in which some neighbours come again, last the pair that counts."""
    rng = source.rng

    def draw(rng: Random) -> list[str]:
        return rng.sample(words.ANY_WORDS, rng.randint(6, 20))

    stream = source.draw(draw, lambda stream: "stream: " + " ".join(stream))
    starts = shuffled(rng, range(0, len(stream) - 1, 2))[: rng.randint(1, 8)]
    again = [word for start in starts for word in stream[start : start + 2]]
    return Item("induction", " ".join([*stream, *again]), ("stream: " + " ".join(stream),))
