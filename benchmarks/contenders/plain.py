"""Plain transformers and zarr, as a careful user writes it: output flags, and hooks where flags give nothing."""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from benchmarks.contenders.batches import Batch, in_order
from benchmarks.contenders.families import Family, family_of, load, predicted
from benchmarks.contenders.protocol import About, Ran, Read
from benchmarks.contenders.task import Task
from benchmarks.contenders.zarr_arrays import ZarrArrays, zarr_reader

BATCH_SIZE: Final = 8
Keep = Callable[[str, Tensor], None]


class Plain:
    """Batches of 8 in the order of the data set, each stacked, cast to float16 and written to Zarr."""

    about = About("plain transformers + zarr")

    def run(self, task: Task, folder: Path) -> Ran:
        """Run the model batch by batch, writing each."""
        model = load(task.model_path, task.attention)
        family, tokens = family_of(model), task.tokens()
        start = time.perf_counter()
        arrays = ZarrArrays(folder, len(tokens), task.max_seq_len)
        with torch.inference_mode(), hooks(model, family, task) as found:
            for batch in in_order(tokens, BATCH_SIZE):
                found.clear()
                _write(model, task, batch, found, arrays)
        return Ran(time.perf_counter() - start)

    def checked(self, task: Task) -> tuple[str, ...]:
        """Every array."""
        return task.arrays

    def reader(self, task: Task, folder: Path) -> Read:
        """Return how to read the arrays."""
        return zarr_reader(folder, [len(ids) for ids in task.tokens()])


def _write(model: Any, task: Task, batch: Batch, found: dict[str, list[Tensor]], arrays: ZarrArrays) -> None:
    out = model.base_model(
        input_ids=batch.ids,
        attention_mask=batch.mask,
        use_cache=False,
        output_hidden_states=True,
        output_attentions=task.wants("attn"),
    )
    hidden = torch.stack(out.hidden_states, dim=1)  # (batch, depth, position, d_model)
    if task.wants("hidden"):
        arrays.write("hidden", hidden, batch)
    if task.wants("embed"):
        arrays.write("embed", hidden[:, 0], batch)
        arrays.write("pre_attn", hidden[:, :-1], batch)
        arrays.write_layers("post_mlp", [*out.hidden_states[1:-1], *found.pop("last_layer")], batch)
    if task.wants("attn"):
        arrays.write_layers("attn", out.attentions, batch)
    for name, layers in found.items():
        arrays.write_layers(name, layers, batch)
    ids = predicted(model, out.last_hidden_state, batch.next_positions)
    arrays.write_predictions(ids, batch)


@contextmanager
def hooks(model: Any, family: Family, task: Task) -> Iterator[dict[str, list[Tensor]]]:
    """Collect, layer by layer, what the output flags do not give: the stream after attention, q, k and v."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    layers = model.get_submodule(family.layers)
    handles = []

    def keep(name: str, value: Tensor) -> None:
        found[name].append(value)

    if task.wants("post_attn"):
        for layer in layers:
            reader = layer.get_submodule(family.post_attn)
            handles.append(reader.register_forward_pre_hook(lambda _module, args: keep("post_attn", args[0])))
        handles.append(layers[-1].register_forward_hook(lambda _module, _args, out: keep("last_layer", _tensor(out))))
    if task.wants("q"):
        add = {"gpt2": _gpt2_hooks, "llama": _llama_hooks}[model.config.model_type]
        for layer in layers:
            handles += add(layer.get_submodule(family.attention), keep)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _tensor(output: Any) -> Tensor:
    value: Tensor = output[0] if isinstance(output, tuple) else output
    return value


def _gpt2_hooks(attention: Any, keep: Keep) -> list[Any]:
    """GPT-2 makes q, k and v by one projection."""

    def split(_module: Any, _args: Any, joint: Tensor) -> None:
        for name, part in zip("qkv", joint.chunk(3, dim=-1), strict=True):
            keep(name, _heads(part, attention.head_dim))

    return [attention.c_attn.register_forward_hook(split)]


def _llama_hooks(attention: Any, keep: Keep) -> list[Any]:
    """Llama turns q and k by their positions in the middle of attention: done once more, with its own function."""
    flat: dict[str, Tensor] = {}

    def turn(_module: Any, _args: Any, kwargs: dict[str, Any], _output: Any) -> None:
        q, k, v = (_heads(flat.pop(name), attention.head_dim) for name in "qkv")
        turned = apply_rotary_pos_emb(q, k, *kwargs["position_embeddings"])
        for name, value in zip("qkv", (*turned, v), strict=True):
            keep(name, value)

    handles = [
        getattr(attention, f"{name}_proj").register_forward_hook(
            lambda _module, _args, out, name=name: flat.__setitem__(name, out)
        )
        for name in "qkv"
    ]
    return [*handles, attention.register_forward_hook(turn, with_kwargs=True)]


def _heads(flat: Tensor, d_head: int) -> Tensor:
    """(batch, position, heads * d_head) → (batch, head, position, d_head)."""
    return flat.view(*flat.shape[:2], -1, d_head).transpose(1, 2)
