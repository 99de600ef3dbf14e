"""One conversation of the fake CLI: prompts in, turns out, frame by frame as the pinned CLI sends them.

The order of frames and of transcript entries was recorded from that CLI; `tests/work/test_fake_cli.py` compares.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections import deque

from agentrpc.testkit.fake_cli import faults
from agentrpc.testkit.fake_cli.calls import Call, Calls, Hook
from agentrpc.testkit.fake_cli.message import Message
from agentrpc.testkit.fake_cli.script import Start, Step, has_directives, parse, parse_start
from agentrpc.testkit.fake_cli.start import START
from agentrpc.testkit.fake_cli.totals import Totals
from agentrpc.testkit.fake_cli.transcript import Transcript, now
from agentrpc.testkit.fake_cli.wire import Wire, new_uuid

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["VERSION", "Arguments", "Interrupted", "Session"]

# The version whose behaviour this is.
VERSION = "2.1.332"
_TOOLS = ["AskUserQuestion", "Bash", "ExitPlanMode", "Read", "StructuredOutput", "Write"]
_CONTINUE = "Continue from where you left off."
_CUT_OFF = (
    "[Tool call interrupted: the session ended before this call's result was recorded, so its outcome is unknown. "
    "Check whether it took effect before relying on it or running it again.]"
)
_NO_SCRIPT = "There is **no model** here: this is AgentRPC's *fake CLI*, and it cannot think.\n\n> {said}"
_RETRYABLE = frozenset({408, 409, 429, *range(500, 600)})
_RETRIES = 10
# Ends of turns after which their prompt counts as cancelled.
_CUT = frozenset({"aborted_streaming", "aborted_tools", "api_error"})


class Interrupted(Exception):
    """The turn ends because the other side wants it to."""


class Arguments:
    """The command line, as far as it matters."""

    def __init__(self, given: list[str]) -> None:
        options: dict[str, str] = {}
        name = ""
        for word in given:
            if word.startswith("--"):
                name, _, value = word[2:].partition("=")
                options[name] = value
            elif name:
                options[name] = word
        self.model = options.get("model") or "claude-sonnet-5"
        self.mode = options.get("permission-mode") or "default"
        self.resume = options.get("resume", "")
        self.session_id = self.resume or options.get("session-id") or new_uuid()
        self.partial = "include-partial-messages" in options
        self.mirror = "session-mirror" in options
        self.prompts = "permission-prompt-tool" in options
        self.max_turns = int(options.get("max-turns") or 0)
        self.max_budget = float(options.get("max-budget-usd") or 0)
        self.ask = _ask_rules(options.get("settings", ""))


class _Prompt:
    """What begins a turn. Without uuid it is the CLI's own."""

    def __init__(self, uuid: str, text: str) -> None:
        self.uuid = uuid
        self.text = text


