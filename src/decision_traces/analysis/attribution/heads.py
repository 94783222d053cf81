"""Attention split by head: what each head writes into the residual stream.

A head's output is its attention row times its values; it enters the stream through its slice of the output
projection. Which module that is, and what comes behind it (a norm in Gemma 2 and OLMo 2, a factor in Granite), is
found by the numbers of the run itself: the projection is the module whose input is what the heads put out. Names
play no part. A way is believed only after it gave, on rows of the run, what attention added to the stream.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, Float64
from torch import Tensor, nn

from decision_traces.analysis.attribution.frozen import FrozenNorm, freeze
from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.requirements import need_whole, refuse_cross_attention
from decision_traces.analysis.rounding import resolution
from decision_traces.analysis.states import Part, Point, Reader, parts, path_of
from decision_traces.errors import UnsupportedArchitecture
from decision_traces.format.stages import V
from decision_traces.model.load import LoadedModel
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import Decisions

_ROUNDINGS: Final = 16  # allowed, in units of the coarsest rounding; a wrong matrix is off by a thousand or more
_ALIKE: Final = 0.1  # relative distance of a vector to that of another implementation in another type
_ROWS: Final = 64


@dataclass(frozen=True, slots=True)
class HeadSplit:
    """What attention of one layer adds along some directions, in logits.

    Attributes:
        heads: (m, head) of each head.
        bias: (m,) of the biases behind them.
    """

    heads: Float64[np.ndarray, "m head"]
    bias: Float64[np.ndarray, " m"]


@dataclass(frozen=True, slots=True)
class HeadWriter:
    """One layer's way from its heads to the stream: `factor * norm(heads @ weight + bias)`.

    Attributes:
        weight: (head · d_head, d_model) on the model's device.
        bias: (d_model,)
        norm: What is applied between projection and stream; None where nothing is.
        factor: 1 in most families.
    """

    weight: Float32[Tensor, "heads d_model"]
    bias: Float64[np.ndarray, " d_model"]
    norm: FrozenNorm | None = None
    factor: float = 1.0

    def project(self, heads: Float32[Tensor, "m head d_head"]) -> Float64[np.ndarray, "m d_model"]:
        """Return what the projection gives, before norm and factor."""
        product = heads.to(self.weight.device).flatten(1) @ self.weight
        projected: np.ndarray = product.double().cpu().numpy() + self.bias
        return projected

    def write(self, heads: Float32[Tensor, "m head d_head"]) -> Float64[np.ndarray, "m d_model"]:
        """Return what attention adds to the stream."""
        projected = self.project(heads)
        return self.factor * (projected if self.norm is None else self.norm.apply(projected))

    def split(self, heads: Float32[Tensor, "m head d_head"], direction: Float64[np.ndarray, "m d_model"]) -> HeadSplit:
        """Return what each head adds along a direction of the stream, and what the biases add."""
        direction, constant = self.factor * direction, np.zeros(len(direction))
        if self.norm is not None:
            constant = direction @ self.norm.bias
            direction = self.norm.pull(direction, self.norm.scale_at(self.project(heads)))
        at_heads = torch.from_numpy(direction).to(self.weight) @ self.weight.T
        of_heads = (heads.to(at_heads.device) * at_heads.reshape(heads.shape)).sum(2)
        return HeadSplit(of_heads.double().cpu().numpy(), direction @ self.bias + constant)


def head_points(store: TraceStore) -> list[Point]:
    """Return what the heads' outputs are read from: themselves, or the attention and the values that they are made of.

    Raises:
        NotCapturedError: The run captured neither `head_out`, nor `attn` and `qkv`.
        UsageError: The run does not keep all layers and heads, and all positions of the values.
    """
    names = ("dec_head_out",) if store.has("dec_head_out") else ("dec_self_attn", "dec_self_v")
    arrays = [store.array(name) for name in names]
    for array in arrays:
        need_whole(array, "attribution to heads", positions=array.spec.stage == V)
    return [Point(array, layer) for array in arrays for layer in range(store.L)]


def head_outputs(store: TraceStore, reader: Reader, layer: int) -> Float32[Tensor, "m head d_head"]:
    """Return the output of every head at every position: as captured, or attention row times values."""
    if store.has("dec_head_out"):
        return torch.from_numpy(reader.read(Point(store.array("dec_head_out"), layer))).float()
    attn, value = (store.array(name).read(example=reader.rows, layer=layer) for name in ("dec_self_attn", "dec_self_v"))
    slots, outputs = reader.slots(Point(store.array("dec_self_attn"), layer)), []
    for row in np.unique(reader.row):
        probs = torch.from_numpy(attn[row][:, slots[reader.row == row]]).float()
        values = torch.from_numpy(value[row]).float()
        grouped = probs.reshape(len(values), -1, *probs.shape[1:])  # query head h reads from h // (H // n_kv_heads)
        outputs.append(torch.einsum("kgpt,ktd->pkgd", grouped, values).flatten(1, 2))
    return torch.cat(outputs)


def find_head_writers(store: TraceStore, loaded: LoadedModel) -> tuple[HeadWriter, ...]:
    """Find each layer's way from heads to the stream, and check it on rows of the run.

    Args:
        store: A decoder run that captured `head_out`, or `attn` and `qkv`, and of its stream `resid` or `attn_out`.
        loaded: Its model (`unembedding.load_run_model`).

    Raises:
        NotCapturedError: The run did not capture what is needed.
        UnsupportedArchitecture: No module takes what the heads put out, or the heads do not sum to what attention
            added to the stream; or the model is an encoder-decoder.
    """
    refuse_cross_attention(store, "attribution to heads")
    writes = _writes(store)
    if store.about.post_attn == "post_norm":
        raise UnsupportedArchitecture("In a post-LN model heads do not add to the stream; a norm stands between.")
    decisions = decisions_of(store)
    points = [point for of_layer in writes for point in of_layer]
    (part,) = islice(_samples(parts([*head_points(store), *points], decisions)), 1)
    longest = int(part.position.argmax())
    calls = _record(store, loaded, decisions, part.decisions.start + longest)
    writers = []
    for layer, of_layer in enumerate(writes):
        sample = _Sample(
            layer,
            longest,
            head_outputs(store, part, layer),
            *(part.read(point).astype(np.float64) for point in of_layer),
        )
        writers.append(_proved(_candidates(calls, sample), sample, _ROUNDINGS * resolution(store)))
    return tuple(writers)


def _writes(store: TraceStore) -> list[tuple[Point, ...]]:
    """Return where each layer's attention wrote: the states after and before it, or only what it wrote.

    Raises:
        NotCapturedError: The run holds neither.
        UsageError: It does not keep all layers.
    """
    if store.has("dec_res_post_attn") or not store.has("dec_attn_out"):
        return list(zip(path_of(store, "post_attn"), path_of(store, "pre_attn"), strict=True))
    array = store.array("dec_attn_out")
    need_whole(array, "attribution to heads")
    return [(Point(array, layer),) for layer in range(store.L)]


@dataclass(frozen=True, slots=True)
class _Call:
    """What went into one module at the decision of one example, and what came out."""

    module: nn.Module
    taken: Float32[np.ndarray, " width"]
    given: Float32[np.ndarray, " d_model"]

    @property
    def projects(self) -> bool:
        """Whether it may be a projection: it has weights of its own and no modules inside."""
        return any(True for _ in self.module.parameters()) and next(self.module.children(), None) is None


@dataclass(frozen=True, slots=True)
class _Sample:
    """One layer at some decisions of the run; `one` is the decision that the calls were recorded at.

    The stream before and after attention; where what attention wrote is held itself, that after nothing.
    """

    layer: int
    one: int
    heads: Float32[Tensor, "m head d_head"]
    after: Float64[np.ndarray, "m d_model"]
    before: Float64[np.ndarray, "m d_model"] | float = 0.0

    @property
    def write(self) -> Float64[np.ndarray, "m d_model"]:
        """What attention added to the stream."""
        written: np.ndarray = self.after - self.before
        return written


def _samples(parts: Iterator[Part]) -> Iterator[Part]:
    """Cut parts down to a few decisions."""
    for part in parts:
        some = slice(0, _ROWS)
        chosen = slice(part.decisions.start, part.decisions.start + len(part.row[some]))
        yield Part(part.rows, chosen, part.row[some], part.position[some])


def _record(store: TraceStore, loaded: LoadedModel, decisions: Decisions, which: int) -> list[_Call]:
    """Run the model on one example of the run and return the input and output of every module at the decision."""
    row = int(decisions.row[which])
    ids = torch.from_numpy(store.encodings(row, trim=True)["input_ids"])[None].to(loaded.device)
    at = int(decisions.position[which] - store.spans.start[row])
    calls: list[_Call] = []

    def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        vector_in, vector_out = (
            _vector(tensors, ids.shape[1], at) for tensors in ((*args, *kwargs.values()), _several(output))
        )
        if vector_in is not None and vector_out is not None:
            calls.append(_Call(module, vector_in, vector_out))

    handles = [module.register_forward_hook(hook, with_kwargs=True) for module in loaded.model.modules()]
    try:
        with torch.inference_mode():
            loaded.model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _several(output: Any) -> tuple[Any, ...]:
    return tuple(output) if isinstance(output, tuple | list) else (output,)


def _vector(values: tuple[Any, ...], n_tokens: int, at: int) -> Float32[np.ndarray, " width"] | None:
    """Return the vector of one token of the first tensor, whether it is (1, T, width) or flattened to (T, width)."""
    tensor = next((v for v in values if isinstance(v, Tensor)), None)
    if tensor is None or tensor.dim() not in {2, 3} or tensor.numel() != n_tokens * tensor.shape[-1]:
        return None
    vector: np.ndarray = tensor.detach().reshape(n_tokens, -1)[at].float().cpu().clone().numpy()
    return vector


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the distance of two vectors relative to the second; infinite where they differ in width."""
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-30))


