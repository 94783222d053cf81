"""What a multiple-choice encoder makes of a hidden state: its own head, run without its layers.

Heads differ (a pooler or none, the first token or a mean, one layer or two), so none is rebuilt here. The model's
own forward runs with every layer's output replaced by the given state; what comes out is the score the model would
have given had its layers ended there.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMultipleChoice

from decision_traces.errors import ModelError, first_line
from decision_traces.format.arrays import CHOICE_HEAD_FILE, CHOICE_WEIGHTS_FILE, HEAD_CONFIG_FILE
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import IDENTITY, ModuleStructure


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """Where a hidden state has to be put in.

    Attributes:
        layers: Names of the layer modules, each once.
        place: Index of the stream in the tuple a layer returns; None where it returns the stream alone.
        returned: Length of that tuple; 1 where there is none.
        final_norm: Name of the norm behind the last layer; None where there is none.
    """

    layers: tuple[str, ...]
    place: int | None
    returned: int
    final_norm: str | None

    @contextmanager
    def ended_in(self, model: nn.Module, state: Tensor, *, normed: bool) -> Iterator[None]:
        """Let the layers of a model end in a state inside the block, whatever they are called with.

        Args:
            model: The model.
            state: (batch, position, d_model).
            normed: Whether the final norm has been applied to it already.
        """
        given = state if self.place is None else tuple(state if i == self.place else None for i in range(self.returned))
        with ExitStack() as stack:
            for name in self.layers:
                stack.callback(_returning(model.get_submodule(name), given))
            if normed and self.final_norm:
                stack.callback(_returning(model.get_submodule(self.final_norm), state))
            yield


@dataclass(frozen=True, slots=True)
class ChoiceHead:
    """A multiple-choice model whose layers are left out.

    Attributes:
        model: The model; the weights of its layers are not used.
        plan: Where a hidden state has to be put in.
    """

    model: nn.Module
    plan: HeadPlan

    @torch.inference_mode()
    def scores(
        self, hidden: Float[Tensor, "n position d_model"], mask: Int[Tensor, "n position"], *, normed: bool
    ) -> Float[Tensor, " n"]:
        """Return the score of each choice had the model's layers ended in these states.

        Args:
            hidden: States of all tokens of each choice, any float type; what stands at padding does not matter.
            mask: 1 for tokens.
            normed: Whether the final norm has been applied already (true for `hidden[L]`).
        """
        kind = next(self.model.parameters())
        with self.plan.ended_in(self.model, hidden.to(kind.device, kind.dtype), normed=normed):
            logits: Tensor = self.model(**_blank(self.model, mask.to(kind.device))).logits
        return logits[:, 0].float()

    def slopes(
        self, hidden: Float[Tensor, "n position d_model"], mask: Int[Tensor, "n position"]
    ) -> Float[Tensor, "n position d_model"]:
        """Return the gradient of each choice's score with respect to its last hidden state; arguments as above."""
        kind = next(self.model.parameters())
        state = hidden.to(kind.device, kind.dtype).requires_grad_()
        with torch.enable_grad(), self.plan.ended_in(self.model, state, normed=True):
            logits: Tensor = self.model(**_blank(self.model, mask.to(kind.device))).logits
            (slopes,) = torch.autograd.grad(logits.sum(), state)
        return slopes.float()

    def save(self, folder: Path) -> Path:
        """Write the config, the plan and the weights that are not the layers' nor the word embedding's."""
        words = {id(p) for p in self.model.get_input_embeddings().parameters()}  # type: ignore[operator]
        kept = {
            name: p.detach().cpu().contiguous().clone()
            for name, p in self.model.named_parameters()
            if id(p) not in words and not name.startswith(tuple(f"{layer}." for layer in self.plan.layers))
        }
        folder.mkdir(parents=True, exist_ok=True)
        config: Any = self.model.config
        (folder / HEAD_CONFIG_FILE).write_text(config.to_json_string(use_diff=True), encoding="utf-8")
        (folder / CHOICE_HEAD_FILE).write_text(json.dumps(asdict(self.plan), indent=2) + "\n", encoding="utf-8")
        save_file(kept, folder / CHOICE_WEIGHTS_FILE, metadata={"format": "pt"})
        return folder


def _blank(model: nn.Module, mask: Tensor) -> dict[str, Tensor]:
    """Return the arguments of a forward pass over choices of nothing, with this mask."""
    words, kind = model.get_input_embeddings(), next(model.parameters())  # type: ignore[operator]
    blank = torch.zeros(*mask.shape, words.embedding_dim, device=kind.device, dtype=kind.dtype)
    return {"inputs_embeds": blank.unsqueeze(1), "attention_mask": mask.unsqueeze(1)}


def _returning(module: nn.Module, value: Any) -> Any:
    """Make a module return a value whatever it is called with; return what undoes that."""
    module.forward = lambda *_args, **_kwargs: value
    return lambda: module.__dict__.pop("forward")


def choice_head(loaded: LoadedModel, structure: ModuleStructure) -> ChoiceHead:
    """Return the head of a loaded multiple-choice model."""
    two = _blank(loaded.model, torch.ones(1, 2, dtype=torch.long, device=loaded.device))
    return ChoiceHead(loaded.model, plan_of(loaded.model, structure, two))


def plan_of(model: nn.Module, structure: ModuleStructure, inputs: Mapping[str, Any]) -> HeadPlan:
    """Return where a hidden state has to be put into a model; `inputs` are arguments of its forward, for a trial."""
    hook_points = [layer.post_mlp for layer in structure.layers]
    place, returned = hook_points[0].key, []
    first = model.get_submodule(hook_points[0].module)
    handle = first.register_forward_hook(lambda _m, _a, out: returned.append(len(out) if isinstance(out, tuple) else 1))
    with torch.inference_mode():
        model(**inputs)
    handle.remove()
    norm = None if structure.final_norm == IDENTITY else structure.final_norm
    names = tuple(dict.fromkeys(point.module for point in hook_points))
    return HeadPlan(names, place if isinstance(place, int) else None, returned[0], norm)


def holds_choice_head(folder: Path) -> bool:
    """Return whether `ChoiceHead.save` wrote to a folder."""
    return (folder / CHOICE_HEAD_FILE).is_file()


def load_choice_head(folder: Path) -> ChoiceHead:
    """Return a head as `ChoiceHead.save` wrote it.

    Raises:
        ModelError: A file is missing or damaged.
    """
    try:
        told = json.loads((folder / CHOICE_HEAD_FILE).read_text(encoding="utf-8"))
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model = AutoModelForMultipleChoice.from_config(config, trust_remote_code=False).eval()
        weights = load_file(folder / CHOICE_WEIGHTS_FILE)
        unknown = model.load_state_dict(weights, strict=False).unexpected_keys
        plan = HeadPlan(tuple(told["layers"]), told["place"], told["returned"], told["final_norm"])
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder} holds no choice head that can be loaded ({first_line(error)}).") from error
    if unknown:
        raise ModelError(f"{folder} does not fit its own config: {', '.join(unknown[:3])} have no place.")
    return ChoiceHead(model.to(next(iter(weights.values())).dtype), plan)
