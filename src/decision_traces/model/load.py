"""Loading a model with its tokenizer, from the hub, a folder or a GGUF file; every failure is one sentence."""

import importlib.util
import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from decision_traces.errors import ModelError, UsageError, first_line
from decision_traces.format.arrays import ModelTask, TextTask
from decision_traces.hub import hub_reachable
from decision_traces.model.adapter import BASE_ALONE, Adapter, find_adapter, tokenizer_place
from decision_traces.model.checkpoint import (
    Weights,
    auto_class,
    has_own_head,
    refuse_other_heads,
    refuse_other_kinds,
    refuse_unfit,
    task_of,
)
from decision_traces.model.context import context_of, switch_of
from decision_traces.model.faults import LOAD_ERRORS, unloadable
from decision_traces.model.tokenizer import load_tokenizer_of
from decision_traces.paths import portable_path

ModelDtype = Literal["auto", "float32", "bfloat16", "float16"]
Attention = Literal["eager", "sdpa"]
DEMO_MODEL: Final = "demo"
DEFAULT_MODEL: Final = "gpt2"
AS_WE_READ: Final = {"return_dict": True, "output_attentions": False, "output_hidden_states": False}
"""What a config may say of the form of a model's outputs, and must not: they are asked for where they are wanted."""


@dataclass(frozen=True, slots=True)
class ModelSource:
    """Where a model comes from and how it is to be loaded.

    Attributes:
        model: Hub id, or "demo" for the embedded model; with `model_path` only a name. None: see `name`.
        model_path: Folder with config, weights and tokenizer; takes the place of the hub.
        gguf_file: Name of a GGUF file in `model_path` (or in the hub repository).
        revision: Branch, tag or commit on the hub.
        device: "auto", or a torch device such as "cpu", "cuda:0", "mps".
        model_dtype: Type of weights and computation; "auto" is float32 on CPU and the checkpoint's own elsewhere.
        attention: "eager" where attention probabilities are wanted, else "sdpa".
        trust_remote_code: Run Python that the model brings along, from its folder or repository.
    """

    model: str | None = None
    model_path: Path | None = None
    gguf_file: str | None = None
    revision: str | None = None
    device: str = "auto"
    model_dtype: ModelDtype = "auto"
    attention: Attention = "sdpa"
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        """Take a folder that is given as text."""
        if self.model_path is not None:
            object.__setattr__(self, "model_path", portable_path(self.model_path))

    @property
    def name(self) -> str:
        """Name of the model in the run's meta: as given, else the folder's, else gpt2."""
        if self.model is not None:
            return self.model
        return DEFAULT_MODEL if self.model_path is None else self.model_path.resolve().name

    @property
    def location(self) -> str:
        """What `from_pretrained` gets."""
        return self.name if self.model_path is None else str(self.model_path)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model in eval mode on its device, with its tokenizer and what the run's meta says about it.

    Attributes:
        model, tokenizer, config, device: The model.
        revision: Commit on the hub, where it is known.
        attention: Attention implementation in use.
        task: What its head does.
        fresh: Names of the head's parameters that the checkpoint did not have: they are random numbers.
        unused: Names of the checkpoint's weights that the model does not have.
        adapter: What is applied to its weights.
        adapter_digest: Of the adapter's config and weights.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    config: Any
    device: torch.device
    revision: str | None
    attention: str
    task: ModelTask = "causal"
    fresh: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    adapter: Adapter | None = None
    adapter_digest: str | None = None

    @property
    def vocab_size(self) -> int:
        """Number of rows of the unembedding, or of the embedding where the head has none."""
        unembedding = self.model.get_output_embeddings()  # type: ignore[operator]
        weight = getattr(unembedding, "weight", None)
        return self.embedded if weight is None else int(weight.shape[0])

    @property
    def embedded(self) -> int:
        """Number of ids the model has an embedding for."""
        weight = getattr(self.model.get_input_embeddings(), "weight", None)  # type: ignore[operator]
        return int(self.config.get_text_config().vocab_size if weight is None else weight.shape[0])

    @property
    def takes_types(self) -> bool:
        """Whether its forward pass asks which segment a token is of."""
        return "token_type_ids" in inspect.signature(self.model.forward).parameters

    @property
    def context(self) -> int | None:
        """Longest text in tokens the model was built for; None where it states no limit."""
        return context_of(self.model, self.config)

    @property
    def switch(self) -> int | None:
        """Longest text that must not share a batch with longer ones; None where lengths may be mixed freely."""
        return switch_of(self.config)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars and advice off the terminal."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def resolve_device(name: str) -> torch.device:
    """Return the torch device a `--device` word means."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = first_line(error)
        raise UsageError(f"--device {name}: this device is not to be had here ({reason}). Try --device cpu.") from error
    return device


def _no_folder(path: Path) -> str:
    if path.suffix == ".gguf" and path.is_file():
        return f"this is a file; give --model_path {path.parent} --gguf_file {path.name}."
    return "there is no such folder."


def _need_gguf() -> None:
    if importlib.util.find_spec("gguf") is None:
        raise UsageError(
            '--gguf_file needs gguf: python -m pip install "decision-traces[gguf]" '
            '(from a clone: python -m pip install -e ".[gguf]").'
        )


def load_decoder(source: ModelSource) -> LoadedModel:
    """Load a causal language model and its tokenizer; see `load_model`."""
    return load_model(source, "causal")


def choose_task(source: ModelSource) -> TextTask:
    """Return what a model is for: the task whose head its config names and its weights hold.

    Raises:
        ModelError: There is no such model, or its head is not traced.
    """
    with quiet_transformers():
        place = _Place.of(source)
        config = _load_config(place)

        def has_head(task: ModelTask) -> bool:
            model, weights = _load_weights(place, config, task, {"device_map": "meta"})  # names alone, no numbers
            return has_own_head(model, config, weights)

        return task_of(config, source.location, has_head)


def load_model(source: ModelSource, task: ModelTask) -> LoadedModel:
    """Load a model with the head of a task, and its tokenizer.

    Raises:
        ModelError: Unknown model, folder without weights, another kind of model, weights or tokenizer missing.
        UsageError: The device is not there, or support for GGUF or adapters is not installed.
    """
    device = resolve_device(source.device)
    with quiet_transformers():
        place = _Place.of(source)
        config = _load_config(place)
        refuse_other_heads(config, source.location, task)
        refuse_other_kinds(config, source.location, task)
        model, weights = _load_weights(place, config, task, {"dtype": _dtype(source, device)})
        refuse_unfit(model, config, weights, source.location, task)
        digest = None if place.adapter is None else _apply(place.adapter, model, place)
        tokenizer = load_tokenizer_of(place.tokenizer, place.options)
    model = model.to(device).eval()
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        config=model.config,
        device=device,
        revision=getattr(model.config, "_commit_hash", None),
        attention=model.config._attn_implementation,
        task=task,
        fresh=weights.missing,
        unused=weights.unused,
        adapter=place.adapter,
        adapter_digest=digest,
    )


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone.

    Raises:
        ModelError: There is none, or only a slow one.
    """
    with quiet_transformers():
        place = _Place.of(source)
        return load_tokenizer_of(place.tokenizer, place.options)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where everything of a model lies.

    Attributes:
        source: What was asked for.
        options: What every `from_pretrained` gets besides the place.
        adapter: What lies there beside the weights, or in their place.
    """

    source: ModelSource
    options: dict[str, Any]
    adapter: Adapter | None

    @classmethod
    def of(cls, source: ModelSource) -> "_Place":
        options = _load_options(source)
        return cls(source, options, None if source.gguf_file else find_adapter(source.location, options))

    @property
    def weights(self) -> str:
        return self.source.location if self.adapter is None else self.adapter.base

    @property
    def tokenizer(self) -> str:
        return self.source.location if self.adapter is None else tokenizer_place(self.adapter, self.options)

    def unloadable(self, error: Exception) -> ModelError:
        if self.weights != self.source.location:
            return ModelError(
                f"{self.source.location} is an adapter of {self.weights}, which cannot be loaded ({first_line(error)})."
            )
        return unloadable(self.weights, self.source.model_path, error)


def _load_config(place: _Place) -> Any:
    try:
        config = AutoConfig.from_pretrained(place.weights, **place.options)
        for name, value in AS_WE_READ.items():
            setattr(config, name, value)
    except LOAD_ERRORS as error:
        raise place.unloadable(error) from error
    config._attn_implementation = None  # is chosen here, whatever the checkpoint was trained with
    if (pad := getattr(config, "pad_token_id", None)) is not None and pad >= config.get_text_config().vocab_size:
        config.pad_token_id = None  # there is no such row, and none is needed: what fills padding is chosen here
    return config


def _dtype(source: ModelSource, device: torch.device) -> torch.dtype | Literal["auto"]:
    auto: torch.dtype | Literal["auto"] = torch.float32 if device.type == "cpu" else "auto"
    return auto if source.model_dtype == "auto" else getattr(torch, source.model_dtype)


def _load_weights(place: _Place, config: Any, task: ModelTask, how: dict[str, Any]) -> tuple[Any, Weights]:
    """Return the model without its adapter, and what there is to say of its weights."""
    wanted = {**place.options, **how, "config": config, "adapter_kwargs": BASE_ALONE, "output_loading_info": True}
    auto = auto_class(config, task)
    try:
        try:
            model, report = auto.from_pretrained(place.weights, attn_implementation=place.source.attention, **wanted)
        except ValueError as error:
            if "attn_implementation" not in str(error):
                raise
            # A family without SDPA says so here; eager is what it always runs.
            model, report = auto.from_pretrained(place.weights, attn_implementation="eager", **wanted)
    except LOAD_ERRORS as error:
        raise place.unloadable(error) from error
    return model, Weights.of(report)


def _apply(adapter: Adapter, model: Any, place: _Place) -> str:
    try:
        return adapter.applied(model, place.options)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{adapter.location} holds an adapter that cannot be applied ({first_line(error)})."
        ) from error


def _load_options(source: ModelSource) -> dict[str, Any]:
    """Return what every `from_pretrained` gets besides the place; a place that is not there is refused."""
    options: dict[str, Any] = {"trust_remote_code": source.trust_remote_code}
    if source.revision:
        options["revision"] = source.revision
    if source.model_path is None and not hub_reachable():
        options["local_files_only"] = True
    if source.gguf_file:
        _need_gguf()
        options["gguf_file"] = source.gguf_file
    if source.model_path is not None and not source.model_path.is_dir():
        raise ModelError(f"--model_path {source.model_path}: {_no_folder(source.model_path)}")
    if source.model_path is not None and source.gguf_file and not (source.model_path / source.gguf_file).is_file():
        there = ", ".join(sorted(p.name for p in source.model_path.glob("*.gguf"))) or "none"
        raise ModelError(f"--gguf_file {source.gguf_file}: not in {source.model_path}; GGUF files there: {there}.")
    return options
