"""The single proofs of a certificate: each compares recorded passes and returns figures with their verdicts."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from einops import repeat
from torch import Tensor

from decision_traces.capture.evidence import Pass
from decision_traces.capture.forward import batch_inputs
from decision_traces.models.anatomy import Anatomy, AttentionPlan, LayerPlan
from decision_traces.models.load import LoadedModel
from decision_traces.schema import (
    ATTN,
    ATTN_OUT,
    CROSS_ATTN,
    CROSS_ATTN_OUT,
    CROSS_HEAD_OUT,
    CROSS_K,
    CROSS_Q,
    CROSS_V,
    EMBED,
    FINAL,
    HEAD_OUT,
    MLP_ACT,
    MLP_OUT,
    POST_ATTN,
    POST_CROSS,
    POST_MLP,
    K,
    Q,
    Side,
    V,
    side_of,
    site,
    stage_of,
)
from decision_traces.tokens import TokenBatch

TOLERANCE: Final = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}
"""Largest difference allowed, relative per element (see `relative_difference`); a few hundred roundings."""

_ADDED_TOLERANCE: Final = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""A difference of two large numbers loses digits, most of all in bfloat16; a wrong tap misses by far more."""

_CORE: Final = frozenset({EMBED, POST_MLP, FINAL})
"""Without these there is no trace: a check that fails on them condemns the whole model."""

_FAINT: Final = 1e-4  # probabilities below are too imprecise to take the logarithm of
_SELF: Final = (Q, K, V, ATTN, HEAD_OUT)
_CROSS: Final = (CROSS_Q, CROSS_K, CROSS_V, CROSS_ATTN, CROSS_HEAD_OUT)


@dataclass(frozen=True, slots=True)
class Check:
    """One figure of the certificate.

    Attributes:
        name: What was compared.
        worst: The largest difference found.
        allowed: The largest allowed.
        passed: The verdict.
        condemns: Sites that are wrong if it does not hold, where that can be told.
        padding: Whether it compares padded rows with rows alone.
    """

    name: str
    worst: float
    allowed: float
    passed: bool
    condemns: tuple[str, ...] = ()
    padding: bool = False


@dataclass(frozen=True, slots=True)
class Proof:
    """What all proofs look at.

    Attributes:
        loaded, anatomy: The model and what is claimed of it.
        together: All rows in one padded batch.
        alone: Each row by itself.
        notes: Where a proof says what it could not check.
    """

    loaded: LoadedModel
    anatomy: Anatomy
    together: Pass
    alone: Sequence[Pass]
    notes: list[str]

    @property
    def dtype(self) -> torch.dtype:
        """The model's type."""
        return next(self.loaded.model.parameters()).dtype

    @property
    def tolerance(self) -> float:
        """The largest relative difference allowed."""
        return TOLERANCE[self.dtype]


def relative_difference(a: Tensor, b: Tensor) -> float:
    """Return the largest |a - b| relative to the element itself plus the median magnitude.

    The median is over what is not zero. Against the array's maximum a few massive activations would hide any error; against the element alone a
    value near zero would make one of nothing.
    """
    if a.numel() == 0:
        return 0.0
    a, b = a.float(), b.float()
    size = b.abs()
    worst = float(((a - b).abs() / (size + _median(size) + 1e-30)).max())
    return worst if worst == worst else float("inf")


def _median(size: Tensor) -> Tensor:
    """Return the median magnitude of what is not zero: rectified neurons and unused room do not count."""
    some = size[size > 0]
    return some.median() if some.numel() else torch.zeros(())


def exact(name: str, a: Tensor | None, b: Tensor | None) -> Check:
    """Return whether two tensors are equal bit for bit."""
    if a is None or b is None:
        return Check(name, 0.0, 0.0, a is b)
    if a.shape != b.shape:
        return Check(f"{name} (shapes {tuple(a.shape)} and {tuple(b.shape)})", float("inf"), 0.0, False)
    equal = torch.equal(a, b)
    return Check(name, 0.0 if equal else float((a.float() - b.float()).abs().max()), 0.0, equal)


def _within(name: str, worst: float, allowed: float, condemns: Sequence[str] = ()) -> Check:
    return Check(name, worst, allowed, worst <= allowed, tuple(c for c in condemns if stage_of(c) not in _CORE))


def _of(side: Side, proof: Proof) -> str:
    """Return which side's a check is, in words, where a model has two."""
    return "" if len(proof.anatomy.stacks) == 1 else {"enc": "encoder: ", "dec": "decoder: "}[side]


