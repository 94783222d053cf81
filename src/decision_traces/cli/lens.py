"""`decision-traces lens`: what the model would say after each layer, and when its decisions stand."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro
from rich.console import Console

from decision_traces.analysis.decisions import decisions_of, text_note
from decision_traces.analysis.grids import write_words
from decision_traces.analysis.lens.by_choice import choice_race
from decision_traces.analysis.lens.depth import decision_depth, race_depth
from decision_traces.analysis.lens.encoders import encoder_race, load_head, need_hidden
from decision_traces.analysis.lens.grid import PAGE_TOP_K, write_lens_grid
from decision_traces.analysis.lens.logit_lens import logit_lens
from decision_traces.analysis.lens.unembedding import Unembedding, find_tokenizer, load_unembedding
from decision_traces.analysis.results import ChoiceRace, DecisionDepth, LensTrajectories
from decision_traces.analysis.states import Stage, path_of
from decision_traces.cli._app import make_console, run_command
from decision_traces.cli._counting import counting
from decision_traces.cli._written import kept_in_run, write_result
from decision_traces.format.analyses import CHOICES_PICTURE, CHOICES_TABLE, DEPTH_TABLE, LENS_PICTURE, LENS_TABLE
from decision_traces.model.load import quiet_transformers
from decision_traces.store import TraceStore
from decision_traces.tasks.decisions import Kind
from decision_traces.viz.races import save_race
from decision_traces.viz.style import run_title
from decision_traces.viz.tables import decision_table, lens_table, race_table
from decision_traces.viz.trajectories import save_trajectories


@dataclass(frozen=True, slots=True)
class LensCommand:
    """Read a run through the lens: what the model would say after each layer, and when its decisions stand.

    Decoders are read through their unembedding, masked-language models at their masked tokens through their whole head,
    multiple-choice encoders through their classification head.

    Attributes:
        run: The run folder; it must hold `hidden` (or `resid`, for decoders).
        model_path: Folder of the model, where it no longer lies where the run found it.
        top_k: How many of the most probable tokens to keep at every layer.
        of: Decoders: the decisions that tables and pictures are about: next, the text's last token; after, what comes
            after the text, whose target is what the model says itself; answer. Default: the run's own.
        all_positions: Decoders: look at every position for the page (`decision-traces view`), not only at those of the
            decisions.
        device: auto, cpu, cuda, cuda:1, mps.
        trust_remote_code: Run Python that the model brings along; only for models of people you trust.
        out: Keep the results in this folder instead of the run; a run that can only be read needs it.
        quiet: Print nothing; the files are written.
    """

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    model_path: Path | None = None
    top_k: int = 5
    of: Kind | None = None
    all_positions: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    device: str = "auto"
    trust_remote_code: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    out: Path | None = None
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def run(args: LensCommand) -> int:
    """Look, print the tables, and put tables and pictures into the run."""
    console, store = make_console(), TraceStore(args.run, results=args.out)
    console.quiet = args.quiet
    with kept_in_run(store, "lens", args, console) as folder:
        if store.n_choices is not None and store.arch == "enc":
            _encoder(store, args, console, folder)
        else:
            _decoder(store, args, console, folder)
    return 0


def _encoder(store: TraceStore, args: LensCommand, console: Console, folder: Path) -> None:
    """Let the choices race through the layers."""
    need_hidden(store)
    head = load_head(store, args.model_path, args.device, trust_remote_code=args.trust_remote_code)
    with counting(make_console(stderr=True), "race", quiet=args.quiet) as progress:
        race = encoder_race(store, head, progress=progress)
    write_result(folder / DEPTH_TABLE, _show_race(race, store, console, folder))
    console.print(f"At the end the race is within {race.model_error:.2g} of every probability the run stored.")


def _decoder(store: TraceStore, args: LensCommand, console: Console, folder: Path) -> None:
    """Look through the unembedding at every stage; where there are answers, let them race."""
    decisions_of(store, args.of), path_of(store, "hidden")  # what the run lacks is said before a model is loaded
    if note := text_note(store):
        console.print(note, soft_wrap=True)
    unembedding = load_unembedding(store, args.model_path, args.device, trust_remote_code=args.trust_remote_code)
    lenses = [_look(store, unembedding, stage, args) for stage in _stages(store)]
    console.print(lens_table(lenses))
    write_result(folder / LENS_TABLE, *lenses)
    if "choice_token_ids" in store.columns:
        depth = _show_race(choice_race(store, unembedding), store, console, folder)
    else:
        depth = decision_depth(lenses[0])
        console.print(decision_table(lenses[0], depth))
    if "masked_pos" not in store.columns:  # these have one decision an example, as the page has them
        write_result(folder / DEPTH_TABLE, depth)
        _for_the_page(store, unembedding, args, folder)
    title = f"{run_title('Logit lens', store.meta)}, {store.n} examples"
    save_trajectories(lenses[0], depth, folder / LENS_PICTURE, title)
    error = lenses[0].model_error
    console.print(f"At the end the lens is within {error:.2g} of every probability the run stored.")


def _stages(store: TraceStore) -> list[Stage]:
    """Return the stages to look at: what is missing of `pre_attn` and `post_mlp` are states of `hidden`."""
    written = any(store.has(f"{side}_res_post_attn") for side in ("dec", "enc"))
    return ["hidden", "post_attn"] if written else ["hidden"]


def _look(store: TraceStore, unembedding: Unembedding, stage: Stage, args: LensCommand) -> LensTrajectories:
    with counting(make_console(stderr=True), f"lens: {stage}", quiet=args.quiet) as progress:
        return logit_lens(store, unembedding, stage, top_k=args.top_k, kind=args.of, progress=progress)


def _for_the_page(store: TraceStore, unembedding: Unembedding, args: LensCommand, folder: Path) -> None:
    """Write what `decision-traces view` draws."""
    with counting(make_console(stderr=True), "lens: for the page", quiet=args.quiet) as progress:
        ids = write_lens_grid(
            store,
            unembedding,
            folder,
            top_k=max(PAGE_TOP_K, args.top_k),
            all_positions=args.all_positions,
            progress=progress,
        )
    with quiet_transformers():
        tokenizer = find_tokenizer(store, args.model_path, trust_remote_code=args.trust_remote_code)
        write_words(folder, store, ids, tokenizer)


def _show_race(race: ChoiceRace, store: TraceStore, console: Console, folder: Path) -> DecisionDepth:
    """Show and keep a race, and return when each question was decided among its answers."""
    console.print(race_table(race))
    write_result(folder / CHOICES_TABLE, race)
    save_race(race, folder / CHOICES_PICTURE, run_title("The race between the answers", store.meta))
    depth = race_depth(race)
    console.print(decision_table(race, depth))
    return depth


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(LensCommand, run, argv, prog="decision-traces lens")
