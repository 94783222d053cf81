"""The lens by choice of encoders against plain transformers with its layers cut off."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from decision_traces import TraceStore
from decision_traces.analysis.lens.encoders import encoder_lens_by_choice, load_head
from decision_traces.data import tinyworld
from decision_traces.errors import ModelError, NotCapturedError, UsageError
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.validate.run import failures, validate_run

# Where the list of layers lies; ALBERT calls one layer a number of times instead.
LAYERS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
    "electra": "electra.encoder.layer",
    "deberta_v3": "deberta.encoder.layer",
    "mpnet": "mpnet.encoder.layer",
    "modernbert": "model.layers",
}


def run(folder: Path, out: Path, **options) -> TraceStore:
    settings = {"dataset": "tinyworld", "limit": 4, "capture": ("hidden",), "dtype": "float32", **options}
    return TraceStore(
        extract_multiple_choice(MultipleChoiceConfig(model="tiny", model_path=folder, out_dir=out, **settings))
    )


def scores_with_fewer_layers(folder: Path, family: str, depth: int, question: str, choice: str) -> float:
    """The model with only its first layers, its head and its final norm as they are."""
    model = AutoModelForMultipleChoice.from_pretrained(folder, attn_implementation="eager").eval()
    if family == "albert":
        model.config.num_hidden_layers = model.albert.encoder.config.num_hidden_layers = depth
    else:
        path, name = LAYERS[family].rsplit(".", 1)
        setattr(model.get_submodule(path), name, model.get_submodule(LAYERS[family])[:depth])
    pair = AutoTokenizer.from_pretrained(folder)(question, choice, return_tensors="pt")
    with torch.no_grad():
        return float(model(**{k: v[:, None] for k, v in pair.items()}).logits)


@pytest.mark.parametrize("family", [*LAYERS, "albert"])
def test_a_depth_is_the_model_with_so_many_layers(family: str, tiny_encoder_folder, tmp_path: Path) -> None:
    folder = tiny_encoder_folder(family)
    store = run(folder, tmp_path / "run")
    by_choice = encoder_lens_by_choice(store, load_head(store))
    assert by_choice.logits.shape == (4, 4, 5)
    assert by_choice.model_error < 1e-5
    for row, question in enumerate(tinyworld.questions("validation", 2)):
        # A ModernBERT or DeBERTa encoder cannot run without a layer; the embedding alone is tried on the others.
        for depth in (1, 2, 3) if family in {"modernbert", "deberta_v3", "albert"} else (0, 1, 2, 3):
            choice = question.fields["choices"][2]
            expected = scores_with_fewer_layers(folder, family, depth, question.fields["question"], choice)
            assert by_choice.logits[row, depth, 2] == pytest.approx(expected, abs=2e-5), (row, depth)
    np.testing.assert_allclose(by_choice.probs.sum(-1), 1.0, atol=1e-6)
    assert by_choice.pred_idx.tolist() == store.tokens["pred_idx"].tolist()


@pytest.mark.parametrize("family", ["bert", "modernbert", "deberta_v3", "albert"])
def test_a_run_that_holds_its_head_needs_no_model(family: str, tiny_encoder_folder, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_encoder_folder(family), folder)
    store = run(folder, tmp_path / "run", store_unembed=True)
    with_model = encoder_lens_by_choice(store, load_head(store, folder))
    shutil.rmtree(folder)
    without = encoder_lens_by_choice(store, load_head(store))
    np.testing.assert_allclose(without.logits, with_model.logits, atol=1e-6)
    assert not failures(validate_run(store.run_dir))
    kept = sum(f.stat().st_size for f in (store.run_dir / "unembed").glob("*.safetensors"))
    assert kept < 60_000  # 35,000 parameters of layers and words are not among them


def test_another_models_head_is_noticed(tiny_encoder_folder, tmp_path: Path) -> None:
    store = run(tiny_encoder_folder("bert"), tmp_path / "run")
    with pytest.raises(ModelError, match="not those the run was made with"):
        load_head(store, tiny_encoder_folder("roberta"))


def test_what_is_needed_is_said(tiny_encoder_folder, tiny_folder, tmp_path: Path) -> None:
    store = run(tiny_encoder_folder("bert"), tmp_path / "run", capture=("qkv",))
    with pytest.raises(NotCapturedError, match="`hidden`"):
        encoder_lens_by_choice(store, load_head(store))
    text = tmp_path / "a.txt"
    text.write_text("one line\n", encoding="utf-8")
    config = NextTokenConfig(model_path=tiny_folder("gpt2"), text_file=text, out_dir=tmp_path / "dec")
    with pytest.raises(UsageError, match="no multiple-choice run"):
        encoder_lens_by_choice(TraceStore(extract_next_token(config)), load_head(store))
