"""Attribution in encoders: what each part of an encoder adds to the lead of the right choice over its competitor.

An encoder's stream may be normed after every write (post-LN), so that it is no plain sum. With every norm on the way
held fixed at what it did, it is one again: what a part wrote reaches the head through the norms behind it, each of
them a linear map. The head itself may bend (a tanh); it is replaced by its slope at the last hidden state, and what
the slope misses is part of the remainder. What parts do to one another on the way is not followed, as in decoders.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Final

import numpy as np
import torch
from jaxtyping import Float64, Int32
from torch import Tensor

from decision_traces.analysis.attribution.frozen import FrozenNorm, freeze
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.requirements import need_choices
from decision_traces.analysis.results import Attribution
from decision_traces.analysis.rounding import resolution
from decision_traces.errors import ModelError, UnsupportedArchitecture
from decision_traces.format.arrays import site
from decision_traces.format.stages import EMBED, FINAL, POST_ATTN, POST_MLP
from decision_traces.model.choice_head import ChoiceHead, choice_head
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import IDENTITY, HookPoint, ModuleStructure
from decision_traces.store import TraceStore
from decision_traces.tokens import Encoding, encode_pairs, make_batch, pad_id
from decision_traces.tracing.buffers import BatchBuffers
from decision_traces.tracing.forward import all_logits
from decision_traces.tracing.recorder import Hook, sites_of_stack
from decision_traces.tracing.self_check.evidence import stack_dims
from decision_traces.tracing.session import Session

_ROWS_AT_ONCE: Final = 64
_ROUNDINGS: Final = 16  # how many roundings the parts may be off together before it is an error
_SITES: Final = (EMBED, POST_ATTN, POST_MLP, FINAL)


@dataclass(frozen=True, slots=True)
class ChoiceParts:
    """What each part adds to the score of choices, in float64; m of them, or (n, choice) of a whole run.

    Attributes:
        embed: (..., )
        attn: (..., layer)
        mlp: (..., layer)
        remainder: (..., ) biases of the norms, and what the head's slope misses.
        score: (..., ) as the model gives it.
    """

    embed: Float64[np.ndarray, "*m"]
    attn: Float64[np.ndarray, "*m layer"]
    mlp: Float64[np.ndarray, "*m layer"]
    remainder: Float64[np.ndarray, "*m"]
    score: Float64[np.ndarray, "*m"]

    def of(self, choice: Int32[np.ndarray, " n"]) -> "ChoiceParts":
        """Return the parts of one choice of every question."""
        return ChoiceParts(**{f.name: getattr(self, f.name)[np.arange(len(choice)), choice] for f in fields(self)})


def encoder_attribution(store: TraceStore, loaded: LoadedModel, *, progress: Progress | None = None) -> Attribution:
    """Split the lead of the right choice over the strongest other into what embedding, attention and MLPs wrote.

    Method: direct logit attribution (Elhage et al. 2021) with all norms frozen, along the slope of the head. The
    model is run once more on the choices of every question, because a normed stream does not keep what was written
    into it. Where the right choice is not known, the predicted one is split instead.

    Args:
        store: A multiple-choice run; it needs no arrays.
        loaded: Its model (`unembedding.load_run_model`).
        progress: Called with (examples done, of how many).

    Raises:
        UsageError: The run is not about multiple choice.
        UnsupportedArchitecture: The head reads more than the first token, or a norm cannot be frozen.
        ModelError: The parts do not add up to the difference of the scores that the run stored.
    """
    return lead_of_the_right(store, choice_parts(store, loaded, progress=progress))


def choice_parts(store: TraceStore, loaded: LoadedModel, *, progress: Progress | None = None) -> ChoiceParts:
    """Return what each part of the model adds to the score of every choice: (n, choice, ...).

    Raises:
        UsageError, UnsupportedArchitecture: See `encoder_attribution`.
    """
    need_choices(store)
    structure = find_structure(loaded.model, loaded.vocab_size, loaded.task)
    splitter = _Splitter(loaded, structure, choice_head(loaded, structure), *_norms(loaded, structure))
    batches = []
    for start in range(0, store.n, _ROWS_AT_ONCE):
        rows = range(start, min(start + _ROWS_AT_ONCE, store.n))
        batches.append(_stacked([splitter.split(e) for e in _encodings(store, loaded, rows)], np.stack, axis=1))
        if progress is not None:
            progress(rows.stop, store.n)
    return _stacked(batches, np.concatenate, axis=0)


def _stacked(parts: list[ChoiceParts], join: Callable[..., np.ndarray], axis: int) -> ChoiceParts:
    return ChoiceParts(**{f.name: join([getattr(p, f.name) for p in parts], axis=axis) for f in fields(ChoiceParts)})


def _pairs(store: TraceStore) -> tuple[Int32[np.ndarray, " n"], Int32[np.ndarray, " n"]]:
    """Return the target of every question and the strongest of its other choices."""
    tokens = store.tokens
    label, pred = (tokens[name].to_numpy(dtype=np.int32) for name in ("label_idx", "pred_idx"))
    target = np.where(label >= 0, label, pred).astype(np.int32)
    logits = np.stack(list(tokens["choice_logits"])).astype(np.float64)
    logits[np.arange(len(target)), target] = -np.inf
    return target, logits.argmax(1).astype(np.int32)


def _encodings(store: TraceStore, loaded: LoadedModel, rows: range) -> Iterator[list[Encoding]]:
    """Yield the first choice of every question, the second, and so on."""
    table = store.tokens.iloc[rows.start : rows.stop]
    for texts in zip(*table["choice_texts"], strict=True):
        pairs = encode_pairs(loaded.tokenizer, list(table["question"]), list(texts), store.T)
        yield pairs if loaded.takes_types else [replace(pair, type_ids=None) for pair in pairs]


def _norms(
    loaded: LoadedModel, structure: ModuleStructure
) -> tuple[tuple[FrozenNorm, ...], tuple[FrozenNorm, ...], FrozenNorm]:
    """Return the norms behind attention and MLP of each layer, and the last; `no norm` where there is none."""

    def frozen(name: str | None) -> FrozenNorm:
        exists = name is not None and name != IDENTITY
        return freeze(loaded.model.get_submodule(str(name)) if exists else None, structure.d_model, name)

    attention = tuple(frozen(plan.post_attn_norm) for plan in structure.layers)
    return attention, tuple(frozen(plan.post_mlp_norm) for plan in structure.layers), frozen(structure.final_norm)


@dataclass(frozen=True, slots=True)
class _Splitter:
    """Splits the scores of choices."""

    loaded: LoadedModel
    structure: ModuleStructure
    head: ChoiceHead
    attn_norms: tuple[FrozenNorm, ...]
    mlp_norms: tuple[FrozenNorm, ...]
    final_norm: FrozenNorm

    def split(self, encodings: list[Encoding]) -> ChoiceParts:
        """Run the model on some choices and go back from the head to the embedding."""
        pad = pad_id(self.loaded.tokenizer, self.loaded.embedded)
        batch = make_batch(range(len(encodings)), encodings, pad)
        stack = self.structure.stacks["enc"]
        dims = stack_dims(stack, len(encodings), batch.input_ids.shape[1])
        buffers = BatchBuffers(sites_of_stack("enc", stack, _SITES), {"enc": dims}, "float32")
        buffers.start({"enc": batch.lengths})
        sums, hook_points = self._summed()
        session = Session(self.loaded.model, self.structure)
        with torch.inference_mode(), session.forward_pass(buffers, beside=hook_points):
            scores = all_logits(self.loaded.model, batch, self.loaded.device, self.loaded.task)[:, 0]
        final = buffers.stack(site("enc", FINAL))[0]
        slopes = self.head.slopes(final, batch.attention_mask).cpu()
        if bool(slopes[:, 1:].any()):
            raise UnsupportedArchitecture(
                f"The head of {type(self.loaded.model).__name__} reads more than the first token; its score is not "
                "attributed yet."
            )
        first = {stage: buffers.stack(site("enc", stage))[:, :, 0].double().numpy() for stage in _SITES}
        return self._back(first, sums, slopes[:, 0].double().numpy(), scores.double().cpu().numpy())

    def _summed(self) -> tuple[dict[str, list[Tensor]], list[Hook]]:
        """Return room for what goes into every norm between the layers, at the first token, and what fills it.

        A norm that several layers share is called several times: its sums stand in the order of the calls.
        """
        names = [name for p in self.structure.layers for name in (p.post_attn_norm, p.post_mlp_norm) if name]
        sums: dict[str, list[Tensor]] = {name: [] for name in names}
        calls = [(name, names[:number].count(name)) for number, name in enumerate(names)]
        hook_points: list[Hook] = [
            (HookPoint(name, "input", 0, call), partial(_keep_first, sums[name])) for name, call in calls
        ]
        return sums, hook_points

    def _back(
        self,
        first: dict[str, np.ndarray],
        sums: dict[str, list[Tensor]],
        slope: Float64[np.ndarray, "m d_model"],
        scores: Float64[np.ndarray, " m"],
    ) -> ChoiceParts:
        """Follow the head's slope back through the frozen norms, and project on it what each part wrote."""
        n_layers, after, before = self.structure.n_layers, first[POST_MLP], first[EMBED][0]
        constant = scores - (slope * first[FINAL][0]).sum(1)
        direction, bias = _through(self.final_norm, slope, after[-1])
        constant += bias
        writes: dict[str, list[np.ndarray]] = {"attn": [], "mlp": []}
        for layer in reversed(range(n_layers)):
            plan, middle = self.structure.layers[layer], first[POST_ATTN][layer]
            start = after[layer - 1] if layer else before
            norms = (self.mlp_norms[layer], plan.post_mlp_norm), (self.attn_norms[layer], plan.post_attn_norm)
            for part, (norm, name), source, end in zip(
                ("mlp", "attn"), norms, (middle, start), (after[layer], middle), strict=True
            ):
                total = end if name is None else sums[name].pop().double().cpu().numpy()
                direction, bias = _through(norm, direction, total)
                constant += bias
                writes[part].append((direction * (total - source)).sum(1))
        attn, mlp = (np.stack(writes[part][::-1], axis=1) for part in ("attn", "mlp"))
        return ChoiceParts((direction * before).sum(1), attn, mlp, constant, scores)


