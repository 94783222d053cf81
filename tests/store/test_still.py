"""A run that is replaced where it was opened: one sentence, and never the numbers of two runs in one."""

import shutil
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from support.runs import DECODER, build_run

from decision_traces import TraceStore
from decision_traces.errors import ReplacedRunError, RunError
from decision_traces.store.files import folder, table
from decision_traces.store.reading import still

ACCESSES = {
    "a slice of an array": lambda st: st.hidden(0, layer=1),
    "an array that was not opened before": lambda st: st.attn(0, layer=0),
    "one position of all": lambda st: st.gather("dec_hidden", layer=1, position="last"),
    "labelled": lambda st: st.to_xarray("dec_hidden").values,
    "the table": lambda st: st.tokens,
    "a text read before": lambda st: st.text(0),
    "a row": lambda st: st.record(0),
    "what there is": lambda st: st.arrays(),
}


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    """Two runs of the same shapes and other numbers."""
    for name, seed in (("old", 1), ("new", 2)):
        build_run(tmp_path / name, replace(DECODER, seed=seed))
    return tmp_path / "old", tmp_path / "new"


def exchange(old: Path, new: Path) -> None:
    old.rename(old.with_name("aside"))
    new.rename(old)


@pytest.mark.parametrize("access", ACCESSES.values(), ids=ACCESSES.keys())
def test_a_store_of_a_replaced_run_says_so(two: tuple[Path, Path], access) -> None:
    store = TraceStore(two[0])
    store.hidden(0, layer=1), store.text(0)
    exchange(*two)
    with pytest.raises(ReplacedRunError, match="was replaced since it was opened: open it again"):
        access(store)
    access(TraceStore(two[0]))


def test_numbers_read_while_it_is_replaced_are_not_given(two: tuple[Path, Path], monkeypatch) -> None:
    store = TraceStore(two[0])
    array = store.array("dec_hidden")
    whole = type(array)._there
    monkeypatch.setattr(type(array), "_there", lambda self, box: (whole(self, box), exchange(*two)))
    with pytest.raises(ReplacedRunError):
        store.hidden(0, layer=1)


def test_a_run_copied_over_itself_is_the_same(two: tuple[Path, Path]) -> None:
    store = TraceStore(two[0])
    before = store.hidden(0)
    shutil.copytree(two[0], two[0].with_name("copy"))
    exchange(two[0], two[0].with_name("copy"))
    (two[0] / "meta.json").touch()
    assert np.array_equal(store.hidden(0), before)


def test_a_moment_without_a_run_is_waited_for_and_its_end_is_said(two: tuple[Path, Path]) -> None:
    store, aside = TraceStore(two[0]), two[0].with_name("aside")
    before = store.hidden(0)
    two[0].rename(aside)
    back = threading.Timer(0.2, aside.rename, (two[0],))
    back.start()
    assert np.array_equal(store.hidden(0), before)
    back.join()
    shutil.rmtree(two[0])
    with pytest.raises(RunError, match="is gone"):
        store.text(0)


def test_a_table_is_checked_once_and_again_when_it_changes(two: tuple[Path, Path], monkeypatch) -> None:
    path, checked = two[0] / "tokens.parquet", []
    whole = folder.stream_checksum
    monkeypatch.setattr(table, "stream_checksum", lambda raw: checked.append(raw.name) or whole(raw))
    monkeypatch.setattr(still, "_SETTLED_NS", 0)
    store = TraceStore(two[0])
    assert len(store.record(1)) > 10 and store.n_tokens(1) > 0 and len(store.tokens) == store.n
    assert len(checked) == 1
    file = table.TableFile(path, whole_record := folder.checksum(path))
    assert whole_record[0] == path.stat().st_size
    file.read(["text"])
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(folder.DamagedRunError, match="CRC-32C"):
        file.read(["text"])
