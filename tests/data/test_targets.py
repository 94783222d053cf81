"""Where an encoder-decoder's targets come from: a file beside the texts, or a column of the data."""

from pathlib import Path

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


def test_both_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="give one of them"):
        Targets(Path("x.txt"), "y")


def test_fields_of_a_data_set_stay(tmp_path: Path) -> None:
    found = load_with_targets(DataSource("tinyworld", limit=2), Targets(column="kind"))
    assert [e.fields["target_text"] for e in found] == [e.fields["kind"] for e in found] == ["fact", "agreement"]
    assert set(found[0].fields) == {"kind", "question", "choices", "answerKey", "target_text"}
