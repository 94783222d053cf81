"""`decision-traces <command>`: finds the command and hands its flags on. Commands load only when called."""

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final, NoReturn

from decision_traces._version import __version__
from decision_traces.cli._signals import STOPPED, stopping
from decision_traces.format.analyses import RESULTS

COMMANDS: Final = {
    "demo": "the first minute: trace the embedded model, check the run, see a table and a picture",
    "nexttok": "trace a decoder over texts, with what it predicts next",
    "csqa-dec": "trace a decoder over five-choice questions, with the answer it gives",
    "csqa-enc": "trace an encoder over multiple-choice questions, every choice of each",
    "extract": "trace any model over texts: decoders, encoders, encoder-decoders",
    "finetune": "fine-tune an encoder on multiple-choice questions",
    "index": "index a run folder; --validate checks every number in it",
    "ls": "list the runs in a folder",
    "view": "open a page that shows a run: find the odd examples, see how each decision came about",
    **{spec.name: spec.does for spec in RESULTS.values() if spec.command == spec.name},
}


def run_named(name: str, argv: Sequence[str] | None = None) -> NoReturn:
    """Load a command and run it; loading takes seconds, and Ctrl-C must work in them too.

    Args:
        name: One of `COMMANDS`.
        argv: Its flags; those of the process by default.
    """
    with stopping() as stop:
        try:
            command = import_module(f"decision_traces.cli.{name.replace('-', '_')}")
        except KeyboardInterrupt:
            sys.stderr.write(f"{STOPPED}\n")
            sys.exit(stop.exit_code)
    command.main(argv)
    sys.exit(0)


def main() -> NoReturn:
    """Run the command named by the first argument."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in {"-V", "--version"}:
        sys.stdout.write(f"decision-traces {__version__}\n")
        sys.exit(0)
    if name not in COMMANDS:
        wrong = name not in {"-h", "--help"}
        lines = [f"error: there is no command {name!r}"] if wrong else []
        lines += ["usage: decision-traces <command> [flags]", ""]
        lines += [f"  {command:<14} {does}" for command, does in COMMANDS.items()]
        lines += ["", "`decision-traces <command> --help` lists a command's flags."]
        (sys.stderr if wrong else sys.stdout).write("\n".join(lines) + "\n")
        sys.exit(2 if wrong else 0)
    run_named(name, sys.argv[2:])
