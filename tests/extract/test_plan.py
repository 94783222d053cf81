"""What --plan says beforehand is what a run then takes."""

import json
from pathlib import Path

import pytest

from decision_traces.cli import extract, nexttok
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token, next_token_job
from decision_traces.extract.progress import Silent
from decision_traces.extract.run import plan_job
from decision_traces.extract.texts import TextConfig, extract_texts, text_job

LINES = [f"Line {i} has {'many ' * (i % 9)}words." for i in range(30)] + ["", "x"]


@pytest.fixture
def flags(tiny_folder, tmp_path: Path):
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in LINES))
    return {"model_path": tiny_folder("gpt2"), "text_file": tmp_path / "lines.jsonl"}


def _taken(run: Path) -> tuple[int, int]:
    """Return the bytes of the arrays' files, each counted once, and the number of files."""
    files = [path for path in run.rglob("*") if path.is_file()]
    shards = {path.stat().st_ino: path.stat().st_size for path in files if "/c/" in path.as_posix()}
    return sum(shards.values()), len(files)


@pytest.mark.parametrize(
    "options",
    [
        {"capture": ("attn", "qkv", "hidden", "resid")},
        {"capture": ("hidden",), "dtype": "float32", "all_positions": True},
        {"capture": ("attn", "logits", "mlp_act"), "max_seq_len": 90},
        {"capture": ("attn", "hidden", "resid"), "layers": "1", "heads": "0,2"},
    ],
    ids=["everything", "float32", "wide", "some"],
)
@pytest.mark.parametrize("rows", [7, 32])
def test_bytes_and_files_are_those_of_the_run(flags, options, rows, tmp_path: Path, blocks_of, monkeypatch) -> None:
    """Where every example is a chunk of its own, to the byte but for the empty blocks at the ends."""
    monkeypatch.setattr("decision_traces.store.writing.layout.SMALL_CHUNK", 1)
    monkeypatch.setattr("decision_traces.extract.cost.SMALL_CHUNK", 1)
    blocks_of(rows)
    config = NextTokenConfig(model="tiny", out_dir=tmp_path / "run", **flags, **options)
    cost = plan_job(next_token_job(config), Silent())
    assert not (tmp_path / "run").exists() and not list(tmp_path.glob(".run*"))
    size, n_files = _taken(extract_next_token(config))
    assert n_files == cost.n_files
    assert size <= cost.total_bytes + 4 * n_files < 1.25 * size
    assert sum(added for _, added in cost.arrays.values()) == cost.total_bytes


def test_an_encoder_decoder_is_planned_by_side(tmp_path: Path) -> None:
    from support.encoder_decoders import save_tiny_encoder_decoder

    (tmp_path / "pairs.jsonl").write_text('{"text": "a b c d", "target": "e f"}\n{"text": "g", "target": "h i j"}\n')
    config = TextConfig(
        model="tiny",
        model_path=save_tiny_encoder_decoder(tmp_path / "t5", "t5"),
        text_file=tmp_path / "pairs.jsonl",
        target_column="target",
        capture=("attn", "qkv", "hidden", "resid"),
        dtype="float32",
        out_dir=tmp_path / "run",
    )
    cost = plan_job(text_job(config), Silent())
    size, n_files = _taken(extract_texts(config))
    assert n_files == cost.n_files
    assert size <= cost.total_bytes + 4 * n_files


def test_the_command_prints_it_and_stops(flags, tmp_path: Path, capsys) -> None:
    for command in (nexttok, extract):
        with pytest.raises(SystemExit) as stop:
            command.main(
                ["--model_path", str(flags["model_path"]), "--text_file", str(flags["text_file"]), "--plan", "--quiet",
                 "--out_dir", str(tmp_path / "run"), "--capture", "hidden", "resid"]
            )  # fmt: skip
        assert stop.value.code == 0
        said = " ".join(capsys.readouterr().out.split())
        assert "dec_res_embed 32 × 90 × 32 shared" in said or "dec_res_embed" in said
        assert "over 32 examples" in said and "bytes a token on disk" in said and "--resume redoes one at most" in said
        assert "judged by one batch" in said
    assert not (tmp_path / "run").exists()
