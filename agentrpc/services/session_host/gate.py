"""The gate: every tool call of the CLI waits here until its start is committed, or until it is denied.

Keeps promises 3, 4 and 6. A call is allowed only after `tool_call_started` was committed under the lease's epoch
together with its row in the tool ledger, so that no row means that it did not run. No decision, a time-out, an error, a
stale lease or an unreachable database denies.
"""

import asyncio
import hashlib
import json
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import structlog

from agentrpc import clock
from agentrpc.claude.content import clean
from agentrpc.claude.translation import Translator
from agentrpc.domain.gate import ToolCall, Verdict, why_denied
from agentrpc.domain.rule_syntax import read_rules
from agentrpc.domain.rules import EXIT_PLAN, Decision, Outcome, Own, Rule, Target, decide, session_rules
from agentrpc.domain.visible_text import visible_lines
from agentrpc.errors import AgentRpcError, LeaseLostError
from agentrpc.names import approval_name, run_name
from agentrpc.services.session_host import lifecycle
from agentrpc.services.session_host.hold import Hold
from agentrpc.services.session_host.lifecycle import Asked, SessionRules
from agentrpc.store.log import StartedCall
from agentrpc.v1 import approval_pb2, common_pb2, event_pb2, session_pb2

__all__ = ["SessionGate"]

log = structlog.get_logger()

_INLINE = 256 * 1024
_DEFAULT_WAIT = timedelta(hours=1)
# How long a call waits for the frame with its block, so that `tool_call_started` stands behind the block in the log.
_BLOCK_WAIT = 0.5
_STORE_PATIENCE = 20.0
_WITHDRAWN_AFTER = 1.0
# A call that was held for longer than this is judged once more before it begins.
_MOMENT = 0.1
_TITLE = 200

# Judging looks at links on a disk that may be slow. Threads of its own: it must not wait behind copies of files.
_judges = ThreadPoolExecutor(max_workers=4, thread_name_prefix="judge")

_KINDS = {
    "AskUserQuestion": approval_pb2.Approval.KIND_QUESTION,
    EXIT_PLAN: approval_pb2.Approval.KIND_PLAN,
}


