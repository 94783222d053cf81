"""What `--overwrite` and the writing of a run may remove: what is proved ours, and nothing beside it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from support.runs import DECODER, build_run

from decision_traces.errors import RunError, RunExistsError, UsageError
from decision_traces.folders import exchange
from decision_traces.format.arrays import Dims, arrays_for
from decision_traces.store.files.runs import list_runs
from decision_traces.store.reading.opened import OpenRun
from decision_traces.store.writing.layout import RunLayout
from decision_traces.store.writing.owned import run_place
from decision_traces.store.writing.writer import RunWriter

LAYOUT = RunLayout(arrays_for("dec", ("hidden",)), {"dec": Dims(2, 1, 1, 1, 3, 2, 2)}, "float16", 2)


def finish(writer: RunWriter, mark: str = "new") -> Path:
    """Finish a run of two examples whose arrays hold nothing."""
    table = pa.table({"example_id": ["a", "b"]})
    writer.enter({"block": 0, "files": {}, "bytes": 0, "facts": {}}, {"tokens.parquet": table})
    writer.join_tables()
    return writer.commit({"run_id": mark})


def write(run: Path, mark: str = "new", *, overwrite: bool = False) -> Path:
    """Write a run, and let its meta bear a mark."""
    with run_place(run, overwrite=overwrite) as place:
        return finish(RunWriter.create(place, LAYOUT, {}), mark)


def mark_of(run: Path) -> str:
    return json.loads((run / "meta.json").read_text())["run_id"]


def tree(folder: Path) -> dict[str, bytes | str]:
    """Return everything below a folder: bytes of files, targets of links."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def put(path: Path, text: str = "years of work") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def notes_beside_the_arrays(run: Path) -> None:
    put(write(run, "old") / "dec_hidden.zarr" / "notes.txt")


def results_of_an_earlier_version(run: Path) -> None:
    put(write(run, "old") / "analysis" / "lens.parquet")


def a_link_in_a_run(run: Path) -> None:
    (write(run, "old") / "thesis").symlink_to(put(run.with_name("home") / "thesis.tex").parent)


def some_project_with_a_meta(run: Path) -> None:
    put(run / "meta.json", '{"name": "my project"}')
    put(run / "src" / "main.py")


def a_run_of_an_older_tool(run: Path) -> None:
    put(run / "meta.json", '{"arch": "dec", "n_examples": 2}')
    put(run / "tokens.parquet")


def a_run_with_a_broken_seal(run: Path) -> None:
    meta = write(run, "old") / "meta.json"
    meta.write_text(meta.read_text().replace('"old"', '"odd"'))


def a_run_with_another_manifest(run: Path) -> None:
    manifest = write(run, "old") / "manifest.json"
    manifest.write_text(manifest.read_text().replace("tokens.parquet", "thesis.parquet"))


def a_folder_without_a_meta(run: Path) -> None:
    put(run / "thesis.txt")


def a_foreign_partial(run: Path) -> None:
    put(run.with_name(".run.partial") / "download.bin")


def a_foreign_ledger(run: Path) -> None:
    put(run.with_name(".run.partial") / "ledger.jsonl", '{"date": "2026-01-01", "amount": 5}\n')


def notes_in_an_unfinished_run(run: Path) -> None:
    with run_place(run) as place:
        RunWriter.create(place, LAYOUT, {})
    put(run.with_name(".run.partial") / "parts" / "notes.txt")


def a_link_as_partial(run: Path) -> None:
    run.with_name(".run.partial").symlink_to(put(run.with_name("home") / "thesis.tex").parent)


def a_file_as_partial(run: Path) -> None:
    put(run.with_name(".run.partial"))


