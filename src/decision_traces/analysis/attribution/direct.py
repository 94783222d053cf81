"""Direct logit attribution: what each part of a model adds to the lead of the true token over its competitor."""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from jaxtyping import Float32, Float64

from decision_traces.analysis.attribution.frozen import FrozenNorm, freeze
from decision_traces.analysis.attribution.heads import HeadWriter, head_points, split_attention
from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.lens.logit_lens import with_competitors
from decision_traces.analysis.lens.unembedding import Unembedding
from decision_traces.analysis.progress import Progress
from decision_traces.analysis.requirements import refuse_unsplit
from decision_traces.analysis.results import Attribution
from decision_traces.analysis.rounding import resolution
from decision_traces.analysis.states import Part, Point, parts, path_of
from decision_traces.errors import ModelError
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import Decisions, Kind

_ROUNDINGS: Final = 16  # how many roundings a sum may be off before it is an error
"""Errors of a sum of roundings are far smaller; a norm, a bias or a layer left out misses by far more."""

Columns = dict[str, np.ndarray]


def direct_attribution(
    store: TraceStore,
    unembedding: Unembedding,
    heads: tuple[HeadWriter, ...] | None = None,
    *,
    kind: Kind | None = None,
    progress: Progress | None = None,
) -> Attribution:
    """Split the model's logit difference (target minus competitor) into what each of its parts wrote.

    Method: Elhage et al. 2021, "A Mathematical Framework for Transformer Circuits": the residual stream is a sum
    of what embedding, attention and MLPs wrote; with the final norm frozen at the actual final residual, so is the
    logit difference. The sum is checked against the difference that the run stored. Of a model that caps its logits
    (Gemma 2) the difference before the cap is split up, since only that is a sum; its own logits, capped, are checked
    against what the run stored.

    Memory: the result, and one layer of some examples (64 MB) of each array, a few times over in float64.

    Args:
        store: A decoder run that captured `resid`.
        unembedding: The model's final norm and output embedding.
        heads: Each layer's way from heads to the stream (`heads.find_head_writers`), to split attention by head; the
            run must have captured `attn` and `qkv` as well.
        kind: Which decisions; the run's own where left out (`decisions.kinds_of`).
        progress: Called with (examples done, of how many).

    Raises:
        NotCapturedError: The run did not capture what is needed.
        UnsupportedArchitecture: The model normalises the stream itself (post-LN), its final norm cannot be frozen, or
            it is an encoder-decoder.
        UsageError: The run has no such decision, does not keep all layers, or not every layer has attention.
        ModelError: The parts do not add up to the model's logit difference.
    """
    refuse_unsplit(store, bends=not unembedding.is_linear)
    stream = {stage: path_of(store, stage) for stage in ("post_attn", "post_mlp")}
    embed = Point(store.array("dec_res_embed"), None)
    points = [embed, *stream["post_attn"], *stream["post_mlp"], *(head_points(store) if heads else ())]
    decisions = with_competitors(decisions_of(store, kind), store, unembedding)
    norm = freeze(unembedding.norm, store.d_model)
    looked: list[Columns] = []
    for part in parts(points, decisions):
        direction = _direction(part, decisions, unembedding, norm, stream["post_mlp"][-1])
        columns = direction.columns | _writes(part, embed, stream, direction.before_norm)
        if heads is not None:
            columns |= split_attention(store, part, heads, direction.before_norm)
        looked.append(columns)
        if progress is not None:
            progress(part.rows.stop, store.n)
    joined = {name: np.concatenate([columns[name] for columns in looked]) for name in looked[0]}
    return _result(decisions, joined, resolution(store), unembedding.ending.cap)


@dataclass(frozen=True, slots=True)
class _Direction:
    """What to project writes on, for some decisions.

    Attributes:
        before_norm: (m, d_model) the difference of two unembedding rows, pulled back through the frozen norm.
        columns: remainder, difference by the unembedding (before a cap, and behind it), and the size of what is
            rounded on the way, (m,) each.
    """

    before_norm: Float64[np.ndarray, "m d_model"]
    columns: Columns


