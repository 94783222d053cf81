"""The unembedding of a run: kept in the run itself, it gives the same lens where no model is to be had."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.runs import copy_run, reseal

from decision_traces import TraceStore
from decision_traces.analysis.lens import unembedding
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import load_run_model, load_unembedding
from decision_traces.errors import DamagedRunError, ModelError, UnsupportedArchitecture
from decision_traces.model.unembed_file import save_unembedding

NAMES = {
    "gpt2": {"transformer.ln_f.weight", "transformer.ln_f.bias", "lm_head.weight"},  # tied to the embedding
    "gemma": {"model.norm.weight", "lm_head.weight"},
    "phi": {"model.final_layernorm.weight", "model.final_layernorm.bias", "lm_head.weight", "lm_head.bias"},
}


@pytest.fixture
def kept(traced, tmp_path: Path):
    def run(family: str, **options) -> Path:
        folder = copy_run(traced(family, **options), tmp_path / family)
        store = TraceStore(folder)
        save_unembedding(load_run_model(store), store.meta["final_norm"], folder / "unembed")
        reseal(folder)
        return folder

    return run


def _no_model(*_: object) -> None:
    raise AssertionError("the model was loaded")


@pytest.mark.parametrize("family", NAMES)
def test_the_lens_works_without_the_model(family: str, kept, traced, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = kept(family)
    assert set(load_file(folder / "unembed" / "unembed.safetensors")) == NAMES[family]
    original = TraceStore(traced(family))
    expected = logit_lens(original, load_unembedding(original))
    monkeypatch.setattr(unembedding, "load_run_model", _no_model)
    alone = logit_lens(TraceStore(folder), load_unembedding(TraceStore(folder)))
    np.testing.assert_array_equal(alone.true.logit, expected.true.logit)
    np.testing.assert_array_equal(alone.topk_ids, expected.topk_ids)


def test_the_stored_type_is_kept(kept) -> None:
    head = load_unembedding(TraceStore(kept("llama", model_dtype="bfloat16", dtype="float16")))
    assert head.weight.dtype == torch.bfloat16 and not head.weight.is_meta


def test_a_model_that_is_named_is_preferred(kept, tiny_folder) -> None:
    folder = kept("gpt2")
    with pytest.raises(ModelError, match="not those the run was made with"):
        load_unembedding(TraceStore(folder), tiny_folder("llama"))


def test_damage_is_noticed_and_named(kept) -> None:
    folder = kept("gpt2")
    path = folder / "unembed" / "unembed.safetensors"
    tensors = load_file(path)
    save_file({k: v + 1 for k, v in tensors.items()}, path)
    with pytest.raises(DamagedRunError, match=r"unembed\.safetensors is not as written"):
        load_unembedding(TraceStore(folder))
    del tensors["transformer.ln_f.bias"]
    save_file(tensors, path)
    reseal(folder)
    with pytest.raises(ModelError, match=r"transformer\.ln_f\.bias is missing; expected shape \(32,\)"):
        load_unembedding(TraceStore(folder))
    (folder / "unembed" / "config.json").write_text("{}")
    reseal(folder)
    with pytest.raises(ModelError, match="holds no unembedding that can be loaded"):
        load_unembedding(TraceStore(folder))


def test_one_that_says_it_is_enormous_is_refused_before_it_is_built(kept, tmp_path: Path) -> None:
    folder = kept("gpt2")
    config, tensors = (folder / "unembed" / name for name in ("config.json", "unembed.safetensors"))
    told, stored = json.loads(config.read_text()), tensors.read_bytes()
    config.write_text(json.dumps(told | {"n_layer": 10**9}))
    reseal(folder)
    with pytest.raises(ModelError, match="says n_layer: 1000000000"):
        load_unembedding(TraceStore(folder))
    config.write_text(json.dumps(told))
    tensors.write_bytes((10**9).to_bytes(8, "little") + stored[8:])
    reseal(folder)
    with pytest.raises(ModelError, match="has a header of 1000000000 bytes"):
        load_unembedding(TraceStore(folder))
    tensors.unlink()
    tensors.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DamagedRunError, match="is a symbolic link"):
        load_unembedding(TraceStore(folder))


def test_nothing_is_stored_where_no_module_is_the_final_norm(traced, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedArchitecture, match="no single final norm"):
        save_unembedding(load_run_model(TraceStore(traced("gpt2"))), None, tmp_path / "none")
