"""Every way in which a capture could lie is caught, by the name of the check that is there for it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from support.encoder_decoders import tiny_encoder_decoder
from support.encoders import tiny_masked_encoder
from support.models import byte_tokenizer, tiny_decoder
from torch import Tensor

from decision_traces.format.arrays import ModelTask, site
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import HookPoint, LayerPlan, ModuleStructure
from decision_traces.tokens import Encoding
from decision_traces.tracing.buffers import BatchBuffers
from decision_traces.tracing.recorder import Recorder
from decision_traces.tracing.self_check.certificate import certify, check_structure, stages_to_check
from dev.architectures.tiny import build_tiny, model_classes

LENGTHS = ((9, 7), (6, 3), (4, 5))  # of source and target


def _loaded(family: str) -> LoadedModel:
    task: ModelTask = "causal"
    if family in {"t5", "bart"}:
        model, task = tiny_encoder_decoder(family), "seq2seq"
        model.set_attn_implementation("eager")
    elif family == "bert":
        model, task = tiny_masked_encoder(family), "masked"
        model.set_attn_implementation("eager")
    else:
        model = tiny_decoder(family, attn_implementation="eager")
    return LoadedModel(model, byte_tokenizer(), model.config, torch.device("cpu"), None, "eager", task)


def _encoding(ids: np.ndarray) -> Encoding:
    return Encoding(ids.astype(np.int32), np.zeros((len(ids), 2), np.int32), truncated=False)


def _encodings(task: ModelTask) -> list[Encoding]:
    random = np.random.default_rng(3)
    rows = []
    for n, m in LENGTHS:
        row, target = (_encoding(random.integers(5, 90, size)) for size in (n, m))
        rows.append(replace(row, target=target) if task == "seq2seq" else row)
    return rows


def _failed(loaded: LoadedModel, structure: ModuleStructure) -> set[str]:
    sites = [site(side, s) for side, stack in structure.stacks.items() for s in stages_to_check(loaded, stack.missing)]
    return {c.name for c in certify(loaded, structure, sites, _encodings(loaded.task), 0).failed}


def _structure(loaded: LoadedModel) -> ModuleStructure:
    return find_structure(loaded.model, 99, loaded.task)


def _changed(
    structure: ModuleStructure, side: str, change: Callable[[tuple[LayerPlan, ...], int], LayerPlan]
) -> ModuleStructure:
    stack = structure.stacks[side]  # type: ignore[index]
    return structure.with_stack(replace(stack, layers=tuple(change(stack.layers, i) for i in range(stack.n_layers))))


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "bert", "t5", "bart"])
def test_an_honest_capture_passes(family: str) -> None:
    loaded = _loaded(family)
    assert _failed(loaded, _structure(loaded)) == set()


# -- the recorder stores something else ----------------------------------------------------------------------

Put = Callable[[Recorder, str, int, Tensor], None]


def _instead(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Put, Recorder, int, Tensor], Any]) -> None:
    """Let what is stored at a site (all of a side where it ends in `.`) go another way."""
    put = Recorder._put

    def other(self: Recorder, at: str, layer: int, value: Tensor) -> None:
        if at == name or name == "":
            change(lambda s, _n, i, t: put(s, at, i, t), self, layer, value)
        else:
            put(self, at, layer, value)

    monkeypatch.setattr(Recorder, "_put", other)


def _swap(put: Put, recorder: Recorder, layer: int, value: Tensor) -> None:
    put(recorder, "", {0: 1, 1: 0}.get(layer, layer), value)


def _roll(put: Put, recorder: Recorder, layer: int, value: Tensor) -> None:
    put(recorder, "", layer, value.roll(1, -2))


OTHER_LAYERS = {
    ("llama", "dec.post_mlp"): "layer inputs are those transformers reports",
    ("llama", "dec.post_attn"): "post_attn: without attention, only a constant is added to pre_attn",
    ("llama", "dec.attn_out"): "post_attn: pre_attn + what attention writes",
    ("llama", "dec.mlp_out"): "post_mlp: the state before + what the MLP writes",
    ("llama", "dec.mlp_act"): "mlp_act: the MLP's last matrix makes of it what it gave",
    ("llama", "dec.attn"): "attention: the probabilities are those transformers reports",
    ("llama", "dec.q"): "attention: q·k gives the probabilities",
    ("llama", "dec.k"): "attention: q·k gives the probabilities",
    ("llama", "dec.v"): "attention: probabilities times v give the output",
    ("llama", "dec.head_out"): "attention: probabilities times v give the output",
    ("bert", "enc.attn_out"): "post_attn: the norm of pre_attn + what attention writes",
    ("bert", "enc.post_attn"): "post_attn: the norm of pre_attn + what attention writes",
    ("bert", "enc.mlp_out"): "post_mlp: the state before + what the MLP writes",
    ("bert", "enc.mlp_act"): "mlp_act: the MLP's last matrix makes of it what it gave",
    ("falcon", "dec.mlp_out"): "post_mlp: the state before + what the MLP writes",
    ("t5", "dec.cross_attn"): "decoder: cross-attention: the probabilities are those transformers reports",
    ("t5", "dec.cross_q"): "decoder: cross-attention: q·k gives the probabilities",
    ("t5", "dec.cross_k"): "decoder: cross-attention: q·k gives the probabilities",
    ("t5", "dec.cross_v"): "decoder: cross-attention: probabilities times v give the output",
    ("t5", "dec.cross_head_out"): "decoder: cross-attention: probabilities times v give the output",
    ("t5", "dec.cross_attn_out"): "decoder: post_cross: post_attn + what cross-attention writes",
    ("t5", "dec.post_cross"): "decoder: post_cross: post_attn + what cross-attention writes",
    ("t5", "enc.post_mlp"): "encoder: layer inputs are those transformers reports",
    ("t5", "enc.mlp_act"): "encoder: mlp_act: the MLP's last matrix makes of it what it gave",
}


@pytest.mark.parametrize(("family", "name"), OTHER_LAYERS, ids=lambda v: v)
def test_two_layers_in_each_others_place_are_caught(family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _loaded(family)
    structure = _structure(loaded)
    _instead(monkeypatch, name, _swap)
    assert OTHER_LAYERS[family, name] in _failed(loaded, structure)


SHIFTED = {
    ("llama", "dec.embed"): "layer inputs are those transformers reports",
    ("llama", "dec.post_mlp"): "layer inputs are those transformers reports",
    ("llama", "dec.final"): "hidden[L] is the base model's last hidden state",
    ("llama", "dec.post_attn"): "post_attn: without attention, only a constant is added to pre_attn",
    ("llama", "dec.attn_out"): "post_attn: pre_attn + what attention writes",
    ("llama", "dec.mlp_out"): "post_mlp: the state before + what the MLP writes",
    ("llama", "dec.mlp_act"): "mlp_act: the MLP's last matrix makes of it what it gave",
    ("llama", "dec.q"): "attention: q·k gives the probabilities",
    ("llama", "dec.k"): "attention: q·k gives the probabilities",
    ("llama", "dec.v"): "attention: probabilities times v give the output",
    ("llama", "dec.attn"): "attention: the probabilities are those transformers reports",
    ("llama", "dec.head_out"): "attention: probabilities times v give the output",
    ("t5", "dec.cross_attn"): "decoder: cross-attention: the probabilities are those transformers reports",
    ("t5", "dec.cross_k"): "decoder: cross-attention: q·k gives the probabilities",
    ("t5", "enc.final"): "encoder: hidden[L] is the base model's last hidden state",
}


@pytest.mark.parametrize(("family", "name"), SHIFTED, ids=lambda v: v)
def test_positions_shifted_by_one_are_caught(family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _loaded(family)
    structure = _structure(loaded)
    _instead(monkeypatch, name, _roll)
    assert SHIFTED[family, name] in _failed(loaded, structure)


def test_everything_shifted_by_one_together_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = _loaded("llama")
    structure = _structure(loaded)
    _instead(monkeypatch, "", _roll)
    assert {
        "layer inputs are those transformers reports",
        "hidden[L] is the base model's last hidden state",
        "attention: the probabilities are those transformers reports",
        "attention: no probability on later tokens",
        "mlp_act: the MLP's last matrix makes of it what it gave",
    } <= _failed(loaded, structure)


@pytest.mark.parametrize("which", ["k", "q"])
@pytest.mark.parametrize("family", ["llama", "gemma"])
def test_keys_or_queries_from_before_the_rotary_embedding_are_caught(
    family: str, which: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = _loaded(family)
    structure = _structure(loaded)
    early: dict[int, Tensor] = {}
    for layer in loaded.model.model.layers:
        attention = layer.self_attn
        getattr(attention, f"{which}_proj").register_forward_hook(
            lambda _m, _a, out, attention=attention: early.update({id(attention): out})
        )
    keep = Recorder._keep

    def unrotated(self: Recorder, plan: Any, call: Any) -> None:
        own = {"k": call.key, "q": call.query}[which]
        before = early[id(call.module)].view(own.shape[0], own.shape[2], own.shape[1], -1).transpose(1, 2)
        assert before.shape == own.shape
        keep(self, plan, replace(call, **{{"k": "key", "q": "query"}[which]: before}))

    monkeypatch.setattr(Recorder, "_keep", unrotated)
    assert "attention: q·k gives the probabilities" in _failed(loaded, structure)


@pytest.mark.parametrize(("family", "side", "word"), [("llama", "dec", ""), ("t5", "enc", "encoder: "),
                                                      ("t5", "dec", "decoder: ")])  # fmt: skip
def test_a_last_hidden_state_without_its_norm_is_caught(family: str, side: str, word: str) -> None:
    loaded = _loaded(family)
    structure = _structure(loaded)
    stack = structure.stacks[side]  # type: ignore[index]
    unnormed = structure.with_stack(replace(stack, final=stack.layers[-1].post_mlp))
    assert f"{word}hidden[L] is the base model's last hidden state" in _failed(loaded, unnormed)


# -- a reference in place of a copy --------------------------------------------------------------------------


def _keep_references(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the buffers keep the model's own tensors during a pass, and read them only when they are asked for."""
    put, stack = BatchBuffers.put, BatchBuffers.stack
    kept: list[tuple[Any, ...]] = []

    def late(self: BatchBuffers, name: str) -> Tensor:
        mine = [one for one in kept if one[0] is self]
        kept[:] = [one for one in kept if one[0] is not self]
        for one in mine:
            put(*one)
        return stack(self, name)

    monkeypatch.setattr(BatchBuffers, "put", lambda self, *what: kept.append((self, *what)))
    monkeypatch.setattr(BatchBuffers, "stack", late)


