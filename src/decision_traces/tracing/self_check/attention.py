"""The proofs of attention: rows, causality, attn @ v, and that q·k gives the probabilities."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from einops import repeat
from torch import Tensor

from decision_traces.format.arrays import Side, site
from decision_traces.format.stages import ATTN, CROSS_ATTN, CROSS_PARTS, HEAD_OUT, SELF_PARTS, K, Q, V
from decision_traces.model.structure import AttentionPlan
from decision_traces.tracing.self_check.check import Check, Checked, relative_difference, side_words, within

_FAINT: Final = 1e-4  # probabilities below are too imprecise to take the logarithm of


@dataclass(frozen=True, slots=True)
class _Attended:
    """One layer's attention for one row, cut to its tokens and to the layer's own heads."""

    plan: AttentionPlan
    q: Tensor
    k: Tensor
    v: Tensor
    attn: Tensor
    out: Tensor
    bias: Tensor | None
    softcap: float | None


def _attended(checked: Checked, side: Side, *, cross: bool, row: int) -> Iterator[_Attended]:
    taken, stages = checked.together, CROSS_PARTS if cross else SELF_PARTS
    n, keys = taken.lengths[side][row], taken.lengths["enc" if cross else side][row]
    for index, plan in enumerate(checked.structure.stacks[side].attention(cross=cross)):
        q, k, v, attn, out = (taken.sites.get(site(side, stage)) for stage in stages)
        bias, softcap = taken.scores[checked.structure.calls.index(plan)]
        blank = torch.zeros(0)
        heads, kv_heads = slice(plan.n_heads), slice(plan.n_kv_heads)
        yield _Attended(
            plan,
            blank if q is None else q[index, row, heads, :n, : plan.d_head],
            blank if k is None else k[index, row, kv_heads, :keys, : plan.d_head],
            blank if v is None else v[index, row, kv_heads, :keys, : plan.d_value],
            blank if attn is None else attn[index, row, heads, :n, :keys],
            blank if out is None else out[index, row, heads, :n, : plan.d_value],
            None if bias is None or bias.dim() != 4 else bias[min(row, bias.shape[0] - 1), :, :n, :keys],
            softcap,
        )


def attention(checked: Checked, sites: Sequence[str]) -> Iterator[Check]:
    """Rows sum to at most 1, a decoder's are causal, attn @ v gives the output, and q·k gives the probabilities."""
    for side in checked.structure.stacks:
        for cross in (False, True):
            stages = CROSS_PARTS if cross else SELF_PARTS
            names = dict(zip(SELF_PARTS, (site(side, s) for s in stages), strict=True))
            if names[ATTN] not in checked.together.sites:
                continue
            yield from _probabilities(checked, side, cross=cross, names=names)
            if {names[Q], names[K]} <= checked.together.sites.keys() & set(sites):
                yield from _scores(checked, side, cross=cross, names=names)


