"""Recorded passes of a few rows: what the certificate compares."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from decision_traces.format.arrays import Dims, Side, Site, site, stage_of
from decision_traces.format.heads import HEADS
from decision_traces.format.stages import EMBED, LOGITS, POST_MLP
from decision_traces.model.discovery.intercept import AttentionCall
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import ModuleStructure, Stack
from decision_traces.tokens import TokenBatch
from decision_traces.tracing.buffers import BatchBuffers
from decision_traces.tracing.edits import Change
from decision_traces.tracing.forward import all_logits, batch_inputs, project_only, projects
from decision_traces.tracing.session import Session


@dataclass(slots=True)
class Pass:
    """One recorded forward pass.

    Attributes:
        sites: Site to (layers, rows, ...), float32, on the CPU.
        logits: As the model gave them.
        lengths: Number of tokens of each row, by side.
        scores: Of every attention call in order, what was added to its scores and their cap.
        fused: Of every attention call in order, softmax(scale * q·k + bias) · v, (rows, heads, positions, d_value),
            where it is torch's own and so nothing else; else None.
    """

    sites: dict[str, Tensor]
    logits: Tensor | None
    lengths: dict[Side, tuple[int, ...]]
    scores: list[tuple[Tensor | None, float | None]]
    fused: list[Tensor | None]

    def stream_in(self, side: Side) -> Tensor:
        """Return the inputs of the layers: (layer, row, position, d_model)."""
        return torch.cat([self.sites[site(side, EMBED)], self.sites[site(side, POST_MLP)][:-1]])

    def mask(self, side: Side) -> Tensor:
        """Return (row, position), whether there is a token."""
        n_positions = self.sites[site(side, EMBED)].shape[2]
        return torch.arange(n_positions)[None] < torch.tensor(self.lengths[side])[:, None]


def stack_dims(stack: Stack, rows: int, n_positions: int, n_source: int = 0) -> Dims:
    """Return the sizes of one stack for some rows, everything kept.

    Args:
        stack: The stack.
        rows: Number of examples.
        n_positions: T of this side.
        n_source: T of the encoder, for a decoder that attends to one.
    """
    plans = [*stack.attention(cross=False), *stack.attention(cross=True)]
    return Dims(
        n_examples=rows,
        n_layers=stack.n_layers,
        n_heads=max((p.n_heads for p in plans), default=0),
        n_kv_heads=max((p.n_kv_heads for p in plans), default=0),
        d_head=max((p.d_head for p in plans), default=0),
        d_value=max((p.d_value for p in plans), default=0),
        d_model=stack.d_model,
        d_mlp=stack.d_mlp,
        widths=stack.widths,
        n_positions=n_positions,
        n_source=n_source,
    )


def record(
    loaded: LoadedModel,
    structure: ModuleStructure,
    places: Sequence[tuple[str, int]],
    batch: TokenBatch,
    replace_attention: Callable[[AttentionCall], Tensor | None] | None = None,
    *,
    write: Mapping[Site, Change] | None = None,
    with_logits: bool = False,
    watched: bool = True,
) -> Pass:
    """Record a forward pass.

    Args:
        loaded: The model.
        structure: Where its inner path lies.
        places: The sites and layers to record.
        batch: The rows.
        replace_attention: What takes the place of an attention output, of whatever layer, or of none.
        write: Site to what is done there (`Session.run`).
        with_logits: Whether to compute the logits of all positions, which can cost as much as the layers.
        watched: Whether to look into attention calls, which takes a number for every pair of positions.
    """
    lengths = batch.lengths_by_side(structure.stacks)
    n, longest = batch.input_ids.shape
    dims = {}
    for side, stack in structure.stacks.items():
        target = side == "dec" and batch.target is not None
        sizes = stack_dims(stack, n, batch.main.input_ids.shape[1] if target else longest, longest if target else 0)
        dims[side] = replace(sizes, vocab_size=loaded.vocab_size)
    buffers = BatchBuffers(places, dims, "float32")
    buffers.start(lengths)
    scores: list[tuple[Tensor | None, float | None]] = []
    fused: list[Tensor | None] = []

    def watch(call: AttentionCall) -> Tensor | None:
        bias = call.bias
        scores.append((None if bias is None or not bias.is_floating_point() else bias.float().cpu(), call.softcap))
        fused.append(_by_hand(call).float().cpu() if call.fused else None)
        return None if replace_attention is None else replace_attention(call)

    with Session(loaded.model, structure).forward_pass(buffers, write=write, watch=watch if watched else None):
        if with_logits or LOGITS in map(stage_of, buffers.names):
            logits = logits_of(loaded, batch)
        else:
            logits = None
            run_layers(loaded, batch)
    if replace_attention is None and not write:
        buffers.check_finite()
    return Pass(
        {name: buffers.stack(name) for name in dict.fromkeys(name for name, _ in places)},
        logits,
        lengths,
        scores,
        fused,
    )


def _by_hand(call: AttentionCall) -> Tensor:
    """Return attention computed step by step from what a fused call was given."""
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (t.float().repeat_interleave(groups, 1) for t in (call.key, call.value))
    scale = call.query.shape[-1] ** -0.5 if call.scaling is None else call.scaling
    scores = scale * (call.query.float() @ key.transpose(-1, -2))
    # A query that sees no key at all (padding) gives no number; it is not looked at.
    return (scores if call.bias is None else scores + call.bias.float()).softmax(-1) @ value


def logits_of(loaded: LoadedModel, batch: TokenBatch) -> Tensor | None:
    """Run the model; return its logits, or None if it has no head."""
    if not HEADS[loaded.task].logits:
        loaded.model(**batch_inputs(batch, loaded.device, loaded.task))
        return None
    return all_logits(loaded.model, batch, loaded.device, loaded.task)


def run_layers(loaded: LoadedModel, batch: TokenBatch) -> None:
    """Run the model for its layers' sake: of the vocabulary projection, one position a row, where there is one."""
    if not HEADS[loaded.task].words or not projects(loaded.model):
        logits_of(loaded, batch)
        return
    with project_only(loaded.model, torch.zeros(len(batch.rows), 1, dtype=torch.long, device=loaded.device)):
        logits_of(loaded, batch)


def zeroed(call: AttentionCall) -> Tensor:
    """Return zeros in place of an attention output."""
    return torch.zeros_like(call.output)


def first_of(output: Any) -> Tensor:
    """Return what a module returns, or the first of it (I-BERT's matrices return a scale besides)."""
    first: Tensor = output[0] if isinstance(output, tuple) else output
    return first


@contextmanager
def outputs_of(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """Gather copies of what these modules return inside the block, call by call."""
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    with ExitStack() as stack:
        for name in found:
            module = model.get_submodule(name)
            handle = module.register_forward_hook(
                lambda _m, _a, out, name=name: found[name].append(first_of(out).clone())  # it may be added to in place
            )
            stack.callback(handle.remove)
        yield found
