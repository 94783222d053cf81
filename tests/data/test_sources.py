"""WikiText from local files and from the hub's form, and the user's own files."""

import json
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from decision_traces.data.example import make_example_id
from decision_traces.data.local import fingerprint
from decision_traces.data.registry import DataSource, load_examples
from decision_traces.data.text_files import text_file_examples
from decision_traces.errors import DataError

LINES = [" \n", " = Heading = \n", " \n", " First paragraph , with text . \n", " Second . \n", " \n"]


def _write_local(folder: Path, name: str = "wikitext-2-raw/wiki.valid.raw") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True)
    path.write_text("".join(LINES), encoding="utf-8")
    return folder


def test_wikitext_rows_are_line_numbers_and_empty_lines_are_no_examples(tmp_path: Path) -> None:
    found = load_examples(DataSource("wikitext2", "validation", _write_local(tmp_path)))
    assert [e.text for e in found] == ["= Heading =", "First paragraph , with text .", "Second ."]
    assert [e.example_id.rsplit("-", 1)[0] for e in found] == [f"wikitext2-validation-00000{i}" for i in (1, 3, 4)]


def test_a_heading_is_balanced_and_alone_and_leaving_it_out_renumbers_nothing(tmp_path: Path) -> None:
    # A formula broken over lines begins and ends with = like a heading, but is not alone between empty lines.
    formula = ["with mass m", "= 3 kg and l =", "2 m"]
    rows = ["", "= Title =", "", "= = Part = of = =", "", *formula, "", "= Open", "", "= = A =", ""]
    (tmp_path / "wiki.test.raw").write_text("".join(f" {row} \n" for row in rows))
    everything = load_examples(DataSource("wikitext2", "test", tmp_path))
    found = load_examples(DataSource("wikitext2", "test", tmp_path, skip_headings=True))
    assert [e.text for e in found] == [*formula, "= Open", "= = A ="]
    assert found == everything[2:]
    assert load_examples(DataSource("wikitext2", "test", tmp_path, limit=2, skip_headings=True)) == everything[2:4]


def test_the_last_line_can_be_a_heading(tmp_path: Path) -> None:
    (tmp_path / "wiki.test.raw").write_text("text\n\n= Last =")
    found = load_examples(DataSource("wikitext2", "test", tmp_path, skip_headings=True))
    assert [e.text for e in found] == ["text"]


def test_the_raw_form_is_preferred_and_the_folder_itself_is_accepted(tmp_path: Path) -> None:
    _write_local(tmp_path, "wikitext-2-raw/wiki.test.raw")
    (tmp_path / "wikitext-2").mkdir()
    (tmp_path / "wikitext-2" / "wiki.test.tokens").write_text("other\n")
    assert len(load_examples(DataSource("wikitext2", "test", tmp_path))) == 3
    assert len(load_examples(DataSource("wikitext2", "test", tmp_path / "wikitext-2"))) == 1


HUB_ROWS = [{"text": line if line.strip() else ""} for line in LINES]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("skip_headings", [False, True])
def test_hub_and_local_give_the_same_examples(skip_headings: bool, hub: Callable, tmp_path: Path) -> None:
    hub("Salesforce/wikitext", "wikitext-2-raw-v1", {"validation": HUB_ROWS})
    folder = _write_local(tmp_path / "local")
    local = load_examples(DataSource("wikitext2", "validation", folder, skip_headings=skip_headings))
    assert load_examples(DataSource("wikitext2", "validation", skip_headings=skip_headings)) == local
    assert len(local) == (2 if skip_headings else 3)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_split_the_hub_does_not_have(hub: Callable) -> None:
    hub("Salesforce/wikitext", "wikitext-2-raw-v1", {"validation": HUB_ROWS})
    with pytest.raises(DataError, match=r"not to be had from the Hugging Face hub.*--data_dir"):
        load_examples(DataSource("wikitext2", "test"))


def test_the_environment_variable_stands_for_data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DECISION_TRACES_DATA", str(_write_local(tmp_path)))
    assert len(load_examples(DataSource("wikitext2", "validation", limit=2))) == 2


def test_a_missing_split_names_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no train split of wikitext2: .*It holds: wikitext-2-raw/wiki\.valid\.raw"):
        load_examples(DataSource("wikitext2", "train", _write_local(tmp_path)))


TEXTS = ["plain", "", "  ", 'quotes " and , commas', "two\nlines", "東京 🙂"]


def _jsonl(path: Path) -> None:
    path.write_text("".join(json.dumps({"text": t, "other": 1}) + "\n" for t in TEXTS))


@pytest.mark.parametrize(
    ("suffix", "write"),
    [
        (".jsonl", _jsonl),
        (".csv", lambda p: pd.DataFrame({"text": TEXTS, "other": 1}).to_csv(p, index=False)),
        (".parquet", lambda p: pd.DataFrame({"text": TEXTS, "other": 1}).to_parquet(p)),
    ],
)
def test_own_files_keep_every_row_even_an_empty_one(suffix: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / f"mine{suffix}"
    write(path)
    found = list(text_file_examples(path))
    assert [e.text for e in found] == TEXTS
    assert found[3].example_id == make_example_id("mine", "all", 3, TEXTS[3])


def test_a_text_file_has_one_example_a_line_and_skips_empty_lines(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_bytes(b"first\r\n\r\n  indented \nlast without end")
    assert [e.text for e in text_file_examples(path)] == ["first", "  indented ", "last without end"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{oops\n', "line 2: not JSON"),
        ("a.jsonl", b'["text"]\n', "line 1: expected an object with a column text, got a list"),
        ("a.jsonl", b'{"text": [{"role": "user"}]}\n', "line 1: text holds a list of chat messages, where a text"),
        ("a.jsonl", b'{"text": {"a": 1}}\n', "line 1: text holds an object"),
        ("a.jsonl", b'{"text": true}\n', "line 1: text holds true or false"),
        ("a.jsonl", b"[" * 100_000 + b"\n", "line 1: not JSON"),
        ("a.csv", b"text,label\ngood,1\ncut off,0,\n", r"line 3: expected 2 cells \(text, label\), got 3"),
        ("a.csv", b'text,label\ngood,1\n"open,0\nx,1\n', "line 3: the quotation marks do not add up"),
        ("a.csv", b"text,text\nx,y\n", "two columns are named 'text'"),
        ("a.csv", b"sentence\nx\n", "needs a column named text; it has: sentence"),
        ("a.csv", b"", "cannot be read as csv"),
        ("a.parquet", b"not parquet at all", "cannot be read as parquet"),
        ("a.txt", b"caf\xe9\n", "not UTF-8"),
        ("a.txt", b"\n\n", "holds no examples"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1: .*not valid Unicode"),
    ],
)
def test_a_bad_file_is_one_sentence(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_examples(DataSource("wikitext2", text_file=tmp_path / name))


def test_the_fingerprint_tells_data_apart(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("ab\nc\n")
    first = fingerprint(list(text_file_examples(path)))
    assert first == fingerprint(list(text_file_examples(path)))
    path.write_text("a\nbc\n")
    assert first != fingerprint(list(text_file_examples(path)))
