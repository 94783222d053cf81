"""Workflow C: encoder traces on multiple choice, one inner path for each choice of each question."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import pyarrow as pa
import torch

from decision_traces.data.example import Example
from decision_traces.data.prompts import read_questions
from decision_traces.data.registry import DataSource
from decision_traces.extract.config import ExtractConfig
from decision_traces.extract.job import Job, Prepared
from decision_traces.extract.progress import Progress, Silent
from decision_traces.extract.run import run_job
from decision_traces.extract.tables import choice_figures, choice_token_columns, to_table
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.model.load import LoadedModel
from decision_traces.outcomes.choices import choice_outcomes
from decision_traces.tasks import MULTIPLE_CHOICE
from decision_traces.tokens import Encoding, TokenBatch, encode_choices
from decision_traces.tracing.forward import all_logits

DEFAULT_ENCODER: Final = "roberta-base"


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceConfig(ExtractConfig):
    """Trace an encoder over multiple-choice questions: the score of each choice, and everything inside behind it."""

    model: str | None = None
    """Hub id (default roberta-base); with --model_path only the run's name for it."""
    dataset: Literal["csqa", "tinyworld"] = "csqa"
    """Which questions."""


def extract_multiple_choice(config: MultipleChoiceConfig, progress: Progress | None = None) -> Path:
    """Run workflow C and return the run's folder.

    Args:
        config: The same options as on the command line.
        progress: Who is told how far it is; nobody by default.

    Raises:
        TraceError: One of its children; see `errors`.
    """
    return run_job(multiple_choice_job(config), progress or Silent())


def multiple_choice_job(config: MultipleChoiceConfig) -> Job:
    """Return the second half of workflow C as a job."""
    return Job(
        task=MULTIPLE_CHOICE,
        model=config.model_source(default=DEFAULT_ENCODER),
        data=DataSource(config.dataset, config.split, config.data_dir, None, config.limit),
        config=config,
        decisive=(),
        workflow=MultipleChoiceWorkflow,
        next_position=None,
        read=read_questions,
        encode=_encode,
    )


def _encode(loaded: LoadedModel, examples: Sequence[Example], limit: int | None) -> list[Encoding]:
    return encode_choices(loaded.tokenizer, examples, limit)


class MultipleChoiceWorkflow:
    """Keeps the score of every choice of every example of the block in work."""

    def __init__(
        self,
        prepared: Prepared,
    ) -> None:
        self._examples, self._encodings, self._loaded = prepared.examples, prepared.encodings, prepared.loaded
        self._choices = len(prepared.encodings) // len(prepared.examples)
        self._scores: dict[int, torch.Tensor] = {}

    def forward(self, loaded: LoadedModel, batch: TokenBatch, first_row: int) -> None:
        """Run the model; each row of the batch is one choice, and has one score."""
        scores = all_logits(loaded.model, batch, loaded.device, loaded.task)[:, 0].float().cpu()
        for row, score in zip(batch.rows, scores, strict=True):
            self._scores[first_row + row] = score

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        """Return the rows of `tokens.parquet`."""
        items = range(rows.start * self._choices, rows.stop * self._choices)
        examples = self._examples[rows.start : rows.stop]
        columns = choice_token_columns(examples, self._encodings[items.start : items.stop], self._loaded.tokenizer)
        columns |= {name: [e.fields[name] for e in examples] for name in examples[0].fields}
        scores = torch.stack([self._scores.pop(item) for item in items]).view(len(rows), self._choices)
        columns |= choice_outcomes(scores).columns(columns["choice_labels"], columns["label_idx"])
        return {TOKENS_FILE: to_table(MULTIPLE_CHOICE.columns, columns, {})}

    def conventions(self) -> Mapping[str, str]:
        """Return what the outcome columns mean."""
        return {
            "choice": "every choice is read with its question as a pair of texts, by itself; its score is what the "
            "model's multiple-choice head makes of it; probabilities over the choices",
            "offset_mapping": "counts in the text that sequence_ids names: 0 the question, 1 the choice",
        }

    def figures(self, tokens: pa.Table) -> dict[str, Any]:
        """Return the accuracy figures of the whole run for its meta."""
        return choice_figures(tokens)
