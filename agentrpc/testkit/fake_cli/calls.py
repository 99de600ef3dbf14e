"""Tool calls of the fake CLI: asked about as the real one asks, and really carried out.

Each call is a generator that is resumed whenever something has come; it yields while it has to wait. What only reads
runs in parallel, everything else alone and in order, as with the real CLI.
"""

from __future__ import annotations

import os
import re
import signal
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator
    from typing import Any

    from agentrpc.testkit.fake_cli.wire import Wire

__all__ = ["Call", "Calls", "Hook"]

_SHELL = "/bin/bash" if os.path.exists("/bin/bash") else "/bin/sh"
_READING = re.compile(r"^\s*(cat|cd|date|echo|env|false|grep|head|id|ls|pwd|seq|sleep|tail|test|true|uname|wc)\b")
_LONG = 3.0
_KILL_AFTER = 0.2
_MAX_OUTPUT = 30_000
_REJECTED = (
    "The user doesn't want to proceed with this tool use. The tool use was rejected (eg. if it was a file edit, the "
    "new_string was NOT written to the file). STOP what you are doing and wait for the user to tell you how to proceed."
)
_UNANSWERED = (
    "The user doesn't want to take this action right now. STOP what you are doing and wait for the user to tell you "
    "how to proceed."
)
_STOPPED = (
    f"{_REJECTED} Correction to the text above: this call was stopped while running, not refused before it ran. It may "
    "have run in part or in full, and its changes may have been written."
)
_REQUIRED = {
    "AskUserQuestion": "questions",
    "Bash": "command",
    "ExitPlanMode": "",
    "Read": "file_path",
    "StructuredOutput": "",
    "Write": "file_path",
}


class Hook:
    """A PreToolUse hook of the other side."""

    def __init__(self, callback_id: str, matcher: str | None, on_failure: str) -> None:
        self.callback_id = callback_id
        self.matcher = matcher
        self.on_failure = on_failure

    def matches(self, tool_name: str) -> bool:
        """Whether it wants to be asked about this tool."""
        return not self.matcher or self.matcher == "*" or re.fullmatch(self.matcher, tool_name) is not None


class Call:
    """A tool call, and what came of it.

    Attributes:
        entry: The uuid of the transcript entry that asks for it.
        state: waiting, asked, running or done.
        deadline: When it wants to be looked at again, by the monotonic clock.
        result: The tool_result block, and what stands beside it in the frame and in the transcript.
    """

    def __init__(self, tool_use_id: str, name: str, given: dict[str, Any], entry: str) -> None:
        self.id = tool_use_id
        self.name = name
        self.input = given
        self.entry = entry
        self.state = "waiting"
        self.deadline: float | None = None
        self.pid = 0
        self.pidfd = -1
        self.reported = False
        self.block: dict[str, Any] = {}
        self.structured: Any = None
        self.mark: dict[str, Any] = {}

    @property
    def reads_only(self) -> bool:
        """Whether it may run beside others."""
        if self.name == "Bash":
            parts = re.split(r"&&|\|\||[;|\n]", str(self.input.get("command", "")))
            return all(_READING.match(part) and not re.search(r"[>`]|\$\(\w", part) for part in parts)
        return self.name == "Read"

    def succeed(self, content: str, structured: object, *, marked: bool = False) -> None:
        """It went well."""
        self.block = {"tool_use_id": self.id, "type": "tool_result", "content": content}
        if marked:
            self.block["is_error"] = False
        self.structured = structured
        self.state = "done"

    def fail(self, content: str, structured: str | None = None) -> None:
        """It did not."""
        self.block = {"type": "tool_result", "content": content, "is_error": True, "tool_use_id": self.id}
        self.structured = f"Error: {content}" if structured is None else structured
        self.state = "done"


