"""What an extraction tells whoever watches; the command line draws it, a notebook may ignore it."""

from typing import Protocol, runtime_checkable


@runtime_checkable
class Progress(Protocol):
    """Receives what happens during an extraction."""

    def say(self, message: str) -> None:
        """Tell one line: what is being done now."""

    def start(self, n_examples: int, n_tokens: int) -> None:
        """Begin: so much there is to do."""

    def advance(self, n_examples: int, n_tokens: int) -> None:
        """So much more has gone through the model."""

    def written(self, n_bytes: int) -> None:
        """So many bytes have been written in all."""

    def finish(self) -> None:
        """The last block is on disk, or the run was stopped."""


class Silent:
    """Tells nobody."""

    def say(self, message: str) -> None:
        """Say nothing."""

    def start(self, n_examples: int, n_tokens: int) -> None:
        """Say nothing."""

    def advance(self, n_examples: int, n_tokens: int) -> None:
        """Say nothing."""

    def written(self, n_bytes: int) -> None:
        """Say nothing."""

    def finish(self) -> None:
        """Say nothing."""
