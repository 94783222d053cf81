"""The model's own way from a residual vector to logits: final norm and output embedding, without the layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from decision_traces import demo
from decision_traces.errors import ModelError, UnsupportedArchitecture
from decision_traces.models.anatomy import IDENTITY
from decision_traces.models.load import DEMO_MODEL, LoadedModel, ModelSource, load_decoder
from decision_traces.store.reader import TraceStore


@dataclass(frozen=True, slots=True)
class Unembedding:
    """Final norm and output embedding of one model.

    Attributes:
        norm: What leads from the last layer's output to the last hidden state; None where nothing does.
        head: From the last hidden state to logits.
    """

    norm: nn.Module | None
    head: nn.Module

    @torch.inference_mode()
    def logits(self, residual: Float[Tensor, "n d_model"], *, normed: bool) -> Float[Tensor, "n vocab"]:
        """Return the logits a residual vector would give if the model ended there.

        Args:
            residual: Vectors of the residual stream, any float type.
            normed: Whether the final norm has been applied already (true for `hidden[L]`).
        """
        weight = next(self.head.parameters())
        x = residual.to(weight.device, weight.dtype)
        if self.norm is not None and not normed:
            x = self.norm(x)
        logits: Tensor = self.head(x)
        return logits.float()


def of_model(loaded: LoadedModel, final_norm: str | None, *, logits_are_unembedded: bool = True) -> Unembedding:
    """Return the unembedding of a loaded model.

    Args:
        loaded: The model.
        final_norm: As in a run's meta.
        logits_are_unembedded: As in a run's meta.

    Raises:
        UnsupportedArchitecture: No single module leads from the last layer to the last hidden state, or the
            model does more than unembed it (caps, scales, a transform).
    """
    if final_norm is None or not logits_are_unembedded:
        what = "has no single final norm" if final_norm is None else "caps, scales or transforms around its unembedding"
        raise UnsupportedArchitecture(
            f"{type(loaded.model).__name__} {what}; reading its residual stream by a lens is not supported yet."
        )
    norm = None if final_norm == IDENTITY else loaded.model.get_submodule(final_norm)
    return Unembedding(norm, loaded.model.get_output_embeddings())  # type: ignore[operator]


def load_unembedding(store: TraceStore, model_path: Path | None = None) -> Unembedding:
    """Load the unembedding of the model a run was made with.

    Args:
        store: The run.
        model_path: Where the model lies now, if not where it lay then.

    Raises:
        ModelError: The model cannot be loaded, or its weights are not those of the run.
    """
    meta, name = store.meta, str(store.meta["model"])
    if model_path is None:
        model_path = demo.MODEL_DIR if name == DEMO_MODEL else _path_of(meta)
    dtype = meta.get("environment", {}).get("model_dtype", "auto")
    settings = meta.get("settings", {})
    loaded = load_decoder(
        ModelSource(name, model_path, settings.get("gguf_file"), settings.get("revision"), model_dtype=dtype)
    )
    if meta.get("weights_digest") not in {None, loaded.weights_digest()}:
        raise ModelError(
            f"The weights of {model_path or name} are not those the run was made with (their digests differ). "
            "Give the folder of the right ones."
        )
    direct = meta.get("logits_are_unembedded", True)
    return of_model(loaded, meta.get("final_norm"), logits_are_unembedded=direct)


def _path_of(meta: Mapping[str, Any]) -> Path | None:
    path = meta.get("model_path")
    return None if path is None else Path(path)
