"""The fake CLI, through the real launcher: each thing that it can do once, and that it does as the real one does."""

import asyncio
import json
import signal
import time

import psutil
import pytest

from agentrpc import clock
from agentrpc.claude.agent import AgentCrashedError, AgentFaultError, AgentProcess, AgentSpec, AgentStartError
from agentrpc.claude.launcher import SessionPaths, stop_tree
from agentrpc.claude.process_usage import memory_of, processes_below
from agentrpc.claude.revival import Conversation, OpenCall
from agentrpc.domain.gate import Verdict
from agentrpc.testkit import write_cli
from agentrpc.v1 import approval_pb2, common_pb2, event_pb2, run_pb2, session_pb2
from tests.isolations import isolations, usable_isolation

ALLOW = Verdict(allow=True)


def bash(command, **more):
    return f"[[tool: Bash {json.dumps({'command': command, **more})}]]"


class Live:
    """A fake CLI that lives, with all that it has said."""

    def __init__(self, agent, spec):
        self.agent, self.spec, self.paths = agent, spec, spec.paths
        self.frames, self.asked, self.lines = [], [], []
        self.results = asyncio.Queue()
        self.draining = None

    async def drain(self):
        try:
            async for some in self.agent.frames():
                for frame in some if isinstance(some, list) else [some]:
                    self.frames.append(frame)
                    if frame["type"] == "result":
                        self.results.put_nowait(frame)
        except (AgentCrashedError, AgentFaultError) as error:
            self.results.put_nowait(error)

    async def say(self, text):
        """A turn: its result, or the crash that it ended with."""
        await self.begin(text)
        return await self.result()

    async def begin(self, text):
        uuid = str(clock.uuid7())
        await self.agent.send_prompt(text, uuid=uuid)
        return uuid

    async def result(self, timeout=15):
        async with asyncio.timeout(timeout):
            return await self.results.get()

    async def until(self, condition, timeout=10):
        async with asyncio.timeout(timeout):
            while not (found := condition()):  # noqa: ASYNC110 - files and processes ring no bell
                await asyncio.sleep(0.005)
        return found

    def kinds(self):
        return [frame.get("subtype") or frame["type"] for frame in self.frames]

    def texts(self):
        blocks = [
            block for frame in self.frames if frame["type"] == "assistant" for block in frame["message"]["content"]
        ]
        return [block["text"] for block in blocks if block["type"] == "text"]

    def tool_results(self):
        blocks = [frame["message"]["content"] for frame in self.frames if frame["type"] == "user"]
        return [block for content in blocks for block in content if block["type"] == "tool_result"]

    def process(self):
        """The CLI's own process."""
        found = [p for p in tree(self.agent.pid) if any("cli-under-test" in word for word in p.cmdline()[1:3])]
        return found[-1]


def tree(pid):
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


@pytest.fixture
async def launch(tmp_path):
    """Start fake CLIs: `await launch(...)`. They are stopped at the end."""
    lives = []

    async def start(directives="", gate=None, *, isolation=None, resume=None, carry=None, timeout=10, **options):
        session_id = resume.spec.session_id if resume else clock.uuid7()
        paths = SessionPaths.under(tmp_path, session_id, tmp_path / "workspaces" / str(session_id))
        paths.create()
        paths.workspace.mkdir(parents=True, exist_ok=True)
        if resume and resume.lines:
            Conversation(resume.lines).write(paths, str(session_id))
        asked, lines = [], []

        async def judge(call):
            asked.append(call)
            return await gate(call) if gate else ALLOW

        spec = AgentSpec(
            session_id=session_id, claude_session_id=str(session_id), resume=resume is not None,
            options=session_pb2.SessionOptions(**options), paths=paths, gateway_url="http://127.0.0.1:9", token="t",
            isolation=isolation or usable_isolation(), gate=judge,
            on_transcript=lambda subpath, some: lines.extend((subpath, line) for line in some), on_fault=pytest.fail,
            carry=carry, cli_path=write_cli(tmp_path / "cli-under-test", directives),
        )  # fmt: skip
        live = Live(await AgentProcess.start(spec, timeout=timeout), spec)
        live.asked, live.lines = asked, lines
        live.draining = asyncio.create_task(live.drain())
        lives.append(live)
        return live

    yield start
    for live in lives:
        await live.agent.stop(grace=0.1)
        live.draining.cancel()
        await asyncio.gather(live.draining, return_exceptions=True)
    # The pipes of processes that have just ended are closed by the loop, which the test's end would stop before.
    await asyncio.sleep(0.05)


