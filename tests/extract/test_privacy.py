"""What a run tells of who made it: paths as they were given, the command as typed, and nothing of either if asked."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from decision_traces.analysis.lens.unembedding import load_run_model
from decision_traces.cli import lens
from decision_traces.errors import ModelError
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.extract.progress import Silent
from decision_traces.finetuning.config import FinetuneConfig, told_settings
from decision_traces.page.bundle import write_bundle
from decision_traces.store.reading.trace_store import TraceStore
from decision_traces.store.validate.run import failures, validate_run

COMMAND = ("decision-traces", "nexttok", "--model_path", "given/model")


@pytest.fixture
def here(tiny_folder, tmp_path: Path, monkeypatch) -> Path:
    """A folder of somebody's with a model in it, as the current one."""
    shutil.copytree(tiny_folder("gpt2"), tmp_path / "given" / "model")
    (tmp_path / "given" / "texts.txt").write_text("the cat sat on the mat\nthe dog ran\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def config() -> NextTokenConfig:
    given = Path("given")
    return NextTokenConfig(
        model_path=given / "model",
        text_file=given / "texts.txt",
        capture=("hidden",),
        positions="last",
        out_dir=given / "run",
        command=COMMAND,
    )


def test_paths_are_as_given_and_a_fact_is_told_once(here, config):
    run = extract_next_token(config)
    text = (run / "meta.json").read_text(encoding="utf-8")
    meta = json.loads(text)
    assert meta["model_path"] == "given/model" and str(here) not in text
    assert meta["settings"]["text_file"] == "given/texts.txt" and meta["command"] == list(COMMAND)
    assert meta["environment"]["system"] == os.uname().sysname and os.uname().release not in text
    assert meta["sides"]["dec"]["positions"] == "last"
    assert "selection" not in meta and not {"positions", "layers", "heads", "capture"} & meta["settings"].keys()


def test_an_anonymous_run_tells_nothing_of_its_place_and_is_a_run_like_any_other(here, config):
    run = extract_next_token(replace(config, anonymous=True))
    text = (run / "meta.json").read_text(encoding="utf-8")
    meta = json.loads(text)
    assert "given" not in text and os.uname().sysname not in text
    assert (meta["model_path"], meta["command"], meta["model"]) == (None, [], "model")
    assert meta["time"].endswith("+00:00")
    assert not failures(validate_run(run))


def test_results_and_a_bundle_of_an_anonymous_run_say_of_no_byte_where_they_lie(here, config):
    settings = here / "given" / "model" / "config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "_name_or_path": str(here / "given")}))
    away = {"model_path": here / "given" / "model", "text_file": here / "given" / "texts.txt", "out_dir": here / "run"}
    run = extract_next_token(replace(config, **away, anonymous=True, store_unembed=True, positions="all"))
    with pytest.raises(SystemExit) as ended:
        lens.main([str(run), "--model_path", str(away["model_path"]), "--quiet"])
    assert ended.value.code == 0
    write_bundle([run], here / "site", limit=1)
    for folder in (run, here / "site"):
        written = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert len(written) > 10 and [name for name, content in written.items() if str(here).encode() in content] == []


def test_a_model_is_found_as_given_or_from_the_run_and_else_its_absence_is_said(here, config, monkeypatch):
    run = extract_next_token(config).resolve()
    assert load_run_model(TraceStore(run)).config.model_type == "gpt2"
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    with pytest.raises(ModelError, match="given/model"):
        load_run_model(TraceStore(run))
    shutil.copytree(here / "given" / "model", run / "given" / "model")
    assert load_run_model(TraceStore(run)).config.model_type == "gpt2"


class Told(Silent):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, message: str) -> None:
        self.lines.append(message)


def test_lineage_is_taken_over_only_where_it_is_about_these_weights(here, config):
    digest = TraceStore(extract_next_token(config)).about.weights_digest
    beside = here / "given" / "model" / "finetune_meta.json"
    beside.write_text(json.dumps({"base_model": "bert", "weights_digest": digest}))
    assert TraceStore(extract_next_token(replace(config, overwrite=True))).meta["lineage"]["base_model"] == "bert"
    weights = load_file(here / "given" / "model" / "model.safetensors")
    name = sorted(weights)[0]
    weights[name] = weights[name] + 1
    save_file(weights, here / "given" / "model" / "model.safetensors", {"format": "pt"})
    told = Told()
    assert TraceStore(extract_next_token(replace(config, overwrite=True), told)).meta["lineage"] is None
    assert any("finetune_meta.json is about other weights" in line for line in told.lines)


def test_a_training_names_the_folder_it_began_with(here):
    trained = FinetuneConfig(model_path=Path("given/model"))
    assert (FinetuneConfig().model_source().name, trained.model_source().name) == ("roberta-base", "model")
    assert told_settings(trained)["model_path"] == "given/model"
    assert "model_path" not in told_settings(replace(trained, anonymous=True))