class Session:
    """The conversation."""

    def __init__(self, arguments: Arguments) -> None:
        self.arguments = arguments
        self.wire = Wire(self._on_prompt, self._on_request)
        self.transcript = Transcript(self.wire if arguments.mirror else None, arguments.session_id, VERSION)
        self.totals = Totals(arguments.model)
        self.mode = arguments.mode
        self.flags: set[str] = set()
        self.step = Step()
        self._start = Start()
        self._hooks: list[Hook] = []
        self._initialize: tuple[str, dict[str, Any]] | None = None
        self._queue: deque[_Prompt] = deque()
        self._script: list[Step] = []
        self._done = 0
        self._deferred: tuple[Call, dict[str, Any]] | None = None
        self._open: list[tuple[str, str]] = []
        self._prompt: _Prompt | None = None
        self._prompt_id = ""
        self._calls: Calls | None = None
        self._message: Message | None = None
        self._in_turn = False
        self._interrupted = False
        self._state = "idle"
        self._results = 0

    def run(self) -> None:
        """Live until the input ends."""
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._begin()
        while not (self._initialize or self._queue or self.wire.ended):
            self.wire.pump(None)
        if self._deferred is not None:
            self._turn(None)
        while True:
            if self._queue:
                self._turn(self._queue.popleft())
            elif not self.wire.ended:
                self.wire.pump(None)
            elif "stay" in self.flags:
                faults.sleep_for_ever()
            else:
                break
        self.transcript.note("cost-state", totalCostUSD=self.totals.cost)
        self.transcript.flush()
        self.wire.flush()
        # Without the interpreter's own end: it takes longer than the turn did.
        os._exit(0)

    # ---- What a message and its calls need ----

    def send(self, kind: str, **fields: Any) -> str:
        """Send a frame with what all frames have; its uuid."""
        uuid = new_uuid()
        self.wire.send({"type": kind, **fields, "session_id": self.arguments.session_id, "uuid": uuid})
        return uuid

    def breathe(self, timeout: float | None = 0) -> None:
        """Look for what has come, and wait for it. Raises Interrupted."""
        also: list[int] = []
        if self._calls is not None:
            patience, also = self._calls.patience(), self._calls.descriptors()
            if patience is not None and (timeout is None or patience < timeout):
                timeout = patience
        self.wire.pump(timeout, also)
        if self._interrupted:
            raise Interrupted

    def sleep(self, seconds: float) -> None:
        """Wait. Raises Interrupted."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.breathe(left)

    def point(self, where: str) -> None:
        """Crash or hang here, if that was asked for."""
        what, options = self.step.points.get(where, ("", {}))
        if what == "crash":
            faults.crash(self.wire, options)
        while what:
            self.breathe(None)

    def switch_on(self, flags: set[str]) -> None:
        """Flags that hold from now on."""
        self.flags |= flags
        if "ignore_sigterm" in flags:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def prompt_marks(self, *, both: bool = True) -> dict[str, Any]:
        """The prompt that a frame belongs to, as frames say it."""
        if self._prompt is None:
            return {}
        marks: dict[str, Any] = {"user_message_uuids": [self._prompt.uuid]}
        return {"user_message_uuid": self._prompt.uuid, **marks} if both else marks

    def add_call(self, call: Call) -> None:
        """The message asks for a call."""
        if self._calls is None:
            self._calls = Calls(
                self.wire,
                self._hooks,
                self._hook_context,
                prompts=self.arguments.prompts,
                ask=self.arguments.ask,
                on_point=lambda: self.point("tool"),
                on_state=self._on_state,
                on_mode=self._on_mode,
                on_task=lambda fields: self._system(**fields),
            )
        self._calls.add(call)

    # ---- The start ----

    def _begin(self) -> None:
        home = os.environ.get("HOME", "/")
        try:
            with open(os.path.join(home, "fake-cli"), encoding="utf-8") as file:
                directives = f"{START}\n{file.read()}"
        except OSError:
            directives = START
        start = parse_start(directives)
        if start.starts is not None and not _counted(os.path.join(home, ".fake-cli-starts"), start.starts):
            start = Start()
        self._start = self.step = start
        self.switch_on(start.flags)
        Message(self).play_apart(start)
        self._fault_without_reading("start")
        if start.exit is not None:
            self.wire.flush()
            os._exit(start.exit)
        time.sleep(start.delay)
        if self.arguments.resume:
            entries = self.transcript.load()
            if entries is None:
                sys.stderr.write(f"No conversation found with session ID: {self.arguments.resume}\n")
                sys.stderr.flush()
                os._exit(1)
            self._remember(entries)

    def _fault_without_reading(self, where: str) -> None:
        what, options = self._start.points.get(where, ("", {}))
        if what == "crash":
            faults.crash(self.wire, options)
        elif what:
            self.wire.flush()
            faults.sleep_for_ever()

    def _remember(self, entries: list[dict[str, Any]]) -> None:
        """From a transcript: the script and how far it was played, open calls, one that was deferred."""
        answers: set[str] = set()
        calls: dict[str, Call] = {}
        deferred: dict[str, Any] | None = None
        for entry in entries:
            message = entry.get("message") or {}
            if entry.get("isSidechain"):
                continue
            if entry["type"] == "attachment" and (entry.get("attachment") or {}).get("type") == "hook_deferred_tool":
                deferred = entry["attachment"]
            elif entry["type"] == "assistant":
                answers.add(message.get("id", ""))
                for block in _blocks(message):
                    if block.get("type") == "tool_use":
                        call = Call(block["id"], block["name"], block.get("input") or {}, entry["uuid"])
                        calls[call.id] = call
            elif entry["type"] == "user":
                for block in _blocks(message):
                    calls.pop(block.get("tool_use_id", ""), None)
                if has_directives(text := _text(message)):
                    self._script, answers = _steps(text), set()
        self._done = len(answers)
        if deferred is not None and deferred.get("toolUseID") in calls:
            self._deferred = calls.pop(deferred["toolUseID"]), deferred
        self._open = [(call.id, call.entry) for call in calls.values()]

    # ---- What comes in ----

    def _on_sigterm(self, *_: object) -> None:
        if self._calls is not None:
            self._calls.stop()
        os._exit(143)

    def _on_prompt(self, message: dict[str, Any]) -> None:
        prompt = _Prompt(message.get("uuid") or new_uuid(), _text(message["message"]))
        if not self._in_turn and not self._queue:
            self._on_state("running")
        self._lifecycle(prompt.uuid, "queued")
        self.transcript.note("queue-operation", operation="enqueue", timestamp=now(), content=prompt.text)
        self._queue.append(prompt)

    def _on_request(self, name: str, request: dict[str, Any]) -> None:
        kind = request.get("subtype")
        if kind == "initialize":
            self._initialize = name, request
            self._fault_without_reading("initialize")
            if not (self._deferred is not None and self._start.deferred == "unhooked"):
                self._answer_initialize()
        elif kind == "interrupt":
            if "deaf" in self.flags:
                return
            if self._in_turn:
                self._interrupted = True
                self.wire.cancel_requests()
            self.wire.respond(name, {"still_queued": [prompt.uuid for prompt in self._queue]})
        elif kind == "set_permission_mode":
            self._on_mode(request.get("mode") or "default")
            self.wire.respond(name, {"mode": self.mode})
        elif kind == "set_model":
            self.arguments.model = self.totals.model = request.get("model") or self.arguments.model
            self.wire.respond(name, {})
        else:
            self.wire.respond(name, None, f"Unsupported control request subtype: {kind}")

    def _answer_initialize(self) -> None:
        assert self._initialize is not None
        name, request = self._initialize
        for matcher in (request.get("hooks") or {}).get("PreToolUse") or []:
            for callback_id in matcher.get("hookCallbackIds") or []:
                self._hooks.append(Hook(callback_id, matcher.get("matcher"), matcher.get("onFailure", "continue")))
        able = "no_hooks" not in self.flags
        response = {
            "commands": [], "agents": [], "output_style": "default", "available_output_styles": ["default"],
            "models": [], "account": {"tokenSource": "ANTHROPIC_AUTH_TOKEN", "apiProvider": "firstParty"},
            "pid": os.getpid(), "claude_code_version": VERSION, "current_permission_mode": self.mode,
            "hooks_applied": able, "hook_on_failure_supported": able, "session_state": self._state,
        }  # fmt: skip
        self.wire.respond(name, response)

    # ---- A turn ----

    def _turn(self, prompt: _Prompt | None) -> None:
        """Answer a prompt; without one, go on with the call that was deferred."""
        self._in_turn = True
        self._prompt, self._prompt_id = prompt, new_uuid()
        self.totals.begin_turn()
        self._results = 0
        ending: dict[str, Any] = {}
        uuid = prompt.uuid if prompt is not None else new_uuid()
        try:
            if prompt is not None:
                self._take_up(prompt)
            else:
                self._take_up_deferred(uuid)
            ending = self._answers()
            self.point("end")
        except Interrupted:
            ending = self._interrupt()
        self._end(uuid, ending)

    def _take_up(self, prompt: _Prompt) -> None:
        self._lifecycle(prompt.uuid, "started")
        self.transcript.note("queue-operation", operation="dequeue", timestamp=now())
        for tool_use_id, entry in self._open:
            block = {"type": "tool_result", "content": _CUT_OFF, "is_error": True, "tool_use_id": tool_use_id}
            message = {"role": "user", "content": [block]}
            self.transcript.add("user", parent=entry, promptId=self._prompt_id, message=message, toolUseResult=_CUT_OFF)
        if self._open:
            said: dict[str, Any] = {"id": new_uuid(), "type": "message", "role": "assistant", "model": "<synthetic>"}
            said |= {"content": [{"type": "text", "text": "No response requested."}], "stop_reason": "stop_sequence"}
            self.transcript.add("assistant", message=said, isApiErrorMessage=False, madeBy="other")
            self._open = []
        message = {"role": "user", "content": prompt.text}
        marks = {"permissionMode": self.mode, "promptSource": "sdk", "turnOrigin": "sdk"}
        self.transcript.add("user", prompt.uuid, promptId=self._prompt_id, message=message, **marks)
        if has_directives(prompt.text):
            self._script, self._done = _steps(prompt.text), 0
        elif not self._script:
            self._script = [_saying(_NO_SCRIPT.format(said=" ".join(prompt.text.split())[:200]))]
            self._done = 0

    def _take_up_deferred(self, uuid: str) -> None:
        assert self._deferred is not None
        (call, attachment), self._deferred = self._deferred, None
        self._on_state("running")
        self._lifecycle(uuid, "started")
        for operation, more in (("enqueue", {"content": _CONTINUE}), ("dequeue", {})):
            self.transcript.note("queue-operation", operation=operation, timestamp=now(), **more)
        call.input = attachment.get("toolInput") or call.input
        self.add_call(call)
        if self._start.deferred == "unhooked":
            self._answer_initialize()
        self._await_calls(hook_success=True)
        message = {"role": "user", "content": _CONTINUE}
        marks = {"permissionMode": self.mode, "promptSource": "system", "turnOrigin": "system"}
        self.transcript.add("user", uuid, promptId=self._prompt_id, message=message, isMeta=True, **marks)
        self._results = 0

    def _answers(self) -> dict[str, Any]:
        """The answers of the turn, with the results of their calls between them; how it ended."""
        self.send("system", **self._init_fields(), **self.prompt_marks(both=False))
        requests = 0
        while True:
            self._system(subtype="status", status="requesting", **self.prompt_marks(both=False))
            self.transcript.flush()
            self.step = step = self._due()
            self.switch_on(step.flags)
            self.point("start")
            self.sleep(step.delay)
            if (error := self._provider_error(step)) is not None:
                return error
            self._message = message = Message(self)
            message.play(step)
            self._message = None
            self._done += 1
            requests += 1
            self.transcript.flush()
            if self._calls is None:
                return {"result": message.text, "stop_reason": message.stop_reason}
            self._await_calls()
            if self.arguments.max_budget and self.totals.cost > self.arguments.max_budget:
                text = f"Reached maximum budget (${self.arguments.max_budget})"
                return _failure("error_max_budget_usd", "budget", text)
            if requests == self.arguments.max_turns:
                return _failure("error_max_turns", "max_turns", f"Reached maximum number of turns ({requests})")

    def _due(self) -> Step:
        return self._script[self._done] if self._done < len(self._script) else _saying("Done.")

    def _await_calls(self, *, hook_success: bool = False) -> None:
        calls = self._calls
        assert calls is not None
        try:
            while True:
                calls.advance()
                if calls.hooked and hook_success:
                    self._say_hook_success(calls.all[0])
                    hook_success = False
                for call in calls.finished():
                    self._report(call)
                if not calls.open:
                    break
                self.breathe(None)
        finally:
            self.totals.denials += calls.denials
            calls.denials = []
        self._calls = None
        if calls.interrupt:
            raise Interrupted

    def _report(self, call: Call) -> None:
        """A call's result, in a frame and in the transcript."""
        self._results += 1
        message = {"role": "user", "content": [call.block]}
        frame: dict[str, Any] = {"message": message, "parent_tool_use_id": None, "timestamp": now()}
        frame["tool_use_result"] = call.structured
        entry: dict[str, Any] = {"message": message, "toolUseResult": call.structured}
        if call.mark:
            frame["tool_result_meta"] = [{"id": call.id, **call.mark}]
            entry["permissionDecision"] = call.mark.get("permission_decision")
            if kind := call.mark.get("non_execution_kind"):
                entry["toolDenialKind"] = kind
        uuid = self.send("user", **frame)
        if self._prompt is not None:
            entry["promptId"] = self._prompt_id
        self.transcript.add("user", uuid, call.entry, **entry, sourceToolAssistantUUID=call.entry)

    def _say_hook_success(self, call: Call) -> None:
        attachment = {"type": "hook_success", "hookName": "PreToolUse:Callback", "toolUseID": call.id}
        attachment |= {"hookEvent": "PreToolUse", "content": "", "command": "callback"}
        self.send("attachment", attachment=attachment, parent_tool_use_id=None)

    def _provider_error(self, step: Step) -> dict[str, Any] | None:
        """The provider refuses: a few times, after which the step is played, or for good."""
        if step.error is None:
            return None
        status, times = step.error
        if status in _RETRYABLE:
            for attempt in range(1, min(times, _RETRIES) + 1):
                fields = {"attempt": attempt, "max_retries": _RETRIES, "retry_delay_ms": 1, "error_status": status}
                self._system(subtype="api_retry", **fields, error="unknown")
            if times <= _RETRIES:
                return None
        self._done += 1
        text = f"API Error: {status} a scripted error"
        message: dict[str, Any] = {"id": new_uuid(), "type": "message", "role": "assistant", "model": "<synthetic>"}
        message |= {"content": [{"type": "text", "text": text}], "stop_reason": "stop_sequence", "stop_sequence": ""}
        frame = {"message": message, "parent_tool_use_id": None, "error": "unknown", "is_api_error_message": True}
        uuid = self.send("assistant", **frame, api_error_status=status, **self.prompt_marks())
        self.transcript.add("assistant", uuid, message=message, error="unknown", isApiErrorMessage=True)
        ending = {"result": text, "is_error": True, "api_error_status": status, "terminal_reason": "api_error"}
        return {**ending, "stop_reason": "stop_sequence"}

    def _interrupt(self) -> dict[str, Any]:
        """Close what an interrupt has cut off; how the turn ended."""
        self._interrupted = False
        calls, self._calls = self._calls, None
        message, self._message = self._message, None
        if message is not None:
            message.abort()
            self._done += 1
        if calls is not None:
            calls.stop()
            for call in calls.finished():
                self._report(call)
        text = "[Request interrupted by user for tool use]" if calls is not None else "[Request interrupted by user]"
        said = {"role": "user", "content": [{"type": "text", "text": text}]}
        uuid = self.send("user", message=said, parent_tool_use_id=None, timestamp=now())
        self.transcript.add("user", uuid, promptId=self._prompt_id, message=said)
        if message is not None:
            message.close_aborted()
        self._results += 1
        reason = "aborted_tools" if calls is not None else "aborted_streaming"
        stop = "tool_use" if calls is not None else None
        return {**_failure("error_during_execution", reason, "[ede_diagnostic] result_type=user"), "stop_reason": stop}

    def _end(self, uuid: str, ending: dict[str, Any]) -> None:
        step = self.step
        self.transcript.note("last-prompt", leafUuid=self.transcript.last)
        self.transcript.flush()
        if step.exit is not None:
            self.wire.flush()
            os._exit(step.exit)
        if "no_result" not in step.flags:
            fields = {"subtype": "success", "is_error": False, "api_error_status": None, "terminal_reason": "completed"}
            fields |= {**self.totals.end_turn(), **ending, "num_turns": 1 + self._results, **self.prompt_marks()}
            fields["queued_turn_count"] = len(self._queue)
            for _ in range(2 if "duplicate_result" in step.flags else 1):
                self.send("result", **fields)
        self._lifecycle(uuid, "cancelled" if ending.get("terminal_reason") in _CUT else "completed")
        self.step = Step()
        self._prompt = None
        self._in_turn = self._interrupted = False
        if not self._queue:
            self._on_state("idle")
        self.wire.flush()

    # ---- Frames ----

    def _system(self, **fields: Any) -> None:
        self.send("system", **fields)

    def _lifecycle(self, prompt_uuid: str, state: str) -> None:
        self.send("command_lifecycle", command_uuid=prompt_uuid, state=state)

    def _on_state(self, state: str) -> None:
        self._state = state
        only = {} if os.environ.get("CLAUDE_CODE_EMIT_SESSION_STATE_EVENTS") else {"sdk_host_only": True}
        self._system(subtype="session_state_changed", state=state, **only)

    def _on_mode(self, mode: str) -> None:
        self.mode = mode
        self._system(subtype="status", status=None, permissionMode=mode)

    def _init_fields(self) -> dict[str, Any]:
        return {
            "subtype": "init", "cwd": os.getcwd(), "tools": _TOOLS, "mcp_servers": [], "model": self.arguments.model,
            "permissionMode": self.mode, "slash_commands": [], "apiKeySource": "none", "claude_code_version": VERSION,
            "output_style": "default", "agents": [], "skills": [], "plugins": [],
        }  # fmt: skip

    def _hook_context(self) -> dict[str, Any]:
        context = {"session_id": self.arguments.session_id, "transcript_path": self.transcript.path, "cwd": os.getcwd()}
        if self._prompt is not None:
            context["prompt_id"] = self._prompt_id
        return {**context, "permission_mode": self.mode}