# ---- What the real one does ----


@pytest.mark.parametrize("isolation", isolations())
async def test_a_turn_in_each_isolation(launch, isolation):
    live = await launch(isolation=isolation)
    uuid = await live.begin(
        f"[[text: hello world]]\n{bash('echo $((6*7)) > f; cat f; echo err >&2; exit 3')}\n[[then]]\n[[text: ok]]"
    )
    result = await live.result()
    assert result["user_message_uuids"] == [uuid]
    assert (result["subtype"], result["result"], result["num_turns"]) == ("success", "ok", 2)
    assert result["model_usage_since_last_result"]
    assert live.tool_results()[0]["content"] == "Exit code 3\n42\nerr"
    assert (live.paths.workspace / "f").read_text() == "42\n"
    assert [call.input for call in live.asked] == [{"command": "echo $((6*7)) > f; cat f; echo err >&2; exit 3"}]
    frames = {frame["uuid"] for frame in live.frames if frame["type"] in {"assistant", "user"}}
    entries = [json.loads(line) for _, line in live.lines]
    said = [entry for entry in entries if entry["type"] in {"assistant", "user"}]
    assert {entry["uuid"] for entry in said} == frames | {uuid}
    assert [entry["parentUuid"] for entry in said] == [None, *(entry["uuid"] for entry in said[:-1])]
    assert memory_of(processes_below([live.agent.pid]), in_files=0, held=0) < 60 * 1024 * 1024


async def test_without_directives_and_with_wrong_ones(launch):
    live = await launch()
    assert "no model" in (await live.say("hello"))["result"]
    wrong = await live.say("[[nonsense: 1]]")
    assert wrong["is_error"]
    assert wrong["api_error_status"] == 400


async def test_kinds_of_blocks_and_what_the_provider_does(launch):
    live = await launch(max_turns=3)
    await live.say(
        "[[thinking: let me see]]\n[[redacted: x]]\n[[search: cats]]\n[[deltas: 200 size=4]]\n[[usage: input=7 output=9]]"
    )
    kinds = [frame["message"]["content"][0]["type"] for frame in live.frames if frame["type"] == "assistant"]
    assert kinds == ["thinking", "redacted_thinking", "server_tool_use", "web_search_tool_result", "text"]
    deltas = [frame for frame in live.frames if frame["type"] == "stream_event" and "delta" in frame["event"]]
    pieces = [frame["event"]["delta"].get("text") for frame in deltas]
    assert [piece for piece in pieces if piece] == [f"{at:03d} " for at in range(200)]
    assert (await live.say("[[error: 400]]"))["api_error_status"] == 400
    retried = await live.say("[[error: 529 times=2]]\n[[text: at last]]")
    assert retried["result"] == "at last"
    assert live.kinds().count("api_retry") == 2
    many = await live.say(f"[[repeat: 9]]\n{bash('true')}")
    assert many["subtype"] == "error_max_turns"
    assert len(live.asked) == 3


