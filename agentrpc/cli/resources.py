"""What the commands of resources share: names, printing, times."""

from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from agentrpc.cli.connection import run_command
from agentrpc.client import AgentRpcClient

__all__ = ["Json", "full_name", "print_json", "show", "when"]

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def full_name(collection: str, text: str) -> str:
    """A name as the service takes it; people may leave the collection out."""
    return text if text.startswith(f"{collection}/") else f"{collection}/{text}"


def print_json(message: Message) -> None:
    """Print a message as JSON."""
    print(MessageToJson(message, preserving_proto_field_name=True))


def show(make: Callable[[AgentRpcClient], Awaitable[Message]]) -> None:
    """Make a call, and print what it answers as JSON."""

    async def work(client: AgentRpcClient) -> None:
        print_json(await make(client))

    run_command(work)


def when(time: Timestamp) -> str:
    """A time for people; empty when it is not set."""
    return f"{time.ToDatetime():%Y-%m-%d %H:%M:%S}" if time.seconds else ""
