"""Items whose answer follows from a rule of the language: agreement at a distance and ordered lists."""

from random import Random
from typing import NamedTuple

from decision_traces.data._tinyworld import words
from decision_traces.data._tinyworld.items import Item, Source


class Clause(NamedTuple):
    """A clause up to its verb: `front` asks for a verb, `verb` is the one that agrees."""

    front: str
    verb: str
    link: str


def make_agreement(source: Source) -> Item:
    """Return an item of one to four sentences whose verb agrees with a noun far before it."""
    rng = source.rng
    clauses = [source.draw(_draw_clause, _clause_world) for _ in range(rng.choice((1, 1, 2, 2, 3, 4)))]
    sentences = [f"{c.front} {c.verb}{c.link} {rng.choice(words.STATES)}." for c in clauses[:-1]]
    text = " ".join([*sentences, f"{clauses[-1].front} {clauses[-1].verb}"])
    return Item("agreement", text, tuple(_clause_world(c) for c in clauses))


def _clause_world(clause: Clause) -> str:
    return "clause: " + clause.front


def _draw_clause(rng: Random) -> Clause:
    """Return a clause; the time in front decides the tense, the first noun the number."""
    adverb = rng.choice(tuple(words.TENSES))
    one, many, link = words.TENSES[adverb]
    plural = rng.random() < 0.5
    between = " ".join(_attractor(rng) for _ in range(rng.choice((1, 1, 2))))
    front = f"{adverb} the {_noun(rng, plural)} {between}"
    return Clause(front, many if plural else one, link)


def _noun(rng: Random, plural: bool, choices: tuple[str, ...] = words.COUNTED) -> str:
    noun = rng.choice(choices) + ("s" if plural else "")
    return f"{rng.choice(words.SIZES)} {noun}" if rng.random() < 0.4 else noun


def _attractor(rng: Random) -> str:
    """Return words between subject and verb whose own noun, of either number, may lead astray."""
    plural = rng.random() < 0.5
    if rng.random() < 0.6:
        return f"{rng.choice(words.BESIDE)} the {_noun(rng, plural)}"
    verb = rng.choice(words.SEEING) + ("" if plural else "s")
    return f"that the {_noun(rng, plural, words.WATCHERS)} {verb}"


# Name of the order, as told -> (words in order, step, whether it begins again after the last).
ORDERS: dict[str, tuple[tuple[str, ...], int, bool]] = {
    "names the days:": (words.DAYS, 1, True),
    "names the days backwards:": (words.DAYS, -1, True),
    "names the months:": (words.MONTHS, 1, True),
    "names the months backwards:": (words.MONTHS, -1, True),
    "counts up:": (words.NUMBERS, 1, False),
    "counts down:": (words.NUMBERS, -1, False),
    "counts up by two:": (words.NUMBERS, 2, False),
    "counts down by two:": (words.NUMBERS, -2, False),
    "counts up by three:": (words.NUMBERS, 3, False),
    "counts down by three:": (words.NUMBERS, -3, False),
}


def make_list(source: Source) -> Item:
    """Return an item in which one to three persons each go through an ordered list; the last is at work."""
    lists = [source.draw(_draw_list, str) for _ in range(source.rng.choice((1, 1, 2, 2, 3)))]
    return Item("list", ". ".join(lists), tuple(lists))


def _draw_list(rng: Random) -> str:
    """Return `<name> <order> <word>, <word>, ...`, three to eight words."""
    order = rng.choice(tuple(ORDERS))
    values, step, around = ORDERS[order]
    length = min(rng.randint(3, 8), (len(values) - 1) // abs(step) + 1)
    room = len(values) if around else len(values) - (length - 1) * abs(step)
    start = rng.randrange(room) if step > 0 or around else len(values) - 1 - rng.randrange(room)
    picked = [values[(start + i * step) % len(values)] for i in range(length)]
    return f"{rng.choice(words.NAMES)} {order} {', '.join(picked)}"
