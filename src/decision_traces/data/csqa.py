"""`csqa`: CommonsenseQA (Talmor et al. 2019), questions with five choices; the answers of its test split are secret."""

from collections.abc import Mapping, Sequence
from typing import Final

from decision_traces.data import formats
from decision_traces.data.example import FieldValue
from decision_traces.data.formats import Malformed, Row, take
from decision_traces.data.published import Published


def choices_fault(labels: Sequence[str], choices: Sequence[str], answer_key: str | None) -> str | None:
    """Return what is wrong with the choices of a question, or None. Two choices may read the same: some do."""
    if len(labels) != len(choices) or len(choices) < 2:
        return f"needs two choices or more with a label each, has {len(choices)} choices and {len(labels)} labels"
    if len(set(labels)) != len(labels):
        return f"the labels {', '.join(labels)} are not all different"
    if answer_key is not None and answer_key not in labels:
        return f"the answer {answer_key!r} is none of the labels {', '.join(labels)}"
    return None


def _to_hub_row(record: Row) -> Row:
    question = take(record, "question", dict)
    choices = take(question, "choices", list)
    return {
        "question": take(question, "stem", str),
        "question_concept": take(question, "question_concept", str),
        "choices": {name: [take(choice, name, str) for choice in choices] for name in ("label", "text")},
        "answerKey": record.get("answerKey"),
    }


def _to_example(row: Row, split: str) -> tuple[str, Mapping[str, FieldValue]]:
    choices = take(row, "choices", dict)
    labels = [label.strip() for label in take(choices, "label", list)]
    texts = [text.strip() for text in take(choices, "text", list)]
    key = None if row["answerKey"] is None else take(row, "answerKey", str).strip() or None
    if key is None and split != "test":
        raise Malformed(f"needs answerKey: only the test split goes without, and this is {split}")
    fault = choices_fault(labels, texts, key)
    if fault is not None:
        raise Malformed(fault)
    stem = take(row, "question", str).strip()
    return stem, {
        "question": stem,
        "question_concept": take(row, "question_concept", str).strip(),
        "choice_labels": labels,
        "choice_texts": texts,
        "answerKey": key,
    }


CSQA: Final = Published(
    name="csqa",
    hub="tau/commonsense_qa",
    config="default",
    columns=("question", "question_concept", "choices", "answerKey"),
    folders=("commonsenseqa",),
    files={
        "train": ("train_rand_split.jsonl",),
        "validation": ("dev_rand_split.jsonl",),
        "test": ("test_rand_split_no_answers.jsonl",),
    },
    read=formats.jsonl,
    to_example=_to_example,
    to_hub_row=_to_hub_row,
)
