import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from decision_traces.data import tinyworld
from decision_traces.data._tinyworld.commonplaces import TOPICS

# SHA-256 of the texts of the first 100 rows, one a line. A change here is a change of published data.
FIRST_ROWS = {
    "train": "ace32e5f45cb7235e1a49791a6e888dba80972cd008bd4d8739db74452ce5e0c",
    "validation": "8237276f9276498a853f3da414945e5c3b13222e54a32ff4edc33a82b764a49b",
    "test": "d5d5581d921c08e70fed5a6cf6f3c3647beb0d9fcfd83846ed2b52b4d952d6e2",
}


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


WRITE_ALL = """
import json
from decision_traces.data import tinyworld
print(json.dumps({split: [item._asdict() for item in tinyworld.items(split)] for split in tinyworld.SPLITS}))
"""


@pytest.fixture(scope="module")
def rows() -> dict[str, list[dict]]:
    """All rows, made by another Python: other string hashes, and no run-time type checks to wait for."""
    there = {**os.environ, "PYTHONPATH": str(Path(tinyworld.__file__).parents[2])}
    command = [sys.executable, "-c", WRITE_ALL]
    done = subprocess.run(command, capture_output=True, check=True, text=True, env=there)
    return json.loads(done.stdout)


def of_kind(rows: list[dict], kind: str) -> list[dict]:
    return [item for item in rows if item["kind"] == kind]


@pytest.mark.parametrize("split", tinyworld.SPLITS)
def test_the_rows_are_the_published_ones(rows: dict[str, list[dict]], split: str) -> None:
    assert digest([item["text"] for item in rows[split][:100]]) == FIRST_ROWS[split]


def test_sizes(rows: dict[str, list[dict]]) -> None:
    assert {split: len(found) for split, found in rows.items()} == tinyworld.SIZES
    assert tinyworld.SIZES == {"train": 20_000, "validation": 2_000, "test": 2_000}


def test_a_row_depends_on_neither_limit_nor_process(rows: dict[str, list[dict]]) -> None:
    found = list(tinyworld.examples("test", 60))
    assert list(tinyworld.examples("test", 30)) == found[:30]
    assert [e.text for e in found] == [item["text"] for item in rows["test"][:60]]


def test_splits_share_no_text_and_no_world(rows: dict[str, list[dict]]) -> None:
    for seen in (lambda item: [item["text"]], lambda item: item["worlds"]):
        train, validation, test = ({w for item in rows[s] for w in seen(item)} for s in tinyworld.SPLITS)
        assert not train & validation
        assert not train & test
        assert not validation & test


def test_the_training_stream_holds_no_held_out_text(rows: dict[str, list[dict]]) -> None:
    held_out = {item["text"] for split in ("validation", "test") for item in rows[split]}
    assert not held_out & set(islice(tinyworld.training_texts(3), 1_000))


@pytest.mark.parametrize("start", [0, 100, 1_777])
def test_any_200_rows_hold_every_kind(rows: dict[str, list[dict]], start: int) -> None:
    kinds = Counter(item["kind"] for item in rows["validation"][start : start + 200])
    assert set(kinds) == set(tinyworld.KINDS)
    assert max(kinds.values()) - min(kinds.values()) <= 2


def test_texts_are_plain_lines_that_end_at_a_word(rows: dict[str, list[dict]]) -> None:
    for item in rows["train"]:
        assert re.fullmatch(r"[A-Za-z ,.:?\-]*[ ][A-Za-z]+", item["text"]), item["text"]
        assert "  " not in item["text"]


def test_every_example_has_the_same_keys() -> None:
    for example in tinyworld.examples("validation", 50):
        assert list(example.fields) == ["kind", "question", "choices", "answerKey"]
        given = [example.fields[key] is not None for key in ("question", "choices", "answerKey")]
        assert given == [example.fields["kind"] == "question"] * 3


def test_ids_name_split_and_row() -> None:
    example = list(tinyworld.examples("test", 8))[7]
    assert example.example_id == f"tinyworld-test-000007-{digest([example.text])[:8]}"


def test_questions_are_the_question_rows_of_the_split() -> None:
    among_all = [e for e in tinyworld.examples("test", 70) if e.fields["kind"] == "question"]
    assert list(tinyworld.questions("test", len(among_all))) == among_all


def test_choices_are_five_and_the_text_ends_with_the_right_one(rows: dict[str, list[dict]]) -> None:
    for item in of_kind(rows["train"], "question"):
        assert len(set(item["choices"])) == len(item["choices"]) == 5
        assert item["answer_key"] in ("A", "B", "C", "D", "E")
        listed = ", ".join(f"{x} {choice}" for x, choice in zip("ABCDE", item["choices"], strict=True))
        right = item["choices"]["ABCDE".index(item["answer_key"])]
        assert item["text"].endswith(f"Question: {item['question']} {listed}. Answer: {right}")


def test_keys_are_spread_over_the_letters(rows: dict[str, list[dict]]) -> None:
    keys = Counter(item["answer_key"] for item in of_kind(rows["train"], "question"))
    total = sum(keys.values())
    assert all(0.17 < keys[letter] / total < 0.23 for letter in "ABCDE")


# What anybody would answer, written here by hand.
KNOWN = {
    "cut bread": "knife",
    "gives milk": "cow",
    "books": "library",
    "snow": "white",
    "heals the sick": "doctor",
}


def test_keys_point_at_what_anybody_would_answer(rows: dict[str, list[dict]]) -> None:
    checked = Counter()
    for item in of_kind(rows["train"], "question"):
        right = item["choices"]["ABCDE".index(item["answer_key"])]
        for asked, answer in KNOWN.items():
            if f" {asked}?" in item["question"] and ("colour" in item["question"] or asked != "snow"):
                assert right == answer, item["question"]
                checked[asked] += 1
    assert set(checked) == set(KNOWN)


def test_commonplaces_are_well_formed() -> None:
    for topic in TOPICS:
        assert set(topic.near_misses) <= set(topic.answers)
        for thing, answer in topic.answers.items():
            wrong = set(topic.answers.values()) - {answer, *topic.near_misses.get(thing, ())}
            assert len(wrong) >= 3, thing


def test_facts_are_told_before_they_are_asked(rows: dict[str, list[dict]]) -> None:
    for item in of_kind(rows["test"], "fact"):
        told, *asked = item["text"].split(" Question: ")
        assert asked
        for line in asked:
            question, answer = line.split(" Answer: ")
            name = question.removesuffix("?").split()[-1]
            lines = [s for s in told.removesuffix(".").split(". ") if s.startswith(f"{name} ")]
            ends = {s.removesuffix(" house").split()[-1] for s in lines}
            assert answer.removesuffix(".") in ends


def test_copies_repeat_what_was_said(rows: dict[str, list[dict]]) -> None:
    for item in of_kind(rows["test"], "copy"):
        said, again = re.fullmatch(r"[^:]*: ([^.]*)\. [^:]*: (.*)", item["text"]).groups()
        assert said.startswith(again)


def test_inductions_end_on_neighbours_met_before(rows: dict[str, list[dict]]) -> None:
    for item in of_kind(rows["test"], "induction"):
        *_, before, last = re.findall(r"\w+", item["text"])
        assert len(re.findall(rf"\b{before}\b(?: -)? {last}\b", item["text"])) >= 2