def test_a_reference_that_the_model_overwrites_later_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Falcon adds attention's output in place into what its MLP returned."""
    loaded = _loaded("falcon")
    structure = _structure(loaded)
    _keep_references(monkeypatch)
    assert "post_mlp: the state before + what the MLP writes" in _failed(loaded, structure)


@pytest.mark.parametrize("reference", [False, True])
def test_a_model_that_overwrites_the_input_of_its_layers_in_place(
    reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With copies nothing is lost; with references every layer's input would be what the pass left behind."""
    loaded = _loaded("gpt2")
    structure = _structure(loaded)
    for block in loaded.model.transformer.h:

        def in_place(_module: Any, args: Any, output: Tensor) -> Tensor:
            args[0].copy_(output)  # the next layer reads the same memory
            return args[0]

        block.register_forward_hook(in_place)
    if reference:
        _keep_references(monkeypatch)
    failed = _failed(loaded, structure)
    added = "post_attn: pre_attn + what attention writes"
    assert (added in failed) is reference
    if not reference:  # transformers' own hidden states are references, so these alone differ
        assert failed == {"layer inputs are those transformers reports"}


# -- the structure names another place -------------------------------------------------------------------------

PLACES = {
    "mlp_out": "post_mlp: the state before + what the MLP writes",
    "attn_out": "post_attn: pre_attn + what attention writes",
    "mlp_act": "mlp_act: the MLP's last matrix makes of it what it gave",
}


@pytest.mark.parametrize("stage", PLACES)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_place_of_another_layer_is_caught(family: str, stage: str) -> None:
    loaded = _loaded(family)
    structure = _structure(loaded)
    wrong = _changed(
        structure, "dec", lambda layers, i: replace(layers[i], **{stage: getattr(layers[max(0, i - 1)], stage)})
    )
    assert PLACES[stage] in _failed(loaded, wrong)


def test_an_mlp_that_has_more_than_the_neurons_named_is_caught() -> None:
    """Attention's matrix named in place of the MLP's last: with its input silent, the MLP is not."""
    loaded = _loaded("gpt2")
    structure = _structure(loaded)
    module = "transformer.h.{}.attn.c_proj"
    wrong = _changed(
        structure,
        "dec",
        lambda layers, i: replace(
            layers[i], mlp_act=replace(layers[i].mlp_act, module=module.format(i)), mlp_last=module.format(i)
        ),
    )
    stack = replace(wrong.main, d_mlp=32)
    assert "mlp_act: without its hidden neurons, the MLP adds only a constant" in _failed(
        loaded, wrong.with_stack(stack)
    )


# -- prove ---------------------------------------------------------------------------------------------------


def test_checking_an_honest_structure_leaves_it_as_it_is() -> None:
    loaded = _loaded("llama")
    structure = _structure(loaded)
    proved, certificate = check_structure(loaded, structure, _encodings("causal"), 0)
    assert proved == structure and certificate.passed is True


@pytest.mark.parametrize(
    ("family", "name", "stages"),
    [
        ("llama", "dec.v", {"v", "attn", "head_out"}),
        ("llama", "dec.q", {"q", "k"}),
        ("llama", "dec.mlp_act", {"mlp_act"}),
        ("llama", "dec.mlp_out", {"mlp_out"}),
        ("t5", "dec.cross_v", {"cross_v", "cross_attn", "cross_head_out"}),
    ],
)
def test_a_stage_whose_check_fails_is_missing_with_the_check_as_the_reason(
    family: str, name: str, stages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = _loaded(family)
    structure = _structure(loaded)
    check = OTHER_LAYERS[family, name]
    _instead(monkeypatch, name, _swap)
    proved, certificate = check_structure(loaded, structure, _encodings(loaded.task), 0)
    assert {s for stack in proved.stacks.values() for s in stack.missing} == stages
    for stage in stages:
        reason = proved.main.missing[stage]
        assert reason.startswith(f"a check failed: {check} (worst ")
        assert reason.endswith((", allowed 0.001)", ", allowed 0)"))
    assert check in {c.name for c in certificate.failed}
    assert structure.main.missing == {}


def test_what_is_wrong_with_the_stream_condemns_no_stage_and_is_left_to_the_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = _loaded("llama")
    structure = _structure(loaded)
    _instead(monkeypatch, "dec.post_mlp", _swap)
    _, certificate = check_structure(loaded, structure, _encodings("causal"), 0)
    core = [c.name for c in certificate.failed if not c.condemns]
    assert "layer inputs are those transformers reports" in core


@pytest.mark.parametrize(("kind", "model_type", "pads"), [("masked", "convbert", False), ("masked", "bert", True)])
def test_a_model_whose_numbers_change_with_padding_gets_rows_of_one_length(
    kind: Any, model_type: str, pads: bool
) -> None:
    """ConvBERT's convolution reads over the end of a text; the model's own last hidden state says so too."""
    which = next(c for c in model_classes(kind) if c.model_type == model_type)
    model: Any = build_tiny(which)
    ids = torch.tensor([[60, 70, 80, 90, 0, 0]])
    with torch.no_grad():
        alone = model.base_model(input_ids=ids[:, :4]).last_hidden_state
        padded = model.base_model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 1, 0, 0]])).last_hidden_state[
            :, :4
        ]
    assert torch.allclose(alone, padded, atol=1e-4) is pads
    loaded = LoadedModel(model, byte_tokenizer(), model.config, torch.device("cpu"), None, "eager", "masked")
    found = _structure(loaded)
    proved, certificate = check_structure(loaded, found, [_encoding(np.arange(50, 50 + n)) for n in (9, 6, 4)], 0)
    assert found.pads and proved.pads is pads
    assert not [c for c in certificate.failed if not c.condemns]


