"""A call is asked about once, and what was let pass is a ticket for that call alone."""

import asyncio
import json
from types import SimpleNamespace

import pytest
from claude_agent_sdk import PermissionResultAllow, PermissionResultDeny

from agentrpc.claude.gatekeeper import Gatekeeper, Tickets
from agentrpc.domain.gate import Verdict

WRITE = "mcp__memory__memory_write"
GIVEN = {"key": "a", "content": "x", "labels": {"n": [1, 2.5, True, None]}}


class Door:
    """A gatekeeper, what it was told to decide, and the faults that it has found."""

    def __init__(self, *, carry=None, **verdict):
        self.verdict = Verdict(**{"allow": True, **verdict})
        self.asked = []
        self.faults = []
        self.tickets = Tickets()
        self.keeper = Gatekeeper(self.judge, carry, self.faults.append, self.tickets)

    async def judge(self, call):
        self.asked.append(call)
        return self.verdict

    async def hook(self, tool_use_id="t", name=WRITE, given=GIVEN):
        answer = await self.keeper.hook({"tool_name": name, "tool_input": given}, tool_use_id, None)
        return answer["hookSpecificOutput"]

    async def prompt(self, tool_use_id="t", name=WRITE, given=GIVEN):
        return await self.keeper.can_use_tool(name, given, SimpleNamespace(tool_use_id=tool_use_id))

    def redeem(self, tool_use_id="t", name=WRITE, given=GIVEN):
        return self.keeper.redeem(tool_use_id, name, given)


async def test_what_was_let_pass_is_carried_out_once():
    door = Door()
    assert (await door.hook())["permissionDecision"] == "allow"
    # The numbers are those of the CLI's language.
    assert door.redeem(given=json.loads(json.dumps(GIVEN).replace("1,", "1.0,")))
    assert not door.faults
    assert not door.redeem()
    assert len(door.faults) == 1


@pytest.mark.parametrize(
    "other",
    [{"tool_use_id": "u"}, {"tool_use_id": ""}, {"name": "mcp__memory__memory_delete"}, {"given": {**GIVEN, "content": "y"}},
     {"given": {**GIVEN, "more": 1}}, {"given": {**GIVEN, "labels": {"n": [True, 2.5, True, None]}}}, {"given": {}}],
)  # fmt: skip
async def test_a_ticket_is_good_for_no_other_call(other):
    door = Door()
    await door.hook()
    assert not door.redeem(**other)
    assert len(door.faults) == 1
    assert door.redeem()


async def test_without_a_yes_there_is_no_ticket():
    door = Door(allow=False, message="no")
    assert not door.redeem()
    assert (await door.hook())["permissionDecisionReason"] == "no"
    assert not door.redeem()
    assert len(door.faults) == 2


async def test_a_call_that_still_waits_is_not_carried_out():
    door = Door()
    answered = asyncio.Event()

    async def judge(_):
        await answered.wait()
        return Verdict(allow=True)

    door.keeper = Gatekeeper(judge, None, door.faults.append, door.tickets)
    waiting = asyncio.create_task(door.hook())
    await asyncio.sleep(0)
    assert not door.redeem()
    answered.set()
    await waiting
    assert door.redeem()


async def test_the_input_that_a_person_has_changed_is_the_one_that_counts():
    changed = {"key": "a", "content": "changed"}
    door = Door(updated_input=changed)
    assert (await door.hook())["updatedInput"] == changed
    assert not door.redeem()
    assert door.redeem(given=changed)


async def test_a_call_is_asked_about_once():
    door = Door()
    await door.hook()
    again = await door.hook(given={"key": "other"})
    assert again["permissionDecision"] == "deny"
    assert len(door.asked) == len(door.faults) == 1
    door.keeper.ended("t")
    assert (await door.hook())["permissionDecision"] == "deny"
    assert len(door.asked) == 1


async def test_the_prompt_answers_with_what_was_judged_and_once():
    door = Door()
    assert isinstance(await door.prompt(), PermissionResultDeny)
    await door.hook()
    assert isinstance(await door.prompt(name="Bash"), PermissionResultDeny)
    answer = await door.prompt(given={"key": "other"})
    assert isinstance(answer, PermissionResultAllow)
    assert answer.updated_input == GIVEN
    assert isinstance(await door.prompt(), PermissionResultDeny)
    assert door.redeem()


async def test_a_carried_call_is_judged_where_it_asks_first():
    door = Door(carry=SimpleNamespace(tool_use_id="t"))
    assert isinstance(await door.prompt(), PermissionResultAllow)
    assert isinstance(await door.prompt(), PermissionResultDeny)
    assert len(door.asked) == 1
    assert door.redeem()
    assert not door.faults


async def test_what_is_remembered_is_bounded():
    door = Door()
    for number in range(10_000):
        await door.hook(str(number))
        door.keeper.ended(str(number))
    assert len(door.keeper._asked) < 5000
    assert not len(door.tickets)


async def test_a_call_that_says_no_id_uses_up_one_that_was_let_pass_so():
    door = Door(updated_input={})
    assert not door.tickets.take(WRITE, {})
    # What a person has made empty counts, and not what was asked for.
    await door.hook()
    assert not door.tickets.take(WRITE, GIVEN)
    assert not door.tickets.take("mcp__memory__memory_delete", {})
    assert door.tickets.take(WRITE, {})
    assert not door.tickets.take(WRITE, {})
    assert not door.faults
    # Both ways to it are one call.
    assert not door.redeem(given={})


async def test_a_call_that_has_ended_is_not_made_later():
    door = Door()
    await door.hook()
    door.keeper.ended("t")
    assert not door.tickets.take(WRITE, GIVEN)


async def test_two_calls_that_are_alike_are_two():
    door = Door()
    await door.hook("t")
    await door.hook("u")
    assert door.tickets.take(WRITE, GIVEN)
    assert door.tickets.take(WRITE, GIVEN)
    assert not door.tickets.take(WRITE, GIVEN)


async def test_a_call_without_an_id_is_denied_and_no_fault():
    door = Door()
    for _ in range(2):
        assert (await door.hook(""))["permissionDecision"] == "deny"
    assert not door.asked
    assert not door.faults
