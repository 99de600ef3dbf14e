"""`agentrpc credentials`.

Values are read from a file or from standard input, never from the words of the command, which other processes see.
"""

import sys
from pathlib import Path
from typing import Annotated

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from rich.table import Column, Table

from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.resources import Json, full_name, print_json, show, when
from agentrpc.cli.terminal import Terminal
from agentrpc.client import AgentRpcClient
from agentrpc.domain.credentials import KINDS
from agentrpc.v1 import credential_pb2, credential_service_pb2

__all__ = ["app"]

app = typer.Typer(help="Secrets that agents use without having them.", no_args_is_help=True)
console = Terminal()

Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="Where it is added: a host, or *.domain, with :port if not 443; may be repeated."),
]
SecretFile = Annotated[
    str, typer.Option(help="The file that holds the value; - reads standard input. Left out: it is asked for.")
]


def _name(text: str) -> str:
    return full_name("credentials", text)


def _secret(file: str) -> str:
    if not file and sys.stdin.isatty():
        return str(typer.prompt("Value", hide_input=True))
    try:
        text = sys.stdin.read() if file in {"", "-"} else Path(file).read_text()
    except (OSError, ValueError) as error:
        raise fail(f"{file} cannot be read: {error}", 2) from None
    return text.removesuffix("\n").removesuffix("\r")


@app.command("create")
def create_credential(
    display_name: str,
    kind: Annotated[str, typer.Option(help="bearer, basic, header or git.")],
    host: Hosts = None,
    secret_file: SecretFile = "",
    username: Annotated[str, typer.Option(help="For basic, and for git if not x-access-token.")] = "",
    header: Annotated[str, typer.Option(help="The name of the header, for header.")] = "",
    description: str = "",
    shared: Annotated[bool, typer.Option(help="All users may use it.")] = False,
) -> None:
    """Store a credential."""
    if kind not in KINDS:
        raise fail(f"--kind must be one of {', '.join(KINDS)}", 2)
    if username and kind not in {"basic", "git"}:
        raise fail("--username goes with --kind basic and git", 2)
    if (kind == "header") != bool(header):
        raise fail("--header goes with --kind header, which needs it", 2)
    given = credential_pb2.Credential(
        display_name=display_name, description=description, shared=shared, hosts=host or []
    )
    values = {KINDS[kind]: _secret(secret_file)}
    values |= {"username": username} if username else {}
    values |= {"name": header} if header else {}
    getattr(given, kind).MergeFrom(type(getattr(given, kind))(**values))
    request = credential_service_pb2.CreateCredentialRequest(credential=given)
    show(lambda client: client.call(client.credentials.CreateCredential, request))


@app.command("list")
def list_credentials(page_size: int = 50, as_json: Json = False) -> None:
    """List credentials that you may use, newest first."""

    async def work(client: AgentRpcClient) -> None:
        request = credential_service_pb2.ListCredentialsRequest(page_size=page_size)
        response = await client.call(client.credentials.ListCredentials, request)
        if as_json:
            print_json(response)
            return
        table = Table(Column("credential", no_wrap=True), "name", "kind", "last used", "hosts", box=None)
        for found in response.credentials:
            kind = found.WhichOneof("kind") or ""
            table.add_row(found.name, found.display_name, kind, when(found.last_used_time), " ".join(found.hosts))
        console.print(table)

    run_command(work)


@app.command("get")
def get_credential(credential: str) -> None:
    """Show a credential, without its value."""
    request = credential_service_pb2.GetCredentialRequest(name=_name(credential))
    show(lambda client: client.call(client.credentials.GetCredential, request))


@app.command("update")
def update_credential(
    credential: str,
    host: Hosts = None,
    new_secret: Annotated[bool, typer.Option("--new-secret", help="Give it a new value.")] = False,
    secret_file: SecretFile = "",
    display_name: Annotated[str | None, typer.Option()] = None,
    description: Annotated[str | None, typer.Option()] = None,
    shared: Annotated[bool | None, typer.Option("--shared/--owned")] = None,
) -> None:
    """Change a credential: the next request that it is added to has what is new."""
    options = {"hosts": host, "display_name": display_name, "description": description, "shared": shared}
    paths = [path for path, value in options.items() if value is not None]
    secret = _secret(secret_file) if new_secret or secret_file else None
    if not paths and secret is None:
        raise fail("say what to change: --host, --new-secret, --display-name, --description, --shared or --owned", 2)
    given = credential_pb2.Credential(
        name=_name(credential),
        hosts=host or [],
        display_name=display_name or "",
        description=description or "",
        shared=bool(shared),
    )

    async def work(client: AgentRpcClient) -> None:
        if secret is not None:
            asked = credential_service_pb2.GetCredentialRequest(name=given.name)
            found = await client.call(client.credentials.GetCredential, asked)
            kind = found.WhichOneof("kind") or ""
            setattr(getattr(given, kind), KINDS[kind], secret)
            paths.append(f"{kind}.{KINDS[kind]}")
        mask = FieldMask(paths=paths)
        request = credential_service_pb2.UpdateCredentialRequest(credential=given, update_mask=mask)
        print_json(await client.call(client.credentials.UpdateCredential, request))

    run_command(work)


@app.command("delete")
def delete_credential(credential: str) -> None:
    """Delete a credential: nothing is added to the next request."""
    request = credential_service_pb2.DeleteCredentialRequest(name=_name(credential))
    show(lambda client: client.call(client.credentials.DeleteCredential, request))
