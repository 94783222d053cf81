"""nnsight 0.8: one trace a batch, values saved where they pass, and zarr."""

import importlib.util
import time
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer

from benchmarks.contenders.batches import Batch, in_order
from benchmarks.contenders.families import Family, family_of, load, predicted
from benchmarks.contenders.protocol import About, Ran, Read, UnavailableError
from benchmarks.contenders.task import Task
from benchmarks.contenders.zarr_arrays import ZarrArrays, zarr_reader

BATCH_SIZE: Final = 8


class NNsight:
    """The same batches as plain transformers, and the same attention implementation."""

    about = About("nnsight + zarr", package="nnsight", isolated=True)

    def run(self, task: Task, folder: Path) -> Ran:
        """Trace batch by batch, writing each."""
        if importlib.util.find_spec("nnsight") is None:
            raise UnavailableError('not installed (python -m pip install -c constraints.txt -e ".[bench]")')
        from nnsight.modeling.transformers import TransformersModel

        model = load(task.model_path, task.attention)
        family, tokens = family_of(model), task.tokens()
        tokenizer = AutoTokenizer.from_pretrained(task.model_path, trust_remote_code=False)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # nnsight asks for one; ids come padded
        traced = TransformersModel(model, tokenizer=tokenizer, task="text-generation")
        start = time.perf_counter()
        arrays = ZarrArrays(folder, len(tokens), task.max_seq_len)
        for batch in in_order(tokens, BATCH_SIZE):
            found, last = _trace(traced, family, task, batch)
            _write(found, last, task, batch, arrays)
            arrays.write_predictions(predicted(model, last, batch.next_positions), batch)
        return Ran(time.perf_counter() - start)

    def checked(self, task: Task) -> tuple[str, ...]:
        """Every array."""
        return task.arrays

    def reader(self, task: Task, folder: Path) -> Read:
        """Return how to read the arrays."""
        return zarr_reader(folder, [len(ids) for ids in task.tokens()])


@torch.inference_mode()
def _trace(model: Any, family: Family, task: Task, batch: Batch) -> tuple[dict[str, list[Any]], Any]:
    """Return what passes, layer by layer, and the last hidden state.

    nnsight rewrites the body of a trace, and wants values asked for in the order in which they come up.
    """
    layers, final_norm = model.get(family.layers), model.get(family.final_norm)
    attentions = [layer.get(family.attention) for layer in layers]
    readers = [layer.get(family.post_attn) for layer in layers]
    found: dict[str, list[Any]] = {name: [] for name in ("pre_attn", "post_attn", "post_mlp", "q", "k", "v", "attn")}
    inputs = {"input_ids": batch.ids, "attention_mask": batch.mask}
    with model.trace(inputs, use_cache=False, logits_to_keep=1):  # predictions are read off the states
        for layer, attention, reader in zip(layers, attentions, readers, strict=True):
            found["pre_attn"].append(layer.input.save())
            if task.wants("q", "attn"):
                call = attention.source.attention_interface_1
                if task.wants("q"):
                    _, q, k, v, *_ = call.inputs[0]
                    found["q"].append(q.save())
                    found["k"].append(k.save())
                    found["v"].append(v.save())
                if task.wants("attn"):
                    found["attn"].append(call.output[1].save())
            found["post_attn"].append(reader.input.save())
            output = layer.output
            found["post_mlp"].append((output[0] if isinstance(output, tuple) else output).save())
        last = final_norm.output.save()
    return found, last


def _write(found: dict[str, list[Any]], last: Any, task: Task, batch: Batch, arrays: ZarrArrays) -> None:
    for name in task.arrays:
        if name == "embed":
            arrays.write(name, found["pre_attn"][0], batch)
        elif name == "hidden":
            arrays.write_layers(name, [*found["pre_attn"], last], batch)
        else:
            arrays.write_layers(name, found[name], batch)
