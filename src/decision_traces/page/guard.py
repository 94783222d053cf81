"""Who may ask, and what a browser is told with every answer, whatever it is."""

import html
import ipaddress
import json
import secrets
from dataclasses import dataclass
from typing import Final

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOCAL: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_POLICY: Final = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; object-src 'none'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'self' http://localhost:* http://127.0.0.1:*"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
_NO_TOKEN: Final = (
    "This page is for those who have its token: open it at the address that decision-traces view printed."
)
_REFUSAL: Final = (
    "<!doctype html><html lang=en><meta charset=utf-8><title>decision traces</title>"
    "<body style='font: 1rem/1.5 system-ui; max-width: 36rem; margin: 4rem auto; padding: 0 1rem'>"
    f"<h1>No token</h1><p>{html.escape(_NO_TOKEN)}</p>"
)


def new_token() -> str:
    """Return a token that nobody guesses, as it may stand in an address."""
    return secrets.token_urlsafe(16)


@dataclass(frozen=True, slots=True)
class Entry:
    """Who is let in.

    Attributes:
        hosts: Names the server may be asked by, besides those of this machine; a page of another site that has had its
            own name pointed at this machine (DNS rebinding) asks by that name and is refused.
        by_number: Whether it may be asked by any address in numbers, which no rebinding goes through.
        token: What whoever asks must know; None where everybody may ask who reaches the server.
        port: The server's; cookies do not tell the servers of one machine apart.
    """

    hosts: frozenset[str] = frozenset()
    by_number: bool = False
    token: str | None = None
    port: int = 0

    @property
    def cookie(self) -> str:
        """Name of the cookie that holds the token."""
        return f"decision-traces-{self.port}"

    def refusal(self, request: Request) -> Response | None:
        """Return the answer to whoever is not let in; None for who is."""
        asked = _host(request.headers.get("host", ""))
        if asked not in LOCAL | self.hosts and not (self.by_number and _is_address(asked)):
            return JSONResponse({"error": f"This server is not {asked or 'nameless'}. Ask it by its address."}, 400)
        if self.token is None or self.brings_token(request) or self._matches(request.cookies.get(self.cookie)):
            return None
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": _NO_TOKEN}, 403)
        # Scripts and styles are anybody's, and a frame that keeps no cookies could not load them otherwise.
        return HTMLResponse(_REFUSAL, 403) if request.url.path in {"/", "/index.html"} else None

    def brings_token(self, request: Request) -> bool:
        """Return whether a request has the token in its address or, where cookies are not kept, in a header."""
        return self._matches(request.query_params.get("token")) or self._matches(request.headers.get("x-token"))

    def _matches(self, given: str | None) -> bool:
        return self.token is not None and secrets.compare_digest((given or "").encode(), self.token.encode())


ANYBODY: Final = Entry()
"""Whoever asks by this machine's own names."""


class Guard:
    """The application behind the door: refuses who is not let in, and adds the headers to whatever is answered."""

    def __init__(self, app: ASGIApp, entry: Entry) -> None:
        """Put a guard before an application."""
        self._app = app
        self._entry = entry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        refusal = self._entry.refusal(request)
        cookie = self._set_cookie(request) if refusal is None and self._entry.brings_token(request) else None

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if cookie is not None:
                    headers.append("Set-Cookie", cookie)
            await send(message)

        await (refusal or self._app)(scope, receive, send_with_headers)

    def _set_cookie(self, request: Request) -> str:
        entry = self._entry
        return f"{entry.cookie}={entry.token}; Path=/; HttpOnly; SameSite=Strict"


def malformed(told: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return headers and body of the answer to what is no request at all."""
    body = json.dumps({"error": told}).encode()
    said = HEADERS | {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    return [(name.lower().encode(), value.encode()) for name, value in said.items()], body


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
