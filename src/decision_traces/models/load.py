"""Loading a decoder with its tokenizer, from the hub, a folder or a GGUF file; every failure is one sentence."""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as MASKED
from transformers.utils import logging as transformers_logging

from decision_traces.errors import ModelError, UsageError, first_line
from decision_traces.hub import hub_reachable

ModelDtype = Literal["auto", "float32", "bfloat16", "float16"]
DEMO_MODEL: Final = "demo"
DEFAULT_MODEL: Final = "gpt2"
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
    """

    model: str | None = None
    model_path: Path | None = None
    gguf_file: str | None = None
    revision: str | None = None
    device: str = "auto"
    model_dtype: ModelDtype = "auto"
    attention: Literal["eager", "sdpa"] = "sdpa"

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
    """A model in eval mode on its device, with its tokenizer and what the run's meta says about it."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    config: Any
    device: torch.device
    revision: str | None
    attention: str

    @property
    def vocab_size(self) -> int:
        """Number of rows of the unembedding."""
        return int(self.model.get_output_embeddings().weight.shape[0])  # type: ignore[operator]

    @property
    def context(self) -> int | None:
        """Longest text in tokens the model was built for; None where it states no limit."""
        text = self.config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None)
        return int(limit) if limit else None

    def weights_digest(self) -> str:
        """Return the SHA-256 over names, types and bytes of all weights."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.model.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            data = tensor.detach().contiguous().cpu().flatten().view(torch.uint8)
            digest.update(memoryview(data.numpy()))
        return digest.hexdigest()


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep transformers' own progress bars and advice off the terminal while loading."""
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
    if path is not None and not path.is_dir():
        return ModelError(f"--model_path {path}: {_no_folder(path)}")
    if path is not None:
        there = ", ".join(sorted(p.name for p in path.iterdir())[:8]) or "nothing"
        return ModelError(f"--model_path {path} holds no model that can be loaded ({reason}). It holds: {there}.")
    return ModelError(
        f"--model {source.name}: not to be had from the Hugging Face hub or its local cache ({reason}). "
        "Check the name and the network, or give a local folder with --model_path."
    )


def _load_config(source: ModelSource, options: dict[str, Any]) -> Any:
    try:
        return AutoConfig.from_pretrained(source.location, **options)
    except _LOAD_ERRORS as error:
        raise _load_error(source, error) from error


def _refuse_non_decoders(source: ModelSource, config: Any) -> None:
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{source.location} is an encoder-decoder ({kind}); this command traces decoders.")
    encoder = kind in MASKED and not getattr(config, "is_decoder", False)
    if kind not in CAUSAL or encoder:
        built = ", ".join(getattr(config, "architectures", None) or ("unknown",))
        raise ModelError(
            f"{source.location} is not a decoder: model type {kind!r}, built as {built}. "
            "This command needs a causal language model, such as gpt2."
        )


def _no_folder(path: Path) -> str:
    if path.suffix == ".gguf" and path.is_file():
        return f"this is a file; give --model_path {path.parent} --gguf_file {path.name}."
    return "there is no such folder."


def _need_gguf() -> None:
    missing = [m for m in ("gguf", "accelerate") if importlib.util.find_spec(m) is None]
    if missing:
        raise UsageError(
            f'--gguf_file needs {" and ".join(missing)}: python -m pip install "decision-traces[gguf]" '
            '(from a clone: python -m pip install -e ".[gguf]").'
        )


def load_decoder(source: ModelSource) -> LoadedModel:
    """Load a causal language model and its tokenizer.

    Raises:
        ModelError: Unknown model, folder without weights, no decoder, weights or tokenizer missing.
        UsageError: The device is not there, or GGUF support is not installed.
    """
    device = resolve_device(source.device)
    options: dict[str, Any] = {"revision": source.revision} if source.revision else {}
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
    with _quiet_transformers():
        config = _load_config(source, options)
        _refuse_non_decoders(source, config)
        model = _load_weights(source, options, device)
        tokenizer = _load_tokenizer(source, options)
    revision = getattr(model.config, "_commit_hash", None)
    return LoadedModel(model, tokenizer, model.config, device, revision, model.config._attn_implementation)


def _load_weights(source: ModelSource, options: dict[str, Any], device: torch.device) -> Any:
    auto = torch.float32 if device.type == "cpu" else "auto"
    dtype = auto if source.model_dtype == "auto" else getattr(torch, source.model_dtype)
    wanted = {"dtype": dtype, "output_loading_info": True, **options}
    try:
        try:
            model, report = AutoModelForCausalLM.from_pretrained(
                source.location, attn_implementation=source.attention, **wanted
            )
        except ValueError as error:
            if "attn_implementation" not in str(error):
                raise
            # A family without SDPA says so here; eager is what it always runs.
            model, report = AutoModelForCausalLM.from_pretrained(source.location, attn_implementation="eager", **wanted)
    except _LOAD_ERRORS as error:
        raise _load_error(source, error) from error
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise ModelError(
            f"{source.location} lacks {len(missing)} of the model's weights ({', '.join(missing[:3])}, ...). "
            "They would be random numbers, and so would the predictions."
        )
    return model.to(device).eval()


def _load_tokenizer(source: ModelSource, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **options)
    except (*_LOAD_ERRORS, ImportError) as error:
        reason = first_line(error)
        raise ModelError(f"{source.location} has no tokenizer that can be loaded ({reason}).") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{source.location} has only a slow tokenizer, which gives no character offsets. Save a fast one beside it."
        )
    return tokenizer
