"""The server: GET only, of the runs it was given only, to who asks it by its own name only."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from decision_traces._version import __version__
from decision_traces.errors import (
    NotCapturedError,
    ReplacedRunError,
    ResultError,
    RunError,
    SelectionError,
    TraceError,
    UnknownExampleError,
    first_line,
)
from decision_traces.page import resources
from decision_traces.page.guard import ANYBODY, Entry, Guard
from decision_traces.page.resources import Resource
from decision_traces.page.runs import PageRun
from decision_traces.page.served import ServedRun

STATIC: Final = Path(__file__).parent / "static"
_STATUS: Final[dict[type[TraceError], int]] = {
    ReplacedRunError: 409,
    RunError: 422,  # damaged or gone: what is wrong is the run, not the server
    ResultError: 404,
    UnknownExampleError: 404,
    NotCapturedError: 404,
    SelectionError: 404,
}


def create_app(runs: Sequence[PageRun], entry: Entry = ANYBODY) -> ASGIApp:
    """Return the application.

    Args:
        runs: What it shows, and the only folders it reads besides its own page.
        entry: Who is let in.
    """
    app = FastAPI(title="decision-traces", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    served = [ServedRun(run) for run in runs]
    _add_errors(app)
    _add_list(app, served)
    _add_example(app, {run.key: run for run in served})
    app.mount("/", StaticFiles(directory=STATIC, html=True, check_dir=False))
    return Guard(app, entry)


def _answer(request: Request, run: ServedRun, make: Callable[[PageRun], Resource]) -> Response:
    """Answer with an entity tag, and the version of the run; what the asker has already is not even computed."""

    def response(now: PageRun) -> Response:
        request.state.version = now.version  # for the answer to an error, too
        asked = (__version__, now.version, request.url.path, request.url.query)
        tag = f'"{hashlib.sha256(repr(asked).encode()).hexdigest()[:24]}"'
        headers = {"ETag": tag, "X-Run": now.version}
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        found = make(now)
        return Response(found.body, media_type=found.media_type, headers=headers)

    return run.answer(response)


def _add_list(app: FastAPI, runs: list[ServedRun]) -> None:
    """Add what is not about one example."""
    by_key = {run.key: run for run in runs}

    @app.get("/api/runs.json")
    def list_runs() -> Response:
        found = resources.runs([run.opened for run in runs])
        return Response(found.body, media_type=found.media_type)

    @app.get("/api/{key}/meta.json")
    def meta(request: Request, key: str) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, resources.meta)

    @app.get("/api/{key}/rows/{part}.json")
    def rows(request: Request, key: str, part: int) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, lambda now: resources.rows(now, part))

    @app.get("/api/{key}/columns/{name}/{part}.bin")
    def column(request: Request, key: str, name: str, part: int) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, lambda now: resources.column(now, name, part))

    @app.get("/api/{key}/search")
    def search(request: Request, key: str, q: str) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, lambda now: resources.search(now, q))

    @app.get("/api/{key}/row")
    def row(request: Request, key: str, example: str) -> Response:
        run = _run(by_key, key)
        return _answer(request, run, lambda now: resources.row(now, example))


def _add_example(app: FastAPI, runs: dict[str, ServedRun]) -> None:
    """Add what is about one example."""
    simple: dict[str, Callable[[PageRun, int], Resource]] = {
        "outcomes.json": resources.outcomes,
        "lens.json": resources.lens,
        "by_choice.json": resources.by_choice,
    }
    for name, make in simple.items():
        app.get(f"/api/{{key}}/e/{{row}}/{name}")(_of_row(runs, make))
    app.get("/api/{key}/e/{row}/lens/{part}.bin")(_of_part(runs, resources.lens_block))
    app.get("/api/{key}/e/{row}/contributions/{part}.json")(_of_part(runs, resources.contributions))
    _add_choice(app, runs)

    @app.get("/api/{key}/e/{row}/lens/{statistic}.json")
    def lens_values(request: Request, key: str, row: int, statistic: str) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda now: resources.lens_values(now, row, statistic))


def _add_choice(app: FastAPI, runs: dict[str, ServedRun]) -> None:
    """Add what is about one choice of an example; runs without choices have the one, 0."""

    @app.get("/api/{key}/e/{row}/c{choice}/tokens.json")
    def tokens(request: Request, key: str, row: int, choice: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda now: resources.tokens(now, row, choice))

    @app.get("/api/{key}/e/{row}/c{choice}/attn/{layer}/thumbs.u8")
    def thumbs(request: Request, key: str, row: int, choice: int, layer: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda now: resources.thumbs(now, row, choice, layer))

    @app.get("/api/{key}/e/{row}/c{choice}/attn/{layer}/{head}.u8")
    def drawn(request: Request, key: str, row: int, choice: int, layer: int, head: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda now: resources.head_drawn(now, row, choice, layer, head))

    @app.get("/api/{key}/e/{row}/c{choice}/attn/{layer}/{head}/{block}.f16")
    def values(request: Request, key: str, row: int, choice: int, layer: int, head: int, block: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda now: resources.head_values(now, row, choice, layer, head, block))

    @app.get("/api/{key}/e/{row}/c{choice}/attn/{layer}/{head}/{block}.json")
    def twin(request: Request, key: str, row: int, choice: int, layer: int, head: int, block: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda now: resources.head_json(now, row, choice, layer, head, block))


def _of_row(runs: dict[str, ServedRun], make: Callable[[PageRun, int], Resource]) -> Callable[..., Response]:
    def answer(request: Request, key: str, row: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda now: make(now, row))

    return answer


def _of_part(runs: dict[str, ServedRun], make: Callable[[PageRun, int, int], Resource]) -> Callable[..., Response]:
    def answer(request: Request, key: str, row: int, part: int) -> Response:
        run = _run(runs, key)
        return _answer(request, run, lambda now: make(now, row, part))

    return answer


def _run(runs: dict[str, ServedRun], key: str) -> ServedRun:
    if key not in runs:
        raise UnknownExampleError(f"No run {key!r} here: there is {', '.join(runs)}.")
    return runs[key]


def _add_errors(app: FastAPI) -> None:
    """Turn every error into one sentence of JSON."""

    @app.exception_handler(RequestValidationError)
    async def malformed(_request: Request, error: RequestValidationError) -> JSONResponse:
        told = "; ".join(f"{e['loc'][-1]}: {e['msg']}, got {str(e.get('input'))[:60]!r}" for e in error.errors())
        return JSONResponse({"error": f"This cannot be read. {told}."}, 400)

    @app.exception_handler(TraceError)
    async def refused(request: Request, error: TraceError) -> JSONResponse:
        status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 400)
        version = getattr(request.state, "version", None)
        return JSONResponse({"error": str(error)}, status, {"X-Run": version} if version else None)

    @app.exception_handler(HTTPException)
    async def elsewhere(_request: Request, error: HTTPException) -> JSONResponse:
        told = {404: "There is nothing at this address.", 405: "Only GET is answered."}
        return JSONResponse({"error": told.get(error.status_code, error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def failed(_request: Request, error: Exception) -> JSONResponse:
        told = f"{type(error).__name__}: {first_line(error)}"
        return JSONResponse(
            {"error": f"This could not be read ({told}). `decision-traces index RUN --validate` says more."}, 500
        )