async def test_what_reads_runs_in_parallel_and_what_writes_in_turn(launch):
    live = await launch()
    began = time.monotonic()
    await live.say("\n".join(bash(f"sleep 0.{n}; echo {n}") for n in (7, 5)) + "\n[[then]]\n[[text: ok]]")
    assert time.monotonic() - began < 1.1
    assert [block["content"] for block in live.tool_results()] == ["5", "7"]
    await live.say(
        '[[tool: Write {"file_path": "a", "content": "x"}]]\n[[tool: Read {"file_path": "a"}]]\n[[tool: Nope {}]]\n[[tool: Bash {}]]'
    )
    written, read, unknown, invalid = live.tool_results()[2:]
    assert read["content"] == "1\tx"
    assert not written["is_error"]
    assert "No such tool" in unknown["content"]
    assert "`command` is missing" in invalid["content"]
    assert [call.tool_name for call in live.asked] == ["Bash", "Bash", "Write", "Read"]


async def test_hooks_deny_and_change_and_people_are_asked(launch):
    async def gate(call):
        if call.tool_name == "AskUserQuestion":
            return Verdict(
                allow=True, updated_input={"questions": call.input["questions"], "answers": {"Colour?": "Blue"}}
            )
        if call.tool_name == "ExitPlanMode":
            return ALLOW
        if call.input["command"] == "touch no":
            return Verdict(allow=False, message="not today")
        return Verdict(allow=True, updated_input={"command": "echo changed"})

    live = await launch(gate=gate, permission_mode=common_pb2.PERMISSION_MODE_PLAN)
    question = json.dumps({"questions": [{"question": "Colour?", "options": []}]})
    prompt = f'{bash("touch no")}\n{bash("touch yes")}\n[[tool: AskUserQuestion {question}]]\n[[tool: ExitPlanMode {{"plan": "p"}}]]'
    result = await live.say(prompt)
    texts = [block["content"] for block in live.tool_results()]
    assert texts[0] == "PreToolUse:Bash hook error: not today"
    assert texts[1] == "changed"
    assert '"Colour?"="Blue"' in texts[2]
    assert "approved" in texts[3]
    assert [denial["tool_input"] for denial in result["permission_denials"]] == [{"command": "touch no"}]
    assert [frame.get("permissionMode") for frame in live.frames if frame.get("subtype") == "status"][1:2] == [
        "default"
    ]
    assert not list(live.paths.workspace.iterdir())


async def test_interrupts(launch):
    waiting = asyncio.Event()

    async def gate(call):
        if call.input["command"] == "wait":
            waiting.set()
            await asyncio.Event().wait()
        return ALLOW

    live = await launch(gate=gate)
    await live.begin(bash("trap 'echo term > got' TERM; echo $$ > pid; sleep 60 & wait"))
    await live.until((live.paths.workspace / "pid").exists)
    await live.agent.interrupt()
    result = await live.result()
    assert (result["subtype"], result["terminal_reason"], result["num_turns"]) == (
        "error_during_execution",
        "aborted_tools",
        3,
    )
    mark = next(frame for frame in live.frames if "tool_result_meta" in frame)["tool_result_meta"][0]
    assert mark["non_execution_kind"] == "user-rejected"
    assert (live.paths.workspace / "got").exists()

    await live.begin("[[text: a b c d e f g h]]\n[[slow: 100]]")
    await live.until(lambda: any("delta" in frame.get("event", {}) for frame in live.frames[-2:]))
    await live.agent.interrupt()
    assert (await live.result())["terminal_reason"] == "aborted_streaming"
    assert next(frame for frame in live.frames if frame.get("aborted"))["message"]["content"][0]["text"].startswith(
        "a "
    )

    await live.begin(bash("wait"))
    await waiting.wait()
    await live.agent.interrupt()
    assert (await live.result())["terminal_reason"] == "aborted_tools"
    await live.agent.interrupt()
    assert (await live.say("[[text: still here]]"))["result"] == "still here"


async def test_prompts_queue(launch):
    live = await launch()
    first = await live.begin("[[delay: 0.3]]\n[[text: one]]")
    second = await live.begin("[[text: two]]")
    results = [await live.result(), await live.result()]
    assert [result["result"] for result in results] == ["one", "two"]
    assert [result["user_message_uuids"] for result in results] == [[first], [second]]
    assert [result["queued_turn_count"] for result in results] == [1, 0]


