"""Workflow A: decoder traces with next-token outcomes, over any text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Int32

from decision_traces.data.registry import DatasetName, DataSource
from decision_traces.errors import UsageError
from decision_traces.extract.config import ExtractConfig
from decision_traces.extract.job import Job, Prepared, encode_texts, last_known, last_token
from decision_traces.extract.progress import Progress, Silent
from decision_traces.extract.run import run_job
from decision_traces.extract.tables import field_columns, field_types, target_columns, to_table, token_columns
from decision_traces.format.arrays import NEXT_TOKEN_CONVENTIONS, OUTCOMES_FILE, TOKENS_FILE
from decision_traces.model.load import LoadedModel
from decision_traces.outcomes.next_token import UNKNOWN, NextTokenOutcomes, next_token_outcomes
from decision_traces.tasks import NEXT_TOKEN, SEQUENCE_TO_SEQUENCE
from decision_traces.tasks.token_outcomes import POSITION_COLUMNS
from decision_traces.tokens import Encoding, SpecialTokens, TokenBatch
from decision_traces.tracing.forward import all_logits, logits_at

_NO_IDS: Final = np.array([], np.int32)
_IDENTITY: Final = frozenset({"row", "example_id", "pos"})


@dataclass(frozen=True, kw_only=True)
class NextTokenConfig(ExtractConfig):
    """Trace a decoder over texts: what it predicts next, and everything inside that led there."""

    dataset: DatasetName = "wikitext2"
    """Which data set."""
    text_file: Path | None = None
    """Your own texts, instead of a data set: .txt (one a line), or .jsonl, .csv, .parquet with a text column."""
    skip_headings: bool = False
    """Leave out the headings of WikiText."""
    add_special_tokens: SpecialTokens = "auto"
    """Whether the tokenizer adds its own tokens: yes, no, or auto: yes, but no second start token to a text that begins
    with it."""
    next_topk: int = 10
    """How many of the most probable tokens to keep."""
    all_positions: bool = False
    """Also write token_outcomes.parquet: the outcome at every position."""


def extract_next_token(config: NextTokenConfig, progress: Progress | None = None) -> Path:
    """Run workflow A and return the run's folder.

    Args:
        config: The same options as on the command line.
        progress: Who is told how far it is; nobody by default.

    Raises:
        TraceError: One of its children; see `errors`.
    """
    return run_job(next_token_job(config), progress or Silent())


def next_token_job(config: NextTokenConfig) -> Job:
    """Return workflow A as a job."""
    if config.next_topk < 1:
        raise UsageError(f"--next_topk {config.next_topk}: needs at least 1.")
    return Job(
        task=NEXT_TOKEN,
        model=config.model_source(),
        data=text_source(config),
        config=config,
        decisive=("next_topk", "all_positions", "add_special_tokens"),
        workflow=partial(NextTokenWorkflow, topk=config.next_topk, all_positions=config.all_positions),
        encode=partial(encode_texts, special=config.add_special_tokens),
        n_tables=2 if config.all_positions else 1,
    )


def text_source(config: NextTokenConfig) -> DataSource:
    """Return where the texts come from that the flags name."""
    return DataSource(
        config.dataset, config.split, config.data_dir, config.text_file, config.limit, config.skip_headings
    )


class NextTokenWorkflow:
    """Keeps the next-token outcome of every example of the block in work."""

    def __init__(
        self,
        prepared: Prepared,
        *,
        topk: int,
        all_positions: bool,
    ) -> None:
        self._examples, self._encodings, self._loaded = prepared.examples, prepared.encodings, prepared.loaded
        self._topk, self._all = topk, all_positions
        self._whole, self._with_target = prepared.whole_logits, prepared.with_target
        self._task = SEQUENCE_TO_SEQUENCE if self._with_target else NEXT_TOKEN
        self._field_types = field_types(prepared.examples)
        self._text: dict[int, str] = {}
        self._rows: dict[int, NextTokenOutcomes] = {}
        self._after: dict[int, NextTokenOutcomes] = {}
        self._positions: dict[int, NextTokenOutcomes] = {}

    def forward(self, loaded: LoadedModel, batch: TokenBatch, first_row: int) -> None:
        """Run the model, projecting on the vocabulary only where an outcome is wanted."""
        main = batch.main
        if self._all:
            self._keep_all(all_logits(loaded.model, batch, loaded.device, loaded.task), main, first_row)
            return
        last = torch.tensor(main.lengths) - 1
        ends = torch.stack([(last - 1).clamp(min=0), last], dim=1)
        logits = logits_at(loaded.model, batch, ends, loaded.device, loaded.task, whole=self._whole)
        outcomes = next_token_outcomes(logits[:, 0], main.input_ids[torch.arange(len(last)), last], self._topk)
        after = next_token_outcomes(logits[:, 1], torch.full_like(last, UNKNOWN), self._topk)
        for i, (row, n) in enumerate(zip(main.rows, main.lengths, strict=True)):
            self._after[first_row + row] = after.rows(slice(i, i + 1))
            if n > 1:
                self._rows[first_row + row] = outcomes.rows(slice(i, i + 1))

    def _keep_all(self, logits: torch.Tensor, batch: TokenBatch, first_row: int) -> None:
        for i, (row, n) in enumerate(zip(batch.rows, batch.lengths, strict=True)):
            truth = torch.cat([batch.input_ids[i, 1:n], torch.tensor([UNKNOWN])])
            found = next_token_outcomes(logits[i, :n], truth, self._topk)
            self._after[first_row + row] = found.rows(slice(n - 1, n))
            if n > 1:
                self._positions[first_row + row] = found.rows(slice(0, n - 1))
                self._rows[first_row + row] = found.rows(slice(n - 2, n - 1))

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        """Return the rows of `tokens.parquet`, and of `token_outcomes.parquet` where it was asked for."""
        examples, encodings = self._examples[rows.start : rows.stop], self._encodings[rows.start : rows.stop]
        columns = token_columns(examples, encodings, self._loaded.tokenizer)
        if self._with_target:
            columns |= target_columns(examples, encodings, self._loaded.tokenizer)
        columns |= self._outcome_columns(rows, encodings)
        tables = {TOKENS_FILE: to_table(self._task.columns, columns, field_columns(examples, self._field_types))}
        if self._all:
            tables[OUTCOMES_FILE] = self._position_table(rows)
        return tables

    def _outcome_columns(self, rows: range, encodings: Sequence[Encoding]) -> dict[str, Any]:
        """Return the `next_` and the `after_` columns; rows without a prediction are null."""
        columns: dict[str, Any] = {}
        for prefix, kept in (("next", self._rows), ("after", self._after)):
            found = {row: kept.pop(row) for row in rows if row in kept}
            place = {row: i for i, row in enumerate(found)}
            index = pa.array([place.get(row) for row in rows], pa.int32())
            arrow = self._arrow(list(found.values()))
            columns |= {f"{prefix}_{name}": values.take(index) for name, values in arrow.items()}
        columns["next_pos"] = [last_known(e) for e in encodings]
        columns["after_pos"] = [last_token(e) for e in encodings]
        return columns

    def _arrow(self, outcomes: Sequence[NextTokenOutcomes]) -> dict[str, pa.Array]:
        """Return outcomes as Arrow columns without a prefix, token texts decoded from the ids."""
        types = {c.name: c.type for c in POSITION_COLUMNS}
        parts = [o.columns() for o in outcomes]
        joined = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]} if parts else {}
        columns = {name: pa.array(list(values), types[name]) for name, values in joined.items()}
        for which in ("true", "pred"):
            columns[f"{which}_token"] = pa.array(self._texts(joined.get(f"{which}_id", _NO_IDS)), pa.string())
        topk = [self._texts(ids) for ids in joined.get("topk_ids", _NO_IDS)]
        columns["topk_tokens"] = pa.array(topk, types["topk_tokens"])
        return {name: columns.get(name, pa.array([], types[name])) for name in types if name not in _IDENTITY}

    def _texts(self, ids: Int32[np.ndarray, " n"]) -> list[str]:
        """Return the text of each id, each distinct one decoded once."""
        for token in set(ids.tolist()) - self._text.keys() - {UNKNOWN}:
            self._text[token] = self._loaded.tokenizer.decode([token])
        return [self._text.get(token, "") for token in ids.tolist()]

    def conventions(self) -> Mapping[str, str]:
        """Return what the outcome columns mean."""
        return NEXT_TOKEN_CONVENTIONS

    def figures(self, tokens: pa.Table) -> dict[str, Any]:
        """Return the accuracy figures of the whole run for its meta; nll and entropy in nats."""
        known = {c: tokens[c].drop_null().to_numpy() for c in ("next_correct", "next_true_prob", "next_entropy")}
        if len(known["next_correct"]) == 0:
            return {"n_predictions": 0}
        nll = -np.log(np.maximum(known["next_true_prob"], np.finfo(np.float32).tiny))
        return {
            "n_predictions": len(nll),
            "next_accuracy": float(known["next_correct"].mean()),
            "mean_next_nll": float(nll.mean()),
            "mean_next_entropy": float(known["next_entropy"].mean()),
        }

    def _position_table(self, rows: range) -> pa.Table:
        found = {row: self._positions.pop(row) for row in rows if row in self._positions}
        counts = [len(outcomes.true_id) for outcomes in found.values()]
        numbers = np.repeat(np.fromiter(found, np.int32, len(found)), counts)
        columns: dict[str, Any] = {
            "row": numbers,
            "example_id": [self._examples[row].example_id for row in numbers.tolist()],
            "pos": [pos for n in counts for pos in range(n)],
            **self._arrow(list(found.values())),
        }
        return to_table(POSITION_COLUMNS, columns, {})
