"""Simple stories of a few sentences, each ending at the word that its plot leads to.

Some ends are certain (who gave, where a thing was left, which tool a task needs); others are only likely (how
somebody felt, what somebody bought), as in real stories, so no reader can be right every time.
"""

from collections.abc import Callable
from random import Random
from typing import NamedTuple

from decision_traces.data._tinyworld import words
from decision_traces.data._tinyworld.commonplaces import PLACES_OF, TOOL_FOR
from decision_traces.data._tinyworld.items import Item, Source


class Cast(NamedTuple):
    """Who and what a story is about: two persons, two places, three things."""

    hero: str
    friend: str
    here: str
    there: str
    things: tuple[str, str, str]

    @property
    def pronoun(self) -> str:
        """The hero's pronoun."""
        return "she" if self.hero in words.SHE else "he"


# What happened -> how the hero may have felt, likeliest first.
FEELINGS = {
    "lost the {thing}": ("sad", "angry"),
    "found a gold coin": ("happy", "proud"),
    "walked all day": ("tired", "hungry"),
    "heard a wolf near the {there}": ("afraid", "cold"),
    "had nothing to eat": ("hungry", "sad"),
    "fell into the cold water": ("wet", "cold"),
    "won the game": ("proud", "happy"),
}
LIKELIER = 0.75


def make_story(source: Source) -> Item:
    """Return a story of two to six sentences that ends at the word its plot leads to."""
    text = source.draw(_draw_story, str)
    return Item("story", text, (text,))


def _draw_story(rng: Random) -> str:
    hero, friend = rng.sample(words.NAMES, 2)
    here, there = rng.sample(words.PLACES, 2)
    one, two, three = rng.sample(words.OBJECTS, 3)
    cast = Cast(hero, friend, here, there, (one, two, three))
    plot = rng.choice(PLOTS)
    between = rng.sample(_SCENERY, rng.choice((0, 1, 1, 2, 3)))
    return " ".join([_opening(rng, cast), *(_fill(line, cast, rng) for line in between), plot(rng, cast)])


def _fill(line: str, cast: Cast, rng: Random) -> str:
    return line.format(
        hero=cast.hero,
        friend=cast.friend,
        here=cast.here,
        there=cast.there,
        thing=cast.things[0],
        animal=rng.choice(words.ANIMALS),
        colour=rng.choice(words.COLOURS),
    )


def _opening(rng: Random, cast: Cast) -> str:
    time = rng.choice(("morning", "evening", "day", "night"))
    line = rng.choice(
        (
            f"One {time}, {{hero}} and {{friend}} went to the {{here}}.",
            f"One {time}, {{friend}} and {{hero}} met at the {{here}}.",
            f"{{hero}} and {{friend}} were at the {{here}} one {time}.",
        )
    )
    return _fill(line, cast, rng)


_SCENERY = (
    "The sun was warm.",
    "It began to rain.",
    "A {colour} {animal} ran by.",
    "They talked about the {there}.",
    "{friend} sang a song.",
    "{friend} saw a {animal} near the {here}.",
)


def _gift(rng: Random, cast: Cast) -> str:
    """Who was given the thing, or who is thanked: the other of the two."""
    thing = cast.things[0]
    giving = f"{cast.hero} gave the {thing} to {cast.friend}"
    return rng.choice(
        (
            giving,
            f"{giving}. {cast.friend} was happy and thanked {cast.hero}",
            f"{giving}. Now the owner of the {thing} is {cast.friend}",
        )
    )


def _task(rng: Random, cast: Cast) -> str:
    """The tool that a task needs: a commonplace."""
    task = rng.choice(tuple(TOOL_FOR.answers))
    return f"{cast.hero} wanted to {task}, so {cast.pronoun} took the {TOOL_FOR.answers[task]}"


def _search(rng: Random, cast: Cast) -> str:
    """The place where something is found: a commonplace."""
    sought = rng.choice(tuple(PLACES_OF.answers))
    return f"{cast.friend} wanted to see {sought}, so they went to the {PLACES_OF.answers[sought]}"


def _left_behind(rng: Random, cast: Cast) -> str:
    """The place where a thing was left, with another place in between."""
    thing = cast.things[0]
    return (
        f"{cast.hero} left the {thing} at the {cast.here}. Then they went to the {cast.there}. "
        f"Later {cast.hero} wanted the {thing}, so {cast.pronoun} went back to the {cast.here}"
    )


def _colours(rng: Random, cast: Cast) -> str:
    """The colour of one of two things, told before."""
    first, second = rng.sample(words.COLOURS, 2)
    one, two, _ = cast.things
    thing, colour = rng.choice(((one, first), (two, second)))
    return (
        f"{cast.hero} had a {one} and {cast.friend} had a {two}. The {one} was {first}. "
        f"The {two} was {second}. They both saw that the colour of the {thing} was {colour}"
    )


def _pronoun(rng: Random, cast: Cast) -> str:
    """The pronoun of the one who did something."""
    deed = rng.choice(("was hungry", "was tired", "felt cold", "had no time"))
    return f"{cast.hero} {deed}, so {cast.pronoun}"


def _feeling(rng: Random, cast: Cast) -> str:
    """How somebody felt: likely, not certain."""
    happened = rng.choice(tuple(FEELINGS))
    likely, other = FEELINGS[happened]
    felt = likely if rng.random() < LIKELIER else other
    return f"{_fill(f'{{hero}} {happened}', cast, rng)} and was very {felt}"


def _purchase(rng: Random, cast: Cast) -> str:
    """Which of three things on offer somebody bought: most often the first."""
    one, two, three = cast.things
    bought = rng.choices(cast.things, weights=(6, 2, 2))[0]
    return f"A man there had a {one}, a {two} and a {three}. {cast.hero} bought the {bought}"


PLOTS: tuple[Callable[[Random, Cast], str], ...] = (
    *(_gift, _task, _search, _left_behind, _colours, _pronoun),
    *(_feeling, _feeling, _purchase, _purchase),
)
