"""Random models, texts and flags: a certified run, or one clear sentence, and never anything in between.

To run one case again: `python -m pytest -n 0 "tests/faults/test_fuzz.py::test_a_run_or_a_sentence[SEED]"`; what it is,
`case(SEED)` of `cases.py` says.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from faults.cases import IN_CI, Case, case
from support.encoder_decoders import save_tiny_encoder_decoder
from support.encoders import save_tiny_masked_encoder
from support.models import save_tiny_decoder

from decision_traces import TraceStore
from decision_traces.cli import extract
from decision_traces.store.validate.run import failures, validate_run

ALL = 2000
SAVE = {"decoder": save_tiny_decoder, "encoder": save_tiny_masked_encoder, "encoder-decoder": save_tiny_encoder_decoder}
USAGE = 2
"""What a command that cannot read its flags exits with; tyro draws a box around why."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Case], Path]:
    """Give the folder of a case's model, made once."""
    made: dict[tuple[object, ...], Path] = {}

    def folder(of: Case) -> Path:
        key = (of.family, of.overrides)
        if key not in made:
            made[key] = SAVE[of.kind](tmp_path_factory.mktemp("model") / of.family, of.family, **dict(of.overrides))
        return made[key]

    return folder


@pytest.mark.parametrize(
    "seed", [pytest.param(seed, marks=[] if seed < IN_CI else pytest.mark.long) for seed in range(ALL)]
)
def test_a_run_or_a_sentence(
    seed: int, model: Callable[[Case], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tried, run = case(seed), tmp_path / "runs" / "run"
    argv = ["--model_path", str(model(tried)), "--text_file", str(tried.write(tmp_path)), "--out_dir", str(run)]
    with pytest.raises(SystemExit) as ended:
        extract.main([*argv, "--quiet", *tried.flags])
    said = capsys.readouterr()
    if ended.value.code == 0 and "--plan" in tried.flags:
        assert not run.parent.exists() and "at most" in said.out
    elif ended.value.code == 0:
        _is_certified(run)
    else:
        _is_said(said.err, ended.value.code)
        assert not run.parent.exists() or list(run.parent.iterdir()) == []


def _is_certified(run: Path) -> None:
    store = TraceStore(run)
    table = pq.read_table(run / "tokens.parquet")
    read = sum(sum(table[name].to_pylist()) for name in ("n_tokens", "enc_n_tokens") if name in table.column_names)
    assert store.meta["certificate"]["passed"] is (True if read else None)  # without a token there is nothing to prove
    assert failures(validate_run(run)) == []
    assert table.num_rows == store.n
    for name in store.arrays():
        assert store.to_xarray(name).shape[0] == store.n


def _is_said(said: str, code: object) -> None:
    """One `error:` that ends like a sentence, or tyro's box about a flag; nothing of Python's."""
    assert "Traceback" not in said
    if code == USAGE:
        assert re.search(r"(Parsing error|Unrecognized|invalid choice|Required)", said) and "--" in said, said
        return
    assert code == 1
    errors = re.findall(r"^error: (.*)", said, re.MULTILINE)
    assert len(errors) == 1 and errors[0].strip(), said
    assert said.rstrip()[-1] in ".)!?", said
