"""The yardstick: what keeping the inner path costs beside a bare forward pass, ours and others', in one run.

    python -m benchmarks.extraction --model_path FOLDER --data_dir FOLDER [--limit 500] [--rounds 3]
        [--contenders limit ours plain transformer_lens nnsight torchlens] [--captures resid qkv everything]
        [--json FILE] [--markdown FILE] [--picture FILE] [--check]

Every round runs every contender once for every set of captures, interleaved: a slow minute of the machine meets all of
them. The limit, ours and plain transformers share this process; tools that change the libraries they sit on run in one
of their own, and time themselves there. Figures are medians over the rounds; seconds go from the first forward pass to
the last file written. `--check` first compares what every contender writes with ours, on a few examples.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import tyro
from rich.console import Console

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.protocol import Ran, UnavailableError
from benchmarks.contenders.task import Task
from benchmarks.figures import Row, draw, machine, markdown, rows, show
from decision_traces.schema import Capture

CAPTURES: Final[Mapping[str, tuple[Capture, ...]]] = {
    "resid": ("hidden", "resid"),
    "qkv": ("hidden", "resid", "qkv"),
    "everything": ("attn", "qkv", "hidden", "resid"),
}
_CHECKED: Final = 6
"""Examples that --check compares."""
_TOLERANCE: Final = 1e-2
"""Of float16 values, each against itself and the median of its array."""


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    model_path: Path
    data_dir: Path
    limit: int = 500
    max_seq_len: int = 256
    batch_size: int = 64
    rounds: int = 3
    contenders: tuple[str, ...] = tuple(CONTENDERS)
    captures: tuple[str, ...] = tuple(CAPTURES)
    check: bool = False
    """Compare what every contender writes with ours first."""
    json: Path | None = None
    """Also write the figures here, after every round."""
    markdown: Path | None = None
    """Also write the table here."""
    picture: Path | None = None
    """Also draw the times over the limit here."""
    scratch: Path | None = None
    """Where the arrays are written and removed again; default a temporary folder."""

    def task(self, captures: str) -> Task:
        """Return the work for one set of captures."""
        return Task(
            self.model_path, "wikitext2", "validation", self.data_dir, self.limit, self.max_seq_len,
            CAPTURES[captures], self.batch_size,
        )  # fmt: skip


def run_one(name: str, task: Task, folder: Path) -> dict[str, float]:
    """Let one contender do a task and return its figures; what it wrote stays.

    Raises:
        UnavailableError: It cannot.
    """
    ran = _apart(name, task, folder) if CONTENDERS[name].isolated else CONTENDERS[name].run(task, folder)
    figures = {"seconds": ran.seconds}
    if folder.exists():
        du = subprocess.run(["du", "-sB1", str(folder)], capture_output=True, text=True, check=True)
        files = sum(path.is_file() for path in folder.rglob("*"))
        figures |= {"disk_mb": int(du.stdout.split()[0]) / 1e6, "files": files}
    return figures


def _apart(name: str, task: Task, folder: Path) -> Ran:
    """Run a contender in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.extraction_apart", name, str(folder)]
    done = subprocess.run(command, input=json.dumps(task.to_json()), capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"it ended with an error: {done.stderr.strip().splitlines()[-1][:200]}")
    told = json.loads(done.stdout.splitlines()[-1])
    if "unavailable" in told:
        raise UnavailableError(told["unavailable"])
    return Ran(told["seconds"])


def check(settings: Settings, scratch: Path) -> dict[str, str]:
    """Compare what every contender writes with ours; return what is wrong, by contender."""
    wrong = {}
    for captures in settings.captures:
        task = replace(settings.task(captures), limit=_CHECKED)
        run_one("ours", task, scratch / "ours")
        ours = CONTENDERS["ours"].reader(task, scratch / "ours")
        for name in settings.contenders:
            if name == "ours" or (name == "limit" and captures != settings.captures[0]):
                continue
            try:
                run_one(name, task, scratch / name)
            except UnavailableError as reason:
                wrong[name] = str(reason)
                continue
            theirs = CONTENDERS[name].reader(task, scratch / name)
            for array in CONTENDERS[name].checked(task):
                worst = max(_difference(ours(array, row), theirs(array, row)) for row in range(_CHECKED))
                if not worst < _TOLERANCE:
                    wrong[name] = f"{array} differs from ours by {worst:.2g}"
            shutil.rmtree(scratch / name, ignore_errors=True)
        shutil.rmtree(scratch / "ours")
    return wrong


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    if a.shape != b.shape:
        return float("inf")
    median = float(np.median(np.abs(a[a != 0]))) if (a != 0).any() else 1.0
    return float((np.abs(a - b) / (np.abs(a) + median)).max())


def measure(settings: Settings, scratch: Path, say: Console) -> tuple[dict[str, Any], dict[str, str]]:
    """Run all rounds; return every figure by contender and captures, and who cannot do what, and why."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    cannot: dict[str, str] = {}
    for number in range(settings.rounds):
        for captures in settings.captures:
            for name in settings.contenders:
                key = f"{name}/{captures}"
                if key in cannot:
                    continue
                try:
                    figures = run_one(name, settings.task(captures), scratch / "run")
                except UnavailableError as reason:
                    cannot[key] = str(reason)
                    continue
                finally:
                    shutil.rmtree(scratch / "run", ignore_errors=True)
                found[key].append(figures)
                say.print(f"round {number + 1}: {key} {figures['seconds']:.1f} s")
        _write(settings, found, cannot)
    return found, cannot


def _write(settings: Settings, found: Mapping[str, Any], cannot: Mapping[str, str]) -> None:
    if settings.json:
        told = {key: str(v) if isinstance(v, Path) else v for key, v in vars(settings).items()}
        content = {"machine": machine(), "settings": told, "rounds": dict(found), "cannot": dict(cannot)}
        settings.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Check, measure, and show."""
    settings = tyro.cli(Settings, use_underscores=True)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    say = Console(stderr=True)
    with tempfile.TemporaryDirectory(dir=settings.scratch) as folder:
        if settings.check:
            wrong = check(settings, Path(folder))
            for name, what in wrong.items():
                say.print(f"{name}: {what}")
            if not wrong:
                say.print(f"All contenders write what ours writes ({_CHECKED} examples).")
        found, cannot = measure(settings, Path(folder), say)
    tokens = sum(len(ids) for ids in settings.task("resid").tokens())
    table: list[Row] = rows(found, cannot, tokens)
    title = f"{settings.model_path.name}, {settings.limit} examples, {tokens:,} tokens, T = {settings.max_seq_len}"
    show(table, f"{title}, {torch.get_num_threads()} threads, {settings.rounds} rounds")
    if settings.markdown:
        settings.markdown.write_text(markdown(table), encoding="utf-8")
    if settings.picture:
        draw(table, title, settings.picture)


if __name__ == "__main__":
    main()
