"""Workflow C on tiny encoders of every family: what is on disk equals plain transformers on each choice alone."""

import shutil
import warnings
from pathlib import Path

import numpy as np
import plain
import plain_encoders
import pyarrow.parquet as pq
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from support.encoders import ENCODERS, save_tiny_encoder

from decision_traces import TraceStore
from decision_traces.cli import compare, index
from decision_traces.data import tinyworld
from decision_traces.errors import ModelError, RandomHeadWarning, UsageError
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.store.files.runs import list_runs
from decision_traces.store.validate.run import failures, validate_run
from decision_traces.tasks.multiple_choice import CHOICE_COLUMNS, CHOICE_TOKEN_COLUMNS

CAPTURES = ("attn", "qkv", "hidden", "resid")
N = 5


def run(folder: Path, out: Path, **options) -> TraceStore:
    settings = {"dataset": "tinyworld", "limit": N, "capture": CAPTURES, "dtype": "float32", "batch_size": 2, **options}
    return TraceStore(
        extract_multiple_choice(MultipleChoiceConfig(model="tiny", model_path=folder, out_dir=out, **settings))
    )


def questions() -> list:
    return list(tinyworld.questions("validation", N))


def test_every_family_has_its_independent_account() -> None:
    assert set(plain_encoders.PLACES) == set(ENCODERS)


@pytest.mark.parametrize("family", ENCODERS)
def test_every_tensor_equals_the_choice_alone(family: str, tiny_encoder_folder, tmp_path: Path) -> None:
    folder = tiny_encoder_folder(family)
    store, (model, tokenizer) = run(folder, tmp_path / "run"), plain_encoders.load(folder)
    assert not failures(validate_run(store.run_dir))
    for row, question in enumerate(questions()):
        scores = []
        for c, choice in enumerate(question.fields["choices"]):
            expected = plain_encoders.run_choice(model, tokenizer, family, question.fields["question"], choice)
            length = expected.hidden.shape[1]
            assert store.n_tokens(row)[c] == length
            found = {
                "attn": store.mcq_attn(row, c, trim=True),
                "hidden": store.mcq_hidden(row, c, trim=True),
                **{s: store.mcq_resid(row, c, stage=s, trim=True) for s in ("pre_attn", "post_attn", "post_mlp")},
            }
            for name, stored in found.items():
                assert plain.worst_difference(stored, getattr(expected, name)) < 2e-5, (name, row, c)
            assert plain.worst_difference(store.mcq_resid_embed(row, c, trim=True), expected.pre_attn[0]) < 2e-5
            for which, values in expected.qkv.items():
                assert plain.worst_difference(store.mcq_qkv(row, c, which=which, trim=True), values) < 2e-5, which
            assert not store.mcq_hidden(row, c)[:, length:].any()
            scores.append(expected.score)
        outcome = store.tokens.iloc[row]
        np.testing.assert_allclose(outcome["choice_logits"], scores, atol=2e-5)
        np.testing.assert_allclose(outcome["choice_probs"], np.exp(scores) / np.exp(scores).sum(), atol=2e-5)
        assert outcome["pred_idx"] == int(np.argmax(scores))
        assert outcome["pred_label"] == "ABCDE"[int(np.argmax(scores))]
        right = "ABCDE".index(question.fields["answerKey"])
        assert outcome["label_idx"] == right
        assert outcome["is_correct"] == (int(np.argmax(scores)) == right)


@pytest.mark.parametrize("family", ["roberta", "deberta_v2", "modernbert"])
def test_without_attention_the_numbers_are_the_same(family: str, tiny_encoder_folder, tmp_path: Path) -> None:
    """SDPA computes in another order: equal within rounding."""
    folder = tiny_encoder_folder(family)
    every = run(folder, tmp_path / "every")
    some = run(folder, tmp_path / "some", capture=("hidden", "qkv"))
    assert plain.worst_difference(some.mcq_hidden(1, 2), every.mcq_hidden(1, 2)) < 2e-5
    assert plain.worst_difference(some.mcq_qkv(1, 2, which="k"), every.mcq_qkv(1, 2, which="k")) < 2e-5


