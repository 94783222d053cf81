"""Starting the server: on this machine alone unless told otherwise, on a free port, with the browser opened."""

import socket
import threading
import webbrowser
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import uvicorn

from decision_traces.errors import TraceError, UsageError
from decision_traces.format.analyses import LENS_GRID
from decision_traces.page.app import create_app
from decision_traces.page.guard import Entry, is_loopback, new_token
from decision_traces.page.patience import PatientProtocol
from decision_traces.page.runs import PageRun, opened

DEFAULT_PORT: Final = 8377
_TRIES: Final = 20
_EVERY: Final = frozenset({"0.0.0.0", "::"})


@dataclass(slots=True)
class PageServer:
    """A server that is listening, though it may not have begun to answer.

    Attributes:
        runs: What it shows.
        host: Address it listens at.
        port: And the port.
        socket: What it listens with.
        token: What whoever asks must know; None for nothing.
    """

    runs: list[PageRun]
    host: str
    port: int
    socket: socket.socket
    token: str | None = None
    _server: uvicorn.Server | None = field(default=None)

    @property
    def url(self) -> str:
        """Where the page is."""
        host = _address() if self.host in _EVERY else self.host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}/"

    @property
    def entrance(self) -> str:
        """The address that lets in whoever opens it: that of the page, with the token."""
        return self.url if self.token is None else f"{self.url}?token={self.token}"

    def serve(self, ready: Callable[[], None] | None = None) -> None:
        """Answer until interrupted, having called `ready`; connections are accepted from before that on."""
        hosts = frozenset({self.host.lower(), *(() if is_loopback(self.host) else _own_names())})
        entry = Entry(hosts, by_number=self.host in _EVERY, token=self.token, port=self.port)
        config = uvicorn.Config(
            create_app(self.runs, entry),
            http=PatientProtocol,
            ws="none",
            log_level="warning",
            access_log=False,
            lifespan="off",
            server_header=False,
        )
        self._server = uvicorn.Server(config)
        threading.Thread(target=_warm, args=(self.runs,), daemon=True).start()
        if ready is not None:
            ready()
        self._server.run(sockets=[self.socket])

    def start(self) -> threading.Thread:
        """Answer in a thread of its own, until the process ends."""
        thread = threading.Thread(target=self.serve, daemon=True, name=f"decision-traces page {self.port}")
        thread.start()
        return thread

    def stop(self) -> None:
        """Stop answering."""
        if self._server is not None:
            self._server.should_exit = True


def _warm(runs: Sequence[PageRun]) -> None:
    """Read what the first click needs while the browser is still busy with the page."""
    for run in runs:
        with suppress(TraceError):  # whoever asks for it is told
            _ = run.figures
            _ = run.listed
            run.grid(LENS_GRID)
            _ = run.store.spans


def listen(
    run_dirs: Sequence[Path],
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    results: Sequence[Path] = (),
    with_token: bool = True,
) -> PageServer:
    """Open runs and listen.

    Args:
        run_dirs: The run folders; the first is shown first.
        host: Address; only a loopback one keeps other machines out.
        port: The port; where left out, 8377 or the next free one.
        results: Folders with results that are kept outside the runs.
        with_token: Let in only who knows a token, which is part of the address to open. Without, every user of this
            machine can read the runs.

    Raises:
        RunError: One of the folders is no complete run.
        UsageError: The address cannot be listened at, there is no such port, or other machines would be let in without
            a token.
    """
    if not with_token and not is_loopback(host):
        raise UsageError(f"--host {host} lets other machines in: that needs the token, so leave --no_token out.")
    runs = opened(run_dirs, results)
    if port is not None and not 0 <= port < 1 << 16:
        raise UsageError(f"--port {port}: ports go from 0 to 65535.")
    ports = range(DEFAULT_PORT, DEFAULT_PORT + _TRIES) if port is None else [port]
    reason: OSError | None = None
    for number in ports:
        try:
            sock = socket.create_server((host, number), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        except OSError as error:
            reason = error
            continue
        # Connections inherit it, and asyncio does not set it for sockets of others: 40 ms an answer without.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return PageServer(runs, host, sock.getsockname()[1], sock, new_token() if with_token else None)
    told = f"{ports[0]}" if len(ports) == 1 else f"{ports[0]} to {ports[-1]}"
    raise UsageError(f"Cannot listen at {host}, port {told} ({reason}). Choose another with --port.")


def open_browser(url: str) -> None:
    """Open the page in the user's browser, if there is one."""
    threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


def _address() -> str:
    """Return the address by which other machines reach this one, or the loopback one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))  # for documentation (RFC 5737); nothing is sent
            return str(sock.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _own_names() -> set[str]:
    return {socket.gethostname().lower(), socket.getfqdn().lower()}