@pytest.mark.parametrize(
    ("plant", "said"),
    [
        (notes_beside_the_arrays, r"no record .* \(dec_hidden.zarr/notes.txt\): your own, .*\. Move them away"),
        (
            results_of_an_earlier_version,
            r"no record .* \(analysis/lens.parquet\): .* or an earlier version's\. Move them",
        ),
        (a_link_in_a_run, r"no record .* \(thesis\)"),
        (some_project_with_a_meta, r"run is not proved to be a run of decision-traces .*remove it yourself"),
        (a_run_of_an_older_tool, r"run is not proved to be a run"),
        (a_run_with_a_broken_seal, r"meta.json differs from its own digest.*remove it yourself"),
        (a_run_with_another_manifest, r"manifest.json is not the one that meta.json names"),
        (a_folder_without_a_meta, r"is not a run folder"),
        (a_foreign_partial, r"\.run\.partial .*nothing proves that decision-traces made"),
        (a_foreign_ledger, r"\.run\.partial .*nothing proves that decision-traces made"),
        (notes_in_an_unfinished_run, r"no record .* \(parts/notes.txt\)"),
        (a_link_as_partial, r"\.run\.partial .*is no folder"),
        (a_file_as_partial, r"\.run\.partial .*is no folder"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_proved_ours_is_named_and_left(plant: Callable[[Path], None], said: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    plant(run)
    before = tree(tmp_path)
    with pytest.raises(RunExistsError, match=said):
        write(run, overwrite=True)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", [".run.old", ".run.0123456789abcdef.old", ".run.0123456789abcdef.partial"])
def test_what_is_called_like_a_leftover_and_is_not_stays(name: str, tmp_path: Path) -> None:
    put(tmp_path / name / "thesis.txt")
    write(tmp_path / "run")
    write(tmp_path / "run", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "run"])
    assert (tmp_path / name / "thesis.txt").read_text() == "years of work"


def test_a_file_that_comes_while_the_new_run_is_written_stops_the_replacement(tmp_path: Path) -> None:
    run = write(tmp_path / "run", "old")
    with run_place(run, overwrite=True) as place:
        writer = RunWriter.create(place, LAYOUT, {})
        put(run / "notes.txt")
        with pytest.raises(RunExistsError, match=r"\(notes.txt\)"):
            finish(writer)
    assert mark_of(run) == "old"
    (run / "notes.txt").unlink()
    with run_place(run, overwrite=True, resume=True) as place:
        assert mark_of(RunWriter.resume(place, LAYOUT, {}).finish()) == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_folder_that_comes_under_the_name_is_not_replaced(tmp_path: Path) -> None:
    with run_place(tmp_path / "run") as place:
        writer = RunWriter.create(place, LAYOUT, {})
        put(tmp_path / "run" / "thesis.txt")
        with pytest.raises(RunExistsError, match="is not a run folder"):
            finish(writer)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "years of work"


def test_what_the_user_puts_into_an_unfinished_run_is_never_listed_as_ours(tmp_path: Path) -> None:
    with run_place(tmp_path / "run") as place:
        writer = RunWriter.create(place, LAYOUT, {})
        put(writer.folder / "notes.txt")
        run = finish(writer)
    assert "notes.txt" not in (run / "manifest.json").read_text()
    with pytest.raises(RunExistsError, match=r"\(notes.txt\)"):
        write(run, overwrite=True)


def test_through_a_link_the_real_folder_is_written_and_replaced(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    link = tmp_path / "run"
    link.symlink_to(tmp_path / "disk" / "run")
    for overwrite in (False, True, True):
        assert write(link, overwrite=overwrite) == tmp_path / "disk" / "run"
        assert link.is_symlink() and OpenRun(link).meta["run_id"] == "new"
    assert sorted(path.name for path in tmp_path.rglob("*run*")) == ["run", "run"]


def test_an_unfinished_run_with_a_link_is_not_gone_on_with(tmp_path: Path) -> None:
    run, home = tmp_path / "run", put(tmp_path / "home" / "zarr.json").parent
    with run_place(run) as place:
        folder = RunWriter.create(place, LAYOUT, {}).folder
    shutil.rmtree(folder / "dec_hidden.zarr")
    (folder / "dec_hidden.zarr").symlink_to(home)
    with pytest.raises(RunError, match=r"dec_hidden\.zarr is a symbolic link"), run_place(run, resume=True):
        pass
    assert tree(home) == {"zarr.json": b"years of work"}


@pytest.mark.parametrize("look", [lambda run: OpenRun(run).run_dir, lambda run: list_runs(run.parent)[0].path])
def test_a_run_that_was_left_aside_is_found_again(look, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(exchange, "_WAIT_S", 0.0)
    run = write(tmp_path / "run", "old")
    run.rename(tmp_path / ".run.0123456789abcdef.old")
    assert look(run) == run and mark_of(run) == "old"


def test_a_run_that_was_being_removed_is_not_found_again_but_swept(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(exchange, "_WAIT_S", 0.0)
    aside = tmp_path / ".run.0123456789abcdef.old"
    for left in (["meta.json", "manifest.json", "dec_hidden.zarr/zarr.json"], ["meta.json"], []):
        write(tmp_path / "run", "old").rename(aside)
        for name in tree(aside).keys() - set(left):
            (aside / name).unlink()
        assert list_runs(tmp_path) == []
        with pytest.raises(RunError, match="No run folder"):
            OpenRun(tmp_path / "run")
        write(tmp_path / "run")
        assert [path.name for path in tmp_path.iterdir()] == ["run"], left
        shutil.rmtree(tmp_path / "run")


def test_folders_made_for_a_run_that_does_not_come_to_be_go(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_place(tmp_path / "some" / "where" / "run"):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("place", "said"), [("run/inner", "run is a run. Name a folder"), ("x" * 240, "too long a name")], ids=str
)
def test_no_run_is_built_where_it_could_not_be_replaced(place: str, said: str, tmp_path: Path) -> None:
    build_run(tmp_path / "run", DECODER)
    with pytest.raises((UsageError, RunExistsError), match=said):
        run_place(tmp_path / place)
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_the_root_is_no_place_for_a_run() -> None:
    with pytest.raises(RunExistsError, match=r"^/ cannot be a run\. Name a folder in it with --out_dir\.$"):
        run_place(Path("/"))
