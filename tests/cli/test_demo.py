"""The first minute, smaller: a checked run, two tables, a picture, the next commands."""

from pathlib import Path

import pytest

from decision_traces import TraceStore
from decision_traces.cli import demo


def test_the_demo_shows_everything_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        demo.main(["--limit", "40", "--out_dir", str(tmp_path / "run")])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    for part in ("Validated: all", "Right against wrong", "By kind of item", "Picture:", "Next:"):
        assert part in printed
    assert printed.count("\n  decision-traces ") + printed.count("\n  python -c ") == 4
    assert (tmp_path / "run" / "analysis" / "lens" / "lens_trajectories.png").stat().st_size > 10_000
    assert f"decision-traces view {tmp_path / 'run'}" in printed
    for name in ("lens/lens.zarr", "attribution/contributions.zarr", "lens/words.parquet"):
        assert (tmp_path / "run" / "analysis" / name).exists()
    store = TraceStore(tmp_path / "run")
    assert store.n == 40 and store.meta["model"] == "demo" and len(store.arrays()) == 9