# ---- Resume ----


async def killed_in(launch, prompt, until):
    live = await launch()
    await live.begin(prompt)
    await live.until(lambda: until(live))
    await live.until(lambda: any(b'"tool_use"' in line for _, line in live.lines))
    await live.agent.stop(grace=0.01)
    return live


async def test_a_resumed_process_goes_on_with_the_script(launch):
    live = await launch()
    await live.begin(
        f"[[text: one]]\n{bash('true')}\n[[then]]\n[[delay: 30]]\n[[text: two]]\n[[then]]\n[[text: three]]"
    )
    await live.until(live.tool_results)
    await live.until(lambda: any(b'"tool_result"' in line for _, line in live.lines))
    await live.agent.stop(grace=0.01)
    again = await launch(resume=live)
    await again.begin("go on")
    await asyncio.sleep(0.3)
    assert again.texts() == []


async def test_an_open_call_is_closed_at_the_next_prompt(launch):
    live = await killed_in(launch, bash("sh -c 'exec sleep 60'") + "\n[[then]]\n[[text: x]]", lambda live: live.asked)
    again = await launch(resume=live)
    assert (await again.say("[[text: back]]"))["result"] == "back"
    assert again.asked == []
    entries = [json.loads(line) for _, line in again.lines]
    said = [entry["message"]["content"] for entry in entries if entry["type"] in {"user", "assistant"}]
    assert "outcome is unknown" in said[0][0]["content"]
    assert said[1][0]["text"] == "No response requested."


async def deferred(launch, command):
    """A session whose process was lost while a call waited; its transcript says that a hook has deferred it."""
    live = await launch(gate=lambda call: asyncio.Event().wait())
    await live.begin(bash(command) + "\n[[then]]\n[[text: finished]]")
    await live.until(lambda: live.asked)
    await live.until(lambda: any(b'"tool_use"' in line for _, line in live.lines))
    # The end of its input would deny the call first, as with the real one.
    await stop_tree(live.agent.pid)
    call = live.asked[0]
    last = [json.loads(line) for _, line in live.lines if b'"parentUuid"' in line][-1]
    attachment = {"type": "hook_deferred_tool", "toolUseID": call.tool_use_id, "toolName": call.tool_name,
                  "toolInput": call.input, "hookName": "PreToolUse:Bash", "hookEvent": "PreToolUse",
                  "permissionMode": "default"}  # fmt: skip
    entry = {"parentUuid": last["uuid"], "type": "attachment", "attachment": attachment, "uuid": str(clock.uuid7())}
    live.lines.append(("", json.dumps(entry).encode()))
    return live


async def test_a_deferred_call_is_taken_up_without_a_prompt(launch):
    live = await deferred(launch, "echo ran >> file; cat file")
    again = await launch(resume=live)
    result = await again.result()
    assert result["result"] == "finished"
    assert "user_message_uuids" not in result
    assert [call.tool_use_id for call in again.asked] == [live.asked[0].tool_use_id]
    assert [block["content"] for block in again.tool_results()] == ["ran"]
    meta = [json.loads(line) for _, line in again.lines if b'"isMeta":true' in line]
    assert [entry["message"]["content"] for entry in meta] == ["Continue from where you left off."]
    assert (await again.say("[[text: next]]"))["result"] == "next"


async def test_a_deferred_call_may_be_taken_up_before_there_are_hooks(launch):
    for command, content in [("echo > file", "the call did not pass the gate"), ("echo hi", "hi")]:
        live = await deferred(launch, command)
        again = await launch("[[deferred: unhooked]]", resume=live)
        assert (await again.result())["result"] == "finished"
        assert again.asked == []
        assert [block["content"] for block in again.tool_results()] == [content]


