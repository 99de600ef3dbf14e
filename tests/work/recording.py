"""What the real CLI writes and says with the scripted model, and the shapes of it.

`python -m tests.work.recording [CLI]` writes the golden files of a CLI, the installed one if none is named: see
`scripts/upgrade-cli`. They stand by version: transcripts, frames, and what the CLI offers the model.
"""

import asyncio
import contextlib
import json
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import pytest
from claude_agent_sdk import project_key_for_directory

from agentrpc import clock
from agentrpc.claude.agent import AgentCrashedError, AgentProcess, AgentSpec
from agentrpc.claude.launcher import SessionPaths, stop_tree
from agentrpc.claude.revival import Conversation
from agentrpc.claude.transcripts import encode_entry
from agentrpc.claude.version import cli_version
from agentrpc.domain.gate import Verdict
from agentrpc.embedded.scripted_model import ScriptedModel
from agentrpc.v1 import session_pb2
from tests.isolations import reaching

FRAMES = Path(__file__).parent.parent / "frames"
GOLDEN = FRAMES / "transcripts"
RECORDED = FRAMES / "recorded"
# Deeper than this a shape says only "object": there it is the model's, the tool's or the user's business.
DEPTH = 3
OPAQUE = {
    "input",
    "toolUseResult",
    "tool_use_result",
    "modelUsage",
    "model_usage_since_last_result",
    "rendered",
    "snapshot",
}
ALLOW = Verdict(allow=True)


def bash(command, **more):
    return f"[[tool: Bash {json.dumps({'command': command, **more})}]]"


class Recorder:
    """One session of the real CLI with all that it writes into its transcript.

    Args:
        folder: For its files.
        url: The scripted model.
        cli: Another CLI than the installed one.
        stored: (subpath, line) of a conversation to go on from.
        carry: Its call that is to be taken up.
    """

    def __init__(self, folder, url, cli=None, stored=(), carry=None):
        self.lines = []
        self.frames = []
        self.gate = {}
        self.judged = []
        self._results = asyncio.Queue()
        session_id = clock.uuid7()
        self.paths = SessionPaths.under(folder, session_id, folder / "workspaces" / str(session_id))
        self.paths.create()
        self.paths.workspace.mkdir(parents=True, exist_ok=True)
        claude_session_id = str(session_id)
        if stored:
            claude_session_id = next(
                entry["sessionId"] for _, line in stored if "sessionId" in (entry := json.loads(line))
            )
            Conversation(stored).write(self.paths, claude_session_id, carry=carry)
        self._spec = AgentSpec(
            session_id=session_id, claude_session_id=claude_session_id, resume=bool(stored), cli_path=cli, carry=carry,
            options=session_pb2.SessionOptions(), paths=self.paths, token="t", gate=self._judge, **reaching(url),
            on_transcript=lambda subpath, some: self.lines.extend((subpath, line) for line in some),
            on_fault=pytest.fail,
        )  # fmt: skip

    async def __aenter__(self):
        self._agent = await AgentProcess.start(self._spec, timeout=60)
        self._draining = asyncio.create_task(self._drain())
        return self

    async def __aexit__(self, *_):
        await self._agent.stop(grace=2)
        await asyncio.gather(self._draining, return_exceptions=True)
        # The pipes of processes that have just ended are closed by the loop, which its end would stop before.
        await asyncio.sleep(0.05)

    @property
    def pid(self):
        return self._agent.pid

    async def _judge(self, call):
        self.judged.append(call)
        verdict = self.gate.get(call.tool_name, ALLOW)
        return verdict if isinstance(verdict, Verdict) else await verdict(call)

    async def _drain(self):
        with contextlib.suppress(AgentCrashedError):
            async for frames in self._agent.frames():
                for frame in frames:
                    self.frames.append(frame)
                    if frame["type"] == "result":
                        self._results.put_nowait(frame)

    async def say(self, text):
        """A whole turn; its result."""
        await self.begin(text)
        return await self.result()

    async def begin(self, text):
        uuid = str(clock.uuid7())
        await self._agent.send_prompt(text, uuid=uuid)
        return uuid

    async def result(self):
        async with asyncio.timeout(60):
            return await self._results.get()

    async def until(self, condition):
        async with asyncio.timeout(60):
            while not (found := condition()):  # noqa: ASYNC110 - files and processes ring no bell
                await asyncio.sleep(0.01)
        return found

    def written(self, part, times=1):
        """Whether so many lines of the transcript have this."""
        return sum(part in line for _, line in self.lines) >= times

    async def interrupt(self):
        await self._agent.interrupt()

    async def kill(self):
        """SIGKILL to the whole tree, as when its worker is lost."""
        await stop_tree(self._agent.pid)


