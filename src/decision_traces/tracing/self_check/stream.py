"""The proofs of the residual stream: what transformers reports, sums, silenced parts, rows alone, causality."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch
from torch import Tensor

from decision_traces.format.arrays import Side, side_of, site, stage_of
from decision_traces.format.heads import HEADS
from decision_traces.format.stages import (
    ATTN_OUT,
    CROSS_ATTN_OUT,
    FINAL,
    MLP_ACT,
    MLP_OUT,
    POST_ATTN,
    POST_CROSS,
    POST_MLP,
)
from decision_traces.model.structure import LayerPlan
from decision_traces.tokens import TokenBatch
from decision_traces.tracing.forward import batch_inputs
from decision_traces.tracing.self_check.attention import reported_attention
from decision_traces.tracing.self_check.check import (
    TOLERANCE,
    Check,
    Checked,
    exact,
    relative_difference,
    side_words,
    within,
)
from decision_traces.tracing.self_check.evidence import Pass, first_of

_ADDED_TOLERANCE: Final = {torch.float32: 1e-3, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""A difference of two large numbers loses digits, most of all in bfloat16; a wrong point misses by far more."""

CAUSAL: Final = "causal: no position depends on later tokens"
"""Name of the check that tells a decoder from an encoder."""


# -- what transformers says itself ---------------------------------------------------------------------------


def reported(checked: Checked, batch: TokenBatch) -> Iterator[Check]:
    """Logits, layers' inputs and last hidden states equal those that the model gives without us, bit for bit."""
    asked = batch_inputs(batch, checked.loaded.device, checked.loaded.task)
    model: Any = checked.loaded.model
    attended = {"output_attentions": True} if checked.loaded.attention == "eager" else {}
    with _base_outputs(model) as outputs:
        out = model(**asked, output_hidden_states=True, **attended)
    base = outputs[-1] if outputs else None
    if (
        base is None and HEADS[checked.loaded.task].decoder
    ):  # heads that pass their base model by (OPT, BART's decoders)
        base = model.base_model(**asked)
    yield exact("logits with capture equal logits without", getattr(out, "logits", None), checked.together.logits)
    both = len(checked.structure.stacks) == 2
    for side, stack in checked.structure.stacks.items():
        mask = checked.together.mask(side)
        prefix = {"enc": "encoder_", "dec": "decoder_"}[side] if both else ""
        states = getattr(out, f"{prefix}hidden_states", None)
        ours = checked.together.stream_in(side)
        if states is not None and len(states) == stack.n_layers + 1 and states[0].shape == ours.shape[1:]:
            theirs = torch.stack([h.float().cpu() for h in states[:-1]])
            name = f"{side_words(side, checked)}layer inputs are those transformers reports"
            yield exact(name, ours[:, mask], theirs[:, mask])
        else:
            checked.notes.append(
                f"{side_words(side, checked)}transformers reports no hidden states layer by layer to compare with"
            )
        last = getattr(base, "encoder_last_hidden_state" if both and side == "enc" else "last_hidden_state", None)
        final = checked.together.sites[site(side, FINAL)][0]
        if (last is None or last.shape != final.shape) and states:
            last = states[-1]
        if last is not None and last.shape == final.shape:
            name = f"{side_words(side, checked)}hidden[L] is the base model's last hidden state"
            yield exact(name, final[mask], last.float().cpu()[mask])
        else:
            checked.notes.append(
                f"{side_words(side, checked)}transformers reports no last hidden state to compare with"
            )
        yield from reported_attention(checked, side, getattr(out, f"{prefix}attentions", None), cross=False)
        yield from reported_attention(checked, side, getattr(out, "cross_attentions", None), cross=True)


@contextmanager
def _base_outputs(model: Any) -> Iterator[list[Any]]:
    """Gather what the model's base model returns inside the block."""
    outputs: list[Any] = []
    handle = model.base_model.register_forward_hook(lambda _m, _a, result: outputs.append(result))
    try:
        yield outputs
    finally:
        handle.remove()


