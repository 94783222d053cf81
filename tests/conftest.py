"""Shared by all tests: quiet libraries, tiny model folders, and where real weights and data lie."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Tiny models gain nothing from threads, and spinning threads make busy machines crawl. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the folder of a tiny decoder, made once a session."""
    from decision_traces.testing.models import save_tiny_decoder

    made: dict[tuple, Path] = {}

    def folder(family: str, **options) -> Path:
        key = (family, *sorted(options.items()))
        if key not in made:
            made[key] = save_tiny_decoder(tmp_path_factory.mktemp(family) / family, family, **options)
        return made[key]

    return folder


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function that gives the folder of a tiny multiple-choice encoder, made once a session."""
    from decision_traces.testing.encoders import save_tiny_encoder

    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_encoder(tmp_path_factory.mktemp(family) / family, family)
        return made[family]

    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of the published data sets; tests that need it are skipped where it does not exist."""
    root = Path(os.environ.get("DECISION_TRACES_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "data").is_dir():
        pytest.skip(f"no published data at {root / 'data'} (set DECISION_TRACES_SHARED)")
    return root / "data"


@pytest.fixture(scope="session")
def shared_models(shared_data: Path) -> Path:
    """The folder of small trained models beside the data."""
    return shared_data.parent / "models"


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """SmolLM2-135M as a folder, as `get_models.py` makes it; named by DECISION_TRACES_MODELS."""
    root = os.environ.get("DECISION_TRACES_MODELS")
    folder = Path(root or "missing") / "smollm2-135m-instruct"
    if not folder.is_dir():
        pytest.skip("no SmolLM2 (DECISION_TRACES_MODELS names the folder that get_models.py filled)")
    return folder


@pytest.fixture(scope="session")
def minilm_base(smollm2: Path) -> Path:
    """MiniLM-L6, an encoder without a head, beside SmolLM2."""
    return smollm2.parent / "all-minilm-l6-v2"


@pytest.fixture
def blocks_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let runs have blocks of so many examples: by themselves, runs as small as a test's are one block."""
    return lambda rows: monkeypatch.setattr("decision_traces.extract.prepare.block_rows", lambda *_: rows)
