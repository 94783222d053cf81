"""What extraction on a CUDA device costs beside a bare forward pass there, and beside what the disk takes.

    python -m benchmarks.gpu --tokenizer FOLDER --data_dir FOLDER [--limit 1000] [--rounds 3]

The model has the shape of a Llama of a billion parameters, random weights, in bfloat16: what a value is makes no
difference to any of these times. Three things are measured in turn, round after round: the bare forward pass (SDPA,
batches of like length, kernels that need no plan for a shape, logits at two positions a row), ours from the first
forward pass to the committed folder, and plain writing of as many bytes into as many files by as many threads. Writing
is measured twice: until the system has taken the bytes into its memory, and until they are on the disk (`sync`), which
is what a run larger than memory meets.
"""

import gc
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from benchmarks.contenders.batches import Batch
from benchmarks.contenders.limit import logits_at_end, packed
from benchmarks.contenders.ours import extracted
from benchmarks.contenders.task import SETS, Task
from benchmarks.machine import about_machine, on_disk
from benchmarks.texts import Texts
from decision_traces.extract.batching import batch_cost, token_budget
from decision_traces.extract.helpers import n_processes
from decision_traces.model.kernels import any_shape_of_batch
from decision_traces.model.load import quiet_transformers

_PIECE: Final = 1 << 20


@dataclass(frozen=True, kw_only=True)
class Settings(Texts):
    """What to measure, and where the figures go."""

    tokenizer: Path
    """Folder with the tokenizer whose ids the model is given."""
    limit: int = 1000
    """How many texts."""
    captures: tuple[str, ...] = ("resid",)
    """Sets of captures: resid, qkv, everything."""
    layers: int = 16
    """Layers of the model; with 16 it has 1.1 billion parameters."""
    rounds: int = 3
    """How many rounds."""
    scratch: Path | None = None
    """Where model and runs are written and removed again; default a temporary folder."""
    json: Path | None = None
    """Write device, figures and every round here."""


def save_model(settings: Settings, folder: Path) -> Path:
    """Make the model on the device and save it with the tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer, trust_remote_code=False)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=settings.layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=4096,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    with torch.device("cuda"):
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bare(model: Any, batches: Sequence[Batch]) -> float:
    """Return the seconds of the forward passes alone."""
    device = model.device
    moved = [Batch(b.rows, b.lengths, b.ids.to(device), b.mask.to(device)) for b in batches]
    with torch.inference_mode(), any_shape_of_batch():
        for batch in moved[:2]:
            logits_at_end(model, batch)
        torch.cuda.synchronize()
        start = time.perf_counter()
        for batch in moved:
            logits_at_end(model, batch)
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ours(task: Task, folder: Path) -> dict[str, Any]:
    """Return the seconds of an extraction from the first forward pass to the committed folder, and to the disk."""
    ran = extracted(task, folder, "cuda")
    start = time.perf_counter()
    os.sync()
    return {"ours_s": ran.seconds, "ours_synced_s": ran.seconds + time.perf_counter() - start, "timings": ran.details}


def plain_writing(folder: Path, n_bytes: int, n_files: int, threads: int) -> dict[str, float]:
    """Return the seconds of writing so many bytes into so many files, a megabyte at a time, and to the disk."""
    piece = np.random.default_rng(0).bytes(_PIECE)

    def write(number: int) -> None:
        with (folder / str(number)).open("wb", buffering=0) as file:
            for start in range(0, n_bytes // n_files, _PIECE):
                file.write(piece[: min(_PIECE, n_bytes // n_files - start)])

    folder.mkdir()
    start = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(write, range(n_files)))
    taken = time.perf_counter() - start
    os.sync()
    return {"disk_s": taken, "disk_synced_s": time.perf_counter() - start}


def measure(settings: Settings, scratch: Path, console: Console) -> dict[str, Any]:
    """Measure everything, round after round."""
    model_path = save_model(settings, scratch / "model")
    source = (settings.dataset, settings.split, settings.data_dir, settings.limit)
    tasks = {name: Task(model_path, *source, settings.max_seq_len, SETS[name]) for name in settings.captures}
    tokens, device = next(iter(tasks.values())).tokens(), torch.device("cuda")
    batches, threads = packed(tokens, token_budget(device), batch_cost(device)), n_processes()
    rounds: list[dict[str, Any]] = []
    for number in range(settings.rounds):
        for capture in settings.captures:
            options = {"dtype": torch.bfloat16, "trust_remote_code": False}
            model = AutoModelForCausalLM.from_pretrained(model_path, **options).to(device).eval()
            found: dict[str, Any] = {"round": number + 1, "capture": capture, "bare_s": bare(model, batches)}
            del model
            _settle()
            found |= ours(tasks[capture], scratch / "run")
            found["bytes"], found["files"] = on_disk(scratch / "run")
            shutil.rmtree(scratch / "run")
            _settle()
            found |= plain_writing(scratch / "plain", found["bytes"], found["files"], threads)
            shutil.rmtree(scratch / "plain")
            rounds.append(found)
            console.print({k: v for k, v in found.items() if k != "timings"})
    gpu = {"name": torch.cuda.get_device_name(), "writers": threads, "slots_per_batch": token_budget(device)}
    counts = {"texts": len(tokens), "tokens": sum(map(len, tokens)), "layers": settings.layers}
    return {"machine": about_machine(), "gpu": gpu, **counts, "rounds": rounds}


def _settle() -> None:
    """Leave nothing for the next to pay for."""
    gc.collect()
    torch.cuda.empty_cache()
    os.sync()


def table_of(results: dict[str, Any], settings: Settings) -> Table:
    """Return the medians as a table."""
    table = Table(title=f"{results['gpu']['name']}, {results['texts']:,} texts, {results['tokens']:,} tokens")
    speeds = ("bare tokens/s", "ours tokens/s", "of bare", "to disk GB/s", "ours to disk GB/s", "of disk")
    for heading in ("captures", "GB", *speeds):
        table.add_column(heading, justify="right")
    for capture in settings.captures:
        rows = [r for r in results["rounds"] if r["capture"] == capture]
        size, tokens = rows[0]["bytes"] / 1e9, results["tokens"]
        table.add_row(
            capture,
            f"{size:.2f}",
            f"{tokens / _median(rows, 'bare_s'):,.0f}",
            f"{tokens / _median(rows, 'ours_s'):,.0f}",
            f"{100 * _median(rows, 'bare_s', 'ours_s'):.0f} %",
            f"{size / _median(rows, 'disk_synced_s'):.2f}",
            f"{size / _median(rows, 'ours_synced_s'):.2f}",
            f"{100 * _median(rows, 'disk_synced_s', 'ours_synced_s'):.0f} %",
        )
    return table


def _median(rows: Sequence[dict[str, Any]], figure: str, over: str | None = None) -> float:
    """Return the median of a figure, or of its ratio to another one of the same round."""
    return statistics.median(row[figure] / (row[over] if over else 1) for row in rows)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, write.

    Raises:
        SystemExit: There is no CUDA device.
    """
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    if not torch.cuda.is_available():
        raise SystemExit(
            "benchmarks.gpu: there is no CUDA device here; benchmarks.extraction measures on the processor."
        )
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    with tempfile.TemporaryDirectory(dir=settings.scratch) as scratch, quiet_transformers():
        results = measure(settings, Path(scratch), console)
    console.print(table_of(results, settings))
    if settings.json is not None:
        settings.json.write_text(json.dumps(results, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
