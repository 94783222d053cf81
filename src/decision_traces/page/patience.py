"""Connections that do not wait for ever: neither for the rest of a request, nor for an answer to be taken."""

import asyncio
from typing import Final

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from decision_traces.page.guard import malformed

PATIENCE_S = 10.0
"""How long a request may take to arrive, from the connection or its first byte on. Uvicorn itself has no such limit."""
LEAST_TAKEN: Final = 64 << 10
"""Bytes of an answer that must be taken in that time, or the rest where it is less."""


class PatientProtocol(H11Protocol):
    """Uvicorn's protocol with an end to its patience."""

    _end: asyncio.TimerHandle | None = None
    _next_look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for the first request."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(0)  # so that whatever the system does not take at once is told of
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
        self._stop_looking()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Begin to look whether an answer is taken, which the system cannot hold as a whole."""
        super().pause_writing()
        self._look_later()

    def resume_writing(self) -> None:
        """Stop looking: all of it was taken."""
        self._stop_looking()
        super().resume_writing()

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

    def _look_later(self) -> None:
        left = self.transport.get_write_buffer_size()
        self._next_look = self.loop.call_later(PATIENCE_S, self._look, left)

    def _look(self, left_before: int) -> None:
        if left_before - self.transport.get_write_buffer_size() < LEAST_TAKEN:
            self._close()
        else:
            self._look_later()

    def _stop_looking(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
            self._next_look = None

    def _close(self) -> None:
        self.transport.abort()
