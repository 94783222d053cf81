"""`ChoiceQuestion`: questions with labelled choices, from the data sets that have them."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Final, cast

from decision_traces.data import tinyworld
from decision_traces.data.csqa import choices_fault
from decision_traces.data.example import Example
from decision_traces.data.registry import DataSource, load_examples
from decision_traces.errors import DataError, UsageError


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    """A question, its choices in the order of their labels, and which is right.

    Attributes:
        example_id: As that of the data set's `Example`.
        question: The question without its choices.
        labels: One label a choice, all different.
        choices: The texts of the choices.
        answer_key: Label of the right choice; None where the data set keeps it secret.

    Raises:
        DataError: These do not fit each other.
    """

    example_id: str
    question: str
    labels: tuple[str, ...]
    choices: tuple[str, ...]
    answer_key: str | None

    def __post_init__(self) -> None:
        fault = choices_fault(self.labels, self.choices, self.answer_key)
        if fault is not None:
            raise DataError(f"Question {self.example_id}: {fault}.")

    @property
    def answer_index(self) -> int:
        """Index of the right choice, −1 where it is not known."""
        return -1 if self.answer_key is None else self.labels.index(self.answer_key)


def load_choice_questions(source: DataSource) -> list[ChoiceQuestion]:
    """Return the questions in the order of the published data, all with the same number of choices.

    Args:
        source: `limit` counts questions.

    Raises:
        UsageError: The source has no questions with choices.
        DataError: The data is not there or malformed, or a question has more or fewer choices than the others.
    """
    with_choices = ", ".join(_READERS)
    if source.text_file is not None:
        raise UsageError(
            f"--text_file {source.text_file}: has no choices to answer with; use --dataset {with_choices}."
        )
    reader = _READERS.get(source.dataset)
    if reader is None:
        raise UsageError(f"--dataset {source.dataset}: has no questions with choices; those that do: {with_choices}.")
    questions = reader(source)
    _require_one_size(questions)
    return questions


def _require_one_size(questions: list[ChoiceQuestion]) -> None:
    usual = Counter(len(question.choices) for question in questions).most_common(1)[0][0]
    odd = next((question for question in questions if len(question.choices) != usual), None)
    if odd is not None:
        raise DataError(f"Question {odd.example_id}: has {len(odd.choices)} choices, the others have {usual}.")


def _csqa(source: DataSource) -> list[ChoiceQuestion]:
    return [_question(e, _texts(e, "choice_labels"), _texts(e, "choice_texts")) for e in load_examples(source)]


def _tinyworld(source: DataSource) -> list[ChoiceQuestion]:
    examples = tinyworld.questions(source.split, source.limit)
    return [_question(e, tuple(ascii_uppercase[: len(c)]), c) for e in examples for c in [_texts(e, "choices")]]


def _texts(example: Example, name: str) -> tuple[str, ...]:
    return tuple(cast(list[str], example.fields[name]))


def _question(example: Example, labels: tuple[str, ...], choices: tuple[str, ...]) -> ChoiceQuestion:
    question, key = cast(str, example.fields["question"]), cast(str | None, example.fields["answerKey"])
    return ChoiceQuestion(example.example_id, question, labels, choices, key)


_READERS: Final[Mapping[str, Callable[[DataSource], list[ChoiceQuestion]]]] = {"csqa": _csqa, "tinyworld": _tinyworld}
