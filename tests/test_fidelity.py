"""`python -m benchmarks.fidelity` on the demo model: an honest run is within the bars, a changed one is not."""

from pathlib import Path

import numpy as np
import pytest
import transformers
import zarr
from support.runs import reseal

from benchmarks.checkpoints import checkpoint
from benchmarks.fidelity import BAR, Settings, Worst, compare, tasks_of, trace
from decision_traces.demo import MODEL_DIR


def test_a_changed_value_is_told_and_nothing_else(tmp_path: Path) -> None:
    which = checkpoint("demo", tmp_path)
    run = trace(which, "next token", Settings(limit=2, data_dir=tmp_path / "none"), 1, tmp_path / "run")
    options = {"attn_implementation": "eager"}
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL_DIR, **options).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(MODEL_DIR)
    honest = compare(run, model, tokenizer, "next token")
    assert {"input_ids", "dec_self_attn", "dec_self_q", "dec_hidden", "dec_mlp_act", "dec_logits"} <= honest.keys()
    assert [name for name, worst in honest.items() if worst.absolute] == ["probabilities", "entropies"]
    assert honest["probabilities"].relative < 1e-5 and honest["entropies"].absolute < 1e-5
    array = zarr.open_group(run / "dec_self_qkv.zarr", mode="r+")["k"]
    array[1, 2, 0, 3, 5] += np.float32(1e-3)
    reseal(run)
    forged = compare(run, model, tokenizer, "next token")
    assert [name for name in forged if forged[name].absolute != honest[name].absolute] == ["dec_self_k"]
    assert forged["dec_self_k"].absolute == pytest.approx(1e-3, rel=1e-3) and forged["dec_self_k"].relative > BAR


def test_figures_are_relative_to_the_largest_value_or_each_to_itself() -> None:
    array, each = Worst(), Worst()
    array.add([1.0, 7.5], [1.0, 8.0])
    each.add_each([0.5, 0.02], [0.5, 0.01])
    assert (array.absolute, array.relative, array.largest) == (0.5, 0.0625, 8.0)
    assert each.relative == pytest.approx(1.0)
    array.add([1.0], [1.0, 1.0])
    assert array.relative == float("inf"), "shapes differ"


@pytest.mark.parametrize(
    ("architecture", "tasks"),
    [
        ("LlamaForCausalLM", ("next token", "answers")),
        ("GPT2LMHeadModel", ("next token", "answers")),
        ("AlbertForMaskedLM", ("masked", "encode")),
        ("BertModel", ("encode",)),
    ],
)
def test_what_a_checkpoint_can_do(architecture: str, tasks: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(f'{{"architectures": ["{architecture}"]}}')
    assert tasks_of(tmp_path) == tasks


def test_an_unknown_name_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^nothing: neither a folder with a config.json nor one of demo, stories260k"):
        checkpoint("nothing", tmp_path)
