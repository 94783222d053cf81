"""Where runs live and what they are called."""

import re
from datetime import datetime
from pathlib import Path
from typing import Final

_CLONE_MARK: Final = "src/decision_traces/__init__.py"


def default_root() -> Path:
    """Return `traces/` at the root of the clone when run from inside one, else `./traces`."""
    here = Path.cwd()
    clone = next((p for p in (here, *here.parents) if (p / _CLONE_MARK).is_file()), here)
    return clone / "traces"


def run_id(now: datetime, model: str, dataset: str, split: str, n: int, kind: str | None = None) -> str:
    """Return `<YYYYmmdd-HHMMSS>_<model>_<dataset>_<split>_n<N>[_<kind>]`, safe as a folder name everywhere."""
    parts = [now.strftime("%Y%m%d-%H%M%S"), model, dataset, split, f"n{n}", *([kind] if kind else [])]
    return "_".join(re.sub(r"[^\w.+-]+", "-", part).strip("-.") for part in parts)
