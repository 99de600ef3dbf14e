"""Tools of this service for the agents of a process: MCP servers that the worker runs itself.

The CLI calls them over its control protocol, under the tool_use_id of a call that the gate has let pass. What is a
tool's own is beside this module, one for each kind of server: functions that make `Tool`s of options and callables.
They know no store.

Here is what holds for all of them. A call is carried out only on a ticket of the gate's. It is bounded in time, and its
result in size, and it ends with the process that made it. Whatever a tool raises is an error result, which the model
reads, and never the end of the CLI; nothing internal is in it. Neither arguments nor results hold what no text may
hold: NUL and lone surrogates.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import structlog
from claude_agent_sdk import McpSdkServerConfig, SdkMcpTool, ToolAnnotations, create_sdk_mcp_server
from mcp.server import Server
from mcp_types import CallToolRequestParams, CallToolResult, TextContent

from agentrpc.errors import AgentRpcError, LeaseLostError

__all__ = ["CALL_TIMEOUT", "MAX_RESULT", "Arguments", "Tool", "ToolError", "ToolServers", "cut_text", "schema"]

log = structlog.get_logger()

# As McpServer.builtin says in the contract.
CALL_TIMEOUT = 60.0
MAX_RESULT = 256 * 1024
_STOP_SECONDS = 2.0
# How the CLI names the call that a request is for.
_TOOL_USE_ID = "claudecode/toolUseId"
_NO_TICKET = "the call was not made: nobody has allowed it"

Arguments: TypeAlias = dict[str, Any]


class ToolError(Exception):
    """A call that failed; the model reads the message, which says what to do instead."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    Attributes:
        name: Without the server's prefix, such as `memory_read`.
        description: What the model reads about it.
        arguments: A JSON Schema, made by `schema`. Calls that do not follow it never reach `call`.
        call: Gets the arguments and returns text for the model. Raises ToolError, or an error that callers are meant to
            see; any other error is told as a failure of the tool.
        read_only: Whether it changes nothing: then the CLI may make several such calls at a time.
    """

    name: str
    description: str
    arguments: dict[str, Any]
    call: Callable[[Arguments], Awaitable[str]]
    read_only: bool = field(default=True, kw_only=True)


def schema(properties: Mapping[str, Any], *, required: Sequence[str] = ()) -> dict[str, Any]:
    """The JSON Schema of a tool's arguments, which takes no others than these."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(required),
        "additionalProperties": False,
    }


def cut_text(text: str, limit: int = MAX_RESULT) -> str:
    """A text without what no text may hold, and with at most `limit` bytes; says so when it was cut."""
    clean = text.replace("\0", "�").encode("utf-8", "replace")
    if len(clean) <= limit:
        return clean.decode()
    note = f"\n[cut here: the result has {len(clean)} bytes, at most {limit} are shown; ask for less]"
    return clean[: max(0, limit - len(note))].decode(errors="ignore") + note


class ToolServers:
    """The servers of one CLI process.

    Args:
        servers: The tools of each, by its name.
        redeem: Whether the call of this tool_use_id, tool and arguments may be carried out now; asked once for each.
        timeout: Seconds for one call.
    """

    def __init__(
        self,
        servers: Mapping[str, Sequence[Tool]],
        redeem: Callable[[str, str, Arguments], bool],
        *,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        self._redeem = redeem
        self._timeout = timeout
        self._calls: set[asyncio.Task[str]] = set()
        self._stopped = False
        self.configs: dict[str, McpSdkServerConfig] = {
            name: create_sdk_mcp_server(name, tools=[self._sdk_tool(name, tool) for tool in tools])
            for name, tools in servers.items()
        }
        for name, config in self.configs.items():
            self._guard(name, config["instance"])

    def close(self) -> None:
        """From now on no call is begun."""
        self._stopped = True

    async def stop(self) -> bool:
        """Cancel what is under way, and begin nothing more; whether all of it has ended."""
        self.close()
        for call in self._calls:
            call.cancel()
        if self._calls:
            await asyncio.wait(set(self._calls), timeout=_STOP_SECONDS)
        return not self._calls

    def _guard(self, server: str, instance: Server[Any]) -> None:
        """Nothing is carried out but what the gate has let pass: the SDK's tools do not learn whose call it is."""
        entry = instance.get_request_handler("tools/call")
        assert entry is not None

        async def handle(context: Any, params: CallToolRequestParams) -> Any:  # noqa: ANN401 - the protocol's
            tool_use_id = str((params.meta or {}).get(_TOOL_USE_ID, ""))
            if not self._redeem(tool_use_id, f"mcp__{server}__{params.name}", params.arguments or {}):
                return CallToolResult(content=[TextContent(text=_NO_TICKET)], is_error=True)
            return await entry.handler(context, params)

        instance.add_request_handler("tools/call", CallToolRequestParams, handle)

    def _sdk_tool(self, server: str, tool: Tool) -> SdkMcpTool[Any]:
        async def handle(arguments: Arguments) -> dict[str, Any]:
            text, failed = await self._call(server, tool, arguments)
            return {"content": [{"type": "text", "text": cut_text(text)}], "is_error": failed}

        annotations = ToolAnnotations(readOnlyHint=tool.read_only)
        return SdkMcpTool(tool.name, tool.description, tool.arguments, handle, annotations)

    async def _call(self, server: str, tool: Tool, arguments: Arguments) -> tuple[str, bool]:
        """What a call answers, and whether it failed."""
        if self._stopped:
            return "the session's process is being stopped; the call was not made", True
        if not _clean(arguments):
            return "the arguments hold NUL characters or half of a character: leave them out", True
        call = asyncio.ensure_future(tool.call(arguments))
        self._calls.add(call)
        call.add_done_callback(self._done)
        try:
            # Not by a time-out around it: a tool that does not let itself be cancelled must not hold up the agent.
            await asyncio.wait({call}, timeout=self._timeout)
            if not call.done():
                log.warning("tool_timeout", server=server, tool=tool.name)
                limit = f"{self._timeout:g} s"
                return f"{tool.name} did not answer within {limit}, and was stopped; what it did is unknown", True
            return call.result(), False
        except asyncio.CancelledError:
            if not call.cancelled():
                raise
            return f"{tool.name} was stopped; what it did is unknown", True
        except ToolError as error:
            return str(error), True
        except AgentRpcError as error:
            return f"{error.reason}: {error.message}", True
        except LeaseLostError:
            return "this worker has lost the session; the call was not made", True
        except Exception:
            log.exception("tool_failed", server=server, tool=tool.name)
            return f"{tool.name} failed for a reason of its own; its operator finds it in the worker's log", True
        finally:
            call.cancel()

    def _done(self, call: "asyncio.Task[str]") -> None:
        self._calls.discard(call)
        if not call.cancelled():
            # Of a call for which nobody waits any more.
            call.exception()


def _clean(value: object) -> bool:
    if isinstance(value, str):
        return "\0" not in value and not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, Mapping):
        return all(_clean(key) and _clean(item) for key, item in value.items())
    if isinstance(value, list):
        return all(map(_clean, value))
    return True
