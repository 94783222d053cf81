"""`ud_ewt`: the sentences of the English Web Treebank in Universal Dependencies (Silveira et al. 2014).

The text is the sentence as it was written; the words of the treebank are not used. The treebank is revised twice
a year, so the hub's revision and a local one can differ in some sentences, which then have other ids.
"""

from collections.abc import Mapping
from typing import Final

from decision_traces.data import formats
from decision_traces.data.example import FieldValue
from decision_traces.data.formats import Row, take
from decision_traces.data.published import Published


def _to_hub_row(comments: Row) -> Row:
    return {"idx": take(comments, "sent_id", str), "text": take(comments, "text", str)}


def _to_example(row: Row, split: str) -> tuple[str, Mapping[str, FieldValue]]:
    return take(row, "text", str).strip(), {"sent_id": take(row, "idx", str).strip()}


UD_EWT: Final = Published(
    name="ud_ewt",
    hub="universal-dependencies/universal_dependencies",
    config="en_ewt",
    columns=("idx", "text"),
    folders=("ud_english_ewt", "UD_English-EWT"),
    files={
        "train": ("en_ewt-ud-train.conllu",),
        "validation": ("en_ewt-ud-dev.conllu",),
        "test": ("en_ewt-ud-test.conllu",),
    },
    read=formats.conllu_comments,
    to_example=_to_example,
    to_hub_row=_to_hub_row,
    hub_splits={"validation": ("validation", "dev")},
)
