"""Sessions as a whole, with the real CLI: pause, terminate, fork, rewind, and what is lost with a worker or a disk."""

import asyncio
import contextlib
import json
import shutil

import psutil
import pytest

from agentrpc.claude.launcher import Isolation
from agentrpc.client import RpcError
from agentrpc.v1 import event_pb2, run_pb2, session_pb2
from tests.isolations import usable_isolation

pytestmark = pytest.mark.asyncio(loop_scope="module")


def bash(command):
    return f"[[tool: Bash {json.dumps({'command': command})}]]"


async def create(client, **options):
    options = session_pb2.SessionOptions(allowed_tools=["Bash"], **options)
    return (await client.create_session(session_pb2.Session(options=options))).name


async def run(client, session, prompt):
    async with asyncio.timeout(60):
        return [event async for event in client.run(session, prompt)]


async def follow(client, name):
    """All events of a run that was created before."""
    async with asyncio.timeout(60):
        return [event async for event in client.watch(name.partition("/runs/")[0], run=name)]


def of(events, kind):
    return [getattr(event, kind) for event in events if event.HasField(kind)]


def answer(events):
    end = of(events, "run_ended")[0]
    assert end.state == run_pb2.Run.STATE_SUCCEEDED, end
    return end.result.text


def outputs(events):
    return ["".join(block.text.text for block in done.content) for done in of(events, "tool_call_finished")]


def processes(wanted):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.status() != psutil.STATUS_ZOMBIE and wanted(process):
                found.append(process)
    return found


def in_workspace(running, session):
    folder = str(running.workspace(session))
    return processes(lambda process: process.cwd() == folder)


async def until(happened, seconds=30):
    async with asyncio.timeout(seconds):
        while not happened():  # noqa: ASYNC110 - of processes and files nobody tells
            await asyncio.sleep(0.05)


async def cool(client, running, session):
    """Let the warm process of an idle session go."""
    await client.pause_session(session)
    await until(lambda: not in_workspace(running, session))
    await client.resume_session(session)


async def test_a_pause_in_the_middle_of_a_run_loses_and_repeats_nothing(client, running):
    session = await create(client)
    prompt = f"{bash('echo a >> log; sleep 1')}\n[[then]]\n{bash('echo b >> log')}\n[[then]]\n[[text: done]]"
    made = await client.create_run(session, prompt)
    following = asyncio.create_task(follow(client, made.name))
    log = running.workspace(session) / "log"
    await until(lambda: log.exists())
    assert (await client.pause_session(session, "a look")).HasField("pause_time")
    await until(lambda: not in_workspace(running, session))
    assert log.read_text() == "a\n"
    assert (await client.get_run(made.name)).state == run_pb2.Run.STATE_RUNNING
    await client.resume_session(session)
    events = await following
    assert answer(events) == "done"
    assert log.read_text() == "a\nb\n"
    assert len(of(events, "tool_call_started")) == 2
    assert (await client.get_run(made.name)).attempt == 1


async def test_an_idle_session_that_is_paused_keeps_no_process(client, running):
    session = await create(client)
    await run(client, session, "[[text: first words]]")
    assert in_workspace(running, session)
    await client.pause_session(session)
    await until(lambda: not in_workspace(running, session))
    made = await client.create_run(session, "[[heard: first words]]")
    await client.resume_session(session)
    assert answer(await follow(client, made.name)) == "heard 2"


async def test_terminate_leaves_nothing_of_a_running_tool(client, running):
    session = await create(client)
    marker = "sleep 6173"
    command = f"setsid sh -c 'trap \"\" TERM; {marker}' & setsid {marker} & {marker}"
    made = await client.create_run(session, bash(command))
    waiting = await client.create_run(session, "[[text: never]]")
    watched = []

    async def watch():
        watched.extend([event async for event in client.watch(session)])

    watching = asyncio.create_task(watch())
    asleep = lambda: processes(lambda process: process.cmdline() == marker.split())  # noqa: E731
    await until(lambda: len(asleep()) == 3)
    await client.terminate_session(session, "enough")
    async with asyncio.timeout(30):
        await watching
    assert not asleep()
    assert not in_workspace(running, session)
    assert [event.WhichOneof("payload") for event in watched[-2:]] == ["run_ended", "session_state_changed"]
    end = watched[-2].run_ended
    assert end.state == run_pb2.Run.STATE_CANCELLED
    assert end.stop_receipt.confirmed
    assert end.stop_receipt.process_count >= 3
    states = [(await client.get_run(each.name)).state for each in (made, waiting)]
    assert states == [run_pb2.Run.STATE_CANCELLED] * 2
    assert (await client.get_session(session)).state == session_pb2.Session.STATE_ARCHIVED
    # And its files go.
    await until(lambda: not running.workspace(session).parent.exists(), 40)
    await until(lambda: not (running.folder / session).exists(), 40)


async def test_forks_go_on_by_themselves_with_and_without_the_files(client, running):
    session = await create(client)
    events = await run(
        client, session, f"{bash('echo one > a; chmod 700 a; ln -s a b')}\n[[then]]\n[[text: first words]]"
    )
    at = of(events, "assistant_message")[-1].transcript_uuid
    await run(client, session, "[[text: second words]]")
    whole = (await client.fork_session(session, copy_workspace=True)).name
    early = (await client.fork_session(session, transcript_uuid=at)).name
    look = f"{bash('pwd; ls; cat b 2>/dev/null; true')}\n[[then]]\n[[heard: first words]]\n[[heard: second words]]"
    seen = {name: await run(client, name, look) for name in (session, whole, early)}
    assert outputs(seen[whole])[0].split() == [str(running.workspace(whole)), "a", "b", "one"]
    assert outputs(seen[early]) == [str(running.workspace(early))]
    heard = {name: [b.text.text for m in of(events, "assistant_message") for b in m.blocks if b.text.text.startswith("heard")]
             for name, events in seen.items()}  # fmt: skip
    assert heard[session] == heard[whole] == ["heard 2", "heard 2"]
    assert heard[early] == ["heard 2", "heard 0"]
    assert of(seen[early], "run_started")[0].process_start == event_pb2.PROCESS_START_RESUMED
    # What the one does is not the other's.
    await run(client, whole, bash("echo two > a"))
    assert (running.workspace(session) / "a").read_text() == "one\n"
    assert not list(running.workspace(early).iterdir())


