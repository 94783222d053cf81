"""TransformerLens 4: `run_with_cache` of a bridge, with a filter that keeps what was asked for, and zarr."""

import importlib.util
import time
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoTokenizer

from benchmarks.contenders.batches import Batch, in_order
from benchmarks.contenders.families import load, predicted
from benchmarks.contenders.protocol import About, Ran, Read, UnavailableError
from benchmarks.contenders.task import Task
from benchmarks.contenders.zarr_arrays import ZarrArrays, zarr_reader

BATCH_SIZE: Final = 8
_FINAL: Final = "ln_final.hook_out"
_STREAM: Final = {"pre_attn": "hook_resid_pre", "post_attn": "hook_resid_mid", "post_mlp": "hook_resid_post"}


class TransformerLens:
    """The same batches as plain transformers; eager attention always, which is what the bridge runs."""

    about = About(
        "TransformerLens + zarr",
        package="transformer-lens",
        isolated=True,
        note="runs its own attention (eager) whatever is captured",
    )

    def run(self, task: Task, folder: Path) -> Ran:
        """Run the bridge batch by batch, writing each."""
        model, bridge = _boot(task)
        tokens, hooks = task.tokens(), _hooks(task, bridge)
        wanted = {name for layers in hooks.values() for name in layers} | {_FINAL}
        start = time.perf_counter()
        arrays = ZarrArrays(folder, len(tokens), task.max_seq_len)
        with torch.inference_mode():
            for batch in in_order(tokens, BATCH_SIZE):
                _, cache = bridge.run_with_cache(
                    batch.ids,
                    attention_mask=batch.mask,
                    names_filter=wanted.__contains__,
                    return_cache_object=False,
                    use_cache=False,
                    logits_to_keep=1,  # the predictions are read off the states below
                )
                _write(cache, hooks, batch, arrays)
                arrays.write_predictions(predicted(model, cache[_FINAL], batch.next_positions), batch)
        return Ran(time.perf_counter() - start)

    def checked(self, task: Task) -> tuple[str, ...]:
        """Every array."""
        return task.arrays

    def reader(self, task: Task, folder: Path) -> Read:
        """Return how to read the arrays."""
        return zarr_reader(folder, [len(ids) for ids in task.tokens()])


def _boot(task: Task) -> tuple[Any, Any]:
    """Return the transformers model, and the bridge around it."""
    if importlib.util.find_spec("transformer_lens") is None:
        raise UnavailableError('not installed (python -m pip install -c constraints.txt -e ".[bench]")')
    from transformer_lens.model_bridge import TransformerBridge

    model = load(task.model_path, "eager")
    head = model.get_output_embeddings()
    tokenizer = AutoTokenizer.from_pretrained(task.model_path, trust_remote_code=False)
    bridge = TransformerBridge.boot_transformers(
        str(task.model_path), hf_model=model, tokenizer=tokenizer, device="cpu"
    )
    model.get_output_embeddings = lambda: head  # the bridge moves the modules, and this looks for them by name
    return model, bridge


def _hooks(task: Task, bridge: Any) -> dict[str, list[str]]:
    """Return the hook names of every array, layer by layer."""
    layers = range(bridge.cfg.n_layers)
    turned = "blocks.0.attn.hook_rot_q" in bridge.hook_dict
    in_attention = {
        "q": "hook_rot_q" if turned else "hook_q",
        "k": "hook_rot_k" if turned else "hook_k",
        "v": "hook_v",
        "attn": "hook_pattern",
    }
    names = {name: [f"blocks.{i}.{hook}" for i in layers] for name, hook in _STREAM.items()}
    names |= {name: [f"blocks.{i}.attn.{hook}" for i in layers] for name, hook in in_attention.items()}
    names |= {"embed": names["pre_attn"][:1], "hidden": [*names["pre_attn"], _FINAL]}
    return {name: names[name] for name in task.arrays}


def _write(cache: dict[str, Any], hooks: dict[str, list[str]], batch: Batch, arrays: ZarrArrays) -> None:
    for name, places in hooks.items():
        layers = [cache[place] for place in places]
        if name in {"q", "k", "v"}:  # (batch, position, head, d_head)
            layers = [layer.transpose(1, 2) for layer in layers]
        if name == "embed":
            arrays.write(name, layers[0], batch)
        else:
            arrays.write_layers(name, layers, batch)
