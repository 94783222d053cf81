"""What a model is asked to do, and how a model of each task is called."""

from typing import Any, Final, assert_never

import torch
from jaxtyping import Int
from torch import Tensor

from decision_traces.format.arrays import ModelTask

_PROBE_LENGTHS: Final = (6, 5)  # of the text and of the target: different, so that shapes tell them apart


def call_inputs(
    task: ModelTask,
    input_ids: Int[Tensor, "batch n_positions"],
    attention_mask: Int[Tensor, "batch n_positions"],
    token_type_ids: Int[Tensor, "batch n_positions"] | None = None,
    target_ids: Int[Tensor, "batch n_target"] | None = None,
    target_mask: Int[Tensor, "batch n_target"] | None = None,
) -> dict[str, Any]:
    """Return the arguments of a model's forward for a batch of rows.

    A multiple-choice model takes (batch, choices, n_positions) and scores every choice by itself, so each choice
    of each example goes in as an example with one choice: choices of different lengths need not be padded to one
    another.
    """
    tensors: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask}
    if token_type_ids is not None:
        tensors["token_type_ids"] = token_type_ids
    match task:
        case "causal":
            return {**tensors, "use_cache": False}
        case "seq2seq":
            target = {"decoder_input_ids": target_ids, "decoder_attention_mask": target_mask}
            return {**tensors, **target, "use_cache": False}
        case "multiple_choice":
            return {name: value.unsqueeze(1) for name, value in tensors.items()}
        case "masked" | "encode":
            return tensors
        case _:
            assert_never(task)


def probe_inputs(
    task: ModelTask, vocab_size: int, device: torch.device, *, seed: int = 0, rows: int = 2
) -> dict[str, Any]:
    """Return the arguments of a forward pass over a few random ids, without padding.

    Args:
        task: What the head does.
        vocab_size: Upper bound (exclusive) of the ids.
        device: Where they go.
        seed: Of the random ids.
        rows: How many.
    """
    generator = torch.Generator().manual_seed(seed)
    low = min(3, vocab_size - 1)
    ids, target = (torch.randint(low, vocab_size, (rows, n), generator=generator).to(device) for n in _PROBE_LENGTHS)
    return call_inputs(task, ids, torch.ones_like(ids), None, target, torch.ones_like(target))
