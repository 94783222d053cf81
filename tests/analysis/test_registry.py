"""The table of analyses: the same from Python and from the command line, and nothing loaded before it is needed."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from decision_traces import TraceStore
from decision_traces.analysis.options import AttentionOptions, AttributionOptions, CompareOptions, LensOptions
from decision_traces.api.compute import compute
from decision_traces.cli import attention, attribution, compare, lens
from decision_traces.errors import UsageError

LEAVES = {
    "lens": {"depth.parquet", "lens.parquet", "lens.zarr", "lens_trajectories.png", "record.json", "words.parquet"},
    "attribution": {
        "attribution.parquet",
        "attribution.png",
        "contributions.zarr",
        "record.json",
        "words.parquet",
    },
    "attention": {"attention_heads.parquet", "attention_heads.png", "record.json"},
    "compare_by": {"compare_by.parquet", "compare_by.png", "probe_by.parquet", "probe_by.png", "record.json"},
}
BY = CompareOptions(by="kind", n_boot=20, folds=2)


@pytest.mark.parametrize(
    ("main", "flags", "options", "name"),
    [
        (lens.main, ["--top_k", "3"], LensOptions(top_k=3), "lens"),
        (attribution.main, [], AttributionOptions(), "attribution"),
        (attention.main, [], AttentionOptions(), "attention"),
        (compare.main, ["--by", "kind", "--n_boot", "20", "--folds", "2"], BY, "compare_by"),
    ],
)
def test_python_computes_what_the_command_does(demo_run, tmp_path: Path, main, flags, options, name) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([str(demo_run()), "--out", str(tmp_path / "command"), "--quiet", *flags])
    assert not stopped.value.code
    store = TraceStore(demo_run(), results=tmp_path / "python")
    computed = compute(store, name.removesuffix("_by"), options)
    assert {path.name for path in computed.files} == LEAVES[name] and computed.notes == ()
    assert store.analyses()[name].computed
    for table in (tmp_path / "python" / name).glob("*.parquet"):
        assert table.read_bytes() == (tmp_path / "command" / name / table.name).read_bytes()


def test_the_result_is_returned_as_it_is_kept(demo_run, tmp_path: Path) -> None:
    store = TraceStore(demo_run(), results=tmp_path)
    result = compute(store, "lens").result
    kept = pd.read_parquet(tmp_path / "lens" / "lens.parquet").query("stage == 'hidden'")
    pd.testing.assert_frame_equal(kept, result.lenses[0].to_frame())
    with pytest.raises(UsageError, match="--top_k 0: needs at least 1"):
        compute(store, "lens", LensOptions(top_k=0))


def test_options_and_help_need_no_torch() -> None:
    loads = "import decision_traces.cli.lens, decision_traces.cli.attribution, decision_traces.cli.compare, sys"
    said = subprocess.run(
        [sys.executable, "-c", f"{loads}; print([m for m in ('torch', 'transformers', 'scipy') if m in sys.modules])"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert said.stdout == "[]\n"
