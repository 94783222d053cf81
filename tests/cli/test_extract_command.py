"""`decision-traces extract` on the command line: its flags, its report, its one-line errors, its script."""

import re
import runpy
import sys
from pathlib import Path

import pytest
from support.encoder_decoders import save_tiny_encoder_decoder
from support.encoders import save_tiny_masked_encoder

from decision_traces import TraceStore
from decision_traces.cli import csqa_enc, extract, index, nexttok

ROOT = Path(__file__).parents[2]
SELECTING = ("--layers", "--heads", "--positions", "--capture", "--uncertified")


def exit_code(main, *argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    save_tiny_encoder_decoder(folder / "bart", "bart")
    save_tiny_masked_encoder(folder / "bert", "bert")
    (folder / "lines.csv").write_text("text,target\na line,eine Zeile\nanother line,noch eine Zeile\nx,y\n")
    return folder


def flags(place: Path, model: str, out: Path) -> list[str]:
    return ["--model_path", str(place / model), "--text_file", str(place / "lines.csv"), "--out_dir", str(out)]


@pytest.mark.parametrize(
    ("main", "own"),
    [
        (extract.main, ("--task", "--mask_prob", "--targets_file", "--target_column", "--dec_max_len", "--next_topk")),
        (nexttok.main, ("--text_file", "--all_positions")),
        (csqa_enc.main, ("--dataset",)),
    ],
)
def test_help_lists_the_flags(main, own: tuple[str, ...], capsys: pytest.CaptureFixture) -> None:
    assert exit_code(main, "--help") == 0
    said = capsys.readouterr().out
    assert all(flag in said for flag in (*own, *SELECTING))
    assert all(word in said for word in ("attn_out", "mlp_out", "head_out", "mlp_act", "logits"))


def test_help_of_index_lists_the_deep_flags(capsys: pytest.CaptureFixture) -> None:
    assert exit_code(index.main, "--help") == 0
    said = capsys.readouterr().out
    assert all(flag in said for flag in ("--validate", "--deep", "--rows", "--model_path", "--device"))


def test_an_encoder_decoder_is_extracted_checked_and_reported(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    out = tmp_path / "run"
    argv = [*flags(place, "bart", out), "--target_column", "target", "--capture", "attn", "hidden"]
    assert exit_code(extract.main, *argv) == 0
    printed = capsys.readouterr()
    assert f"Run: {out}" in printed.out and "certificate passed" in printed.out
    assert re.search(r"3 examples, .* 5 arrays, .* MB; .* tokens/s", printed.out)
    assert re.search(r"Next token: .* right, mean NLL .* nats, .* over 3 predictions", printed.out)
    assert f"Check it: decision-traces index {out} --validate" in printed.out
    assert TraceStore(out).meta["command"] == ["decision-traces", "extract", *argv]
    assert exit_code(index.main, str(out), "--validate", "--deep", "--rows", "2") == 0


def test_a_masked_run_is_reported(place: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    argv = [*flags(place, "bert", tmp_path / "run"), "--mask_prob", "0.5", "--capture", "hidden"]
    assert exit_code(extract.main, *argv) == 0
    n_masked = sum(map(len, TraceStore(tmp_path / "run").tokens["masked_pos"]))
    assert re.search(
        rf"Masked tokens: .* right, mean NLL .* nats, over {n_masked} masked tokens", capsys.readouterr().out
    )


def test_an_encoder_without_its_head_says_nothing_of_choices(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """The checkpoint of the masked model has no pooler; nothing that is traced comes from it."""
    argv = [*flags(place, "bert", tmp_path / "run"), "--task", "encode", "--capture", "hidden"]
    assert exit_code(extract.main, *argv) == 0
    printed = capsys.readouterr()
    assert "WARNING" not in printed.out + printed.err and "choice" not in printed.out + printed.err
    assert TraceStore(tmp_path / "run").meta["fresh_parameters"] == ["pooler.dense.bias", "pooler.dense.weight"]


@pytest.mark.parametrize(
    ("asked", "shape"),
    [
        (["--layers", "-1", "--heads", "0,2-3", "--positions", "last"], (3, 1, 3, 1, 14)),
        (["--layers", "0-1", "--heads=-1", "--positions", "1,3"], (3, 2, 1, 2, 14)),
    ],
)
def test_selections_are_read_as_typed(asked: list[str], shape: tuple, place: Path, tmp_path: Path) -> None:
    argv = [*flags(place, "bert", tmp_path / "run"), "--quiet", "--capture", "attn", *asked]
    assert exit_code(extract.main, *argv) == 0
    assert TraceStore(tmp_path / "run").arrays() == {"enc_self_attn": shape}


@pytest.mark.parametrize(
    ("model", "wrong", "words"),
    [
        ("bert", ["--target_column", "target"], "error: --target_column: means nothing for an encoder."),
        ("bart", ["--positions", "x"], "error: --positions x: give all, or positions (or all, next, last)"),
        ("bart", ["--layers", "9"], "error: --layers 9: there is no 9"),
        ("bart", ["--dec_max_len", "0"], "error: --dec_max_len 0: needs at least 1, or auto."),
    ],
)
def test_an_error_is_one_line(
    model: str, wrong: list[str], words: str, place: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert exit_code(extract.main, *flags(place, model, tmp_path / "run"), "--quiet", *wrong) == 1
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(words) and printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_the_documented_script_runs_from_a_clone(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    argv = [*flags(place, "bart", tmp_path / "run"), "--limit", "2", "--capture", "hidden"]
    monkeypatch.setattr(sys, "argv", ["extract_traces", *argv])
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("src.cli.extract_traces", run_name="__main__")
    assert not stopped.value.code
    assert TraceStore(tmp_path / "run").n == 2
    assert "certificate passed" in capsys.readouterr().out
