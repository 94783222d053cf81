"""What memory a whole extraction takes, with everything captured, over its time and for few and many texts.

    python -m benchmarks.memory --model_path FOLDER --data_dir FOLDER [--texts 100 2000]

Each run is the command `decision-traces extract` in a process of its own, whose memory is looked at ten times a
second; its peak is what the system itself has noted. The baseline is a process that imports the same and loads nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks.machine import about_machine
from benchmarks.texts import Texts
from decision_traces.format.stages import Capture
from decision_traces.viz.style import BLUE, GREY, INK, VERMILION, new_figure, plain, save

_EXTRACT: Final = "from decision_traces.cli.extract import main; main()"
_BASELINE: Final = """
import json, sys, torch
from transformers import AutoConfig, AutoModelForCausalLM
import decision_traces.extract.texts
from benchmarks.machine import peak_rss
with torch.device("meta"):
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=False))
print(json.dumps({"baseline": peak_rss(), "model": 4 * sum(p.numel() for p in model.parameters())}))
"""
_LINES: Final = ((BLUE, "-"), (VERMILION, "--"), (GREY, ":"))
_MIB: Final = 2**20


@dataclass(frozen=True, kw_only=True)
class Settings(Texts):
    """What to extract, and how often to look."""

    model_path: Path
    """Folder with config, weights and tokenizer."""
    texts: tuple[int, ...] = (100, 2000)
    """How many texts, one run for each."""
    capture: tuple[Capture, ...] = ("attn", "qkv", "hidden", "resid")
    """Which arrays."""
    batch_size: int = 64
    """Most rows of a batch."""
    interval: float = 0.1
    """Seconds between two looks."""
    scratch: Path | None = None
    """Where runs are written and removed again; default a temporary folder."""
    json: Path | None = None
    """Write machine, figures and curves here."""
    picture: Path | None = None
    """Draw the curves here, as PNG."""


@dataclass(frozen=True, slots=True)
class Curve:
    """The memory of one run.

    Attributes:
        texts: How many texts.
        peak: The most it held, in bytes, as the system noted it.
        seconds: When it was looked at.
        rss: What it held then, in bytes.
    """

    texts: int
    peak: int
    seconds: list[float]
    rss: list[int]


def baseline(settings: Settings) -> dict[str, int]:
    """Return the bytes of a process that only imports, and those of the model's weights in float32."""
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", _BASELINE, str(settings.model_path.resolve())]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout)
    return found


def watched(settings: Settings, texts: int, out: Path) -> Curve:
    """Extract so many texts and return the memory that it took.

    Raises:
        SystemExit: The command failed.
    """
    command = [sys.executable, "-c", _EXTRACT, "--limit", str(texts), "--out_dir", str(out), "--quiet"]
    for name in ("model_path", "data_dir", "dataset", "split", "max_seq_len", "batch_size"):
        if getattr(settings, name) is not None:
            command += [f"--{name}", str(getattr(settings, name))]
    process = psutil.Popen([*command, "--capture", *settings.capture], stdout=subprocess.DEVNULL)
    start, seconds, rss = time.perf_counter(), [0.0], [0]
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            break
        seconds.append(time.perf_counter() - start)
        rss.append(process.memory_info().rss)
        time.sleep(settings.interval)
    if status:
        raise SystemExit(f"the extraction of {texts} texts ended with status {os.waitstatus_to_exitcode(status)}")
    return Curve(texts, max(*rss, usage.ru_maxrss * 1024), seconds, rss)


def table_of(curves: Sequence[Curve], base: dict[str, int], settings: Settings) -> Table:
    """Return the peaks as a table."""
    title = f"{settings.model_path.resolve().name}, T = {settings.max_seq_len}, {' '.join(settings.capture)} (MiB)"
    table = Table(title=title, title_justify="left")
    for heading in ("texts", "peak", "model", "imports", "peak − model − imports", "seconds"):
        table.add_column(heading, justify="right")
    for curve in curves:
        sizes = (curve.peak, base["model"], base["baseline"], curve.peak - base["model"] - base["baseline"])
        table.add_row(f"{curve.texts:,}", *(f"{size / _MIB:,.0f}" for size in sizes), f"{curve.seconds[-1]:,.0f}")
    return table


def save_curves(curves: Sequence[Curve], base: dict[str, int], settings: Settings, path: Path) -> Path:
    """Draw memory over the course of each run and save it as PNG.

    Args:
        curves: One for each number of texts.
        base: See `baseline`.
        settings: Say what was extracted.
        path: The picture's file; its folder is made.
    """
    figure = new_figure(6.2, 3.6)
    axis = figure.subplots()
    plain(axis, "", "share of the run's time (%)", "memory (MiB)")
    for curve, (colour, dash) in zip(curves, _LINES, strict=False):
        share = [100 * s / curve.seconds[-1] for s in curve.seconds]
        label = f"{curve.texts:,} texts, {curve.seconds[-1]:,.0f} s"
        axis.plot(share, [r / _MIB for r in curve.rss], dash, color=colour, linewidth=1.4, label=label)
    axis.axhline(
        (base["model"] + base["baseline"]) / _MIB, color=INK, linewidth=1, linestyle="-.", label="model + imports"
    )
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return save(figure, path, f"Memory of {settings.model_path.resolve().name}, {' '.join(settings.capture)} captured")


def main(argv: Sequence[str] | None = None) -> None:
    """Extract, look, print."""
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    base, curves = baseline(settings), []
    for texts in settings.texts:
        with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch:
            curves.append(watched(settings, texts, Path(scratch) / "run"))
        _keep(curves, base, settings)
    Console(highlight=False, width=None if sys.stdout.isatty() else 120).print(table_of(curves, base, settings))
    if settings.picture is not None:
        save_curves(curves, base, settings, settings.picture)


def _keep(curves: Sequence[Curve], base: dict[str, int], settings: Settings) -> None:
    """Write what is known so far, so that a run that is cut keeps it."""
    if settings.json is not None:
        told: dict[str, Any] = {"machine": about_machine(["psutil"]), **base, "curves": [asdict(c) for c in curves]}
        settings.json.write_text(json.dumps(told), encoding="utf-8")


if __name__ == "__main__":
    main()
