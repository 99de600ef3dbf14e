"""One answer of the model that is not there: its stream, its blocks, and the faults between them."""

from __future__ import annotations

import sys
import time

from agentrpc.testkit.fake_cli import faults
from agentrpc.testkit.fake_cli.calls import Call
from agentrpc.testkit.fake_cli.script import pieces
from agentrpc.testkit.fake_cli.wire import encode, new_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from agentrpc.testkit.fake_cli.script import Step
    from agentrpc.testkit.fake_cli.session import Session

__all__ = ["Message"]

_BURST = 500
_INPUT_PIECE = 24
_CONTROL_PATIENCE = 5.0


class Message:
    """An answer that is being written.

    Args:
        session: The conversation that it is part of.

    Attributes:
        text: Its last block of text: the result of the turn, if it is the last answer.
        stop_reason: Why it stopped.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._id = f"msg_{new_uuid().replace('-', '')[:24]}"
        self._blocks: list[tuple[str, dict[str, Any]]] = []
        self._index = -1
        self._partial: list[str] = []
        self._left = 0
        self._step: Step | None = None
        self._began = time.monotonic()
        self._aborted = False
        self.text = ""
        self.stop_reason = ""

    # ---- The whole ----

    def play(self, step: Step) -> None:
        """Write the answer of a step. Raises Interrupted."""
        session = self._session
        self._step = step
        self._left = sum(map(_weight, step.items)) // 2
        given = step.usage.get("input", 100)
        message = {"id": self._id, "type": "message", "role": "assistant", "model": session.arguments.model}
        usage = {"input_tokens": given, "output_tokens": 1}
        usage |= {"cache_creation_input_tokens": step.usage.get("cache_write", 0)}
        usage |= {"cache_read_input_tokens": step.usage.get("cache_read", 0)}
        started: dict[str, Any] = {**message, "content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
        self._event({"type": "message_start", "message": started}, ttft_ms=1, **session.prompt_marks())
        if not self._left:
            self._middle()
        calls = any(kind == "tool" for kind, _ in step.items)
        self.stop_reason = step.stop_reason or ("tool_use" if calls else "end_turn")
        for item in step.items:
            self._item(*item)
        written = step.usage.get("output", sum(len(str(block)) for _, block in self._blocks) // 4 + 1)
        delta = {"stop_reason": self.stop_reason, "stop_sequence": None}
        self._event({"type": "message_delta", "delta": delta, "usage": {"output_tokens": written}})
        self._event({"type": "message_stop"})
        session.totals.add(given, written, time.monotonic() - self._began)
        self._record(usage | {"output_tokens": written})

    def play_apart(self, step: Step) -> None:
        """Only what is no part of an answer: at the start of the process."""
        self._step = step
        for kind, value in step.items:
            if kind in _APART:
                _APART[kind](self, value)

    def abort(self) -> None:
        """An interrupt: what was written of an open block stays."""
        if self._partial:
            self._aborted = True
            self._say({"type": "text", "text": "".join(self._partial)}, aborted=True)
        self._record({"input_tokens": 0, "output_tokens": 0})

    def close_aborted(self) -> None:
        """The end of the stream that an interrupt has cut off."""
        if self._aborted:
            self._event({"type": "content_block_stop", "index": self._index})
        self._event({"type": "message_delta", "delta": {"stop_reason": None, "stop_sequence": None}, "usage": {}})
        self._event({"type": "message_stop"})

    def _record(self, usage: dict[str, Any]) -> None:
        """The transcript has one entry for each block, and the usage of the whole in each."""
        for at, (uuid, block) in enumerate(self._blocks):
            message = {
                "id": self._id, "type": "message", "role": "assistant", "model": self._session.arguments.model,
                "content": [block], "stop_reason": self.stop_reason or None, "stop_sequence": None, "usage": usage,
            }  # fmt: skip
            self._session.transcript.add("assistant", uuid, message=message, apiBlockIndex=at, requestId=self._id)

    # ---- Its parts ----

    def _item(self, kind: str, value: Any) -> None:
        if kind in _APART:
            _APART[kind](self, value)
        elif kind == "text":
            self._stream_text(pieces(value))
        elif kind == "deltas":
            self._deltas(*value)
        elif kind == "thinking":
            self._thinking(value)
        elif kind == "redacted":
            self._whole({"type": "redacted_thinking", "data": value})
        elif kind == "search":
            self._search(value)
        elif kind == "control":
            self._control(value)
        elif kind == "tool":
            self._tool(*value)
        elif kind == "flood":
            self._flood(*value)
        else:
            self._huge(*value)

    def _stream_text(self, parts: list[str]) -> None:
        self._open({"type": "text", "text": ""})
        for part in parts:
            self._event(self._delta("text_delta", text=part))
            self._partial.append(part)
            self._pass()
        self._close({"type": "text", "text": "".join(parts)})

    def _deltas(self, count: int, size: int) -> None:
        """As fast as can be: everything but the piece and the number is rendered once."""
        session = self._session
        self._open({"type": "text", "text": ""})
        width = max(size - 1, 1)
        modulus = 10**width
        frame = {"type": "stream_event", "event": self._delta("text_delta", text="\0"), "parent_tool_use_id": None}
        frame |= {"session_id": session.arguments.session_id, "api_message_id": self._id}
        head, tail = encode({**frame, "uuid": new_uuid()[:24] + "\1"}).decode().split("\\u0000")
        tail, end = tail.split("\\u0001")
        for at in range(count):
            part = f"{at % modulus:0{width}d} "
            if session.arguments.partial:
                session.wire.send_line(f"{head}{part}{tail}{at:012x}{end}".encode())
            self._partial.append(part)
            self._pass(rest=at % _BURST)
        self._close({"type": "text", "text": "".join(self._partial)})

    def _thinking(self, text: str) -> None:
        self._open({"type": "thinking", "thinking": "", "signature": ""})
        for part in pieces(text):
            self._session.send("system", subtype="thinking_tokens", estimated_tokens=1, estimated_tokens_delta=1)
            self._event(self._delta("thinking_delta", thinking=part))
            self._pass()
        signature = new_uuid()
        self._event(self._delta("signature_delta", signature=signature))
        self._close({"type": "thinking", "thinking": text, "signature": signature})

    def _search(self, query: str) -> None:
        name = f"srvtoolu_{new_uuid()[:8]}"
        block = {"type": "server_tool_use", "id": name, "name": "web_search"}
        self._open({**block, "input": {}})
        self._event(self._delta("input_json_delta", partial_json=encode({"query": query}).decode()))
        self._close({**block, "input": {"query": query}})
        found = {"type": "web_search_result", "url": "https://example.com", "title": query, "page_age": None}
        self._whole({"type": "web_search_tool_result", "tool_use_id": name, "content": [found]})

    def _tool(self, name: str, text: str, given: dict[str, Any]) -> None:
        block = {"type": "tool_use", "id": f"toolu_{new_uuid().replace('-', '')[:24]}", "name": name}
        self._open({**block, "input": {}})
        for at in range(0, len(text), _INPUT_PIECE):
            self._event(self._delta("input_json_delta", partial_json=text[at : at + _INPUT_PIECE]))
            self._pass()
        entry = self._say({**block, "input": given})
        # The real CLI asks about a call before it has passed the end of its block on.
        self._session.add_call(Call(str(block["id"]), name, given, entry))
        self._event({"type": "content_block_stop", "index": self._index})
        self._session.breathe()

    def _whole(self, block: dict[str, Any]) -> None:
        self._open(block)
        self._pass()
        self._close(block)

    def _open(self, block: dict[str, Any]) -> None:
        self._index += 1
        self._partial = []
        self._event({"type": "content_block_start", "index": self._index, "content_block": block})

    def _close(self, block: dict[str, Any]) -> None:
        self._say(block)
        self._event({"type": "content_block_stop", "index": self._index})

    def _say(self, block: dict[str, Any], **more: Any) -> str:
        session = self._session
        message = {
            "id": self._id, "type": "message", "role": "assistant", "model": session.arguments.model,
            "content": [block], "stop_reason": None, "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 1},
        }  # fmt: skip
        marks = {} if self._blocks else session.prompt_marks()
        uuid = session.send("assistant", message=message, parent_tool_use_id=None, **more, **marks)
        self._blocks.append((uuid, block))
        self._partial = []
        if block["type"] == "text":
            self.text = block["text"]
        return uuid

    def _delta(self, kind: str, **fields: str) -> dict[str, Any]:
        return {"type": "content_block_delta", "index": self._index, "delta": {"type": kind, **fields}}

    def _event(self, event: dict[str, Any], **more: Any) -> None:
        if self._session.arguments.partial:
            marks = {"parent_tool_use_id": None, "api_message_id": self._id}
            self._session.send("stream_event", event=event, **marks, **more)

    def _pass(self, rest: int = 0) -> None:
        """Between two pieces: pauses, and what happens in the middle."""
        self._left -= 1
        if self._left == 0:
            self._middle()
        assert self._step is not None
        if self._step.slow:
            self._session.sleep(self._step.slow)
        elif not rest:
            self._session.breathe()

    def _middle(self) -> None:
        assert self._step is not None
        self._session.point("text")
        self._session.sleep(self._step.stall)

    # ---- Faults ----

    def _control(self, kind: str) -> None:
        """A request that nobody knows. What comes back is said, so that a test can look at it."""
        session = self._session
        name = session.wire.request({"subtype": kind})
        end = time.monotonic() + _CONTROL_PATIENCE
        while not session.wire.answered(name) and time.monotonic() < end:
            session.breathe(0.1)
        answer = session.wire.answer(name)
        self._stream_text([f"{answer['subtype']}: {answer.get('error', '')}"])

    def _flood(self, count: int, kind: str, size: int) -> None:
        if kind == "delta":
            self._deltas(count, size)
            return
        session = self._session
        for at in range(count):
            if kind == "message":
                said: dict[str, Any] = {"id": f"{self._id}_{at}", "type": "message", "role": "assistant"}
                said |= {"model": "flood", "content": [{"type": "text", "text": "x" * size}], "stop_reason": None}
                session.send("assistant", message=said, parent_tool_use_id=None)
            elif kind == "progress":
                more = {"tool_use_id": "toolu_flood", "tool_name": "x" * size, "parent_tool_use_id": None}
                session.send("tool_progress", **more, elapsed_time_seconds=at)
            else:
                session.send("flood", number=at, padding="x" * size)
            if at % _BURST == 0:
                session.breathe()

    def _huge(self, size: int, kind: str) -> None:
        if kind == "text":
            self._open({"type": "text", "text": ""})
            self._close({"type": "text", "text": "x" * size})
        else:
            self._session.send("huge", padding="x" * size)
        self._session.breathe()

    def _frame(self, frame: dict[str, Any]) -> None:
        self._session.wire.send(frame)

    def _line(self, line: str) -> None:
        self._session.wire.send_line(line.encode())

    def _memory(self, mebibytes: int) -> None:
        faults.take_memory(mebibytes)

    def _stderr(self, text: str) -> None:
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()

    def _children(self, kinds: list[str]) -> None:
        for kind in kinds:
            faults.leave_child(kind)


_APART: dict[str, Callable[[Message, Any], None]] = {
    "frame": Message._frame,
    "line": Message._line,
    "stderr": Message._stderr,
    "children": Message._children,
    "memory": Message._memory,
}


def _weight(item: tuple[str, Any]) -> int:
    """How many pieces an item is streamed in."""
    kind, value = item
    if kind in {"text", "thinking"}:
        return len(pieces(value))
    if kind == "deltas":
        return int(value[0])
    if kind == "tool":
        return -(-len(value[1]) // _INPUT_PIECE)
    return 1 if kind in {"redacted", "search"} else 0
