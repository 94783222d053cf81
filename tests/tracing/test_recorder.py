"""What the recorder stores is what plain transformers computes, bit for bit; nothing stays behind; threads; nests."""

import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from support.encoder_decoders import tiny_encoder_decoder
from support.encoders import tiny_masked_encoder
from support.models import tiny_decoder
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface

from decision_traces.errors import CaptureError
from decision_traces.format.arrays import ModelTask
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.structure import ModuleStructure
from decision_traces.tracing.buffers import BatchBuffers
from decision_traces.tracing.recorder import Recorder, sites_of_stack
from decision_traces.tracing.self_check.evidence import stack_dims

STAGES = (
    "embed", "q", "k", "v", "attn", "head_out", "attn_out", "post_attn", "cross_q", "cross_k", "cross_v", "cross_attn",
    "cross_head_out", "cross_attn_out", "post_cross", "mlp_act", "mlp_out", "post_mlp", "final",
)  # fmt: skip
HEADS = 4
SOURCE, TARGET = [5, 90, 33, 7, 61, 12, 40], [3, 77, 21, 9, 50]


def _model(family: str) -> tuple[Any, ModelTask, dict[str, Any]]:
    """Return a tiny eager model, its task and the arguments of its forward for one row."""
    ids = torch.tensor([SOURCE])
    if family in {"t5", "bart"}:
        model, task = tiny_encoder_decoder(family), "seq2seq"
        inputs = {"input_ids": ids, "decoder_input_ids": torch.tensor([TARGET]), "use_cache": False}
    elif family == "bert":
        model, task, inputs = tiny_masked_encoder(family), "masked", {"input_ids": ids}
    else:
        model, task, inputs = (
            tiny_decoder(family, attn_implementation="eager"),
            "causal",
            {"input_ids": ids, "use_cache": False},
        )
    if family not in {"gptj", "gpt_neo", "falcon"}:  # these have no switch
        model.set_attn_implementation("eager")
    return model, task, inputs  # type: ignore[return-value]


def _buffers(structure: ModuleStructure, inputs: Mapping[str, Any]) -> BatchBuffers:
    n = {"enc": inputs["input_ids"].shape[1], "dec": inputs.get("decoder_input_ids", inputs["input_ids"]).shape[1]}
    sides, places = {}, []
    for side, stack in structure.stacks.items():
        sides[side] = stack_dims(stack, 1, n[side], n["enc"] if side == "dec" and len(structure.stacks) > 1 else 0)
        places += sites_of_stack(side, stack, [s for s in STAGES if len(sides) > 1 or "cross" not in s])
    buffers = BatchBuffers(places, sides, "float32")
    buffers.start({side: [n[side]] for side in sides})
    return buffers


def _arrays(buffers: BatchBuffers) -> dict[str, np.ndarray]:
    return {name: buffers.stack(name)[:, 0].numpy() for name in buffers.names}