def _candidates(calls: list[_Call], sample: _Sample) -> Iterator[HeadWriter]:
    """Yield ways from the heads to the stream, the simplest first.

    Raises:
        UnsupportedArchitecture: No module takes what the heads put out.
    """
    heads, write = sample.heads[sample.one].flatten().numpy(), sample.write[sample.one]
    fitting = [c for c in calls if c.projects and c.given.shape == write.shape]
    projection = min(fitting, key=lambda c: _distance(c.taken, heads), default=None)
    if projection is None or _distance(projection.taken, heads) > _ALIKE:
        raise UnsupportedArchitecture(
            f"No module of layer {sample.layer} takes what its heads put out (attention times values); something "
            "stands between, and attention cannot be split by head."
        )
    plain = _affine(projection.module, len(heads))
    yield plain
    out = projection.given
    for call in calls:
        if (
            call.module is not projection.module
            and max(_distance(call.taken, out), _distance(call.given, write)) < _ALIKE
        ):
            yield HeadWriter(plain.weight, plain.bias, freeze(call.module, len(out)))
    factor = float(write @ out / max(float(out @ out), 1e-30))
    yield HeadWriter(plain.weight, plain.bias, factor=factor)


def _affine(module: nn.Module, width: int) -> HeadWriter:
    """Return the matrix and the bias of an affine module by trying it out, whatever way it stores them."""
    device, exact = next(module.parameters()).device, copy.deepcopy(module).to("cpu", torch.float64)
    with torch.inference_mode():
        bias = exact(torch.zeros(1, width, dtype=torch.float64))[0]
        weight = exact(torch.eye(width, dtype=torch.float64)) - bias
    return HeadWriter(weight.to(device, torch.float32), bias.numpy())


