"""The text of open blocks, by the rule on `TextDelta` in event.proto."""

from agentrpc.v1 import event_pb2

__all__ = ["Preview"]


class Preview:
    """Gathers deltas. Feed it every event of a stream; `text` is what an open block holds so far."""

    def __init__(self) -> None:
        self._blocks: dict[tuple[str, int], bytearray] = {}

    def feed(self, event: event_pb2.Event) -> str:
        """Take an event; what is new of the text of the main conversation, empty for all others."""
        if event.HasField("assistant_message"):
            message = event.assistant_message
            for block in message.blocks:
                self._blocks.pop((message.message_id, block.index), None)
            return ""
        if not event.HasField("text_delta") or event.parent_tool_use_id:
            return ""
        delta = event.text_delta
        key = (delta.message_id, delta.block_index)
        piece = delta.text.encode()
        known = self._blocks.setdefault(key, bytearray())
        if delta.offset == 0:
            # Begin anew: what is already known is not news.
            fresh = piece[len(known) :] if piece.startswith(bytes(known)) else piece
            self._blocks[key] = bytearray(piece)
        elif delta.offset == len(known):
            fresh = piece
            known += piece
        else:
            return ""
        return fresh.decode("utf-8", "replace")

    def text(self, message_id: str, block_index: int) -> str:
        """The block so far."""
        return self._blocks.get((message_id, block_index), bytearray()).decode("utf-8", "replace")
