"""Tables of comparisons say the right numbers; pictures are drawn whatever was found."""

import math
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from decision_traces.analysis.attention.patterns import ATTENTION_FIGURES
from decision_traces.analysis.attention.statistics import HeadMeans
from decision_traces.analysis.comparison.calibration import calibrate
from decision_traces.analysis.comparison.groups import GroupComparison, compare_groups
from decision_traces.analysis.probing.correctness import ProbeResult
from decision_traces.viz.comparison_tables import calibration_table, comparison_table, head_table, probe_table
from decision_traces.viz.comparisons import save_forest
from decision_traces.viz.head_maps import save_head_maps
from decision_traces.viz.probes import save_probe
from decision_traces.viz.reliability import save_reliability
from decision_traces.viz.style import label_of, run_title


def rows_of(table: object, width: int = 160) -> list[list[str]]:
    console = Console(width=width, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(table)
    console.file.close()
    lines = [line for line in console.export_text().splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def size_of(picture: Path) -> tuple[int, int]:
    raw = picture.read_bytes()
    assert raw[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", raw[16:24])


def comparison(n_wrong: int = 3) -> GroupComparison:
    values = np.array([1.0, 2.0, 3.0, 4.0, 0.0, 1.0, 2.0])[: 4 + n_wrong]
    figures = {"answer_entropy": values, "my_own": np.full(len(values), math.nan)}
    return compare_groups(figures, np.arange(len(values)) < 4, n_boot=50)


def heads(n_layers: int = 2, n_heads: int = 3) -> HeadMeans:
    values = np.zeros((6, n_layers, n_heads), np.float32)
    values[2, 1, 0], values[5] = 0.75, math.nan
    return HeadMeans(values, np.full(values.shape, 4))


def test_the_comparison_table() -> None:
    first, second = rows_of(comparison_table(comparison(), "A title"))
    assert first[:3] == ["entropy of the answer (nats)", "2.5", "1"]
    assert first[3].startswith("1.5 [") and first[4:6] == ["1.27", "0.83"]
    assert second == ["my own", "–", "–", "–", "–", "–", "–"]
    values = np.arange(12.0).reshape(6, 1, 2)
    placed = compare_groups({"first_mass": values}, np.arange(6) < 3, axes=("layer", "head"), n_boot=5)
    assert [row[:2] for row in rows_of(comparison_table(placed, ""))] == [
        ["first-token mass (sink)", "0/0"],
        ["first-token mass (sink)", "0/1"],
    ]


def test_the_probe_table() -> None:
    one, two = np.array([[0.5, 0.7], [0.9, 0.9]]), np.array([[0.5], [0.25]])
    table = probe_table(ProbeResult(one, one - 0.1, two.repeat(3, 1), two.repeat(3, 1), 5, 6))
    assert rows_of(table)[0] == ["0", "0.600 ± 0.141", "0.500 ± 0.000", "0.500 ± 0.141", "0.500 ± 0.000"]
    assert rows_of(table)[1][1:3] == ["0.900 ± 0.000", "0.250 ± 0.000"]


def test_the_calibration_table_leaves_empty_bins_out() -> None:
    table = calibration_table(calibrate(np.array([0.95, 0.85, 0.96]), np.array([True, False, True])))
    assert [row[:4] for row in rows_of(table)] == [
        ["0.8 to 0.9", "1", "0.850", "0.000"],
        ["0.9 to 1", "2", "0.955", "1.000"],
    ]
    # |0.85 - 0| and 2 · |0.955 - 1| over 3 answers
    assert f"ECE {(0.85 + 0.09) / 3:.3f}" in str(table.caption)


def test_the_head_table_shows_all_heads_or_those_that_lead() -> None:
    rows = rows_of(head_table(heads()))
    assert [row[:2] for row in rows] == [["0", "0"], ["0", "1"], ["0", "2"], ["1", "0"], ["1", "1"], ["1", "2"]]
    assert rows[3][2:] == ["0", "0", "0.75", "0", "0", "–"]
    few = head_table(heads(), most=2)
    assert [row[:2] for row in rows_of(few)] == [["0", "0"], ["1", "0"]] and "2 of 6 heads" in str(few.title)


def test_tables_of_any_run_fit_a_pipe() -> None:
    rng = np.random.default_rng(0)
    figures = {name: rng.normal(size=(40, 2, 2)) * 1e-2 for name in ATTENTION_FIGURES}
    placed = compare_groups(figures, np.arange(40) < 30, axes=("layer", "head"), n_boot=20)
    assert not any("…" in cell for row in rows_of(comparison_table(placed, ""), width=120) for cell in row)


@pytest.mark.parametrize("n_wrong", [3, 1, 0])
def test_a_forest_is_drawn(n_wrong: int, tmp_path: Path) -> None:
    path = save_forest({"Answers": comparison(n_wrong)}, tmp_path / "new" / "a.png", "A title")
    assert size_of(path)[0] > 1000


def test_a_forest_grows_with_what_it_shows(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=(20, 30))
    many = compare_groups({"x": values}, np.arange(20) < 9, axes=("depth",), n_boot=20)
    short = save_forest({"A": comparison(), "B": many.strongest(3)}, tmp_path / "short.png", "")
    tall = save_forest({"A": comparison(), "B": many}, tmp_path / "tall.png", "")
    assert size_of(tall)[1] > 2 * size_of(short)[1]


@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (24, 16)])
def test_head_maps_are_drawn(shape: tuple[int, int], tmp_path: Path) -> None:
    assert size_of(save_head_maps(heads(*shape) if shape[0] > 1 else _blank(), tmp_path / "a.png", "A title"))[0] > 1000


def _blank() -> HeadMeans:
    return HeadMeans(np.full((6, 1, 1), math.nan, np.float32), np.zeros((6, 1, 1), np.int64))


@pytest.mark.parametrize("depths", [1, 4])
def test_a_probe_is_drawn(depths: int, tmp_path: Path) -> None:
    score, control = np.full((depths, 3), 0.9), np.full((depths, 6), 0.5)
    path = save_probe(ProbeResult(score, score, control, control, 5, 6), tmp_path / "a.png", "A title")
    assert size_of(path)[0] > 1000


@pytest.mark.parametrize("n", [1, 50])
def test_a_reliability_diagram_is_drawn(n: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    path = save_reliability(calibrate(rng.random(n), rng.random(n) < 0.5), tmp_path / "a.png", "A title")
    assert size_of(path)[1] > 700


def test_figures_are_called_what_they_are() -> None:
    assert [label_of(f) for f in ("attn_distance", "same_mass", "something_else")] == [
        "distance looked (tokens)",
        "same-token mass",
        "something else",
    ]
    assert all("_" not in label_of(name) for name in ATTENTION_FIGURES)
    meta = {"model": "gpt2", "dataset": "wikitext2", "split": "validation"}
    assert run_title("Heads", meta) == "Heads: gpt2 on wikitext2/validation"


def test_comparisons_draw_no_formulas(written: Callable[[], list[str]], tmp_path: Path) -> None:
    evil = "$\\frac{$ \x1b"
    sections = {evil: compare_groups({evil: np.arange(6.0)}, np.arange(6) < 3, n_boot=5)}
    save_forest(sections, tmp_path / "compare.png", evil)
    save_head_maps(heads(), tmp_path / "heads.png", evil)
    scores = np.full((3, 2), 0.5)
    save_probe(ProbeResult(scores, scores, scores, scores, 3, 3), tmp_path / "probe.png", evil)
    save_reliability(calibrate(np.full(4, 0.5), np.arange(4) < 2), tmp_path / "calibration.png", evil)
    texts = written()
    assert sum(text.startswith("$\\frac{$ \\x1b") for text in texts) >= 6