def _proved(candidates: Iterator[HeadWriter], sample: _Sample, allowed: float) -> HeadWriter:
    """Return the first way that gives what attention added to the stream.

    Raises:
        UnsupportedArchitecture: None does.
    """
    least = float("inf")
    for writer in candidates:
        missed = _misfit(writer, sample)
        if missed <= allowed:
            return writer
        least = min(least, missed)
    raise UnsupportedArchitecture(
        f"The heads of layer {sample.layer} do not sum to what attention adds to the stream (off by {least:.2g} of "
        f"what it is computed from, rounding explains {allowed:.2g}); attention cannot be split by head."
    )


def _misfit(writer: HeadWriter, sample: _Sample) -> float:
    """Return the largest error of any element, relative to the numbers it was computed from.

    Each of these was rounded for itself, so that errors add like random steps: the root of the sum of squares.
    """
    terms = (sample.heads.flatten(1).to(writer.weight.device).square() @ writer.weight.square()).double().cpu().numpy()
    if writer.norm is not None:
        scale = writer.norm.scale_at(writer.project(sample.heads))
        terms = terms * np.square(scale[:, None] * writer.norm.weight)
    size = np.sqrt(np.square(sample.before) + np.square(sample.after) + writer.factor**2 * terms)
    missed: np.ndarray = np.abs(writer.write(sample.heads) - sample.write)
    return float((missed / np.maximum(size, 1e-30)).max())
