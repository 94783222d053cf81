"""`lens` and `attribution` in-process: what they print, what they leave in the run, and what they refuse."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from decision_traces.analysis import writing
from decision_traces.cli import attribution, lens
from decision_traces.extract.answer import AnswerConfig, extract_answers
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.validate.run import failures, validate_run

ROOT = Path(__file__).parents[2]

CAPTURES = ("attn", "qkv", "hidden", "resid")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("lens") / "run"
    return extract_next_token(
        NextTokenConfig(model="demo", dataset="tinyworld", limit=20, capture=CAPTURES, out_dir=out)
    )


def _exit_code(main, *argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    return int(stopped.value.code or 0)


def test_lens_prints_tables_and_leaves_files(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert _exit_code(lens.main, str(run), "--top_k", "3", "--device", "cpu") == 0
    printed = capsys.readouterr()
    for part in ("If the model ended here", "│ embedding", "│ attention 4", "│ layer 4", "Right against wrong"):
        assert part in printed.out
    assert printed.err == ""
    frame = pd.read_parquet(run / "analysis" / "lens" / "lens.parquet")
    assert frame.groupby("stage", observed=True).size().to_dict() == {"hidden": 20 * 6, "post_attn": 20 * 5}
    assert frame["topk_ids"].map(len).unique().tolist() == [3]
    assert len(pd.read_parquet(run / "analysis" / "lens" / "depth.parquet")) == 20
    assert (run / "analysis" / "lens" / "lens_trajectories.png").stat().st_size > 10_000
    assert failures(validate_run(run)) == []


def test_small_portions_give_the_same_files(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for main, name in ((lens.main, "lens"), (attribution.main, "attribution")):
        assert _exit_code(main, str(run), "--quiet") == 0
        path = run / "analysis" / name / f"{name}.parquet"
        whole = pd.read_parquet(path)
        monkeypatch.setattr(writing, "_EXAMPLES", 7)
        assert _exit_code(main, str(run), "--quiet") == 0
        monkeypatch.undo()
        pd.testing.assert_frame_equal(pd.read_parquet(path), whole)
        assert pq.ParquetFile(path).num_row_groups > 2


def test_attribution_prints_tables_and_leaves_files(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert _exit_code(attribution.main, str(run), "--top_k", "2") == 0
    printed = capsys.readouterr().out
    for part in ("│ MLP 4", "│ logit difference", "Heads that push most", "Parts sum to the model's logit difference"):
        assert part in printed
    frame = pd.read_parquet(run / "analysis" / "attribution" / "attribution.parquet")
    assert frame["part"].value_counts().to_dict() == {
        "head": 20 * 5 * 4, "attn": 100, "mlp": 100, "attn_bias": 100, "embed": 20, "remainder": 20,
    }  # fmt: skip
    assert (run / "analysis" / "attribution" / "attribution.png").stat().st_size > 10_000
    assert failures(validate_run(run)) == []


def test_quiet_prints_nothing(run: Path, capsys: pytest.CaptureFixture) -> None:
    assert _exit_code(lens.main, str(run), "--quiet") == 0
    assert _exit_code(attribution.main, str(run), "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_questions_race(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = extract_answers(AnswerConfig(model="demo", dataset="tinyworld", limit=8, out_dir=tmp_path / "run"))
    assert _exit_code(lens.main, str(folder)) == 0
    assert "among the answers" in capsys.readouterr().out
    assert len(pd.read_parquet(folder / "analysis" / "lens" / "choice_race.parquet")) == 8 * 6 * 5
    assert (folder / "analysis" / "lens" / "choice_race.png").is_file()
    assert _exit_code(attribution.main, str(folder)) == 0  # captured hidden and resid alone
    assert "not split by head: that needs --capture head_out, or attn qkv" in capsys.readouterr().out


def test_what_cannot_be_done_is_one_line(run: Path, tiny_folder, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = str(tiny_folder("llama"))
    for main in (lens.main, attribution.main):
        assert _exit_code(main, str(run), "--model_path", other) == 1
        assert "not those the run was made with" in capsys.readouterr().err
        assert _exit_code(main, str(tmp_path / "none")) == 1
        assert capsys.readouterr().err.startswith("error: No run folder at")
    assert _exit_code(lens.main, str(run), "--top_k", "0") == 1
    assert capsys.readouterr().err == "error: --top_k 0: needs at least 1.\n"
    assert _exit_code(attribution.main, str(run), "--top_k", "-5") == 1
    assert capsys.readouterr().err == "error: --top_k -5: needs at least 1.\n"


@pytest.mark.parametrize("script", ["lens_traces", "attribution_traces"])
def test_the_scripts_run_from_a_clone(script: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"src.cli.{script}", "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and "--model_path" in done.stdout, done.stderr