def head(checked: Checked, batch: TokenBatch) -> Iterator[Check]:
    """Where the logits are the unembedding of the last hidden state, maybe scaled or capped, it gives them."""
    ending = checked.structure.logits
    if ending is None or checked.together.logits is None:
        return
    unembedding: Any = checked.loaded.model.get_output_embeddings()  # type: ignore[operator]
    mask = batch.main.attention_mask.bool()
    final = checked.together.sites[site(checked.structure.main.side, FINAL)][0]
    hidden = final[mask].to(checked.loaded.device, unembedding.weight.dtype)
    ours = ending.capped(ending.uncapped(unembedding(hidden)))
    theirs = checked.together.logits[mask.to(checked.loaded.device)]
    used = (theirs != -torch.inf).any(0)  # a token that the model rules out has no logit to compare
    worst = relative_difference(ours[:, used], theirs[:, used])
    said = "" if ending.changes_nothing else ", scaled, capped or shifted as the model does,"
    yield within(f"the unembedding of hidden[L]{said} gives the logits", worst, TOLERANCE[unembedding.weight.dtype])


# -- the stream adds up --------------------------------------------------------------------------------------


def sums(checked: Checked, side: Side) -> Iterator[Check]:
    """Each half's output added to the state before it (and normed, in post-LN families) gives the state behind it."""
    stack, taken = checked.structure.stacks[side], checked.together
    worst: dict[str, float] = {}
    for layer, plan in enumerate(stack.layers):
        for stage, before, wrote, after, norm in _halves(checked, side, layer, plan):
            total = before + wrote
            if norm is not None:
                total = _normed(checked, norm, plan, total)
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
        yield within(f"{side_words(side, checked)}{name}", figure, checked.tolerance, condemned)


def _halves(
    checked: Checked, side: Side, layer: int, plan: LayerPlan
) -> Iterator[tuple[str, Tensor, Tensor, Tensor, str | None]]:
    """Yield stage, state before, what was written, state behind, name of the norm between."""
    state = checked.together.stream_in(side)[layer]
    if plan.attention is not None:
        after, wrote = _at(checked, side, POST_ATTN, layer), _at(checked, side, ATTN_OUT, layer)
        if after is None:
            return
        if wrote is not None:
            yield ATTN_OUT, state, wrote, after, plan.post_attn_norm
        state = after
    if plan.cross is not None:
        after, wrote = _at(checked, side, POST_CROSS, layer), _at(checked, side, CROSS_ATTN_OUT, layer)
        if after is None:
            return
        if wrote is not None:
            yield CROSS_ATTN_OUT, state, wrote, after, plan.post_cross_norm
        state = after
    wrote = _at(checked, side, MLP_OUT, layer)
    if wrote is not None:
        yield MLP_OUT, state, wrote, checked.together.sites[site(side, POST_MLP)][layer], plan.post_mlp_norm


def _normed(checked: Checked, norm: str, plan: LayerPlan, total: Tensor) -> Tensor:
    """Run a model's own norm on states, in the form in which the model has them."""
    hook_points = (plan.attn_out, plan.post_attn, plan.post_mlp)
    turn = {"bpd": (0, 0), "pbd": (0, 1), "bdp": (1, 2)}[next(point.axes for point in hook_points if point is not None)]
    module = checked.loaded.model.get_submodule(norm)
    out = first_of(module(total.to(checked.loaded.device, checked.dtype).transpose(*turn)))
    return out.transpose(*turn).float().cpu()


def _at(checked: Checked, side: Side, stage: str, layer: int, taken: Pass | None = None) -> Tensor | None:
    """Return a stage of a layer, by the model's own number; None where it was not recorded there."""
    recorded = (taken or checked.together).sites.get(site(side, stage))
    layers = checked.structure.stacks[side].layers_with(stage)
    return recorded[layers.index(layer)] if recorded is not None and layer in layers else None


def attention_writes(checked: Checked, without: Pass, side: Side) -> Iterator[Check]:
    """What attention adds differs from token to token, and is one constant (its biases) once attention gives zeros.

    That explains post_attn - pre_attn by this layer's attention and nothing else, without a name. In post-LN
    families a norm stands between; there what attention adds is what `sums` found it to be.
    """
    constant, varied = 0.0, float("inf")
    stack, mask = checked.structure.stacks[side], checked.together.mask(side)
    for layer, plan in enumerate(stack.layers):
        if plan.attention is None:
            continue
        spread = []
        for taken in (without, checked.together):
            before, after = taken.stream_in(side)[layer], _at(checked, side, POST_ATTN, layer, taken)
            added = _at(checked, side, ATTN_OUT, layer, taken)
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
    name, allowed = f"{side_words(side, checked)}post_attn: ", _ADDED_TOLERANCE[checked.dtype]
    yield within(f"{name}without attention, only a constant is added to pre_attn", constant, allowed, condemned)
    states = checked.together.stream_in(side)[0][mask]  # where all are the same token, there is no other to differ from
    adds = varied > 0 or bool((states == states[:1]).all())
    yield Check(f"{name}attention adds something to pre_attn", varied, 0.0, adds, tuple(condemned))


