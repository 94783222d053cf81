"""A kind of decision that the package does not know: one record, and it is written, checked, listed and served."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fastapi.testclient import TestClient

from decision_traces.analysis.comparison.answers import final_answers
from decision_traces.checks import CheckResult, rule
from decision_traces.cli._app import make_console
from decision_traces.cli._report import report
from decision_traces.data.registry import DataSource
from decision_traces.extract.config import ExtractConfig
from decision_traces.extract.job import Job, Prepared
from decision_traces.extract.progress import Silent
from decision_traces.extract.run import run_job
from decision_traces.extract.tables import to_table, token_columns
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.format.columns import TOKEN_COLUMNS, Column
from decision_traces.page.app import create_app
from decision_traces.page.runs import opened
from decision_traces.store import TraceStore, failures, list_runs, validate_run
from decision_traces.tasks import TASKS
from decision_traces.tasks.figures import column_figure
from decision_traces.tasks.task import ListRow, Prediction, Task, TokenTable, Verdict, Words
from decision_traces.tracing.self_check.evidence import logits_of


def _check(rows: TokenTable) -> Iterator[CheckResult]:
    even = rows.table.column("is_even").to_numpy()
    yield rule(
        "parity", even != (rows.spans.n_tokens % 2 == 0), rows.table.column("example_id").to_pylist(), "n is even"
    )


PARITY = Task(
    objective="parity",
    run_word="parity",
    model="causal",
    prefixes=("dec",),
    columns=(
        *TOKEN_COLUMNS,
        Column("is_even", pa.bool_(), "whether the text has an even number of tokens"),
        Column("guessed_even", pa.bool_(), "what a coin says"),
        Column("guessed_right", pa.bool_(), "whether they are the same"),
    ),
    check=_check,
    headline=lambda figures: [f"Parity: {figures['parity_accuracy']:.0%} of {figures['n_parities']} right"],
    verdict=Verdict("guessed_right", (), lambda table: [np.full(len(table), 0.5)] * 3),
    listed_from=lambda kinds: ("guessed_right",),
    listed=lambda table, kinds: [column_figure(table, "guessed_right", "correct", "right")],
    list_row=ListRow(from_end=False, target="is_even", said="guessed_even"),
    predictions=lambda values, kinds: [Prediction(0, values["guessed_right"], known=True)],
    words=Words(tokens="Tokens to count"),
)


class Coin:
    """Guesses that every text has an even number of tokens; with `lies`, the table says so too."""

    def __init__(self, prepared: Prepared, *, lies: bool) -> None:
        self._prepared, self._lies = prepared, lies

    def forward(self, loaded: Any, batch: Any, first_row: int) -> None:
        logits_of(loaded, batch)

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        examples, encodings = (x[rows.start : rows.stop] for x in (self._prepared.examples, self._prepared.encodings))
        even = [self._lies or e.n_tokens % 2 == 0 for e in encodings]
        own = {"is_even": even, "guessed_even": [True] * len(even), "guessed_right": even}
        columns = token_columns(examples, encodings, self._prepared.loaded.tokenizer)
        return {TOKENS_FILE: to_table(PARITY.columns, columns | own, {})}

    def conventions(self) -> Mapping[str, str]:
        return {"is_even": "counts all tokens"}

    def figures(self, tokens: pa.Table) -> dict[str, Any]:
        return {"n_parities": len(tokens), "parity_accuracy": float(np.mean(tokens["is_even"].to_numpy()))}


@pytest.fixture
def traced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setitem(TASKS, "parity", PARITY)
    texts = tmp_path / "texts.txt"
    texts.write_text("one two three\none two\none\n", encoding="utf-8")

    def trace(**options: Any) -> Path:
        config = ExtractConfig(model="demo", capture=("hidden",), max_seq_len="auto", out_dir=tmp_path / "runs" / "run")
        return run_job(
            Job(
                task=PARITY,
                model=config.model_source(),
                data=DataSource("wikitext2", "validation", None, texts, None),
                config=config,
                decisive=(),
                workflow=lambda prepared: Coin(prepared, **options),
                next_position=None,
            ),
            Silent(),
        )

    return trace


def test_it_is_written_checked_listed_and_served(
    traced: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    run = traced(lies=False)
    even = [n % 2 == 0 for n in TraceStore(run).tokens["n_tokens"]]
    assert len(set(even)) == 2
    meta = json.loads((run / "meta.json").read_text("utf-8"))
    assert (meta["objective"], meta["n_parities"], meta["parity_accuracy"]) == ("parity", 3, sum(even) / 3)
    report(run, make_console())
    assert f"Parity: {sum(even) / 3:.0%} of 3 right" in capsys.readouterr().out

    checked = validate_run(run)
    assert failures(checked) == [] and [c.array for c in checked if c.name == "parity"] == ["tokens.parquet"]
    assert [(r.objective, r.state) for r in list_runs(run.parent)] == [("parity", "complete")]
    assert final_answers(TraceStore(run)).correct.tolist() == even

    client = TestClient(create_app(opened([run])), base_url="http://localhost")
    (key,) = (one["key"] for one in client.get("/api/runs.json").json()["runs"])
    ask = lambda path: client.get(f"/api/{key}/{path}").json()  # noqa: E731
    assert ask("meta.json")["task"] == {
        "name": "parity",
        "choices": None,
        "n_choices": None,
        "fills_gaps": False,
        "list_from_end": False,
        "words": {"tokens": "Tokens to count", "where": "after", "truth": "the text goes on"},
    }
    assert [figure["name"] for figure in ask("meta.json")["figures"]] == ["correct", "n_tokens"]
    assert ask("rows/0.json")["target"] == [str(e) for e in even] and ask("rows/0.json")["said"] == ["True"] * 3
    assert ask("e/0/c0/tokens.json")["decision"] == {"pos": 0, "correct": even[0], "known": True}


def test_its_own_check_finds_what_is_wrong(traced: Callable[..., Path]) -> None:
    assert [check.name for check in failures(validate_run(traced(lies=True)))] == ["parity"]
