"""Questions of agents to people: shown in full, answered; and the rules that answers have added."""

import json
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.terminal import Terminal, print_lines, shown
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import approval_pb2, approval_service_pb2, session_service_pb2

__all__ = ["print_question", "register"]

approvals_app = typer.Typer(help="Questions of agents to people.", no_args_is_help=True)
console = Terminal()


def register(app: typer.Typer, sessions_app: typer.Typer) -> None:
    """Add the commands."""
    app.add_typer(approvals_app, name="approvals")
    sessions_app.command("grants")(list_grants)
    sessions_app.command("revoke-grant")(revoke_grant)


def print_question(target: Console, approval: approval_pb2.Approval) -> None:
    """A question with all that one decides about: the whole input of the call, and the rules that an answer may add."""
    line = Text.assemble(shown(approval.title, "yellow"), " ", shown(f"({approval.reason})", "dim"))
    target.print(line, soft_wrap=True, highlight=False)
    if approval.HasField("omitted"):
        told = f"  its input has {approval.omitted.total_bytes} bytes, too many to be shown: nobody has seen all of it"
        target.print(Text(told, "red"), soft_wrap=True)
    else:
        _print_input(target, approval.input_json)
    for rule in approval.session_rules:
        line = Text.assemble(("  for the session it would add ", "dim"), shown(rule))
        target.print(line, soft_wrap=True, highlight=False)


def _print_input(target: Console, text: str) -> None:
    try:
        given = json.loads(text or "{}")
    except ValueError:
        given = None
    if not isinstance(given, dict):
        print_lines(target, text)
        return
    for key, value in given.items():
        whole = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if "\n" in whole:
            count = whole.count("\n") + (not whole.endswith("\n"))
            target.print(Text.assemble("  ", shown(key, "bold"), (f": {count} lines", "dim")), soft_wrap=True)
            print_lines(target, whole)
        else:
            line = Text.assemble("  ", shown(key, "bold"), ": ", shown(whole))
            target.print(line, soft_wrap=True, highlight=False)


@approvals_app.command("list")
def list_approvals(session: str = "-", everything: Annotated[bool, typer.Option("--all")] = False) -> None:
    """List approvals that wait, or --all, each with the whole of what it is about."""

    async def work(client: AgentRpcClient) -> None:
        states = [] if everything else [approval_pb2.Approval.STATE_PENDING]
        request = approval_service_pb2.ListApprovalsRequest(parent=_session_name(session), states=states)
        response = await client.call(client.approvals.ListApprovals, request)
        for found in response.approvals:
            _print_one(found)

    run_command(work)


@approvals_app.command("watch")
def watch_approvals(session: str = "-") -> None:
    """Watch approvals."""

    async def work(client: AgentRpcClient) -> None:
        async for found in client.watch_approvals(_session_name(session)):
            _print_one(found)

    run_command(work)


def _print_one(approval: approval_pb2.Approval) -> None:
    state = approval_pb2.Approval.State.Name(approval.state).removeprefix("STATE_")
    console.print(Text.assemble(shown(approval.name), " ", (state, "bold")), soft_wrap=True, highlight=False)
    print_question(console, approval)


@approvals_app.command("resolve")
def resolve_approval(
    name: str,
    allow: Annotated[bool, typer.Option("--allow/--deny")],
    for_session: Annotated[
        bool, typer.Option(help="Add the rules that `approvals list` shows for the session.")
    ] = False,
    message: Annotated[str, typer.Option(help="With --deny: what the agent is told.")] = "",
) -> None:
    """Answer an approval."""
    resolution = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_DENY, message=message)
    if allow:
        resolution = approval_pb2.Resolution(decision=approval_pb2.Resolution.DECISION_ALLOW)
        if for_session:
            resolution.scope = approval_pb2.Resolution.SCOPE_SESSION

    async def work(client: AgentRpcClient) -> None:
        _print_one(await client.resolve(name, resolution))

    run_command(work)


# ---- What answers have added ----


def list_grants(session: str) -> None:
    """List the rules that answers "for the session" have added."""

    async def work(client: AgentRpcClient) -> None:
        request = session_service_pb2.ListSessionGrantsRequest(parent=_session_name(session), page_size=500)
        while True:
            response = await client.call(client.sessions.ListSessionGrants, request)
            for grant in response.grants:
                console.print(
                    Text.assemble(shown(grant.name), " ", shown(grant.rule, "bold")), soft_wrap=True, highlight=False
                )
                when = f"{grant.create_time.ToDatetime():%Y-%m-%d %H:%M} UTC"
                told = f"  by {grant.creator or 'somebody'}, {when}, from {grant.approval}"
                console.print(told, style="dim", soft_wrap=True)
            if not response.next_page_token:
                return
            request.page_token = response.next_page_token

    run_command(work)


def revoke_grant(
    grant: Annotated[str, typer.Argument(help="As `sessions grants` lists it: sessions/{session}/grants/{grant}.")],
) -> None:
    """Take back a rule that an answer "for the session" has added: from the next tool call on it allows nothing."""
    if "/grants/" not in grant:
        raise fail("name the grant as `agentrpc sessions grants SESSION` does", 2)
    request = session_service_pb2.RevokeSessionGrantRequest(name=grant)

    async def work(client: AgentRpcClient) -> None:
        await client.call(client.sessions.RevokeSessionGrant, request)
        console.print("revoked")

    run_command(work)


def _session_name(text: str) -> str:
    return text if text.startswith("sessions/") else f"sessions/{text}"
