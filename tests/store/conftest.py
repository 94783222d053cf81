"""Run folders for the reader's tests: built once per layout, with plain Zarr and pandas."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from support.runs import CHOICES, DECODER, TinyRun, build_run

from decision_traces.store.reading.trace_store import TraceStore


@dataclass(frozen=True)
class Built:
    """A run on disk and what was written."""

    folder: Path
    run: TinyRun
    arrays: dict[str, np.ndarray] = field(repr=False)

    @property
    def store(self) -> TraceStore:
        return TraceStore(self.folder)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TinyRun], Built]:
    """Build a run at most once per session; tests that change files copy it first."""
    known: dict[TinyRun, Built] = {}

    def build(run: TinyRun) -> Built:
        if run not in known:
            folder = tmp_path_factory.mktemp("runs") / "20261120-100000_tiny_tiny_validation_n5"
            known[run] = Built(folder, run, build_run(folder, run))
        return known[run]

    return build


@pytest.fixture(scope="session")
def decoder(built) -> Built:
    return built(DECODER)


@pytest.fixture(scope="session")
def choices(built) -> Built:
    return built(CHOICES)
