"""Standard input and output of the fake CLI: lines of JSON, and the control protocol in both directions.

One thread, no event loop: whoever waits calls `pump`, which reads what has come and hands it on.
"""

from __future__ import annotations

import json
import os
import select
import time
from collections import deque

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

__all__ = ["Wire", "encode", "new_uuid"]

_CHUNK = 64 * 1024


def new_uuid() -> str:
    """A random UUID. The module of that name takes longer to import than this process to start."""
    text = os.urandom(16).hex()
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-a{text[17:20]}-{text[20:]}"


def encode(value: object) -> bytes:
    """One line of JSON without its end."""
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError:
        # A lone surrogate: escaped, as JSON.stringify does.
        return json.dumps(value, separators=(",", ":")).encode()


class Wire:
    """The lines in and out.

    Args:
        on_prompt: Gets each user message as it comes.
        on_request: Gets (request_id, request) of each control request.
    """

    def __init__(
        self, on_prompt: Callable[[dict[str, Any]], None], on_request: Callable[[str, dict[str, Any]], None]
    ) -> None:
        self._on_prompt = on_prompt
        self._on_request = on_request
        self._out: list[bytes] = []
        self._size = 0
        self._in: list[bytes] = []
        self._requests: set[str] = set()
        self._answers: dict[str, dict[str, Any]] = {}
        self._lines: deque[bytes] = deque()
        self.ended = False

    # ---- Out ----

    def send(self, frame: dict[str, Any]) -> None:
        """Send a frame; it leaves with the next flush."""
        self.send_line(encode(frame))

    def send_line(self, line: bytes) -> None:
        """Send a line, whatever it is."""
        self._out.append(line)
        self._size += len(line)
        if self._size > _CHUNK:
            self.flush()

    def flush(self) -> None:
        """Write what was sent. Blocks while the other side does not read."""
        if not self._out:
            return
        self._out.append(b"")
        data = memoryview(b"\n".join(self._out))
        self._out, self._size = [], 0
        try:
            while data:
                data = data[os.write(1, data) :]
        except BrokenPipeError:
            os._exit(0)

    def request(self, request: dict[str, Any]) -> str:
        """Send a control request; its id."""
        name = new_uuid()
        self._requests.add(name)
        self.send({"type": "control_request", "request_id": name, "request": request})
        return name

    def answered(self, name: str) -> bool:
        """Whether a request was answered, or cannot be answered any more."""
        return name in self._answers or self.ended

    def answer(self, name: str) -> dict[str, Any]:
        """The response to a request; an error if none can come."""
        self._requests.discard(name)
        return self._answers.pop(name, {"subtype": "error", "error": "Stream closed"})

    def cancel_requests(self) -> None:
        """Take back the requests that wait for an answer."""
        for name in list(self._requests - self._answers.keys()):
            self.send({"type": "control_cancel_request", "request_id": name})
        self._requests.clear()

    def respond(self, name: str, response: dict[str, Any] | None, error: str = "") -> None:
        """Answer a control request of the other side."""
        body: dict[str, Any] = {"subtype": "error" if response is None else "success", "request_id": name}
        body |= {"error": error} if response is None else {"response": response}
        self.send({"type": "control_response", "response": body})

    # ---- In ----

    def pump(self, timeout: float | None, also: Iterable[int] = ()) -> None:
        """Flush, wait until something comes or one of the other descriptors is ready, and hand it on."""
        self.flush()
        if self._lines:
            self._dispatch()
            return
        waiting = list(also)
        if self.ended:
            if timeout is None and not waiting:
                timeout = 3600.0
        else:
            waiting.append(0)
        poll = select.poll()
        for fd in waiting:
            poll.register(fd, select.POLLIN)
        ready = poll.poll(None if timeout is None else max(timeout, 0) * 1000)
        if any(fd == 0 for fd, _ in ready):
            self._read()
            self._dispatch()
        self.flush()

    def sleep(self, seconds: float) -> None:
        """Wait, and hand on what comes meanwhile."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.pump(left)

    def _read(self) -> None:
        data = os.read(0, _CHUNK)
        if not data:
            self.ended = True
            return
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._lines.append(b"".join([*self._in, line]))
            self._in = []
        if rest:
            self._in.append(rest)

    def _dispatch(self) -> None:
        while self._lines:
            line = self._lines.popleft()
            if not line.strip():
                continue
            message = json.loads(line)
            kind = message.get("type")
            if kind == "control_response":
                response = message["response"]
                if response.get("request_id") in self._requests:
                    self._answers[response["request_id"]] = response
            elif kind == "control_request":
                self._on_request(message["request_id"], message["request"])
            elif kind == "user":
                self._on_prompt(message)
