"""`dt.trace`: models in memory and by name, the caller's model left as it was, and what is refused."""

import copy
import inspect
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import transformers as hf

import decision_traces as dt
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import load_unembedding
from decision_traces.api.trace import TraceOptions
from decision_traces.errors import Interrupted, ModelError, TraceError, UsageError
from decision_traces.extract.answer import AnswerConfig
from decision_traces.extract.multiple_choice import MultipleChoiceConfig
from decision_traces.extract.progress import Silent
from decision_traces.extract.texts import TextConfig

TEXTS = ["The cat sat on the mat", "Bob went home"]
QUIET: dict[str, Any] = {"progress": False, "dtype": "float32"}


@pytest.fixture
def model(tiny_folder: Callable[..., Path]) -> Any:
    return hf.AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2"), attn_implementation="sdpa")


@pytest.fixture
def tokenizer(tiny_folder: Callable[..., Path]) -> Any:
    return hf.AutoTokenizer.from_pretrained(tiny_folder("gpt2"))


def state_of(model: Any) -> dict[str, Any]:
    """What of a model a user would notice had it changed; parameters by their memory."""
    return {
        "training": [module.training for module in model.modules()],
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        "forward": ["forward" in vars(module) for module in model.modules()],
        "config": copy.deepcopy(model.config.to_dict()),
        "attention": model.config._attn_implementation,
        "tensors": [(p.data_ptr(), p._version, p.requires_grad) for p in model.parameters()],
    }


