"""What a run folder's `meta.json` says, typed, or in sentences: why it cannot be read, or is not to be trusted."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from decision_traces.errors import DamagedRunError, RunError
from decision_traces.format.arrays import FORMAT_VERSION, META_FILE
from decision_traces.format.meta import OUR_FORMAT, RunMeta
from decision_traces.printable import printable


def read_about(run: Path, meta: Mapping[str, Any], *, lenient: bool = False) -> RunMeta:
    """Return what a run's meta says.

    Args:
        run: The run folder, for messages.
        meta: The content of its `meta.json`.
        lenient: Take fields that do not fit as not there, for checks that name them (`RunMeta.problems`). Of the runs
            of older tools, which promised no form, they always are.

    Raises:
        RunError: The run is of a format that this package does not know.
        DamagedRunError: The meta says no version that could be, or has fields that do not fit.
    """
    about = RunMeta.read(meta)
    version = about.format_version
    if version is None and "format_version" in meta:
        raise _damaged(run, about.problems)
    if version is not None and version.major != OUR_FORMAT.major:
        raise RunError(
            f"{run} is of format {version}; this version of decision-traces reads formats "
            f"{OUR_FORMAT.major}.x. Read it with the version that wrote it, or extract it again."
        )
    if about.problems and about.ours and not lenient:
        raise _damaged(run, about.problems)
    return about


def newer(about: RunMeta) -> str | None:
    """Return the sentence that a run of a newer minor format is opened with, None for others."""
    if about.format_version is None or about.format_version <= OUR_FORMAT:
        return None
    return (
        f"This run is of format {about.format_version}, newer than {FORMAT_VERSION}: what is new in it is not "
        "looked at. Update decision-traces."
    )


def uncertified(about: RunMeta) -> str:
    """Return the sentence that an uncertified run is opened with: which checks failed."""
    return printable(
        "This run is not certified (--uncertified): its traces may not be what the model computed. "
        f"Failed: {'; '.join(about.failed_checks)}."
    )


def random_head(about: RunMeta) -> str:
    """Return the sentence that a run with a random head is opened with."""
    return printable(
        "The multiple-choice head of this run was not in the checkpoint: it is random numbers "
        f"({', '.join(about.fresh_parameters)}), and its predictions mean nothing. "
        "Fine-tune it first: decision-traces finetune --help"
    )


def doubts(about: RunMeta) -> str | None:
    """Return why the numbers of a run, or its predictions, are not to be trusted; None where they are."""
    said = [uncertified(about)] if about.uncertified else []
    said += [random_head(about)] if about.random_head else []
    return " ".join(said) or None


def _damaged(run: Path, problems: tuple[str, ...]) -> DamagedRunError:
    more = f"; and {len(problems) - 3} fields more" if len(problems) > 3 else ""
    return DamagedRunError(
        f"{run / META_FILE} is damaged: {'; '.join(problems[:3])}{more}. "
        "Restore it from a copy, or extract the run again."
    )
