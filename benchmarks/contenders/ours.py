"""This package, in this process: `extract_next_token`, from the first forward pass to the committed folder."""

import json
import time
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.contenders.protocol import About, Ran, Read
from benchmarks.contenders.task import STAGES, Task
from decision_traces import TraceStore
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token

_BEFORE: Final = ("read_s", "load_s", "tokenise_s", "probe_s", "certificate_s", "plan_s")
"""The phases of `meta["timings"]` that lie before the first forward pass."""


class Ours:
    """The run folder that everything else in this repository reads."""

    about = About(
        "decision-traces",
        package="decision-traces",
        note=(
            "also writes the outcome table, checks every value for overflow, and proves its captures first "
            "(the proof is in the whole call, not in the seconds)"
        ),
    )

    def run(self, task: Task, folder: Path) -> Ran:
        """Extract; the seconds are the whole call less what lies before the first forward pass."""
        return extracted(task, folder)

    def checked(self, task: Task) -> tuple[str, ...]:
        """Every array, and the probability of what is predicted."""
        return (*task.arrays, "next_pred_prob")

    def reader(self, task: Task, folder: Path) -> Read:
        """Return the accessors of the run."""
        store = TraceStore(folder)

        def read(name: str, row: int) -> np.ndarray:
            example = store.tokens["example_id"].iloc[row]
            if name in {"q", "k", "v"}:
                return store.qkv(example, which=name, trim=True)
            if name in STAGES:
                return store.resid(example, stage=name, trim=True)
            if name == "next_pred_prob":
                return np.asarray(store.tokens[name].iloc[row])
            accessor = {"embed": store.resid_embed, "hidden": store.hidden, "attn": store.attn}[name]
            return accessor(example, trim=True)

        return read


def extracted(task: Task, folder: Path, device: str = "cpu") -> Ran:
    """Extract; the seconds are the whole call less what lies before the first forward pass."""
    start = time.perf_counter()
    extract_next_token(
        NextTokenConfig(
            model_path=task.model_path,
            dataset=task.dataset,
            split=task.split,
            data_dir=task.data_dir,
            limit=task.limit,
            max_seq_len=task.max_seq_len,
            capture=task.capture,
            batch_size=task.batch_size,
            device=device,
            out_dir=folder,
        )
    )
    whole = time.perf_counter() - start
    timings = json.loads((folder / "meta.json").read_text(encoding="utf-8"))["timings"]
    return Ran(whole - sum(timings[phase] for phase in _BEFORE), timings)
