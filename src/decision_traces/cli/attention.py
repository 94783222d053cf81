"""`decision-traces attention`: what every head of a run looks at."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import pyarrow as pa
import tyro

from decision_traces.analysis.attention.statistics import attention_statistics
from decision_traces.cli._app import make_console, run_command
from decision_traces.cli._counting import counting
from decision_traces.cli._written import kept_in_run
from decision_traces.format.analyses import HEADS_PICTURE, HEADS_TABLE
from decision_traces.store import TraceStore, write_table
from decision_traces.viz.comparison_tables import head_table
from decision_traces.viz.head_maps import save_head_maps
from decision_traces.viz.style import run_title


@dataclass(frozen=True, slots=True)
class AttentionCommand:
    """Measure what every attention head looks at: entropy, distance, previous, first, same and induction mass.

    Attributes:
        run: The run folder; it must hold attention.
        array: Which attention; the first that the run has, where left out.
        out: Keep the results in this folder instead of the run; a run that can only be read needs it.
        quiet: Print nothing; the files are written.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    array: Literal["dec_self_attn", "enc_self_attn", "enc_mc_attn"] | None = None
    out: Path | None = None
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def run(args: AttentionCommand) -> int:
    """Measure, print the table, and put the table and the picture into the run."""
    console, store = make_console(), TraceStore(args.run, results=args.out)
    console.quiet = args.quiet
    with kept_in_run(store, "attention", args, console) as folder:
        with counting(make_console(stderr=True), "attention", quiet=args.quiet) as progress:
            heads = attention_statistics(store, args.array, progress=progress).per_head()
        save_head_maps(heads, folder / HEADS_PICTURE, run_title("What heads look at", store.meta))
        table = pa.Table.from_pandas(heads.to_frame(), preserve_index=False)
        write_table(folder / HEADS_TABLE, table)
        console.print(head_table(heads))
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(AttentionCommand, run, argv, prog="decision-traces attention")
