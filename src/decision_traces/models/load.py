"""Loading a model with its tokenizer, from the hub, a folder or a GGUF file; every failure is one sentence."""

import importlib.util
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES as CHOICE
from transformers.utils import logging as transformers_logging

from decision_traces.errors import ModelError, UsageError, first_line
from decision_traces.hub import hub_reachable
from decision_traces.paths import portable_path
from decision_traces.schema import Task

ModelDtype = Literal["auto", "float32", "bfloat16", "float16"]
DEMO_MODEL: Final = "demo"
DEFAULT_MODEL: Final = "gpt2"
_HEADS: Final[dict[Task, Any]] = {
    "causal": AutoModelForCausalLM,
    "multiple_choice": AutoModelForMultipleChoice,
    "masked": AutoModelForMaskedLM,
    "encode": AutoModel,
    "seq2seq": AutoModelForSeq2SeqLM,
}
_LOAD_ERRORS: Final = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    RuntimeError,
    SafetensorError,
    UnpicklingError,
    StrictDataclassError,
)
"""What broken or missing files make transformers and its readers raise; there is no common parent."""


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
    attention: Literal["eager", "sdpa"] = "sdpa"
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
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    config: Any
    device: torch.device
    revision: str | None
    attention: str
    task: Task = "causal"
    fresh: tuple[str, ...] = ()

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
        text = self.config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None)
        if not limit or limit < 0:  # XLNet says -1
            return None
        # RoBERTa's kind counts positions from behind the padding index of a table that holds it.
        words = self.model.get_input_embeddings()  # type: ignore[operator]
        tables = [m for m in self.model.modules() if isinstance(m, nn.Embedding) and m is not words]
        padding = [t.padding_idx for t in tables if t.num_embeddings == limit and t.padding_idx is not None]
        return int(limit) - max((p + 1 for p in padding), default=0)


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


def _load_error(source: ModelSource, error: Exception) -> ModelError:
    """Turn what transformers says into what was asked, what is there, and what to do."""
    reason = first_line(error)
    path = source.model_path
    if _asks_for_trust(error):
        return _untrusted(source)
    if path is not None and not path.is_dir():
        return ModelError(f"--model_path {path}: {_no_folder(path)}")
    if path is not None:
        there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        return ModelError(f"--model_path {path} holds no model that can be loaded ({reason}). It holds: {there}.")
    return ModelError(
        f"--model {source.name}: not to be had from the Hugging Face hub or its local cache ({reason}). "
        "Check the name and the network, or give a local folder with --model_path."
    )


def _asks_for_trust(error: Exception) -> bool:
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def _untrusted(source: ModelSource) -> ModelError:
    return ModelError(
        f"{source.location} brings Python code of its own, and nothing of it was run. Read it; if you trust who wrote "
        "it, give --trust_remote_code."
    )


