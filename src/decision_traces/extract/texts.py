"""Any texts through any model: decoders, encoders, encoder-decoders."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, assert_never

from decision_traces.errors import UsageError
from decision_traces.extract.encode import encode_job
from decision_traces.extract.job import Job
from decision_traces.extract.masked import masked_job
from decision_traces.extract.next_token import NextTokenConfig, next_token_job
from decision_traces.extract.progress import Progress, Silent
from decision_traces.extract.run import run_job
from decision_traces.extract.sequence_to_sequence import target_job
from decision_traces.format.arrays import TextTask
from decision_traces.model.load import DEMO_MODEL, choose_task


@dataclass(frozen=True, kw_only=True)
class TextConfig(NextTokenConfig):
    """Trace any model over texts: a decoder, an encoder, an encoder-decoder."""

    task: Literal["auto", TextTask] = "auto"
    """What the model is for; auto takes the task whose head the checkpoint has."""
    mask_prob: float | None = None
    """masked: share of the tokens that are replaced by the mask token (seeded); 0 for none. Default: 0.15 in texts
    without a mask of their own, 0 in others."""
    targets_file: Path | None = None
    """seq2seq: what the decoder is to say, a row a text: .txt, or .jsonl, .csv, .parquet with a column target."""
    target_column: str | None = None
    """seq2seq: the column of the data that holds it."""
    dec_max_len: int | Literal["auto"] = "auto"
    """seq2seq: T of the decoder; longer targets are cut. auto fits the longest, up to the decoder's context."""


def extract_texts(config: TextConfig, progress: Progress | None = None) -> Path:
    """Trace a model over texts and return the run's folder.

    Args:
        config: The same options as on the command line.
        progress: Who is told how far it is; nobody by default.

    Raises:
        TraceError: One of its children; see `errors`.
    """
    return run_job(text_job(config), progress or Silent())


def text_job(config: TextConfig) -> Job:
    """Return the job for the kind of model that the flags ask for, or that the checkpoint is."""
    _check(config)
    of_targets = ("targets_file", "target_column", "dec_max_len")
    match _task(config):
        case "causal":
            _refuse(config, "a decoder", (*of_targets, "mask_prob"))
            return next_token_job(config)
        case "seq2seq":
            _refuse(config, "an encoder-decoder", ("mask_prob",))
            return target_job(config)
        case "masked":
            _refuse(config, "an encoder", (*of_targets, "all_positions"))
            return masked_job(config)
        case "encode":
            _refuse(config, "an encoder", (*of_targets, "all_positions"))
            _refuse(config, "an encoder without a masked-language-modelling head", ("mask_prob",))
            return encode_job(config)
        case task:
            assert_never(task)


def _task(config: TextConfig) -> TextTask:
    asked = config.model_source()
    if config.task != "auto":
        return config.task
    return "causal" if asked.model == DEMO_MODEL and asked.model_path is None else choose_task(asked)


def _check(config: TextConfig) -> None:
    if config.mask_prob is not None and not 0 <= config.mask_prob < 1:
        raise UsageError(f"--mask_prob {config.mask_prob}: needs a share from 0 to below 1.")
    if config.dec_max_len != "auto" and config.dec_max_len < 1:
        raise UsageError(f"--dec_max_len {config.dec_max_len}: needs at least 1, or auto.")
    if config.next_topk < 1:
        raise UsageError(f"--next_topk {config.next_topk}: needs at least 1.")


def _refuse(config: TextConfig, what: str, flags: Sequence[str]) -> None:
    """Refuse flags that mean nothing for this kind of model."""
    defaults = {"dec_max_len": "auto", "all_positions": False}
    given = [f"--{name}" for name in flags if getattr(config, name) != defaults.get(name)]
    if given:
        raise UsageError(f"{', '.join(given)}: means nothing for {what}.")
