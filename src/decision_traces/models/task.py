"""What a model is asked to do, and how a model of each task is called."""

from typing import Any, Literal

from jaxtyping import Int
from torch import Tensor

Task = Literal["causal", "multiple_choice"]
"""causal: a decoder with a language-modelling head. multiple_choice: an encoder that scores each choice."""


def call_inputs(
    task: Task,
    input_ids: Int[Tensor, "batch n_positions"],
    attention_mask: Int[Tensor, "batch n_positions"],
    token_type_ids: Int[Tensor, "batch n_positions"] | None = None,
) -> dict[str, Any]:
    """Return the arguments of a model's forward for a batch of rows.

    A multiple-choice model takes (batch, choices, n_positions) and scores every choice by itself, so each choice
    of each example goes in as an example with one choice: choices of different lengths need not be padded to one
    another.
    """
    tensors = {"input_ids": input_ids, "attention_mask": attention_mask}
    if task == "causal":
        return {**tensors, "use_cache": False}
    if token_type_ids is not None:
        tensors["token_type_ids"] = token_type_ids
    return {name: value.unsqueeze(1) for name, value in tensors.items()}


def base_inputs(task: Task, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the same arguments for the model without its head, which knows nothing of choices."""
    if task == "causal":
        return inputs
    return {name: value.squeeze(1) for name, value in inputs.items()}