# -- the router of a mixture of experts ----------------------------------------------------------------------

ROUTER_LIES: dict[str, Callable[[HookPoint], HookPoint]] = {
    "another temperature": lambda point: replace(point, factor=0.5),
    "sigmoids": lambda point: replace(point, made="sigmoid"),
    "logits": lambda point: replace(point, made=None),
    "another layer": lambda point: replace(point, module="model.layers.0.mlp.gate"),
}


@pytest.mark.parametrize("lie", ROUTER_LIES)
def test_a_router_that_lies_is_left_out_with_the_check_as_the_reason(lie: str) -> None:
    model: Any = build_tiny(next(c for c in model_classes("causal") if c.model_type == "mixtral"))
    loaded = LoadedModel(model, byte_tokenizer(), model.config, torch.device("cpu"), None, "eager", "causal")
    encodings, honest = _encodings("causal"), find_structure(model, 99)
    assert check_structure(loaded, honest, encodings, 0)[0].main.missing.keys() == {"mlp_act"}
    last = honest.main.n_layers - 1

    def lying(layers: tuple[LayerPlan, ...], i: int) -> LayerPlan:
        point = layers[i].found["router"]
        return replace(layers[i], found={"router": ROUTER_LIES[lie](point)}) if i == last else layers[i]

    proved, certificate = check_structure(loaded, _changed(honest, "dec", lying), encodings, 0)
    assert proved.main.missing.keys() == {"mlp_act", "router"} and "router: " in proved.main.missing["router"]
    assert all(check.condemns == ("dec.router",) for check in certificate.failed)