# -- what transformers says itself ---------------------------------------------------------------------------


def reported(proof: Proof, batch: TokenBatch) -> Iterator[Check]:
    """Layers' inputs and last hidden states equal those that transformers itself reports, bit for bit."""
    asked = batch_inputs(batch, proof.loaded.device, proof.loaded.task)
    model: Any = proof.loaded.model
    attended = {"output_attentions": True} if proof.loaded.attention == "eager" else {}
    with _base_outputs(model) as outputs:
        out = model(**asked, output_hidden_states=True, **attended)
    base = outputs[-1] if outputs else None
    if base is None and proof.loaded.task == "causal":  # heads that pass their base model by (OPT, BART's decoders)
        base = model.base_model(**asked)
    both = len(proof.anatomy.stacks) == 2
    for side, stack in proof.anatomy.stacks.items():
        mask = proof.together.mask(side)
        prefix = {"enc": "encoder_", "dec": "decoder_"}[side] if both else ""
        states = getattr(out, f"{prefix}hidden_states", None)
        ours = proof.together.stream_in(side)
        if states is not None and len(states) == stack.n_layers + 1 and states[0].shape == ours.shape[1:]:
            theirs = torch.stack([h.float().cpu() for h in states[:-1]])
            name = f"{_of(side, proof)}layer inputs are those transformers reports"
            yield exact(name, ours[:, mask], theirs[:, mask])
        else:
            proof.notes.append(f"{_of(side, proof)}transformers reports no hidden states layer by layer to compare with")
        last = getattr(base, "encoder_last_hidden_state" if both and side == "enc" else "last_hidden_state", None)
        final = proof.together.sites[site(side, FINAL)][0]
        if (last is None or last.shape != final.shape) and states:
            last = states[-1]
        if last is not None and last.shape == final.shape:
            name = f"{_of(side, proof)}hidden[L] is the base model's last hidden state"
            yield exact(name, final[mask], last.float().cpu()[mask])
        else:
            proof.notes.append(f"{_of(side, proof)}transformers reports no last hidden state to compare with")
        for cross, stage in ((False, ATTN), (True, CROSS_ATTN)):
            word = "cross_attentions" if cross else f"{prefix}attentions"
            yield from _reported_attention(proof, side, stage, getattr(out, word, None), cross=cross)


@contextmanager
def _base_outputs(model: Any) -> Iterator[list[Any]]:
    """Gather what the model's base model returns inside the block."""
    outputs: list[Any] = []
    handle = model.base_model.register_forward_hook(lambda _m, _a, result: outputs.append(result))
    try:
        yield outputs
    finally:
        handle.remove()


def _reported_attention(proof: Proof, side: Side, stage: str, theirs: Any, *, cross: bool) -> Iterator[Check]:
    """Attention probabilities equal those that transformers itself reports, where it reports them in this form."""
    ours = proof.together.sites.get(site(side, stage))
    plans = proof.anatomy.stacks[side].attention(cross=cross)
    if ours is None or theirs is None or len(theirs) != len(plans) or any(not isinstance(t, Tensor) or t.dim() != 4 for t in theirs):
        return
    worst = 0.0
    for row in range(len(proof.together.lengths[side])):
        for one, reported_one in zip(_attended(proof, side, cross=cross, row=row), theirs, strict=True):
            n, keys = one.attn.shape[1:]
            if reported_one.shape[1] != one.attn.shape[0] or reported_one.shape[2] < n or reported_one.shape[3] < keys:
                return
            difference = (one.attn - reported_one[row, :, :n, :keys].float().cpu()).abs()
            worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
    word = f"{_of(side, proof)}{'cross-attention' if cross else 'attention'}"
    yield _within(f"{word}: the probabilities are those transformers reports", worst, 0.0, [site(side, stage)])


def head(proof: Proof, batch: TokenBatch) -> Iterator[Check]:
    """Where the logits are just the unembedding of the last hidden state, it gives them."""
    if not proof.anatomy.logits_are_unembedded or proof.together.logits is None:
        return
    unembedding: Any = proof.loaded.model.get_output_embeddings()  # type: ignore[operator]
    mask = batch.main.attention_mask.bool()
    final = proof.together.sites[site(proof.anatomy.main.side, FINAL)][0]
    hidden = final[mask].to(proof.loaded.device, unembedding.weight.dtype)
    worst = relative_difference(unembedding(hidden), proof.together.logits[mask.to(proof.loaded.device)])
    yield _within("the unembedding of hidden[L] gives the logits", worst, TOLERANCE[unembedding.weight.dtype])


