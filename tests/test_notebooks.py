"""The notebooks run from end to end: on the embedded model, on runs that hold less, and on an encoder's run."""

import base64
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token

# Read when jupyter is imported; without it jupyter warns that its folders will move.
os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NEXTTOK = ROOT / "notebooks" / "nexttok_trace_analysis.ipynb"
CHOICES = ROOT / "notebooks" / "csqa_choice_analysis.ipynb"
AT_ROOT = ROOT / "nexttok_trace_analysis.ipynb"
FIRST_LINE = "RUN = None  #"

CAPTURES = ("attn", "qkv", "hidden", "resid")


@pytest.fixture
def executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Return a function that runs a notebook in an empty folder and returns the outputs of its cells."""
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    here = tmp_path / "here"
    here.mkdir()

    def execute(path: Path, run: Path | None = None) -> list[Any]:
        notebook = nbformat.read(path, as_version=4)
        (settings,) = (c for c in notebook.cells if c.cell_type == "code" and c.source.startswith(FIRST_LINE))
        if run is not None:
            settings.source = settings.source.replace("RUN = None", f"RUN = {str(run)!r}", 1)
        # A cell that raises ends the test here, with the cell and its traceback.
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": here}}).execute()
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        outputs = [output for cell in cells for output in cell.outputs]
        assert not [o for o in outputs if o.output_type == "error"]
        # tqdm misses its widgets, which nobody needs here; nothing else may be said on the side.
        assert [o.text for o in outputs if o.output_type == "stream" and "IProgress" not in o.text] == []
        assert sorted(p.name for p in here.iterdir()) == ["pictures", *([] if run else ["traces"])]
        return outputs

    return execute


def pictures(outputs: list[Any]) -> int:
    """How many pictures came out; each is a PNG of some substance."""
    found = [base64.b64decode(o.data["image/png"]) for o in outputs if "image/png" in o.get("data", {})]
    assert all(picture.startswith(b"\x89PNG") and len(picture) > 10_000 for picture in found)
    return len(found)


def text(outputs: list[Any]) -> str:
    return "\n".join(o.data.get("text/plain", "") for o in outputs if "data" in o)


@pytest.mark.parametrize(
    ("path", "run", "names", "shown"),
    [
        (
            NEXTTOK,
            "notebook_nexttok",
            ["attention_heads", "attribution", "calibration", "compare", "lens_trajectories"],
            ["demo on tinyworld/validation, 800 examples", "By kind of item", "Heads that push most"],
        ),
        pytest.param(
            CHOICES,
            "notebook_choices",
            ["attention_heads", "attribution", "calibration", "lens_by_choice", "lens_trajectories"],
            ["demo on tinyworld/validation, 286 examples", "among the answers", "Heads that push most"],
            marks=pytest.mark.long,
        ),
    ],
)
def test_on_the_embedded_model(
    path: Path, run: str, names: list[str], shown: list[str], executed: Callable[..., list[Any]], tmp_path: Path
) -> None:
    outputs = executed(path)
    assert pictures(outputs) == 5
    assert [part for part in shown if part not in text(outputs)] == []
    here = tmp_path / "here"
    assert not (here / "traces" / run / "analysis").exists()  # where --overwrite knows every file
    assert sorted(p.name for p in (here / "pictures" / run).iterdir()) == [f"{name}.png" for name in names]


@pytest.mark.long
def test_on_a_run_without_attention(executed: Callable[..., list[Any]], tiny_folder, tmp_path: Path) -> None:
    """What the usage document's workflow A captures; a model that is right nowhere."""
    texts = tmp_path / "lines.txt"
    texts.write_text("".join(f"line number {i} of a few\n" for i in range(12)), encoding="utf-8")
    run = extract_next_token(
        NextTokenConfig(
            model_path=tiny_folder("gpt2"), text_file=texts, capture=("hidden", "resid"), out_dir=tmp_path / "run"
        )
    )
    outputs = executed(NEXTTOK, run)
    assert pictures(outputs) == 3  # lens, attribution, calibration
    assert "wrong (12)" in text(outputs) and "Heads that push most" not in text(outputs)


@pytest.mark.long
def test_on_an_encoders_run(executed: Callable[..., list[Any]], tiny_encoder_folder, tmp_path: Path) -> None:
    run = extract_multiple_choice(
        MultipleChoiceConfig(
            model="tiny",
            model_path=tiny_encoder_folder("bert"),
            dataset="tinyworld",
            limit=24,
            capture=CAPTURES,
            out_dir=tmp_path / "run",
        )
    )
    outputs = executed(CHOICES, run)
    assert pictures(outputs) == 4  # race, heads, right against wrong, calibration
    assert "tiny on tinyworld/validation, 24 examples" in text(outputs)


@pytest.mark.parametrize("path", [NEXTTOK, CHOICES, AT_ROOT])
def test_outputs_are_not_kept(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells and all(cell.outputs == [] and cell.execution_count is None for cell in cells)
    assert cells[0].source.startswith(FIRST_LINE)


def test_the_notebook_at_the_root_is_the_same() -> None:
    """A copy and no link: Windows makes a text file of a link."""
    assert not AT_ROOT.is_symlink()
    assert AT_ROOT.read_bytes() == NEXTTOK.read_bytes()
