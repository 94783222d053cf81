"""Every error a user can meet. Each message names what was asked for, what is there, and what to do.

The commands print these without a traceback and exit with 1. Standard parents are kept so that ordinary
`except KeyError` or `except ValueError` in a notebook still works.
"""

from decision_traces.printable import printable


class TraceError(Exception):
    """Parent of all errors this package raises on purpose."""

    def __str__(self) -> str:
        """Return the message itself (KeyError would print its repr), with nothing in it that a terminal obeys."""
        return printable(" ".join(str(a) for a in self.args))


class UsageError(TraceError, ValueError):
    """A flag or an argument that cannot be honoured."""


class PathError(TraceError):
    """A path that cannot be one of this machine. Not a ValueError: a parser of flags would print it as its own."""


class DataError(TraceError, ValueError):
    """A data set, split, column or file that is not there or cannot be read."""


class ModelError(TraceError, ValueError):
    """A model that cannot be loaded, or is of the wrong kind for this command."""


class UnsupportedArchitecture(ModelError):
    """A model whose module structure could not be found and verified; the message gives the reason."""


class CaptureError(TraceError, RuntimeError):
    """A hook point that did not fire as planned, or a forward pass that did not do what was checked before."""


class WriteError(CaptureError):
    """A write into a forward pass that would reach nothing, or not all that it should; the message names the reason."""


class NonFiniteError(CaptureError):
    """A captured value that is NaN or infinite, or too large for the storage type."""


class RunError(TraceError):
    """A run folder that is missing, incomplete, damaged or in the way."""


class RunExistsError(RunError, FileExistsError):
    """The output folder is already there and --overwrite was not given."""


class DiskSpaceError(RunError, OSError):
    """The run does not fit on the disk, or the disk became full."""


class ReplacedRunError(RunError):
    """Another run is now where this one was opened."""


class DamagedRunError(RunError):
    """A file of the run is missing, cut short or changed."""


class ResultError(TraceError):
    """A result of an analysis that cannot be used: damaged, of another run, or without a record.

    Attributes:
        why: What is wrong, in a sentence.
        command: What makes it again.
    """

    def __init__(self, why: str, command: str) -> None:
        super().__init__(why, f"Run `{command}` again.")
        self.why = why
        self.command = command


class NotCapturedError(TraceError, KeyError):
    """An array that this run did not capture; the message names the flag that would add it."""


class UnknownExampleError(TraceError, KeyError):
    """An example_id that this run does not have."""


class SelectionError(TraceError, IndexError):
    """A layer, head, position or row outside what the run holds."""


class Interrupted(TraceError):
    """The user stopped a run; the message names what is left and how to go on."""


class OutOfMemory(TraceError, MemoryError):
    """Main memory, or the accelerator's, was too small; the message names what uses less."""


class UncertifiedWarning(UserWarning):
    """A run that was kept though its certificate failed (`--uncertified`): its numbers may not be the model's."""


class RandomHeadWarning(UserWarning):
    """A run whose predictions come from a head that the checkpoint did not have: random numbers made them."""


class NewerFormatWarning(UserWarning):
    """A run of a newer minor format than this package writes: what is new in it is not looked at."""


def first_line(error: BaseException) -> str:
    """Return the first line of another library's message, and what it announces, for use inside one of ours."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:200]