def _load_config(source: ModelSource, options: dict[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(source.location, **options)
    except _LOAD_ERRORS as error:
        raise _load_error(source, error) from error


_NEEDS: Final[Mapping[Task, tuple[str, str]]] = {
    "causal": ("a decoder", "a causal language model, such as gpt2"),
    "multiple_choice": ("an encoder with a multiple-choice head", f"one of {', '.join(sorted(CHOICE))}"),
    "masked": ("an encoder with a masked-language-modelling head", "such a model, such as bert-base-uncased"),
    "encode": ("an encoder", "an encoder, such as bert-base-uncased"),
    "seq2seq": ("an encoder-decoder", "an encoder-decoder, such as t5-small"),
}
"""What each task needs: what a model must be, and what to give instead."""


def _refuse_other_kinds(source: ModelSource, config: Any, task: Task) -> None:
    kind, two = config.model_type, bool(getattr(config, "is_encoder_decoder", False))
    if two and task != "seq2seq":
        needs = "decoders" if task == "causal" else "encoders"
        raise ModelError(
            f"{source.location} is an encoder-decoder ({kind}); this command traces {needs}. "
            "`decision-traces extract` traces encoder-decoders."
        )
    fits = {
        "causal": kind in CAUSAL and not (kind in MASKED and not getattr(config, "is_decoder", False)),
        "multiple_choice": kind in CHOICE,
        "masked": kind in MASKED,
        "encode": not getattr(config, "is_decoder", False),
        "seq2seq": two,
    }[task]
    if not fits and not _brings(config, task):
        what, needs = _NEEDS[task]
        built = ", ".join(getattr(config, "architectures", None) or ("unknown",))
        raise ModelError(
            f"{source.location} is not {what}: model type {kind!r}, built as {built}. This command needs {needs}."
        )


def _brings(config: Any, task: Task) -> bool:
    """Return whether the model comes with a class of its own for a task; without trust, loading it says so."""
    return _HEADS[task].__name__ in (getattr(config, "auto_map", None) or {})


def choose_task(source: ModelSource) -> Task:
    """Return what a model is for, from its config: the task whose head the checkpoint has.

    Raises:
        ModelError: There is no such model.
    """
    with quiet_transformers():
        config = _load_config(source, _load_options(source))
    built = " ".join(getattr(config, "architectures", None) or ())
    if getattr(config, "is_encoder_decoder", False):
        return "seq2seq"
    if config.model_type in MASKED and not getattr(config, "is_decoder", False):
        return "masked" if any(word in built for word in ("MaskedLM", "PreTraining", "WithLMHead")) else "encode"
    return "causal" if config.model_type in CAUSAL or _brings(config, "causal") else "encode"


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


def load_model(source: ModelSource, task: Task) -> LoadedModel:
    """Load a model with the head of a task, and its tokenizer.

    Raises:
        ModelError: Unknown model, folder without weights, another kind of model, weights or tokenizer missing.
        UsageError: The device is not there, or GGUF support is not installed.
    """
    device = resolve_device(source.device)
    options = _load_options(source)
    with quiet_transformers():
        config = _load_config(source, options)
        _refuse_other_kinds(source, config, task)
        model, missing = _load_weights(source, options, device, _HEADS[task])
        tokenizer = _load_tokenizer(source, options)
    _refuse_random_weights(source, model, missing, task)
    revision, attention = getattr(model.config, "_commit_hash", None), model.config._attn_implementation
    return LoadedModel(model, tokenizer, model.config, device, revision, attention, task, missing)


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


def _load_weights(
    source: ModelSource, options: dict[str, Any], device: torch.device, auto_class: Any
) -> tuple[Any, tuple[str, ...]]:
    """Return the model in eval mode on its device, and the parameters that the checkpoint does not have."""
    auto = torch.float32 if device.type == "cpu" else "auto"
    dtype = auto if source.model_dtype == "auto" else getattr(torch, source.model_dtype)
    wanted = {"dtype": dtype, "output_loading_info": True, **options}
    try:
        try:
            model, report = auto_class.from_pretrained(source.location, attn_implementation=source.attention, **wanted)
        except ValueError as error:
            if "attn_implementation" not in str(error):
                raise
            # A family without SDPA says so here; eager is what it always runs.
            model, report = auto_class.from_pretrained(source.location, attn_implementation="eager", **wanted)
    except _LOAD_ERRORS as error:
        raise _load_error(source, error) from error
    return model.to(device).eval(), tuple(sorted(report.get("missing_keys", ())))


def _refuse_random_weights(source: ModelSource, model: Any, missing: tuple[str, ...], task: Task) -> None:
    """Refuse a checkpoint that lacks weights; a multiple-choice head alone may be new, which the caller reports.

    So may be a pooler of an encoder, which only reads the hidden states.
    """
    whole = task in {"causal", "masked", "seq2seq"}
    body = [name for name in missing if whole or _in_body(model, name)]
    if body:
        raise ModelError(
            f"{source.location} lacks {len(body)} of the model's weights ({', '.join(body[:3])}, ...). "
            "They would be random numbers, and so would the predictions."
        )


def _in_body(model: Any, parameter: str) -> bool:
    """Return whether a parameter belongs to what makes the hidden states; a pooler only reads them."""
    pooler = ".pooler." in f".{parameter}"
    return not pooler and (parameter.startswith(f"{model.base_model_prefix}.") or model.base_model is model)


def load_tokenizer(source: ModelSource) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer alone.

    Raises:
        ModelError: There is none, or only a slow one.
    """
    options = _load_options(source)
    with quiet_transformers():
        return _load_tokenizer(source, options)


def _load_tokenizer(source: ModelSource, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
    except (*_LOAD_ERRORS, ImportError) as error:
        if _asks_for_trust(error):
            raise _untrusted(source) from error
        reason = first_line(error)
        raise ModelError(f"{source.location} has no tokenizer that can be loaded ({reason}).") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{source.location} has only a slow tokenizer, which gives no character offsets. Save a fast one beside it."
        )
    return tokenizer