async def test_a_carried_call_passes_the_gate_whoever_asks_first(launch):
    for directives in ("", "[[deferred: unhooked]]"):
        live = await deferred(launch, "echo hi")
        call = live.asked[0]
        carry = OpenCall(call.tool_use_id, call.tool_name, call.input)
        again = await launch(directives, resume=live, carry=carry)
        assert (await again.result())["result"] == "finished"
        assert [call.tool_use_id for call in again.asked] == [carry.tool_use_id]
        assert [block["content"] for block in again.tool_results()] == ["hi"]


async def test_nothing_to_resume(launch):
    class Nobody:
        def __init__(self, spec):
            self.spec, self.lines = spec, []

    live = await launch()
    live.paths.config.rename(live.paths.root / "elsewhere")
    with pytest.raises(AgentStartError, match="ended while it was starting") as caught:
        await launch(resume=Nobody(live.spec))
    assert "No conversation found" in caught.value.detail


# ---- What goes wrong at the start ----


@pytest.mark.parametrize("where", ["[[crash]]", "[[crash: initialize status=7]]", "[[exit: 3]]", "[[no_hooks]]"])
async def test_it_ends_at_the_start(launch, where):
    with pytest.raises(AgentStartError, match="ended while it was starting"):
        await launch(f"{where}\n[[stderr: so it is]]")


@pytest.mark.parametrize("where", ["[[hang]]", "[[hang: initialize]]\n[[ignore_sigterm]]", "[[delay: 30]]"])
async def test_it_hangs_at_the_start(launch, where):
    began = time.monotonic()
    with pytest.raises(AgentStartError, match="did not answer"):
        await launch(where, timeout=0.5)
    assert time.monotonic() - began < 5
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if any("cli-under-test" in w for w in p.info["cmdline"] or [])
    ]


async def test_faults_of_the_first_starts_and_of_one_session(launch, tmp_path):
    live = await launch('[[starts: 1]]\n[[frame: {"type": "early"}]]')
    await live.say("[[text: x]]")
    assert live.kinds()[0] == "early"
    await live.agent.stop(grace=0.5)
    again = await launch('[[starts: 1]]\n[[frame: {"type": "early"}]]', resume=live)
    await again.say("[[text: x]]")
    assert "early" not in again.kinds()
    await again.agent.stop(grace=0.5)
    (live.paths.home / "fake-cli").write_text("[[crash]]")
    with pytest.raises(AgentStartError):
        await launch(resume=live)


# ---- What goes wrong in a turn ----


async def test_it_crashes(launch):
    for prompt, status in [
        ("[[crash: start status=5]]\n[[text: a b c d]]", 5),
        ("[[crash: text signal=9]]\n[[text: a b c d]]", None),
        (f"[[crash: tool]]\n{bash('sleep 60')}", 1),
        ("[[text: a]]\n[[crash: end status=6]]", 6),
        ("[[text: a]]\n[[exit: 0]]", 0),
    ]:
        live = await launch()
        crash = await live.say(prompt)
        assert isinstance(crash, AgentCrashedError), prompt
        assert status is None or crash.exit_code in {status, None if status == 0 else status}, prompt
        parts = [
            frame["event"]["delta"]["text"]
            for frame in live.frames
            if "text" in frame.get("event", {}).get("delta", {})
        ]
        assert len(parts) == (2 if "crash: text" in prompt else 1 if "end" in prompt or "exit" in prompt else 0), prompt
        assert (await live.agent.stop()).confirmed


@pytest.mark.parametrize("where", ["start", "text", "tool", "end"])
async def test_it_hangs_until_an_interrupt(launch, where):
    live = await launch()
    await live.begin(f"[[hang: {where}]]\n" + ("[[text: a b c d]]" if where != "tool" else bash("true")))
    with pytest.raises(TimeoutError):
        await live.result(0.5)
    await live.agent.interrupt()
    assert (await live.result())["subtype"] == "error_during_execution"


