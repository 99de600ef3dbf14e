"""The network of agents and tasks: checked where it is stored, and carried to sessions as a whole."""

import pytest

from agentrpc.client import RpcError
from agentrpc.v1 import agent_pb2, agent_service_pb2, session_pb2, task_pb2, task_service_pb2

LISTED = session_pb2.NetworkOptions(
    mode="MODE_LISTED", allowed=["example.com:443", "*.example.org"], denied=["x.example.org"]
)
NONE = session_pb2.NetworkOptions(mode="MODE_NONE")
WRONG = session_pb2.NetworkOptions(denied=["example.com/path"])


def options(network):
    return session_pb2.SessionOptions(network=network)


async def agent(client, network):
    request = agent_service_pb2.CreateAgentRequest(
        agent=agent_pb2.Agent(display_name="a"), version=agent_pb2.AgentVersion(options=options(network))
    )
    return await client.call(client.agents.CreateAgent, request)


async def task(client, network):
    request = task_service_pb2.CreateTaskRequest(
        task=task_pb2.Task(display_name="t", prompt_template="say hi", options=options(network))
    )
    return await client.call(client.tasks.CreateTask, request)


async def test_sessions_get_the_network_of_their_agent_or_their_own(client):
    made = await agent(client, LISTED)
    session = await client.create_session(session_pb2.Session(agent=made.name))
    assert session.options.network == LISTED
    session = await client.create_session(session_pb2.Session(agent=made.name, options=options(NONE)))
    assert session.options.network == NONE
    session = await client.create_session(session_pb2.Session())
    assert not session.options.HasField("network")


async def test_a_task_has_one_too(client):
    made = await task(client, LISTED)
    assert made.options.network == LISTED


@pytest.mark.parametrize("make", [agent, task])
async def test_what_is_no_destination_is_refused_wherever_it_is_stored(client, make):
    with pytest.raises(RpcError, match=r"options\.network\.denied\[0\]:.*has no path") as caught:
        await make(client, WRONG)
    assert caught.value.reason == "FIELD_INVALID"
