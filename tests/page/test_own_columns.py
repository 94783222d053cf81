"""The user's own columns in the page's list: kinds to choose from, numbers to filter by."""

from pathlib import Path

import numpy as np
import pandas as pd
from support.runs import TinyRun, build_run

from decision_traces import TraceStore
from decision_traces.page.columns import list_figures

N = 30


def test_true_false_and_numbers_are_figures_of_the_list(tmp_path: Path) -> None:
    def alter(_: dict, table: pd.DataFrame) -> None:
        table["flag"] = pd.array([None, *(i % 2 == 0 for i in range(1, N))], dtype="boolean")
        table["stars"], table["year"] = 1 + np.arange(N) % 4 * 5, 1900 + np.arange(N)
        table["weight"], table["words"] = np.arange(N) / 7, [f"said {i}" for i in range(N)]

    build_run(tmp_path / "run", TinyRun(lengths=(4,) * N, capture=()), alter)
    found = {f.label: f for f in list_figures(TraceStore(tmp_path / "run"), ("next",))}
    assert found["flag"].categories == ("false", "true")
    assert np.isnan(found["flag"].values[0]) and found["flag"].values[1:4].tolist() == [0, 1, 0]
    assert found["stars"].categories == ("1", "6", "11", "16")  # in the order of numbers
    assert found["stars"].values[:5].tolist() == [0, 1, 2, 3, 0]
    assert found["year"].categories is None and found["year"].values[2] == 1902
    assert found["weight"].categories is None and found["weight"].name == "of_weight"
    assert "words" not in found


def test_columns_have_file_names_of_their_own_on_every_file_system(tmp_path: Path) -> None:
    own = ["Label", "label", "/a", "\u02fa", "\u00e9", "e\u0301", "x" * 3000, "x" * 3001, "", "__proto__", "con.x"]

    def alter(_: dict, table: pd.DataFrame) -> None:
        for at, name in enumerate(own):
            table[name] = np.arange(N) + at + 0.5

    build_run(tmp_path / "run", TinyRun(lengths=(4,) * N, capture=()), alter)
    found = {f.label: f for f in list_figures(TraceStore(tmp_path / "run"), ("next",))}
    assert [found[name].values[0] for name in own] == [at + 0.5 for at in range(len(own))]
    names = [found[name].name for name in own]
    assert len({name.lower() for name in names}) == len(own) and all(name.isascii() for name in names)
    assert max(map(len, names)) < 128 and not any("/" in name for name in names)
