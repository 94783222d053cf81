"""A write arrives: in every class of the quick matrix, at every stage that is not refused with its reason.

Own values change no bit. Another text's state, put in the place of a text's own at any one layer, gives the other
text's logits. What attention gives can be written as what is added to the stream, head by head, as probabilities and
values, or as queries, keys and values: all of these give the same.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import pytest
import torch
from architectures.test_matrix import CLASSES, EAGER, MAINSTREAM
from torch import Tensor, nn

from decision_traces.errors import WriteError
from decision_traces.format.arrays import Site
from decision_traces.model.discovery.probe import find_structure_on
from decision_traces.model.discovery.writing import DERIVED, MADE, NO_PROBABILITIES, UNREAD
from decision_traces.model.structure import HookPoint
from decision_traces.tracing.edits import Edit
from decision_traces.tracing.session import Session
from dev.architectures.matrix import task_of
from dev.architectures.tiny import Kind, build_tiny, tiny_inputs

STREAM = ("embed", "pre_attn", "post_attn", "post_cross", "post_mlp", "final")
HALVES = ("attn_out", "cross_attn_out", "mlp_out", "mlp_act")
PARTS = ("q", "k", "v", "attn", "head_out")
STAGES = (*STREAM, *HALVES, *PARTS, *(f"cross_{part}" for part in PARTS), "router")
OTHER_TERMS = "the scores of its attention have terms beside q·k that depend on the text; a write would not reach them"

# What cannot be written in these classes though it can be read, and why; in all layers but where a number says which.
REFUSED: dict[str, dict[str, str]] = {
    "gpt_neox": {"dec.post_attn": DERIVED},
    "falcon": {"dec.post_attn": DERIVED},
    "cohere2": {"dec.post_attn": DERIVED},
    **{name: {"dec.router": MADE} for name in ("mixtral", "gpt_oss", "jamba", "deepseek_v3", "qwen3_next")},
    "xlnet": {"enc.q": OTHER_TERMS, "enc.k": OTHER_TERMS},
    "prophetnet": {
        "dec.q": OTHER_TERMS, "dec.k": OTHER_TERMS, "dec.final": UNREAD,
        **{f"dec.{part} 3": UNREAD for part in PARTS},  # its logits are those of the later streams
    },
}  # fmt: skip
# Whose token ids reach the layers past the stream, so that no state but the last is all there is.
PAST_THE_STREAM = {"gemma4_text"}
# Whose output projection reads more than the heads: a gate, a convolution, further streams.
MORE_THAN_HEADS = {"qwen3_next", "convbert", "prophetnet"}

EVERY_CLASS = pytest.mark.parametrize(("kind", "model_type"), MAINSTREAM)
ONE_IN_TWO = pytest.mark.parametrize(  # in every run of the tests; all of them with -m long
    ("kind", "model_type"),
    [pytest.param(*which, marks=pytest.mark.long if i % 2 == 0 else ()) for i, which in enumerate(MAINSTREAM)],
)


@dataclass(frozen=True, slots=True)
class Case:
    """A model, two inputs of equal lengths, and what it makes of the first."""

    session: Session
    one: Mapping[str, Any]
    other: Mapping[str, Any]
    logits: Tensor

    def sites(self, stages: Sequence[str]) -> Iterator[Site]:
        """Yield the sites of some stages that the model has."""
        for side, stack in self.session.structure.stacks.items():
            for stage in stages:
                if stage in stack.missing or (stage.startswith(("cross", "post_cross")) and side == "enc"):
                    continue
                for layer in (0,) if stage in {"embed", "final"} else stack.layers_with(stage):
                    if stage != "mlp_act" or stack.layers[layer].mlp_act is not None:
                        yield f"{side}.{stage}", layer

    def writable(self, stages: Sequence[str]) -> list[Site]:
        return [at for at in self.sites(stages) if self.session.refusal(at) is None]

    def apart(self, write: Mapping[Site, Any], expected: Tensor, inputs: Mapping[str, Any] | None = None) -> float:
        """Return how far the logits after some writes are from others."""
        logits = self.session.run(inputs or self.one, write=write).logits
        return float((logits - expected).abs().max())

    def donated(self, sites: Sequence[Site]) -> dict[Site, Edit]:
        """Return writes of what the other input has at some sites."""
        found = self.session.run(self.other, read=sites)
        return {at: Edit.set(found[at]) for at in sites}

    def rest(self, side: str) -> Mapping[str, Any]:
        """Return the first input, with the other side of an encoder-decoder from the other input."""
        if len(self.session.structure.stacks) == 1:
            return self.one
        kept = {name: value for name, value in self.other.items() if name.startswith("decoder") == (side == "enc")}
        return {**self.one, **kept}


@cache
def _case(kind: Kind, model_type: str, attention: Literal["eager", "sdpa"] = "eager") -> Case:
    which = CLASSES[kind, model_type]
    model = build_tiny(which, attention)
    task = task_of(which, model)
    which = replace(which, kind="seq2seq") if task == "seq2seq" else which
    cached = {"use_cache": False} if task in {"causal", "seq2seq"} else {}
    probed = {**tiny_inputs(which, model, (6, 6), target_lengths=(5, 5)), **cached}
    session = Session(model, find_structure_on(model, probed, task))
    one, other = (tiny_inputs(which, model, (7, 7), seed=seed, target_lengths=(6, 6)) for seed in (5, 6))
    return Case(session, one, other, session.run(one).logits)


@EVERY_CLASS
def test_what_cannot_be_written_says_why(kind: Kind, model_type: str) -> None:
    case = _case(kind, model_type)
    reasons = {at: case.session.refusal(at) for at in case.sites(STAGES)}
    expected = REFUSED.get(model_type, {})
    for (name, layer), reason in reasons.items():
        assert reason == expected.get(f"{name} {layer}", expected.get(name)), (name, layer)
    for (name, layer), reason in reasons.items():
        if reason is not None:
            with pytest.raises(WriteError) as raised:
                case.session.run(case.one, write={(name, layer): Edit.set(0.0)})
            assert str(raised.value) == f"{name} of layer {layer} cannot be written: {reason}."


@EVERY_CLASS
def test_own_values_change_no_bit(kind: Kind, model_type: str) -> None:
    case = _case(kind, model_type)
    sites = case.writable(STAGES)
    own = case.session.run(case.one, read=sites)
    again = case.session.run(case.one, read=sites, write={at: Edit.set(own[at]) for at in sites})
    assert torch.equal(again.logits, case.logits)
    for at in sites:
        assert torch.equal(again[at], own[at]), at
        assert torch.equal(case.session.run(case.one, write={at: lambda t: t.clone()}).logits, case.logits), at


@ONE_IN_TWO
def test_every_write_reaches_the_logits(kind: Kind, model_type: str) -> None:
    case = _case(kind, model_type)
    noise = torch.Generator().manual_seed(0)
    for at in case.writable(STAGES):
        changed = Edit.by(lambda t: t + torch.rand(t.shape, generator=noise))
        assert case.apart({at: changed}, case.logits) > 1e-4, at


@EVERY_CLASS
def test_another_texts_state_gives_its_logits(kind: Kind, model_type: str) -> None:
    case = _case(kind, model_type)
    theirs = case.session.run(case.other).logits
    for at in case.writable(STREAM):
        name, layer = at
        stack = case.session.structure.stacks[name.split(".")[0]]  # type: ignore[index]
        last = name.endswith("final") or (name.endswith("post_mlp") and layer == stack.n_layers - 1)
        inputs = case.rest(stack.side)
        assert case.apart({}, theirs, inputs) > 1e-2
        if last or model_type not in PAST_THE_STREAM:
            assert case.apart(case.donated([at]), theirs, inputs) < 1e-5, at


@ONE_IN_TWO
def test_attention_and_mlp_written_at_one_end_are_written_at_the_other(kind: Kind, model_type: str) -> None:
    case = _case(kind, model_type)
    for side, stack in case.session.structure.stacks.items():
        for layer in range(stack.n_layers):
            ways = [
                *([(f"{prefix}q", f"{prefix}k", f"{prefix}v"), (f"{prefix}attn", f"{prefix}v"), (f"{prefix}head_out",),
                   *([(f"{prefix}attn_out",)] if model_type not in MORE_THAN_HEADS else [])]
                  for prefix in ("", "cross_")),
                [("mlp_act",), ("mlp_out",)],
            ]  # fmt: skip
            for way in ways:
                _same(case, [[(f"{side}.{stage}", layer) for stage in stages] for stages in way])


def _same(case: Case, ways: Sequence[Sequence[Site]]) -> None:
    """Every way of writing what the other input has gives the same logits, and not those of before."""
    having = set(case.writable(STAGES))
    got = [case.session.run(case.one, write=case.donated(way)).logits for way in ways if having.issuperset(way)]
    for logits in got:
        assert float((logits - got[0]).abs().max()) < 1e-5, ways
        assert float((logits - case.logits).abs().max()) > 1e-3, ways


@pytest.mark.parametrize(
    ("kind", "model_type"), [which for which, (attention, *_) in MAINSTREAM.items() if attention != EAGER]
)
def test_under_sdpa_all_but_the_probabilities_is_written(kind: Kind, model_type: str) -> None:
    case = _case(kind, model_type, "sdpa")
    for side, stack in case.session.structure.stacks.items():
        layer = stack.layers_with("attn")[0]
        assert case.session.refusal((f"{side}.attn", layer)) == NO_PROBABILITIES
        sites = [(f"{side}.{part}", layer) for part in ("q", "k", "v")]
        own = case.session.run(case.one, read=sites)
        assert case.apart({at: Edit.set(own[at]) for at in sites}, case.logits) == 0.0
        _same(case, [sites, [(f"{side}.head_out", layer)]])


def test_a_state_that_is_read_before_a_module_gives_it_is_written_where_it_is_made() -> None:
    """Gemma 4 reads the embeddings for its layers' own inputs, SqueezeBERT's pooler the last state, before that."""
    gemma = _case("causal", "gemma4_text").session.structure.stacks["dec"].write_points
    squeeze = _case("multiple_choice", "squeezebert").session.structure.stacks["enc"].write_points
    points = gemma["embed", 0], gemma["pre_attn", 0], squeeze["final", 0]
    assert [(point.module, point.side) for point in points if isinstance(point, HookPoint)] == [
        ("model.embed_tokens", "output"),
        ("model.embed_tokens", "output"),
        ("transformer.encoder.layers.3.output", "output"),
    ]


def test_probabilities_are_handed_on_in_the_layout_of_the_output() -> None:
    """JetMoE takes a view of what attention gives, as if it were contiguous."""
    case = _case("causal", "jetmoe")
    at = ("dec.attn", 1)
    own = case.session.run(case.one, read=[at])[at]
    assert case.apart({at: Edit.set(own)}, case.logits) == 0.0
    _same(case, [[at, ("dec.v", 1)], [("dec.head_out", 1)]])


def test_the_last_state_of_an_encoder_is_written_before_its_pooler_reads_it() -> None:
    case = _case("multiple_choice", "bert")
    theirs = case.session.run(case.other).logits
    assert case.apart(case.donated([("enc.final", 0)]), theirs) == 0.0 != case.apart({}, theirs)


def test_a_wrapped_module_is_no_other_family() -> None:
    """The hook points come from what the model does: one more module around every MLP changes nothing."""

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * 1.0 if isinstance(x, Tensor) else self.inner(x)

    which = CLASSES["causal", "llama"]
    model = build_tiny(which)
    for layer in model.model.layers:
        layer.mlp = Wrapped(layer.mlp)
    inputs = tiny_inputs(which, model, (6, 6))
    session = Session(model, find_structure_on(model, {**inputs, "use_cache": False}, "causal"))
    for stage in ("mlp_act", "mlp_out", "post_mlp"):
        at = (f"dec.{stage}", 1)
        own = session.run(inputs, read=[at])
        assert torch.equal(session.run(inputs, write={at: Edit.set(own[at])}).logits, own.logits)
        assert not torch.equal(session.run(inputs, write={at: Edit.scale(0.5)}).logits, own.logits)