# -- the stream adds up --------------------------------------------------------------------------------------


def sums(proof: Proof, side: Side) -> Iterator[Check]:
    """Each half's output added to the state before it (and normed, in post-LN families) gives the state behind it."""
    stack, taken = proof.anatomy.stacks[side], proof.together
    worst: dict[str, float] = {}
    for layer, plan in enumerate(stack.layers):
        for stage, before, wrote, after, norm in _halves(proof, side, layer, plan):
            total = before + wrote
            if norm is not None:
                total = _normed(proof, norm, plan, total)
            mask = taken.mask(side)
            worst[stage] = max(worst.get(stage, 0.0), relative_difference(total[mask], after[mask]))
    said = {
        ATTN_OUT: ("post_attn: pre_attn + what attention writes", POST_ATTN),
        CROSS_ATTN_OUT: ("post_cross: post_attn + what cross-attention writes", POST_CROSS),
        MLP_OUT: ("post_mlp: the state before + what the MLP writes", MLP_OUT),
    }
    for stage, figure in worst.items():
        name, state = said[stage]
        normed = stage == ATTN_OUT and stack.post_attn_kind == "post_norm"
        name = f"post_attn: the norm of {name.removeprefix('post_attn: ')}" if normed else name
        condemned = [site(side, s) for s in dict.fromkeys((stage, state)) if s != POST_ATTN or normed]
        yield _within(f"{_of(side, proof)}{name}", figure, proof.tolerance, condemned)


def _halves(
    proof: Proof, side: Side, layer: int, plan: LayerPlan
) -> Iterator[tuple[str, Tensor, Tensor, Tensor, str | None]]:
    """Yield stage, state before, what was written, state behind, name of the norm between."""
    state = proof.together.stream_in(side)[layer]
    if plan.attention is not None:
        after, wrote = _at(proof, side, POST_ATTN, layer), _at(proof, side, ATTN_OUT, layer)
        if after is None:
            return
        if wrote is not None:
            yield ATTN_OUT, state, wrote, after, plan.post_attn_norm
        state = after
    if plan.cross is not None:
        after, wrote = _at(proof, side, POST_CROSS, layer), _at(proof, side, CROSS_ATTN_OUT, layer)
        if after is None:
            return
        if wrote is not None:
            yield CROSS_ATTN_OUT, state, wrote, after, plan.post_cross_norm
        state = after
    wrote = _at(proof, side, MLP_OUT, layer)
    if wrote is not None:
        yield MLP_OUT, state, wrote, proof.together.sites[site(side, POST_MLP)][layer], plan.post_mlp_norm


def _normed(proof: Proof, norm: str, plan: LayerPlan, total: Tensor) -> Tensor:
    """Run a model's own norm on states, in the form in which the model has them."""
    taps = (plan.attn_out, plan.post_attn, plan.post_mlp)
    turn = {"bpd": (0, 0), "pbd": (0, 1), "bdp": (1, 2)}[next(tap.axes for tap in taps if tap is not None)]
    module = proof.loaded.model.get_submodule(norm)
    out = module(total.to(proof.loaded.device, proof.dtype).transpose(*turn))
    return (out[0] if isinstance(out, tuple) else out).transpose(*turn).float().cpu()  # type: ignore[no-any-return]


def _at(proof: Proof, side: Side, stage: str, layer: int, taken: Pass | None = None) -> Tensor | None:
    """Return a stage of a layer, by the model's own number; None where it was not recorded there."""
    recorded = (taken or proof.together).sites.get(site(side, stage))
    layers = proof.anatomy.stacks[side].layers_with(stage)
    return recorded[layers.index(layer)] if recorded is not None and layer in layers else None


def attention_writes(proof: Proof, without: Pass, side: Side) -> Iterator[Check]:
    """What attention adds differs from token to token, and is one constant (its biases) once attention gives zeros.

    That explains post_attn - pre_attn by this layer's attention and nothing else, without a name. In post-LN
    families a norm stands between; there what attention adds is what `sums` found it to be.
    """
    constant, varied = 0.0, float("inf")
    stack, mask = proof.anatomy.stacks[side], proof.together.mask(side)
    for layer, plan in enumerate(stack.layers):
        if plan.attention is None:
            continue
        spread = []
        for taken in (without, proof.together):
            before, after = taken.stream_in(side)[layer], _at(proof, side, POST_ATTN, layer, taken)
            added = _at(proof, side, ATTN_OUT, layer, taken)
            if after is not None and plan.post_attn_kind == "stream":
                added = after - before
            if added is None:
                break
            added, size = added[mask], (before + added)[mask].abs()
            spread.append(float(((added - added[:1]).abs() / (size + size.median() + 1e-30)).max()))
        if len(spread) == 2:
            constant, varied = max(constant, spread[0]), min(varied, spread[1] - 4 * spread[0])
    if varied == float("inf"):
        return
    condemned = [site(side, POST_ATTN), site(side, ATTN_OUT)]
    name, allowed = f"{_of(side, proof)}post_attn: ", _ADDED_TOLERANCE[proof.dtype]
    yield _within(f"{name}without attention, only a constant is added to pre_attn", constant, allowed, condemned)
    adds = varied > 0 or int(mask.sum()) < 2
    yield Check(f"{name}attention adds something to pre_attn", varied, 0.0, adds, tuple(condemned))


