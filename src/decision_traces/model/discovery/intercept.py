"""Seeing every attention call of a model, through its own attention function.

Transformers models ask `AttentionInterface.get_interface` for their attention function on every call. While a
watcher is active that method returns a wrapper around the function the model would have got: the model computes
exactly what it would have computed, and the watcher sees what went in and what came out. Registering a custom
attention name instead would silently change masks (they become None) and confuse models that test the name.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn
from transformers.modeling_utils import AttentionInterface


def causal_bias(query: Tensor, key: Tensor) -> Tensor:
    """Return the bias that lets every query see the keys up to its own position: (n_query, n_key), bool."""
    return torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()


def as_bias(mask: Tensor | None) -> Tensor | None:
    """Return a mask as what is added to the scores: a bool one (True where there is attention) as zeros and -inf."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, -torch.inf)


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one call of a model's attention function saw and gave.

    Attributes:
        module: The attention module that called.
        query: (batch, n_heads, n_query, d_head).
        key: (batch, n_kv_heads, n_key, d_head), before repetition for grouped queries.
        value: (batch, n_kv_heads, n_key, d_head).
        scaling: The factor on q·k; None means 1/sqrt(d_head).
        output: (batch, n_query, n_heads, d_head), before the output projection.
        probabilities: (batch, n_heads, n_query, n_key), or None where the implementation does not give them (SDPA).
        mask: Where there is attention (bool), or what is added to the scores; broadcast to (batch, n_heads, n_query,
            n_key). None where nothing is known.
        causal: Whether every query sees the keys up to its own position, without a mask that says so.
        position_bias: What the model adds to the scores for the distance of two positions, where it says so.
        softcap: The scores s become softcap * tanh(s / softcap) before the bias; None where they do not.
        fused: Whether this is torch's own attention: then scale, q, k, v and bias are all there is to it.
        product, scores: q·k and what the softmax read, as the model has them, where it wrote attention out itself.
    """

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    scaling: float | None
    output: Tensor
    probabilities: Tensor | None
    mask: Tensor | None = None
    causal: bool = False
    position_bias: Tensor | None = None
    softcap: float | None = None
    fused: bool = False
    product: Tensor | None = None
    scores: Tensor | None = None

    @property
    def bias(self) -> Tensor | None:
        """What is added to the scores, broadcast to (batch, n_heads, n_query, n_key); None where nothing is known.

        It is made when it is asked for: only a proof does that.
        """
        bias = as_bias(causal_bias(self.query, self.key) if self.causal else self.mask)
        if self.position_bias is None:
            return bias
        return self.position_bias if bias is None else self.position_bias + bias


Watcher = Callable[[AttentionCall], Tensor | None]
"""Sees one call. What it returns, if anything, takes the place of the output."""

Part = Literal["query", "key", "value"]
Rewriter = Callable[[nn.Module, Part, Tensor], Tensor]
"""Gets what a call is about to use, shaped as in `AttentionCall`, and returns what it uses instead (or the same)."""

in_attention_function: ContextVar[bool] = ContextVar("decision_traces_in_attention_function", default=False)
"""Whether a watched model is inside an attention function it got from transformers; see `softmax`."""

# A context variable, so that a model running in another thread is not seen by this thread's watchers.
_watchers: ContextVar[tuple[tuple[Watcher, Rewriter | None], ...]] = ContextVar(
    "decision_traces_attention_watchers", default=()
)
_lock: Final = threading.Lock()
_users = 0
_original: Callable[..., Any] | None = None


_FUSED: Final = "sdpa_attention_forward"  # transformers' function around torch's scaled_dot_product_attention


def _observed(
    function: Callable[..., Any], watchers: tuple[tuple[Watcher, Rewriter | None], ...]
) -> Callable[..., Any]:
    @wraps(function)
    def call(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        for _, rewrite in watchers:
            if rewrite is not None:
                query, key = rewrite(module, "query", query), rewrite(module, "key", key)
                value = rewrite(module, "value", value)
        token = in_attention_function.set(True)
        try:
            result = function(module, query, key, value, *args, **kwargs)
        finally:
            in_attention_function.reset(token)
        output, probabilities = result[0], result[1]
        mask = next((m for m in (*args[:1], kwargs.get("attention_mask")) if isinstance(m, Tensor)), None)
        fused = probabilities is None and getattr(function, "__name__", "") == _FUSED
        told = kwargs.get("is_causal")
        causal = query.shape[2] > 1 and bool(getattr(module, "is_causal", True) if told is None else told)
        distance = kwargs.get("position_bias")  # T5 hands it on by itself
        seen = AttentionCall(
            module=module,
            query=query,
            key=key,
            value=value,
            scaling=kwargs.get("scaling"),
            output=output,
            probabilities=probabilities,
            mask=mask,
            causal=fused and mask is None and causal,
            position_bias=distance if isinstance(distance, Tensor) else None,
            softcap=kwargs.get("softcap"),
            fused=fused,
        )
        replaced = [other for watcher, _ in watchers if (other := watcher(seen)) is not None]
        return (replaced[-1], *result[1:]) if replaced else result

    return call


def _install() -> None:
    global _users, _original
    with _lock:
        _users += 1
        if _users > 1:
            return
        original = _original = AttentionInterface.get_interface

        @wraps(original)
        def get_interface(self: AttentionInterface, *args: Any, **kwargs: Any) -> Callable[..., Any]:
            function: Callable[..., Any] = original(self, *args, **kwargs)
            watchers = _watchers.get()
            return _observed(function, watchers) if watchers else function

        AttentionInterface.get_interface = get_interface


def _remove() -> None:
    global _users, _original
    with _lock:
        _users -= 1
        if _users == 0:
            AttentionInterface.get_interface = _original
            _original = None


@contextmanager
def watch_attention(watcher: Watcher, rewrite: Rewriter | None = None) -> Iterator[None]:
    """Call `watcher` after every attention call made in this thread inside the block; nothing stays behind.

    Blocks nest: every watcher sees every call.

    Args:
        watcher: Sees each call, and may give another output.
        rewrite: Gets each call's query, key and value before they are used, and may give others.
    """
    _install()
    token = _watchers.set((*_watchers.get(), (watcher, rewrite)))
    try:
        yield
    finally:
        _watchers.reset(token)
        _remove()
