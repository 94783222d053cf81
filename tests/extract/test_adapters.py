"""An adapter beside a model's weights, or alone: applied and recorded, or refused; never left out in silence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from safetensors.torch import save_file

from decision_traces import TraceStore
from decision_traces.errors import UsageError
from decision_traces.extract.texts import TextConfig, extract_texts
from decision_traces.model import adapter

TEXTS = ["The cat sat on the mat.", "a"]
RANK, ALPHA = 2, 6


@pytest.fixture
def base(checkpoint) -> Path:
    return checkpoint(hf.AutoModelForCausalLM, "llama")


def lora(folder: Path, base: Path) -> dict[str, torch.Tensor]:
    """Write a LoRA adapter of the value projections into a folder, and return what it adds to each."""
    folder.mkdir(exist_ok=True)
    weights, added = {}, {}
    for layer in range(3):
        name = f"model.layers.{layer}.self_attn.v_proj"
        a, b = torch.randn(RANK, 32) * 0.3, torch.randn(16, RANK) * 0.3
        weights |= {f"base_model.model.{name}.lora_{w}.weight": m for w, m in (("A", a), ("B", b))}
        added[f"{name}.weight"] = ALPHA / RANK * (b @ a)
    save_file(weights, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": str(base)}
    told |= {"r": RANK, "lora_alpha": ALPHA, "target_modules": ["v_proj"], "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return added


def run(folder: Path, tmp_path: Path, **options: Any) -> TraceStore:
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS) + "\n")
    config = TextConfig(
        model_path=folder, text_file=tmp_path / "lines.txt", out_dir=tmp_path / "run", capture=("hidden",),
        dtype="float32", **options,
    )  # fmt: skip
    return TraceStore(extract_texts(config))


@pytest.mark.parametrize("place", ["beside", "alone"])
def test_an_adapter_is_applied_and_recorded(place: str, base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = base if place == "beside" else tmp_path / "adapter"
    torch.manual_seed(3)
    model, tokenizer = hf.AutoModelForCausalLM.from_pretrained(base), hf.AutoTokenizer.from_pretrained(base)
    with torch.no_grad():
        for name, matrix in lora(folder, base).items():
            model.get_parameter(name).add_(matrix)
    store = run(folder, tmp_path)
    for row, text in enumerate(TEXTS):
        with torch.no_grad():
            out = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True)
        expected = torch.stack([state[0] for state in out.hidden_states]).numpy()
        np.testing.assert_allclose(store.hidden(row, trim=True), expected, atol=2e-5, rtol=0)
    told = store.about.adapter
    assert told is not None and (told["kind"], told["base"]) == ("LORA", None if place == "beside" else str(base))
    assert len(told["digest"]) == 64


def test_an_adapters_scale_is_in_its_digest(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora(base, base)
    first = run(base, tmp_path, overwrite=True).about.adapter
    path = base / "adapter_config.json"
    path.write_text(path.read_text().replace(f'"lora_alpha": {ALPHA}', '"lora_alpha": 1'))
    second = run(base, tmp_path, overwrite=True).about.adapter
    assert first is not None and second is not None and first["digest"] != second["digest"]


@pytest.mark.parametrize("place", ["beside", "alone"])
def test_without_peft_an_adapter_is_refused(
    place: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "_has_peft", lambda: False)
    folder = base if place == "beside" else tmp_path / "adapter"
    lora(folder, base)
    with pytest.raises(UsageError, match=r"holds an adapter \(adapter_config.json\), which needs peft: .*\[peft\]"):
        run(folder, tmp_path)
    assert not (tmp_path / "run").exists()
