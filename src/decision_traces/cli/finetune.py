"""`decision-traces finetune`: the first half of workflow C."""

from collections.abc import Sequence
from typing import NoReturn

from decision_traces.cli._app import command_line, make_console, run_command
from decision_traces.finetuning.config import FinetuneConfig
from decision_traces.finetuning.train import finetune


def run(config: FinetuneConfig) -> int:
    """Train, and say how good the checkpoint is and what to do next."""
    progress, console = make_console(stderr=True), make_console()
    result = finetune(config, None if config.quiet else lambda line: progress.print(line, soft_wrap=True))
    if not config.quiet:
        console.print(f"Checkpoint: {result.folder}", soft_wrap=True)
        console.print(
            f"Accuracy {result.accuracy:.1%} on {result.n_eval} validation questions (guessing: {result.chance:.0%})"
        )
        name = () if config.model is None else ("--model", config.model)
        data = () if config.dataset == "csqa" else ("--dataset", config.dataset)
        trace = command_line("decision-traces", "csqa-enc", *name, "--model_path", result.folder, *data)
        console.print(f"Trace it: {trace}", soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(FinetuneConfig, run, argv, prog="decision-traces finetune")
