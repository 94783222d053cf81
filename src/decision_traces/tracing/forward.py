"""One forward pass of a batch, with the vocabulary projection only where an outcome is wanted."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from decision_traces.errors import CaptureError
from decision_traces.format.arrays import ModelTask
from decision_traces.model.task import call_inputs
from decision_traces.tokens import TokenBatch


def projects(model: nn.Module) -> bool:
    """Return whether a module of its own makes the logits (FSMT's is the embedding, which texts go through too)."""
    head = model.get_output_embeddings()  # type: ignore[operator]
    return head is not None and not isinstance(head, nn.Embedding)


@contextmanager
def project_only(model: nn.Module, positions: Int[Tensor, "batch picks"]) -> Iterator[None]:
    """Let the unembedding see a few positions a row: for GPT-2 the full projection is a quarter of the computation.

    The positions are picked in front of the output embedding, so that whatever the model does with its logits
    afterwards (caps, scales) is done to these as well.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]

    def pick(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden = args[0]
        rows = torch.arange(hidden.shape[0], device=hidden.device)[:, None]
        return (hidden[rows, positions], *args[1:])

    handle = head.register_forward_pre_hook(pick)
    try:
        yield
    finally:
        handle.remove()


def batch_inputs(batch: TokenBatch, device: torch.device, task: ModelTask = "causal") -> dict[str, Any]:
    """Return the arguments of the model's forward for a batch, on its device."""
    types, target = batch.token_type_ids, batch.target
    return call_inputs(
        task,
        batch.input_ids.to(device),
        batch.attention_mask.to(device),
        None if types is None else types.to(device),
        None if target is None else target.input_ids.to(device),
        None if target is None else target.attention_mask.to(device),
    )


def all_logits(
    model: nn.Module, batch: TokenBatch, device: torch.device, task: ModelTask = "causal"
) -> Float[Tensor, "batch ..."]:
    """Run the model and return its logits: (batch, n_positions, vocab), or (batch, 1) of a multiple-choice model."""
    logits: Tensor = model(**batch_inputs(batch, device, task)).logits
    return logits


def logits_at(
    model: nn.Module,
    batch: TokenBatch,
    positions: Int[Tensor, "batch ..."],
    device: torch.device,
    task: ModelTask = "causal",
    *,
    whole: bool = False,
) -> Float[Tensor, "batch ... vocab"]:
    """Run the model and return the logits of one position a row, or of a few (of the target, where there is one).

    Args:
        model: A model with a language-modelling head.
        batch: The examples.
        positions: The position, or positions, of each row whose logits are wanted.
        device: Where the model is.
        task: What the head does.
        whole: Compute the logits of all positions all the same, because they are recorded.
    """
    at = positions.to(device).reshape(len(positions), -1)
    if whole or not projects(model):
        logits = all_logits(model, batch, device, task)[torch.arange(len(at), device=device)[:, None], at]
    else:
        with project_only(model, at):
            logits = all_logits(model, batch, device, task)
    if logits.shape[1] != at.shape[1]:
        raise CaptureError("the model does not compute its logits through its output embedding")
    return logits.reshape(*positions.shape, logits.shape[-1])
