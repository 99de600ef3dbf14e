"""Rules hold for what the real CLI opens: through links, from the folder that it is in, whatever tool it takes."""

import asyncio
import json

from agentrpc.v1 import approval_pb2, common_pb2, event_pb2, run_pb2, session_pb2

Outcome = event_pb2.ToolCallFinished


def tool(name, **given):
    return f"[[tool: {name} {json.dumps(given)}]]"


async def conduct(client, settings, calls, *, prepare=lambda workspace: None, **options):
    """Make calls one after the other, nobody being there to allow any; their ends, and what was asked."""
    session = await client.create_session(session_pb2.Session(options=session_pb2.SessionOptions(**options)))
    workspace = settings.workspaces / session.name.removeprefix("sessions/") / "files"
    workspace.mkdir(parents=True, exist_ok=True)
    prepare(workspace)
    ends, asked = [], []
    async with asyncio.timeout(90):
        async for event in client.run(session.name, "\n[[then]]\n".join([*calls, "[[text: done]]"])):
            if event.HasField("approval_requested"):
                asked.append(event.approval_requested.approval)
                deny = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_DENY)
                await client.resolve(asked[-1].name, deny)
            elif event.HasField("tool_call_finished"):
                ends.append(event.tool_call_finished)
    assert event.run_ended.state == run_pb2.Run.STATE_SUCCEEDED
    return ends, asked, workspace


async def test_links_lead_past_no_rule(worker, client, settings):
    await worker(False)

    def prepare(workspace):
        (workspace / "link").symlink_to("/etc/passwd")
        (workspace / "secrets").mkdir()
        (workspace / "secrets" / "k").write_text("the secret")
        (workspace / "pub").symlink_to("secrets/k")
        home = settings.data_dir / "sessions" / workspace.parent.name / "home"
        (workspace / "homelink").symlink_to(home)
        (workspace / "plain").write_text("plain text")

    ends, asked, workspace = await conduct(
        client, settings,
        [
            tool("Read", file_path="link"),
            tool("Read", file_path="pub"),
            tool("Grep", pattern="secret", path="secrets", output_mode="content"),
            tool("Glob", pattern="/etc/host*"),
            tool("Write", file_path="homelink/.bash_aliases", content="touch pwned"),
            tool("Write", file_path=".git/config", content="[core]\nfsmonitor = touch pwned\n"),
            tool("Read", file_path="plain"),
            tool("Write", file_path="new", content="x"),
        ],
        prepare=prepare, tools=session_pb2.ToolSet(names=["Read", "Write", "Grep", "Glob"]),
        disallowed_tools=["Read(secrets/**)"], permission_mode=common_pb2.PERMISSION_MODE_ACCEPT_EDITS,
    )  # fmt: skip
    assert [(end.tool_name, end.denied_by) for end in ends] == [
        ("Read", "approval"), ("Read", "rule"), ("Grep", "rule"), ("Glob", "approval"), ("Write", "approval"),
        ("Write", "approval"), ("Read", ""), ("Write", ""),
    ]  # fmt: skip
    assert len(asked) == 4
    assert not any("the secret" in block.text.text for end in ends for block in end.content)
    assert not (workspace / ".git").exists()
    assert (workspace / "new").read_text() == "x"


async def test_relative_paths_are_those_of_the_folder_that_the_shell_is_in(worker, client, settings):
    await worker(False)

    def prepare(workspace):
        (workspace / "sub").mkdir()
        (workspace / "sub" / "key").write_text("the secret")

    ends, asked, _ = await conduct(
        client, settings,
        [tool("Bash", command="cd sub"), tool("Bash", command="cat key"), tool("Bash", command="echo *")],
        prepare=prepare, allowed_tools=["Bash"], disallowed_tools=["Read(/sub/key)"],
    )  # fmt: skip
    assert [end.denied_by for end in ends] == ["", "rule", ""]
    assert not asked
