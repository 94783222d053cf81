"""Results of analyses: whole or not at all, of this run, and nothing of anybody else's removed."""

import errno
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import DECODER, build_run

from decision_traces import TraceStore
from decision_traces.errors import (
    DamagedRunError,
    DiskSpaceError,
    ReplacedRunError,
    ResultError,
    RunError,
    RunExistsError,
    UsageError,
)
from decision_traces.folders import exchange
from decision_traces.store.files.results_place import ResultsPlace
from decision_traces.store.files.table import write_table
from decision_traces.store.reading.results import find_result
from decision_traces.store.validate.run import failures, validate_run
from decision_traces.store.writing.new_result import new_result, result_files


@pytest.fixture
def run(tmp_path: Path) -> Path:
    build_run(tmp_path / "run", replace(DECODER, capture=("hidden",)))
    return tmp_path / "run"


def put(run: Path, value: int, name: str = "lens", out: Path | None = None) -> list[str]:
    """Write a result of one table and return what is to be told."""
    with new_result(TraceStore(run, results=out), name, {"top_k": value, "model_path": Path("m")}) as new:
        write_table(new.folder / "depth.parquet", pa.table({"stable_from": [value]}))
        (new.folder / "lens.zarr").mkdir()
        (new.folder / "lens.zarr" / "zarr.json").write_text("{}")
    return new.notes


def value(run: Path) -> int:
    found = find_result(ResultsPlace(run), "lens")
    assert found is not None
    return int(found.table("depth.parquet").column("stable_from")[0].as_py())


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_result_says_what_it_is_of_and_replaces_the_one_before(run: Path) -> None:
    assert find_result(ResultsPlace(run), "lens") is None and result_files(run) == set()
    assert put(run, 1) == put(run, 2) == []
    assert value(run) == 2 and names(run / "analysis") == ["lens"] and names(run.parent) == ["run"]
    record = json.loads((run / "analysis" / "lens" / "record.json").read_text())
    assert record["command"] == "lens" and record["options"] == {"top_k": 2, "model_path": "m"}
    assert sorted(record["files"]) == ["depth.parquet", "lens.zarr/zarr.json"]
    assert record["files"]["lens.zarr/zarr.json"] == [2, "297bd0aa"]  # CRC-32C of "{}"
    assert result_files(run) == {f"analysis/lens/{f}" for f in ("record.json", "depth.parquet", "lens.zarr/zarr.json")}
    assert failures(validate_run(run)) == []


class Stopped(BaseException):
    """As Ctrl-C."""


@pytest.mark.parametrize(
    ("raised", "said", "sentence"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            DiskSpaceError,
            "disk of .* is full. Nothing was changed",
        ),
        (RuntimeError("zstd: no space left on device (os error 28)"), DiskSpaceError, "is full"),
        (
            OSError(errno.EIO, "Input/output error"),
            RunError,
            "cannot be written: Input/output error. Nothing was",
        ),
        (OSError(errno.EROFS, "Read-only file system"), RunError, "cannot be written: Read-only file system"),
        (Stopped(), Stopped, None),
        (ZeroDivisionError(), ZeroDivisionError, None),
    ],
)
@pytest.mark.parametrize("before", [0, 1])
def test_any_error_leaves_the_state_before(run: Path, raised, said, sentence: str | None, before: int) -> None:
    if before:
        put(run, 1)
    seen = {p: p.is_file() and p.read_bytes() for p in run.parent.rglob("*")}
    with pytest.raises(said, match=sentence), new_result(TraceStore(run), "lens", {}) as new:
        (new.folder / "lens.parquet").write_bytes(b"half")
        raise raised
    assert {p: p.is_file() and p.read_bytes() for p in run.parent.rglob("*")} == seen


def test_a_second_writer_is_refused_and_the_first_goes_on(run: Path) -> None:
    with new_result(TraceStore(run), "lens", {}) as new:
        with pytest.raises(RunExistsError, match="is being written by another process"):
            put(run, 2, "attribution")
        write_table(new.folder / "depth.parquet", pa.table({"stable_from": [1]}))
    assert value(run) == 1 and names(run / "analysis") == ["lens"]


def test_files_of_the_user_in_a_result_are_named_and_stay(run: Path) -> None:
    put(run, 1)
    (run / "analysis" / "lens" / "notes.md").write_text("mine")
    (run / "analysis" / "thesis.md").write_text("mine too")
    with pytest.raises(RunExistsError, match=r"decision-traces lens: .*\(notes\.md\)"):
        put(run, 2)
    assert (run / "analysis" / "lens" / "notes.md").read_text() == "mine"
    (run / "analysis" / "lens" / "notes.md").unlink()
    put(run, 2)
    assert value(run) == 2 and (run / "analysis" / "thesis.md").read_text() == "mine too"