def _ask_rules(settings: str) -> frozenset[str]:
    """The tools that settings (JSON, or a file of it) want a person to be asked about, whatever else allows them."""
    if settings and not settings.lstrip().startswith("{"):
        with open(settings, encoding="utf-8") as file:
            settings = file.read()
    rules = (json.loads(settings or "{}").get("permissions") or {}).get("ask") or []
    return frozenset(rule.partition("(")[0] for rule in rules)


def _counted(path: str, limit: int) -> bool:
    """Count a start in a file; whether it is one of the first so many."""
    with open(path, "ab") as file:
        file.write(b"x")
        return file.tell() <= limit


def _steps(text: str) -> list[Step]:
    try:
        return parse(text)
    except (ValueError, IndexError) as error:
        step = Step()
        sys.stderr.write(f"wrong directive: {error}\n")
        sys.stderr.flush()
        step.error = (400, 1)
        return [step]


def _saying(text: str) -> Step:
    step = Step()
    step.items.append(("text", text))
    return step


def _failure(subtype: str, reason: str, text: str) -> dict[str, Any]:
    return {
        "subtype": subtype, "is_error": True, "terminal_reason": reason, "errors": [text], "stop_reason": "tool_use",
    }  # fmt: skip


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    content = message.get("content")
    return [block for block in content if isinstance(block, dict)] if isinstance(content, list) else []


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    return "\n".join(block.get("text", "") for block in _blocks(message) if block.get("type") == "text")
