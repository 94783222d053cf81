"""`go_emotions`: comments from Reddit with their emotions (Demszky et al. 2020), the split with agreed labels."""

from collections.abc import Mapping
from functools import partial
from typing import Final

from decision_traces.data import formats
from decision_traces.data.example import FieldValue
from decision_traces.data.formats import Malformed, Row, take
from decision_traces.data.published import Published

# In the order of the published emotions.txt: label i is the i-th name.
EMOTIONS: Final = (
    *("admiration", "amusement", "anger", "annoyance", "approval", "caring", "confusion", "curiosity", "desire"),
    *("disappointment", "disapproval", "disgust", "embarrassment", "excitement", "fear", "gratitude", "grief", "joy"),
    *("love", "nervousness", "optimism", "pride", "realization", "relief", "remorse", "sadness", "surprise"),
    "neutral",
)


def _to_hub_row(cells: Row) -> Row:
    try:
        labels = [int(label) for label in cells["labels"].split(",")]
    except ValueError as error:
        raise Malformed(f"the labels must be numbers with commas between, got {cells['labels']!r}") from error
    return {**cells, "labels": labels}


def _to_example(row: Row, split: str) -> tuple[str, Mapping[str, FieldValue]]:
    labels = sorted(take(row, "labels", list))
    if not labels or not all(0 <= label < len(EMOTIONS) for label in labels):
        raise Malformed(f"the labels must be numbers from 0 to {len(EMOTIONS) - 1}, got {labels}")
    names = [EMOTIONS[label] for label in labels]
    return take(row, "text", str).strip(), {"labels": names, "comment_id": take(row, "id", str).strip()}


GO_EMOTIONS: Final = Published(
    name="go_emotions",
    hub="google-research-datasets/go_emotions",
    config="simplified",
    columns=("text", "labels", "id"),
    folders=("goemotions",),
    files={"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)},
    read=partial(formats.tsv, columns=("text", "labels", "id")),
    to_example=_to_example,
    to_hub_row=_to_hub_row,
)
