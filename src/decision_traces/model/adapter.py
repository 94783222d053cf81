"""An adapter (LoRA or the like): found beside a model's weights or alone, applied by peft, and told."""

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from decision_traces.errors import ModelError, UsageError
from decision_traces.model.digest import tensors_digest

BASE_ALONE = {"subfolder": "no-adapter-here"}
"""What lets transformers load the weights of a base model as they are: it looks for no adapter where it lies."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter of a model.

    Attributes:
        location: Its folder or hub repository.
        base: Where the base model is: the same place, where that holds a model, else what its config names.
        kind: Such as LORA.
        config: Its `adapter_config.json`.
    """

    location: str
    base: str
    kind: str
    config: str

    def applied(self, model: Any, options: dict[str, Any]) -> str:
        """Apply it to its base model and return a digest of its config and weights."""
        model.load_adapter(self.location, adapter_kwargs=_hub(options))
        weights: dict[str, Tensor] = model.get_adapter_state_dict()
        return hashlib.sha256((self.config + tensors_digest(weights)).encode()).hexdigest()


def find_adapter(location: str, options: dict[str, Any]) -> Adapter | None:
    """Return the adapter that a folder or a hub repository holds; None where it holds none.

    Raises:
        ModelError: Its config is not readable.
        UsageError: peft is not installed: the weights beside the adapter would be another model.
    """
    hub = _hub(options)
    try:
        found = find_adapter_config_file(location, **hub)
    except OSError:  # no name that the hub could have: loading the config says so
        return None
    if found is None:
        return None
    if not _has_peft():
        raise UsageError(
            f"{location} holds an adapter (adapter_config.json), which needs peft: "
            'python -m pip install "decision-traces[peft]" (from a clone: python -m pip install -e ".[peft]"). '
            "To trace the base model without it, give a folder that does not hold the adapter."
        )
    config = Path(found).read_text(encoding="utf-8")
    try:
        told = json.loads(config)
        kind, base = str(told["peft_type"]), str(told["base_model_name_or_path"])
    except (ValueError, LookupError, TypeError) as error:
        raise ModelError(f"{found} does not say what it adapts ({error}).") from error
    return Adapter(location, location if _holds(location, "config.json", hub) else base, kind, config)


def _has_peft() -> bool:
    return importlib.util.find_spec("peft") is not None


def tokenizer_place(adapter: Adapter, options: dict[str, Any]) -> str:
    """Return where the tokenizer is: beside the adapter, or with its base model."""
    beside = _holds(adapter.location, "tokenizer_config.json", _hub(options))
    return adapter.location if beside else adapter.base


def _hub(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name in {"revision", "local_files_only"}}


def _holds(location: str, name: str, hub: dict[str, Any]) -> bool:
    unraised = dict.fromkeys(
        (f"_raise_exceptions_for_{what}" for what in ("gated_repo", "missing_entries", "connection_errors")), False
    )
    return cached_file(location, name, **hub, **unraised) is not None