def _direction(part: Part, decisions: Decisions, unembedding: Unembedding, norm: FrozenNorm, end: Point) -> _Direction:
    here = part.decisions
    target, competitor = decisions.target_id[here], decisions.competitor_id[here]
    (of_target, target_bias), (of_rival, rival_bias) = map(unembedding.token_rows, (target, competitor))
    final = part.read(end)
    x = final.astype(np.float64)
    scale = norm.scale_at(x)
    ids = torch.from_numpy(np.stack([target, competitor], axis=1))
    uncapped = unembedding.token_logits(torch.from_numpy(final), ids, normed=False, capped=False).double().cpu()
    logits, capped = uncapped.numpy(), unembedding.ending.capped(uncapped).numpy()
    # Each product that a logit sums up is rounded for itself; their errors add like random steps.
    products = np.square(scale[:, None] * norm.weight * x) * (np.square(of_target) + np.square(of_rival))
    difference = of_target - of_rival
    return _Direction(
        norm.pull(difference, scale),
        {
            "remainder": difference @ norm.bias + target_bias - rival_bias,
            "by_unembedding": logits[:, 0] - logits[:, 1],
            "capped": capped[:, 0] - capped[:, 1],
            "rounded": np.sqrt(products.sum(1)) + np.abs(logits).sum(1),
        },
    )


def _writes(
    part: Part, embed: Point, stream: dict[str, list[Point]], direction: Float64[np.ndarray, "m d_model"]
) -> Columns:
    """Return what the embedding, each attention and each MLP adds: the steps of the stream along the direction."""
    start = before = _along(part.read(embed), direction)
    attn, mlp = [], []
    for after_attn, after_mlp in zip(stream["post_attn"], stream["post_mlp"], strict=True):
        middle, after = (_along(part.read(point), direction) for point in (after_attn, after_mlp))
        attn.append(middle - before)
        mlp.append(after - middle)
        before = after
    return {"embed": start, "attn": np.stack(attn, axis=1), "mlp": np.stack(mlp, axis=1)}


def _along(state: np.ndarray, direction: Float64[np.ndarray, "m d_model"]) -> Float64[np.ndarray, " m"]:
    along: np.ndarray = np.einsum("md,md->m", state.astype(np.float64), direction)
    return along


def _result(decisions: Decisions, columns: Columns, rounding: float, cap: float | None) -> Attribution:
    stored = decisions.difference.astype(np.float64)
    known, allowed = ~np.isnan(stored), _ROUNDINGS * rounding * columns["rounded"]
    total = columns["embed"] + columns["attn"].sum(1) + columns["mlp"].sum(1) + columns["remainder"]
    difference = columns["by_unembedding"]
    if cap is None:
        difference = np.where(known, stored, difference)
    else:
        _refuse_more(np.where(known, columns["capped"] - stored, 0.0), allowed, decisions)
    missed = _refuse_more(total - difference, allowed, decisions)
    result = Attribution(
        example_id=decisions.example_id,
        correct=decisions.correct,
        known=decisions.true_id >= 0,
        target_id=decisions.target_id.astype(np.int32),
        competitor_id=decisions.competitor_id.astype(np.int32),
        embed=_single(columns["embed"]),
        attn=_single(columns["attn"]),
        mlp=_single(columns["mlp"]),
        remainder=_single(columns["remainder"]),
        heads=None,
        attn_bias=None,
        difference=_single(difference),
        sum_error=float(missed.max()),
        logit_cap=cap,
    )
    if "heads" not in columns:
        return result
    apart = np.abs(columns["heads"].sum(2) + columns["attn_bias"] - columns["attn"])
    heads, bias = _single(columns["heads"]), _single(columns["attn_bias"])
    return replace(result, heads=heads, attn_bias=bias, head_error=float(apart.max()))


def _refuse_more(
    missed: Float64[np.ndarray, " n"], allowed: Float64[np.ndarray, " n"], decisions: Decisions
) -> Float64[np.ndarray, " n"]:
    """Return the sizes of what is missed.

    Raises:
        ModelError: One is more than rounding.
    """
    missed = np.abs(missed)
    if not (missed <= allowed).all():
        worst = decisions.example_id[int(np.nanargmax(missed / allowed))]
        raise ModelError(
            f"The parts miss the model's logit difference by {np.nanmax(missed):.3g} (worst: {worst}), more than "
            "rounding explains. The model is not the one of the run, or does more than its parts say."
        )
    return missed


def _single(values: np.ndarray) -> Float32[np.ndarray, "..."]:
    single: np.ndarray = values.astype(np.float32)
    return single