def _keep_first(vectors: list[Tensor], value: Tensor) -> None:
    vectors.append(value[:, 0].clone())


def _through(
    norm: FrozenNorm, direction: Float64[np.ndarray, "m d_model"], x: Float64[np.ndarray, "m d_model"]
) -> tuple[Float64[np.ndarray, "m d_model"], Float64[np.ndarray, " m"]]:
    """Return a direction before a norm that is frozen at x, and what the norm's bias adds along it."""
    return norm.pull(direction, norm.scale_at(x)), direction @ norm.bias


def lead_of_the_right(store: TraceStore, parts: ChoiceParts) -> Attribution:
    """Return what each part adds to the lead of the right choice over its competitor; see `encoder_attribution`.

    Raises:
        ModelError: The parts do not add up to the difference of the scores that the run stored.
    """
    target, competitor = _pairs(store)
    right, other = parts.of(target), parts.of(competitor)
    lead = {name: getattr(right, name) - getattr(other, name) for name in ("embed", "attn", "mlp", "remainder")}
    scores = np.abs(right.score) + np.abs(other.score)
    logits, each = np.stack(list(store.tokens["choice_logits"])).astype(np.float64), np.arange(store.n)
    difference = logits[each, target] - logits[each, competitor]
    missed = np.abs(lead["embed"] + lead["attn"].sum(1) + lead["mlp"].sum(1) + lead["remainder"] - difference)
    if not (missed <= _ROUNDINGS * max(resolution(store), 1e-5) * (1 + scores)).all():
        raise ModelError(
            f"The parts miss the difference of the scores by {missed.max():.3g} (worst: "
            f"{store.example_id(int(missed.argmax()))}), more than rounding explains."
        )
    tokens, single = store.tokens, {name: values.astype(np.float32) for name, values in lead.items()}
    label, pred = (tokens[name].to_numpy(dtype=np.int32) for name in ("label_idx", "pred_idx"))
    return Attribution(
        example_id=tuple(tokens["example_id"]),
        correct=(label == pred) & (label >= 0),
        known=label >= 0,
        target_id=target,
        competitor_id=competitor,
        embed=single["embed"],
        attn=single["attn"],
        mlp=single["mlp"],
        remainder=single["remainder"],
        heads=None,
        attn_bias=None,
        difference=difference.astype(np.float32),
        sum_error=float(missed.max(initial=0.0)),
    )
