"""How long opening a run takes and what memory, in a process that does nothing else.

    python -m benchmarks.opening RUN

Prints JSON; `benchmarks.reading --large RUN` starts it.
"""

import json
import sys
import time

from benchmarks.machine import peak_rss


def main(run: str) -> None:
    """Import the package, open the run, then read its token table; print seconds and peak bytes of both."""
    start = time.perf_counter()
    from decision_traces import TraceStore

    store = TraceStore(run)
    store.arrays()
    opened = {"open_s": time.perf_counter() - start, "open_bytes": peak_rss(), "n": store.n}
    start = time.perf_counter()
    len(store.tokens)
    print(json.dumps({**opened, "tokens_s": time.perf_counter() - start, "tokens_bytes": peak_rss()}))


if __name__ == "__main__":
    main(sys.argv[1])
