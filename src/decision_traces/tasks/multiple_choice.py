"""Multiple choice: which answer to a question an encoder scores highest, each read with the question by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import pyarrow as pa

from decision_traces.format.columns import TOKEN_COLUMNS, Column
from decision_traces.tasks import choices
from decision_traces.tasks.decisions import Kind
from decision_traces.tasks.task import Prediction, Task, Words

# Token columns of runs with choices: every choice is tokenised by itself, so they have a level more.
CHOICE_TOKEN_COLUMNS: Final = (
    *(
        c if c.name in {"example_id", "text"} else Column(c.name, pa.list_(c.type), c.doc, c.optional)
        for c in TOKEN_COLUMNS
    ),
    Column(
        "sequence_ids",
        pa.list_(pa.list_(pa.int8())),
        "which text a token (and its offset) belongs to: 0 the question, 1 the choice, -1 neither",
    ),
)

CHOICE_COLUMNS: Final = (
    Column("question", pa.string(), "the question"),
    Column("answerKey", pa.string(), "letter of the right choice; null without an answer"),
    Column("label_idx", pa.int32(), "the right choice; -1 without an answer"),
    Column("choice_texts", pa.list_(pa.string()), "the choices' texts"),
    *choices.CHOICE_OUTCOME,
)


def _predictions(values: Mapping[str, Any], kinds: Sequence[Kind]) -> list[Prediction]:
    return choices.prediction(values, None)


def _texts(values: Mapping[str, Any], choice: int) -> tuple[str, ...]:
    """Return the question and the choice."""
    texts = values.get("choice_texts") or []
    return str(values.get("question") or ""), str(texts[choice]) if choice < len(texts) else ""


MULTIPLE_CHOICE: Final = Task(
    objective="multiple_choice",
    run_word="csqa-enc",
    model="multiple_choice",
    prefixes=("enc_mc",),
    columns=(*CHOICE_TOKEN_COLUMNS, *CHOICE_COLUMNS),
    known_by=("label_idx",),
    together=choices.TOGETHER,
    check=partial(choices.check_choices, label="label_idx"),
    headline=choices.headline,
    verdict=choices.VERDICT,
    choices="sequences",
    listed_from=lambda kinds: choices.LISTED,
    listed=choices.listed,
    list_row=replace(choices.LIST_ROW, search="question"),
    predictions=_predictions,
    options=partial(choices.options, texts="choice_texts", right="label_idx"),
    texts=_texts,
    words=Words(tokens="Question and choice"),
)