async def test_it_is_deaf(launch):
    live = await launch()
    await live.begin("[[deaf]]\n[[hang: text]]\n[[text: a b]]")
    await live.until(lambda: "init" in live.kinds())
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(live.agent.interrupt(), 0.5)
    assert (await live.agent.stop(grace=0.2)).confirmed


@pytest.mark.parametrize("kind", ["delta", "message", "progress", "unknown"])
async def test_it_floods(launch, kind):
    live = await launch()
    await live.say(f"[[flood: 5000 kind={kind} size=50]]\n[[text: over]]")
    names = {"message": "assistant", "delta": "stream_event", "progress": "tool_progress", "unknown": "flood"}
    assert sum(frame["type"] == names[kind] for frame in live.frames) >= 5000


async def test_long_lines_unknown_frames_and_requests(launch):
    live = await launch()
    await live.say(
        '[[huge: 2000000]]\n[[huge: 2000000 kind=unknown]]\n[[frame: {"type": "mystery", "n": 1}]]\n[[line: not JSON]]\n[[control: mystery]]'
    )
    assert len(live.texts()[0]) == 2_000_000
    assert {"type": "mystery", "n": 1} in live.frames
    assert len(next(frame for frame in live.frames if frame["type"] == "huge")["padding"]) == 2_000_000
    assert live.texts()[-1] == "error: Unsupported control request subtype: mystery"
    fault = await live.say('[[line: {"type": broken]]')
    assert isinstance(fault, AgentFaultError)


@pytest.mark.parametrize(
    "frame",
    [{"type": "control_request"}, {"type": "control_request", "request_id": "1"}, {"type": "control_response", "response": 1},
     {"type": "transcript_mirror", "entries": []}],
)  # fmt: skip
async def test_a_control_message_that_cannot_be_read_is_a_fault_and_no_crash(launch, frame):
    live = await launch()
    fault = await live.say(f"[[frame: {json.dumps(frame)}]]")
    assert isinstance(fault, AgentFaultError)
    assert "a control message that cannot be read" in str(fault)


