"""Where the results of a run lie: in the run, or in a folder that the user named."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from decision_traces.format.analyses import ANALYSIS_DIR, RESULTS


@dataclass(frozen=True, slots=True)
class ResultsPlace:
    """Where what was computed on a run lies.

    Attributes:
        run: The run folder.
        out: The folder that the user named; None for `analysis/` in the run.
    """

    run: Path
    out: Path | None = None

    @property
    def folder(self) -> Path:
        """What holds a folder for each command."""
        return self.run / ANALYSIS_DIR if self.out is None else self.out

    @property
    def root(self) -> Path:
        """What no file of a result may lead out of: the run, or the folder that the user named."""
        return self.run if self.out is None else self.out

    def result(self, name: str) -> Path:
        """Return where the result of a command lies."""
        return self.folder / name

    def shown(self, name: str) -> str:
        """Return that folder as checks name it: relative to the run, if it lies there."""
        return f"{ANALYSIS_DIR}/{name}" if self.out is None else str(self.result(name))

    def command(self, name: str, *flags: str) -> str:
        """Return the command that makes a result here, as it is typed into a shell."""
        out = () if self.out is None else ("--out", shlex.quote(str(self.out)))
        return " ".join(["decision-traces", RESULTS[name].command, shlex.quote(str(self.run)), *flags, *out])

    def older_files(self, name: str) -> list[str]:
        """Return what an earlier version may have left of a result: tables and arrays directly in the folder."""
        data = (file for file in RESULTS[name].artifacts if not file.endswith(".png"))
        return [file for file in data if os.path.lexists(self.folder / file)]
