"""A model in memory as notebooks have it: hooked, pruned, patched, cast, gone; and what surrounds the call."""

import copy
import gc
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from support.encoders import ENCODERS, pair_tokenizer
from torch.nn.utils import prune

import decision_traces as dt
from decision_traces.errors import ModelError

TEXTS = ["The cat sat on the mat", "Bob went home"]
QUIET: dict[str, Any] = {"progress": False, "dtype": "float32"}


@pytest.fixture
def model(tiny_folder: Callable[..., Path]) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2"), attn_implementation="sdpa")


@pytest.fixture
def tokenizer(tiny_folder: Callable[..., Path]) -> Any:
    return hf.AutoTokenizer.from_pretrained(tiny_folder("gpt2"))


@torch.no_grad()
def plain_states(model: Any, tokenizer: Any) -> np.ndarray:
    return torch.cat(model(**tokenizer(TEXTS[0], return_tensors="pt"), output_hidden_states=True).hidden_states).numpy()


class Hook:
    """A hook that nothing can copy, and that changes what its module gives."""

    def __init__(self) -> None:
        self.lock, self.calls = threading.Lock(), 0

    def __call__(self, _module: Any, _args: Any, output: torch.Tensor) -> torch.Tensor:
        with self.lock:
            self.calls += 1
        return output + 1

    def method(self, *call: Any) -> torch.Tensor:
        return self(*call)


@pytest.mark.parametrize("name", ["__call__", "method"])
def test_hooks_are_shared_and_belong_to_what_is_traced(name: str, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    hook = Hook()
    model.transformer.h[0].mlp.register_forward_hook(getattr(hook, name))
    run = dt.trace(model, tokenizer, TEXTS, capture="hidden", out_dir=tmp_path / "run", **QUIET)
    assert hook.calls > 0
    np.testing.assert_allclose(run.hidden(0, trim=True), plain_states(model, tokenizer), rtol=0, atol=1e-5)


def test_tensors_that_were_computed_are_shared(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    prune.random_unstructured(model.transformer.h[0].mlp.c_fc, "weight", 0.5)
    run = dt.trace(model, tokenizer, TEXTS, capture="hidden", out_dir=tmp_path / "run", **QUIET)
    np.testing.assert_allclose(run.hidden(0, trim=True), plain_states(model, tokenizer), rtol=0, atol=1e-5)


def patched(model: Any) -> None:
    forward = model.transformer.h[1].mlp.forward
    model.transformer.h[1].mlp.forward = lambda *args: forward(*args)


def on_no_device(model: Any) -> None:
    model.transformer.h[1].mlp.to("meta")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda model: setattr(model.transformer, "gen", iter(x for x in "ab")),
            "transformer.gen holds what cannot be",
        ),
        (patched, r"while transformer\.h\.1\.mlp\.forward is a function that was put in its place"),
        (on_no_device, "4 of the weights of this GPT2LMHeadModel are on the meta device"),
        (lambda model: model.double(), "computes in float64, which is not traced"),
    ],
)
def test_models_that_cannot_be_traced_say_why(
    change: Callable[[Any], Any], message: str, model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    change(model)
    with pytest.raises(ModelError, match=message):
        dt.trace(model, tokenizer, TEXTS, out_dir=tmp_path / "run", **QUIET)
    assert not list(tmp_path.iterdir())


# -- classes and tasks ---------------------------------------------------------------------------------------


def small_bert(kind: Any) -> Any:
    return kind(ENCODERS["bert"](vocab_size=260, pad_token_id=0, bos_token_id=1, eos_token_id=2)).eval()


def test_the_states_of_a_classifier_are_traced_without_its_head(tmp_path: Path) -> None:
    model, tokenizer = small_bert(hf.BertForSequenceClassification), pair_tokenizer(types=False, mask=True)
    with pytest.raises(ModelError, match=r'BertForSequenceClassification: tracing classifiers .* task="encode"'):
        dt.trace(model, tokenizer, TEXTS, **QUIET)
    run = dt.trace(model, tokenizer, TEXTS, task="encode", capture="hidden", out_dir=tmp_path / "run", **QUIET)
    np.testing.assert_allclose(run.hidden(0, side="enc", trim=True), plain_states(model, tokenizer), rtol=0, atol=1e-5)


@pytest.mark.parametrize("task", ["masked", "seq2seq"])
def test_a_task_that_is_not_the_models(task: Any, model: Any, tokenizer: Any) -> None:
    with pytest.raises(ModelError, match=f"GPT2LMHeadModel is a model for task 'causal', .* is '{task}'"):
        dt.trace(model, tokenizer, TEXTS, task=task, **QUIET)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (hf.BertForPreTraining, "BertForPreTraining is an encoder with a head that is not traced"),
        (
            lambda _: hf.T5Model(hf.T5Config(vocab_size=260, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
            "T5Model is an encoder-decoder without a head",
        ),
    ],
)
def test_heads_that_are_not_traced(kind: Any, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        dt.trace(small_bert(kind), pair_tokenizer(types=False, mask=True), TEXTS, **QUIET)


# -- around the call -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "around",
    [lambda: torch.autocast("cpu", torch.bfloat16), lambda: torch.device("meta"), torch.inference_mode],
    ids=["autocast", "default device", "inference"],
)
def test_what_surrounds_a_call_decides_nothing(
    around: Callable[[], AbstractContextManager[Any]], model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    with around():
        run = dt.trace(model, tokenizer, TEXTS, capture="hidden resid", out_dir=tmp_path / "run", **QUIET)
        run.attribution()
        assert torch.is_autocast_enabled("cpu") is (around().__class__ is torch.autocast)
    np.testing.assert_allclose(run.hidden(0, trim=True), plain_states(model, tokenizer), rtol=0, atol=1e-5)


def test_random_numbers_go_on_as_if_nothing_had_been_traced(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    before = torch.get_rng_state()
    dt.trace(model, tokenizer, TEXTS, capture="hidden", out_dir=tmp_path / "run", **QUIET).lens()
    assert torch.equal(torch.get_rng_state(), before)


# -- what analyses find later --------------------------------------------------------------------------------


def test_of_two_models_with_the_same_weights_the_one_that_is_left_is_found(
    model: Any, tokenizer: Any, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)  # so that no folder has these weights
    first, other = copy.deepcopy(model), copy.deepcopy(model)
    run = dt.trace(first, tokenizer, TEXTS, capture="hidden", out_dir=tmp_path / "a", **QUIET)
    dt.trace(other, tokenizer, TEXTS, out_dir=tmp_path / "b", **QUIET)
    with torch.no_grad():
        other.lm_head.weight.mul_(1.5)
    assert run.lens().lenses
    del first, other
    gc.collect()
    with pytest.raises(ModelError, match=r"The model in memory that .* is gone, or has other weights by now\. Keep it"):
        run.lens()
