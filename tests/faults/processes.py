"""Commands as processes of their own, to be stopped, killed and starved while they run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
NEXTTOK = "src.cli.extract_trace_nexttok_dec"
INDEX = "src.cli.index_traces"
PATIENCE = 60.0


def until(what: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Wait until something is true and return it; AssertionError after `patience` seconds."""
    end = time.monotonic() + patience
    while not (found := what()):
        assert time.monotonic() < end, f"still not true after {patience} s: {what}"
        time.sleep(0.002)
    return found


@dataclass(frozen=True)
class Process:
    """A command that was started.

    Attributes:
        pid: Of its own session.
        out, err: What it has written so far goes there.
    """

    pid: int
    out: Path
    err: Path
    ask: Callable[[dict[str, Any]], Any]

    def poll(self) -> int | None:
        """Return the exit code (-9 after SIGKILL), None while it runs. To be asked until there is one."""
        return self.ask({"poll": self.pid})

    def wait(self, patience: float = PATIENCE) -> "Ended":
        """Return how it ended."""
        code = until(lambda: None if (c := self.poll()) is None else (c,), patience)[0]
        return Ended(code, *(p.read_text() if p.is_file() else "" for p in (self.out, self.err)))

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.pid, number)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Hold it still (SIGSTOP) for a while."""
        self.signal(signal.SIGSTOP)
        yield
        self.signal(signal.SIGCONT)


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (-9 after SIGKILL) and what it printed."""

    code: int
    out: str
    err: str

    def said(self) -> str:
        """Return the one sentence that a command which refused or stopped has printed last."""
        assert "Traceback" not in self.err and "Exception ignored" not in self.err, self.err
        return self.err.strip().splitlines()[-1]


class Commands:
    """Starts commands: forked from one process that has imported everything (see `server.py`)."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("server.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def close(self) -> None:
        """End the server, and what it started."""
        self._server.communicate()

    def _ask(self, request: dict[str, Any]) -> Any:
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(
        self,
        module: str,
        *flags: object,
        nohup: bool = False,
        instants: dict[str, Any] | None = None,
        **streams: str | None,
    ) -> Process:
        """Start `python -m MODULE FLAGS`; `stdout` and `stderr` go to files unless a path (None: closed) is given.

        `instants` are the arguments of `instants.install`.
        """
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        argv = [module, *map(str, flags)]
        request = {"argv": argv, "cwd": str(ROOT), "env": {}, "nohup": nohup, "stdout": str(out), "stderr": str(err)}
        request["instants"] = instants
        return Process(self._ask(request | streams), out, err, self._ask)

    def run(self, module: str, *flags: object) -> Ended:
        """Start a command and wait for its end."""
        return self.start(module, *flags).wait()


def partial_of(run: Path) -> Path:
    """Return where an unfinished run lies, as the README of a run folder has it."""
    return run.with_name(f".{run.name}.partial")


def blocks_of(run: Path) -> list[dict[str, Any]]:
    """Return the finished blocks in the ledger of an unfinished run; [] where there is none yet."""
    try:
        raw = (partial_of(run) / "ledger.jsonl").read_bytes()
    except FileNotFoundError:
        return []
    lines = [json.loads(line) for line in raw.splitlines(keepends=True) if line.endswith(b"\n")]
    return [line for line in lines if "block" in line]


def files_of(folder: Path) -> dict[str, bytes]:
    """Return every file of a folder and below with its bytes."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