@pytest.mark.parametrize("isolation", isolations())
async def test_it_resists_its_end_and_leaves_children(launch, isolation):
    live = await launch(isolation=isolation)
    await live.say("[[ignore_sigterm]]\n[[stay]]\n[[memory: 30]]\n[[children: setsid term stop]]\n[[text: x]]")
    process = live.process()
    assert process.memory_info().rss > 35 * 1024 * 1024
    process.send_signal(signal.SIGTERM)
    await live.until(lambda: [p for p in process.children() if p.status() == psutil.STATUS_STOPPED])
    children = process.children(recursive=True)
    assert len(children) == 3
    for child in children:
        child.send_signal(signal.SIGTERM)
    receipt = await live.agent.stop(grace=0.3)
    assert receipt.confirmed
    assert not [p for p in [process, *children] if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


async def test_sigterm_ends_it_and_its_tool(launch):
    live = await launch()
    await live.begin(bash("sh -c 'echo > began; exec sleep 61'"))
    await live.until((live.paths.workspace / "began").exists)
    process = live.process()
    tools = process.children(recursive=True)
    process.send_signal(signal.SIGTERM)
    crash = await live.result()
    assert crash.exit_code == 143
    assert not [p for p in tools if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


async def test_results_that_lack_and_results_that_double(launch):
    live = await launch()
    await live.begin("[[text: x]]\n[[no_result]]")
    await live.until(lambda: "assistant" in live.kinds())
    await live.say("[[text: y]]\n[[duplicate_result]]")
    assert (await live.result())["result"] == "y"
    assert live.kinds().count("success") == 2


async def test_the_end_of_the_input_ends_it_in_good_order(launch):
    live = await launch()
    await live.say("[[text: x]]")
    began = time.monotonic()
    await live.agent.stop(grace=5)
    assert time.monotonic() - began < 2
    assert b"cost-state" in live.lines[-1][1]


# ---- The same events as with the real one ----


ALLOW_IT = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_ALLOW)
PROMPTS = {
    "text": "[[thinking: let me see]]\n[[text: hello world]]",
    "approval": f"[[text: hi]]\n{bash('touch made; echo made')}\n[[then]]\n[[text: done]]",
    "parallel": "\n".join(bash(f"sleep 0.{n}; echo {n}") for n in (5, 1)) + "\n[[then]]\n[[text: ok]]",
    "denied": f"{bash('git push')}\n[[then]]\n[[text: ok]]",
    "files": '[[tool: Write {"file_path": "WORK/a", "content": "x"}]]\n[[then]]\n[[tool: Read {"file_path": "WORK/a"}]]\n[[then]]\n[[text: ok]]',
    "failing": f"{bash('echo no; exit 3')}\n[[tool: Nope {{}}]]\n[[then]]\n[[text: ok]]",
    "interrupted": f"[[text: hi]]\n{bash('sleep 0.1; exec sleep 61')}\n[[then]]\n[[text: ok]]",
    "error": "[[error: 400]]",
}


async def events_of(client, settings, prompt):
    options = session_pb2.SessionOptions(
        allowed_tools=["Bash(sleep:*)", "Bash(echo:*)", "Bash(exit:*)", "Bash(exec:*)", "Read"], disallowed_tools=["Bash(git:*)"],
        permission_mode=common_pb2.PERMISSION_MODE_ACCEPT_EDITS,
    )  # fmt: skip
    name = (await client.create_session(session_pb2.Session(options=options))).name
    events = []
    async with asyncio.timeout(30):
        workspace = settings.workspaces / name.removeprefix("sessions/") / "files"
        prompt = prompt.replace("WORK", str(workspace))
        async for event in client.run(name, prompt):
            events.append(event)
            if event.HasField("tool_call_started") and "sleep 61" in prompt:
                await client.interrupt(event.run)
            if event.HasField("approval_requested"):
                await client.resolve(event.approval_requested.approval.name, ALLOW_IT)
    return [event for event in events if event.sequence]


def outline(events):
    """Kinds of events, with what tells outcomes apart. The end of a message and what its calls do next are a race."""
    kinds = []
    for event in events:
        kind = event.WhichOneof("payload")
        if kind == "tool_call_finished":
            kind += f" {event_pb2.ToolCallFinished.Outcome.Name(event.tool_call_finished.outcome)}"
        elif kind == "run_ended":
            kind += f" {run_pb2.Run.State.Name(event.run_ended.state)} {event.run_ended.result.turn_count}"
        kinds.append(kind)
    return [kind for kind in kinds if kind != "message_completed"], kinds.count("message_completed")


async def test_events_are_those_of_the_real_cli(worker, client, settings):
    outlines = []
    for fake in (False, True):
        host = await worker(fake)
        outlines.append({name: outline(await events_of(client, settings, prompt)) for name, prompt in PROMPTS.items()})
        await host.stop(1)
    real, faked = outlines
    assert "approval_requested" in real["approval"][0]
    assert real["parallel"][0].count("tool_call_finished OUTCOME_SUCCEEDED") == 2
    assert "tool_call_finished OUTCOME_INTERRUPTED" in real["interrupted"][0]
    assert faked == real


async def test_runs_meet_faults(worker, client, settings):
    await worker(True, agent_start_timeout=2)
    crashed = await events_of(client, settings, "[[crash: text]]\n[[text: a b c]]")
    assert [event.run_started.attempt for event in crashed if event.HasField("run_started")] == [1, 2, 3]
    assert crashed[-1].run_ended.error.reason == run_pb2.RunError.REASON_POISON_RUN
    raw = await events_of(client, settings, '[[frame: {"type": "mystery"}]]\n[[flood: 300 kind=unknown]]\n[[text: x]]')
    assert sum(event.HasField("raw_frame") for event in raw) == 301
    twice = await events_of(client, settings, "[[text: x]]\n[[duplicate_result]]")
    assert [event.run_ended.result.text for event in twice if event.HasField("run_ended")] == ["x"]
