"""A log to report on, written with a builder: runs, tools, approvals and subagents at chosen times."""

from datetime import UTC, datetime

from agentrpc.reports.collect import Collector
from agentrpc.v1 import approval_pb2, common_pb2, content_pb2, event_pb2, run_pb2

SESSION = "sessions/0198a000-0000-7000-8000-000000000001"
RUN = f"{SESSION}/runs/0198a000-0000-7000-8000-000000000002"
START = datetime(2026, 11, 20, 9, 30, tzinfo=UTC).timestamp()
Outcome = event_pb2.ToolCallFinished


class Story:
    """Events of one run after the other."""

    def __init__(self):
        self.events = []
        self.runs = []
        self.now = START
        self.run = RUN
        self.calls = 0

    def event(self, after=0.0, parent="", **payload):
        self.now += after
        event = event_pb2.Event(sequence=len(self.events) + 1, run=self.run, parent_tool_use_id=parent, **payload)
        event.time.FromNanoseconds(round(self.now * 1e9))
        self.events.append(event)
        return event

    def prompt(self, text):
        blocks = [content_pb2.ContentBlock(text=content_pb2.TextBlock(text=text))]
        self.event(
            user_message=event_pb2.UserMessage(blocks=blocks, origin="ORIGIN_PROMPT", transcript_uuid=f"u{self.now}")
        )

    def say(self, text="", *, took=2.0, tools=(), usage=(1200, 300, 0, 8000), uuid="", parent=""):
        """The model writes a message with calls (id, tool, input)."""
        blocks = [content_pb2.ContentBlock(text=content_pb2.TextBlock(text=text))] if text else []
        for tool_use_id, tool, given in tools:
            call = content_pb2.ToolUseBlock(tool_use_id=tool_use_id, tool_name=tool, input_json=given)
            blocks.append(content_pb2.ContentBlock(tool_use=call))
        message = event_pb2.AssistantMessage(
            message_id="m", model="claude-sonnet-5", blocks=blocks, transcript_uuid=uuid
        )
        self.event(took, parent, assistant_message=message)
        if not parent:
            used = common_pb2.Usage(
                input_tokens=usage[0], output_tokens=usage[1], cache_write_tokens=usage[2], cache_read_tokens=usage[3]
            )
            done = event_pb2.MessageCompleted(message_id="m", usage=used, model="claude-sonnet-5")
            done.duration.FromMilliseconds(int(took * 1000))
            self.event(message_completed=done)

    def call(
        self, tool, given, *, took=1.0, outcome="SUCCEEDED", text="", denied="", parent="", start=True, before=0.0
    ):
        """A call from its start to its end."""
        self.calls += 1
        tool_use_id = f"toolu_{self.calls}"
        self.say(took=1.0, tools=[(tool_use_id, tool, given)], parent=parent)
        if start:
            started = event_pb2.ToolCallStarted(tool_use_id=tool_use_id, tool_name=tool)
            self.event(before, parent, tool_call_started=started)
        done = event_pb2.ToolCallFinished(
            tool_use_id=tool_use_id, tool_name=tool, outcome=f"OUTCOME_{outcome}", denial_reason=denied
        )
        done.content.add().text.text = text
        self.event(took, parent, tool_call_finished=done)
        return tool_use_id

    def ask(self, title, tool, given, *, wait=40.0, decision="ALLOW", scope="ONCE", message="", number=1):
        name = f"{SESSION}/approvals/0198a000-0000-7000-8000-0000000001{number:02}"
        approval = approval_pb2.Approval(
            name=name, title=title, tool_name=tool, input_json=given, reason="no rule allows it"
        )
        self.event(approval_requested=event_pb2.ApprovalRequested(approval=approval))
        if decision is None:
            return
        answer = approval_pb2.Resolution(decision=f"DECISION_{decision}", message=message, resolver="users/ann")
        if decision == "ALLOW":
            answer.scope = f"SCOPE_{scope}"
        state = "ALLOWED" if decision == "ALLOW" else "DENIED"
        self.event(
            wait, approval_resolved=event_pb2.ApprovalResolved(approval=name, state=f"STATE_{state}", resolution=answer)
        )

    def end(self, prompt, answer, *, began, state="SUCCEEDED", cost=0.1834, error=""):
        usage = common_pb2.Usage(
            input_tokens=21_400,
            output_tokens=5_900,
            cache_write_tokens=18_000,
            cache_read_tokens=164_000,
            cost_usd=cost,
        )
        small = common_pb2.Usage(input_tokens=3_000, output_tokens=400, cost_usd=0.0061)
        big = common_pb2.Usage(
            input_tokens=18_400,
            output_tokens=5_500,
            cache_write_tokens=18_000,
            cache_read_tokens=164_000,
            cost_usd=cost - 0.0061,
        )
        models = [
            common_pb2.ModelUsage(model="claude-haiku-5", usage=small),
            common_pb2.ModelUsage(model="claude-sonnet-5", usage=big),
        ]
        failed = run_pb2.RunError(reason="REASON_MAX_TURNS", message=error) if error else None
        ended = event_pb2.RunEnded(state=f"STATE_{state}", usage=usage, model_usage=models, error=failed)
        self.event(0.2, run_ended=ended)
        run = run_pb2.Run(
            name=self.run,
            prompt=prompt,
            state=f"STATE_{state}",
            attempt=1,
            usage=usage,
            model_usage=models,
            error=failed,
        )
        run.result.text = answer
        run.create_time.FromNanoseconds(int((began - 3) * 1e9))
        run.start_time.FromNanoseconds(int(began * 1e9))
        run.end_time.FromNanoseconds(int(self.now * 1e9))
        self.runs.append(run)

    def document(self, kind="run", title="Nightly dependency audit", state="SUCCEEDED", complete=True):
        collector = Collector(kind, title, RUN if kind == "run" else SESSION, state, complete=complete)
        for run in self.runs:
            collector.add_run(run)
        for event in self.events:
            collector.add(event)
        return collector.document()


