"""Workflow B: decoder traces on five-choice questions, the answer read off the end of the prompt."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from decision_traces.data.prompts import TEMPLATES, read_prompts
from decision_traces.data.registry import DataSource
from decision_traces.extract.answer_texts import Answers, answer_tokens, refuse_too_long, text_scores
from decision_traces.extract.config import ExtractConfig
from decision_traces.extract.job import Job, Prepared, last_token
from decision_traces.extract.progress import Progress, Silent
from decision_traces.extract.run import run_job
from decision_traces.extract.tables import choice_figures, to_table, token_columns
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.model.load import LoadedModel
from decision_traces.outcomes.choices import choice_outcomes
from decision_traces.outcomes.distribution import distribution
from decision_traces.tasks import PROMPT_CHOICE
from decision_traces.tokens import TokenBatch
from decision_traces.tracing.forward import logits_at


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(ExtractConfig):
    """Trace a decoder over five-choice questions: which answer it gives, and everything inside that led there."""

    dataset: Literal["csqa", "tinyworld"] = "csqa"
    """Which questions."""
    answers: Answers = "letter"
    """What is scored behind the prompt: the letter of each choice (the logit of its token), or its whole text (the sum
    of the log-probabilities of its tokens; their mean is kept too). Texts take a forward pass more for each choice."""


def extract_answers(config: AnswerConfig, progress: Progress | None = None) -> Path:
    """Run workflow B and return the run's folder.

    Args:
        config: The same options as on the command line.
        progress: Who is told how far it is; nobody by default.

    Raises:
        TraceError: One of its children; see `errors`.
    """
    return run_job(answer_job(config), progress or Silent())


def answer_job(config: AnswerConfig) -> Job:
    """Return workflow B as a job."""
    return Job(
        task=PROMPT_CHOICE,
        model=config.model_source(),
        data=DataSource(config.dataset, config.split, config.data_dir, None, config.limit),
        config=config,
        decisive=("answers",),
        next_position=last_token,
        workflow=partial(AnswerWorkflow, answers=config.answers, template=TEMPLATES[config.dataset]),
        read=read_prompts,
        cuts=False,
    )


class AnswerWorkflow:
    """Keeps the scores of the answers of every example of the block in work."""

    def __init__(self, prepared: Prepared, *, answers: Answers, template: str) -> None:
        self._examples, self._encodings, self._loaded = prepared.examples, prepared.encodings, prepared.loaded
        self._whole = prepared.whole_logits
        self._answers, self._template, self._cut = answers, template, prepared.batches
        self._tokens = answer_tokens(self._loaded.tokenizer, self._examples, self._encodings, answers)
        if answers == "text":
            refuse_too_long(self._tokens, self._examples, self._loaded.context)
        self._rows: dict[int, tuple[torch.Tensor, float]] = {}
        self._scores: dict[int, np.ndarray] = {}

    def forward(self, loaded: LoadedModel, batch: TokenBatch, first_row: int) -> Callable[[], None] | None:
        """Run the model, projecting on the vocabulary only at the end of each prompt."""
        last = torch.tensor([n - 1 for n in batch.lengths])
        logits = logits_at(loaded.model, batch, last, loaded.device, whole=self._whole).float()
        shares, _ = distribution(logits)
        for i, row in enumerate(batch.rows):
            first = self._tokens.first(first_row + row)
            ids, distinct = (torch.tensor(list(x), device=logits.device) for x in (first, dict.fromkeys(first)))
            self._rows[first_row + row] = (logits[i, ids].cpu(), float(shares[i, distinct].sum()))
        rows = [first_row + row for row in batch.rows]
        return None if self._answers == "letter" else partial(self._score_texts, loaded, rows)

    def _score_texts(self, loaded: LoadedModel, rows: Sequence[int]) -> None:
        """Run the model on each prompt with each of its answers behind it; nothing is recorded of that."""
        texts = [text for row in rows for text in self._tokens.whole[row]]
        counts = [len(ids) for row in rows for ids in self._tokens.ids[row]]
        scores = text_scores(loaded, texts, counts, self._cut).reshape(len(rows), -1)
        self._scores |= dict(zip(rows, scores, strict=True))

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        """Return the rows of `tokens.parquet`."""
        examples, encodings = self._examples[rows.start : rows.stop], self._encodings[rows.start : rows.stop]
        columns = token_columns(examples, encodings, self._loaded.tokenizer)
        found = [self._rows.pop(row) for row in rows]
        columns |= {name: [e.fields[name] for e in examples] for name in examples[0].fields}
        columns |= {
            "answer_pos": [e.n_tokens - 1 for e in encodings],
            "choice_token_ids": [self._tokens.first(row) for row in rows],
            "choice_mass": [mass for _, mass in found],
        }
        scores = torch.stack([logits for logits, _ in found])
        if self._answers == "text":
            columns |= self._text_columns(rows, scores)
            scores = torch.tensor(np.stack(columns["choice_logprob_sum"]))
        outcomes = choice_outcomes(scores)
        columns |= outcomes.columns(columns["choice_labels"], columns["correct_idx"])
        return {TOKENS_FILE: to_table(PROMPT_CHOICE.columns, columns, {})}

    def _text_columns(self, rows: range, first: torch.Tensor) -> dict[str, Any]:
        """Return the columns of whole answers; `first` has the logits of their first tokens."""
        ids, sums = [self._tokens.ids[row] for row in rows], [self._scores.pop(row) for row in rows]
        means = [total / [len(own) for own in answers] for total, answers in zip(sums, ids, strict=True)]
        return {
            "choice_text_ids": ids,
            "choice_logprob_sum": [total.astype(np.float32) for total in sums],
            "choice_logprob_mean": [mean.astype(np.float32) for mean in means],
            "choice_token_logits": list(first.numpy()),
        }

    def conventions(self) -> Mapping[str, str]:
        """Return what the outcome columns mean."""
        form = "with a space in front" if self._tokens.space else "without a space in front"
        example = " ".join(self._loaded.tokenizer.convert_ids_to_tokens(self._tokens.first(0)))
        place = "answer_pos = n_tokens - 1, the last position of the prompt"
        letter = (
            f"the score of a choice is the logit of its letter, {form}, at {place} (in the first example: {example}); "
            "probabilities over the choices"
        )
        text = (
            f"the score of a choice is the log-probability of its whole text behind the prompt, {form}, in nats: the "
            "sum over its tokens (choice_logprob_sum, and choice_logits are the same); probabilities over the choices. "
            "The mean over its tokens is kept beside it (choice_logprob_mean) and decides nothing. The traced forward "
            f"pass reads the prompt alone; choice_token_ids are the texts' first tokens (in the first example: "
            f"{example}), choice_token_logits their logits at {place}"
        )
        return {"prompt": self._template, "answer": letter if self._answers == "letter" else text}

    def figures(self, tokens: pa.Table) -> dict[str, Any]:
        """Return the accuracy figures of the whole run for its meta."""
        mass = tokens["choice_mass"].to_numpy()
        return {**choice_figures(tokens), "mean_choice_mass": float(mass.mean())}
