"""The way from the residual stream to logits as a small file: final norm and output embedding, without the model.

`unembed/` in a run folder holds `config.json`, `unembed.safetensors`, and the text of every token as `words.json`. With
it a run can be read through the lens where its model is not to be had. The architecture is built from the config
without memory for its weights; the two modules are taken from it and filled from the file.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from decision_traces.errors import ModelError, UnsupportedArchitecture, first_line
from decision_traces.format.arrays import HEAD_CONFIG_FILE, HEAD_WORDS_FILE, UNEMBED_FILE
from decision_traces.model.load import LoadedModel
from decision_traces.model.structure import IDENTITY

_LARGEST: Final = {HEAD_CONFIG_FILE: 1 << 20, HEAD_WORDS_FILE: 32 << 20}  # bytes
_LARGEST_HEADER: Final = 1 << 20  # bytes in front of the tensors, of which there are a few
_MOST_PARTS: Final = 1024
_SHIFT: Final = "logit_shift"
_PARTS: Final = re.compile(r"(layers?|experts|labels|depth|stages)$")


@dataclass(frozen=True, slots=True)
class Words:
    """The text of every token, in the place of a tokenizer.

    Attributes:
        texts: By id, each as the tokenizer decodes it alone.
    """

    texts: tuple[str, ...]

    def decode(self, ids: Sequence[int]) -> str:
        """Return the texts of some ids, one behind the other; those the tokenizer did not know have none."""
        return "".join(self.texts[i] for i in ids if i < len(self.texts))


def save_unembedding(loaded: LoadedModel, final_norm: str | None, folder: Path, shift: Tensor | None = None) -> Path:
    """Write the final norm and the output embedding of a model, with its config, and return the folder.

    Args:
        loaded: The model. Its numbers are written in the type they have.
        final_norm: Name of the final norm, as `ModuleStructure` and a run's meta have it.
        shift: (vocab,) what the model adds to what it unembeds (`LogitMap.shift`); factor and cap stand in the meta.
        folder: Made where it does not exist; files of these names in it are replaced.

    Raises:
        UnsupportedArchitecture: No single module leads from the last layer to the last hidden state.
    """
    if final_norm is None:
        raise UnsupportedArchitecture(
            f"{type(loaded.model).__name__} has no single final norm; there is nothing that could be stored alone."
        )
    tensors: dict[str, Tensor] = {} if shift is None else {_SHIFT: shift.clone()}
    for name, module in _modules(loaded.model, final_norm).items():
        for key, value in chain(module.named_parameters(), module.named_buffers()):
            tensors[f"{name}.{key}"] = value.detach().cpu().contiguous().clone()  # tied weights share memory
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HEAD_CONFIG_FILE).write_text(loaded.config.to_json_string(use_diff=True), encoding="utf-8")
    # Not save_file, which lets nobody but the owner read what it writes.
    (folder / UNEMBED_FILE).write_bytes(save(tensors, metadata={"format": "pt"}))
    words = loaded.tokenizer.batch_decode([[i] for i in range(len(loaded.tokenizer))])
    (folder / HEAD_WORDS_FILE).write_text(json.dumps(words), encoding="utf-8")
    return folder


def holds_words(folder: Path) -> bool:
    """Return whether `save_unembedding` wrote the text of every token to a folder."""
    return (folder / HEAD_WORDS_FILE).is_file()


def load_words(folder: Path) -> Words:
    """Return the text of every token from a folder.

    Raises:
        ModelError: The file is damaged.
    """
    path = folder / HEAD_WORDS_FILE
    try:
        _refuse_large(path)
        texts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}). Name the model with --model_path.") from error
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ModelError(f"{path} is no list of texts. Name the model with --model_path.")
    return Words(tuple(texts))


def load_unembedding_file(
    folder: Path, final_norm: str, device: torch.device | None = None
) -> tuple[nn.Module | None, nn.Module, Tensor | None]:
    """Return final norm, output embedding and shift of the logits from a folder; None for what the model has not.

    Args:
        folder: As `save_unembedding` wrote it.
        final_norm: As for `save_unembedding`.
        device: Where to put them; the CPU by default.

    Raises:
        ModelError: A file is missing or damaged, or does not hold what the architecture needs.
    """
    try:
        _refuse_large(folder / HEAD_CONFIG_FILE)
        _refuse_deep(folder / HEAD_CONFIG_FILE)
        _refuse_header(folder / UNEMBED_FILE)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
            model = auto.from_config(config, trust_remote_code=False)
        modules = _modules(model, final_norm)
        with safe_open(folder / UNEMBED_FILE, framework="pt") as file:
            for name, module in modules.items():
                _fill(name, module, file)
            shift = file.get_tensor(_SHIFT) if _SHIFT in file.keys() else None  # noqa: SIM118
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError, SafetensorError) as error:
        raise ModelError(
            f"{folder} holds no unembedding that can be loaded ({first_line(error)}). Give the model itself with "
            "--model_path, or extract the run again."
        ) from error
    for module in modules.values():
        module.to(device or torch.device("cpu")).eval()
    *norm, head = modules.values()
    return (norm[0] if norm else None), head, shift


def _refuse_large(path: Path) -> None:
    if (size := path.stat().st_size) > _LARGEST[path.name]:
        raise ValueError(f"{path.name} has {size} bytes, more than it can have")


def _refuse_deep(path: Path) -> None:
    """Raise if a config names more layers than any model has: each takes memory, also without its weights."""
    config = json.loads(path.read_bytes())
    pending: list[Any] = [config] if isinstance(config, dict) else []
    while pending:
        one = pending.pop()
        for key, value in one.items() if isinstance(one, dict) else enumerate(one):
            if isinstance(value, dict | list):
                pending.append(value)
            elif isinstance(value, int) and value > _MOST_PARTS and _PARTS.search(str(key)):
                raise ValueError(f"{path.name} says {key}: {value}")


def _refuse_header(path: Path) -> None:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
    if length > _LARGEST_HEADER:
        raise ValueError(f"{path.name} has a header of {length} bytes")


def _modules(model: Any, final_norm: str) -> dict[str, nn.Module]:
    """Return the norm, unless there is none, and the output embedding, by full name."""
    head = model.get_output_embeddings()
    name = next((name for name, module in model.named_modules() if module is head), None)
    if head is None or name is None:
        raise UnsupportedArchitecture(f"{type(model).__name__} has no output embedding.")
    norm = {} if final_norm == IDENTITY else {final_norm: model.get_submodule(final_norm)}
    return {**norm, name: head}


def _fill(name: str, module: nn.Module, file: Any) -> None:
    """Put the tensors of the file in the place of those of a module that has none yet.

    Raises:
        ValueError: A tensor is missing, or of another shape.
    """
    for key, empty in list(chain(module.named_parameters(), module.named_buffers())):
        value = file.get_tensor(f"{name}.{key}") if f"{name}.{key}" in file.keys() else None  # noqa: SIM118
        if value is None or value.shape != empty.shape:
            found = "is missing" if value is None else f"has shape {tuple(value.shape)}"
            raise ValueError(f"{name}.{key} {found}; expected shape {tuple(empty.shape)}")
        owner, _, leaf = key.rpartition(".")
        holder = module.get_submodule(owner)
        if isinstance(empty, nn.Parameter):
            setattr(holder, leaf, nn.Parameter(value, requires_grad=False))
        else:
            setattr(holder, leaf, value)
