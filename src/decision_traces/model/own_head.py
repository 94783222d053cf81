"""A model's own way from a last hidden state to logits, where that is more than an output embedding.

BERT's masked-language head transforms states before it unembeds them, others do other things. None is rebuilt here:
the model's own forward runs with its layers left out, one position a row.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decision_traces.format.arrays import ModelTask
from decision_traces.format.heads import HEADS
from decision_traces.model.choice_head import HeadPlan, plan_of
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import ModuleStructure
from decision_traces.model.task import call_inputs


class OwnHead(nn.Module):
    """All of a model behind its last hidden state, as one module. Its positions do not see one another."""

    def __init__(self, model: nn.Module, plan: HeadPlan, task: ModelTask) -> None:
        super().__init__()
        self.model, self.plan, self.task = model, plan, task

    @property
    def weight(self) -> Tensor:
        """The output embedding's weights, which stand at the end of it."""
        head: Any = self.model.get_output_embeddings()  # type: ignore[operator]
        weight: Tensor = head.weight
        return weight

    def forward(self, hidden: Float[Tensor, "n d_model"]) -> Float[Tensor, "n vocab"]:
        """Return the logits of last hidden states."""
        ids = torch.zeros(len(hidden), 1, dtype=torch.long, device=hidden.device)
        with self.plan.ended_in(self.model, hidden[:, None], normed=True):
            logits: Tensor = self.model(**call_inputs(self.task, ids, torch.ones_like(ids))).logits
        return logits[:, 0]


def own_head(loaded: LoadedModel, structure: ModuleStructure) -> OwnHead | None:
    """Return the head of a loaded model; None where its states cannot be put in front of one."""
    head = HEADS[loaded.task]
    plain = head.words and not head.target and all(layer.post_mlp.axes == "bpd" for layer in structure.layers)
    if not plain or loaded.model.get_output_embeddings() is None:  # type: ignore[operator]
        return None
    ids = torch.zeros(1, 2, dtype=torch.long, device=loaded.device)
    plan = plan_of(loaded.model, structure, call_inputs(loaded.task, ids, torch.ones_like(ids)))
    return OwnHead(loaded.model, plan, loaded.task)
