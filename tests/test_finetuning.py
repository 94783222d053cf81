"""The trainer on a tiny encoder, from scratch: it learns, it repeats, it goes on, it says what it did."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from support.encoders import word_tokenizer

from decision_traces import TraceStore
from decision_traces.data import tinyworld
from decision_traces.errors import Interrupted, UsageError
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.finetuning.batches import Collator
from decision_traces.finetuning.config import FinetuneConfig
from decision_traces.finetuning.train import finetune
from decision_traces.store.validate.run import failures, validate_run

# torch warns that there is no accelerator to pin memory for, or that a scheduler steps first; neither is ours.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:torch")


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT with random weights that knows the words of tinyworld's questions."""
    folder = tmp_path_factory.mktemp("untrained") / "bert"
    texts = [f"{q.text} {' '.join(q.fields['choices'])}" for q in tinyworld.questions("train")]
    tokenizer = word_tokenizer(texts)
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        max_position_embeddings=96,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,  # narrow as it is, it would begin too slowly with BERT's 0.02
    )
    hf.BertForMultipleChoice(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def settings(untrained: Path, out: Path, **options) -> FinetuneConfig:
    small = {"train_limit": 64, "eval_limit": 20, "epochs": 2.0, "batch_size": 8, "lr": 1e-3, **options}
    return FinetuneConfig(model="tiny", model_path=untrained, dataset="tinyworld", out_dir=out, device="cpu", **small)


@pytest.mark.long
def test_an_encoder_from_scratch_learns_and_its_trace_shows_it(untrained: Path, tmp_path: Path) -> None:
    """Guessing is right one time in five; 286 questions have a standard error of 2.4 points."""
    lines: list[str] = []
    config = settings(untrained, tmp_path / "ft", train_limit=None, eval_limit=None, epochs=4.0, batch_size=16, seed=1)
    result = finetune(config, lines.append)
    assert result.accuracy > 0.8
    assert (result.n_eval, result.chance) == (286, 0.2)
    assert sum("accuracy" in line for line in lines) == 4
    run = extract_multiple_choice(
        MultipleChoiceConfig(
            model="tiny", model_path=tmp_path / "ft", dataset="tinyworld", capture=("hidden",), out_dir=tmp_path / "run"
        )
    )
    store = TraceStore(run)
    assert not failures(validate_run(run))
    assert store.meta["choice_accuracy"] == pytest.approx(result.accuracy, abs=0.008)  # two near ties at most
    lineage = store.meta["lineage"]
    assert (lineage["base_model"], lineage["dataset"], lineage["seed"]) == ("tiny", "tinyworld", 1)
    assert lineage["accuracy"] == result.accuracy == max(e["accuracy"] for e in lineage["epochs"])
    assert lineage["weights_digest"] == store.meta["weights_digest"]
    assert (lineage["n_train"], lineage["n_eval"]) == (2857, 286)


def test_the_same_seed_gives_the_same_weights(untrained: Path, tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        finetune(settings(untrained, tmp_path / name, seed=seed, epochs=1.0))
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    a, b, c = weights
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert not all(torch.equal(a[k], c[k]) for k in a)


def test_the_kept_checkpoint_is_the_best_one_by_plain_transformers(untrained: Path, tmp_path: Path) -> None:
    result = finetune(settings(untrained, tmp_path / "ft", epochs=3.0, lr=3e-3))
    model = hf.AutoModelForMultipleChoice.from_pretrained(result.folder).eval()
    tokenizer = hf.AutoTokenizer.from_pretrained(result.folder)
    right = []
    for question in tinyworld.questions("validation", 20):
        choices = question.fields["choices"]
        batch = tokenizer([question.fields["question"]] * 5, choices, padding=True, return_tensors="pt")
        with torch.no_grad():
            best = int(model(**{k: v[None] for k, v in batch.items()}).logits.argmax())
        right.append(best == "ABCDE".index(question.fields["answerKey"]))
    meta = json.loads((result.folder / "finetune_meta.json").read_text(encoding="utf-8"))
    assert result.accuracy == pytest.approx(np.mean(right)) == pytest.approx(max(e["accuracy"] for e in meta["epochs"]))


def test_a_stopped_training_goes_on(untrained: Path, tmp_path: Path) -> None:
    whole = finetune(settings(untrained, tmp_path / "whole", epochs=3.0))

    def stop(line: str) -> None:
        if line.startswith("epoch 2"):
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=r"--resume"):
        finetune(settings(untrained, tmp_path / "ft", epochs=3.0), stop)
    with pytest.raises(UsageError, match=r"lr was 0.001, is 0.5"):
        finetune(settings(untrained, tmp_path / "ft", epochs=3.0, resume=True, lr=0.5))
    resumed = finetune(settings(untrained, tmp_path / "ft", epochs=3.0, resume=True))
    first, second = (load_file(r.folder / "model.safetensors") for r in (whole, resumed))
    assert all(torch.equal(first[k], second[k]) for k in first)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "--batch_size 0: needs at least 1"),
        ({"seed": -1}, "--seed -1: needs a whole number from 0"),
        ({"lr": 0.0}, "--lr 0.0"),
        ({"warmup_ratio": 1.0}, "--warmup_ratio 1.0"),
        ({"bf16": True, "fp16": True}, "one of them"),
        ({"resume": True}, "--resume needs --out_dir"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_loaded(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        finetune(FinetuneConfig(**options))


def test_batches_are_padded_on_the_right_choice_by_choice() -> None:
    rows = [
        {"input_ids": [[5, 6], [5, 6, 7]], "token_type_ids": [[0, 1], [0, 1, 1]], "labels": 1, "length": 3},
        {"input_ids": [[8], [9, 8]], "token_type_ids": [[0], [0, 1]], "labels": 0, "length": 2},
    ]
    batch = Collator(pad=4)(rows)
    assert batch["input_ids"].tolist() == [[[5, 6, 4], [5, 6, 7]], [[8, 4, 4], [9, 8, 4]]]
    assert batch["attention_mask"].tolist() == [[[1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0]]]
    assert batch["token_type_ids"].tolist() == [[[0, 1, 0], [0, 1, 1]], [[0, 0, 0], [0, 1, 0]]]
    assert batch["labels"].tolist() == [1, 0]


def test_early_stopping_ends_a_training_that_gets_no_better(untrained: Path, tmp_path: Path) -> None:
    """With next to no learning rate the accuracy stays: the first epoch is the best, and one more is waited for."""
    result = finetune(settings(untrained, tmp_path / "ft", epochs=5.0, lr=1e-12, early_stopping=1))
    meta = json.loads((result.folder / "finetune_meta.json").read_text(encoding="utf-8"))
    assert [e["epoch"] for e in meta["epochs"]] == [1.0, 2.0]


def test_bfloat16_trains_and_keeps_float32_weights(untrained: Path, tmp_path: Path) -> None:
    plain = finetune(settings(untrained, tmp_path / "plain", epochs=1.0))
    mixed = finetune(settings(untrained, tmp_path / "mixed", epochs=1.0, bf16=True))
    first, second = (load_file(r.folder / "model.safetensors") for r in (plain, mixed))
    assert {t.dtype for t in second.values()} == {torch.float32}
    assert not all(torch.equal(first[k], second[k]) for k in first)
    worst = max(float((first[k] - second[k]).abs().max()) for k in first)
    assert worst < 0.02  # eight steps of 0.001 each, in either direction
