import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dev.golden_runs.__main__ import main

META = {"run_id": "a", "time": "noon", "timings": {"load_s": 1.5}, "sides": {"dec": {"layers": [0, 2]}}, "digest": "d1"}
INDEX = {"bytes_on_disk": 700, "validation": {"time": "noon", "checks": 3}, "digest": "d2"}


@pytest.fixture
def compare(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> Callable[..., tuple[int, list[str]]]:
    """Return a function that compares a run with a changed one: its code, and the lines that it prints."""

    def call(change: Callable[[Path], object], *flags: str) -> tuple[int, list[str]]:
        for name in ("before", "after"):
            run = tmp_path / name / "next_token"
            (run / "x.zarr").mkdir(parents=True)
            (run / "meta.json").write_text(json.dumps(META))
            (run / "index.json").write_text(json.dumps(INDEX))
            (run / "x.zarr" / "c0").write_bytes(bytes(range(100)))
            (tmp_path / name / "pairs.jsonl").write_text("{}\n")
        change(tmp_path / "after" / "next_token")
        argv = ["golden_runs", "compare", str(tmp_path / "before"), str(tmp_path / "after"), *flags]
        monkeypatch.setattr(sys, "argv", argv)
        return main(), capsys.readouterr().out.splitlines()

    return call


def rewrite(name: str, **fields) -> Callable[[Path], object]:
    return lambda run: (run / name).write_text(json.dumps({**json.loads((run / name).read_text()), **fields}))


def flip_byte(run: Path) -> None:
    path = run / "x.zarr" / "c0"
    path.write_bytes(path.read_bytes()[:41] + b"\xff" + path.read_bytes()[42:])


@pytest.mark.parametrize(
    "change",
    [
        lambda run: None,
        rewrite("meta.json", time="one", timings={"load_s": 2.0, "read_s": 1}, digest="d3"),
        rewrite("index.json", bytes_on_disk=701, validation={"time": "one", "checks": 3}, digest="d3"),
    ],
)
def test_what_two_makes_need_not_share_is_no_difference(compare: Callable, change: Callable) -> None:
    assert compare(change) == (0, ["next_token: identical", "pairs.jsonl: identical"])


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (flip_byte, "x.zarr/c0: bytes differ from 41 on (100 | 100 bytes)"),
        (lambda run: (run / "x.zarr" / "c0").write_bytes(b"\0\1"), "x.zarr/c0: bytes differ from 2 on (100 | 2 bytes)"),
        (lambda run: (run / "x.zarr" / "c0").unlink(), "x.zarr/c0: not in the second folder"),
        (lambda run: (run / "new.parquet").touch(), "new.parquet: not in the first folder"),
        (lambda run: (run / "meta.json").write_bytes(b"?"), "meta.json: bytes differ from 0 on (113 | 1 bytes)"),
        (lambda run: (run / "meta.json").write_text(json.dumps(META, indent=1)), "meta.json: bytes differ from 1 on"),
        (rewrite("meta.json", sides={"dec": {"layers": [0, 1]}}), "meta.json: sides.dec.layers[1]: 2 | 1"),
        (rewrite("meta.json", sides={"dec": {"layers": [0.0, 2]}}), "meta.json: sides.dec.layers[0]: 0 | 0.0"),
        (rewrite("meta.json", sides={"dec": {"layers": [0]}}), "meta.json: sides.dec.layers: 2 | 1 entries"),
        (rewrite("meta.json", seed=0), "meta.json: seed: not in the first folder"),
        (rewrite("index.json", validation={"time": "one", "checks": 4}), "index.json: validation.checks: 3 | 4"),
        (rewrite("index.json", validation={"checks": 3, "time": "one"}), "index.json: validation: fields in another"),
    ],
)
def test_a_difference_is_named_with_its_file_and_place(compare: Callable, change: Callable, line: str) -> None:
    code, lines = compare(change)
    assert (code, lines[0], lines[2:]) == (1, "next_token: 1 difference", ["pairs.jsonl: identical"])
    assert lines[1].startswith(f"  next_token/{line}")


@pytest.mark.parametrize("pattern", ["*/meta.json", "*/meta.json:sides.*", "next_token/*"])
def test_what_is_meant_to_differ_is_ignored_and_nothing_else(compare: Callable, pattern: str) -> None:
    change = rewrite("meta.json", sides={"dec": {"layers": [1, 2]}})
    assert compare(change, "--ignore", "nothing", pattern) == (0, ["next_token: identical", "pairs.jsonl: identical"])


def test_a_difference_beside_the_ignored_one_stays(compare: Callable) -> None:
    code, lines = compare(rewrite("meta.json", seed=0, run_id="b"), "--ignore", "*:seed")
    assert (code, lines[1]) == (1, '  next_token/meta.json: run_id: "a" | "b"')


def test_two_folders_without_files_are_not_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(sys, "argv", ["golden_runs", "compare", str(tmp_path), str(tmp_path)])
    assert main() == 1
    assert capsys.readouterr().err == f"error: {tmp_path} holds no files.\n"
