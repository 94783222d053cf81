"""The folder of a checkpoint: held by one process, built beside its name, gone on with, or replaced.

A complete one is proved by a sealed list of its files, one in the making by its plan; its files go by the names that
the trainer and the tokenizer give.
"""

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError

from decision_traces.errors import (
    DamagedRunError,
    DiskSpaceError,
    Interrupted,
    RunError,
    RunExistsError,
    TraceError,
    UsageError,
    first_line,
)
from decision_traces.finetuning.config import FinetuneConfig, settings_of
from decision_traces.folders.disk import free_bytes, is_full
from decision_traces.folders.place import FolderKind, FolderPlace
from decision_traces.folders.plain import open_plain
from decision_traces.folders.removal import files_in, remove
from decision_traces.format.arrays import FINETUNE_FILE
from decision_traces.model.load import LoadedModel
from decision_traces.store import checksum, default_root, read_sealed, refuse_in_run, run_id, write_json, write_sealed

PLAN_FILE: Final = "finetune_plan.json"
FILES_FILE: Final = "finetune_files.json"
_FREE_TO_CHANGE: Final = frozenset(
    {
        "out_dir",
        "resume",
        "overwrite",
        "quiet",
        "device",
        "epochs",
        "early_stopping",
        "trust_remote_code",
    }
)
_MADE_BY: Final = {"made_by": "decision-traces finetune"}
_MOST_BYTES: Final = 1 << 24
_EPOCH: Final = re.compile(r"checkpoint-(\d+)")
_STATE_FILE: Final = "trainer_state.json"
_TORCH_CANNOT_WRITE: Final = ("PytorchStreamWriter", "inline_container", "iostream")
_FULL_BYTES: Final = 1 << 20
"""torch does not say why it cannot write; with less room than this the disk is full."""
_SAVED: Final = re.compile(
    r"(checkpoint-\d+/)?(config\.json|generation_config\.json|model(-\d{5}-of-\d{5})?\.safetensors"
    r"|model\.safetensors\.index\.json|tokenizer\.json|tokenizer_config\.json|special_tokens_map\.json"
    r"|added_tokens\.json|chat_template\.jinja)"
    r"|checkpoint-\d+/(optimizer\.(pt|bin)|scheduler\.pt|scaler\.pt|rng_state(_\d+)?\.pth|training_args\.bin"
    r"|trainer_state\.json)|training_args\.bin"
    r"|finetune_(plan|files|meta)\.json|\.finetune_(plan|files)\.json\.[0-9a-f]{16}\.partial"
)


def is_begun(folder: Path) -> bool:
    """Return whether a folder is that of a training of this package which is not finished."""
    return bool(_plan_in(folder))


def owned_files(folder: Path) -> set[str]:
    """Return the files of a checkpoint that are proved to be ours.

    Raises:
        RunExistsError: Nothing proves that `finetune` made it.
    """
    try:
        listed = _listed(folder)
    except (DamagedRunError, OSError) as error:
        raise RunExistsError(
            f"{folder} is not proved to be a checkpoint of `finetune` ({FILES_FILE}: {error}), so nothing of it is "
            "removed. Move it away, or remove it yourself."
        ) from error
    return {*listed, FILES_FILE} | ({PLAN_FILE} if is_begun(folder) else set())


def is_whole(folder: Path) -> bool:
    """Return whether a folder is a checkpoint of which no file is missing or cut short."""
    try:
        files = _listed(folder)
        return bool(files) and all((folder / name).lstat().st_size == size for name, size in files.items())
    except (DamagedRunError, OSError):
        return False


def unfinished_files(folder: Path) -> set[str]:
    """Return the files of an unfinished training that are proved to be ours.

    Raises:
        RunExistsError: Nothing proves that it is one.
    """
    there, plan = set(files_in(folder)), _plan_in(folder)
    if not plan and not all(name.startswith(f".{PLAN_FILE}.") for name in there):
        raise RunExistsError(
            f"{folder} is where the checkpoint would be built, and nothing proves that decision-traces made what is "
            "there. Move it away, or choose another --out_dir; it was left as it is."
        )
    of_tokenizer = set(plan.get("tokenizer_files") or ())
    return {name for name in there if _SAVED.fullmatch(name) or name.split("/")[-1] in of_tokenizer}


CHECKPOINT: Final = FolderKind(
    "checkpoint", FINETUNE_FILE, PLAN_FILE, (FILES_FILE,), is_begun, is_whole, owned_files, unfinished_files
)


def checkpoint_place(config: FinetuneConfig, folder: Path) -> FolderPlace:
    """Return the place of a checkpoint, to be held while it is trained.

    Raises:
        UsageError: It is, holds or lies in the model that is trained, or it would lie in a run.
    """
    base, folder = config.model_path, folder.resolve()
    if base is not None and (folder.is_relative_to(base.resolve()) or base.resolve().is_relative_to(folder)):
        raise UsageError(
            f"--out_dir {folder}: the model that is trained (--model_path {base}) lies there. Name another folder."
        )
    refuse_in_run(folder, CHECKPOINT.flag)
    return FolderPlace(folder, CHECKPOINT, overwrite=config.overwrite, resume=config.resume)