def _probabilities(checked: Checked, side: Side, *, cross: bool, names: dict[str, str]) -> Iterator[Check]:
    later = over = mixed = 0.0
    for row in range(len(checked.together.lengths[side])):
        for one in _attended(checked, side, cross=cross, row=row):
            later = max(later, float(one.attn.triu(1).abs().max()))
            over = max(over, float((one.attn.sum(-1) - 1).max()))
            if one.v.numel() and one.out.numel():
                v = repeat(one.v, "h t d -> (h g) t d", g=one.plan.n_heads // one.plan.n_kv_heads)
                mixed = max(mixed, relative_difference(one.attn @ v, one.out))
    word = f"{side_words(side, checked)}{'cross-attention' if cross else 'attention'}"
    if side == "dec" and not cross:
        yield within(f"{word}: no probability on later tokens", later, 0.0, [names[ATTN]])
    yield within(f"{word}: rows sum to at most 1", over, _sum_tolerance(checked), [names[ATTN]])
    condemned = [names[ATTN], names[V], names[HEAD_OUT]]
    yield within(f"{word}: probabilities times v give the output", mixed, checked.tolerance, condemned)


def _scores(checked: Checked, side: Side, *, cross: bool, names: dict[str, str]) -> Iterator[Check]:
    """The logarithm of the probabilities is scale * q·k and what depends on the positions alone.

    So between two texts it must agree, at the same query and keys, but for a constant a query. q or k from another
    place (before the rotary embedding, say) would not.
    """
    word = f"{side_words(side, checked)}{'cross-attention' if cross else 'attention'}"
    last = len(checked.together.lengths[side]) - 1
    worst, other_terms = 0.0, False
    for a, b in zip(
        _attended(checked, side, cross=cross, row=0), _attended(checked, side, cross=cross, row=last), strict=True
    ):
        figure = _score_difference(a, b) if last else 0.0
        if a.plan.written_out and figure > _score_tolerance(checked):
            other_terms = True
            continue
        worst = max(worst, figure)
    if other_terms:
        checked.notes.append(
            f"{word}: its scores have terms besides q·k that depend on the text; q and k are its factors"
        )
    yield within(f"{word}: q·k gives the probabilities", worst, _score_tolerance(checked), [names[Q], names[K]])


def _score_difference(a: _Attended, b: _Attended) -> float:
    n, keys = min(a.attn.shape[1], b.attn.shape[1]), min(a.attn.shape[2], b.attn.shape[2])
    valid = (a.attn[:, :n, :keys] > _FAINT) & (b.attn[:, :n, :keys] > _FAINT)
    count = valid.sum(-1, keepdim=True)
    rests, size = [], torch.zeros(())
    for one in (a, b):
        k = repeat(one.k, "h t d -> (h g) t d", g=one.plan.n_heads // one.plan.n_kv_heads)
        scores = one.plan.scale * (one.q @ k.transpose(-1, -2))
        if one.softcap:
            scores = one.softcap * torch.tanh(scores / one.softcap)
        size = torch.maximum(size, scores[:, :n, :keys][valid].abs().max() if valid.any() else size)
        if one.bias is not None and one.bias.shape[-2:] == scores.shape[-2:]:
            scores = scores + one.bias
        rest = torch.where(valid, one.attn[:, :n, :keys].clamp_min(_FAINT).log() - scores[:, :n, :keys], 0.0)
        rests.append(rest - rest.sum(-1, keepdim=True) / count.clamp_min(1))
    off = torch.where(valid & (count > 1), (rests[0] - rests[1]).abs(), 0.0)
    return float(off.max() / (1 + size)) if off.numel() else 0.0


def _score_tolerance(checked: Checked) -> float:
    return {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}[checked.dtype]


def _sum_tolerance(checked: Checked) -> float:
    return 1e-4 if checked.dtype == torch.float32 else 1e-2


def fused_attention(checked: Checked) -> Iterator[Check]:
    """Where a model calls torch's own attention, softmax(scale * q·k + bias) · v gives the output, by hand."""
    for side in checked.structure.stacks:
        for cross in (False, True):
            names = [site(side, stage) for stage in (CROSS_PARTS if cross else SELF_PARTS)]
            out = checked.together.sites.get(names[4])
            if out is None:
                continue
            worst = 0.0
            for index, plan in enumerate(checked.structure.stacks[side].attention(cross=cross)):
                by_hand = checked.together.fused[checked.structure.calls.index(plan)]
                for row, n in enumerate(checked.together.lengths[side]):
                    if by_hand is not None:
                        ours = out[index, row, : plan.n_heads, :n, : plan.d_value]
                        worst = max(worst, relative_difference(by_hand[row, :, :n], ours))
            word = f"{side_words(side, checked)}{'cross-attention' if cross else 'attention'}"
            yield within(f"{word}: softmax(q·k)·v gives the output", worst, checked.tolerance, names)


def sums_to_one(checked: Checked) -> dict[str, bool]:
    """Return for each recorded attention whether its rows sum to 1. Where they sum to less there are sinks."""
    found = {}
    for side in checked.structure.stacks:
        for cross, stage in ((False, ATTN), (True, CROSS_ATTN)):
            if site(side, stage) in checked.together.sites:
                off = [
                    float((one.attn.sum(-1) - 1).abs().max())
                    for row in range(len(checked.together.lengths[side]))
                    for one in _attended(checked, side, cross=cross, row=row)
                ]
                found[site(side, stage)] = all(o < _sum_tolerance(checked) for o in off)
    return found


def reported_attention(checked: Checked, side: Side, theirs: Any, *, cross: bool) -> Iterator[Check]:
    """Attention probabilities equal those that transformers itself reports, where it reports them in this form."""
    stage = CROSS_ATTN if cross else ATTN
    ours = checked.together.sites.get(site(side, stage))
    plans = checked.structure.stacks[side].attention(cross=cross)
    if (
        ours is None
        or theirs is None
        or len(theirs) != len(plans)
        or any(not isinstance(t, Tensor) or t.dim() != 4 for t in theirs)
    ):
        return
    word, worst = f"{side_words(side, checked)}{'cross-attention' if cross else 'attention'}", 0.0
    for row in range(len(checked.together.lengths[side])):
        for one, reported_one in zip(_attended(checked, side, cross=cross, row=row), theirs, strict=True):
            n, keys = one.attn.shape[1:]
            if reported_one.shape[1] != one.attn.shape[0] or reported_one.shape[2] < n or reported_one.shape[3] < keys:
                return
            said = reported_one[row, :, :n, :keys].float().cpu()
            if (said < 0).any() or (said.sum(-1) > 1 + _sum_tolerance(checked)).any():
                checked.notes.append(f"{word}: transformers reports no probabilities (scores, say) to compare with")
                return
            difference = (one.attn - said).abs()
            worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
    yield within(f"{word}: the probabilities are those transformers reports", worst, 0.0, [site(side, stage)])
