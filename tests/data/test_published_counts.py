"""The real files: every published count, and what a plain look at the files says. A few seconds in all."""

import re
from pathlib import Path

import pytest

from decision_traces.data.choices import load_choice_questions
from decision_traces.data.go_emotions import EMOTIONS
from decision_traces.data.registry import DatasetName, DataSource, load_examples

pytestmark = pytest.mark.real


@pytest.mark.parametrize(
    ("dataset", "split", "count"),
    [
        ("csqa", "train", 9741),
        ("csqa", "validation", 1221),
        ("csqa", "test", 1140),
        ("go_emotions", "train", 43410),
        ("go_emotions", "validation", 5426),
        ("go_emotions", "test", 5427),
        ("ud_ewt", "train", 12544),
        ("ud_ewt", "validation", 2001),
        ("ud_ewt", "test", 2077),
    ],
)
def test_published_counts(dataset: DatasetName, split: str, count: int, shared_data: Path) -> None:
    found = load_examples(DataSource(dataset, split, shared_data))
    assert len(found) == count
    assert len({e.example_id for e in found}) == count
    assert found[:7] == load_examples(DataSource(dataset, split, shared_data, limit=7))


@pytest.mark.parametrize(("split", "count"), [("train", 9741), ("validation", 1221), ("test", 1140)])
def test_every_csqa_question_has_five_choices(split: str, count: int, shared_data: Path) -> None:
    found = load_choice_questions(DataSource("csqa", split, shared_data))
    assert len(found) == count
    assert {(q.labels, len(q.choices)) for q in found} == {(("A", "B", "C", "D", "E"), 5)}
    assert {q.answer_index for q in found} == ({-1} if split == "test" else {0, 1, 2, 3, 4})


def test_the_emotions_are_the_published_ones(shared_data: Path) -> None:
    assert list(EMOTIONS) == (shared_data / "goemotions" / "emotions.txt").read_text().split()


def test_go_emotions_texts_and_ids(shared_data: Path) -> None:
    """Split by hand: a text with quotation marks stands between quotation marks, its own doubled."""
    found = load_examples(DataSource("go_emotions", "validation", shared_data))
    rows = (shared_data / "goemotions" / "dev.tsv").read_bytes().decode().rstrip("\n").split("\n")
    for example, row in zip(found, rows, strict=True):
        text, labels, comment_id = row.split("\t")
        if '"' in text:
            text = text[1:-1].replace('""', '"')
        assert example.text == text.strip()
        assert [EMOTIONS.index(name) for name in example.fields["labels"]] == [int(n) for n in labels.split(",")]
        assert example.fields["comment_id"] == comment_id


@pytest.mark.parametrize("split", ["dev", "test"])
def test_ewt_texts_and_ids(split: str, shared_data: Path) -> None:
    source = DataSource("ud_ewt", {"dev": "validation"}.get(split, split), shared_data)
    found = load_examples(source)
    content = (shared_data / "ud_english_ewt" / f"en_ewt-ud-{split}.conllu").read_bytes().decode()
    assert [e.text for e in found] == re.findall(r"^# text = (.*)$", content, re.MULTILINE)
    assert [e.fields["sent_id"] for e in found] == re.findall(r"^# sent_id = (.*)$", content, re.MULTILINE)


@pytest.mark.parametrize(
    ("dataset", "split", "file", "articles"),
    [
        ("wikitext2", "validation", "wikitext-2/wiki.valid.tokens", 60),
        ("wikitext2", "test", "wikitext-2-raw/wiki.test.raw", 60),
        ("wikitext103", "validation", "wikitext-103/wiki.valid.tokens", 60),
    ],
)
def test_wikitext_lines(dataset: DatasetName, split: str, file: str, articles: int, shared_data: Path) -> None:
    rows = [line.strip() for line in (shared_data / file).read_bytes().decode().split("\n")]
    found = load_examples(DataSource(dataset, split, shared_data))
    assert [e.text for e in found] == [row for row in rows if row]
    assert [int(e.example_id.split("-")[2]) for e in found] == [i for i, row in enumerate(rows) if row]
    bodies = {e.example_id for e in load_examples(DataSource(dataset, split, shared_data, skip_headings=True))}
    titles = [e.text for e in found if e.example_id not in bodies and not e.text.startswith("= =")]
    assert len(titles) == articles  # as published: an article has one title
