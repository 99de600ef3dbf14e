"""Every call is judged by the rules of the moment in which it would be made, with the input that it would be made with."""

import asyncio
import json

import pytest

from agentrpc.client import RpcError
from agentrpc.names import parse_session
from agentrpc.store.tables import SessionHead
from agentrpc.v1 import (
    agent_pb2,
    agent_service_pb2,
    approval_pb2,
    event_pb2,
    run_pb2,
    session_pb2,
    session_service_pb2,
    tool_group_pb2,
    tool_group_service_pb2,
)

ALLOW = approval_pb2.Resolution.DECISION_ALLOW
Outcome = event_pb2.ToolCallFinished


def bash(command):
    return f"[[tool: Bash {json.dumps({'command': command})}]]"


def told(*calls):
    return "\n[[then]]\n".join([*calls, "[[text: done]]"])


@pytest.fixture
def options_of():
    return lambda **more: session_pb2.Session(options=session_pb2.SessionOptions(**more))


async def conduct(client, session, prompt, on_approval):
    """Run a prompt; `on_approval` answers. Its durable events."""
    events = []
    async with asyncio.timeout(60):
        async for event in client.run(session.name, prompt):
            events.append(event)
            if event.HasField("approval_requested"):
                await on_approval(event.approval_requested.approval)
    assert events[-1].run_ended.state == run_pb2.Run.STATE_SUCCEEDED
    return events


def ends(events):
    return [event.tool_call_finished for event in events if event.HasField("tool_call_finished")]


def file(settings, session, name):
    return settings.workspaces / session.name.removeprefix("sessions/") / "files" / name


async def update(client, name, **options):
    wanted = session_pb2.Session(name=name, options=session_pb2.SessionOptions(**options))
    request = session_service_pb2.UpdateSessionRequest(session=wanted)
    request.update_mask.paths.extend(f"options.{field}" for field in options)
    return await client.call(client.sessions.UpdateSession, request)


async def grants(client, session):
    request = session_service_pb2.ListSessionGrantsRequest(parent=session.name)
    return list((await client.call(client.sessions.ListSessionGrants, request)).grants)


async def revoke(client, name):
    request = session_service_pb2.RevokeSessionGrantRequest(name=name)
    await client.call(client.sessions.RevokeSessionGrant, request)


async def held(database, session):
    async with database.transaction() as tx:
        return (await tx.get_one(SessionHead, parse_session(session.name))).worker is not None


async def test_an_input_that_a_person_changes_is_judged_as_well(worker, client, settings, options_of):
    await worker(True)
    session = await client.create_session(options_of(disallowed_tools=["Bash(touch:*)"]))
    changes = iter(["/usr/bin/touch denied; echo a", "echo x > .envrc"])

    async def answer(approval):
        changed = json.dumps({"command": next(changes)})
        await client.resolve(approval.name, approval_pb2.Resolution(decision=ALLOW, updated_input_json=changed))

    first, second = ends(await conduct(client, session, told(bash("echo one"), bash("echo two")), answer))
    assert (first.outcome, first.denied_by) == (Outcome.OUTCOME_DENIED, "rule")
    assert "Bash(touch:*)" in first.denial_reason
    assert not file(settings, session, "denied").exists()
    # What only has to be asked was asked: the person has seen it, and written it.
    assert second.outcome == Outcome.OUTCOME_SUCCEEDED
    assert file(settings, session, ".envrc").exists()


async def test_a_rule_that_is_set_while_a_call_waits_denies_it(worker, client, settings, options_of):
    await worker(True)
    session = await client.create_session(options_of())

    async def answer(approval):
        await update(client, session.name, disallowed_tools=["Bash"])
        await client.resolve(approval.name, approval_pb2.Resolution(decision=ALLOW))

    [call] = ends(await conduct(client, session, told(bash("touch made")), answer))
    assert (call.outcome, call.denied_by) == (Outcome.OUTCOME_DENIED, "rule")
    assert not file(settings, session, "made").exists()


async def test_a_call_that_is_revived_is_judged_by_the_rules_of_that_day(
    worker, client, database, settings, options_of
):
    await worker(True, approval_hold=0.05)
    session = await client.create_session(options_of())

    async def answer(approval):
        async with asyncio.timeout(30):
            while await held(database, session):  # noqa: ASYNC110 - until its process has gone
                await asyncio.sleep(0.02)
        await update(client, session.name, disallowed_tools=["Bash(touch:*)"])
        await client.resolve(approval.name, approval_pb2.Resolution(decision=ALLOW))

    [call] = ends(await conduct(client, session, told(bash("touch made")), answer))
    assert call.outcome == Outcome.OUTCOME_DENIED
    assert not file(settings, session, "made").exists()


