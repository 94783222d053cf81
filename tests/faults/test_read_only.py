"""Analyses of a run that can only be read: a sentence that names `--out`, and results that are taken from there."""

import subprocess
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fastapi.testclient import TestClient

from decision_traces.cli import attention, attribution, compare, index, lens
from decision_traces.errors import UsageError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.page.app import create_app
from decision_traces.page.runs import opened

CAPTURES = ("attn", "qkv", "hidden", "resid")


@pytest.fixture
def run(tmpfs) -> Path:
    """A run of the embedded model on a disk that was made read-only afterwards."""
    disk = tmpfs("size=32m")
    made = extract_next_token(
        NextTokenConfig(model="demo", dataset="tinyworld", limit=8, capture=CAPTURES, out_dir=disk / "run")
    )
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    return made


def code(main, *words: str | Path) -> int:
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    return int(ended.value.code or 0)


@pytest.mark.parametrize("command", [lens, attribution, attention, compare], ids=lambda c: c.__name__.split(".")[-1])
def test_without_out_it_is_one_sentence(command, run: Path, capsys: pytest.CaptureFixture) -> None:
    assert code(command.main, run) == 1
    told = capsys.readouterr()
    assert "read-only" in told.err and "--out DIR" in told.err and "Traceback" not in told.err
    assert told.out == ""  # nothing was computed first


def test_results_kept_elsewhere_go_with_the_run(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out, before = tmp_path / "kept" / "results", sorted(run.rglob("*"))
    for command in (lens, attribution):
        assert code(command.main, run, "--all_positions", "--out", out) == 0
    assert f"Written: {out / 'lens' / 'lens.parquet'}" in capsys.readouterr().out.replace("\n", "")
    assert sorted(p.name for p in out.iterdir()) == ["attribution", "lens"] and sorted(run.rglob("*")) == before
    assert len(pd.read_parquet(out / "lens" / "depth.parquet")) == 8

    assert code(index.main, run, "--validate", "--results", out) == 0
    (page,) = opened([run], [out])
    ask = TestClient(create_app([page]), base_url="http://127.0.0.1")
    meta = ask.get(f"/api/{page.key}/meta.json").json()
    assert meta["missing"] == {}
    snippet = ask.get(f"/api/{page.key}/e/0/lens.json").json()["python"]["lens"]
    pasted: dict[str, Any] = {"stat": "entropy"}
    exec("\n".join([meta["python"], *snippet.splitlines()[:-1]]), pasted)
    assert pasted["st"].results.folder == out and pasted["grid"]["entropy"].shape[0] == 8

    depth = out / "lens" / "depth.parquet"
    depth.write_bytes(depth.read_bytes()[:-1])
    assert code(index.main, run, "--validate", "--results", out, "--quiet") == 1
    (damaged,) = opened([run], [out])
    assert damaged.problem("lens").command == f"decision-traces lens {run} --out {out}"


def test_results_of_another_run_are_refused(run: Path, tmp_path: Path) -> None:
    other = extract_next_token(
        NextTokenConfig(model="demo", dataset="tinyworld", limit=4, capture=CAPTURES, out_dir=tmp_path / "other")
    )
    out = tmp_path / "results"
    assert code(attention.main, other, "--out", out, "--quiet") == 0
    with pytest.raises(UsageError, match=r"--results .*results: made from another run than"):
        opened([run], [out])
    (tmp_path / "nothing").mkdir()
    with pytest.raises(UsageError, match=r"--results .*nothing: no result lies there"):
        opened([run], [tmp_path / "nothing"])
    pair = opened([run, other], [out])
    assert [page.result("attention") is not None for page in pair] == [False, True]
