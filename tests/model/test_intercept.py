"""Watching attention changes nothing, leaves nothing behind, and keeps threads apart."""

import threading

import pytest
import torch
from support.models import tiny_decoder
from transformers.modeling_utils import AttentionInterface

from decision_traces.model.discovery.intercept import AttentionCall, watch_attention

IDS = torch.tensor([[5, 9, 30, 7]])


def test_sees_each_layer_once_and_leaves_the_interface_as_it_was() -> None:
    before = AttentionInterface.get_interface
    model, seen = tiny_decoder("llama"), []
    with torch.no_grad():
        expected = model(IDS).logits
        with watch_attention(seen.append):
            watched = model(IDS).logits
    assert torch.equal(watched, expected)
    assert [c.module for c in seen] == [layer.self_attn for layer in model.model.layers]
    assert AttentionInterface.get_interface is before


def test_probabilities_only_under_eager() -> None:
    seen: list[AttentionCall] = []
    for implementation in ("sdpa", "eager"):
        model = tiny_decoder("gpt2")
        model.set_attn_implementation(implementation)
        with torch.no_grad(), watch_attention(seen.append):
            model(IDS)
    assert [c.probabilities is None for c in seen] == [True] * 3 + [False] * 3


def test_nothing_stays_after_an_error() -> None:
    before = AttentionInterface.get_interface

    def fail(_call: AttentionCall) -> None:
        raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"), torch.no_grad(), watch_attention(fail):
        tiny_decoder("llama")(IDS)
    assert AttentionInterface.get_interface is before


def test_watchers_nest_and_each_sees_every_call() -> None:
    outer, inner = [], []
    with torch.no_grad(), watch_attention(outer.append), watch_attention(inner.append):
        tiny_decoder("llama")(IDS)
    assert len(outer) == len(inner) == 3


def test_another_thread_is_not_watched() -> None:
    here: list[AttentionCall] = []
    there: list[AttentionCall] = []
    mine, other = tiny_decoder("llama"), tiny_decoder("gpt2")

    def elsewhere() -> None:
        with torch.no_grad():
            other(IDS)
            with watch_attention(there.append):
                other(IDS)

    with torch.no_grad(), watch_attention(here.append):
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        mine(IDS)
    assert [c.module for c in here] == [layer.self_attn for layer in mine.model.layers]
    assert [c.module for c in there] == [block.attn for block in other.transformer.h]
