"""Attention that a model writes out itself, seen through torch's own functions."""

import numpy as np
import pytest
import torch
from support.encoders import tiny_encoder
from support.models import tiny_decoder
from torch import nn

from decision_traces.model.discovery.dataflow import record_forward
from decision_traces.model.discovery.softmax import watch_softmax


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


# -- other ways to write it ----------------------------------------------------------------------------------


def _seen(module: nn.Module, *inputs: torch.Tensor):
    """Run a module watched; return the one call that was seen and what the module gave."""
    calls: list = []
    with torch.no_grad(), watch_softmax([module], lambda call: calls.append(call)):
        out = module(*inputs)
    (call,) = calls
    return call, out


class Einsum(nn.Module):
    """As XLNet writes it: positions first, products in Einstein's notation."""

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("ibnd,jbnd->bnij", q, k) * 0.25
        return torch.einsum("bnij,jbnd->ibnd", torch.softmax(scores, dim=3), v)


def _positions_first() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)  # 5 queries, 7 keys, 2 rows, 3 heads, width 4, values of width 6
    return torch.randn(5, 2, 3, 4), torch.randn(7, 2, 3, 4), torch.randn(7, 2, 3, 6)


def test_products_in_einsteins_notation_are_seen_by_row_and_head() -> None:
    q, k, v = _positions_first()
    call, out = _seen(Einsum(), q, k, v)
    assert torch.equal(call.query, q.permute(1, 2, 0, 3))
    assert torch.equal(call.key, k.permute(1, 2, 0, 3))
    assert torch.equal(call.value, v.permute(1, 2, 0, 3))
    assert call.scaling == 0.25
    assert torch.equal(call.output, out.permute(1, 0, 2, 3))
    by_hand = np.einsum("ibnd,jbnd->bnij", q.double().numpy(), k.double().numpy()) * 0.25
    by_hand = np.exp(by_hand) / np.exp(by_hand).sum(-1, keepdims=True)
    np.testing.assert_allclose(call.probabilities.numpy(), by_hand, rtol=1e-5)


def test_what_the_watcher_returns_replaces_an_einstein_sum_in_its_own_axes() -> None:
    q, k, v = _positions_first()
    other = torch.randn(2, 5, 3, 6)  # row, query, head, width
    module = Einsum()
    with watch_softmax([module], lambda _call: other):
        out = module(q, k, v)
    assert torch.equal(out, other.permute(1, 0, 2, 3))


@pytest.mark.parametrize(
    "equation",
    ["bhqd,bhkd->bhkq", "bhqd,bhdk->bqk", "...qd,...kd->...qk"],
    ids=["keys-first", "heads-summed", "ellipsis"],
)
def test_other_einstein_sums_are_not_scores(equation: str) -> None:
    class Other(nn.Module):
        def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
            right = k.transpose(-1, -2) if "dk" in equation else k
            scores = torch.einsum(equation, q, right)
            return torch.softmax(scores, dim=-1) @ torch.ones(5, 2)

    calls: list = []
    module = Other()
    with watch_softmax([module], lambda call: calls.append(call)):
        module(*torch.randn(2, 2, 3, 5, 4))
    assert calls == []


