"""Code that a model brings along is run where the user says so, and nowhere else."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.models import save_tiny_decoder
from support.runs import copy_run, reseal
from transformers import dynamic_module_utils

from decision_traces import TraceStore
from decision_traces.analysis.lens.unembedding import find_tokenizer, load_run_model, load_unembedding
from decision_traces.cli import lens, nexttok
from decision_traces.errors import ModelError, TraceError
from decision_traces.model.load import ModelSource, load_decoder, load_tokenizer
from decision_traces.model.unembed_file import save_unembedding

CODE = """
from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM

Path(__file__).with_name("ran").touch()
Path({ran!r}).touch()


class OwnConfig(LlamaConfig):
    model_type = "own"


class OwnModel(LlamaForCausalLM):
    config_class = OwnConfig
"""


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What the model's code leaves behind when it is run."""
    return tmp_path / "ran"


@pytest.fixture
def own(tmp_path: Path, ran: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with code of its own; whoever asks on the terminal is answered yes."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    folder = save_tiny_decoder(tmp_path / "own", "llama")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "code_of_own.OwnConfig", "AutoModelForCausalLM": "code_of_own.OwnModel"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto_map}))
    (folder / "code_of_own.py").write_text(CODE.format(ran=str(ran)))
    return folder


def _exit_code(main: Callable, *argv: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(argv))
    return int(stopped.value.code or 0)


def test_a_models_own_code_is_not_run_and_nobody_is_asked(own: Path, ran: Path, capsys) -> None:
    with pytest.raises(ModelError, match=r"own brings Python code of its own, .* give --trust_remote_code"):
        load_decoder(ModelSource(model_path=own))
    assert not ran.exists() and capsys.readouterr() == ("", "")


def test_a_tokenizers_own_code_is_not_run(own: Path, ran: Path, tmp_path: Path) -> None:
    folder = save_tiny_decoder(tmp_path / "words", "llama")
    told = json.loads((folder / "tokenizer_config.json").read_text())
    told |= {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": [None, "code_of_own.OwnTokenizer"]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    (folder / "code_of_own.py").write_text(CODE.format(ran=str(ran)))
    with pytest.raises(ModelError, match="words brings Python code of its own"):
        load_tokenizer(ModelSource(model_path=folder))
    assert not ran.exists()


def test_a_runs_own_head_brings_no_code(own: Path, ran: Path, tmp_path: Path, traced, tiny_folder) -> None:
    run = copy_run(traced("llama"), tmp_path / "run")
    store = TraceStore(run)
    save_unembedding(load_run_model(store, tiny_folder("llama")), store.meta["final_norm"], run / "unembed")
    for name in ("config.json", "code_of_own.py"):
        (run / "unembed" / name).write_bytes((own / name).read_bytes())
    reseal(run)
    with pytest.raises(ModelError, match="holds no unembedding that can be loaded"):
        load_unembedding(store)
    assert not ran.exists()


def test_who_trusts_says_so_every_time_and_the_run_tells(own: Path, ran: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "texts.txt").write_text("a line of text\nand another\n")
    out = tmp_path / "run"
    flags = ("--model_path", str(own), "--text_file", str(tmp_path / "texts.txt"), "--out_dir", str(out), "--quiet")
    assert _exit_code(nexttok.main, *flags) == 1 and not ran.exists()
    assert _exit_code(nexttok.main, *flags, "--trust_remote_code") == 0 and ran.exists()
    assert TraceStore(out).meta["settings"]["trust_remote_code"] is True
    assert TraceStore(out).meta["model_class"] == "OwnModel"
    ran.unlink()
    capsys.readouterr()
    assert _exit_code(lens.main, str(out), "--quiet") == 1 and not ran.exists()  # what the run says does not count
    assert "give --trust_remote_code" in capsys.readouterr().err
    assert _exit_code(lens.main, str(out), "--quiet", "--trust_remote_code") == 0


@pytest.fixture
def told_before_loading(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said by the time something was to be loaded; nothing is."""
    told: list[str] = []

    def load(*_: object) -> None:
        told.extend(caplog.messages)
        caplog.clear()
        raise ModelError("nothing is loaded here")

    for name in ("load_model", "load_tokenizer"):
        monkeypatch.setattr(f"decision_traces.analysis.lens.unembedding.{name}", load)
    return told


@pytest.mark.parametrize(
    ("path", "model", "where"),
    [
        ("{tmp}/\x1b]0;x\x07", "mine", r"the folder {tmp}/\x1b]0;x\x07"),
        (None, "../../etc{tmp}", "the Hugging Face hub or its cache: ../../etc{tmp}"),
        (None, "https://x{tmp}", "the Hugging Face hub or its cache: https://x{tmp}"),
    ],
)
def test_what_a_run_names_is_said_once_before_it_is_loaded(
    path: str | None, model: str, where: str, tmp_path: Path, traced, told_before_loading: list[str]
) -> None:
    store = TraceStore(traced("gpt2"))
    path = None if path is None else path.format(tmp=tmp_path)
    store.about = replace(store.about, model_path=path, model=model.format(tmp=tmp_path))
    for _ in range(2):
        with pytest.raises(ModelError, match="nothing is loaded"):
            load_run_model(store)
    assert find_tokenizer(store) is None
    assert told_before_loading == [f"Loading the model that run names, from {where.format(tmp=tmp_path)}"]


def test_what_the_user_names_needs_no_saying(tiny_folder, traced, told_before_loading: list[str]) -> None:
    with pytest.raises(ModelError, match="nothing is loaded"):
        load_run_model(TraceStore(traced("gpt2")), tiny_folder("gpt2"))
    assert told_before_loading == []


def test_a_run_with_its_own_head_and_words_needs_nothing(
    tiny_folder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "texts.txt").write_text("a line of text\nand another\n")
    model = tmp_path / "model"
    save_tiny_decoder(model, "gpt2")
    out = tmp_path / "run"
    flags = ("--model_path", str(model), "--text_file", str(tmp_path / "texts.txt"), "--out_dir", str(out))
    assert _exit_code(nexttok.main, *flags, "--quiet", "--store_unembed") == 0
    known = load_tokenizer(ModelSource(model_path=model))
    expected = [known.decode([i]) for i in range(258)]
    model.rename(tmp_path / "elsewhere")
    assert _exit_code(lens.main, str(out), "--quiet") == 0
    words = find_tokenizer(TraceStore(out))
    assert [words.decode([i]) for i in range(258)] == expected and words.decode([258]) == ""
    assert caplog.messages == []
    (out / "unembed" / "words.json").write_text("[1]")
    with pytest.raises(TraceError, match=r"words\.json is not as written"):
        find_tokenizer(TraceStore(out))
