"""The server: GET only, of the runs it was given only, to who asks it by its own name only."""

import hashlib
import ipaddress
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from decision_traces._version import __version__
from decision_traces.errors import (
    NotCapturedError,
    ResultError,
    RunError,
    SelectionError,
    TraceError,
    UnknownExampleError,
    first_line,
)
from decision_traces.page import resources
from decision_traces.page.resources import Resource
from decision_traces.page.runs import PageRun

STATIC: Final = Path(__file__).parent / "static"
_LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
)
_HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
Next = Callable[[Request], Awaitable[Response]]


def create_app(runs: Sequence[PageRun], hosts: frozenset[str] = frozenset(), *, by_number: bool = False) -> FastAPI:
    """Return the application.

    Args:
        runs: What it shows, and the only folders it reads besides its own page.
        hosts: Names it may be asked by, besides those of this machine; a page of another site that has had its own
            name pointed at this machine (DNS rebinding) asks by that name and is refused.
        by_number: Whether it may be asked by any address in numbers, which no rebinding goes through.
    """
    app = FastAPI(title="decision-traces", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    _add_errors(app)
    _add_guard(app, _LOCAL | hosts, by_number=by_number)
    _add_list(app, list(runs))
    _add_example(app, {run.key: run for run in runs})
    app.mount("/", StaticFiles(directory=STATIC, html=True, check_dir=False))
    return app


def _answer(request: Request, run: PageRun | None, make: Callable[[], Resource]) -> Response:
    """Answer with an entity tag; what the asker has already is not even computed."""
    seen = () if run is None else run.refresh()
    tag = hashlib.sha256(repr((__version__, seen, str(request.url.path), request.url.query)).encode()).hexdigest()[:24]
    headers = {"ETag": f'"{tag}"'}
    if run is not None and f'"{tag}"' in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    found = make()
    return Response(found.body, media_type=found.media_type, headers=headers)


def _add_list(app: FastAPI, runs: list[PageRun]) -> None:
    """Add what is not about one example."""
    by_key = {run.key: run for run in runs}

    @app.get("/api/runs.json")
    def list_runs(request: Request) -> Response:
        return _answer(request, None, lambda: resources.runs(runs))

    @app.get("/api/{key}/meta.json")
    def meta(request: Request, key: str) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, lambda: resources.meta(run))

    @app.get("/api/{key}/rows/{part}.json")
    def rows(request: Request, key: str, part: int) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, lambda: resources.rows(run, part))

    @app.get("/api/{key}/columns/{name}/{part}.bin")
    def column(request: Request, key: str, name: str, part: int) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, lambda: resources.column(run, name, part))

    @app.get("/api/{key}/search")
    def search(request: Request, key: str, q: str) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, lambda: resources.search(run, q))

    @app.get("/api/{key}/row")
    def row(request: Request, key: str, example: str) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, lambda: resources.row(run, example))


def _add_example(app: FastAPI, runs: dict[str, PageRun]) -> None:
    """Add what is about one example."""
    simple: dict[str, Callable[[PageRun, int], Resource]] = {
        "outcomes.json": resources.outcomes,
        "lens.json": resources.lens,
        "race.json": resources.race,
    }
    for name, make in simple.items():
        app.get(f"/api/{{key}}/e/{{row}}/{name}")(_of_row(runs, make))
    app.get("/api/{key}/e/{row}/lens/{part}.bin")(_of_part(runs, resources.lens_block))
    app.get("/api/{key}/e/{row}/contributions/{part}.json")(_of_part(runs, resources.contributions))
    _add_choice(app, runs)

    @app.get("/api/{key}/e/{row}/lens/{statistic}.json")
    def lens_values(request: Request, key: str, row: int, statistic: str) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda: resources.lens_values(run, row, statistic))


def _add_choice(app: FastAPI, runs: dict[str, PageRun]) -> None:
    """Add what is about one choice of an example; runs without choices have the one, 0."""

    @app.get("/api/{key}/e/{row}/c{choice}/tokens.json")
    def tokens(request: Request, key: str, row: int, choice: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda: resources.tokens(run, row, choice))

    @app.get("/api/{key}/e/{row}/c{choice}/attn/{layer}/thumbs.u8")
    def thumbs(request: Request, key: str, row: int, choice: int, layer: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda: resources.thumbs(run, row, choice, layer))

    @app.get("/api/{key}/e/{row}/c{choice}/attn/{layer}/{head}.u8")
    def drawn(request: Request, key: str, row: int, choice: int, layer: int, head: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda: resources.head_drawn(run, row, choice, layer, head))

    @app.get("/api/{key}/e/{row}/c{choice}/attn/{layer}/{head}/{block}.f16")
    def values(request: Request, key: str, row: int, choice: int, layer: int, head: int, block: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda: resources.head_values(run, row, choice, layer, head, block))

    @app.get("/api/{key}/e/{row}/c{choice}/attn/{layer}/{head}/{block}.json")
    def twin(request: Request, key: str, row: int, choice: int, layer: int, head: int, block: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda: resources.head_json(run, row, choice, layer, head, block))


def _of_row(runs: dict[str, PageRun], make: Callable[[PageRun, int], Resource]) -> Callable[..., Response]:
    def answer(request: Request, key: str, row: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda: make(run, row))

    return answer


def _of_part(runs: dict[str, PageRun], make: Callable[[PageRun, int, int], Resource]) -> Callable[..., Response]:
    def answer(request: Request, key: str, row: int, part: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda: make(run, row, part))

    return answer


def _run(runs: dict[str, PageRun], key: str) -> PageRun:
    if key not in runs:
        raise UnknownExampleError(f"No run {key!r} here: there is {', '.join(runs)}.")
    return runs[key]


def _add_guard(app: FastAPI, hosts: frozenset[str], *, by_number: bool) -> None:
    """Refuse who asks by another name, and add the headers that keep a browser from doing more than it should."""

    @app.middleware("http")
    async def guard(request: Request, call_next: Next) -> Response:
        asked = _host(request.headers.get("host", ""))
        if asked not in hosts and not (by_number and _is_address(asked)):
            return JSONResponse({"error": f"This server is not {asked or 'nameless'}. Ask it by its address."}, 400)
        response = await call_next(request)
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response


def _host(header: str) -> str:
    """Return the name in a Host header, without port and brackets."""
    with_port = header.count(":") == 1 or (header.startswith("[") and "]:" in header)
    return (header.rsplit(":", 1)[0] if with_port else header).strip("[]").lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether an address is of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _add_errors(app: FastAPI) -> None:
    """Turn every error into one sentence of JSON."""

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        told = "; ".join(f"{e['loc'][-1]}: {e['msg']}, got {str(e.get('input'))[:60]!r}" for e in error.errors())
        return JSONResponse({"error": f"This cannot be read. {told}."}, 400)

    @app.exception_handler(TraceError)
    async def refused(_request: Request, error: TraceError) -> JSONResponse:
        not_there = (ResultError, UnknownExampleError, NotCapturedError, SelectionError)
        status = 500 if isinstance(error, RunError) else 404 if isinstance(error, not_there) else 400
        return JSONResponse({"error": str(error)}, status)

    @app.exception_handler(Exception)
    async def failed(_request: Request, error: Exception) -> JSONResponse:
        told = f"{type(error).__name__}: {first_line(error)}"
        return JSONResponse(
            {"error": f"This could not be read ({told}). `decision-traces index RUN --validate` says more."}, 500
        )
