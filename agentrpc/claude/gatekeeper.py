"""Puts the gate where the CLI asks, and holds it to the answers.

What the gate has let pass is a ticket for one call: this tool, with the input that was judged, under this tool_use_id,
once. What carries a call out for the CLI asks for it before it does anything: a tool that runs here by the call's id
(`redeem`), the way to an MCP server elsewhere by what is asked (`take`). So nothing that only looks like a call runs
past the gate. Keeps promise 6.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny

from agentrpc.claude.revival import OpenCall
from agentrpc.domain.gate import Gate, ToolCall

__all__ = ["Gatekeeper", "Tickets"]

# Calls that are known to have been asked about: a message holds some dozen at most.
_REMEMBERED = 4096


@dataclass(slots=True)
class _Allowed:
    """A call that may be made, with the input that it is to be made with."""

    call: ToolCall
    prompted: bool = False
    redeemed: bool = False


class Tickets:
    """What the gate has let pass, and what of it has been carried out. For one process, until its calls have ended."""

    def __init__(self) -> None:
        self._allowed: dict[str, _Allowed] = {}

    def __len__(self) -> int:
        return len(self._allowed)

    def issue(self, call: ToolCall) -> None:
        """A call may be made, with the input that it has here."""
        self._allowed[call.tool_use_id] = _Allowed(call)

    def find(self, tool_use_id: str) -> "_Allowed | None":
        """That of a call."""
        return self._allowed.get(tool_use_id)

    def drop(self, tool_use_id: str) -> None:
        """A call has ended."""
        self._allowed.pop(tool_use_id, None)

    def take(self, tool_name: str, given: Mapping[str, Any]) -> bool:
        """Whether a call that does not say its id may be carried out now; uses up one that was let pass exactly so."""
        for ticket in self._allowed.values():
            if not ticket.redeemed and ticket.call.tool_name == tool_name and _same(ticket.call.input, given):
                ticket.redeemed = True
                return True
        return False


class Gatekeeper:
    """Answers for one CLI process: in its hook before every call, and in its permission prompt.

    The prompt comes for what the CLI would ask a person even after a hook has allowed it (leaving plan mode). It is
    there too because AskUserQuestion exists only for a host that has it. For a call that is carried over from another
    process it may come without the hook.

    Args:
        gate: Judges.
        carry: A call that the CLI takes up by itself.
        on_fault: Told what no CLI does.
        tickets: Gets what the gate lets pass.
    """

    def __init__(self, gate: Gate, carry: OpenCall | None, on_fault: Callable[[str], None], tickets: Tickets) -> None:
        self._gate = gate
        self._carry = carry
        self._on_fault = on_fault
        self._asked: dict[str, None] = {}
        self._tickets = tickets

    def ended(self, tool_use_id: str) -> None:
        """A call has ended."""
        self._tickets.drop(tool_use_id)

    def redeem(self, tool_use_id: str, tool_name: str, given: Mapping[str, Any]) -> bool:
        """Whether a call may be carried out now: it was let pass exactly so, and has not been carried out."""
        ticket = self._tickets.find(tool_use_id)
        if ticket is None:
            fault = "a call of a built-in tool that the gate has not let pass"
        elif ticket.call.tool_name != tool_name or not _same(ticket.call.input, given):
            fault = "a call of a built-in tool that is not the one that the gate has let pass"
        elif ticket.redeemed:
            fault = "a second call of a built-in tool where the gate has let one pass"
        else:
            ticket.redeemed = True
            return True
        self._on_fault(fault)
        return False

    async def hook(self, given: Any, tool_use_id: str | None, _: Any) -> dict[str, Any]:  # noqa: ANN401 - the SDK's
        """The CLI's PreToolUse hook."""
        call = ToolCall(
            tool_use_id=tool_use_id or given.get("tool_use_id", ""),
            tool_name=given.get("tool_name", ""),
            input=given.get("tool_input") or {},
            agent_id=given.get("agent_id"),
            folder=str(given.get("cwd") or ""),
        )
        reason = await self._judge(call)
        answer: dict[str, Any] = {"hookEventName": "PreToolUse", "permissionDecision": "deny"}
        if reason is None:
            answer["permissionDecision"] = "allow"
            found = self._tickets.find(call.tool_use_id)
            if found is not None and found.call.input is not call.input:
                answer["updatedInput"] = found.call.input
        else:
            answer["permissionDecisionReason"] = reason
        return {"hookSpecificOutput": answer}

    async def can_use_tool(self, name: str, given: dict[str, Any], context: Any) -> Any:  # noqa: ANN401 - the SDK's
        """The CLI's permission prompt."""
        tool_use_id = context.tool_use_id or ""
        if self._carry is not None and tool_use_id == self._carry.tool_use_id and tool_use_id not in self._asked:
            reason = await self._judge(ToolCall(tool_use_id, name, given))
            if reason is not None:
                return PermissionResultDeny(message=reason)
        found = self._tickets.find(tool_use_id)
        if found is None or found.prompted or found.call.tool_name != name:
            return PermissionResultDeny(message="the call did not pass the gate")
        found.prompted = True
        # With what was judged, whatever the prompt is about.
        return PermissionResultAllow(updated_input=found.call.input)

    async def _judge(self, call: ToolCall) -> str | None:
        """Ask the gate about a call, once; why it is denied, or None."""
        if not call.tool_use_id:
            # Nothing could be said of it later on. No CLI of today asks so, but none is ended for it.
            return "the call has no id"
        if call.tool_use_id in self._asked:
            self._on_fault("a second question about one tool call")
            return "the call was asked about twice"
        self._asked[call.tool_use_id] = None
        if len(self._asked) > _REMEMBERED:
            del self._asked[next(iter(self._asked))]
        verdict = await self._gate(call)
        if not verdict.allow:
            return verdict.message
        if verdict.updated_input is not None:
            call = replace(call, input=verdict.updated_input)
        self._tickets.issue(call)
        return None


def _same(one: object, other: object) -> bool:
    return _canonical(one) == _canonical(other)


def _canonical(value: object) -> str:
    """A JSON value as text, the same for what the CLI makes of it: its numbers are floating point ones."""

    def floats(value: object) -> object:
        if isinstance(value, int) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                return None
        if isinstance(value, Mapping):
            return {key: floats(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [floats(item) for item in value]
        return value

    return json.dumps(floats(value), sort_keys=True)
