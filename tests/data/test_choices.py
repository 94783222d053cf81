"""Questions with choices, from the two data sets that have them."""

import json
from pathlib import Path

import pytest

from decision_traces.data.choices import ChoiceQuestion, load_choice_questions
from decision_traces.data.registry import DataSource, load_examples
from decision_traces.errors import DataError, UsageError


def _write(folder: Path, name: str, counts: list[int], key: str | None) -> Path:
    """Write questions with so many choices each."""
    records = [
        {
            "id": str(i),
            "question": {
                "question_concept": "x",
                "choices": [{"label": letter, "text": f"{letter}{i}"} for letter in "ABCDE"[:count]],
                "stem": f"Question {i}?",
            },
            **({} if key is None else {"answerKey": key}),
        }
        for i, count in enumerate(counts)
    ]
    (folder / name).write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def test_csqa_questions(tmp_path: Path) -> None:
    source = DataSource("csqa", "validation", _write(tmp_path, "dev_rand_split.jsonl", [3, 3], "B"))
    found = load_choice_questions(source)
    assert (found[1].question, found[1].labels, found[1].choices) == (
        "Question 1?",
        ("A", "B", "C"),
        ("A1", "B1", "C1"),
    )
    assert [(q.answer_key, q.answer_index) for q in found] == [("B", 1), ("B", 1)]
    assert [q.example_id for q in found] == [e.example_id for e in load_examples(source)]


def test_questions_without_answers(tmp_path: Path) -> None:
    folder = _write(tmp_path, "test_rand_split_no_answers.jsonl", [5], None)
    (found,) = load_choice_questions(DataSource("csqa", "test", folder))
    assert (found.answer_key, found.answer_index) == (None, -1)


def test_tinyworld_questions_are_those_among_its_examples() -> None:
    found = load_choice_questions(DataSource("tinyworld", "validation", limit=30))
    examples = load_examples(DataSource("tinyworld", "validation", limit=300))
    expected = [e for e in examples if e.fields["kind"] == "question"][:30]
    assert [q.example_id for q in found] == [e.example_id for e in expected]
    assert [q.question for q in found] == [e.fields["question"] for e in expected]
    for question, example in zip(found, expected, strict=True):
        assert (question.labels, len(question.choices)) == (("A", "B", "C", "D", "E"), 5)
        # The text of a tinyworld question ends with the right choice.
        assert example.text.rstrip(".").endswith(question.choices[question.answer_index])
    assert {q.answer_index for q in found} == {0, 1, 2, 3, 4}


def test_one_question_with_another_number_of_choices(tmp_path: Path) -> None:
    folder = _write(tmp_path, "train_rand_split.jsonl", [4, 5, 5, 5], "A")
    with pytest.raises(DataError, match=r"Question csqa-train-000000-.*: has 4 choices, the others have 5"):
        load_choice_questions(DataSource("csqa", "train", folder))


@pytest.mark.parametrize(
    ("labels", "choices", "key", "message"),
    [
        (("A", "B"), ("x", "y", "z"), "A", "has 3 choices and 2 labels"),
        (("A",), ("x",), "A", "needs two choices or more"),
        (("A", "A"), ("x", "y"), "A", "labels A, A are not all different"),
        (("A", "B"), ("x", "y"), "C", "the answer 'C' is none of the labels A, B"),
    ],
)
def test_a_question_that_does_not_fit_itself(labels: tuple, choices: tuple, key: str, message: str) -> None:
    with pytest.raises(DataError, match=f"Question q-1: .*{message}"):
        ChoiceQuestion("q-1", "Why?", labels, choices, key)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DataSource("wikitext2"), "--dataset wikitext2: .*csqa, tinyworld"),
        (DataSource("csqa", text_file=Path("mine.jsonl")), "--text_file mine.jsonl: .*csqa, tinyworld"),
    ],
)
def test_data_without_choices(source: DataSource, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_choice_questions(source)
