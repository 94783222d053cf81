"""What workflow A costs beside a bare forward pass of the same examples.

    python -m benchmarks.workflow_a --model_path FOLDER --data_dir FOLDER [--limit 500] [--rounds 3]

Each round runs, one after the other: a bare forward pass of the same length-sorted batches (SDPA, the vocabulary
projection at one position a row, nothing captured), then the whole of workflow A as a process of its own, for each
choice of captures. Figures are medians over the rounds; the ratio is the time from the first forward pass to the
last block on disk over the bare forward pass.
"""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from rich.console import Console
from rich.table import Table

from decision_traces.capture.forward import logits_at
from decision_traces.data.registry import DataSource, load_examples
from decision_traces.extract.engine import TOKEN_BUDGET
from decision_traces.models.load import ModelSource, load_decoder
from decision_traces.tokens import batches, encode, pad_id

CAPTURES = {"hidden + resid": ["hidden", "resid"], "all four": ["attn", "qkv", "hidden", "resid"]}


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    model_path: Path
    data_dir: Path
    dataset: str = "wikitext2"
    split: str = "validation"
    limit: int = 500
    max_seq_len: int = 256
    batch_size: int = 8
    rounds: int = 3
    scratch: Path | None = None
    """Where the runs are written and removed again; default a temporary folder."""
    json: Path | None = None
    """Also write the figures here."""


def bare_forward(settings: Settings) -> tuple[float, int]:
    """Return seconds and tokens of a bare forward pass over all examples, in this process."""
    loaded = load_decoder(ModelSource("bare", settings.model_path))
    data = DataSource(settings.dataset, settings.split, settings.data_dir, limit=settings.limit)  # type: ignore[arg-type]
    encodings = encode(loaded.tokenizer, [e.text for e in load_examples(data)], settings.max_seq_len)
    work = list(batches(encodings, settings.batch_size, TOKEN_BUDGET, pad_id(loaded.tokenizer, loaded.vocab_size)))
    last = [torch.tensor([max(0, n - 2) for n in batch.lengths]) for batch in work]
    with torch.inference_mode():
        logits_at(loaded.model, work[0], last[0], loaded.device)  # the first pass allocates
        start = time.perf_counter()
        for batch, positions in zip(work, last, strict=True):
            logits_at(loaded.model, batch, positions, loaded.device)
    return time.perf_counter() - start, sum(e.n_tokens for e in encodings)


def workflow(settings: Settings, capture: list[str], out: Path) -> dict[str, float]:
    """Run workflow A in a process of its own and return its figures: seconds, MiB, MB."""
    command = [sys.executable, "-c", "from decision_traces.cli.nexttok import main; main()"]
    for name in ("model_path", "data_dir", "dataset", "split", "limit", "max_seq_len", "batch_size"):
        command += [f"--{name}", str(getattr(settings, name))]
    start = time.perf_counter()
    process = subprocess.Popen([*command, "--capture", *capture, "--out_dir", str(out), "--quiet"])
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    if status:
        raise SystemExit(f"workflow A ended with status {status}")
    meta = json.loads((out / "meta.json").read_text())
    du = int(subprocess.run(["du", "-sB1", str(out)], capture_output=True, text=True, check=True).stdout.split()[0])
    shutil.rmtree(out)
    timings = meta["timings"]
    return {
        "wall_s": wall,
        "extract_s": timings["extract_s"],
        "tokens_per_s": timings["tokens_per_s"],
        "prepare_s": sum(timings[k] for k in ("load_s", "probe_s", "certificate_s", "plan_s")),
        "proof_s": timings["probe_s"] + timings["certificate_s"],
        "proof_share": 100 * (timings["probe_s"] + timings["certificate_s"]) / wall,
        "peak_mib": usage.ru_maxrss / 1024,
        "disk_mb": du / 1e6,
    }


def measure(settings: Settings, scratch: Path) -> dict[str, dict[str, float]]:
    """Run all rounds and return the medians by row of the table."""
    rounds: dict[str, list[dict[str, float]]] = {"bare forward": [], **{name: [] for name in CAPTURES}}
    for number in range(settings.rounds):
        seconds, tokens = bare_forward(settings)
        rounds["bare forward"].append({"extract_s": seconds, "tokens_per_s": tokens / seconds, "ratio": 1.0})
        for name, capture in CAPTURES.items():
            figures = workflow(settings, capture, scratch / f"run{number}")
            rounds[name].append({**figures, "ratio": figures["extract_s"] / seconds})
    return {name: {key: statistics.median(r[key] for r in found) for key in found[0]} for name, found in rounds.items()}


def show(medians: dict[str, dict[str, float]], settings: Settings) -> None:
    """Print the table."""
    table = Table(title=f"{settings.model_path.name}, {settings.limit} examples, T = {settings.max_seq_len}")
    columns = {
        "ratio": "× bare", "extract_s": "extract s", "tokens_per_s": "tokens/s", "prepare_s": "load + prove s",
        "proof_s": "probe + certificate s", "proof_share": "% of the whole",
        "wall_s": "whole command s", "peak_mib": "peak MiB", "disk_mb": "disk MB",
    }  # fmt: skip
    table.add_column("")
    for heading in columns.values():
        table.add_column(heading, justify="right")
    for name, figures in medians.items():
        table.add_row(name, *(f"{figures[k]:,.2f}" if k in figures else "–" for k in columns))
    Console(width=120).print(table)


def main() -> None:
    """Measure and print."""
    settings = tyro.cli(Settings, use_underscores=True)
    with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch:
        medians = measure(settings, Path(scratch))
    show(medians, settings)
    if settings.json:
        machine = {"platform": platform.platform(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        settings.json.write_text(json.dumps({"machine": machine, "rounds": settings.rounds, **medians}, indent=2))


if __name__ == "__main__":
    main()
