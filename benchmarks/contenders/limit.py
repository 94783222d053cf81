"""The limit: a bare forward pass of the same examples, as fast as plain transformers goes. Nothing is written."""

import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks.contenders.batches import Batch, Tokens, pad
from benchmarks.contenders.protocol import About, Ran, Read
from benchmarks.contenders.task import Task
from decision_traces.tokens import Encoding, batches

MOST_SLOTS: Final = 1024
MOST_ROWS: Final = 64
BATCH_COST: Final = 32


class Limit:
    """Batches of like length out of the whole data set, SDPA, logits at two positions a row."""

    about = About("bare forward pass (the limit)")

    def run(self, task: Task, folder: Path) -> Ran:
        """Run the model over all examples."""
        model, batches = load(task.model_path), packed(task.tokens())
        with torch.inference_mode():
            logits_at_end(model, batches[0])  # the first pass allocates
            start = time.perf_counter()
            for batch in batches:
                logits_at_end(model, batch)
            seconds = time.perf_counter() - start
        slots, used = sum(b.ids.numel() for b in batches), sum(sum(b.lengths) for b in batches)
        return Ran(seconds, {"batches": len(batches), "slots_per_token": slots / used})

    def checked(self, task: Task) -> tuple[str, ...]:
        """The probability of what is predicted where the prediction is made."""
        return ("next_pred_prob",)

    def reader(self, task: Task, folder: Path) -> Read:
        """Return the predictions by row, computed anew: nothing is written."""
        model = load(task.model_path)
        found: dict[int, np.ndarray] = {}
        with torch.inference_mode():
            for batch in packed(task.tokens()):
                probs = logits_at_end(model, batch)[:, 0].softmax(-1).amax(-1)
                found |= dict(zip(batch.rows, probs.numpy(), strict=True))
        return lambda _name, row: np.asarray(found[row])


def load(model_path: Path) -> Any:
    """Load a decoder in float32 with SDPA."""
    options = {"dtype": torch.float32, "attn_implementation": "sdpa", "trust_remote_code": False}
    return AutoModelForCausalLM.from_pretrained(model_path, **options).eval()


def packed(tokens: Tokens, most_slots: int = MOST_SLOTS, batch_cost: int = BATCH_COST) -> list[Batch]:
    """Sort all examples by length and cut them into the batches that take least, as ours are cut block by block.

    Args:
        tokens: Token ids of each example.
        most_slots: Most slots of a batch, padding included.
        batch_cost: What a batch costs by itself, in slots.
    """
    encodings = [Encoding(np.asarray(ids, np.int32), np.zeros((len(ids), 2), np.int32), False) for ids in tokens]
    cut = batches(encodings, MOST_ROWS, most_slots, pad=0, batch_cost=batch_cost)
    return [pad(batch.rows, tokens) for batch in cut]


def logits_at_end(model: Any, batch: Batch) -> Tensor:
    """Return the logits at the last two tokens of each row, (batch, 2, vocab)."""
    states = model.base_model(input_ids=batch.ids, attention_mask=batch.mask, use_cache=False).last_hidden_state
    last = torch.tensor(batch.lengths) - 1
    at = torch.stack([batch.next_positions, last], dim=1)
    logits: Tensor = model.get_output_embeddings()(states[torch.arange(len(last))[:, None], at])
    return logits