class Flattened(nn.Module):
    """As BART wrote it once: rows and heads in one axis all along, the rows known from the module's argument."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        rows, n, width = hidden.shape
        flat = hidden.view(rows, n, self.heads, -1).transpose(1, 2).reshape(rows * self.heads, n, -1)
        probabilities = torch.softmax(torch.bmm(flat * 0.5, flat.transpose(1, 2)), dim=-1)
        return torch.bmm(probabilities, flat).view(rows, self.heads, n, -1).transpose(1, 2).reshape(rows, n, width)


@pytest.mark.parametrize(("rows", "heads"), [(2, 3), (3, 2), (1, 6), (6, 1)])
def test_rows_and_heads_in_one_axis_are_told_apart(rows: int, heads: int) -> None:
    torch.manual_seed(2)
    hidden = torch.randn(rows, 5, heads * 4)
    call, out = _seen(Flattened(heads), hidden)
    by_head = hidden.view(rows, 5, heads, 4).transpose(1, 2)
    assert torch.equal(call.query, by_head * 0.5) and torch.equal(call.key, by_head)
    assert torch.equal(call.value, by_head)
    assert call.scaling == 1.0
    assert call.probabilities.shape == (rows, heads, 5, 5)
    assert torch.equal(call.output, out.view(rows, 5, heads, 4))


@pytest.mark.parametrize("kept", ["zeros_and_ones", "other"])
def test_scores_times_a_mask_of_zeros_and_ones_are_scores_and_times_anything_else_are_not(kept: str) -> None:
    """A mask may be multiplied in; a matrix of gates would make another function of q and k."""
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    mask = torch.ones(1, 1, 5, 5).tril()
    mask = mask if kept == "zeros_and_ones" else mask * 0.5

    class Masked(nn.Module):
        def forward(self) -> torch.Tensor:
            scores = (q @ k.transpose(-1, -2)) * 0.5
            scores = scores * mask + (mask - 1) * 1e4
            return torch.softmax(scores, dim=-1) @ v

    calls: list = []
    module = Masked()
    with watch_softmax([module], lambda call: calls.append(call)):
        module()
    if kept == "other":
        assert calls == []
        return
    assert calls[0].scaling == 0.5
    assert torch.equal(calls[0].query, q) and torch.equal(calls[0].key, k)
    assert float(calls[0].probabilities.triu(1).abs().max()) == 0.0


@pytest.mark.parametrize("scaling", ["before", "after", "over"])
def test_the_scale_is_gathered_wherever_it_stands(scaling: str) -> None:
    torch.manual_seed(4)
    q, k, v = torch.randn(3, 2, 3, 5, 4)

    class Scaled(nn.Module):
        def forward(self) -> torch.Tensor:
            if scaling == "before":  # inside the product, as BLOOM does it
                flat = [t.flatten(0, 1) for t in (q, k)]
                scores = torch.zeros(6, 5, 5).baddbmm(flat[0], flat[1].transpose(1, 2), beta=1.0, alpha=0.125)
                scores = scores.view(2, 3, 5, 5)
            else:
                scores = q @ k.transpose(-1, -2)
                scores = scores * 0.5 * 0.25 if scaling == "after" else scores / torch.tensor(8.0)
            return torch.softmax(scores, dim=-1) @ v

    call, _ = _seen(Scaled())
    assert call.scaling == 0.125
    expected = torch.softmax(0.125 * q @ k.transpose(-1, -2), dim=-1)
    torch.testing.assert_close(call.probabilities, expected)


# -- torch's own attention, called by the model ---------------------------------------------------------------


class Fused(nn.Module):
    def __init__(self, **options) -> None:
        super().__init__()
        self.options = options

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, **self.options)


def test_the_bias_of_fused_attention_is_what_is_added_to_its_scores() -> None:
    torch.manual_seed(5)
    q, k, v = torch.randn(3, 2, 3, 5, 4)
    bias = torch.randn(2, 1, 5, 5)
    call, out = _seen(Fused(attn_mask=bias, scale=0.25), q, k, v)
    assert call.fused and call.probabilities is None
    assert torch.equal(call.bias, bias) and call.scaling == 0.25
    by_hand = torch.softmax(0.25 * q @ k.transpose(-1, -2) + bias, dim=-1) @ v
    torch.testing.assert_close(call.output, by_hand.transpose(1, 2))
    assert torch.equal(call.output, out.transpose(1, 2))


def test_causal_fused_attention_has_a_causal_bias() -> None:
    q, k, v = torch.randn(3, 2, 3, 3, 4)
    call, _ = _seen(Fused(is_causal=True), q, k, v)
    inf = float("inf")
    assert call.bias.tolist() == [[0.0, -inf, -inf], [0.0, 0.0, -inf], [0.0, 0.0, 0.0]]
    assert call.scaling is None


def test_a_mask_of_truths_becomes_a_bias() -> None:
    q, k, v = torch.randn(3, 1, 1, 2, 4)
    call, _ = _seen(Fused(attn_mask=torch.tensor([[True, False], [True, True]])), q, k, v)
    assert call.bias.tolist() == [[0.0, float("-inf")], [0.0, 0.0]]


# -- key-value heads that the model repeats --------------------------------------------------------------------


class Repeating(nn.Module):
    """Grouped queries as some models write them: keys and values repeated before the products."""

    def __init__(self, repeats: int, n_kv: int) -> None:
        super().__init__()
        self.repeats, self.width = repeats, 4 * n_kv
        self.k, self.v = nn.Linear(16, self.width), nn.Linear(16, self.width)
        self.q = nn.Linear(16, self.width * repeats)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        def heads(t: torch.Tensor) -> torch.Tensor:
            return t.view(*t.shape[:2], -1, 4).transpose(1, 2)

        q, k, v = (heads(one(input_ids)) for one in (self.q, self.k, self.v))
        k, v = (t.repeat_interleave(self.repeats, 1) for t in (k, v))
        return torch.softmax(q @ k.transpose(-1, -2) / 2, dim=-1) @ v


@pytest.mark.parametrize(("repeats", "n_kv"), [(1, 4), (2, 2), (4, 1), (3, 2)])
def test_repeated_key_value_heads_are_found_again(repeats: int, n_kv: int) -> None:
    torch.manual_seed(6)
    flow = record_forward(Repeating(repeats, n_kv), {"input_ids": torch.randn(2, 5, 16)})
    (node,) = flow.attention
    assert node.repeats == repeats
    assert node.key_shape == (2, repeats * n_kv, 5, 4)
    assert node.scaling == 0.5 and node.written_out and node.has_probabilities
