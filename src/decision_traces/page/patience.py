"""Connections that do not wait for ever for the rest of a request."""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from decision_traces.page.guard import malformed

PATIENCE_S = 10.0
"""How long a request may take to arrive, from the connection or its first byte on. Uvicorn itself has no such limit."""


class PatientProtocol(H11Protocol):
    """Uvicorn's protocol with an end to its patience."""

    _end: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take some bytes of a request, or the last."""
        self._wait()
        super().data_received(data)
        if self.conn.their_state not in {h11.IDLE, h11.SEND_BODY}:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting: the other side has gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no request with a sentence, and with the headers of every answer."""
        headers, body = malformed(msg)
        for event in (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _wait(self) -> None:
        if self._end is None:
            self._end = self.loop.call_later(PATIENCE_S, self._close)

    def _stop_waiting(self) -> None:
        if self._end is not None:
            self._end.cancel()
            self._end = None

    def _close(self) -> None:
        self.transport.abort()