class SessionGate:
    """Decides about the calls of one session.

    Args:
        hold: The session.
        translator: Is told what was started and what was denied.
        workspace: The absolute path of the workspace.
        own: Where the agent has files of its own.
        home: The agent's home. None: not known.
        resolve: Where an absolute path leads, as the agent's processes see it. None: nothing is a link.
        may_begin: Whether the worker's lease still allows to begin anything.

    Attributes:
        starting: How many calls are about to be noted in the store, as begun or as asked for.
    """

    def __init__(
        self,
        hold: Hold,
        translator: Translator,
        *,
        workspace: str,
        own: Own | None = None,
        home: str | None = None,
        resolve: Callable[[str], Target] | None = None,
        may_begin: Callable[[], bool],
    ) -> None:
        self._held = hold
        self._writer = hold.writer
        self._session_id = hold.session_id
        self._translator = translator
        self._workspace = os.path.realpath(workspace)
        self._home = home
        self._resolve = resolve
        self._own = own
        self._may_begin = may_begin
        self._options = session_pb2.SessionOptions()
        self._allowed: list[Rule] = []
        self._disallowed: list[Rule] = []
        self._revision: int | None = None
        self._mode = "DEFAULT"
        # Whether this run's plan was approved: the CLI has left the plan mode that the session is in.
        self.planned = False
        self._withdrawn: dict[UUID, float] = {}
        self._run_id: UUID | None = None
        self._waiting: dict[UUID, asyncio.Future[tuple[str, approval_pb2.Resolution]]] = {}
        self._blocks: dict[str, asyncio.Event] = {}
        self._at_gate: set[str] = set()
        self.starting = 0
        self._asked_at: float | None = None
        self._answers: dict[str, Asked] = {}
        self._attempts: dict[str, int] = {}
        self._open = asyncio.Event()
        self._open.set()
        self._sealed = False
        self.interrupt: Callable[[], None] = lambda: None
        self.in_transcript: Callable[[str], bool] = lambda _: True
        self.rules_since: Callable[[int | None], Awaitable[SessionRules | None]] = _unchanged

    def begin_run(self, run_id: UUID, options: session_pb2.SessionOptions, *, planned: bool = False) -> None:
        """From now on calls belong to this run and are judged by these options, and by the rules of their moment."""
        self._run_id = run_id
        self._options = options
        self._revision = None
        self._allowed = read_rules(options.allowed_tools, allow=True)
        self._disallowed = read_rules(options.disallowed_tools, allow=False)
        self._mode = _mode(options)
        self.planned = planned and self._mode == "PLAN"
        if self.planned:
            self._mode = "DEFAULT"
        self._withdrawn.clear()
        self._blocks.clear()
        self._answers, self._attempts = {}, {}
        self._sealed = False
        self._open.set()

    def expect(self, answers: Mapping[str, Asked], attempts: Mapping[str, int]) -> None:
        """What is known of the calls that a new process takes up again.

        Args:
            answers: What people have said, by tool_use_id: such a call is not asked for again.
            attempts: The number of the attempt of calls that are made again, by tool_use_id.
        """
        self._answers, self._attempts = dict(answers), dict(attempts)
        for tool_use_id in [*answers, *attempts]:
            self.saw_block(tool_use_id)

    def end_run(self) -> None:
        """No call may begin until the next run; those that wait are denied."""
        self._run_id = None
        self._open.set()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.cancel()

    def saw_block(self, tool_use_id: str) -> None:
        """The block of a call went to the writer."""
        self._blocks.setdefault(tool_use_id, asyncio.Event()).set()

    def call_ended(self, tool_use_id: str) -> None:
        """The result of a call has come. Some are never asked about here: the CLI refuses them by itself."""
        self._blocks.pop(tool_use_id, None)

    def hold(self, *, held: bool) -> None:
        """While held, calls wait here before they are judged, and before they begin."""
        if held:
            self._open.clear()
        elif not self._sealed:
            self._open.set()

    def seal(self) -> None:
        """Hold calls for as long as this run is here, whatever else is said: the process is about to go."""
        self._sealed = True
        self._open.clear()

    @property
    def at_gate(self) -> frozenset[str]:
        """Calls that wait here, held or for an answer: none of them has begun."""
        return frozenset(self._at_gate)

    @property
    def waited(self) -> float:
        """For how many seconds calls have waited for answers; 0 when none does."""
        return time.monotonic() - self._asked_at if self._waiting and self._asked_at is not None else 0.0

    def take_withdrawn(self) -> list[UUID]:
        """Approvals that the CLI has given up waiting for, though it goes on: the message that asked is gone.

        Only after a while: when it ends it gives them up too, and they wait for the next process.
        """
        due = [key for key, since in self._withdrawn.items() if time.monotonic() - since > _WITHDRAWN_AFTER]
        for key in due:
            del self._withdrawn[key]
        return due

    async def check_answers(self) -> None:
        """Look in the store for answers to what waits. Called on a signal, and once a second while something waits."""
        if not self._waiting:
            return
        found = await lifecycle.resolutions(self._held.database, self._session_id, list(self._waiting))
        for approval_id, answer in found.items():
            waiting = self._waiting.get(approval_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    async def __call__(self, call: ToolCall) -> Verdict:
        """Judge one call. Never raises: an error is a denial."""
        try:
            return await self._judge(call)
        except LeaseLostError:
            return self._deny(call, "this worker has lost the session", "policy", interrupt=True)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return self._deny(call, "the run was stopped before anyone answered", "approval")
        except AgentRpcError as error:
            log.warning("gate_denied", reason=error.reason, tool=call.tool_name)
            return self._deny(call, "the call could not be recorded, so it was not made; try again", "policy")
        except Exception:
            log.exception("gate_failed", tool=call.tool_name)
            return self._deny(call, "the call could not be judged, so it was not made", "policy")

    async def _judge(self, call: ToolCall) -> Verdict:
        await self._wait_for_block(call.tool_use_id)
        self._at_gate.add(call.tool_use_id)
        try:
            run_id = self._run_id
            await self._open.wait()
            if run_id is None or not self._is_on(run_id):
                return self._deny(call, "no run is under way", "policy")
            return await self._decide(call, run_id)
        finally:
            self._at_gate.discard(call.tool_use_id)

    async def _decide(self, call: ToolCall, run_id: UUID) -> Verdict:
        answer = self._answers.pop(call.tool_use_id, None)
        if answer is not None:
            return await self._heed(call, run_id, answer.state, answer.resolution)
        decision = await self._judged(call, call.input)
        if call.tool_use_id in self._attempts and not _by_rule(decision):
            # Allowed once already, and a caller has decided that it is made again.
            return await self._start(call, run_id, None, allowed_by_person=True)
        if decision.outcome is Outcome.DENY:
            return self._refuse(call, decision)
        if decision.outcome is Outcome.ALLOW:
            return await self._start(call, run_id, None)
        return await self._ask(call, run_id, decision)

    async def _judged(self, call: ToolCall, given: Mapping[str, Any]) -> Decision:
        """The decision about a call with this input, by the rules of this moment."""
        async with asyncio.timeout(_STORE_PATIENCE):
            rules = await self._held.patiently(lambda: self.rules_since(self._revision))
        if rules is not None:
            self._revision = rules.revision
            self._allowed = read_rules(rules.allowed, allow=True)
            self._disallowed = read_rules(rules.disallowed, allow=False)
        judge = partial(
            decide,
            call.tool_name,
            given,
            workspace=self._workspace,
            mode=self._mode,
            allowed=self._allowed,
            disallowed=self._disallowed,
            own=self._own,
            home=self._home,
            folder=call.folder,
            resolve=self._resolve,
        )
        return await asyncio.get_running_loop().run_in_executor(_judges, judge)

    def _refuse(self, call: ToolCall, decision: Decision) -> Verdict:
        return self._deny(call, f"{call.tool_name} is not allowed: {decision.reason}", decision.decided_by)

    async def _wait_for_block(self, tool_use_id: str) -> None:
        seen = self._blocks.setdefault(tool_use_id, asyncio.Event())
        try:
            async with asyncio.timeout(_BLOCK_WAIT):
                await seen.wait()
        except TimeoutError:
            log.info("block_not_seen", tool_use_id=tool_use_id)
        finally:
            self._blocks.pop(tool_use_id, None)

    async def _wait_for_line(self, tool_use_id: str) -> None:
        """Should this worker be lost, another one knows the call and its place from the transcript alone."""
        deadline = time.monotonic() + _BLOCK_WAIT
        while not self.in_transcript(tool_use_id) and time.monotonic() < deadline:  # noqa: ASYNC110 - for moments
            await asyncio.sleep(0.002)

    async def _enter(self, call: ToolCall) -> None:
        """Wait until nothing holds the call back. From then on, and while `starting` counts it, the process stays.

        What it waits for comes first: between the last look at the hold and the count nothing else may run.
        """
        if not call.agent_id:
            await self._wait_for_line(call.tool_use_id)
        while not self._open.is_set():
            await self._open.wait()
        self.starting += 1

    async def _start(
        self,
        call: ToolCall,
        run_id: UUID,
        updated: dict[str, object] | None,
        *,
        allowed_by_person: bool = False,
    ) -> Verdict:
        # An answer may come while the process is about to go: then the call is made by the next one.
        began = time.monotonic()
        await self._enter(call)
        self._at_gate.discard(call.tool_use_id)
        try:
            if time.monotonic() - began > _MOMENT:
                decision = await self._judged(call, call.input if updated is None else updated)
                if _by_rule(decision) or (decision.outcome is not Outcome.ALLOW and not allowed_by_person):
                    return self._refuse(call, decision)
            return await self._commit(call, run_id, updated)
        finally:
            self.starting -= 1

    async def _commit(self, call: ToolCall, run_id: UUID, updated: dict[str, object] | None) -> Verdict:
        if not self._is_on(run_id):
            return self._deny(call, "the run was stopped", "policy")
        event = event_pb2.Event(
            tool_call_started=event_pb2.ToolCallStarted(tool_use_id=call.tool_use_id, tool_name=call.tool_name)
        )
        if updated is not None:
            event.tool_call_started.changed_input_json = json.dumps(updated, ensure_ascii=False)
        event.parent_tool_use_id = self._translator.parent_of(call.agent_id)
        event.time.FromDatetime(clock.utcnow())
        # The CLI's hook waits with us. A database that is away for longer denies; the writer may still commit the start
        # later, so that the ledger then says "in doubt", which is the safe side.
        async with asyncio.timeout(_STORE_PATIENCE):
            attempt = self._attempts.get(call.tool_use_id, 1)
            await self._writer.commit(event, started=StartedCall(call.tool_use_id, call.tool_name, run_id, attempt))
        if not self._is_on(run_id):
            return self._deny(call, "the run was stopped", "policy")
        self._translator.call_started(call.tool_use_id, clock.utcnow())
        return Verdict(allow=True, updated_input=updated)

    def _is_on(self, run_id: UUID) -> bool:
        """Whether calls of this run may begin."""
        return self._run_id == run_id and self._may_begin()

    def _deny(self, call: ToolCall, reason: str, by: str, *, interrupt: bool = False) -> Verdict:
        self._translator.call_denied(call.tool_use_id, reason, by)
        return Verdict(allow=False, message=reason, interrupt=interrupt)

    async def _ask(self, call: ToolCall, run_id: UUID, decision: Decision) -> Verdict:
        approval_id = clock.uuid7()
        approval = self._approval(call, run_id, approval_id, decision, await self._session_rules(call))
        await self._enter(call)
        answered: asyncio.Future[tuple[str, approval_pb2.Resolution]] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._asked_at = time.monotonic()
        self._waiting[approval_id] = answered
        try:
            held = self._held
            try:
                # For as long as the lease holds: with the question stored and its call denied, somebody would answer
                # and nothing would come of it.
                asked = None
                if self._is_on(run_id):
                    await self._writer.flush()
                    asked = await held.patiently(
                        lambda: lifecycle.request_approval(
                            held.database, self._session_id, run_id, held.epoch, approval
                        )
                    )
            finally:
                self.starting -= 1
            if asked is None:
                return self._deny(call, "the run was stopped", "policy")
            await held.show(asked)
            # By no clock of this machine: the deadline is one of the database's.
            wait = (approval.expire_time.ToDatetime() - approval.create_time.ToDatetime()).total_seconds()
            try:
                async with asyncio.timeout(wait + 2):
                    state, resolution = await answered
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    self._withdrawn[approval_id] = time.monotonic()
                raise
            except TimeoutError:
                # The scheduler writes the expiry; this worker need not wait for it to deny. What was answered in time
                # counts, even if nobody has looked since.
                found = await held.patiently(
                    lambda: lifecycle.resolutions(held.database, self._session_id, [approval_id])
                )
                state, resolution = found.get(approval_id, ("EXPIRED", approval_pb2.Resolution()))
        finally:
            self._waiting.pop(approval_id, None)
        return await self._heed(call, run_id, state, resolution)

    async def _heed(self, call: ToolCall, run_id: UUID, state: str, resolution: approval_pb2.Resolution) -> Verdict:
        if state != "ALLOWED":
            if resolution.interrupt:
                self.interrupt()
            reason = why_denied(state, resolution.message)
            return self._deny(call, reason, "approval", interrupt=resolution.interrupt)
        updated = json.loads(resolution.updated_input_json) if resolution.updated_input_json else None
        # The answer may be old, or about another input than the agent's: rules that deny were not asked.
        decision = await self._judged(call, call.input if updated is None else updated)
        if _by_rule(decision):
            return self._refuse(call, decision)
        if call.tool_name == EXIT_PLAN and self._mode == "PLAN":
            self._mode, self.planned = "DEFAULT", True
        return await self._start(call, run_id, updated, allowed_by_person=True)

    async def _session_rules(self, call: ToolCall) -> list[str]:
        rules = partial(
            session_rules,
            call.tool_name,
            call.input,
            self._workspace,
            home=self._home,
            folder=call.folder,
            resolve=self._resolve,
        )
        return await asyncio.get_running_loop().run_in_executor(_judges, rules)

    def _approval(
        self, call: ToolCall, run_id: UUID, approval_id: UUID, decision: Decision, rules: list[str]
    ) -> approval_pb2.Approval:
        approval = approval_pb2.Approval(
            name=approval_name(self._session_id, approval_id),
            run=run_name(self._session_id, run_id),
            kind=_KINDS.get(call.tool_name, approval_pb2.Approval.KIND_TOOL),
            state=approval_pb2.Approval.STATE_PENDING,
            tool_use_id=call.tool_use_id,
            tool_name=call.tool_name,
            title=_title(call),
            reason=clean(decision.reason),
            blocked_path=clean(decision.blocked_path),
            # A rule that cannot be stored as it is would allow something else.
            session_rules=rules if all(clean(rule) == rule for rule in rules) else [],
            parent_tool_use_id=self._translator.parent_of(call.agent_id),
        )
        # What is judged here and no other thing, such as what a frame of the CLI says of this call.
        data = json.dumps(call.input, ensure_ascii=False).encode("utf-8", "replace")
        if len(data) > _INLINE:
            approval.omitted.total_bytes = len(data)
            approval.omitted.sha256 = hashlib.sha256(data).hexdigest()
        else:
            approval.input_json = data.decode()
        now = clock.utcnow()
        wait = self._options.approval_timeout.ToTimedelta() or _DEFAULT_WAIT
        approval.create_time.FromDatetime(now)
        approval.expire_time.FromDatetime(now + wait)
        return approval


def _mode(options: session_pb2.SessionOptions) -> str:
    name = common_pb2.PermissionMode.Name(options.permission_mode).removeprefix("PERMISSION_MODE_")
    return "DEFAULT" if name == "UNSPECIFIED" else name


async def _unchanged(_: int | None) -> SessionRules | None:
    return None


def _by_rule(decision: Decision) -> bool:
    """Whether a rule denies, which no person's answer changes."""
    return decision.outcome is Outcome.DENY and decision.decided_by == "rule"


def _title(call: ToolCall) -> str:
    if call.tool_name == "AskUserQuestion":
        return "Claude asks a question"
    if call.tool_name == EXIT_PLAN:
        return "Claude has a plan and asks to carry it out"
    for key, verb in (("command", "run"), ("file_path", call.tool_name.lower()), ("url", "fetch")):
        value = call.input.get(key)
        if isinstance(value, str):
            lines = visible_lines(clean(value))
            count = f" {len(lines)} lines" if len(lines) > 1 else ""
            short = "⏎".join(" ".join(line.split()) for line in lines)
            return f"Claude wants to {verb}{count}: {short[:_TITLE]}{'…' if len(short) > _TITLE else ''}"
    return f"Claude wants to call {clean(call.tool_name)}"
