"""`decision-traces view`: one page that shows a run, example by example."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NoReturn

import tyro
from rich.console import Console

from decision_traces.cli._app import command_line, make_console, run_command
from decision_traces.errors import UsageError


@dataclass(frozen=True, slots=True)
class ViewCommand:
    """Open a page that shows a run: its examples, and how each decision came about.

    Attributes:
        runs: The run folder; further ones can be compared with it on the page.
        results: Folders with results of these runs that were kept elsewhere (--out of lens, attribution, ...).
        port: Port to listen at; 8377, or the next free one, where left out.
        host: Address to listen at. Any but the default lets other machines read the runs, with the token.
        no_token: Let every user of this machine read the runs, and not only who opens the printed address.
        no_browser: Do not open the browser.
        bundle: Write the page and all it shows into this folder instead, for any file server.
        limit: With bundle: the first so many examples.
        drawn_only: With bundle: attention as it is drawn, without its numbers; a third of the size.
        overwrite: With bundle: replace the folder.
        quiet: Print nothing but the address.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    results: tuple[Path, ...] = ()
    port: int | None = None
    host: str = "127.0.0.1"
    no_token: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    no_browser: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    bundle: Path | None = None
    limit: int | None = None
    drawn_only: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    overwrite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    quiet: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def run(args: ViewCommand) -> int:
    """Serve until interrupted, or write the bundle."""
    console = make_console()
    if not args.runs:
        raise UsageError("Name a run folder. `decision-traces ls` lists them; `decision-traces demo` makes one.")
    return _bundle(args, console) if args.bundle is not None else _serve(args, console)


def _serve(args: ViewCommand, console: Console) -> int:
    given = {"--limit": args.limit is not None, "--drawn_only": args.drawn_only, "--overwrite": args.overwrite}
    for flag, there in given.items():
        if there:
            raise UsageError(f"{flag} goes with --bundle.")
    # Here and not above: the help and a bundle need no server.
    from decision_traces.page.guard import is_loopback
    from decision_traces.page.serve import listen, open_browser

    server = listen(args.runs, args.host, args.port, results=args.results, with_token=not args.no_token)

    def ready() -> None:
        console.print(f"{server.entrance}", soft_wrap=True)
        if not args.quiet:
            if not is_loopback(args.host):
                console.print(
                    "Other machines can read these runs at this address; keep it to yourself.", style="yellow"
                )
            console.print("Ctrl-C ends it.")
        if not args.no_browser:
            open_browser(server.entrance)

    server.serve(ready)
    return 0


def _bundle(args: ViewCommand, console: Console) -> int:
    from decision_traces.page.bundle import write_bundle

    assert args.bundle is not None
    written = write_bundle(
        args.runs,
        args.bundle,
        results=args.results,
        limit=args.limit,
        drawn_only=args.drawn_only,
        overwrite=args.overwrite,
    )
    if not args.quiet:
        console.print(
            f"Written: {args.bundle} ({written.files:,} files, {written.size / 1e6:.1f} MB). Any file server shows it, "
            "for example:",
            soft_wrap=True,
        )
        server = command_line("python", "-m", "http.server", "--directory", args.bundle)
        console.print(f"  {server}", soft_wrap=True)
    return 0


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command."""
    run_command(ViewCommand, run, argv, prog="decision-traces view")
