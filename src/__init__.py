"""Lets `python -m src.cli.<script>` and `from src.traces_utils.store import TraceStore` work from a clone."""

import sys
from pathlib import Path

_HERE = str(Path(__file__).resolve().parent)
if _HERE not in sys.path:
    sys.path.insert(0, _HERE)