def test_a_result_without_a_record_that_holds_is_set_aside_whole(run: Path) -> None:
    put(run, 1)
    record = run / "analysis" / "lens" / "record.json"
    record.write_text(record.read_text().replace('"top_k": 1', '"top_k": 3'))
    (run / "analysis" / "lens" / "notes.md").write_text("mine")
    with pytest.raises(ResultError, match=r"record\.json differs from its own digest.*`decision-traces lens "):
        find_result(ResultsPlace(run), "lens")
    (note,) = put(run, 2)
    aside = next(p for p in (run / "analysis").iterdir() if "set-aside" in p.name)
    assert str(aside) in note and value(run) == 2
    assert names(aside) == ["depth.parquet", "lens.zarr", "notes.md", "record.json"]


def test_a_folder_that_is_called_as_a_result_stays_where_the_user_has_it(run: Path, tmp_path: Path) -> None:
    own = tmp_path / "home" / "lens"
    (own / ".git" / "refs" / "tags").mkdir(parents=True)
    (own / "thesis.tex").write_text("mine")
    with pytest.raises(RunExistsError, match=r"decision-traces lens: .*home/lens holds .*\(thesis\.tex\)"):
        put(run, 1, out=tmp_path / "home")
    assert names(tmp_path / "home") == ["lens"] and (own / ".git" / "refs" / "tags").is_dir()

    (own / "record.json").write_text("{}")  # a damaged one of ours, or anybody's
    (note,) = put(run, 1, out=tmp_path / "home")
    (aside,) = (p for p in (tmp_path / "home").iterdir() if p.name != "lens")
    assert str(aside) in note and (aside / ".git" / "refs" / "tags").is_dir()


@pytest.mark.parametrize("out", ["run", "run/analysis", "run/dec_hidden.zarr", "run/new"])
def test_results_kept_elsewhere_are_not_kept_in_a_run(run: Path, tmp_path: Path, out: str) -> None:
    before = sorted(run.rglob("*"))
    with pytest.raises(UsageError, match=r"--out .*: .*run is a run\. Name a folder outside of runs"):
        put(run, 1, out=tmp_path / out)
    assert sorted(run.rglob("*")) == before
    (tmp_path / "file").touch()
    with pytest.raises(RunExistsError, match=r"--out .*file is a file"):
        put(run, 1, out=tmp_path / "file")


def test_results_of_two_runs_do_not_share_a_folder(run: Path, tmp_path: Path) -> None:
    build_run(tmp_path / "other", replace(DECODER, capture=("attn",)))
    put(run, 1, out=tmp_path / "kept")
    before = (tmp_path / "kept" / "lens" / "record.json").read_bytes()
    with pytest.raises(RunExistsError, match=r"kept/lens is the lens of another run, .*Name another folder with --out"):
        put(tmp_path / "other", 2, out=tmp_path / "kept")
    assert (tmp_path / "kept" / "lens" / "record.json").read_bytes() == before
    with pytest.raises(ResultError, match=r"was made from another run\. .*other --out DIR"):
        find_result(ResultsPlace(tmp_path / "other", tmp_path / "kept"), "lens")
    put(run, 3, out=tmp_path / "kept")


def test_a_run_says_what_was_computed_on_it_and_what_computes_the_rest(run: Path) -> None:
    put(run, 1)
    put(run, 1, "attention")
    (run / "analysis" / "attention" / "depth.parquet").write_bytes(b"")
    found = TraceStore(run).analyses()
    assert list(found) == ["lens", "attribution", "attention", "compare", "compare_by"]
    assert found["lens"].computed and found["lens"].files == ("depth.parquet", "lens.zarr/zarr.json")
    assert not found["attribution"].computed and not found["attribution"].problem
    assert str(found["compare_by"]) == f"Not computed yet. `decision-traces compare --by COLUMN {run}` computes it."
    assert not found["attention"].computed and "depth.parquet is no file of" in found["attention"].problem


def test_results_that_are_not_there_do_not_hold(run: Path, tmp_path: Path) -> None:
    (failed,) = failures(validate_run(run, results=tmp_path / "nothing"))
    assert "no result lies there" in failed.detail


def test_what_an_earlier_version_left_is_neither_read_nor_removed(run: Path) -> None:
    (run / "analysis").mkdir()
    (run / "analysis" / "depth.parquet").write_bytes(b"old")
    with pytest.raises(ResultError, match=r"depth\.parquet in .*: made by an earlier version, without a record"):
        find_result(ResultsPlace(run), "lens")
    assert failures(validate_run(run)) == []
    (note,) = put(run, 1)
    assert "depth.parquet" in note and value(run) == 1
    assert (run / "analysis" / "depth.parquet").read_bytes() == b"old"


def test_a_result_of_another_run_is_not_believed(run: Path, tmp_path: Path) -> None:
    build_run(tmp_path / "other", replace(DECODER, capture=("hidden",), seed=1))
    put(tmp_path / "other", 1)
    shutil.copytree(tmp_path / "other" / "analysis", run / "analysis")
    with pytest.raises(ResultError, match=r"was made from another run\. Run `decision-traces lens .*/run` again"):
        find_result(ResultsPlace(run), "lens")
    assert [(r.where, r.ok) for r in validate_run(run) if r.name == "results as computed"] == [("analysis/lens", False)]
    put(run, 2)
    assert value(run) == 2 and names(run / "analysis") == ["lens"]


