"""Workflow B: decoder traces on five-choice questions, the answer read off the end of the prompt."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import torch

from decision_traces.capture.forward import logits_at
from decision_traces.columns import RUN_COLUMNS
from decision_traces.data.example import Example
from decision_traces.data.prompts import TEMPLATES, read_prompts
from decision_traces.data.registry import DataSource
from decision_traces.errors import ModelError
from decision_traces.extract.config import ExtractConfig
from decision_traces.extract.job import Job, Material, as_settings, last_token
from decision_traces.extract.progress import Progress, Silent
from decision_traces.extract.run import run_job
from decision_traces.extract.tables import choice_figures, to_table, token_columns
from decision_traces.models.load import LoadedModel
from decision_traces.outcomes.choices import choice_outcomes
from decision_traces.outcomes.distribution import distribution
from decision_traces.schema import TOKENS_FILE
from decision_traces.tokens import Encoding, TokenBatch

Answers = Literal["letter", "text"]


@dataclass(frozen=True, kw_only=True)
class AnswerConfig(ExtractConfig):
    """Trace a decoder over five-choice questions: which answer it gives, and everything inside that led there."""

    dataset: Literal["csqa", "tinyworld"] = "csqa"
    """Which questions."""
    answers: Answers = "letter"
    """What is scored at the end of the prompt: the letter of each choice, or the first token of its text."""


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
        objective="csqa_choice",
        kind="csqa-dec",
        model=config.model_source(),
        data=DataSource(config.dataset, config.split, config.data_dir, None, config.limit),
        options=config.options(),
        settings=as_settings(config),
        decisive=("answers",),
        next_position=last_token,
        workflow=partial(AnswerWorkflow, answers=config.answers, template=TEMPLATES[config.dataset]),
        read=read_prompts,
        cuts=False,
    )


class AnswerWorkflow:
    """Keeps the scores of the answers of every example of the block in work."""

    def __init__(
        self,
        material: Material,
        *,
        answers: Answers,
        template: str,
    ) -> None:
        self._examples, self._encodings, self._loaded = material.examples, material.encodings, material.loaded
        self._pad, self._n_positions, self._whole = material.pad, material.n_positions, material.whole_logits
        self._answers, self._template = answers, template
        self._space, self._ids = answer_ids(material.loaded.tokenizer, material.examples, material.encodings, answers)
        self._rows: dict[int, tuple[torch.Tensor, float]] = {}

    def forward(self, loaded: LoadedModel, batch: TokenBatch, first_row: int) -> None:
        """Run the model, projecting on the vocabulary only at the end of each prompt."""
        last = torch.tensor([n - 1 for n in batch.lengths])
        logits = logits_at(loaded.model, batch, last, loaded.device, whole=self._whole).float()
        shares, _ = distribution(logits)
        for i, row in enumerate(batch.rows):
            ids = torch.tensor(self._ids[first_row + row], device=logits.device)
            self._rows[first_row + row] = (logits[i, ids].cpu(), float(shares[i, ids].sum()))

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        """Return the rows of `tokens.parquet`."""
        examples, encodings = self._examples[rows.start : rows.stop], self._encodings[rows.start : rows.stop]
        columns = token_columns(examples, encodings, self._loaded.tokenizer, self._pad, self._n_positions)
        found = [self._rows.pop(row) for row in rows]
        columns |= {name: [e.fields[name] for e in examples] for name in examples[0].fields}
        columns |= {
            "answer_pos": [e.n_tokens - 1 for e in encodings],
            "choice_token_ids": [self._ids[row] for row in rows],
            "choice_mass": [mass for _, mass in found],
        }
        outcomes = choice_outcomes(torch.stack([logits for logits, _ in found]))
        columns |= outcomes.columns(columns["choice_labels"], columns["correct_idx"])
        return {TOKENS_FILE: to_table(RUN_COLUMNS["csqa_choice"], columns, {})}

    def conventions(self) -> Mapping[str, str]:
        """Return what the outcome columns mean."""
        what = "letter" if self._answers == "letter" else "first token of its text"
        form = "with a space in front" if self._space else "without a space in front"
        example = self._loaded.tokenizer.convert_ids_to_tokens(self._ids[0])
        return {
            "prompt": self._template,
            "answer": f"the score of a choice is the logit of its {what}, {form}, at answer_pos = n_tokens - 1, the "
            f"last position of the prompt (in the first example: {' '.join(example)}); probabilities over the choices",
        }

    def figures(self, tokens: pa.Table) -> dict[str, Any]:
        """Return the accuracy figures of the whole run for its meta."""
        mass = tokens["choice_mass"].to_numpy()
        return {**choice_figures(tokens), "mean_choice_mass": float(mass.mean())}


def answer_ids(
    tokenizer: Any, examples: Sequence[Example], encodings: Sequence[Encoding], answers: Answers
) -> tuple[bool, list[list[int]]]:
    """Return the token that stands for each choice of each prompt, in the tokenizer's own form.

    The prompt is tokenised once more with each answer behind it. What is added there is the answer's form: with a
    space in front where that leaves the prompt's own tokens as they are, else without.

    Returns:
        Whether the answers have a space in front, and the token ids, one list an example.

    Raises:
        ModelError: In neither form is an answer a token of its own behind every prompt.
    """
    reasons = []
    for space in (True, False):
        try:
            return space, _ids_in_form(tokenizer, examples, encodings, answers, " " if space else "")
        except _NoForm as reason:
            reasons.append(str(reason))
    raise ModelError(
        f"The answers cannot be scored with this tokenizer: with a space in front, {reasons[0]}; without, {reasons[1]}."
    )


class _NoForm(Exception):
    """Carries the reason why answers cannot be scored in a form."""


def _ids_in_form(
    tokenizer: Any, examples: Sequence[Example], encodings: Sequence[Encoding], answers: Answers, space: str
) -> list[list[int]]:
    choices = [e.fields["choice_labels" if answers == "letter" else "csqa_choices"] for e in examples]
    texts = [f"{e.text}{space}{c}" for e, cs in zip(examples, choices, strict=True) for c in cs]  # type: ignore[union-attr]
    found = iter(tokenizer(texts, add_special_tokens=True, verbose=False)["input_ids"])
    ids = []
    for example, encoding, answer in zip(examples, encodings, choices, strict=True):
        n, prompt = encoding.n_tokens, encoding.ids.tolist()
        row = []
        for text in answer:  # type: ignore[union-attr]
            whole = next(found)
            if whole[:n] != prompt or len(whole) == n or (answers == "letter" and len(whole) != n + 1):
                raise _NoForm(f"{text!r} is no token of its own behind the prompt of {example.example_id}")
            row.append(int(whole[n]))
        if len(set(row)) < len(row):
            raise _NoForm(f"two choices of {example.example_id} begin with the same token")
        ids.append(row)
    return ids
