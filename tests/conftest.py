"""Shared by all tests: quiet libraries, tiny model folders, and where real weights and data lie."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Tiny models gain nothing from threads, and spinning threads make busy machines crawl. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that gives the folder of a tiny decoder, made once a session."""
    from support.models import save_tiny_decoder

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
    from support.encoders import save_tiny_encoder

    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = save_tiny_encoder(tmp_path_factory.mktemp(family) / family, family)
        return made[family]

    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that saves a model of a class and a family; `said` is what its config.json is made to say."""
    import torch
    from support.encoder_decoders import ENCODER_DECODERS
    from support.encoders import ENCODERS, pair_tokenizer
    from support.models import FAMILIES, byte_tokenizer

    kinds = {**FAMILIES, **ENCODERS, **ENCODER_DECODERS}

    def save(auto: Any, family: str, said: dict[str, Any] | None = None, **options: Any) -> Path:
        torch.manual_seed(7)
        ids = {"vocab_size": 260, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        config = kinds[family](**{**ids, **options})
        model = auto.from_config(config) if hasattr(auto, "from_config") else auto(config)
        folder = tmp_path / f"{family}_{type(model).__name__}"
        model.save_pretrained(folder)
        (byte_tokenizer() if family in FAMILIES else pair_tokenizer(types=False, mask=True)).save_pretrained(folder)
        if said is not None:
            path = folder / "config.json"
            told = {**json.loads(path.read_text()), **said}
            path.write_text(json.dumps({name: value for name, value in told.items() if value is not ...}))
        return folder

    return save


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
