"""Every command that a refusal of `lens` or `attribution` names is typed as it stands, and works."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers as hf

from decision_traces.cli import attention, attribution, compare, lens, view
from decision_traces.extract.texts import TextConfig, extract_texts

COMMANDS = {"lens": lens, "attribution": attribution, "compare": compare, "attention": attention, "view": view}
RUNS: dict[str, tuple[Any, str, dict[str, Any], dict[str, Any]]] = {
    # by name: class, family, what its config gets, what the extraction gets
    "masked": (hf.AutoModelForMaskedLM, "modernbert", {}, {"capture": ("attn", "hidden", "resid")}),
    "encoder": (hf.AutoModel, "modernbert", {}, {"task": "encode", "capture": ("hidden", "resid")}),
    "t5": (hf.AutoModelForSeq2SeqLM, "t5", {}, {"target_column": "target"}),
    "post_norm": (hf.BertLMHeadModel, "bert", {"is_decoder": True}, {}),
}


@pytest.fixture
def run(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    def of(name: str) -> Path:
        auto, family, options, settings = RUNS[name]
        texts = tmp_path / "texts.jsonl"
        texts.write_text('{"text": "abc def", "target": "xyz"}\n{"text": "hello there", "target": "foo bar"}\n')
        folder, out = checkpoint(auto, family, **options), tmp_path / "a run"
        return extract_texts(
            TextConfig(model="tiny", model_path=folder, text_file=texts, out_dir=out, limit=2, **settings)
        )

    return of


def _typed(words: list[str], capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Return the exit code of a command in this process, and what it said on stderr."""
    with pytest.raises(SystemExit) as ended:
        COMMANDS[words[0]].main(words[1:])
    return int(ended.value.code or 0), " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("name", "command", "named"),
    [
        ("masked", "attribution", {"lens", "attention", "view"}),
        ("encoder", "attribution", {"view"}),
        ("t5", "attribution", {"lens", "compare", "view"}),
        ("post_norm", "attribution", {"lens", "compare", "view"}),
    ],
)
def test_what_a_refusal_names_works(
    name: str, command: str, named: set[str], run, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    code, said = _typed([command, str(run(name))], capsys)
    advised = [shlex.split(one) for one in re.findall(r"decision-traces ((?:[^;']|'[^']*')+?)(?=;|\.$)", said)]
    assert code == 1 and {words[0] for words in advised} == named
    bundle = ["--bundle", str(tmp_path / "bundle"), "--limit", "1"]  # or it would serve for ever
    for words in advised:
        assert _typed([*words, *(bundle if words[0] == "view" else [])], capsys)[0] == 0, words
