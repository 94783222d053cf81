"""Seeing attention that a model writes out itself: product, softmax, product (DeBERTa, MPNet and others).

Such models do not ask transformers for an attention function, so there is nothing to wrap. Instead every torch
function called inside an attention module is watched: the softmax gives the probabilities, the product in front
of it (reached through sums, scalings, masks and views alone) has q and k as its factors, and the product behind
it has v as its right one. Products may be matrix products or `einsum`. Torch's fused attention, where a model calls
it directly, is seen as well. Nothing is computed again but what somebody changes: other queries and keys change the
scores that the softmax reads, other values what is mixed; the model's own tensors are handed on.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from decision_traces.model.discovery.intercept import AttentionCall, Part, Rewriter, Watcher, in_attention_function

_PRODUCTS: Final = frozenset({"matmul", "bmm", "__matmul__", "__rmatmul__"})
_SUMS: Final = frozenset({"add", "add_", "sub", "__add__", "__iadd__", "__radd__", "__sub__", "masked_fill"}) | {
    "masked_fill_", "where", "view", "reshape", "contiguous", "to", "float", "type", "half", "bfloat16", "clamp",
    "type_as", "max", "maximum",
}  # fmt: skip
_TIMES: Final = frozenset({"mul", "mul_", "__mul__", "__rmul__", "__imul__"})
_OVER: Final = frozenset({"div", "div_", "true_divide", "__truediv__", "__itruediv__"})
_QKV: Final[tuple[Part, ...]] = ("query", "key", "value")
_SAME: Final = frozenset({"dropout", "view", "reshape", "contiguous", "to", "float", "type", "half", "bfloat16"}) | {
    "type_as", "masked_fill", "mul", "__mul__", "unflatten",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Scores:
    """A tensor of attention scores: scale * (left @ right) plus whatever was added.

    Attributes:
        left: (..., query, d): the queries.
        right: (..., d, key): the keys.
        scale: The factor.
        product: left @ right.
    """

    left: Tensor
    right: Tensor
    scale: float
    product: Tensor


@dataclass(frozen=True, slots=True)
class _Probabilities:
    """A tensor of attention probabilities, four-dimensional if it ever was, and the scores they were made from.

    Attributes:
        value: The probabilities.
        scores: What is known of the scores.
        read: What the softmax read.
    """

    value: Tensor
    scores: _Scores
    read: Tensor


class SoftmaxAttention(TorchFunctionMode):
    """Calls a watcher after every attention operation inside the modules it is told it is in."""

    def __init__(self, watcher: Watcher, rewrite: Rewriter | None = None) -> None:
        super().__init__()
        self._watcher, self._rewrite = watcher, rewrite
        self._modules: list[nn.Module] = []
        self._rows: list[int | None] = []  # rows of the batch that each of them works on
        self._known: dict[int, _Scores | _Probabilities] = {}
        self._alive: list[Tensor] = []  # ids are unique only while the tensors live

    def enter(self, module: nn.Module, inputs: Sequence[Any]) -> None:
        """Begin to watch: the model is now inside this module, called with these arguments."""
        self._modules.append(module)
        self._rows.append(next((a.shape[0] for a in inputs if isinstance(a, Tensor) and a.dim() == 3), None))

    def leave(self) -> None:
        """End to watch: the model left the module it was in. With the outermost, what was seen is forgotten."""
        self._modules.pop()
        self._rows.pop()
        if not self._modules:
            self._known.clear()
            self._alive.clear()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not self._modules or not isinstance(out, Tensor) or in_attention_function.get():
            return out
        name = getattr(func, "__name__", "")
        if name in _PRODUCTS and len(args) > 1 and isinstance(args[1], Tensor) and out.dim() >= 3:
            return self._product(func, args[0], args[1], out)
        if name == "einsum":
            return self._einsum(func, args, out)
        if name == "scaled_dot_product_attention":
            return self._fused(func, args, kwargs, out)
        if name == "baddbmm":
            left, right = (kwargs.get(f"batch{i}", args[i] if i < len(args) else None) for i in (1, 2))
            self._remember(out, _Scores(left, right, float(kwargs.get("alpha", 1.0)), out))
        elif name == "softmax":
            return self._softmax(func, args, kwargs, out)
        else:
            self._follow(name, args, out)
        return out

    def _remember(self, tensor: Tensor, what: _Scores | _Probabilities) -> None:
        self._known[id(tensor)] = what
        self._alive.append(tensor)

    def _product(self, func: Any, left: Tensor, right: Tensor, out: Tensor) -> Tensor:
        known = self._known.get(id(left))
        if not isinstance(known, _Probabilities):
            if isinstance(known, _Scores) and left.shape[-1] == 1:
                return out
            self._remember(out, _Scores(left, right, 1.0, out))
            return out
        if self._rewrite is not None:
            value = _by_head(right, known.value, self._n_rows())
            changed = self._rewrite(self._modules[-1], "value", value)
            if changed is not value:
                right = changed.reshape(right.shape)
                out = func(left, right)
        replaced = self._watcher(_call(self._modules[-1], known, right, out, self._n_rows()))
        return out if replaced is None else _as_made(replaced, out)

    def _n_rows(self) -> int | None:
        return next((n for n in reversed(self._rows) if n is not None), None)

    def _einsum(self, func: Any, args: Any, out: Tensor) -> Tensor:
        """A product in Einstein's notation: brought to (batch, head, position, ...), it is one like any other."""
        operands = args[1] if isinstance(args[1], list | tuple) else args[1:]
        letters = _Letters.of(args[0]) if len(operands) == 2 and out.dim() == 4 else None
        if letters is None:
            return out
        left, right = operands
        known = self._known.get(id(left))
        if isinstance(known, _Probabilities) and letters.is_mixing():
            value, mixed = letters.value(right), letters.mixed(out)
            if self._rewrite is not None:
                changed = self._rewrite(self._modules[-1], "value", value)
                if changed is not value:
                    value, out = changed, func(args[0], left, letters.as_right(changed))
                    mixed = letters.mixed(out)
            replaced = self._watcher(_call(self._modules[-1], known, value, mixed, self._n_rows()))
            return out if replaced is None else letters.unmixed(replaced.transpose(1, 2))
        if letters.is_scores():
            self._remember(out, _Scores(letters.query(left), letters.key(right), 1.0, out))
        return out

    def _fused(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> Tensor:
        """Torch's own attention in one operation, called by the model itself: there are no probabilities."""
        parts = [kwargs.get(n, args[i] if i < len(args) else None) for i, n in enumerate(_QKV)]
        if self._rewrite is not None:
            changed = [self._rewrite(self._modules[-1], part, t) for part, t in zip(_QKV, parts, strict=True)]
            if any(new is not old for new, old in zip(changed, parts, strict=True)):
                parts = changed
                out = func(*parts, *args[3:], **{k: v for k, v in kwargs.items() if k not in _QKV})
        query, key, value = parts
        causal = bool(kwargs.get("is_causal", args[5] if len(args) > 5 else False))
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        call = AttentionCall(
            module=self._modules[-1],
            query=query,
            key=key,
            value=value,
            scaling=kwargs.get("scale"),
            output=out.transpose(1, 2),
            probabilities=None,
            mask=mask,
            causal=causal and mask is None,
            fused=True,
        )
        replaced = self._watcher(call)
        return out if replaced is None else _as_made(replaced, out)

    def _softmax(self, func: Any, args: Any, kwargs: Any, out: Tensor) -> Tensor:
        scores = args[0] if args else kwargs["input"]
        known = self._known.get(id(scores))
        if not isinstance(known, _Scores) or out.dim() not in {3, 4}:
            return out
        if self._rewrite is not None:
            changed = self._rescored(scores, known)
            if changed is not None:
                scores, known = changed
                out = func(scores, *args[1:], **{k: v for k, v in kwargs.items() if k != "input"})
        self._remember(out, _Probabilities(out, known, scores))
        return out

    def _rescored(self, scores: Tensor, known: _Scores) -> tuple[Tensor, _Scores] | None:
        """Return the scores of other queries and keys, which differ by what the products do; None for no others."""
        assert self._rewrite is not None
        module, rows = self._modules[-1], self._n_rows()
        query, key = _by_head(known.left, scores, rows), _by_head(known.right, scores, rows).transpose(-1, -2)
        new_query, new_key = self._rewrite(module, "query", query), self._rewrite(module, "key", key)
        if new_query is query and new_key is key:
            return None
        difference = known.scale * (new_query @ new_key.transpose(-1, -2) - query @ key.transpose(-1, -2))
        differs = (new_query != query).any(-1)[..., None] | (new_key != key).any(-1)[..., None, :]
        difference = torch.where(differs, difference, 0).reshape(scores.shape).to(scores.dtype)
        left, right = new_query.reshape(known.left.shape), new_key.transpose(-1, -2).reshape(known.right.shape)
        return scores + difference, replace(known, left=left, right=right)

    def _follow(self, name: str, args: Any, out: Tensor) -> None:
        """Carry what is known of an argument over to the result of an operation that keeps its meaning."""
        for arg in args[:3]:
            known = self._known.get(id(arg)) if isinstance(arg, Tensor) else None
            if isinstance(known, _Probabilities) and name in _SAME and out.numel() == known.value.numel():
                value = known.value if out.dim() == 3 and known.value.dim() == 4 else out
                self._remember(out, replace(known, value=value))
                return
            if isinstance(known, _Scores) and (name in _SUMS or name in _TIMES | _OVER):
                factor = _factor(name, args)
                if factor is not None:
                    self._remember(out, replace(known, scale=known.scale * factor))
                return


@dataclass(frozen=True, slots=True)
class _Letters:
    """The letters of an einsum of two tensors."""

    left: str
    right: str
    out: str

    @classmethod
    def of(cls, equation: Any) -> "_Letters | None":
        """Read an equation such as `ibnd,jbnd->bnij`; None where it is of another form."""
        parts = equation.replace(" ", "").replace("->", ",").split(",") if isinstance(equation, str) else ()
        if len(parts) != 3 or any("." in p or len(p) != 4 for p in parts):
            return None
        return cls(*parts)

    def _shared(self) -> str:
        return "".join(c for c in self.out if c in self.left and c in self.right)

    def _summed(self) -> str:
        return "".join(c for c in self.left if c in self.right and c not in self.out)

    def is_scores(self) -> bool:
        """Whether the result is (batch, head, query, key), the last axis of the factors summed over."""
        query = [c for c in self.left if c not in self.right]
        key = [c for c in self.right if c not in self.left]
        two = len(self._shared()) == 2 and len(self._summed()) == len(query) == len(key) == 1
        return two and self.out == self._shared() + query[0] + key[0]

    def is_mixing(self) -> bool:
        """Whether the left factor is (batch, head, query, key), with keys summed over."""
        return len(self._summed()) == 1 and self.left.endswith(self._summed()) and len(self._shared()) == 2

    def query(self, left: Tensor) -> Tensor:
        """Return the left factor of scores as (batch, head, query, d)."""
        return _ordered(left, self.left, self.out[:3] + self._summed())

    def key(self, right: Tensor) -> Tensor:
        """Return the right factor of scores as (batch, head, d, key)."""
        return _ordered(right, self.right, self.out[:2] + self._summed() + self.out[3])

    def _mixed(self) -> str:
        width = next(c for c in self.right if c not in self.left)
        return self.left[:3] + width

    def value(self, right: Tensor) -> Tensor:
        """Return the right factor of the mixing as (batch, head, key, d)."""
        return _ordered(right, self.right, self.left[:2] + self._summed() + self._mixed()[3])

    def as_right(self, value: Tensor) -> Tensor:
        """Return (batch, head, key, d) in the form of the right factor of the mixing."""
        return _ordered(value, self.left[:2] + self._summed() + self._mixed()[3], self.right)

    def mixed(self, out: Tensor) -> Tensor:
        """Return what the mixing gives as (batch, head, query, d)."""
        return _ordered(out, self.out, self._mixed())

    def unmixed(self, mixed: Tensor) -> Tensor:
        """Return (batch, head, query, d) in the form the model made its own output in."""
        return _ordered(mixed, self._mixed(), self.out)


def _ordered(tensor: Tensor, have: str, want: str) -> Tensor:
    return tensor.permute([have.index(c) for c in want])


def _factor(name: str, args: Any) -> float | None:
    """Return what an operation multiplies scores with: 1 for sums, None for anything that is no number."""
    if name in _SUMS:
        return 1.0
    number = next((a for a in args[:2] if isinstance(a, int | float) or (isinstance(a, Tensor) and a.dim() == 0)), None)
    if number is None:
        mask = min((a for a in args[:2] if isinstance(a, Tensor)), key=lambda t: t.numel())
        zeros_and_ones = name in _TIMES and bool(((mask == 0) | (mask == 1)).all())
        return 1.0 if zeros_and_ones else None
    return float(number) if name in _TIMES else 1.0 / float(number)


def _rows(attention: Tensor, n_rows: int | None) -> int:
    """Return the rows of the batch in scores or probabilities: (batch, head, ...), or (batch * head, ...) all along."""
    rows = attention.shape[0]
    return n_rows if attention.dim() == 3 and n_rows is not None and rows % n_rows == 0 else rows


def _by_head(tensor: Tensor, attention: Tensor, n_rows: int | None) -> Tensor:
    """Return a factor of attention as (batch, head, ...)."""
    return tensor if tensor.dim() == 4 else tensor.view(_rows(attention, n_rows), -1, *tensor.shape[-2:])


def _call(module: nn.Module, known: _Probabilities, value: Tensor, out: Tensor, n_rows: int | None) -> AttentionCall:
    probabilities, scores = _by_head(known.value, known.value, n_rows), known.scores
    batch, heads = probabilities.shape[:2]
    return AttentionCall(
        module=module,
        query=_by_head(scores.left, known.value, n_rows),
        key=_by_head(scores.right, known.value, n_rows).transpose(-1, -2),
        value=_by_head(value, known.value, n_rows),
        scaling=scores.scale,
        output=out.view(batch, heads, *out.shape[-2:]).transpose(1, 2) if out.dim() == 3 else out.transpose(1, 2),
        probabilities=probabilities,
        product=scores.product,
        scores=known.read,
    )


def _as_made(replaced: Tensor, out: Tensor) -> Tensor:
    """Return (batch, n_query, n_heads, d_head) in the form the model made its own output in."""
    return replaced.transpose(1, 2).reshape(out.shape)


@contextmanager
def watch_softmax(modules: Sequence[nn.Module], watcher: Watcher, rewrite: Rewriter | None = None) -> Iterator[None]:
    """Call `watcher` after every attention operation inside these modules; nothing stays behind.

    Attention that goes through transformers' interface is left to `watch_attention`, which sees it as a whole.

    Args:
        modules: Where attention may happen; the innermost of them around an operation is named as its module.
        watcher: As for `watch_attention`.
        rewrite: As for `watch_attention`.
    """
    mode = SoftmaxAttention(watcher, rewrite)
    with ExitStack() as stack:
        for module in dict.fromkeys(modules):
            before = module.register_forward_pre_hook(
                lambda m, args, kwargs: mode.enter(m, (*args, *kwargs.values())), with_kwargs=True
            )
            stack.callback(before.remove)
            stack.callback(module.register_forward_hook(lambda *_: mode.leave(), always_call=True).remove)
        stack.enter_context(mode)
        yield
