"""What the README says exists: its commands, their flags, its snippets."""

import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

import decision_traces as dt
from decision_traces.analysis.registry import ANALYSES
from decision_traces.cli._analysis import AnalysisCommand
from decision_traces.cli.index import IndexCommand
from decision_traces.cli.main import COMMANDS
from decision_traces.cli.view import ViewCommand
from decision_traces.extract.answer import AnswerConfig
from decision_traces.extract.multiple_choice import MultipleChoiceConfig
from decision_traces.extract.next_token import NextTokenConfig
from decision_traces.extract.texts import TextConfig
from decision_traces.finetuning.config import FinetuneConfig

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONFIGS = (
    NextTokenConfig, AnswerConfig, MultipleChoiceConfig, FinetuneConfig, TextConfig, IndexCommand, ViewCommand,
    AnalysisCommand, *(analysis.options for analysis in ANALYSES.values()),
)  # fmt: skip
FLAGS = {f"--{f.name}" for config in CONFIGS for f in fields(config)}


def test_the_two_commands_stand_in_the_readme() -> None:
    assert "\npython -m pip install -c constraints.txt -e . && decision-traces demo\n" in README
    assert '\npython -m pip install -c constraints.txt -e ".[dev]" && python -m pytest\n' in README


def test_every_command_and_flag_of_the_readme_exists() -> None:
    commands = set(re.findall(r"decision-traces ([a-z][a-z-]+)", README))
    assert commands == COMMANDS.keys()
    for module in re.findall(r"python -m ((?:src|dev|benchmarks)\.[\w.]+)", README):
        place = ROOT.joinpath(*module.split("."))
        assert place.with_suffix(".py").is_file() or (place / "__main__.py").is_file(), module
    assert set(re.findall(r"(--[a-z_]+)", README)) <= FLAGS | {"--help"}


def test_every_public_name_stands_on_the_page_of_names() -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\bdt\.(\w+)", page)) == set(dt.__all__) - {"__version__"}
    for method in re.findall(r"\brun\.(\w+)\(", page):
        assert callable(getattr(dt.Run, method))
    assert all(getattr(dt, name) for name in dt.__all__)


def test_every_linked_file_exists() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        text = page.read_text(encoding="utf-8")
        assert "@@" not in text
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
            assert (page.parent / link).exists(), (page.name, link)


def test_every_command_has_a_main() -> None:
    for name in COMMANDS:
        assert "def main(" in (ROOT / "src" / "decision_traces" / "cli" / f"{name.replace('-', '_')}.py").read_text()


def test_the_python_of_the_readme_runs(tiny_folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    from decision_traces.extract.next_token import extract_next_token

    monkeypatch.chdir(tmp_path)
    texts = tmp_path / "lines.txt"
    texts.write_text("one line\nanother line\n")
    out = Path("traces/wt2_val500_gpt2")
    extract_next_token(
        NextTokenConfig(
            model_path=tiny_folder("gpt2", n_layer=6), text_file=texts, out_dir=out, capture=("hidden", "resid")
        )
    )
    scope: dict = {}
    for snippet in re.findall(r"```python\n(.*?)```", README, flags=re.S):
        exec(snippet, scope)
    assert scope["X"].shape == (2, 32) and scope["R"].shape == (8, 32)
    assert "dec_res_post_mlp" in capsys.readouterr().out


def test_constraints_pin_every_dependency_within_the_stated_ranges() -> None:
    from packaging.requirements import Requirement

    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted + project["optional-dependencies"]["gguf"]):
        if requirement.name != "decision-traces":
            assert requirement.specifier.contains(pins[requirement.name]), requirement
