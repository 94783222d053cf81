"""`--resume` with another model, other data, flags or version: the difference is named, and nothing is touched."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faults.processes import blocks_of, files_of, partial_of
from faults.runs import assert_same, content_of, texts
from support.models import byte_tokenizer
from transformers import AutoModelForCausalLM

from decision_traces.errors import DataError, Interrupted, ModelError, RunError, RunExistsError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.extract.progress import Silent

N_TEXTS = 40


class StopAfterABlock(Silent):
    """A watcher at whom Ctrl-C is pressed once a block is in the ledger."""

    def __init__(self, run: Path) -> None:
        self._run = run

    def advance(self, n_examples: int, n_tokens: int) -> None:
        if blocks_of(self._run):
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the texts."""
    folder = tmp_path_factory.mktemp("resume")
    (folder / "lines.txt").write_text("".join(f"{text}\n" for text in texts(N_TEXTS)))
    return folder


@pytest.fixture(scope="module")
def asked(place: Path, tiny_folder) -> Callable[..., NextTokenConfig]:
    """The flags of the run that is stopped, and others in their place."""
    usual = {"model_path": tiny_folder("gpt2"), "text_file": place / "lines.txt", "out_dir": place / "run"}
    kept = {"capture": ("hidden", "qkv"), "max_seq_len": 92, "block_mb": 1}
    return lambda **other: NextTokenConfig(**{"model": "tiny", "batch_size": 8, **usual, **kept, **other})


@pytest.fixture(scope="module")
def stopped(asked, place: Path) -> Path:
    """A run that was stopped after some blocks; no test here may change a byte of it."""
    with pytest.raises(Interrupted, match="--resume goes on from there"):
        extract_next_token(asked(), StopAfterABlock(place / "run"))
    assert 0 < len(blocks_of(place / "run")) < 3
    return place / "run"


def refused(stopped: Path, config: NextTokenConfig, error: type[Exception] = RunError) -> str:
    """Return the sentence that resuming is refused with, and see that nothing was touched."""
    before = files_of(stopped.parent)
    with pytest.raises(error) as raised:
        extract_next_token(config)
    assert files_of(stopped.parent) == before
    assert raised.type is error
    return str(raised.value)


WHOLE = "{'layers': None, 'heads': None, 'positions': 'all'}"
OTHER_FLAGS = [
    {
        "capture": (("hidden",), "capture was ['hidden', 'qkv'], is ['hidden']"),
        "dtype": ("float32", "dtype was 'float16', is 'float32'"),
        "max_seq_len": (91, "max_seq_len was 92, is 91"),
    },
    {
        "model_dtype": ("bfloat16", "model_dtype was 'float32', is 'bfloat16'"),
        "all_positions": (True, "all_positions was False, is True"),
        "next_topk": (9, "next_topk was 10, is 9"),
        "batch_size": (7, "batch_size was 8, is 7"),
        "limit": (N_TEXTS - 1, "dataset_fingerprint was '"),
        "model": ("small", "model was 'tiny', is 'small'"),
    },
    {"layers": ("0,2", f"selection was {WHOLE}, is {{'layers': (0, 2), 'heads': None, 'positions': 'all'}}")},
    {"heads": ("1", f"selection was {WHOLE}, is {{'layers': None, 'heads': (1,), 'positions': 'all'}}")},
    {"positions": ("next", f"selection was {WHOLE}, is {{'layers': None, 'heads': None, 'positions': 'next'}}")},
    {"block_mb": (2, "block_rows was ")},
]


@pytest.mark.parametrize("flags", OTHER_FLAGS, ids=" ".join)
def test_every_other_flag_is_named_with_what_it_was_and_is(flags: dict, stopped: Path, asked) -> None:
    said = refused(stopped, asked(resume=True, **{flag: value for flag, (value, _) in flags.items()}))
    assert f"--resume: {partial_of(stopped)} was begun with other settings: " in said
    for words in [words for _, words in flags.values()]:
        assert words in said


def digest_of(run: Path, key: str) -> str:
    """Return what the ledger's plan has for a key."""
    plan = json.loads((partial_of(run) / "ledger.jsonl").read_text().splitlines()[0])["plan"]
    return str(plan[key])