def story():
    """A run with tools, approvals, a subagent, a denial and an error."""
    s = Story()
    began = s.now
    s.event(run_started=event_pb2.RunStarted(attempt=1))
    init = event_pb2.AgentInitialized(
        model="claude-sonnet-5", permission_mode="PERMISSION_MODE_DEFAULT", agent_version="2.0.44", tools=["Bash"] * 19
    )
    init.mcp_servers.add(name="github", status="connected")
    s.event(0.4, agent_initialized=init)
    s.prompt(
        "Check our dependencies for known vulnerabilities, update what is safe, run the tests, and write a summary."
    )
    s.say("I'll look at the lock file first, then at the advisories.", took=3.1)
    s.call("Read", '{"file_path": "uv.lock"}', took=0.2)
    s.call("Bash", '{"command": "uv tree --outdated | head -50"}', took=4.2, text="12 outdated")
    s.call("Grep", '{"pattern": "cryptography=="}', took=0.3)
    task = "toolu_task"
    s.say("A subagent reads the advisories meanwhile.", tools=[(task, "Task", '{"description": "Read advisories"}')])
    s.event(tool_call_started=event_pb2.ToolCallStarted(tool_use_id=task, tool_name="Task"))
    s.event(
        subtask_started=event_pb2.SubtaskStarted(
            subtask_id="sub1",
            tool_use_id=task,
            type="local_agent",
            subagent="general-purpose",
            description="Read advisories",
        )
    )
    for n in range(6):
        s.call("WebFetch", f'{{"url": "https://osv.dev/list?page={n}"}}', took=2.4, parent=task)
    s.call(
        "WebFetch",
        '{"url": "https://osv.dev/slow"}',
        took=9.0,
        outcome="FAILED",
        text="504 Gateway Timeout",
        parent=task,
    )
    ended = event_pb2.SubtaskEnded(
        subtask_id="sub1",
        outcome="OUTCOME_COMPLETED",
        summary="2 advisories concern us: one in a parser, one in a template engine. Both are fixed upstream.",
    )
    ended.usage.total_tokens = 24_310
    ended.usage.tool_call_count = 7
    s.event(0.5, subtask_ended=ended)
    done = event_pb2.ToolCallFinished(tool_use_id=task, tool_name="Task", outcome="OUTCOME_SUCCEEDED")
    s.event(0.1, tool_call_finished=done)
    s.say("Two packages need an update. I need your permission to change the lock file.")
    s.ask(
        "Claude wants to run: uv lock --upgrade-package jinja2",
        "Bash",
        '{"command": "uv lock --upgrade-package jinja2"}',
        wait=31.0,
        scope="SESSION",
    )
    s.call("Bash", '{"command": "uv lock --upgrade-package jinja2"}', took=6.3)
    s.call("Bash", '{"command": "./scripts/test -q"}', took=48.0, text="412 passed")
    s.ask(
        "Claude wants to run: git push origin main",
        "Bash",
        '{"command": "git push origin main"}',
        wait=22.0,
        decision="DENY",
        message="Open a pull request instead.",
        number=2,
    )
    s.call(
        "Bash",
        '{"command": "git push origin main"}',
        took=0.0,
        outcome="DENIED",
        denied="Open a pull request instead.",
        start=False,
    )
    s.call("mcp__github__create_pull_request", '{"title": "Update jinja2"}', took=2.2)
    s.event(model_call_retried=event_pb2.ModelCallRetried(attempt=1, max_attempts=10, error="overloaded"))
    answer = (
        "Two of 143 dependencies had known vulnerabilities; both are updated and all 412 tests pass.\n\n"
        "- jinja2 3.1.4 → 3.1.6 (sandbox escape)\n- tinycss2 1.3 → 1.4 (slow parsing)\n\n"
        "The change is in pull request #218; nothing was pushed to main."
    )
    s.say(answer, took=5.0)
    s.end(
        "Check our dependencies for known vulnerabilities, update what is safe, run the tests, and write a summary.",
        answer,
        began=began,
    )
    return s