# ---- What is recorded ----


async def text(live):
    """Turns of text and thinking alone."""
    await live.say("[[thinking: let me see]]\n[[text: hello]]")
    await live.say("[[text: again]]")


async def tools(live):
    """Calls: one, two in parallel, one that fails, one that was denied, and what JSON can only escape."""
    live.gate["Write"] = Verdict(allow=False, message="not today")
    await live.say(f"[[text: look]]\n{bash('echo one')}\n[[then]]\n[[text: done]]")
    await live.say(f"{bash('echo two')}\n{bash('echo three')}\n[[then]]\n[[text: done]]")
    await live.say(f"{bash('exit 3')}\n[[then]]\n[[text: done]]")
    await live.say('[[tool: Write {"file_path": "no", "content": "x"}]]\n[[then]]\n[[text: done]]')
    odd = '[[tool: Bash {"command": "printf \'a\\\\0b\'", "description": "\\ud83d \\u0000 \\u00fc"}]]'
    await live.say(f"{odd}\n[[then]]\n[[text: done]]")


async def interrupted(live):
    """Turns that were interrupted: in a call, and in the middle of the answer."""
    await live.begin(bash("echo > began; sleep 60"))
    await live.until((live.paths.workspace / "began").exists)
    await live.interrupt()
    await live.result()
    await live.begin("[[text: a b c d e f g h i j k l m n]]\n[[slow: 200]]")
    await live.until(lambda: "delta" in live.frames[-1].get("event", {}))
    await live.interrupt()
    await live.result()


async def steered(live):
    """A message that came in the middle of a turn and was absorbed by it."""
    await live.begin(f"{bash('echo > began; until [ -e go ]; do sleep 0.05; done')}\n[[then]]\n[[text: done]]")
    await live.until((live.paths.workspace / "began").exists)
    await live.begin("and mind this")
    await live.until(lambda: live.written(b"and mind this"))
    (live.paths.workspace / "go").touch()
    await live.result()


async def subagent(live):
    """A subagent that makes a call."""
    script = f"{bash('echo within')}\n[[then]]\n[[text: found]]"
    call = {"description": "look", "prompt": script, "subagent_type": "general-purpose", "run_in_background": False}
    await live.say(f"[[tool: Agent {json.dumps(call)}]]\n[[then]]\n[[text: done]]")


async def compacted(live):
    """A conversation that was summarized, and what followed."""
    # So much has been used that the CLI summarizes what there is before it asks again.
    await live.say("[[text: one]]\n[[usage: input=2000000]]")
    await live.say("[[text: two]]")


async def killed(live):
    """SIGKILL while two calls of one message are open, the first of them under way."""
    await live.begin(f"[[text: look]]\n{bash('echo > began; sleep 60')}\n{bash('echo after')}")
    await live.until((live.paths.workspace / "began").exists)
    await live.until(lambda: live.written(b'"type":"tool_use"', 2))
    await live.kill()


SCENARIOS = {one.__name__: one for one in (text, tools, interrupted, steered, subagent, compacted, killed)}


async def record(name, folder):
    """What the CLI writes in a scenario: (subpath, line), in order, without anything of this machine."""
    return (await recorded(name, folder)).lines


class Recording:
    """A scenario: transcript lines by subpath, frames as lines, and what each request offered the model."""

    def __init__(self, lines, frames, offers):
        self.lines, self.frames, self.offers = lines, frames, offers


class ListeningModel(ScriptedModel):
    """Notes what the CLI asks.

    Attributes:
        asked: The newest request.
        offers: {tool: its arguments}, of the request that had the most.
    """

    def __init__(self):
        super().__init__()
        self.asked = {}
        self.offers = {}

    async def _messages(self, request):
        self.asked = await request.json()
        tools = self.asked.get("tools") or []
        found = {tool["name"]: sorted((tool.get("input_schema") or {}).get("properties") or {}) for tool in tools}
        self.offers = max(self.offers, found, key=len)
        return await super()._messages(request)


async def recorded(name, folder, cli=None):
    """A scenario, without anything of this machine."""
    async with ListeningModel() as model, Recorder(folder, model.url, cli) as live:
        await SCENARIOS[name](live)
    workspace, root = str(live.paths.workspace), str(folder)
    known = ((workspace, "/workspace"), (project_key_for_directory(workspace), "-workspace"), (root, "/data"))

    def anywhere(line):
        for there, here in known:
            line = line.replace(there.encode(), here.encode())
        return line

    lines = [(subpath, anywhere(line)) for subpath, line in live.lines]
    return Recording(lines, [anywhere(encode_entry(frame)) for frame in live.frames], model.offers)


# ---- Shapes ----


