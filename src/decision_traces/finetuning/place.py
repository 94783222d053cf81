"""The folder of a checkpoint: new, gone on with, or replaced."""

import json
import shutil
from datetime import datetime
from pathlib import Path
from typing import Final

from transformers.trainer_utils import get_last_checkpoint

from decision_traces.errors import RunExistsError, UsageError
from decision_traces.finetuning.config import FinetuneConfig, settings_of
from decision_traces.store.place import default_root, run_id

PLAN_FILE: Final = "finetune_plan.json"
_FREE_TO_CHANGE: Final = frozenset(
    {
        "out_dir",
        "resume",
        "overwrite",
        "quiet",
        "anonymous",
        "device",
        "epochs",
        "early_stopping",
        "trust_remote_code",
    }
)


def open_folder(config: FinetuneConfig, name: str, n: int) -> Path:
    """Return the folder, made and empty, or as an earlier training left it where it is to go on.

    Args:
        config: What the user asked for.
        name: Of the model, for the folder's name.
        n: Number of training questions, for the same.

    Raises:
        RunExistsError: There is something already.
    """
    if config.out_dir is not None:
        folder = config.out_dir.absolute()
    else:
        now = datetime.now().astimezone()
        folder = default_root().with_name("checkpoints") / run_id(now, name, config.dataset, "train", n, "mcq")
    there = folder.is_dir() and any(folder.iterdir())
    if there and config.overwrite:
        shutil.rmtree(folder)
    elif there and not config.resume:
        raise RunExistsError(f"{folder} is there already. Go on with it by --resume, or replace it by --overwrite.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep_plan(config: FinetuneConfig, folder: Path) -> None:
    """Write what decides the numbers; a resumed training must agree with it."""
    plan = {name: value for name, value in settings_of(config).items() if name not in _FREE_TO_CHANGE}
    path = folder / PLAN_FILE
    if config.resume and path.is_file():
        begun = json.loads(path.read_text(encoding="utf-8"))
        differing = [f"{k} was {begun.get(k)!r}, is {plan[k]!r}" for k in plan if begun.get(k) != plan[k]]
        if differing:
            raise UsageError(f"--resume: {folder} was begun with other settings: {'; '.join(differing)}.")
    path.write_text(json.dumps(plan, indent=2) + "\n", encoding="utf-8")


def last_checkpoint(config: FinetuneConfig, folder: Path) -> str | None:
    """Return the checkpoint of the last finished epoch, None where the training begins.

    Raises:
        UsageError: It is to go on, and no epoch was finished.
    """
    last = get_last_checkpoint(str(folder)) if config.resume else None
    if config.resume and last is None:
        raise UsageError(f"--resume: {folder} has no finished epoch. Leave --resume out, or give --overwrite.")
    return last
