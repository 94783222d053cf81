"""`index --validate --deep`: the model once more against what was stored, and what only that can find."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import zarr
from support.encoder_decoders import save_tiny_encoder_decoder
from support.encoders import save_tiny_masked_encoder
from support.runs import copy_run, reseal
from transformers import AutoModelForCausalLM

from decision_traces import TraceStore
from decision_traces.analysis.replay import replay_rows
from decision_traces.cli import index
from decision_traces.errors import DamagedRunError, ModelError, UsageError
from decision_traces.extract.answer import AnswerConfig, extract_answers
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.store.validate.run import failures

pytestmark = pytest.mark.long  # minutes; the same ways are taken in part by other tests

CAPTURES = ("attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act")
LINES = ["The cat sat on the mat.", "a", "", "One more line of plain text."]
SAME = "stored equals recomputed"


def exit_code(*argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        index.main(list(argv))
    return int(stopped.value.code or 0)


@pytest.fixture(scope="module")
def runs(tiny_folder, tiny_encoder_folder, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """One run of each kind, each with every capture, made on first use."""
    place, made = tmp_path_factory.mktemp("deep"), {}
    (place / "lines.csv").write_text("text,target\n" + "".join(f'"{t}","{t[::-1]} x"\n' for t in LINES))

    def texts(kind: str, folder: Path, **options) -> Path:
        settings = {"capture": CAPTURES, "text_file": place / "lines.csv", "out_dir": place / kind, **options}
        return extract_texts(TextConfig(model="tiny", model_path=folder, **settings))

    def choices(kind: str, **options) -> Path:
        settings = {"capture": CAPTURES, "dataset": "tinyworld", "limit": 2, "out_dir": place / kind, **options}
        return extract_multiple_choice(
            MultipleChoiceConfig(model="tiny", model_path=tiny_encoder_folder("bert"), **settings)
        )

    def answers(kind: str) -> Path:
        asked = {"dataset": "tinyworld", "answers": "text", "limit": 2, "out_dir": place / kind}
        return extract_answers(AnswerConfig(model="demo", capture=CAPTURES, **asked))

    some = {"layers": "0,2", "heads": "1,2", "positions": "0,5"}
    makers = {
        "decoder": lambda: texts("decoder", tiny_folder("llama"), capture=(*CAPTURES, "logits"), dtype="float32"),
        "half": lambda: texts("half", tiny_folder("gpt2")),
        "fused": lambda: texts("fused", tiny_folder("llama"), capture=("qkv", "hidden")),
        "selected": lambda: texts("selected", tiny_folder("llama"), dtype="float32", **some),
        "next": lambda: texts("next", tiny_folder("gpt_neox"), positions="next"),
        "pairs": lambda: texts(
            "pairs", save_tiny_encoder_decoder(place / "t5", "t5"), target_column="target", dtype="float32"
        ),
        "pairs_next": lambda: texts(
            "pairs_next", save_tiny_encoder_decoder(place / "bart", "bart"), target_column="target", positions="next"
        ),
        "masked": lambda: texts("masked", save_tiny_masked_encoder(place / "masked_bert", "bert"), dtype="float32"),
        "encode": lambda: texts(
            "encode", save_tiny_masked_encoder(place / "bert", "bert"), task="encode", positions="last"
        ),
        "choices": lambda: choices("choices", dtype="float32"),
        "choices_last": lambda: choices("choices_last", layers="1", positions="last"),
        "answers": lambda: answers("answers"),
    }

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = makers[kind]()
        return made[kind]

    get.kinds = tuple(makers)
    return get


KINDS = (
    "decoder", "half", "fused", "selected", "next", "pairs", "pairs_next", "masked", "encode", "choices",
    "choices_last", "answers",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_an_honest_run_of_every_kind_passes(kind: str, runs) -> None:
    store = TraceStore(runs(kind))
    checks = list(replay_rows(store, 4))
    assert [c.name for c in checks] == ["weights are those of the run", *[SAME] * len(store.arrays())]
    assert [c.array for c in checks[1:]] == list(store.arrays())
    assert not failures(checks)


def test_every_kind_is_tried(runs) -> None:
    assert runs.kinds == KINDS


def test_the_command_reports_the_deep_checks_with_the_others(runs, capsys: pytest.CaptureFixture) -> None:
    assert exit_code(str(runs("decoder")), "--validate", "--deep", "--rows", "2") == 0
    said = capsys.readouterr().out
    assert SAME in said and "weights are those of the run" in said
    assert "2 rows run alone" in " ".join(said.replace("│", " ").replace("┃", " ").split())
    assert re.search(r"All \d+ checks hold: 4 examples", said)


def turned(source: Path, target: Path, path: str, row: int, layer: int | None = None) -> Path:
    """A copy of a run in which the values of one example in one array have the other sign, and all digests are right.

    What is turned keeps its largest size, its zeros and its finiteness.
    """
    run = copy_run(source, target)
    group, key = path.split("/")
    array = zarr.open_group(run / group, mode="r+")[key]
    at = (row,) if layer is None else (row, layer)
    array[at] = -np.asarray(array[at])
    reseal(run)
    return run


@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        ("decoder", "dec_self_q", "dec_self_qkv.zarr/q"),
        ("decoder", "dec_mlp_act", "dec_mlp_act.zarr/x"),
        ("selected", "dec_self_v", "dec_self_qkv.zarr/v"),
        ("pairs", "dec_cross_k", "dec_cross_qkv.zarr/k"),
        ("choices", "enc_mc_q", "enc_mc_qkv.zarr/q"),
    ],
)
def test_values_that_were_replaced_with_their_digests_are_found_by_the_model_alone(
    kind: str, name: str, path: str, runs, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    forged = turned(runs(kind), tmp_path / "run", path, row=0)
    assert exit_code(str(forged), "--validate", "--quiet") == 0
    capsys.readouterr()
    assert exit_code(str(forged), "--validate", "--deep", "--rows", "8", "--quiet") == 1
    said = capsys.readouterr().out
    example = TraceStore(forged).example_id(0)
    assert f"FAIL {SAME}: {name}: {example}" in said
    assert re.search(r"\n1 of \d+ checks FAILED\n", said)


def test_one_layer_of_one_row_is_enough(runs, tmp_path: Path) -> None:
    forged = turned(runs("decoder"), tmp_path / "run", "dec_self_qkv.zarr/k", row=3, layer=1)
    failed = failures(list(replay_rows(TraceStore(forged), 4)))
    assert [(c.name, c.array) for c in failed] == [(SAME, "dec_self_k")]
    assert failed[0].where == TraceStore(forged).example_id(3)


def test_rows_are_a_sample_and_the_same_each_time(runs, tmp_path: Path) -> None:
    forged = turned(runs("decoder"), tmp_path / "run", "dec_self_qkv.zarr/q", row=0)
    found = [bool(failures(list(replay_rows(TraceStore(forged), 1, seed=s)))) for s in (0, 0, 1, 1, 2, 2, 3, 3)]
    assert found[::2] == found[1::2]
    assert True in found and False in found


def test_other_weights_are_one_clear_error(runs, tiny_folder, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_folder("llama"), other)
    model = AutoModelForCausalLM.from_pretrained(other)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[0, 0] += 1e-4
    model.save_pretrained(other)
    with pytest.raises(ModelError, match=r"are not those the run was made with \(their digests differ\)"):
        list(replay_rows(TraceStore(runs("decoder")), 2, model_path=other))
    assert exit_code(str(runs("decoder")), "--validate", "--deep", "--model_path", str(other)) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: The weights of") and said.count("\n") == 1


def test_a_moved_model_is_found_by_the_flag(runs, tiny_folder, tmp_path: Path) -> None:
    shutil.copytree(tiny_folder("llama"), tmp_path / "moved")
    assert exit_code(
        str(runs("decoder")), "--validate", "--deep", "--rows", "1", "--model_path", str(tmp_path / "moved"), "--quiet"
    ) == 0  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--deep"], "--deep goes with --validate."),
        (["--validate", "--deep", "--rows", "0"], "--rows 0: needs at least 1"),
    ],
)
def test_deep_asked_for_wrongly_is_one_sentence(
    flags: list[str], words: str, runs, capsys: pytest.CaptureFixture
) -> None:
    assert exit_code(str(runs("decoder")), *flags) == 1
    assert capsys.readouterr().err.startswith(f"error: {words}")


def test_no_rows_are_refused_by_the_library(runs) -> None:
    with pytest.raises(UsageError, match="--rows 0"):
        list(replay_rows(TraceStore(runs("decoder")), 0))


def test_an_older_table_without_types_needs_the_tokenizer_that_it_was_made_with(
    runs, tiny_encoder_folder, tmp_path: Path
) -> None:
    older, other = copy_run(runs("choices"), tmp_path / "older"), tmp_path / "other"
    table = pq.read_table(older / "tokens.parquet")
    pq.write_table(table.drop_columns("token_type_ids"), older / "tokens.parquet")
    reseal(older)
    shutil.copytree(tiny_encoder_folder("bert"), other)
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace('"add_prefix_space": false', '"add_prefix_space": true', 1))
    assert all(check.ok for check in replay_rows(TraceStore(older), 1, model_path=tiny_encoder_folder("bert")))
    with pytest.raises(DamagedRunError, match=r"the tokens of tinyworld-validation-000\d+-\w+ are not what"):
        list(replay_rows(TraceStore(older), 1, model_path=other))
