"""A process that has imported everything and forks one child per command: a second process to kill costs nothing.

Reads a JSON object a line on stdin and answers with one on stdout. Each child is a process like any other, in a session
of its own, that runs `python -m MODULE FLAGS` from its beginning to its end, the interpreter's own end included.
"""

import gc
import json
import os
import runpy
import signal
import sys
from typing import Any

from instants import install  # beside this file, which is run as a script


def import_everything() -> None:
    """Load what the commands load, and start nothing: threads would not survive a fork."""
    import matplotlib.figure
    import transformers
    import xarray  # noqa: F401

    from decision_traces.analysis import replay  # noqa: F401
    from decision_traces.cli import attention, attribution, compare, csqa_enc, index, lens, nexttok  # noqa: F401
    from decision_traces.store.validate import run as validate  # noqa: F401

    _ = matplotlib.figure, transformers.AutoModelForCausalLM, transformers.GPT2LMHeadModel, transformers.AutoTokenizer


def serve() -> list[str]:
    """Answer until there are no more requests; return in children alone, with what they are to run."""
    codes: dict[int, int | None] = {}
    for line in iter(sys.stdin.readline, ""):
        request = json.loads(line)
        if "argv" in request:
            pid = os.fork()
            if not pid:
                become(request)
                return list(request["argv"])
            codes[pid] = None
            answer: int | None = pid
        else:
            answer = codes[request["poll"]] = poll(request["poll"], codes)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    for pid in (pid for pid in codes if poll(pid, codes) is None):
        os.kill(pid, signal.SIGKILL)
    sys.exit(0)


def poll(pid: int, codes: dict[int, int | None]) -> int | None:
    """Return the exit code of a child, None while it runs."""
    if codes[pid] is not None:
        return codes[pid]
    ended, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if ended else None


def become(request: dict[str, Any]) -> None:
    """Make a forked child a process of its own: session, signals, folder, streams (None: closed)."""
    os.setsid()
    os.chdir(request["cwd"])
    os.environ |= request["env"]
    if request["instants"]:
        install(**request["instants"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    signal.signal(signal.SIGHUP, signal.SIG_IGN if request["nohup"] else signal.SIG_DFL)
    for number, name, way in ((0, "/dev/null", os.O_RDONLY), (1, "stdout", os.O_WRONLY), (2, "stderr", os.O_WRONLY)):
        path = request.get(name, name)
        if path is None:
            os.close(number)
            setattr(sys, name, None)
        else:
            os.dup2(os.open(path, way | os.O_CREAT | os.O_APPEND), number)
            if number:
                setattr(sys, name, os.fdopen(number, "w", buffering=1, closefd=False))


if __name__ == "__main__":
    import_everything()
    gc.freeze()  # children leave what all share alone
    sys.argv = serve()
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