def neurons(checked: Checked, silent: Pass, side: Side) -> Check:
    """With the MLP's hidden neurons silent, what it adds is one constant: so they are all there is."""
    worst = 0.0
    for stacked, full in zip(
        silent.sites[site(side, MLP_OUT)], checked.together.sites[site(side, MLP_OUT)], strict=True
    ):
        added, size = stacked[checked.together.mask(side)], full[checked.together.mask(side)].abs().median()
        worst = max(worst, float((added - added[:1]).abs().max() / (size + 1e-30)))
    name = f"{side_words(side, checked)}mlp_act: without its hidden neurons, the MLP adds only a constant"
    return within(name, worst, _ADDED_TOLERANCE[checked.dtype], [site(side, MLP_ACT)])


def last_matrices(checked: Checked, gave: Mapping[str, Sequence[Tensor]], side: Side) -> Check:
    """The MLP's last matrix makes of the captured neurons what it gave in the recorded pass."""
    worst, mask = 0.0, checked.together.mask(side)
    for layer, plan in enumerate(checked.structure.stacks[side].layers):
        taken = _at(checked, side, MLP_ACT, layer)
        if taken is None or plan.mlp_last is None or plan.mlp_act is None:
            continue
        out = gave[plan.mlp_last][plan.mlp_act.call]
        out = (
            out.view(*mask.shape, -1) if out.dim() == 2 else out.transpose(0, 1) if plan.mlp_act.axes == "pbd" else out
        )
        out = out[:, : mask.shape[1]]  # behind the tokens may be others (ProphetNet's later n-grams)
        made = first_of(checked.loaded.model.get_submodule(plan.mlp_last)(taken[mask].to(out.device, out.dtype)))
        worst = max(worst, relative_difference(made.cpu(), out.cpu()[mask]))
    name = f"{side_words(side, checked)}mlp_act: the MLP's last matrix makes of it what it gave"
    return within(name, worst, checked.tolerance, [site(side, MLP_ACT)])


# -- rows ----------------------------------------------------------------------------------------------------


def rows(checked: Checked, passes: Sequence[tuple[Sequence[int], Pass]]) -> Iterator[Check]:
    """A row gives the same whatever stands in the other rows and in its padding.

    Args:
        checked: What is claimed.
        passes: Which rows were left as they were, and what was recorded.
    """
    worst: dict[str, float] = {}
    for kept, taken in passes:
        for i in kept:
            for name, value in taken.sites.items():
                pairs = zip(checked.together.sites[name][:, i], value[:, i], strict=True)
                figure = max((relative_difference(a, b) for a, b in pairs), default=0.0)
                worst[name] = max(worst.get(name, 0.0), figure)
    for name, figure in worst.items():
        word = f"{side_words(side_of(name), checked)}{stage_of(name)}"
        said = "the same whatever stands in the other rows and in the padding"
        yield replace(within(f"{word}: {said}", figure, checked.tolerance, [name]), padding=True)


def alone(checked: Checked, singles: Sequence[Pass]) -> Iterator[Check]:
    """A row in the padded batch gives what it gives alone."""
    worst: dict[str, float] = {}
    for i, single in enumerate(singles):
        for name, value in single.sites.items():
            n = single.lengths[side_of(name)][0]
            pairs = zip(checked.together.sites[name][:, i, :n], value[:, 0, :n], strict=True)
            worst[name] = max([worst.get(name, 0.0), *(relative_difference(a, b) for a, b in pairs)])
    for name, figure in worst.items():
        word = f"{side_words(side_of(name), checked)}{stage_of(name)}"
        check = within(f"{word}: a row in the batch equals the row alone", figure, checked.tolerance, [name])
        yield replace(check, padding=True)


def causal(checked: Checked, passes: Sequence[tuple[Sequence[int], Pass]]) -> Check:
    """No position of a decoder depends on later tokens: other second halves leave the first ones as they were.

    Args:
        checked: What is claimed.
        passes: Which rows had another second half, and what was recorded.
    """
    worst, name = 0.0, site("dec", POST_MLP)
    for changed, taken in passes:
        for i in changed:
            half = (checked.together.lengths["dec"][i] + 1) // 2
            pairs = zip(checked.together.sites[name][:, i, :half], taken.sites[name][:, i, :half], strict=True)
            worst = max([worst, *(relative_difference(a, b) for a, b in pairs)])
    return within(CAUSAL, worst, checked.tolerance)
