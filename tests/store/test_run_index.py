"""index.json, the list of runs, and the two commands."""

import json
import re
import runpy
import sys

import pytest
from rich.console import Console
from support.runs import DECODER, build_run, copy_run

from decision_traces.cli import index as index_command
from decision_traces.cli import ls as ls_command
from decision_traces.errors import DamagedRunError
from decision_traces.store.files.runs import list_runs
from decision_traces.store.validate.index import index_run

SHARD = "dec_hidden.zarr/h/c/1/3/0/0"


@pytest.fixture
def run(tmp_path, decoder):
    return copy_run(decoder.folder, tmp_path / "traces" / "some_run")


def damage(folder):
    raw = bytearray((folder / SHARD).read_bytes())
    raw[2] ^= 8
    (folder / SHARD).write_bytes(raw)


def test_the_index_says_what_the_run_holds(run, decoder):
    index = index_run(run)
    written = json.loads((run / "index.json").read_text())
    assert index.valid is None
    assert written["validation"] is None
    assert written["n_examples"] == 5
    assert "next_entropy" in written["columns"]
    hidden = next(a for a in written["arrays"] if a["name"] == "dec_hidden")
    sizes = [p.stat().st_size for p in (run / "dec_hidden.zarr/h/c").rglob("*") if p.is_file()]
    assert hidden["shape"] == [5, 4, 6, 8]
    assert hidden["dims"] == ["example", "depth", "position", "d_model"]
    assert (hidden["files"], hidden["bytes_on_disk"]) == (12, sum(sizes))
    assert hidden["nominal_bytes"] == 5 * 4 * 6 * 8 * 2 == decoder.arrays["dec_hidden"].nbytes


def test_hard_links_count_once_in_the_whole(tmp_path, decoder):
    linked = tmp_path / "linked"
    build_run(linked, DECODER)
    copied = copy_run(decoder.folder, tmp_path / "copied")
    sizes = [p.stat().st_size for p in copied.rglob("*") if p.is_file()]
    assert index_run(copied).bytes_on_disk == sum(sizes)
    assert index_run(linked).bytes_on_disk < sum(sizes)


def test_the_index_keeps_the_validation(run):
    assert index_run(run, validate=True).valid is True
    written = json.loads((run / "index.json").read_text())["validation"]
    assert (written["ok"], written["failed"]) == (True, [])
    damage(run)
    assert index_run(run, validate=True).valid is False
    written = json.loads((run / "index.json").read_text())["validation"]
    assert written["ok"] is False
    assert any(SHARD in f["where"] for f in written["failed"])


def test_without_validation_damage_that_is_met_is_an_error(run):
    (run / "dec_hidden.zarr/h/zarr.json").write_text("{")
    with pytest.raises(DamagedRunError, match=r"zarr\.json is damaged"):
        index_run(run)
    assert index_run(run, validate=True).valid is False


def test_runs_are_listed_newest_first(tmp_path):
    assert list_runs(tmp_path / "none") == []
    for name, when in (
        ("one", "2026-01-01T10:00:00"),
        ("two", "2026-03-01T10:00:00+02:00"),
        ("three", "2026-02-01T10:00:00"),
    ):
        (tmp_path / name).mkdir()
        meta = {
            "run_id": name,
            "model": "m",
            "dataset": "d",
            "split": "s",
            "n_examples": 3,
            "capture": ["attn"],
            "time": when,
        }
        (tmp_path / name / "meta.json").write_text(json.dumps(meta))
        (tmp_path / name / "tokens.parquet").touch()
    (tmp_path / "no_run").mkdir()
    (tmp_path / "of_something_else").mkdir()
    (tmp_path / "of_something_else" / "meta.json").write_text("{}")
    (tmp_path / "a_file").write_text("x")
    runs = list_runs(tmp_path)
    assert [r.run_id for r in runs] == ["two", "three", "one"]
    assert (runs[0].dataset, runs[0].n_examples, runs[0].capture, runs[0].state) == ("d/s", 3, ("attn",), "complete")
    (tmp_path / ".four.partial").mkdir()
    (tmp_path / "one" / "meta.json").write_text("{")
    assert {r.run_id: r.state for r in list_runs(tmp_path)} == {
        "two": "complete",
        "three": "complete",
        "one": "damaged",
        "four": "partial",
    }


def call(main, argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    out = capsys.readouterr()
    return stop.value.code or 0, out.out, out.err


def test_the_command_prints_a_table_and_exits_with_0(run, capsys):
    code, out, _ = call(index_command.main, [str(run), "--validate"], capsys)
    assert code == 0
    assert "attention rows sum to 1" in out
    assert "pre_attn[l+1] == post_mlp[l]" in out
    assert re.search(r"All \d+ checks hold: 5 examples", out)
    assert max(len(line) for line in out.splitlines()) <= 120


def test_the_command_names_the_failure_and_exits_with_1(run, capsys):
    damage(run)
    code, out, _ = call(index_command.main, [str(run), "--validate"], capsys)
    assert code == 1
    line = next(x for x in out.splitlines() if x.startswith("FAIL chunks decode"))
    for part in ("dec_hidden", "example tiny-validation-000002", "row 2, depth 3", SHARD):
        assert part in line


def test_without_validate_it_only_indexes(run, capsys):
    damage(run)
    code, out, _ = call(index_command.main, [str(run)], capsys)
    assert (code, "Add --validate" in out) == (0, True)


def test_a_missing_run_is_one_sentence(tmp_path, capsys):
    code, _, err = call(index_command.main, [str(tmp_path / "no"), "--validate"], capsys)
    assert code == 1
    assert err.startswith("error: No run folder at")


def test_quiet_prints_no_tables(run):
    console = Console(record=True, width=120, file=None, quiet=False)
    with console.capture() as capture:
        assert index_command.run(index_command.IndexCommand(run, validate=True, quiet=True), console) == 0
    assert len(capture.get().splitlines()) == 1


def test_the_documented_entry_point_takes_backslashes(run, monkeypatch, capsys):
    monkeypatch.chdir(run.parent.parent)
    monkeypatch.setattr(sys, "argv", ["index_traces", "traces\\some_run", "--validate"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("src.cli.index_traces", run_name="__main__")
    assert not stop.value.code
    assert "checks hold" in capsys.readouterr().out
    assert (run / "index.json").is_file()


def test_ls(run, capsys):
    code, out, _ = call(ls_command.main, [str(run.parent)], capsys)
    assert code == 0
    for part in ("complete", "tiny/validation", "attn qkv hidden resid"):
        assert part in out
    code, _, err = call(ls_command.main, [str(run / "nowhere")], capsys)
    assert code == 1
    assert "No folder" in err
