"""`run` and `chat`: a prompt, what streams by, and the questions that the agent asks."""

import asyncio
import json
import signal
import sys
from contextlib import suppress

from google.protobuf.json_format import MessageToDict
from rich.console import Console
from rich.live import Live
from rich.markdown import Markdown
from rich.text import Text

from agentrpc.cli.approvals import print_question
from agentrpc.cli.render import event_line, print_line
from agentrpc.cli.terminal import Terminal, printable, shown
from agentrpc.client import AgentRpcClient, Preview, RpcError
from agentrpc.domain.visible_text import visible
from agentrpc.v1 import approval_pb2, event_pb2, run_pb2

__all__ = ["chat", "run_once"]

_Resolution = approval_pb2.Resolution
_STATUS = {
    run_pb2.Run.STATE_SUCCEEDED: 0,
    run_pb2.Run.STATE_FAILED: 1,
    run_pb2.Run.STATE_CANCELLED: 3,
    run_pb2.Run.STATE_EXPIRED: 4,
    run_pb2.Run.STATE_UNKNOWN_OUTCOME: 5,
}
_NOBODY = 6


async def run_once(client: AgentRpcClient, session: str, prompt: str, *, approve: str, as_json: bool) -> int:
    """Run one prompt; the exit status."""
    notes = Terminal(stderr=True)
    preview = Preview()
    status, nobody = 1, False
    # Whether text stands on the last line, so that what comes next has to begin a new one.
    line_open = False
    names: list[str] = []

    def note(run: run_pb2.Run) -> None:
        names.append(run.name)

    async for event in client.run(session, prompt, include_deltas=True, on_run=note):
        if as_json:
            print(json.dumps(MessageToDict(event, preserving_proto_field_name=True)), flush=True)
        else:
            text = preview.feed(event)
            if text:
                sys.stdout.write(printable(text))
                sys.stdout.flush()
                line_open = not text.endswith("\n")
            elif line_open and (event.HasField("message_completed") or event_line(event) is not None):
                print(flush=True)
                line_open = False
            if not text:
                print_line(notes, event)
        if event.HasField("approval_requested"):
            approval = event.approval_requested.approval
            if approve == "ask" and sys.stdin.isatty():
                await _answer(client, await asyncio.to_thread(_ask, notes, approval), approval)
            elif approve == "all":
                await _answer(client, _Resolution(decision=_Resolution.DECISION_ALLOW), approval)
            elif approve == "none":
                deny = _Resolution(decision=_Resolution.DECISION_DENY, message="nobody may be asked")
                await _answer(client, deny, approval)
            else:
                nobody = True
                notes.print("an approval is asked and there is nobody to ask: use --approve all or none", style="red")
                await client.interrupt(names[0], "nobody to ask")
        if event.run_state_changed.state == run_pb2.Run.STATE_UNKNOWN_OUTCOME:
            notes.print(f"decide with `agentrpc runs resolve {event.run}`", highlight=False)
            return _STATUS[run_pb2.Run.STATE_UNKNOWN_OUTCOME]
        if event.HasField("run_ended"):
            status = _STATUS.get(event.run_ended.state, 1)
    return _NOBODY if nobody else status


async def chat(client: AgentRpcClient, session: str) -> None:
    """Talk until the end of input."""
    console = Terminal()
    console.print(f"{session} · Ctrl-C interrupts, twice leaves, Ctrl-D ends", style="dim")
    while True:
        try:
            prompt = await asyncio.to_thread(console.input, Text("> ", "bold"))
        except (EOFError, KeyboardInterrupt):
            return
        if prompt.strip():
            await _turn(client, console, session, prompt)


async def _turn(client: AgentRpcClient, console: Console, session: str, prompt: str) -> None:
    names: list[str] = []
    interrupted = 0
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[object]] = set()

    def on_interrupt() -> None:
        nonlocal interrupted
        interrupted += 1
        if interrupted > 1 or not names:
            raise SystemExit(130)
        tasks.add(loop.create_task(client.interrupt(names[0], "Ctrl-C")))

    loop.add_signal_handler(signal.SIGINT, on_interrupt)
    live: Live | None = None
    preview, text = Preview(), ""
    try:
        async for event in client.run(session, prompt, include_deltas=True, on_run=lambda run: names.append(run.name)):
            fresh = preview.feed(event)
            if fresh:
                text += fresh
                if live is None:
                    live = Live(console=console, refresh_per_second=12, vertical_overflow="visible")
                    live.start()
                live.update(Markdown(visible(text, keep="\n\t")))
                continue
            if live is not None and _is_durable(event):
                live.stop()
                live, text = None, ""
            print_line(console, event)
            if event.HasField("approval_requested"):
                approval = event.approval_requested.approval
                await _answer(client, await asyncio.to_thread(_ask, console, approval), approval)
    finally:
        if live is not None:
            live.stop()
        loop.remove_signal_handler(signal.SIGINT)


def _is_durable(event: event_pb2.Event) -> bool:
    return event.sequence > 0


async def _answer(client: AgentRpcClient, resolution: _Resolution, approval: approval_pb2.Approval) -> None:
    # Somebody else may have been faster; the stream says so.
    with suppress(RpcError):
        await client.resolve(approval.name, resolution)


def _ask(console: Console, approval: approval_pb2.Approval) -> _Resolution:
    """Ask the person at the terminal. Blocking."""
    allow = _Resolution(decision=_Resolution.DECISION_ALLOW)
    if approval.kind == approval_pb2.Approval.KIND_QUESTION:
        allow.updated_input_json = _ask_questions(console, approval.input_json)
        return allow
    if approval.kind == approval_pb2.Approval.KIND_PLAN:
        with suppress(ValueError):
            console.print(Markdown(visible(str(json.loads(approval.input_json or "{}").get("plan", "")), keep="\n\t")))
    print_question(console, approval)
    choices = "y = yes, n = no, e = edit the input"
    if approval.session_rules:
        choices += ", s = yes, and for the session"
    while True:
        answer = console.input(f"{choices}: ").strip()
        if answer in {"y", "yes"}:
            return allow
        if answer == "s" and approval.session_rules:
            allow.scope = _Resolution.SCOPE_SESSION
            return allow
        if answer == "e":
            edited = console.input("input as JSON: ").strip()
            with suppress(ValueError):
                if isinstance(json.loads(edited), dict):
                    allow.updated_input_json = edited
                    return allow
            console.print("that is not a JSON object", style="red")
        if answer in {"n", "no"}:
            message = console.input("what to tell the agent (may be empty): ").strip()
            return _Resolution(decision=_Resolution.DECISION_DENY, message=message)


def _ask_questions(console: Console, input_json: str) -> str:
    given = json.loads(input_json or "{}")
    answers: dict[str, str] = {}
    for question in given.get("questions", []):
        console.print(shown(str(question.get("question", "")), "bold"), highlight=False)
        options = question.get("options", [])
        for number, option in enumerate(options, 1):
            label, told = str(option.get("label", "")), str(option.get("description", ""))
            console.print(Text.assemble(f"  {number}. ", shown(label), " ", shown(told, "dim")), highlight=False)
        said = console.input("number, or your own words: ").strip()
        picked = [
            options[int(n) - 1]["label"] for n in said.split(",") if n.strip().isdigit() and 0 < int(n) <= len(options)
        ]
        answers[question.get("question", "")] = ", ".join(picked) or said
    return json.dumps({**given, "answers": answers}, ensure_ascii=False)