class Calls:
    """The calls of one message.

    Args:
        wire: Where to ask.
        hooks: Who is asked before each call.
        context: What hooks are told besides, made anew for each.
        prompts: Whether there is someone to ask for a permission.
        ask: The tools about which that one is asked, even if a hook has allowed the call.
        on_point: Told when one of them runs.
        on_state: Told what the session waits for.
        on_mode: Told the new permission mode.
        on_task: Gets the fields of frames about shells that take long.
    """

    def __init__(
        self,
        wire: Wire,
        hooks: list[Hook],
        context: Callable[[], dict[str, Any]],
        *,
        prompts: bool,
        ask: frozenset[str],
        on_point: Callable[[], None],
        on_state: Callable[[str], None],
        on_mode: Callable[[str], None],
        on_task: Callable[[dict[str, Any]], None],
    ) -> None:
        self._wire = wire
        self._hooks = hooks
        self._context = context
        self._prompts = prompts
        self._ask = ask
        self._on_point = on_point
        self._on_state = on_state
        self._on_mode = on_mode
        self._on_task = on_task
        self._running: list[tuple[Call, Generator[None, None, None]]] = []
        self.all: list[Call] = []
        self.denials: list[dict[str, Any]] = []
        self.interrupt = False
        self.hooked = False

    def add(self, call: Call) -> None:
        """Begin a call, or put it behind those that it has to wait for."""
        self.all.append(call)
        self._running.append((call, self._carry_out(call)))
        self.advance()

    def advance(self) -> None:
        """Go on with every call that can."""
        before = -1
        while before != len(self._running):
            before = len(self._running)
            self._running = [(call, run) for call, run in self._running if _goes_on(call, run)]

    @property
    def open(self) -> bool:
        """Whether one has not ended."""
        return bool(self._running)

    def finished(self) -> Iterator[Call]:
        """Those that have ended since the last time, each once."""
        for call in self.all:
            if call.state == "done" and not call.reported:
                call.reported = True
                yield call

    def descriptors(self) -> list[int]:
        """What to wait for besides the wire."""
        return [call.pidfd for call, _ in self._running if call.pidfd >= 0]

    def patience(self) -> float | None:
        """Seconds until one wants to be looked at."""
        deadlines = [call.deadline for call, _ in self._running if call.deadline is not None]
        return max(min(deadlines) - time.monotonic(), 0) if deadlines else None

    def stop(self) -> None:
        """An interrupt: end all that has not ended."""
        for call, _ in self._running:
            ran = call.state == "running"
            self._end_process(call)
            call.fail(_STOPPED if ran else _REJECTED, "User rejected tool use")
            call.mark = {"non_execution_kind": "user-rejected"}
        self._running = []

    def _end_process(self, call: Call) -> None:
        if not call.pid:
            return
        end = time.monotonic() + _KILL_AFTER
        number = signal.SIGTERM
        while True:
            try:
                os.killpg(call.pid, number)
            except ProcessLookupError:
                return
            if os.waitpid(call.pid, os.WNOHANG)[0] or number == signal.SIGKILL:
                return
            if time.monotonic() > end:
                number = signal.SIGKILL
            time.sleep(0.005)

    # ---- One call ----

    def _carry_out(self, call: Call) -> Generator[None, None, None]:
        while not self._may_begin(call):
            yield
        if (needed := _REQUIRED.get(call.name)) is None:
            text = f"Error: No such tool available: {call.name}"
            call.fail(f"<tool_use_error>{text}</tool_use_error>", text)
            return
        if needed and needed not in call.input:
            text = f"InputValidationError: {call.name} failed due to the following issue:\n"
            text += f"The required parameter `{needed}` is missing"
            call.fail(f"<tool_use_error>{text}</tool_use_error>", text)
            return
        call.state = "asked"
        asked = dict(call.input)
        yield from self._judge(call)
        if call.state == "done":
            self.denials.append({"tool_name": call.name, "tool_use_id": call.id, "tool_input": asked})
            return
        call.state = "running"
        if call.name != "Bash":
            self._on_point()
        tools: dict[str, Callable[[Call], Generator[None, None, None]]] = {
            "Bash": self._bash,
            "Read": _read,
            "Write": _write,
            "AskUserQuestion": _answered,
            "ExitPlanMode": self._leave_plan,
        }
        yield from tools.get(call.name, _structured)(call)

    def _may_begin(self, call: Call) -> bool:
        for other in self.all:
            if other is call:
                return True
            if other.state == "waiting" or (other.state != "done" and not (other.reads_only and call.reads_only)):
                return False
        return True

    def _judge(self, call: Call) -> Generator[None, None, None]:
        """Ask the hooks, and then, where they do not settle it, for a permission."""
        asked = [(hook, self._ask_hook(hook, call)) for hook in self._hooks if hook.matches(call.name)]
        while not all(self._wire.answered(name) for _, name in asked):
            yield
        decisions: dict[str, dict[str, Any]] = {}
        for hook, name in asked:
            answer = self._wire.answer(name)
            if answer["subtype"] != "success":
                if self._wire.ended:
                    call.fail(_UNANSWERED, _UNANSWERED)
                    call.mark = {"non_execution_kind": "cancelled"}
                    return
                if hook.on_failure != "continue":
                    decisions["deny"] = {"permissionDecisionReason": answer.get("error", "")}
                continue
            output = answer["response"].get("hookSpecificOutput") or {}
            decisions.setdefault(output.get("permissionDecision") or "", output)
        if "deny" in decisions:
            reason = decisions["deny"].get("permissionDecisionReason") or "denied"
            call.fail(f"PreToolUse:{call.name} hook error: {reason}")
            _reject(call, source="hook", reason_type="hook")
            return
        if not asked and self._harmless(call):
            _accept(call, source="config")
            return
        allowed = "allow" in decisions and "ask" not in decisions
        for output in decisions.values():
            call.input = output.get("updatedInput") or call.input
        self.hooked = self.hooked or allowed
        by_person = call.name == "ExitPlanMode" or (call.name == "AskUserQuestion" and "answers" not in call.input)
        if allowed and not by_person and call.name not in self._ask:
            _accept(call, source="hook", reason_type="hook")
            return
        yield from self._ask_permission(call, by_person=by_person)

    def _harmless(self, call: Call) -> bool:
        """What the real CLI runs without asking anyone when no hook is in force."""
        if call.name in self._ask:
            return False
        return call.reads_only or (call.name == "Write" and self._context()["permission_mode"] == "acceptEdits")

    def _ask_hook(self, hook: Hook, call: Call) -> str:
        given = {
            **self._context(),
            "hook_event_name": "PreToolUse",
            "tool_name": call.name,
            "tool_input": call.input,
            "tool_use_id": call.id,
        }
        return self._wire.request(
            {"subtype": "hook_callback", "callback_id": hook.callback_id, "input": given, "tool_use_id": call.id}
        )

    def _ask_permission(self, call: Call, *, by_person: bool) -> Generator[None, None, None]:
        if not self._prompts:
            call.fail(f"Claude requested permissions to use {call.name}, but you haven't granted it yet.")
            _reject(call, source="config")
            return
        request: dict[str, Any] = {"subtype": "can_use_tool", "tool_name": call.name, "display_name": call.name}
        request |= {"input": call.input, "tool_use_id": call.id}
        if by_person:
            request["requires_user_interaction"] = True
        self._on_state("requires_action")
        name = self._wire.request(request)
        while not self._wire.answered(name):
            yield
        answer = self._wire.answer(name)
        self._on_state("running")
        response = answer.get("response") or {"behavior": "deny", "message": answer.get("error", "")}
        if response.get("behavior") == "allow":
            call.input = response.get("updatedInput") or call.input
            _accept(call, source="user_temporary")
            return
        call.fail(response.get("message") or "denied")
        _reject(call, source="user_reject")
        self.interrupt = self.interrupt or bool(response.get("interrupt"))

    # ---- Tools ----

    def _bash(self, call: Call) -> Generator[None, None, None]:
        command, background = str(call.input["command"]), bool(call.input.get("run_in_background"))
        output = os.memfd_create("output")
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ]
        call.pid = os.posix_spawn(
            _SHELL,
            [_SHELL, "-c", command],
            os.environ,
            file_actions=actions,
            setsid=True,
            setsigdef=[signal.SIGTERM, signal.SIGINT, signal.SIGPIPE],
        )
        self._on_point()
        if background:
            os.close(output)
            call.succeed(f"Command running in background with ID: b{call.pid}.", _shell_result(""), marked=True)
            return
        call.pidfd = os.pidfd_open(call.pid)
        began = time.monotonic()
        limit = began + float(call.input.get("timeout") or 120_000) / 1000
        task: dict[str, Any] = {}
        call.deadline = min(began + _LONG, limit)
        status = None
        while status is None:
            yield
            pid, raw = os.waitpid(call.pid, os.WNOHANG)
            if pid:
                status = os.waitstatus_to_exitcode(raw)
            elif time.monotonic() >= limit:
                self._end_process(call)
                status = -int(signal.SIGTERM)
            elif time.monotonic() - began >= _LONG and not task:
                call.deadline = limit
                task = {"task_id": f"b{call.pid}", "tool_use_id": call.id}
                shell = {"is_backgrounded": False, "task_type": "local_bash"}
                self._on_task({"subtype": "task_started", **task, "description": command, **shell})
        os.close(call.pidfd)
        call.pidfd = -1
        call.pid = 0
        if task:
            ended = {"status": "failed" if status else "completed", "output_file": "", "summary": command}
            self._on_task({"subtype": "task_notification", **task, **ended})
        with open(output, "rb") as file:
            file.seek(0)
            text = file.read().decode(errors="replace").strip("\n")
        if len(text) > _MAX_OUTPUT:
            text = f"{text[:_MAX_OUTPUT]}\n... [{len(text) - _MAX_OUTPUT} characters truncated] ..."
        if status:
            code = status if status > 0 else 128 - status
            call.fail(f"Exit code {code}\n{text}".rstrip("\n"))
        else:
            call.succeed(text or "(Bash completed with no output)", _shell_result(text), marked=True)

    def _leave_plan(self, call: Call) -> Generator[None, None, None]:
        self._on_mode("default")
        text = "User has approved exiting plan mode. You can now proceed."
        call.succeed(text, {"plan": call.input.get("plan"), "isAgent": False})
        yield from ()


