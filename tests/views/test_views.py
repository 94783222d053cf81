"""Tables say the right numbers; pictures are drawn whatever the groups hold."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from decision_traces.analysis.depth import decision_depth
from decision_traces.analysis.results import LensTrajectories
from decision_traces.views.tables import decision_table, kind_table
from decision_traces.views.trajectories import save_trajectories


def _lens(correct: list[bool]) -> LensTrajectories:
    n = len(correct)
    top = np.tile(np.array([[1, 2, 2]], np.int32), (n, 1))
    prob = np.tile(np.array([[0.1, 0.5, 0.8]], np.float32), (n, 1))
    entropy = np.tile(np.array([[3.0, 2.0, 1.25]], np.float32), (n, 1))
    names = tuple(f"e{i}" for i in range(n))
    return LensTrajectories(names, np.asarray(correct), top, prob / 2, prob, top, entropy, entropy, 0.0)


def _text(table: object) -> str:
    console = Console(width=160, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    console.print(table)
    console.file.close()
    return console.export_text()


def test_the_table_shows_share_certainty_and_depth() -> None:
    lens = _lens([True, True, True, False])
    rows = [line.split("│") for line in _text(decision_table(lens, decision_depth(lens))).splitlines() if "│" in line]
    cells = {row[1].strip(): [c.strip() for c in row[2:-1]] for row in rows}
    assert cells["right"] == ["3 (75.0%)", "0.800", "0.400", "1.250", "1.00", "1.00"]
    assert cells["wrong"][0] == "1 (25.0%)"
    assert cells["all"][0] == "4 (100.0%)"


def test_kinds_are_counted_apart() -> None:
    lens = _lens([True, False, True])
    kinds = pd.Series({"e0": "fact", "e1": "fact", "e2": "copy"})
    text = _text(kind_table(decision_depth(lens), kinds))
    assert any("fact" in line and "50.0%" in line for line in text.splitlines())
    assert any("copy" in line and "100.0%" in line and "–" in line for line in text.splitlines())


@pytest.mark.parametrize("correct", [[True, False], [True], [False, False]])
def test_a_picture_is_saved(correct: list[bool], tmp_path: Path) -> None:
    lens = _lens(correct)
    path = save_trajectories(lens, decision_depth(lens), tmp_path / "analysis" / "lens.png", "A title")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
