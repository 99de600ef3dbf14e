"""Reads what a request has used from the bytes of its answer."""

import json
from contextlib import suppress

from prometheus_client import Counter

from agentrpc.domain.prices import KINDS

__all__ = ["TOKENS", "Meter"]

TOKENS = Counter(
    "agentrpc_gateway_tokens_total", "Tokens by model and kind, as the provider counts.", ("model", "kind")
)
_NAMES = dict(zip(KINDS, ("input", "output", "cache_write", "cache_read"), strict=False))
_PIECE = b'"content_block_delta"'


class Meter:
    """Of one answer: from two kinds of event of a stream, or from a whole JSON answer.

    Attributes:
        streamed: Whether the answer comes as events.
        tokens: What was used by kind, as far as is known: the counts of later events take the place of earlier ones.
        pieces: Pieces of the answer, each a token or more; counted only with `count_pieces`.
    """

    def __init__(self, *, streamed: bool, count_pieces: bool = False) -> None:
        self.streamed = streamed
        self._count = count_pieces
        self._rest = b""
        self._model = "unknown"
        self.tokens: dict[str, int] = {}
        self.pieces = 0

    def feed(self, chunk: bytes) -> None:
        """Take in what came."""
        if self._count:
            # One that two chunks share does not matter.
            self.pieces += chunk.count(_PIECE)
        if not self.streamed:
            self._rest += chunk
            return
        end = chunk.find(b"\n") + 1
        if not end:
            self._rest += chunk
            return
        self._line(self._rest + chunk[:end])
        start = chunk.rfind(b"\n") + 1
        self._rest = chunk[start:]
        # Nothing but pieces of text, as nearly always, is searched once and not taken apart.
        while (found := chunk.find(b"message_", end, start)) >= 0:
            begin, end = chunk.rfind(b"\n", 0, found) + 1, chunk.find(b"\n", found) + 1
            self._line(chunk[begin:end])

    def _line(self, line: bytes) -> None:
        if line.startswith((b'data: {"type":"message_', b'data: {"type": "message_')) and b'"usage"' in line:
            self._read(line[6:])

    def close(self) -> None:
        """There is no more."""
        if not self.streamed:
            self._read(self._rest)
        # An answer that was cut off is not free.
        self.tokens["output_tokens"] = max(self.tokens.get("output_tokens", 0), self.pieces)
        for kind, name in _NAMES.items():
            if count := self.tokens.get(kind, 0):
                TOKENS.labels(self._model, name).inc(count)

    def _read(self, text: bytes) -> None:
        with suppress(ValueError, AttributeError):
            data = json.loads(text)
            message = data.get("message", data)
            self._model = str(message.get("model") or self._model)[:100]
            usage = message.get("usage") or {}
            for kind, value in [*usage.items(), *(usage.get("cache_creation") or {}).items()]:
                if kind in KINDS and isinstance(value, int) and not isinstance(value, bool):
                    self.tokens[kind] = value
