"""What transformers and its readers raise, as one sentence: what was asked, what is there, and what to do."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from pickle import UnpicklingError
from types import TracebackType
from typing import Final

from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from decision_traces.errors import ModelError, first_line

LOAD_ERRORS: Final = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    RuntimeError,
    AssertionError,
    AttributeError,
    ImportError,
    SafetensorError,
    UnpicklingError,
    StrictDataclassError,
)
"""What broken or missing files, and packages that are not there, make them raise; there is no common parent."""
_SENTENCEPIECE: Final = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
_READERS: Final = ("sentencepiece", "google.protobuf")
"""Packages without which transformers cannot read a file of sentencepiece's."""


class TokenizersFault(Exception):
    """What the tokenizers library raises as an `Exception` without a type of its own."""


class WithNames:
    """Context in which an `Exception` that has no type of its own becomes a `TokenizersFault`."""

    def __enter__(self) -> None:
        """Do nothing."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Give what was raised its name; children of `Exception` have one."""
        if kind is Exception:
            raise TokenizersFault(*(error.args if error else ())) from error


def asks_for_trust(error: Exception) -> bool:
    """Return whether transformers stopped because the model brings code along."""
    return isinstance(error, ValueError) and "trust_remote_code" in str(error)


def untrusted(location: str) -> ModelError:
    """Return the refusal of a model that brings code along."""
    return ModelError(
        f"{location} brings Python code of its own, and nothing of it was run. Read it; if you trust who wrote "
        "it, give --trust_remote_code."
    )


def unloadable(location: str, folder: Path | None, error: Exception) -> ModelError:
    """Return what to say of a model that could not be loaded.

    Args:
        location: Its folder, or its name on the hub.
        folder: Its folder; None for the hub.
        error: What transformers raised.
    """
    if asks_for_trust(error):
        return untrusted(location)
    reason = first_line(error)
    if folder is None:
        return ModelError(
            f"--model {location}: not to be had from the Hugging Face hub or its local cache ({reason}). "
            "Check the name and the network, or give a local folder with --model_path."
        )
    if inner := _models_inside(folder):
        listed = " or ".join(f"--model_path {path}" for path in inner[:3])
        return ModelError(f"--model_path {folder} holds no model itself, but a folder in it does: give {listed}.")
    there = ", ".join(sorted(p.name for p in folder.iterdir())[:8]) or "nothing"
    return ModelError(f"--model_path {folder} holds no model that can be loaded ({reason}). It holds: {there}.")


def _models_inside(folder: Path) -> Sequence[Path]:
    """Return models further inside: a trainer's checkpoints, or snapshots of the hub's cache; the newest first."""
    if (folder / "config.json").is_file():
        return ()
    patterns = ("*", "snapshots/*", "models--*/snapshots/*")
    found = [path.parent for pattern in patterns for path in folder.glob(f"{pattern}/config.json")]
    return sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)


def without_tokenizer(location: str, error: Exception) -> ModelError:
    """Return what to say of a tokenizer that could not be loaded."""
    if asks_for_trust(error):
        return untrusted(location)
    lacking = [name for name in _READERS if not _installed(name)]
    own = next((name for name in _SENTENCEPIECE if (Path(location) / name).is_file()), None)
    if own and lacking:
        packages = " ".join(name.removeprefix("google.") for name in lacking)
        return ModelError(
            f"{location} has its tokenizer as {own} alone, which takes {packages} to read: "
            f"python -m pip install {packages}."
        )
    return ModelError(f"{location} has no tokenizer that can be loaded ({first_line(error)}).")


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False