def neurons(proof: Proof, silent: Pass, side: Side) -> Check:
    """With the MLP's hidden neurons silent, what it adds is one constant: so they are all there is."""
    worst = 0.0
    for stacked, full in zip(silent.sites[site(side, MLP_OUT)], proof.together.sites[site(side, MLP_OUT)], strict=True):
        added, size = stacked[proof.together.mask(side)], full[proof.together.mask(side)].abs().median()
        worst = max(worst, float((added - added[:1]).abs().max() / (size + 1e-30)))
    name = f"{_of(side, proof)}mlp_act: without its hidden neurons, the MLP adds only a constant"
    return _within(name, worst, _ADDED_TOLERANCE[proof.dtype], [site(side, MLP_ACT)])


# -- rows ----------------------------------------------------------------------------------------------------


def rows(proof: Proof) -> Iterator[Check]:
    """A row in the padded batch gives what it gives alone, and padding is not stored."""
    worst: dict[str, float] = {}
    for i, single in enumerate(proof.alone):
        for name, value in single.sites.items():
            both = proof.together.sites[name][:, i], value[:, 0]
            cut = tuple(slice(n) for n in both[1].shape[1:])
            pairs = zip(both[0][(slice(None), *cut)], both[1], strict=True)
            figure = max((relative_difference(a, b) for a, b in pairs), default=0.0)
            worst[name] = max(worst.get(name, 0.0), figure)
    for name, figure in worst.items():
        word = f"{_of(side_of(name), proof)}{stage_of(name)}"
        check = _within(f"{word}: a row in the batch equals the row alone", figure, proof.tolerance, [name])
        yield replace(check, padding=True)


def causal(proof: Proof, halves: Sequence[Pass]) -> Check:
    """No position of a decoder depends on later tokens: half a text gives what it gave inside the whole."""
    worst, name = 0.0, site("dec", POST_MLP)
    for half, whole in zip(halves, proof.alone, strict=True):
        n = half.lengths["dec"][0]
        pairs = zip(whole.sites[name][:, 0, :n], half.sites[name][:, 0, :n], strict=True)
        worst = max([worst, *(relative_difference(a, b) for a, b in pairs)])
    return _within("causal: no position depends on later tokens", worst, proof.tolerance)


# -- attention -----------------------------------------------------------------------------------------------


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


def _attended(proof: Proof, side: Side, *, cross: bool, row: int) -> Iterator[_Attended]:
    taken, stages = proof.together, _CROSS if cross else _SELF
    n, keys = taken.lengths[side][row], taken.lengths["enc" if cross else side][row]
    for index, plan in enumerate(proof.anatomy.stacks[side].attention(cross=cross)):
        q, k, v, attn, out = (taken.sites.get(site(side, stage)) for stage in stages)
        bias, softcap = taken.scores[proof.anatomy.calls.index(plan)]
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


def attention(proof: Proof, sites: Sequence[str]) -> Iterator[Check]:
    """Rows sum to at most 1, a decoder's are causal, attn @ v gives the output, and q·k gives the probabilities."""
    for side in proof.anatomy.stacks:
        for cross in (False, True):
            stages = _CROSS if cross else _SELF
            names = dict(zip(_SELF, (site(side, s) for s in stages), strict=True))
            if names[ATTN] not in proof.together.sites:
                continue
            yield from _probabilities(proof, side, cross=cross, names=names)
            if {names[Q], names[K]} <= proof.together.sites.keys() & set(sites):
                yield from _scores(proof, side, cross=cross, names=names)


