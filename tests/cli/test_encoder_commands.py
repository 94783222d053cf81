"""`lens`, `attribution`, `attention` and `compare` on a multiple-choice encoder's run."""

from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.store.validate.run import failures, validate_run


@pytest.fixture(scope="module")
def run(tiny_encoder_folder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = MultipleChoiceConfig(
        model="tiny",
        model_path=tiny_encoder_folder("bert"),
        dataset="tinyworld",
        limit=30,
        capture=("attn", "hidden"),
        out_dir=tmp_path_factory.mktemp("mc") / "run",
    )
    return extract_multiple_choice(config)


@pytest.mark.parametrize(
    ("command", "flags", "files"),
    [
        ("lens", [], {"choice_race.parquet": 30 * 4 * 5, "depth.parquet": 30}),
        ("attribution", [], {"attribution.parquet": None}),
        ("attention", [], {"attention_heads.parquet": 3 * 4}),
        ("compare", ["--n_boot", "50", "--folds", "2"], {"compare.parquet": None, "calibration.parquet": None}),
    ],
)
def test_each_command_leaves_its_tables(
    run: Path, command: str, flags: list[str], files: dict, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as end:
        import_module(f"decision_traces.cli.{command}").main([str(run), *flags])
    assert end.value.code in {0, None}
    assert str(run / "analysis" / command) in capsys.readouterr().out.replace("\n", "")
    for name, rows in files.items():
        frame = pd.read_parquet(run / "analysis" / command / name)
        assert len(frame) == (rows or len(frame)) and len(frame)
    assert list((run / "analysis" / command).glob("*.png"))
    assert not failures(validate_run(run))
