"""Attention that a model writes out itself, seen through torch's own functions."""

import pytest
import torch
from torch import nn

from decision_traces.models.softmax import watch_softmax
from decision_traces.testing.encoders import tiny_encoder
from decision_traces.testing.models import tiny_decoder


class WrittenOut(nn.Module):
    """Attention with every step that models put between the products."""

    def __init__(self, *, flat: bool = False, fused: bool = False) -> None:
        super().__init__()
        self.flat, self.fused, self.drop = flat, fused, nn.Dropout(0.5)

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self.fused:
            return nn.functional.scaled_dot_product_attention(q, k, v)
        if self.flat:
            q, k, v = (x.flatten(0, 1) for x in (q, k, v))
            scores = torch.bmm(q, k.transpose(1, 2)).view(2, 3, 5, 5)
        else:
            scores = q @ k.transpose(-1, -2)
        scores = (scores / 2.0).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9) + 0.5
        probs = self.drop(torch.softmax(scores.float(), dim=-1).to(q.dtype))
        return torch.bmm(probs.view(-1, 5, 5), v) if self.flat else torch.matmul(probs, v)


@pytest.mark.parametrize("flat", [False, True])
def test_what_is_seen_is_what_was_computed(flat: bool) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    module, seen = WrittenOut(flat=flat).eval(), []
    plain = module(q, k, v)
    with watch_softmax([module], lambda call: seen.append(call)):
        assert torch.equal(module(q, k, v), plain)
    (call,) = seen
    assert call.module is module
    assert torch.equal(call.query, q) and torch.equal(call.key, k) and torch.equal(call.value, v)
    assert call.scaling == 0.5
    assert torch.equal(call.output, plain.view(2, 3, 5, 4).transpose(1, 2))
    scores = (q @ k.transpose(-1, -2) * 0.5).masked_fill(torch.ones(5, 5).triu(1).bool(), -1e9)
    torch.testing.assert_close(call.probabilities, scores.softmax(-1))


def test_fused_attention_is_seen_without_probabilities() -> None:
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    module, seen = WrittenOut(fused=True), []
    with watch_softmax([module], lambda call: seen.append(call)):
        out = module(q, k, v)
    assert seen[0].probabilities is None
    assert torch.equal(seen[0].query, q) and torch.equal(seen[0].output, out.transpose(1, 2))


@pytest.mark.parametrize("flat", [False, True])
def test_what_the_watcher_returns_takes_the_place_of_the_output(flat: bool) -> None:
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    other = torch.randn(2, 5, 3, 4)
    module = WrittenOut(flat=flat).eval()
    with watch_softmax([module], lambda _call: other):
        assert torch.equal(module(q, k, v).view(2, 3, 5, 4), other.transpose(1, 2))


def test_other_softmaxes_and_products_are_not_attention() -> None:
    class Gate(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.softmax(x, dim=-1) @ x.transpose(-1, -2)

    seen: list = []
    gate = Gate()
    with watch_softmax([gate], lambda call: seen.append(call)):
        gate(torch.randn(2, 3, 4))
    assert not seen


@pytest.mark.parametrize("family", ["mpnet", "deberta_v3", "gptj"])
def test_nothing_stays_behind_even_after_an_error(family: str) -> None:
    decoder = family == "gptj"
    model = tiny_decoder(family) if decoder else tiny_encoder(family)
    ids = torch.tensor([[5, 6, 7, 8]]) if decoder else torch.tensor([[[5, 6, 7, 8]]])
    with torch.no_grad():
        before = model(ids).logits

    def fail(_call) -> None:
        raise RuntimeError("a watcher that breaks")

    with torch.no_grad(), pytest.raises(RuntimeError, match="breaks"), watch_softmax(tuple(model.modules()), fail):
        model(ids)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert not torch.overrides._get_current_function_mode_stack()
    with torch.no_grad():
        assert torch.equal(model(ids).logits, before)