def _probabilities(proof: Proof, side: Side, *, cross: bool, names: dict[str, str]) -> Iterator[Check]:
    later = over = mixed = 0.0
    for row in range(len(proof.together.lengths[side])):
        for one in _attended(proof, side, cross=cross, row=row):
            later = max(later, float(one.attn.triu(1).abs().max()))
            over = max(over, float((one.attn.sum(-1) - 1).max()))
            if one.v.numel() and one.out.numel():
                v = repeat(one.v, "h t d -> (h g) t d", g=one.plan.n_heads // one.plan.n_kv_heads)
                mixed = max(mixed, relative_difference(one.attn @ v, one.out))
    word = f"{_of(side, proof)}{'cross-attention' if cross else 'attention'}"
    if side == "dec" and not cross:
        yield _within(f"{word}: no probability on later tokens", later, 0.0, [names[ATTN]])
    yield _within(f"{word}: rows sum to at most 1", over, _sum_tolerance(proof), [names[ATTN]])
    condemned = [names[ATTN], names[V], names[HEAD_OUT]]
    yield _within(f"{word}: probabilities times v give the output", mixed, proof.tolerance, condemned)


def _scores(proof: Proof, side: Side, *, cross: bool, names: dict[str, str]) -> Iterator[Check]:
    """The logarithm of the probabilities is scale * q·k and what depends on the positions alone.

    So between two texts it must agree, at the same query and keys, but for a constant a query. q or k from another
    place (before the rotary embedding, say) would not.
    """
    word = f"{_of(side, proof)}{'cross-attention' if cross else 'attention'}"
    last = len(proof.alone) - 1
    worst, other_terms = 0.0, False
    for a, b in zip(
        _attended(proof, side, cross=cross, row=0), _attended(proof, side, cross=cross, row=last), strict=True
    ):
        figure = _score_difference(a, b) if last else 0.0
        if a.plan.written_out and figure > _score_tolerance(proof):
            other_terms = True
            continue
        worst = max(worst, figure)
    if other_terms:
        proof.notes.append(f"{word}: its scores have terms besides q·k that depend on the text; q and k are its factors")
    yield _within(f"{word}: q·k gives the probabilities", worst, _score_tolerance(proof), [names[Q], names[K]])


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


def _score_tolerance(proof: Proof) -> float:
    return {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}[proof.dtype]


def _sum_tolerance(proof: Proof) -> float:
    return 1e-4 if proof.dtype == torch.float32 else 1e-2


def same_attention(proof: Proof, eager: Pass, sites: Sequence[str]) -> Iterator[Check]:
    """What was captured equals what the same model computes with eager attention, where it can be proved."""
    for name in sites:
        if name in eager.sites and name in proof.together.sites and stage_of(name) in {*_SELF, *_CROSS}:
            pairs = zip(proof.together.sites[name], eager.sites[name], strict=True)
            worst = max(relative_difference(a, b) for a, b in pairs)
            word = f"{_of(side_of(name), proof)}{stage_of(name)}"
            yield _within(f"{word}: equal under eager attention", worst, proof.tolerance, [name])


def fused_attention(proof: Proof) -> Iterator[Check]:
    """Where a model calls torch's own attention, softmax(scale * q·k + bias) · v gives the output, by hand."""
    for side in proof.anatomy.stacks:
        for cross in (False, True):
            names = [site(side, stage) for stage in (_CROSS if cross else _SELF)]
            out = proof.together.sites.get(names[4])
            if out is None:
                continue
            worst = 0.0
            for index, plan in enumerate(proof.anatomy.stacks[side].attention(cross=cross)):
                by_hand = proof.together.fused[proof.anatomy.calls.index(plan)]
                for row, n in enumerate(proof.together.lengths[side]):
                    if by_hand is not None:
                        ours = out[index, row, : plan.n_heads, :n, : plan.d_value]
                        worst = max(worst, relative_difference(by_hand[row, :, :n], ours))
            word = f"{_of(side, proof)}{'cross-attention' if cross else 'attention'}"
            yield _within(f"{word}: softmax(q·k)·v gives the output", worst, proof.tolerance, names)


def sums_to_one(proof: Proof) -> dict[str, bool]:
    """Return for each recorded attention whether its rows sum to 1. Where they sum to less there are sinks."""
    found = {}
    for side in proof.anatomy.stacks:
        for cross, stage in ((False, ATTN), (True, CROSS_ATTN)):
            if site(side, stage) in proof.together.sites:
                off = [
                    float((one.attn.sum(-1) - 1).abs().max())
                    for row in range(len(proof.alone))
                    for one in _attended(proof, side, cross=cross, row=row)
                ]
                found[site(side, stage)] = all(o < _sum_tolerance(proof) for o in off)
    return found
