"""`trace`: a run from Python, of a model by name, by folder, or already in memory."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from typing import Any, Final, Literal, TypedDict, TypeVar, Unpack, get_args

from torch import nn
from transformers import PreTrainedTokenizerBase

from decision_traces.api.options import plain_values, refuse_other_kinds
from decision_traces.api.progress import TqdmBar
from decision_traces.api.run import Run
from decision_traces.api.surroundings import own_surroundings
from decision_traces.data.example import Example
from decision_traces.data.own_texts import own_examples
from decision_traces.data.registry import DatasetName
from decision_traces.errors import UsageError
from decision_traces.extract.answer import AnswerConfig, answer_job
from decision_traces.extract.answer_texts import Answers
from decision_traces.extract.config import ExtractConfig
from decision_traces.extract.job import Job
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, multiple_choice_job
from decision_traces.extract.progress import Progress, Silent
from decision_traces.extract.run import run_job
from decision_traces.extract.texts import TextConfig, text_job
from decision_traces.format.arrays import ModelTask, StorageDtype
from decision_traces.format.stages import Capture
from decision_traces.model.checkpoint import task_of_class
from decision_traces.model.in_memory import loaded_from_memory, plain_model, remember, traced_part
from decision_traces.model.load import LoadedModel, ModelDtype, ModelSource
from decision_traces.tokens import SpecialTokens

ConfigT = TypeVar("ConfigT", bound=ExtractConfig)
Task = Literal["auto", "causal", "masked", "encode", "seq2seq", "answers", "multiple_choice"]
_QUESTIONS: Final[Mapping[Task, tuple[type[Any], Callable[[Any], Job]]]] = {
    "answers": (AnswerConfig, answer_job),
    "multiple_choice": (MultipleChoiceConfig, multiple_choice_job),
}
"""Tasks that are about questions of a data set: their flags, and what makes the job."""
_LOADING: Final = frozenset({"model_path", "gguf_file", "revision", "device", "model_dtype", "trust_remote_code"})
_NOT_HERE: Final = frozenset({"model", "task", "dataset", "command", "plan", "quiet", "text_file"})
"""Fields of the commands that `trace` takes in another form, or that mean nothing in Python."""


class TraceOptions(TypedDict, total=False):
    """The flags of the extraction commands, by their names; see `decision-traces extract --help` for each."""

    model_path: str | PathLike[str]
    gguf_file: str
    revision: str
    trust_remote_code: bool
    device: str
    model_dtype: ModelDtype
    split: str
    data_dir: str | PathLike[str]
    limit: int
    max_seq_len: int | Literal["auto"]
    capture: str | Sequence[Capture]
    layers: str | int | Sequence[int]
    heads: str | int | Sequence[int]
    positions: str | int | Sequence[int]
    batch_size: int
    dtype: StorageDtype
    block_mb: int
    store_unembed: bool
    out_dir: str | PathLike[str]
    overwrite: bool
    resume: bool
    uncertified: bool
    seed: int
    anonymous: bool
    skip_headings: bool
    add_special_tokens: SpecialTokens
    next_topk: int
    all_positions: bool
    mask_prob: float
    targets_file: str | PathLike[str]
    target_column: str
    dec_max_len: int | Literal["auto"]
    answers: Answers


def trace(
    model: str | PathLike[str] | nn.Module,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Any = None,
    *,
    dataset: DatasetName | None = None,
    task: Task = "auto",
    progress: bool | Progress = True,
    **options: Unpack[TraceOptions],
) -> Run:
    """Run a model over texts or a data set, keep what happens inside it, and return the run.

    Args:
        model: A model of transformers in memory; or a hub id, "demo", or a folder with config, weights and tokenizer.
            A model in memory stays as it is: mode, attention implementation, config and hooks. Its hooks belong to
            what is traced: they are called in every pass.
        tokenizer: Of a model in memory; a fast one.
        texts: Your own: a list of texts, rows with a column `text` (dicts, a DataFrame, a data set of `datasets`), or
            the path of a .txt, .jsonl, .csv or .parquet file. Other columns go with the texts.
        dataset: Or the name of a data set.
        task: What the model is asked: "answers" reads a decoder's answer to five-choice questions, "multiple_choice"
            scores choices with an encoder; the others are over texts, and "auto" takes what the model is for.
        progress: Whether to draw a bar; or a `Progress` that is called instead.
        **options: The flags of `decision-traces extract`, by name: capture, layers, out_dir, ...

    Returns:
        The run, open. Its folder is `out_dir`, or one under `traces/`.

    Raises:
        UsageError: An option that there is not, that means nothing here, or that is of another form.
        Interrupted: Stopped (Ctrl-C, the stop button); names what is left, and how to go on.
        TraceError: Another of its children; see `errors`.

    Examples:
        >>> run = trace(model, tokenizer, ["The cat sat on the"], capture=["attn", "resid"])  # doctest: +SKIP
        >>> run = trace("gpt2", dataset="wikitext2", limit=100)  # doctest: +SKIP
    """
    names = _model(model, tokenizer, options)
    data, own_texts = _data(texts, dataset)
    report = _progress(progress)
    if task == "auto" and isinstance(model, nn.Module):
        task = task_of_class(plain_model(model))
    job = _job(task, data, names, options)
    if own_texts is not None:
        job = replace(job, data=replace(job.data, own=own_texts))
    if not isinstance(model, nn.Module) or tokenizer is None:
        with own_surroundings():
            return Run(run_job(job, report))

    def load(source: ModelSource, head: ModelTask) -> LoadedModel:
        return loaded_from_memory(model, tokenizer, head, source.attention)

    with own_surroundings():
        run = Run(run_job(replace(job, load=load), report))
    if (digest := run.about.weights_digest) is not None:
        remember(traced_part(model, run.about.task), tokenizer, digest)
    return run


def _progress(progress: bool | Progress | None) -> Progress:
    if isinstance(progress, Progress):
        return progress
    if not isinstance(progress, bool | None):
        raise UsageError(f"progress={short(progress)}: give True or False, or a Progress to call.")
    return TqdmBar() if progress else Silent()


def _data(texts: Any, dataset: DatasetName | None) -> tuple[dict[str, Any], tuple[Example, ...] | None]:
    """Return the flags that name the data, and the texts that are in memory, if any."""
    if (texts is None) == (dataset is None):
        raise UsageError("trace needs texts or the name of a dataset, and not both.")
    if texts is None:
        return {"dataset": dataset}, None
    if isinstance(texts, PathLike):
        return {"text_file": texts}, None
    return {}, own_examples(texts)


def _model(
    model: str | PathLike[str] | nn.Module, tokenizer: PreTrainedTokenizerBase | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the flags that name the model."""
    if not isinstance(model, str | PathLike | nn.Module):
        raise UsageError(f"model={short(model)}: give a model of transformers in memory, a hub id or a folder.")
    if not isinstance(tokenizer, PreTrainedTokenizerBase | None):
        raise UsageError(
            f"tokenizer={short(tokenizer)}: this is no tokenizer of transformers. Texts come behind it: "
            "trace(model, tokenizer, texts), or trace(name, texts=texts)."
        )
    if not isinstance(model, nn.Module):
        if tokenizer is not None:
            raise UsageError("tokenizer: a model that is loaded by name or folder brings its own. Leave it out.")
        folder = isinstance(model, PathLike) or Path(model).is_dir()
        return {"model_path": model} if folder and "model_path" not in options else {"model": str(model)}
    if tokenizer is None:
        raise UsageError(f"tokenizer: a {type(model).__name__} in memory needs its tokenizer beside it.")
    if conflicting := sorted(_LOADING & options.keys()):
        raise UsageError(f"{', '.join(conflicting)}: means nothing for a model that is in memory.")
    origin = str(getattr(getattr(model, "config", None), "name_or_path", "") or type(model).__name__)
    return {"model": Path(origin).name, "model_path": origin if Path(origin).is_dir() else None}


def _job(task: Task, data: Mapping[str, Any], model: Mapping[str, Any], options: Mapping[str, Any]) -> Job:
    """Return the job that the command of a task would do."""
    if task not in get_args(Task):
        raise UsageError(f"task={task!r}: the choices are {', '.join(get_args(Task))}.")
    if task in _QUESTIONS:
        if "dataset" not in data:
            raise UsageError(f"task={task!r} asks questions of a dataset (csqa or tinyworld), not texts of your own.")
        config, make = _QUESTIONS[task]
        return make(_config(config, options, **data, **model))
    return text_job(_config(TextConfig, options, **data, **model, task=task))


def _config(kind: type[ConfigT], options: Mapping[str, Any], **own: Any) -> ConfigT:
    possible = {field.name for field in fields(kind)} - _NOT_HERE
    if unknown := sorted(options.keys() - possible):
        raise UsageError(
            f"{', '.join(unknown)}: trace has no such option here. There are: {', '.join(sorted(possible))}."
        )
    config = kind(**own, **plain_values(options))
    refuse_other_kinds(config, options)
    return config
