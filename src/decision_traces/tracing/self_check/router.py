"""The checks of a router: its matrix and state once more, and the probabilities that the model itself makes."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from decision_traces.format.arrays import Side, site
from decision_traces.format.stages import EXPERT, ROUTER
from decision_traces.model.structure import LayerPlan
from decision_traces.tokens import TokenBatch
from decision_traces.tracing.self_check.check import Check, Checked, relative_difference, side_words, within
from decision_traces.tracing.self_check.evidence import run_layers

_SUM_TOLERANCE: Final = 1e-5  # of a softmax in float32, added up in float64


def routed(checked: Checked, batch: TokenBatch) -> Iterator[Check]:
    """Router probabilities are what matrix and state give and what the model makes; a softmax sums to 1."""
    stacks = {side: s for side, s in checked.structure.stacks.items() if site(side, ROUTER) in checked.together.sites}
    plans = {side: [plan for plan in stack.layers if ROUTER in plan.found] for side, stack in stacks.items()}
    names = [plan.found[ROUTER].module for own in plans.values() for plan in own]
    if not names:
        return
    made = _Shares(max(stack.widths[EXPERT] for stack in stacks.values()))
    with _read_by(checked.loaded.model, names) as states, made:
        run_layers(checked.loaded, batch)
    for side in stacks:
        yield from _of_side(checked, side, plans[side], states, made)


def _of_side(
    checked: Checked, side: Side, plans: Sequence[LayerPlan], states: dict[str, list[Tensor]], made: "_Shares"
) -> Iterator[Check]:
    mask, condemned = checked.together.mask(side), [site(side, ROUTER)]
    worst = missed = apart = 0.0
    unseen = False
    for plan, taken in zip(plans, checked.together.sites[site(side, ROUTER)], strict=True):
        ours, kind = taken[mask].double(), plan.found[ROUTER].made
        by_hand = _by_hand(checked.loaded.model, plan, states).cpu()
        worst = max(worst, relative_difference(ours, by_hand.view(*mask.shape, -1)[mask]))
        if kind == "softmax":
            missed = max(missed, float((ours.sum(-1) - 1).abs().max()))
        figures = [_difference(ours, share[mask.flatten()], str(kind)) for share in made.of(str(kind), mask.numel())]
        unseen |= kind == "softmax" and not figures
        apart = max(apart, min(figures, default=0.0 if kind == "softmax" else float("inf")))
    if unseen:
        checked.notes.append(f"{side_words(side, checked)}router: the model makes no softmax to compare with")
    word = f"{side_words(side, checked)}router: "
    yield within(f"{word}its matrix and the state it reads give the probabilities", worst, checked.tolerance, condemned)
    yield within(f"{word}the model makes these probabilities of its logits", apart, checked.tolerance, condemned)
    if any(plan.found[ROUTER].made == "softmax" for plan in plans):
        yield within(f"{word}probabilities sum to 1", missed, _SUM_TOLERANCE, condemned)


def _by_hand(model: nn.Module, plan: LayerPlan, states: dict[str, list[Tensor]]) -> Tensor:
    """Return the probabilities of all experts from the router's own weights: (tokens, n_experts), float64."""
    point = plan.found[ROUTER]
    matrix, *bias = (model.get_parameter(name).double() for name in plan.weights[ROUTER])
    state = states[point.module][point.call].double()
    logits = sum(bias, state @ (matrix.T if matrix.shape[1] == state.shape[-1] else matrix)) * point.factor
    return logits.softmax(-1) if point.made == "softmax" else logits.sigmoid()


def _difference(ours: Tensor, made: Tensor, kind: str) -> float:
    """Return how far probabilities of all experts are from those that the model makes, of all or of the chosen ones.

    A sigmoid of a chosen logit is one of ours. A softmax of the chosen logits is that of all, divided by what the
    chosen ones have of it.
    """
    whole = made.shape[-1] == ours.shape[-1]
    if whole and bool((made > 0).all()):
        return relative_difference(ours, made)
    if kind == "sigmoid":
        nearest = (made[..., None] - ours[:, None]).abs().argmin(-1)
        return relative_difference(ours.gather(-1, nearest)[made > 0], made[made > 0])
    if whole:
        ours = torch.where(made > 0, ours, 0.0)
    else:
        ours, made = ours.topk(made.shape[-1]).values, made.sort(descending=True).values
    return relative_difference(ours / ours.sum(-1, keepdim=True), made / made.sum(-1, keepdim=True))


class _Shares(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Gathers every softmax and every sigmoid that a model makes over so many values at most."""

    def __init__(self, most: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._most = most
        self._found: dict[str, list[Tensor]] = {"softmax": [], "sigmoid": []}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.strip("_")
        if name in self._found and out.shape[-1] <= self._most:
            self._found[name].append(out.detach().double().cpu())
        return out

    def of(self, name: str, n_tokens: int) -> Iterator[Tensor]:
        """Yield those that are made for every token: (tokens, width)."""
        for share in self._found.get(name, ()):
            if share.shape[-1] > 1 and share.numel() == n_tokens * share.shape[-1]:
                yield share.reshape(n_tokens, -1)


@contextmanager
def _read_by(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Gather copies of the state that these modules read inside the block, call by call."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}

    def keep(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        state = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        found[name].append(state.detach().clone())

    with ExitStack() as stack:
        for name in found:
            module = model.get_submodule(name)
            handle = module.register_forward_pre_hook(lambda _m, a, k, name=name: keep(name, a, k), with_kwargs=True)
            stack.callback(handle.remove)
        yield found