def test_a_run_that_is_exchanged_meanwhile_keeps_no_result(run: Path, tmp_path: Path) -> None:
    build_run(tmp_path / "other", replace(DECODER, capture=("hidden",), seed=1))
    said = "was replaced while `lens` was computed: nothing was kept"
    with pytest.raises(ReplacedRunError, match=said), new_result(TraceStore(run), "lens", {}):
        for name in ("meta.json", "manifest.json"):
            shutil.copy(tmp_path / "other" / name, run / name)
    assert not (run / "analysis").exists()


@pytest.mark.parametrize("link", ["analysis", "analysis/lens"])
def test_nothing_is_written_or_read_through_a_link(run: Path, tmp_path: Path, link: str) -> None:
    home = tmp_path / "home" / "lens"
    home.mkdir(parents=True)
    (home / "depth.parquet").write_text("mine")
    (run / link).parent.mkdir(exist_ok=True)
    (run / link).symlink_to(home.parent if link == "analysis" else home)
    with pytest.raises(DamagedRunError, match="is a symbolic link"):
        put(run, 1)
    with pytest.raises(ResultError, match="is a symbolic link"):
        find_result(ResultsPlace(run), "lens")
    assert result_files(run) == set() and names(home) == ["depth.parquet"]


def test_a_file_that_is_a_link_or_a_pipe_is_damage(run: Path, tmp_path: Path) -> None:
    put(run, 1)
    table = run / "analysis" / "lens" / "depth.parquet"
    shutil.copy(table, tmp_path / "same")
    table.unlink()
    table.symlink_to(tmp_path / "same")
    with pytest.raises(ResultError, match=r"depth\.parquet is no file"):
        find_result(ResultsPlace(run), "lens")
    table.unlink()
    os.mkfifo(table)
    with pytest.raises(ResultError, match=r"depth\.parquet is no file"):
        find_result(ResultsPlace(run), "lens")


# -- what kills leave --------------------------------------------------------------------------------------------


def killed(run: Path, name: str, at: str) -> Path:
    """Return a folder as a process that was killed has left it."""
    folder = run / "analysis" / f".{name}.0123456789abcdef.{at}"
    folder.mkdir(parents=True)
    return folder


def test_leftovers_of_killed_writers_are_swept_and_nothing_else(run: Path, tmp_path: Path) -> None:
    put(run, 1)
    shutil.copytree(run / "analysis" / "lens", run / "analysis" / ".lens.0000000000000000.old")
    unfinished = run / "analysis" / ".attribution.0000000000000001.partial"
    with pytest.raises(Stopped), new_result(TraceStore(run), "attribution", {}) as new:
        (new.folder / "contributions.zarr").mkdir()
        (new.folder / "contributions.zarr" / "zarr.json").write_text("{")
        shutil.copytree(new.folder, unfinished)
        raise Stopped
    assert (unfinished / "record.json").is_file()
    before_the_record = killed(run, "lens", "partial")
    (before_the_record / ".record.json.0123456789abcdef.partial").write_text("{")
    mine = killed(run, "attention", "partial")
    (mine / "precious.txt").write_text("mine")
    (tmp_path / "home").mkdir()
    shutil.copy(run / "analysis" / "lens" / "record.json", tmp_path / "home")
    (run / "analysis" / ".compare.0123456789abcdef.old").symlink_to(tmp_path / "home")
    put(run, 2)
    assert names(run / "analysis") == [".attention.0123456789abcdef.partial", ".compare.0123456789abcdef.old", "lens"]
    assert names(mine) == ["precious.txt"] and names(tmp_path / "home") == ["record.json"]


def test_a_kill_while_the_old_result_is_removed_leaves_the_proof_for_the_next_writer(run: Path, monkeypatch) -> None:
    put(run, 1)
    unlink, removed = Path.unlink, []

    def stopped_at_the_third(self: Path, missing_ok: bool = False) -> None:
        if len(removed) == 2:
            raise Stopped
        removed.append(self.name)
        unlink(self, missing_ok)

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Path, "unlink", stopped_at_the_third)
        put(run, 2)
    (aside,) = (run / "analysis").glob(".lens.*.old")
    assert removed == ["depth.parquet", "zarr.json"] and names(aside) == ["lens.zarr", "record.json"]
    assert value(run) == 2
    put(run, 3)
    assert value(run) == 3 and names(run / "analysis") == ["lens"]


def test_a_result_that_a_kill_left_without_its_name_is_found(run: Path, monkeypatch) -> None:
    monkeypatch.setattr(exchange, "_WAIT_S", 0.0)
    put(run, 1)
    (run / "analysis" / "lens").rename(run / "analysis" / ".lens.0123456789abcdef.old")
    assert value(run) == 1 and names(run / "analysis") == ["lens"]