def test_tables_shapes_and_meta(tiny_encoder_folder, tmp_path: Path) -> None:
    store = run(tiny_encoder_folder("bert"), tmp_path / "run", max_seq_len=50)
    names = pq.read_schema(store.run_dir / "tokens.parquet").names
    assert names == [c.name for c in (*CHOICE_TOKEN_COLUMNS, *CHOICE_COLUMNS)]
    assert {name: shape for name, shape in store.arrays().items() if name in {"enc_mc_attn", "enc_mc_hidden"}} == {
        "enc_mc_attn": (N, 5, 3, 4, 50, 50),
        "enc_mc_hidden": (N, 5, 4, 50, 32),
    }
    assert (store.arch, store.n_choices, store.meta["objective"]) == ("enc", 5, "multiple_choice")
    assert store.meta["choice_accuracy"] == store.tokens["is_correct"].mean()
    assert store.meta["fresh_parameters"] == []
    assert store.meta["conventions"]["post_attn"].startswith("after the attention LayerNorm")
    assert "next_pos" not in store.meta["conventions"]
    row = store.tokens.iloc[0]
    assert row["text"] == row["question"] == questions()[0].fields["question"]
    spans = [row["offset_mapping"][1][i] for i in np.flatnonzero(row["sequence_ids"][1] == 1)]
    assert row["choice_texts"][1] == "".join(row["choice_texts"][1][a:b] for a, b in spans)


def test_token_types_reach_the_model(tiny_encoder_folder, tmp_path: Path) -> None:
    """Scores by plain transformers differ with and without them, and ours are those with."""
    folder = tiny_encoder_folder("bert")
    model, tokenizer = plain_encoders.load(folder)
    question = questions()[0].fields
    pair = tokenizer(question["question"], question["choices"][0], return_tensors="pt")
    with torch.no_grad():
        told, untold = (
            float(model(**{k: v[:, None] for k, v in pair.items() if k != left_out}).logits)
            for left_out in ("", "token_type_ids")
        )
    assert abs(told - untold) > 1e-3
    stored = run(folder, tmp_path / "run", capture=("hidden",)).tokens["choice_logits"][0][0]
    assert stored == pytest.approx(told, abs=1e-5)


def test_a_new_head_is_said_wherever_the_run_is_opened(
    tiny_encoder_folder, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = tmp_path / "headless"
    shutil.copytree(tiny_encoder_folder("roberta"), folder)
    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if "classifier" not in k}, folder / "model.safetensors", {"format": "pt"}
    )

    class Told:
        lines: list[str] = []  # noqa: RUF012

        def say(self, message: str) -> None:
            self.lines.append(message)

        def start(self, n_examples: int, n_tokens: int) -> None: ...
        def advance(self, n_examples: int, n_tokens: int) -> None: ...
        def written(self, n_bytes: int) -> None: ...
        def finish(self) -> None: ...

    config = MultipleChoiceConfig(
        model_path=folder, dataset="tinyworld", limit=6, capture=("hidden",), out_dir=tmp_path / "run"
    )
    made = extract_multiple_choice(config, Told())
    with pytest.warns(
        RandomHeadWarning, match=r"classifier.bias, classifier.weight\), and its predictions mean nothing"
    ):
        store = TraceStore(made)
    meta = store.meta
    assert repr(store).endswith("captured hidden, RANDOM HEAD)")
    assert [(run.state, run.complete) for run in list_runs(tmp_path) if run.run_id == "run"] == [("random head", True)]
    said = "The multiple-choice head of this run was not in the checkpoint"
    for main, words in ((index.main, (str(made),)), (compare.main, (str(made), "--n_boot", "5"))):
        with pytest.raises(SystemExit) as stopped, warnings.catch_warnings():
            warnings.simplefilter("ignore", RandomHeadWarning)
            main(list(words))
        assert stopped.value.code == 0 and said in capsys.readouterr().out
    assert meta["fresh_parameters"] == ["classifier.bias", "classifier.weight"]
    assert any("WARNING" in line and "classifier.weight" in line for line in Told.lines)


