"""Files that cannot be read, and folders in place of files: a finding about the file, a sentence, never a traceback."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.runs import TinyRun, build_run

from decision_traces.cli import ls
from decision_traces.errors import RunError, TraceError
from decision_traces.store.files.runs import list_runs
from decision_traces.store.reading.trace_store import TraceStore
from decision_traces.store.validate.run import failures, validate_run

RUN = TinyRun(n_layers=2, capture=("hidden", "attn"))
FILES = (
    "meta.json",
    "manifest.json",
    "tokens.parquet",
    "dec_hidden.zarr/zarr.json",
    "dec_hidden.zarr/h/zarr.json",
    "dec_hidden.zarr/h/c/0/1/0/0",
    "dec_self_attn.zarr/attn/c/1/0/0/0/0",
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    build_run(tmp_path / "run", RUN)
    return tmp_path / "run"


@pytest.fixture
def failing(monkeypatch) -> Callable[[Path], None]:
    """Make every attempt to open one file end as on a disk that is worn out."""

    def make(path: Path) -> None:
        def worn(real: Callable[..., Any]) -> Callable[..., Any]:
            def opened(name: Any, *args: Any, **how: Any) -> Any:
                if not isinstance(name, int) and os.fspath(name) == str(path):
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
                return real(name, *args, **how)

            return opened

        monkeypatch.setattr(os, "open", worn(os.open))
        monkeypatch.setattr(Path, "open", worn(Path.open))
        monkeypatch.setattr("builtins.open", worn(open))

    return make


def use(run: Path) -> None:
    """Read all of a run, and pass over what is refused in a sentence."""
    store = TraceStore(run)
    for call in (store.arrays, lambda: store.tokens, lambda: store.hidden(0), lambda: store.attn(3), lambda: store.n):
        try:
            call()
        except TraceError as error:
            assert str(error)


def checked(run: Path, file: str) -> None:
    """The checks name the file; reading and listing end in sentences."""
    try:
        found = failures(validate_run(run))
    except RunError as error:
        assert file in str(error)
    else:
        assert any(file in f"{check.where} {check.detail}" for check in found)
    try:
        use(run)
    except RunError as error:
        assert file in str(error)
    (listed,) = list_runs(run.parent)
    assert (listed.state == "damaged") == (file == "meta.json")


@pytest.mark.parametrize("file", FILES)
def test_a_file_that_cannot_be_read_is_named(run, failing, file):
    failing(run / file)
    checked(run, file)


@pytest.mark.parametrize("file", FILES[1:])
def test_a_folder_in_place_of_a_file_is_named(run, file):
    (run / file).unlink()
    (run / file).mkdir()
    checked(run, file)


def test_ls_shows_a_damaged_run_in_a_row_of_its_own(run, capsys):
    bad = Path(shutil.copytree(run, run.with_name("bad")))
    (bad / "meta.json").write_text('{"format_version": "7.0"}', encoding="utf-8")
    with pytest.raises(SystemExit) as stopped:
        ls.main([str(run.parent)])
    shown = " ".join(capsys.readouterr().out.split())
    assert not stopped.value.code
    assert "complete" in shown and "damaged:" in shown and "7.0" in shown