class Shapes:
    """What entries of each kind are made of: by path, the types of values, with `?` where they may be missing."""

    def __init__(self):
        self._types = defaultdict(lambda: defaultdict(set))
        self._seen = defaultdict(Counter)

    def add(self, lines):
        for subpath, line in lines:
            entry = json.loads(line)
            self._walk(kind_of(subpath, entry), "", entry, 0)
        return self

    def _walk(self, kind, path, value, depth):
        """`path` is of an object: a block of a list is named after its type."""
        self._seen[kind][path] += 1
        for key, inner in value.items():
            at = f"{path}.{key}" if path else key
            self._types[kind][at].add(_TYPES[type(inner)])
            self._seen[kind, "fields"][at] += 1
            if depth < DEPTH and key not in OPAQUE:
                if isinstance(inner, dict):
                    self._walk(kind, at, inner, depth + 1)
                for block in inner if isinstance(inner, list) else ():
                    if isinstance(block, dict) and "type" in block:
                        self._walk(kind, f"{at}[{block['type']}]", block, depth + 1)

    def told(self):
        """{kind: {path: "types"}}, as it is stored."""
        return {
            kind: {
                path: "|".join(sorted(types))
                + ("?" if self._seen[kind, "fields"][path] < self._seen[kind][_parent(path)] else "")
                for path, types in sorted(fields.items())
            }
            for kind, fields in sorted(self._types.items())
        }


_TYPES = {dict: "object", list: "list", str: "text", int: "number", float: "number", bool: "bool", type(None): "null"}


def kind_of(subpath, entry):
    """The name under which the shape of an entry stands."""
    more = entry.get("subtype") or (entry.get("attachment") or entry.get("event") or {}).get("type")
    return ("subagent's " if subpath else "") + entry["type"] + (f" {more}" if more else "")


def _parent(path):
    return path.rpartition(".")[0]


# ---- Golden files ----


def golden(version=None):
    """The folder of the golden files of a version of the CLI, else of the newest."""
    folders = sorted(GOLDEN.iterdir(), key=lambda folder: [int(part) for part in folder.name.split(".")])
    return GOLDEN / version if version else folders[-1]


def golden_lines(name, version=None):
    """(subpath, line) of a golden scenario, the main conversation first."""
    folder = golden(version) / name
    files = sorted(folder.rglob("*.jsonl"), key=lambda path: path.name != "main.jsonl")
    paths = [(str(path.relative_to(folder).with_suffix("")).removeprefix("main"), path) for path in files]
    return [(subpath, line) for subpath, path in paths for line in path.read_bytes().splitlines()]


def shortened(line):
    """A line without what is long and nobody here reads: what the CLI tells the model of the world around it."""
    entry = json.loads(line)
    if (kind := entry.get("attachment", {}).get("type")) and kind != "queued_command":
        entry["attachment"] = {"type": kind}
    entry.pop("rendered", None)
    if "usage" in entry.get("message", {}):
        entry["message"]["usage"] = {"input_tokens": 1, "output_tokens": 1}
    return encode_entry(entry)


def shortened_frame(line):
    """A frame without the lists of the CLI's abilities, which are long, and what it says of this machine."""
    frame = json.loads(line)
    if frame.get("subtype") == "init":
        frame |= {key: [] for key in ("slash_commands", "skills", "agents", "plugins") if key in frame}
        frame = {key: value for key, value in frame.items() if "socket" not in key and "path" not in key}
    return encode_entry(frame)


async def write_golden(cli=None):
    """Record all anew, for the CLI that is installed or another one."""
    version = ".".join(map(str, cli_version(cli)))
    folder, spoken = golden(version), RECORDED / version
    transcripts, frames, offers = Shapes(), Shapes(), {}
    for each in (folder, spoken):
        shutil.rmtree(each, ignore_errors=True)
        each.mkdir(parents=True)
    for name in SCENARIOS:
        with tempfile.TemporaryDirectory(prefix="agentrpc-recording-") as scratch:
            found = await recorded(name, Path(scratch), cli)
        transcripts.add(found.lines)
        frames.add(("", frame) for frame in found.frames)
        offers = max(offers, found.offers, key=len)
        for subpath, line in found.lines:
            path = folder / name / f"{subpath or 'main'}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("ab") as file:
                file.write(shortened(line) + b"\n")
        (spoken / f"{name}.jsonl").write_bytes(b"".join(shortened_frame(frame) + b"\n" for frame in found.frames))
    for path, what in (
        (folder / "shapes.json", transcripts.told()),
        (spoken / "shapes.json", frames.told()),
        (spoken / "tools.json", offers),
    ):
        path.write_text(json.dumps(what, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    asyncio.run(write_golden(Path(sys.argv[1]) if len(sys.argv) > 1 else None))