def _capture(model: nn.Module, structure: ModuleStructure, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return every site of one row: (layers, ...)."""
    buffers = _buffers(structure, inputs)
    with torch.no_grad(), Recorder(model, structure, buffers).recording():
        model(**inputs)
    return _arrays(buffers)


# -- against plain transformers ------------------------------------------------------------------------------


class Hooked:
    """Copies of inputs and outputs of modules, by own hooks in the order of the calls."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        self.inputs: dict[str, np.ndarray] = {}
        self.outputs: dict[str, np.ndarray] = {}
        self._handles = [model.get_submodule(name).register_forward_hook(self._keep(name)) for name in names]

    def _keep(self, name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if args:
                self.inputs[name] = args[0][0].detach().clone().numpy()
            first = output[0] if isinstance(output, tuple) else output
            self.outputs[name] = first[0].detach().clone().numpy()

        return hook

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _by_head(joined: np.ndarray) -> np.ndarray:
    """(T, H * d) to (H, T, d)."""
    return joined.reshape(len(joined), HEADS, -1).transpose(1, 0, 2)


# family: what each stage is by the family's own names: stage -> (module of layer i, which end of it)
NAMES: dict[tuple[str, str], dict[str, tuple[str, str]]] = {
    ("llama", "dec"): {
        "mlp_out": ("model.layers.{}.mlp", "out"),
        "attn_out": ("model.layers.{}.self_attn", "out"),
        "head_out": ("model.layers.{}.self_attn.o_proj", "heads"),
        "mlp_act": ("model.layers.{}.mlp.down_proj", "in"),
        "post_attn": ("model.layers.{}.post_attention_layernorm", "in"),
    },
    ("gpt2", "dec"): {
        "mlp_out": ("transformer.h.{}.mlp", "out"),
        "attn_out": ("transformer.h.{}.attn", "out"),
        "head_out": ("transformer.h.{}.attn.c_proj", "heads"),
        "mlp_act": ("transformer.h.{}.mlp.c_proj", "in"),
        "post_attn": ("transformer.h.{}.ln_2", "in"),
    },
    ("bert", "enc"): {
        "mlp_out": ("bert.encoder.layer.{}.output.dense", "out"),
        "attn_out": ("bert.encoder.layer.{}.attention.output.dense", "out"),
        "head_out": ("bert.encoder.layer.{}.attention.output.dense", "heads"),
        "mlp_act": ("bert.encoder.layer.{}.output.dense", "in"),
        "post_attn": ("bert.encoder.layer.{}.attention", "out"),
        "post_mlp": ("bert.encoder.layer.{}", "out"),
    },
    ("t5", "enc"): {
        "mlp_out": ("encoder.block.{}.layer.1.DenseReluDense", "out"),
        "attn_out": ("encoder.block.{}.layer.0.SelfAttention", "out"),
        "head_out": ("encoder.block.{}.layer.0.SelfAttention.o", "heads"),
        "mlp_act": ("encoder.block.{}.layer.1.DenseReluDense.wo", "in"),
        "post_attn": ("encoder.block.{}.layer.0", "out"),
    },
    ("t5", "dec"): {
        "mlp_out": ("decoder.block.{}.layer.2.DenseReluDense", "out"),
        "attn_out": ("decoder.block.{}.layer.0.SelfAttention", "out"),
        "cross_attn_out": ("decoder.block.{}.layer.1.EncDecAttention", "out"),
        "head_out": ("decoder.block.{}.layer.0.SelfAttention.o", "heads"),
        "cross_head_out": ("decoder.block.{}.layer.1.EncDecAttention.o", "heads"),
        "cross_q": ("decoder.block.{}.layer.1.EncDecAttention.q", "heads out"),
        "cross_k": ("decoder.block.{}.layer.1.EncDecAttention.k", "heads out"),
        "cross_v": ("decoder.block.{}.layer.1.EncDecAttention.v", "heads out"),
        "mlp_act": ("decoder.block.{}.layer.2.DenseReluDense.wo", "in"),
        "post_attn": ("decoder.block.{}.layer.0", "out"),
        "post_cross": ("decoder.block.{}.layer.1", "out"),
    },
    ("bart", "enc"): {
        "mlp_out": ("model.encoder.layers.{}.fc2", "out"),
        "attn_out": ("model.encoder.layers.{}.self_attn", "out"),
        "head_out": ("model.encoder.layers.{}.self_attn.out_proj", "heads"),
        "mlp_act": ("model.encoder.layers.{}.fc2", "in"),
        "post_attn": ("model.encoder.layers.{}.self_attn_layer_norm", "out"),
        "post_mlp": ("model.encoder.layers.{}", "out"),
    },
    ("bart", "dec"): {
        "mlp_out": ("model.decoder.layers.{}.fc2", "out"),
        "attn_out": ("model.decoder.layers.{}.self_attn", "out"),
        "cross_attn_out": ("model.decoder.layers.{}.encoder_attn", "out"),
        "head_out": ("model.decoder.layers.{}.self_attn.out_proj", "heads"),
        "cross_head_out": ("model.decoder.layers.{}.encoder_attn.out_proj", "heads"),
        "cross_k": ("model.decoder.layers.{}.encoder_attn.k_proj", "heads out"),
        "cross_v": ("model.decoder.layers.{}.encoder_attn.v_proj", "heads out"),
        "mlp_act": ("model.decoder.layers.{}.fc2", "in"),
        "post_attn": ("model.decoder.layers.{}.self_attn_layer_norm", "out"),
        "post_cross": ("model.decoder.layers.{}.encoder_attn_layer_norm", "out"),
    },
}


@pytest.mark.parametrize(("family", "side"), NAMES, ids=lambda v: v)
def test_every_stage_equals_what_the_families_own_modules_read_and_return(family: str, side: str) -> None:
    model, task, inputs = _model(family)
    captured = _capture(model, find_structure(model, 99, task), inputs)
    n_layers = captured[f"{side}.post_mlp"].shape[0]
    assert n_layers == (2 if (family, side) in {("t5", "enc"), ("bart", "enc")} else 3)
    names = [module.format(i) for module, _ in NAMES[family, side].values() for i in range(n_layers)]
    hooked = Hooked(model, names)
    with torch.no_grad():
        model(**inputs)
    hooked.remove()
    for stage, (module, end) in NAMES[family, side].items():
        ends = hooked.outputs if "out" in end else hooked.inputs
        expected = np.stack([ends[module.format(i)] for i in range(n_layers)])
        if "heads" in end:
            expected = np.stack([_by_head(one) for one in expected])
        np.testing.assert_array_equal(captured[f"{side}.{stage}"], expected, err_msg=stage)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5", "bart"])
def test_streams_and_probabilities_equal_those_that_transformers_returns(family: str) -> None:
    model, task, inputs = _model(family)
    captured = _capture(model, find_structure(model, 99, task), inputs)
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True, output_attentions=True)

    def stacked(tensors: tuple[Tensor, ...]) -> np.ndarray:
        return np.stack([t[0].numpy() for t in tensors])

    both = task == "seq2seq"
    for side in ("enc", "dec") if both else ("enc",) if task == "masked" else ("dec",):
        prefix = {"enc": "encoder_", "dec": "decoder_"}[side] if both else ""
        states = stacked(getattr(out, f"{prefix}hidden_states"))
        ours = [captured[f"{side}.embed"], captured[f"{side}.post_mlp"][:-1], captured[f"{side}.final"]]
        np.testing.assert_array_equal(np.concatenate(ours), states)
        np.testing.assert_array_equal(captured[f"{side}.attn"], stacked(getattr(out, f"{prefix}attentions")))
    if both:
        np.testing.assert_array_equal(captured["dec.cross_attn"], stacked(out.cross_attentions))
        np.testing.assert_array_equal(captured["enc.final"][0], out.encoder_last_hidden_state[0].numpy())


# -- nothing stays behind ------------------------------------------------------------------------------------


def _nothing_is_left(model: nn.Module, before: Any) -> bool:
    hooks = any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    modes = torch.overrides._get_current_function_mode_stack()
    return not hooks and not modes and AttentionInterface.get_interface is before


INSIDE = {"llama": "model.layers.1.mlp", "gptj": "transformer.h.1.mlp", "t5": "decoder"}


@pytest.mark.parametrize("family", ["llama", "gptj", "t5"])
def test_nothing_stays_behind_and_a_capture_can_be_made_again(family: str) -> None:
    before = AttentionInterface.get_interface
    model, task, inputs = _model(family)
    structure = find_structure(model, 99, task)
    assert _nothing_is_left(model, before)
    first = _capture(model, structure, inputs)
    assert _nothing_is_left(model, before)
    second = _capture(model, structure, inputs)
    for name, value in first.items():
        np.testing.assert_array_equal(second[name], value)


@pytest.mark.parametrize("family", ["llama", "gptj", "t5"])
def test_nothing_stays_behind_after_the_model_raised_in_the_middle(family: str) -> None:
    before = AttentionInterface.get_interface
    model, task, inputs = _model(family)
    structure = find_structure(model, 99, task)
    good = _capture(model, structure, inputs)

    def fail(*_args: Any) -> None:
        raise MemoryError("in the middle")

    handle = model.get_submodule(INSIDE[family]).register_forward_pre_hook(fail)
    with pytest.raises(MemoryError, match="in the middle"):
        _capture(model, structure, inputs)
    handle.remove()
    assert _nothing_is_left(model, before)
    for name, value in _capture(model, structure, inputs).items():
        np.testing.assert_array_equal(good[name], value)


@pytest.mark.parametrize("family", ["llama", "gptj"])
def test_nothing_stays_behind_after_attention_raised(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = AttentionInterface.get_interface
    model, task, inputs = _model(family)
    structure = find_structure(model, 99, task)

    def fail(*_args: Any) -> None:
        raise MemoryError("inside attention")

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "_keep", fail)
        with pytest.raises(MemoryError, match="inside attention"):
            _capture(model, structure, inputs)
    assert _nothing_is_left(model, before)


def test_a_pass_that_left_a_layer_out_is_an_error_and_no_row_of_zeros() -> None:
    model, task, inputs = _model("llama")
    structure = find_structure(model, 99, task)
    model.config.num_hidden_layers = 2  # its forward goes over so many
    with pytest.raises(CaptureError, match=r"dec\.\w+ of layer 2 fired 0 times in one forward pass, not once"):
        _capture(model, structure, inputs)


# -- threads -------------------------------------------------------------------------------------------------


@contextmanager
def _meeting(models: list[nn.Module], places: list[str]) -> Iterator[None]:
    """Let the models wait for each other in the middle of every forward pass, so that both are inside at once."""
    barrier = threading.Barrier(len(models), timeout=20)

    def wait(*_: Any) -> None:
        barrier.wait()

    handles = [
        model.get_submodule(place).register_forward_pre_hook(wait) for model, place in zip(models, places, strict=True)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(("one", "other"), [("llama", "qwen3"), ("llama", "gptj"), ("gptj", "gpt_neo"), ("t5", "gpt2")])
def test_two_models_in_two_threads_each_get_their_own_tensors(one: str, other: str) -> None:
    before = AttentionInterface.get_interface
    made = [_model(family) for family in (one, other)]
    structures = [find_structure(model, 99, task) for model, task, _ in made]
    alone = [_capture(model, structure, inputs) for (model, _, inputs), structure in zip(made, structures, strict=True)]
    places = [structure.layers[1].pre_attn.module for structure in structures]

    def several(i: int) -> list[dict[str, np.ndarray]]:
        model, _, inputs = made[i]
        return [_capture(model, structures[i], inputs) for _ in range(5)]

    with _meeting([model for model, *_ in made], places), ThreadPoolExecutor(2) as pool:
        results = list(pool.map(several, range(2)))
    for expected, runs in zip(alone, results, strict=True):
        for run in runs:
            assert run.keys() == expected.keys()
            for name, value in expected.items():
                np.testing.assert_array_equal(run[name], value, err_msg=name)
    assert all(_nothing_is_left(model, before) for model, *_ in made)


# -- nests ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gptj", "t5", "bert"])
def test_recorders_nest_and_each_gets_everything(family: str) -> None:
    model, task, inputs = _model(family)
    structure = find_structure(model, 99, task)
    alone = _capture(model, structure, inputs)
    outer, inner = _buffers(structure, inputs), _buffers(structure, inputs)
    with (
        torch.no_grad(),
        Recorder(model, structure, outer).recording(),
        Recorder(model, structure, inner).recording(),
    ):
        model(**inputs)
    for arrays in (_arrays(outer), _arrays(inner)):
        for name, value in alone.items():
            np.testing.assert_array_equal(arrays[name], value, err_msg=name)


def test_a_capture_changes_nothing_that_the_model_computes() -> None:
    for family in ("llama", "gptj", "falcon", "t5", "bert"):
        model, task, inputs = _model(family)
        structure = find_structure(model, 99, task)
        with torch.no_grad():
            plain = model(**inputs).logits
            with Recorder(model, structure, _buffers(structure, inputs)).recording():
                watched = model(**inputs).logits
        assert torch.equal(plain, watched), family
