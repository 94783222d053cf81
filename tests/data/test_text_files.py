"""The user's own tables: every column goes through, and nothing is read as something else."""

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from decision_traces.data.example import Example
from decision_traces.data.registry import DataSource, load_examples
from decision_traces.data.text_files import text_file_examples
from decision_traces.errors import DataError
from decision_traces.extract.tables import field_columns, field_types


def columns_of(examples: list[Example]) -> pa.Table:
    return pa.table(field_columns(examples, field_types(examples)))


def test_every_column_goes_through_under_a_name_that_is_free(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '{"text": "a", "label": 2, "score": 0.5, "ok": true, "tokens": "own", "tags": ["x"], "big": 4294967296}\n'
        '{"text": "b", "label": null, "score": 1, "nested": {"k": [1]}, "mixed": "s"}\n'
        '{"text": 7, "mixed": 3}\n'
    )
    found = list(text_file_examples(path))
    assert [e.text for e in found] == ["a", "b", "7"]
    table = columns_of(found)
    assert table.to_pydict() == {
        "label": [2, None, None],
        "score": [0.5, 1.0, None],
        "ok": [True, None, None],
        "field_tokens": ["own", None, None],
        "tags": [["x"], None, None],
        "big": [4294967296, None, None],
        "nested": [None, '{"k": [1]}', None],
        "mixed": [None, "s", "3"],
    }
    assert [str(kind) for kind in table.schema.types] == [
        *("int32", "double", "bool", "string", "list<item: string>", "int64", "string", "string"),
    ]


def test_a_csv_keeps_its_cells_as_they_are_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text('label,text,input_ids\n007,"one, ""two""\nthree",NA\n1.50,,\n')
    found = list(text_file_examples(path))
    assert [e.text for e in found] == ['one, "two"\nthree', ""]
    assert columns_of(found).to_pydict() == {"label": ["007", "1.50"], "field_input_ids": ["NA", ""]}


def test_a_parquet_of_messages_or_bytes_is_refused_by_row_and_kind(tmp_path: Path) -> None:
    kinds = {
        "a list of chat messages": pa.array([[{"role": "user", "content": "hi"}]]),
        "bytes": pa.array([b"hi"]),
        "an object": pa.array([{"a": 1}]),
    }
    for kind, column in kinds.items():
        path = tmp_path / "mine.parquet"
        pq.write_table(pa.table({"text": column}), path)
        with pytest.raises(DataError, match=f"row 0: text holds {kind}"):
            load_examples(DataSource("wikitext2", text_file=path))


def test_a_parquet_column_of_pictures_is_left_out_and_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table({"text": ["a"], "picture": [b"..."], "label": [True]}), path)
    assert columns_of(list(text_file_examples(path))).to_pydict() == {"label": [True]}
    assert caplog.messages == [f"--text_file {path}: left out, since they hold bytes: picture"]


def test_bytes_inside_of_others_stay_away_and_decimals_and_dates_are_text(tmp_path: Path) -> None:
    path = tmp_path / "mine.parquet"
    columns = {
        "text": ["a"],
        "image": [{"bytes": b"...", "path": "x.png"}],
        "frames": [[b"..."]],
        "price": [Decimal("1.50")],
        "day": [date(2020, 1, 2)],
        "at": [datetime(2020, 1, 2, 3, tzinfo=UTC)],
    }
    pq.write_table(pa.table(columns), path)
    assert columns_of(list(text_file_examples(path))).to_pydict() == {
        "price": ["1.50"],
        "day": ["2020-01-02"],
        "at": ["2020-01-02 03:00:00+00:00"],
    }


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"text": "a", "n_tokens": 1, "field_n_tokens": 2}'], "line 1: n_tokens and field_n_tokens would both be"),
        (['{"text": "a", "tokens": 1}', '{"text": "b", "field_tokens": 2}'], "line 2: tokens and field_tokens would"),
        (['{"text": "a", "text": "b"}'], "line 1: not JSON .two values are named 'text'"),
        (['{"text": "a", "own": {"x": 1, "x": 2}}'], "two values are named 'x'"),
        (['{"text": "a", "own": ' + "1" * 5000 + "}"], "line 1: not JSON .Exceeds the limit"),
    ],
)
def test_two_values_that_would_be_one_are_refused(tmp_path: Path, lines: list[str], said: str) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text("\n".join(lines))
    with pytest.raises(DataError, match=said):
        list(text_file_examples(path))


@pytest.mark.parametrize("twice", ["text", "own"])
def test_two_columns_of_one_name_are_refused(tmp_path: Path, twice: str) -> None:
    path = tmp_path / "mine.parquet"
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["text", "own", twice]), path)
    with pytest.raises(DataError, match=f"two columns are named '{twice}'"):
        list(text_file_examples(path))