async def test_rules_that_are_changed_hold_from_the_next_call_of_the_run_under_way(worker, client, options_of):
    await worker(True)
    session = await client.create_session(options_of(allowed_tools=["Bash(echo:*)"]))

    async def answer(_):
        raise AssertionError

    async def answer_and_change(approval):
        await update(client, session.name, allowed_tools=["Bash(date:*)"], disallowed_tools=["Bash(echo:*)"])
        await client.resolve(approval.name, approval_pb2.Resolution(decision=ALLOW))

    prompt = told(bash("echo one"), bash("touch x"), bash("echo two"), bash("date -u"))
    one, _, two, date = ends(await conduct(client, session, prompt, answer_and_change))
    assert [one.outcome, two.outcome, date.outcome] == [
        Outcome.OUTCOME_SUCCEEDED,
        Outcome.OUTCOME_DENIED,
        Outcome.OUTCOME_SUCCEEDED,
    ]


async def test_what_an_answer_has_added_is_listed_and_revoked_under_way(worker, client, edge, options_of):
    await worker(True)
    session = await client.create_session(options_of())
    asked = []

    async def answer(approval):
        asked.append(approval)
        if approval.input_json == json.dumps({"command": "touch y"}):
            [grant] = await grants(client, session)
            assert (grant.rule, grant.approval) == ("Bash(date:*)", asked[0].name)
            assert grant.creator == (await client.get_session(session.name)).owner
            assert grant.HasField("create_time")
            async with edge.client("bob") as bob:
                for attempt in (grants(bob, session), revoke(bob, grant.name)):
                    with pytest.raises(RpcError) as error:
                        await attempt
                    assert error.value.reason == "NOT_FOUND"
            await revoke(client, grant.name)
            with pytest.raises(RpcError) as error:
                await revoke(client, grant.name)
            assert error.value.reason == "NOT_FOUND"
        scope = approval_pb2.Resolution.SCOPE_SESSION if list(approval.session_rules) == ["Bash(date:*)"] else 0
        await client.resolve(approval.name, approval_pb2.Resolution(decision=ALLOW, scope=scope))

    prompt = told(bash("date"), bash("date -u"), bash("touch y"), bash("date -R"))
    events = await conduct(client, session, prompt, answer)
    # Asked for `date`, then not for `date -u`, and after the revocation again.
    assert [json.loads(approval.input_json)["command"] for approval in asked] == ["date", "touch y", "date -R"]
    assert len(await grants(client, session)) == 1
    request = session_service_pb2.ListSessionEventsRequest(
        parent=session.name, event_types=["session_grant_revoked"], page_size=10
    )
    [event] = (await client.call(client.sessions.ListSessionEvents, request)).events
    assert event.session_grant_revoked.grant.rule == "Bash(date:*)"
    assert event.session_grant_revoked.revoker == (await client.get_session(session.name)).owner
    assert all(call.outcome == Outcome.OUTCOME_SUCCEEDED for call in ends(events))


async def test_a_second_line_is_seen_as_one(worker, client, options_of):
    await worker(True)
    session = await client.create_session(options_of())
    asked = []

    async def answer(approval):
        asked.append(approval)
        await client.resolve(approval.name, approval_pb2.Resolution(decision=ALLOW))

    await conduct(client, session, told(bash("ls # list\ntouch a\u202e"), bash("date")), answer)
    assert asked[0].title == "Claude wants to run 2 lines: ls # list⏎touch a\\u202e"
    assert asked[1].title == "Claude wants to run: date"


async def test_rules_of_another_cannot_be_taken_away_by_who_uses_them(worker, edge, settings, options_of):
    await worker(True)
    async with edge.client("admin") as admin, edge.client("bob") as bob:
        group = await admin.call(
            admin.tool_groups.CreateToolGroup,
            tool_group_service_pb2.CreateToolGroupRequest(
                tool_group=tool_group_pb2.ToolGroup(
                    display_name="policy", disallowed_tools=["Bash(touch:*)"], shared=True
                )
            ),
        )
        agent = await admin.call(
            admin.agents.CreateAgent,
            agent_service_pb2.CreateAgentRequest(
                agent=agent_pb2.Agent(display_name="shared", shared=True),
                version=agent_pb2.AgentVersion(
                    options=session_pb2.SessionOptions(disallowed_tools=["Read"]), tool_groups=[group.name]
                ),
            ),
        )
        wanted = options_of(allowed_tools=["Bash"], disallowed_tools=["Edit(.env)"])
        wanted.agent = agent.name
        session = await bob.create_session(wanted)
        assert list(session.imposed_rules) == ["Read", "Bash(touch:*)"]
        session = await update(bob, session.name, disallowed_tools=[], allowed_tools=["Bash", "Read"])
        assert not session.options.disallowed_tools
        assert list(session.imposed_rules) == ["Read", "Bash(touch:*)"]
        assert "Read: allows nothing, because Read denies all of it" in session.rule_warnings

        async def answer(_):
            raise AssertionError

        read = '[[tool: Read {"file_path": "made"}]]'
        calls = ends(await conduct(bob, session, told(bash("echo a; touch made"), read), answer))
        assert [call.outcome for call in calls] == [Outcome.OUTCOME_DENIED, Outcome.OUTCOME_DENIED]
        assert not file(settings, session, "made").exists()
        fork = await bob.fork_session(session.name)
        assert fork.imposed_rules == session.imposed_rules
        # Their owner is free to change them.
        own = options_of()
        own.agent = agent.name
        assert not (await admin.create_session(own)).imposed_rules