def test_a_body_without_weights_is_refused(tiny_encoder_folder, tmp_path: Path) -> None:
    folder = tmp_path / "hollow"
    shutil.copytree(tiny_encoder_folder("roberta"), folder)
    weights = load_file(folder / "model.safetensors")
    kept = {k: v for k, v in weights.items() if "layer.1.attention.self.key" not in k}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks 2 of the model's weights"):
        run(folder, tmp_path / "run")


def test_a_decoder_is_refused(tiny_folder, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"not an encoder with a multiple-choice head: model type 'gpt2'"):
        run(tiny_folder("gpt2"), tmp_path / "run")


def test_positions_end_where_robertas_table_does(tiny_encoder_folder, tmp_path: Path) -> None:
    """RoBERTa counts positions from behind its padding index, so a table of 96 with padding index 0 serves 95."""
    with pytest.raises(UsageError, match=r"built for 95 tokens"):
        run(tiny_encoder_folder("roberta"), tmp_path / "run", max_seq_len=96)
    assert run(tiny_encoder_folder("roberta"), tmp_path / "run", max_seq_len=95, capture=("hidden",)).T == 95


def test_long_pairs_are_cut_and_counted(tiny_encoder_folder, tmp_path: Path) -> None:
    store = run(tiny_encoder_folder("bert"), tmp_path / "run", max_seq_len=24, capture=("hidden",))
    lengths = [
        len(hf.AutoTokenizer.from_pretrained(tiny_encoder_folder("bert"))(q.fields["question"], c)["input_ids"])
        for q in questions()
        for c in q.fields["choices"]
    ]
    assert store.meta["n_truncated"] == sum(n > 24 for n in lengths) > 0
    assert [bool(t) for row in store.tokens["truncated"] for t in row] == [n > 24 for n in lengths]


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    tiny_encoder_folder, tmp_path: Path, monkeypatch, blocks_of
) -> None:
    blocks_of(2)
    folder, options = tiny_encoder_folder("bert"), {"limit": 9, "capture": ("attn", "hidden")}
    whole = run(folder, tmp_path / "whole", **options)
    assert whole.meta["block_rows"] == 2
    from decision_traces.errors import Interrupted
    from decision_traces.extract.multiple_choice import MultipleChoiceWorkflow

    forward, calls = MultipleChoiceWorkflow.forward, []

    def stops(self, loaded, batch, first_row) -> None:
        calls.append(first_row)
        if first_row >= whole.meta["block_rows"] * 5 * 2:
            raise KeyboardInterrupt
        forward(self, loaded, batch, first_row)

    monkeypatch.setattr(MultipleChoiceWorkflow, "forward", stops)
    with pytest.raises(Interrupted, match=r"--resume"):
        run(folder, tmp_path / "run", **options)
    monkeypatch.setattr(MultipleChoiceWorkflow, "forward", forward)
    resumed = run(folder, tmp_path / "run", resume=True, **options)
    for row in range(9):
        assert np.array_equal(resumed.mcq_attn(row, 3), whole.mcq_attn(row, 3))
        assert np.array_equal(resumed.mcq_hidden(row, 4), whole.mcq_hidden(row, 4))
    tables = [pq.read_table(store.run_dir / "tokens.parquet") for store in (resumed, whole)]
    assert tables[0].equals(tables[1])


def test_saving_twice_gives_the_same_encoder(tmp_path: Path) -> None:
    first, second = (save_tiny_encoder(tmp_path / n, "bert") for n in "ab")
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
