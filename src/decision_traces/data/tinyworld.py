"""`tinyworld`: small English worlds made by a generator, the data set that needs no download.

Seven kinds of item in equal shares: facts stated and asked back, agreement at a distance, copying, induction,
ordered lists, simple stories, and five-choice questions in the CSQA form. Every text ends at its answer, one word,
so that the last prediction of a model is the answer to the item. The commonplaces behind the questions are the same
in all worlds; facts, sequences and stories differ, and no world is met in two splits. All of it was written for this
project and is MIT like the rest of it.
"""

from collections.abc import Callable, Iterator
from itertools import count, islice
from random import Random

from decision_traces.data._tinyworld.items import SPLITS, Item, Source, shuffled
from decision_traces.data._tinyworld.lookups import (
    make_copy,
    make_fact,
    make_fact_either_way,
    make_induction,
)
from decision_traces.data._tinyworld.patterns import make_agreement, make_list
from decision_traces.data._tinyworld.questions import make_question, question_prompt
from decision_traces.data._tinyworld.stories import make_story
from decision_traces.data.example import Example, make_example_id

__all__ = ["KINDS", "SIZES", "SPLITS", "examples", "items", "question_prompt", "questions", "training_texts"]

Maker = Callable[[Source], Item]

SIZES = {"train": 20_000, "validation": 2_000, "test": 2_000}
_MAKERS: dict[str, Maker] = {
    "fact": make_fact,
    "agreement": make_agreement,
    "copy": make_copy,
    "induction": make_induction,
    "list": make_list,
    "story": make_story,
    "question": make_question,
}
KINDS = tuple(_MAKERS)
# Training has facts asked either way, and more of what takes longest to learn.
TRAINING_MIX = (
    *(make_fact_either_way, make_agreement, make_copy, make_induction, make_list, make_story, make_question),
    *(make_fact_either_way, make_fact_either_way, make_copy, make_induction, make_induction),
)


def items(split: str, limit: int | None = None) -> Iterator[Item]:
    """Yield the rows of a split with their worlds; row i is the same whatever the limit.

    Args:
        split: One of `SPLITS`.
        limit: At most so many rows; None for the whole split.
    """
    size = SIZES[split] if limit is None else min(limit, SIZES[split])
    return islice(_stream(split, "rows", tuple(_MAKERS.values())), size)


def examples(split: str, limit: int | None = None) -> Iterator[Example]:
    """Yield the examples of a split; row i is the same whatever the limit.

    Args:
        split: One of `SPLITS`.
        limit: At most so many examples; None for the whole split.

    Yields:
        Examples whose `fields` are `kind` (one of `KINDS`) and, None except for questions, `question`,
        `choices` (five texts in the order of their letters) and `answerKey` (A to E). The text of a question
        ends with the right choice itself, not with its letter.
    """
    for row, item in enumerate(items(split, limit)):
        yield _to_example(split, row, item)


def questions(split: str, limit: int | None = None) -> Iterator[Example]:
    """Yield the five-choice questions among the examples of a split, with the ids they have there.

    Args:
        split: One of `SPLITS`.
        limit: At most so many questions; None for all of the split.
    """
    return islice((e for e in examples(split) if e.fields["kind"] == "question"), limit)


def training_texts(seed: int) -> Iterator[str]:
    """Yield training texts without end: worlds of the split train, made as in `TRAINING_MIX`.

    Args:
        seed: Another number gives another stream; a published row comes up only by chance.
    """
    return (item.text for item in _stream("train", f"stream {seed}", TRAINING_MIX))


def _stream(split: str, name: str, mix: tuple[Maker, ...]) -> Iterator[Item]:
    """Yield items without end, block after block of what `mix` makes, each block in another order."""
    for block in count():
        rng = Random(f"tinyworld {split} {name} {block}")
        source = Source(rng, split)
        for make in shuffled(rng, mix):
            yield make(source)


def _to_example(split: str, row: int, item: Item) -> Example:
    """Give an item its id and fields."""
    return Example(
        make_example_id("tinyworld", split, row, item.text),
        item.text,
        {
            "kind": item.kind,
            "question": item.question,
            "choices": None if item.choices is None else list(item.choices),
            "answerKey": item.answer_key,
        },
    )