@torch.inference_mode()
def test_a_model_in_memory_gives_what_plain_transformers_gives(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    run = dt.trace(model, tokenizer, TEXTS, capture=["hidden", "attn"], out_dir=tmp_path / "run", **QUIET)
    assert isinstance(run, dt.TraceStore) and run.meta["dataset"] == "texts"
    model.set_attn_implementation("eager")
    for row, text in enumerate(TEXTS):
        plain = model.eval()(**tokenizer(text, return_tensors="pt"), output_hidden_states=True, output_attentions=True)
        np.testing.assert_allclose(run.hidden(row, trim=True), torch.cat(plain.hidden_states), rtol=0, atol=1e-5)
        np.testing.assert_allclose(run.attn(row, trim=True), torch.cat(plain.attentions), rtol=0, atol=1e-6)
        assert run.tokens["after_pred_id"][row] == int(plain.logits[0, -1].argmax())


@pytest.mark.parametrize("stopped", [False, True])
def test_the_callers_model_stays_as_it_is(stopped: bool, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    class Stop(Silent):
        def advance(self, n_examples: int, n_tokens: int) -> None:
            if stopped:
                raise KeyboardInterrupt

    model.train()
    model.transformer.h[0].mlp.register_forward_hook(lambda *_: None)
    before = state_of(model)
    try:
        dt.trace(model, tokenizer, TEXTS, capture="attn", out_dir=tmp_path / "run", progress=Stop())
    except Interrupted as error:
        assert stopped and "--resume goes on" not in str(error)
    assert state_of(model) == before
    assert (tmp_path / "run").exists() is not stopped


def test_analyses_find_the_model_in_memory(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)  # so that no folder has these weights
    run = dt.trace(model, tokenizer, TEXTS, capture="hidden resid", out_dir=tmp_path / "run", **QUIET)
    lens = logit_lens(run, load_unembedding(run)).to_frame()
    last = lens[lens["depth"] == lens["depth"].max()]
    assert [ids[0] for ids in last["topk_ids"]] == run.tokens["next_pred_id"].tolist()
    with torch.no_grad():
        model.lm_head.weight.mul_(1.5)
    with pytest.raises(ModelError, match=r"GPT2LMHeadModel in memory .* has other weights by now"):
        load_unembedding(run)


def test_rows_with_columns_of_their_own(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    rows = [{"text": "one", "label": np.int64(3), "n_tokens": 9}, {"text": "two three", "label": 4, "n_tokens": 8}]
    for name, texts in (("rows", rows), ("frame", pd.DataFrame(rows))):
        run = dt.trace(model, tokenizer, texts, out_dir=tmp_path / name, **QUIET)
        assert run.tokens[["text", "label", "field_n_tokens"]].to_dict("list") == {
            "text": ["one", "two three"],
            "label": [3, 4],
            "field_n_tokens": [9, 8],
        }


def test_by_name_folder_and_file(tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("first\nsecond\n")
    mine = dt.trace(tiny_folder("gpt2"), texts=tmp_path / "mine.txt", out_dir=tmp_path / "a", **QUIET)
    assert mine.tokens["text"].tolist() == ["first", "second"] and mine.meta["model"] == "gpt2"
    demo = dt.trace("demo", dataset="tinyworld", task="answers", limit=2, out_dir=tmp_path / "b", **QUIET)
    assert demo.meta["objective"] == "csqa_choice" and demo.n == 2


def test_the_options_are_those_of_the_commands() -> None:
    flags = {field.name for kind in (TextConfig, AnswerConfig, MultipleChoiceConfig) for field in fields(kind)}
    taken_otherwise = {"model", "task", "dataset", "text_file", "command", "plan", "quiet"}
    assert set(TraceOptions.__annotations__) == flags - taken_otherwise


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "texts or the name of a dataset"),
        ({"texts": TEXTS, "dataset": "tinyworld"}, "and not both"),
        ({"texts": "abc"}, "give a list of texts"),
        ({"texts": []}, "there is none"),
        ({"texts": [{"label": 1}]}, r"texts\[0\]: needs a column named text"),
        ({"texts": [b"abc"]}, r"texts\[0\]: text holds bytes"),
        ({"texts": TEXTS, "colour": 1}, "colour: trace has no such option here. There are: add_special_tokens"),
        ({"texts": TEXTS, "device": "cpu"}, "device: means nothing for a model that is in memory"),
        ({"texts": TEXTS, "task": "answers"}, "asks questions of a dataset"),
        ({"texts": TEXTS, "task": "chat"}, "the choices are auto, causal"),
        ({"texts": TEXTS, "capture": "atn"}, "--capture atn: the choices are"),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str, model: Any, tokenizer: Any, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=message):
        dt.trace(model, tokenizer, out_dir=tmp_path / "run", progress=False, **given)
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_or_brings_its_own_tokenizer(model: Any, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match="GPT2LMHeadModel in memory needs its tokenizer"):
        dt.trace(model, texts=TEXTS)
    with pytest.raises(UsageError, match="brings its own"):
        dt.trace("demo", tokenizer, TEXTS)
    with pytest.raises(ModelError, match="Linear is no model of transformers"):
        dt.trace(torch.nn.Linear(2, 2), tokenizer, TEXTS, progress=False)


# -- analyses ------------------------------------------------------------------------------------------------


def test_analyses_are_calls_with_the_options_of_their_commands(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    capture = ["hidden", "resid", "attn"]
    run = dt.trace(model, tokenizer, TEXTS, capture=capture, out_dir=tmp_path / "run", **QUIET)
    lens = run.lens(top_k=3)
    assert lens.lenses[0].topk_ids.shape[-1] == 3 and (run.run_dir / "analysis" / "lens" / "lens.parquet").is_file()
    found = run.attribution(of="next").leads.to_frame()
    lead = found.groupby("example_id", sort=False)["logits"].sum()
    with torch.inference_mode():  # the parts add up to the lead, which plain transformers gives
        for text, total in zip(TEXTS, lead, strict=True):
            ids = tokenizer(text, return_tensors="pt").input_ids
            logits = model.eval()(ids).logits[0, -2]
            true = int(ids[0, -1])
            competitor = int(logits.index_fill(0, torch.tensor([true]), -torch.inf).argmax())
            assert total == pytest.approx(float(logits[true] - logits[competitor]), abs=1e-4)
    assert run.attention().per_head().to_frame().shape[0] == run.L * run.H
    assert dt.open_run(run.run_dir).analyses()["lens"].files
    assert str(inspect.signature(run.lens)).startswith("(model_path")
    with pytest.raises(UsageError, match=r"unexpected keyword argument .topk.\. Its options are"):
        run.lens(topk=3)


# -- values of another kind ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"limit": "1"}, "limit='1': give a whole number or None"),
        ({"limit": 1.0}, "limit=1.0: give a whole number or None"),
        ({"batch_size": None}, "batch_size=None: give a whole number"),
        ({"max_seq_len": "8"}, "max_seq_len='8': give a whole number or 'auto'"),
        ({"seed": "a"}, "seed='a': give a whole number"),
        ({"dtype": torch.float32}, "dtype=torch.float32: give 'float16' or 'float32'"),
        ({"all_positions": "no"}, "all_positions='no': give True or False"),
        ({"mask_prob": "0.1"}, "mask_prob='0.1': give a number or None"),
        ({"progress": "yes"}, "progress='yes': give True or False"),
        ({"texts": {"text": ["a", "b"]}}, "this is a dict of text. Give one of its splits, a list of texts"),
        ({"texts": {"a", "b"}}, "give a list of texts"),
        ({"texts": pd.DataFrame([["a", 1, 2]], columns=["text", "x", "x"])}, "two columns of the table are named 'x'"),
        ({"tokenizer": TEXTS}, r"this is no tokenizer of transformers\. Texts come behind it"),
        ({"model": None}, "model=None: give a model of transformers in memory, a hub id or a folder"),
    ],
)
def test_values_of_another_kind(given: dict[str, Any], message: str, model: Any, tokenizer: Any) -> None:
    with pytest.raises(UsageError, match=message):
        dt.trace(**{"model": model, "tokenizer": tokenizer, "texts": TEXTS, "progress": False, **given})


def test_numbers_of_numpy_and_what_a_table_lacks(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    table = pd.DataFrame({"text": ["a b", None, "c"], "k": pd.array([1, None, 2], dtype="Int64")})
    run = dt.trace(model, tokenizer, table, limit=np.int64(2), out_dir=tmp_path / "run", **QUIET)
    assert run.tokens["text"].tolist() == ["a b", ""]
    assert run.tokens["k"].isna().tolist() == [False, True] and run.tokens["k"][0] == 1


def test_options_of_analyses_of_another_kind(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    run = dt.trace(model, tokenizer, TEXTS, out_dir=tmp_path / "run", **QUIET)
    with pytest.raises(UsageError, match=r"top_k='3': give a whole number"):
        run.lens(top_k="3")
    with pytest.raises(UsageError, match=r"model_path=GPT2LMHeadMo.*: give a path"):
        run.lens(model_path=model)
    assert inspect.signature(run.lens).return_annotation == "LensResult"
    assert repr(run).startswith("Run(")


def test_stopped_between_preparing_and_writing(
    model: Any, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    for name in ("run_plan", "disk_estimate"):
        with monkeypatch.context() as patch, pytest.raises(Interrupted, match=r"Nothing was written|nothing is left"):
            patch.setattr(f"decision_traces.extract.run.{name}", stop)
            dt.trace(model, tokenizer, TEXTS, out_dir=tmp_path / "run", **QUIET)
        assert not list(tmp_path.iterdir())


def test_no_advice_on_widgets_is_printed() -> None:
    advised = "from tqdm import TqdmWarning; from tqdm.notebook import WARN_NOIPYW as advice; warn(advice, TqdmWarning)"
    code = f"import decision_traces.api; from warnings import warn; {advised}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
