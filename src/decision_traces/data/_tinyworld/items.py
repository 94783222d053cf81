"""What the makers of `tinyworld` items share: the item, the splits and drawing within one split.

Held out means: the same world is never met in two splits. Each world (its facts, written out) belongs to the
split that a SHA-256 of it names; a maker draws until it has a world of the split that it works for.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple, TypeVar

T = TypeVar("T")

SPLITS = ("train", "validation", "test")
# Of ten worlds, one is for validation and one for test.
_SPLIT_OF_REMAINDER = {0: "test", 1: "validation"}


class Item(NamedTuple):
    """One item before it becomes an `Example`.

    Attributes:
        kind: Kind of item, see `tinyworld.KINDS`.
        text: The text; its last word is the answer.
        worlds: The worlds it tells of, each written out; all belong to the same split.
        question: A five-choice question, else None.
        choices: Its five choices in the order of their letters, else None.
        answer_key: Letter of the right choice, else None.
    """

    kind: str
    text: str
    worlds: tuple[str, ...]
    question: str | None = None
    choices: tuple[str, ...] | None = None
    answer_key: str | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """A stream of random choices for one split."""

    rng: Random
    split: str

    def draw(self, make: Callable[[Random], T], world_of: Callable[[T], str]) -> T:
        """Return what `make` makes, tried again until its world belongs to this split."""
        while True:
            made = make(self.rng)
            if split_of(world_of(made)) == self.split:
                return made


def split_of(world: str) -> str:
    """Return the split that a world, written out, belongs to: the same on every machine and Python."""
    digest = hashlib.sha256(f"tinyworld {world}".encode()).digest()
    return _SPLIT_OF_REMAINDER.get(digest[0] % 10, "train")


def shuffled(rng: Random, values: Sequence[T]) -> list[T]:
    """Return the values in a random order, leaving the sequence itself alone."""
    return rng.sample(values, len(values))
