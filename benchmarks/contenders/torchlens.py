"""TorchLens 2: `extract_dataset`, which records every operation and writes safetensors shards by itself."""

import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.contenders.batches import Tokens, pad
from benchmarks.contenders.families import Family, family_of, load
from benchmarks.contenders.protocol import About, Ran, Read, UnavailableError
from benchmarks.contenders.task import Task

BATCH_SIZE: Final = 4  # its memory grows batch by batch; with 8 it stops at half of what is left
_TRIAL_ROWS: Final = 2
Collate = Callable[[Sequence[Sequence[int]]], dict[str, Any]]


class TorchLens:
    """Batches of 4; eager attention, because under SDPA the operations depend on the padding."""

    about = About(
        "TorchLens extract_dataset",
        package="torchlens",
        isolated=True,
        note=(
            "batches of 4 (it holds every operation of a pass, and stops at half of the memory that is left); "
            "writes safetensors, each distinct tensor once, hidden and residual states without padding; it cannot trim "
            "q and k behind RoPE, nor attention, to their tokens: with them every batch is padded to T"
        ),
    )

    def run(self, task: Task, folder: Path) -> Ran:
        """Let it extract everything to disk."""
        if importlib.util.find_spec("torchlens") is None:
            raise UnavailableError('not installed (python -m pip install -c constraints.txt -e ".[bench]")')
        from torchlens.dataset_extraction import extract_dataset

        model, tokens = load(task.model_path, "eager"), task.tokens()
        collate = _collate(task.max_seq_len if _has_fixed_length(task, model.config.model_type) else 0)
        sites = _sites(model, family_of(model), task, collate(tokens[:_TRIAL_ROWS]))
        start = time.perf_counter()
        extract_dataset(
            model,
            tokens,
            sites,
            batch_size=BATCH_SIZE,
            output_dir=folder,
            progress=False,
            collate=collate,
            dtype="float16",
            ragged="trim",
        )
        return Ran(time.perf_counter() - start)

    def checked(self, task: Task) -> tuple[str, ...]:
        """Every array, put together from the tensors it is made of."""
        return task.arrays

    def reader(self, task: Task, folder: Path) -> Read:
        """Return how to put the arrays together."""
        return _reader(folder, task.tokens(), load(task.model_path, "eager").config)


def _has_fixed_length(task: Task, model_type: str) -> bool:
    """Return whether a tensor is asked for that is refused at different lengths: one whose second axis is heads."""
    return task.wants("attn") or (task.wants("q") and model_type != "gpt2")


def _collate(width: int) -> Collate:
    """Return how token ids become the model's arguments, padded to the longest or to a fixed width."""

    def collate(items: Sequence[Sequence[int]]) -> dict[str, Any]:
        batch = pad(range(len(items)), items, width)
        return {"input_ids": batch.ids, "attention_mask": batch.mask, "use_cache": False, "logits_to_keep": 1}

    return collate


def _sites(model: Any, family: Family, task: Task, trial: dict[str, Any]) -> dict[str, str]:
    """Return key of each tensor → TorchLens' label of the operation, or address of the module, that makes it."""
    operations = _operations(model, trial)
    sites = {"embed": family.embed, "final": family.final_norm}
    for i in range(model.config.num_hidden_layers):
        layer = f"{family.layers}.{i}"
        inside = operations[f"{layer}.{family.attention}"]
        sites[f"post_mlp.{i}"] = layer
        sites[f"post_attn.{i}"] = operations[layer]["add"][0]
        if task.wants("attn"):
            sites[f"attn.{i}"] = inside["softmax"][0]
        if not task.wants("q"):
            continue
        if model.config.model_type == "gpt2":
            labels = dict(zip("kvq", inside["view"], strict=True))
        else:
            labels = dict(zip("qk", inside["add"], strict=False)) | {"v": f"{layer}.{family.attention}.v_proj"}
        sites |= {f"{name}.{i}": label for name, label in labels.items()}
    return sites


def _operations(model: Any, trial: dict[str, Any]) -> Mapping[str, Mapping[str, list[str]]]:
    """Return address of a module → kind of operation → labels of those done in that module itself, in order."""
    import torchlens

    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for operation in torchlens.trace(model, input_args=(), input_kwargs=trial).ops:
        module = str(operation.module).split(":")[0]
        found[module][operation.label.split("_")[0]].append(operation.label)
    return found


def _reader(folder: Path, tokens: Tokens, config: Any) -> Read:
    from torchlens.dataset_extraction import open_extraction

    opened, layers = open_extraction(folder), range(config.num_hidden_layers)
    d_head = config.hidden_size // config.num_attention_heads

    def tensor(key: str, row: int) -> np.ndarray:
        value: np.ndarray = opened.row(row, [key])[key].numpy()
        return value

    def heads(key: str, row: int) -> np.ndarray:
        """(head, position, d_head) out of what the operation gave."""
        value, n = tensor(key, row), len(tokens[row])
        if value.ndim == 3 and config.model_type != "gpt2":
            return value[:, :n]  # q and k behind RoPE, padded to T
        return value.reshape(n, -1, d_head).swapaxes(0, 1)

    def read(name: str, row: int) -> np.ndarray:
        if name == "embed":
            return tensor(name, row)
        if name in {"pre_attn", "hidden"}:
            between = [tensor(f"post_mlp.{i}", row) for i in layers[:-1]]
            last = [tensor("final", row)] if name == "hidden" else []
            return np.stack([tensor("embed", row), *between, *last])
        if name == "attn":
            n = len(tokens[row])
            return np.stack([tensor(f"attn.{i}", row)[:, :n, :n] for i in layers])
        take = heads if name in {"q", "k", "v"} else tensor
        return np.stack([take(f"{name}.{i}", row) for i in layers])

    return read