def _goes_on(call: Call, run: Generator[None, None, None]) -> bool:
    try:
        next(run)
    except StopIteration:
        call.state = "done"
        return False
    return True


def _accept(call: Call, **decision: str) -> None:
    call.mark = {"permission_decision": {"decision": "accept", **decision}}


def _reject(call: Call, **decision: str) -> None:
    call.mark = {
        "non_execution_kind": "permission-rule",
        "permission_decision": {"decision": "reject", **decision},
    }


def _shell_result(text: str) -> dict[str, Any]:
    return {"stdout": text, "stderr": "", "interrupted": False, "isImage": False, "noOutputExpected": False}


def _read(call: Call) -> Generator[None, None, None]:
    path = os.path.abspath(str(call.input["file_path"]))
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        call.fail(f"File does not exist. Note: your current working directory is {os.getcwd()}.")
        return
    lines = text.removesuffix("\n").split("\n")
    info = {"filePath": path, "content": text, "numLines": len(lines), "startLine": 1, "totalLines": len(lines)}
    call.succeed("\n".join(f"{at}\t{line}" for at, line in enumerate(lines, 1)), {"type": "text", "file": info})
    yield from ()


def _write(call: Call) -> Generator[None, None, None]:
    path, text = os.path.abspath(str(call.input["file_path"])), str(call.input.get("content", ""))
    kind = "update" if os.path.exists(path) else "create"
    try:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        call.fail(f"{error.strerror}: {path}")
        return
    done: dict[str, Any] = {
        "type": kind,
        "filePath": path,
        "content": text,
        "structuredPatch": [],
        "originalFile": None,
    }
    call.succeed(f"File {kind}d successfully at: {path}", {**done, "userModified": False}, marked=True)
    yield from ()


def _answered(call: Call) -> Generator[None, None, None]:
    answers = call.input.get("answers") or {}
    said = ", ".join(f'"{question}"="{answer}"' for question, answer in answers.items())
    text = f"Your questions have been answered: {said}. You can now continue with these answers in mind."
    structured = {"questions": call.input.get("questions"), "answers": answers}
    call.succeed(text if answers else "The user did not answer the questions.", structured)
    yield from ()


def _structured(call: Call) -> Generator[None, None, None]:
    call.succeed("Structured output provided successfully", call.input)
    yield from ()