def default_folder(config: FinetuneConfig, name: str, n: int) -> Path:
    """Return where a checkpoint goes if nobody says: by the name of the model and the number of its questions."""
    now = datetime.now().astimezone()
    return default_root().with_name("checkpoints") / run_id(now, name, config.dataset, "train", n, "mcq")


def begin(config: FinetuneConfig, place: FolderPlace, loaded: LoadedModel) -> str | None:
    """Make the folder and write the plan into it first, or go on; return the last finished epoch to go on from.

    Raises:
        UsageError: It is to go on, and no epoch was finished, or it was begun with other settings.
    """
    plan = {name: value for name, value in _planned(config).items() if name not in _FREE_TO_CHANGE}
    if config.resume:
        begun = _plan_in(place.folder)
        differing = [f"{k} was {begun.get(k)!r}, is {plan[k]!r}" for k in plan if begun and begun.get(k) != plan[k]]
        if differing:
            raise UsageError(f"--resume: {place.folder} was begun with other settings: {'; '.join(differing)}.")
        return _last_epoch(place.folder)
    place.begin()
    names = sorted(loaded.tokenizer.vocab_files_names.values())
    write_json(place.folder / PLAN_FILE, {**_MADE_BY, **plan, "tokenizer_files": names})
    return None


def _planned(config: FinetuneConfig) -> dict[str, Any]:
    """Return the flags as JSON values; where the training is to be anonymous, digests in place of the paths."""
    digests = {n: sha256(os.fsencode(v)).hexdigest() for n, v in asdict(config).items() if isinstance(v, Path)}
    return settings_of(config) | (digests if config.anonymous else {})


def finish(place: FolderPlace, *, anonymous: bool) -> None:
    """Write the sealed list of the files, and give the checkpoint its name.

    Args:
        place: Where it was built.
        anonymous: Whether the folders of the epochs go: the trainer writes into them where they lie.
    """
    if anonymous:
        remove(place.folder, {name for name in unfinished_files(place.folder) if "/" in name})
    ours = unfinished_files(place.folder) - {PLAN_FILE, FILES_FILE}
    files = {name: list(checksum(place.folder / name)) for name in sorted(ours)}
    write_sealed(place.folder / FILES_FILE, {**_MADE_BY, "files": files})
    place.finish()


@contextmanager
def sentences(place: FolderPlace) -> Iterator[None]:
    """Turn Ctrl-C, and what a full or failing disk raises through whichever library, into one sentence.

    Raises:
        Interrupted: The user stopped it.
        DiskSpaceError: No space left.
        RunError: The folder cannot be written.
    """
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(f"Stopped. {_what_is_left(place)}") from None
    except (OSError, RuntimeError, SafetensorError) as error:
        of_torch = isinstance(error, RuntimeError) and any(words in str(error) for words in _TORCH_CANNOT_WRITE)
        full = is_full(error) or (of_torch and free_bytes(place.folder) < _FULL_BYTES)
        if isinstance(error, TraceError) or (isinstance(error, RuntimeError) and not of_torch and not full):
            raise
        if full:
            raise DiskSpaceError(f"The disk of {place.folder} is full. {_what_is_left(place)}") from error
        why = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise RunError(f"{place.folder} cannot be written: {why}. {_what_is_left(place)}") from error


def _what_is_left(place: FolderPlace) -> str:
    """Remove a training without a finished epoch, or say what is in it."""
    if not is_begun(place.folder) and is_whole(place.target):
        return f"It came too late: {place.target} is finished."
    if not _epochs(place.folder):
        place.discard()
        return "No epoch was finished; nothing is left behind."
    return (
        f"Finished epochs are kept in {place.folder}; the same command with --out_dir {place.target} --resume goes on."
    )


def _epochs(folder: Path) -> list[Path]:
    """Return the finished epochs, in order: the trainer writes its state last of all."""
    found = {int(match[1]): path for path in folder.glob("checkpoint-*") if (match := _EPOCH.fullmatch(path.name))}
    return [found[n] for n in sorted(found) if _state_in(found[n])]


def _last_epoch(folder: Path) -> str:
    epochs = _epochs(folder)
    if not epochs:
        raise UsageError(f"--resume: {folder} has no finished epoch. Leave --resume out, or give --overwrite.")
    return str(epochs[-1])


def _state_in(epoch: Path) -> bool:
    try:
        return isinstance(json.loads((epoch / _STATE_FILE).read_bytes()), dict)
    except (OSError, ValueError):
        return False


def _plan_in(folder: Path) -> dict[str, Any]:
    """Return the plan of a training; empty where there is none of this package."""
    try:
        with open_plain(folder, folder / PLAN_FILE) as file:
            plan = json.loads(file.read(_MOST_BYTES))
    except (OSError, DamagedRunError, ValueError, RecursionError):
        return {}
    return plan if isinstance(plan, dict) and plan.items() >= _MADE_BY.items() else {}


def _listed(folder: Path) -> dict[str, int]:
    """Return the files of a checkpoint with their sizes; none where the list alone is left of it.

    Raises:
        DamagedRunError: The list is not as it was written.
        OSError: There is none, or it cannot be read.
    """
    value = read_sealed(folder, folder / FILES_FILE, _MOST_BYTES)
    try:
        if value.get("made_by") != _MADE_BY["made_by"]:
            raise DamagedRunError("it is not of `finetune`")
        return {str(name): int(size) for name, (size, _) in value["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRunError("it lists no files") from error
