"""One contender in a process of its own: `python -m benchmarks.extraction_apart NAME FOLDER`, the task on stdin."""

import json
import sys
from pathlib import Path

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.protocol import UnavailableError
from benchmarks.contenders.task import Task


def main() -> None:
    """Run it and print its seconds, or why it cannot, as the last line."""
    name, folder = sys.argv[1:]
    task = Task.from_json(json.load(sys.stdin))
    try:
        told = {"seconds": CONTENDERS[name].run(task, Path(folder)).seconds}
    except UnavailableError as reason:
        told = {"unavailable": str(reason)}
    sys.stdout.write("\n" + json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