async def test_a_fork_in_the_middle_of_a_call_goes_on(client):
    session = await create(client)
    events = await run(client, session, f"{bash('echo one')}\n[[then]]\n[[text: words]]")
    call = next(m for m in of(events, "assistant_message") if any(b.HasField("tool_use") for b in m.blocks))
    fork = (await client.fork_session(session, transcript_uuid=call.transcript_uuid)).name
    events = await run(client, fork, f"[[heard: words]]\n{bash('echo two')}")
    assert outputs(events) == ["two"]


async def test_a_rewind_takes_conversation_and_files_back(client, running):
    session = await create(client, checkpoints=True)
    await run(client, session, f"{bash('echo one > a; ln -s /etc/hostname link')}\n[[then]]\n[[text: first words]]")
    second = await run(
        client, session, f"{bash('echo two > a; rm link; echo x > b')}\n[[then]]\n[[text: second words]]"
    )
    await run(client, session, "[[text: third words]]")
    name = next(event.run for event in second if event.HasField("run_started"))
    rewound = await client.rewind_session(name, restore_workspace=True)
    assert rewound.state == session_pb2.Session.STATE_IDLE
    look = bash("ls; cat a; readlink link")
    events = await run(
        client, session, f"{look}\n[[then]]\n[[heard: first words]]\n[[heard: second words]]\n[[heard: third words]]"
    )
    assert outputs(events)[0].split() == ["a", "link", "one", "/etc/hostname"]
    said = [b.text.text for m in of(events, "assistant_message") for b in m.blocks if b.text.text.startswith("heard")]
    assert said == ["heard 2", "heard 0", "heard 0"]
    if usable_isolation() is Isolation.BUBBLEWRAP:
        assert outputs(await run(client, session, bash("ls -A .."))) == ["files"]
    back = [e async for e in _log(client, session) if e.HasField("conversation_rewound")]
    assert back[0].conversation_rewound.workspace_restored


async def test_a_rewind_to_the_first_run_begins_anew(client):
    session = await create(client)
    events = await run(client, session, "[[text: first words]]")
    name = next(event.run for event in events if event.HasField("run_started"))
    await client.rewind_session(name)
    assert answer(await run(client, session, "[[heard: first words]]")) == "heard 0"
    assert answer(await run(client, session, "[[heard: heard]]")) == "heard 2"


async def _log(client, session):
    last = (await client.get_session(session)).last_sequence
    async for event in client.watch(session):
        yield event
        if event.sequence >= last:
            return


async def test_too_many_files_are_no_checkpoint_and_hinder_no_run(client, running):
    session = await create(client, checkpoints=True)
    await run(client, session, bash("truncate -s 1G big"))
    events = await run(client, session, "[[text: on]]")
    assert answer(events) == "on"
    assert [notice.code for notice in of(events, "notice")] == ["checkpoint_too_large"]
    name = next(event.run for event in events if event.HasField("run_started"))
    with pytest.raises(RpcError) as caught:
        await client.rewind_session(name, restore_workspace=True)
    assert caught.value.reason == "STATE_INVALID"
    assert (running.workspace(session) / "big").exists()


async def test_a_session_goes_on_without_its_local_state(client, running):
    session = await create(client)
    await run(client, session, f"{bash('echo one > a')}\n[[then]]\n[[text: first words]]")
    await cool(client, running, session)
    shutil.rmtree(running.folder / session)
    events = await run(client, session, f"{bash('cat a')}\n[[then]]\n[[heard: first words]]")
    assert outputs(events) == ["one"]
    assert answer(events) == "heard 2"


@pytest.mark.parametrize("warm", [True, False])
async def test_a_lost_workspace_is_told_and_not_replaced(client, running, warm):
    session = await create(client)
    await run(client, session, bash("echo one > a"))
    if not warm:
        await cool(client, running, session)
    files = running.workspace(session)
    kept = files.with_name("elsewhere")
    files.rename(kept)
    events = await run(client, session, bash("echo two > a"))
    end = of(events, "run_ended")[0]
    assert (end.state, end.error.reason) == (run_pb2.Run.STATE_FAILED, run_pb2.RunError.REASON_WORKSPACE_LOST)
    assert str(running.folder) not in end.error.message
    assert not files.exists()
    assert not of(events, "tool_call_started")
    # Restored, it is as it was.
    kept.rename(files)
    assert outputs(await run(client, session, bash("cat a"))) == ["one"]


async def test_a_worker_that_cannot_write_says_so_and_goes_on(client, running):
    session = await create(client)
    # Stands for a full disk: nothing can be written where the CLI's files go.
    (running.folder / session).touch()
    end = of(await run(client, session, "[[text: no]]"), "run_ended")[0]
    assert (end.state, end.error.reason) == (run_pb2.Run.STATE_FAILED, run_pb2.RunError.REASON_AGENT_START_FAILED)
    assert str(running.folder) not in end.error.message
    (running.folder / session).unlink()
    assert answer(await run(client, session, "[[text: yes]]")) == "yes"
