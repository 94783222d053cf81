"""Where an encoder-decoder's targets come from: a file beside the texts, or a column of the data."""

import json
from pathlib import Path

import pandas as pd
import pytest

from decision_traces.data.registry import DataSource, load_examples
from decision_traces.data.targets import Targets, load_with_targets
from decision_traces.errors import UsageError


@pytest.fixture
def texts(tmp_path: Path) -> DataSource:
    (tmp_path / "a-text-file.txt").write_text("one\n\nthree\n")
    return DataSource("wikitext2", text_file=tmp_path / "a-text-file.txt")


def test_without_targets_the_field_is_there_and_null(texts: DataSource) -> None:
    assert not Targets().given
    assert [dict(e.fields) for e in load_with_targets(texts, Targets())] == [{"target_text": None}] * 2


def test_a_target_is_a_field_and_changes_nothing_else(texts: DataSource, tmp_path: Path) -> None:
    (tmp_path / "targets.txt").write_text("eins\nzwei\ndrei\nvier\n")
    found = load_with_targets(texts, Targets(file=tmp_path / "targets.txt"))
    assert [e.fields["target_text"] for e in found] == ["eins", "drei"]
    assert [(e.example_id, e.text) for e in found] == [(e.example_id, e.text) for e in load_examples(texts)]


TARGETS = ["one", 'two, with "quotes"', "three"]


def _write(path: Path) -> Path:
    """Three texts with their targets, or the targets alone, in the form that the name says."""
    both = pd.DataFrame({"text": ["a", "", "c"], "target": TARGETS, "other": ["x", "y", "z"]})
    frame = both if path.stem == "both" else both[["target"]]
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in frame.to_dict("records")))
    else:
        path.write_text("\n".join(TARGETS) + "\n")
    return path


@pytest.mark.parametrize("name", ["alone.txt", "alone.jsonl", "alone.csv", "alone.parquet", "both.csv"])
def test_a_file_of_targets_is_read_row_by_row(name: str, tmp_path: Path) -> None:
    source = DataSource("wikitext2", text_file=_write(tmp_path / "both.jsonl"))
    found = load_with_targets(source, Targets(file=_write(tmp_path / name)))
    assert [e.text for e in found] == ["a", "", "c"]
    assert [e.fields["target_text"] for e in found] == TARGETS


@pytest.mark.parametrize("name", ["both.jsonl", "both.csv", "both.parquet"])
def test_a_column_of_the_texts_is_read_row_by_row(name: str, tmp_path: Path) -> None:
    source = DataSource("wikitext2", text_file=_write(tmp_path / name), limit=2)
    assert [e.fields["target_text"] for e in load_with_targets(source, Targets(column="target"))] == TARGETS[:2]
    assert [e.fields["target_text"] for e in load_with_targets(source, Targets(column="other"))] == ["x", "y"]


def test_both_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="give one of them"):
        Targets(Path("x.txt"), "y")


def test_fields_of_a_data_set_stay(tmp_path: Path) -> None:
    found = load_with_targets(DataSource("tinyworld", limit=2), Targets(column="kind"))
    assert [e.fields["target_text"] for e in found] == [e.fields["kind"] for e in found] == ["agreement", "fact"]
    assert set(found[0].fields) == {"kind", "question", "choices", "answerKey", "target_text"}