def changed(said: str, key: str, was: str) -> bool:
    """Whether a sentence gives a key's old value, and another one as its new value."""
    before, now = said.split(f"{key} was ")[1].split("; ")[0].removesuffix(".").split(", is ")
    return before == repr(was) and now != before and len(now) == len(before)


def test_one_other_weight_is_another_model(stopped: Path, asked, tiny_folder, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_folder("gpt2"))
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.bias[3] += 2**-10
    model.save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    said = refused(stopped, asked(resume=True, model_path=tmp_path / "model"))
    assert changed(said, "weights_digest", digest_of(stopped, "weights_digest"))


@pytest.mark.parametrize("what", ["a letter", "a row more"])
def test_other_data_is_named(what: str, stopped: Path, asked, tmp_path: Path) -> None:
    lines = list(texts(N_TEXTS))
    if what == "a letter":
        lines[-1] = lines[-1].replace("text", "test", 1)
    else:
        lines.append("one more")
    (tmp_path / "lines.txt").write_text("".join(f"{line}\n" for line in lines))
    said = refused(stopped, asked(resume=True, text_file=tmp_path / "lines.txt"))
    assert changed(said, "dataset_fingerprint", digest_of(stopped, "dataset_fingerprint"))


def test_data_that_is_gone_is_said(stopped: Path, asked, tmp_path: Path) -> None:
    said = refused(stopped, asked(resume=True, text_file=tmp_path / "lines.txt"), DataError)
    assert said == f"--text_file {tmp_path / 'lines.txt'}: there is no such file."


def test_a_model_that_is_gone_is_said(stopped: Path, asked, tmp_path: Path) -> None:
    assert "there is no such folder" in refused(stopped, asked(resume=True, model_path=tmp_path / "gone"), ModelError)


def begun_by_another(stopped: Path, run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Copy an unfinished run with another plan in its ledger."""
    shutil.copytree(partial_of(stopped), partial_of(run))
    ledger = partial_of(run) / "ledger.jsonl"
    first, *others = ledger.read_text().splitlines(keepends=True)
    begun = json.loads(first)
    change(begun["plan"])
    ledger.write_text(json.dumps(begun) + "\n" + "".join(others))


def test_blocks_of_a_format_without_a_name_are_not_mixed_with_todays(stopped: Path, asked, tmp_path: Path) -> None:
    run = tmp_path / "run"
    begun_by_another(stopped, run, lambda plan: plan.pop("format_version"))
    assert "format_version was None, is '1.3'" in refused(run, asked(resume=True, out_dir=run))


def test_another_version_is_named(stopped: Path, asked, tmp_path: Path) -> None:
    run, ledger = tmp_path / "run", (partial_of(stopped) / "ledger.jsonl").read_text()
    now = json.loads(ledger.splitlines()[0])["plan"]["packages"]
    older = {"decision-traces": "0.0.7", "torch": "0.0.8"}
    begun_by_another(stopped, run, lambda plan: plan["packages"].update(older))
    said = refused(run, asked(resume=True, out_dir=run))
    for package, version in (("decision-traces", "0.0.7"), ("torch", "0.0.8")):
        assert f"'{package}': '{version}'" in said.split(", is ")[0]
        assert f"'{package}': '{now[package]}'" in said.split(", is ")[1]


def test_without_resume_it_is_refused_too(stopped: Path, asked) -> None:
    said = refused(stopped, asked(), RunExistsError)
    assert "--resume" in said and "--overwrite" in said and "--out_dir" in said


def test_with_the_same_it_goes_on(stopped: Path, asked, place: Path, tmp_path: Path) -> None:
    shutil.copytree(partial_of(stopped), tmp_path / ".run.partial")
    group = tmp_path / ".run.partial" / "dec_hidden.zarr"  # what lies in an unfinished folder may be damaged meanwhile
    (group / "zarr.json").unlink()
    (group / "h" / "zarr.json").write_text((group / "h" / "zarr.json").read_text().replace("float16", "float32"))
    said = tmp_path / ".run.partial" / "dec_self_qkv.zarr" / "q" / "zarr.json"
    said.write_bytes(said.read_bytes()[:-9])
    resumed = extract_next_token(asked(out_dir=tmp_path / "run", resume=True))
    assert_same(content_of(resumed), content_of(extract_next_token(asked(out_dir=tmp_path / "whole"))))
