"""Weights that give NaN or more than float16 holds: the place is named, nothing is kept, an older run is unharmed."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from faults.processes import INDEX, NEXTTOK, files_of
from support.models import byte_tokenizer
from transformers import AutoModelForCausalLM

from decision_traces import TraceStore


@pytest.fixture
def changed(tiny_folder, tmp_path: Path) -> Callable[[Callable[[Any], None]], Path]:
    """Save the tiny model with some weights changed."""

    def change(how: Callable[[Any], None]) -> Path:
        model = AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2"))
        with torch.no_grad():
            how(model.transformer.h)
        model.save_pretrained(tmp_path / "model")
        byte_tokenizer().save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return change


@pytest.fixture
def refuse(commands, lines: Path, small: Path, tmp_path: Path) -> Callable[..., str]:
    """Trace a model over what is a run already, and return the sentence that it is refused with."""
    shutil.copytree(small, tmp_path / "run")

    def trace(model: Path, *flags: object) -> str:
        before = files_of(tmp_path / "run")
        flags = ("--model_path", model, "--text_file", lines, "--limit", 24, "--block_mb", 1, *flags)
        ended = commands.run(NEXTTOK, *flags, "--overwrite", "--out_dir", tmp_path / "run")
        assert ended.code == 1
        assert files_of(tmp_path / "run") == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "run"]
        return ended.said()

    return trace


def test_a_nan_in_the_weights_is_named_with_its_layer(changed, refuse) -> None:
    def one_nan(layers: Any) -> None:
        layers[1].attn.c_proj.weight[3, 5] = float("nan")

    said = refuse(changed(one_nan), "--capture", "resid")
    assert said.startswith("error: The model computed NaN in attn_out of layer 1. ")
    assert "float32" in said


def test_what_float16_does_not_hold_is_named_with_its_size_and_held_by_float32(
    changed, refuse, commands, lines: Path, tmp_path: Path
) -> None:
    def scale(layers: Any) -> None:
        layers[2].mlp.c_proj.weight.mul_(2.0**18)

    model = changed(scale)
    said = refuse(model, "--capture", "hidden", "resid")
    found = re.match(r"error: post_mlp of layer 2 reaches ([\d,]+)", said)
    assert found, said
    assert "float16" in said and "--dtype float32" in said
    flags = ("--model_path", model, "--text_file", lines, "--limit", 24, "--dtype", "float32", "--capture", "resid")
    assert commands.run(NEXTTOK, *flags, "--out_dir", tmp_path / "wide").code == 0
    stored = TraceStore(tmp_path / "wide").to_xarray("dec_res_post_mlp").to_numpy()
    assert np.abs(stored[:, :2]).max() < 65504 < np.abs(stored[:, 2]).max()
    assert float(found[1].replace(",", "")) in np.round(np.abs(stored[:, 2]).max(axis=(1, 2)))
    assert commands.run(INDEX, tmp_path / "wide", "--validate").code == 0
