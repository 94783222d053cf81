"""Data sets from their published files and from the hub: the same examples from both."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import pytest

from decision_traces.data.registry import DATASETS, DatasetName, DataSource, load_examples
from decision_traces.errors import DataError, UsageError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CHOICES = ["a lid", " the moon ", "soup", "soup", "été"]  # two of a question's choices may read the same


def _csqa(stem: str, **key: str) -> tuple[dict, dict]:
    """A question as published and as on the hub, where a question without an answer has an empty one."""
    letters = [{"label": letter, "text": text} for letter, text in zip("ABCDE", CHOICES, strict=True)]
    question = {"question_concept": "pots", "choices": letters, "stem": stem}
    choices = {"label": list("ABCDE"), "text": CHOICES}
    on_hub = {"id": "0a", "question": stem, "question_concept": "pots", "choices": choices, "answerKey": ""}
    return {**key, "id": "0a", "question": question}, {**on_hub, **key}


ANSWERED = [_csqa("What closes a pot?", answerKey="A"), _csqa(" What is hot? ", answerKey="C")]
SECRET = [_csqa("What closes a pot?")]

TSV = 'First one \t2,17\tc01\n"He said ""no"" to it."\t27\tc02\n\n  \t4\tc03\nwithout "quoting\t0\tc04\n'
GO_EMOTIONS_HUB = [
    {"text": "First one ", "labels": [2, 17], "id": "c01"},
    {"text": 'He said "no" to it.', "labels": [27], "id": "c02"},
    {"text": "  ", "labels": [4], "id": "c03"},
    {"text": 'without "quoting', "labels": [0], "id": "c04"},
]

CONLLU = (
    "# newdoc id = d1\n# sent_id = d1-0001\n# text = A dog's = sign .\n"
    "1\tA\ta\tDET\tDT\t_\t3\tdet\t_\t_\n2-3\tdog's\t_\t_\t_\t_\t_\t_\t_\t_\n\n\n"
    "# sent_id = d1-0002\n# text = ¿Qué?\n# text_en = What?\n1\tQué\tqué\tPRON\tWP\t_\t0\troot\t_\t_"
)
EWT_HUB = [
    {"idx": "d1-0001", "text": "A dog's = sign .", "tokens": ["A", "dog", "'s"], "misc": ["_", "_", "_"]},
    {"idx": "d1-0002", "text": "¿Qué?", "tokens": ["Qué"], "misc": ["_"]},
]

PUBLISHED = {
    "csqa": ("commonsenseqa/dev_rand_split.jsonl", "\n".join(json.dumps(local) for local, _ in ANSWERED)),
    "go_emotions": ("goemotions/dev.tsv", TSV),
    "ud_ewt": ("ud_english_ewt/en_ewt-ud-dev.conllu", CONLLU),
}
ON_HUB = {
    "csqa": ("tau/commonsense_qa", "default", [row for _, row in ANSWERED]),
    "go_emotions": ("google-research-datasets/go_emotions", "simplified", GO_EMOTIONS_HUB),
    "ud_ewt": ("universal-dependencies/universal_dependencies", "en_ewt", EWT_HUB),
}


def _write(folder: Path, name: str, content: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode())
    return folder


def test_the_table_has_every_name() -> None:
    assert tuple(DATASETS) == get_args(DatasetName)


# The last part of an id: the first 8 hex digits of what sha256sum says of the text.
def test_csqa_examples(tmp_path: Path) -> None:
    found = load_examples(DataSource("csqa", "validation", _write(tmp_path, *PUBLISHED["csqa"])))
    assert [e.example_id for e in found] == ["csqa-validation-000000-28dcddf2", "csqa-validation-000001-89d679e2"]
    assert [e.text for e in found] == ["What closes a pot?", "What is hot?"]
    assert found[1].fields == {
        "question": "What is hot?",
        "question_concept": "pots",
        "choice_labels": ["A", "B", "C", "D", "E"],
        "choice_texts": ["a lid", "the moon", "soup", "soup", "été"],
        "answerKey": "C",
    }


def test_go_emotions_examples(tmp_path: Path) -> None:
    found = load_examples(DataSource("go_emotions", "validation", _write(tmp_path, *PUBLISHED["go_emotions"])))
    assert [e.text for e in found] == ["First one", 'He said "no" to it.', 'without "quoting']
    assert [e.fields["labels"] for e in found] == [["anger", "joy"], ["neutral"], ["admiration"]]
    assert [e.fields["comment_id"] for e in found] == ["c01", "c02", "c04"]
    # The empty line is no row; the row with an empty text is one, though no example.
    assert [e.example_id[:29] for e in found] == [f"go_emotions-validation-00000{i}" for i in (0, 1, 3)]


def test_ud_ewt_examples(tmp_path: Path) -> None:
    found = load_examples(DataSource("ud_ewt", "validation", _write(tmp_path, *PUBLISHED["ud_ewt"])))
    assert [(e.text, e.fields) for e in found] == [
        ("A dog's = sign .", {"sent_id": "d1-0001"}),
        ("¿Qué?", {"sent_id": "d1-0002"}),
    ]
    assert [e.example_id for e in found] == ["ud_ewt-validation-000000-3bf852b8", "ud_ewt-validation-000001-cd0d45b6"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_hub_and_local_give_the_same_examples(name: DatasetName, hub: Callable, tmp_path: Path) -> None:
    repository, config, rows = ON_HUB[name]
    hub(repository, config, {"validation": rows})
    local = load_examples(DataSource(name, "validation", _write(tmp_path / "local", *PUBLISHED[name])))
    assert load_examples(DataSource(name, "validation")) == local
    assert load_examples(DataSource(name, "validation", limit=1)) == local[:1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_folder_of_the_data_set_itself_is_accepted(name: DatasetName, tmp_path: Path) -> None:
    folder = _write(tmp_path, *PUBLISHED[name])
    own = folder / PUBLISHED[name][0].split("/")[0]
    assert load_examples(DataSource(name, "validation", own)) == load_examples(DataSource(name, "validation", folder))


def test_the_middle_split_of_ewt_may_be_called_dev(hub: Callable, tmp_path: Path) -> None:
    repository, config, rows = ON_HUB["ud_ewt"]
    hub(repository, config, {"train": rows[:1], "dev": rows})
    local = load_examples(DataSource("ud_ewt", "validation", _write(tmp_path / "local", *PUBLISHED["ud_ewt"])))
    assert load_examples(DataSource("ud_ewt", "validation")) == local
    with pytest.raises(DataError, match="not to be had"):
        load_examples(DataSource("ud_ewt", "test"))


def test_the_test_split_of_csqa_has_no_answers(hub: Callable, tmp_path: Path) -> None:
    hub("tau/commonsense_qa", "default", {"test": [row for _, row in SECRET]})
    content = json.dumps(SECRET[0][0])
    local = load_examples(DataSource("csqa", "test", _write(tmp_path, "test_rand_split_no_answers.jsonl", content)))
    assert local[0].fields["answerKey"] is None
    assert load_examples(DataSource("csqa", "test")) == local


def test_hub_rows_without_an_answer_outside_test(hub: Callable) -> None:
    hub("tau/commonsense_qa", "default", {"train": [ANSWERED[0][1], SECRET[0][1]]})
    with pytest.raises(DataError, match=r"tau/commonsense_qa \(train\), row 1: needs answerKey.*this is train"):
        load_examples(DataSource("csqa", "train"))


def test_a_hub_repository_of_another_schema(hub: Callable) -> None:
    hub("tau/commonsense_qa", "default", {"train": [{"question": "Why?", "answer": "A"}]})
    message = "--dataset csqa: .*no column question_concept, choices, answerKey; it has: question, answer"
    with pytest.raises(DataError, match=message):
        load_examples(DataSource("csqa", "train"))


def _csqa_line(**changes: object) -> str:
    record = json.loads(json.dumps(ANSWERED[0][0]))
    record["question"].update({k: v for k, v in changes.items() if k != "answerKey"})
    return json.dumps(record | {k: v for k, v in changes.items() if k == "answerKey"})


GOOD = _csqa_line()


@pytest.mark.parametrize(
    ("dataset", "content", "message"),
    [
        ("csqa", f"{GOOD}\n\n{{oops", "line 3: not JSON"),
        ("csqa", f"{GOOD}\n[1]\n", r"line 2: expected a JSON object, got \[1\]"),
        ("csqa", f'{GOOD}\n{{"id": "x"}}\n', "line 2: needs question; it has: id"),
        ("csqa", '{"question": "Why?"}', "line 1: question must be an object, got 'Why\\?'"),
        ("csqa", _csqa_line(choices=["a", "b"]), 'line 1: needs an object with label, got "a"'),
        ("csqa", _csqa_line(choices=[{"label": "A"}]), "line 1: needs text; it has: label"),
        ("csqa", _csqa_line(choices=[]), "line 1: needs two choices or more"),
        ("csqa", _csqa_line(choices=[{"label": "A", "text": t} for t in "xy"]), "line 1: .*A, A are not all different"),
        ("csqa", _csqa_line(answerKey="F"), "line 1: the answer 'F' is none of the labels A, B, C, D, E"),
        ("csqa", _csqa_line(answerKey=1), "line 1: answerKey must be text, got 1"),
        ("csqa", f"{GOOD}\n{json.dumps(SECRET[0][0])}", "line 2: needs answerKey.*this is validation"),
        ("csqa", _csqa_line(stem="\ud800"), "line 1: half a surrogate pair"),
        ("csqa", "\n\n", "csqa \\(validation\\) holds no examples"),
        ("go_emotions", "a\t1\tx\nb\t2\n", r"line 2: expected 3 columns \(text, labels, id\), got 2"),
        ("go_emotions", "a\t1\tx\nb\t1,joy\ty\n", "line 2: the labels must be numbers .*got '1,joy'"),
        ("go_emotions", "a\t28\tx\n", "line 1: the labels must be numbers from 0 to 27"),
        ("go_emotions", "a\t-1\tx\n", "line 1: the labels must be numbers from 0 to 27"),
        ("go_emotions", 'a\t1\tx\n"b\t1\ty\nc\t1\tz\n', "line 2: the quotation marks do not add up"),
        ("ud_ewt", f"{CONLLU}\n\n\n1\tno\tcomments\n", "line 14: needs sent_id; it has: nothing"),
        ("ud_ewt", "\n# sent_id = 1\n# text = \n1\ta\n", "line 2: needs text; it has: sent_id"),
    ],
)
def test_a_malformed_row_names_file_and_line(dataset: DatasetName, content: str, message: str, tmp_path: Path) -> None:
    name = PUBLISHED[dataset][0]
    where = "" if "holds no examples" in message else f"{Path(name).name}, "
    with pytest.raises(DataError, match=where + message):
        load_examples(DataSource(dataset, "validation", _write(tmp_path, name, content)))


@pytest.mark.parametrize("dataset", ["csqa", "go_emotions", "ud_ewt"])
def test_a_file_that_is_not_utf8(dataset: DatasetName, tmp_path: Path) -> None:
    path = tmp_path / Path(PUBLISHED[dataset][0]).name
    path.write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=f"{path.name}: not UTF-8"):
        load_examples(DataSource(dataset, "validation", tmp_path))


def test_windows_line_ends_and_byte_order_marks_change_nothing(tmp_path: Path) -> None:
    for name, (file, content) in PUBLISHED.items():
        plain = load_examples(DataSource(name, "validation", _write(tmp_path / "a", file, content)))
        other = "\ufeff" + content.replace("\n", "\r\n")
        assert load_examples(DataSource(name, "validation", _write(tmp_path / "b", file, other))) == plain


def test_a_missing_split_names_what_is_there(tmp_path: Path) -> None:
    _write(tmp_path, *PUBLISHED["csqa"])
    _write(tmp_path, *PUBLISHED["go_emotions"])
    message = (
        "has no train split of csqa: looked for train_rand_split.jsonl there and under commonsenseqa/. "
        "It holds: commonsenseqa/dev_rand_split.jsonl, goemotions/."
    )
    with pytest.raises(DataError) as raised:
        load_examples(DataSource("csqa", "train", tmp_path))
    assert str(raised.value) == f"--data_dir {tmp_path} {message}"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "csqa", "skip_headings": True}, "--skip_headings: csqa has no .*; wikitext2, wikitext103 have"),
        ({"dataset": "tinyworld", "skip_headings": True}, "--skip_headings: tinyworld has no headings"),
        (
            {"dataset": "wikitext2", "text_file": Path("mine.txt"), "skip_headings": True},
            "--skip_headings: mine.txt has no headings",
        ),
        ({"dataset": "csqa", "split": "dev"}, "--split dev: csqa has the splits train, validation, test"),
    ],
)
def test_what_cannot_be_meant(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        DataSource(**options)
