"""`agentrpc files` and `agentrpc archives`: what agents work on, and where closed sessions go."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import typer
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from rich.table import Column, Table

from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.terminal import Terminal
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import archive_pb2, archive_service_pb2, file_pb2, file_service_pb2

__all__ = ["archives_app", "files_app"]

files_app = typer.Typer(help="Files of sessions.", no_args_is_help=True)
archives_app = typer.Typer(help="Archive storage of closed sessions.", no_args_is_help=True)

console = Terminal()
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Path_ = Annotated[str, typer.Argument(help="Relative to the workspace.")]
_PAGE = 1000


def _session(text: str) -> str:
    return text if text.startswith("sessions/") else f"sessions/{text}"


def _print(message: Message) -> None:
    print(MessageToJson(message, preserving_proto_field_name=True))


@files_app.command("list")
def list_files(session: str, path: Path_ = "", recursive: bool = False, as_json: Json = False) -> None:
    """List a folder."""

    async def work(client: AgentRpcClient) -> None:
        request = file_service_pb2.ListFilesRequest(
            parent=_session(session), path=path, recursive=recursive, page_size=_PAGE
        )
        everything = file_service_pb2.ListFilesResponse()
        while True:
            page = await client.call(client.files.ListFiles, request)
            everything.files.extend(page.files)
            request.page_token = page.next_page_token
            if not page.next_page_token:
                break
        if as_json:
            _print(everything)
            return
        table = Table("type", Column("size", justify="right"), "changed", "path", box=None)
        for found in everything.files:
            kind = file_pb2.File.Type.Name(found.type).removeprefix("TYPE_").lower()
            size = str(found.size) if found.type == file_pb2.File.TYPE_FILE else ""
            target = f" -> {found.link_target}" if found.link_target else ""
            changed = f"{found.modify_time.ToDatetime():%Y-%m-%d %H:%M:%S}"
            table.add_row(kind, size, changed, found.path + target)
        console.print(table)

    run_command(work)


@files_app.command("show")
def show_file(session: str, path: Path_, checksum: bool = False, as_json: Json = False) -> None:
    """Show what is known of a file; it is printed as JSON."""
    del as_json
    request = file_service_pb2.GetFileRequest(parent=_session(session), path=path, checksum=checksum)
    _call(lambda client: client.call(client.files.GetFile, request, timeout=300))


@files_app.command("put")
def put_file(
    session: str,
    local: Annotated[str, typer.Argument(help="A file here; - reads standard input.")],
    path: Annotated[str, typer.Argument(help="Relative to the workspace. Left out: the file's name.")] = "",
    overwrite: bool = False,
    executable: bool = False,
    unpack: Annotated[bool, typer.Option(help="It is a tar or tar.gz: unpack it into the folder PATH.")] = False,
    as_json: Json = False,
) -> None:
    """Upload a file, or with --unpack an archive."""
    source, size = (sys.stdin.buffer, None) if local == "-" else _open(local)

    async def work(client: AgentRpcClient) -> None:
        try:
            answer: Message
            if unpack:
                answer = await client.transfers.upload_archive(_session(session), path, source, overwrite=overwrite)
                line = f"{answer.file_count} files, {answer.size} bytes"
            else:
                answer = await client.transfers.upload_file(
                    _session(session),
                    path or Path(local).name,
                    source,
                    size=size,
                    overwrite=overwrite,
                    executable=executable,
                )
                line = f"{answer.sha256}  {answer.path}"
        finally:
            source.close()
        if as_json:
            _print(answer)
        else:
            console.print(line, soft_wrap=True)

    run_command(work)


def _open(local: str) -> tuple[BinaryIO, int]:
    try:
        return Path(local).open("rb"), Path(local).stat().st_size
    except OSError as error:
        raise fail(f"{local}: {error.strerror}", 2) from None


@files_app.command("get")
def get_file(
    session: str,
    path: Path_ = "",
    output: Annotated[str, typer.Option("--output", "-o", help="A file here; - is standard output.")] = "",
    archive: Annotated[bool, typer.Option(help="PATH is a folder: as a tar.gz.")] = False,
    as_json: Json = False,
) -> None:
    """Download a file, or with --archive a folder. Goes on by itself after a lost connection."""
    name = Path(path).name or session.rpartition("/")[2]
    local = output or (f"{name}.tar.gz" if archive else name)

    # Beside it first: a download that fails leaves what was there.
    part = Path(f"{local}.part")
    target = sys.stdout.buffer if local == "-" else part.open("wb")

    async def work(client: AgentRpcClient) -> None:
        try:
            if archive:
                sha256 = await client.transfers.download_archive(_session(session), path, target)
            else:
                sha256 = (await client.transfers.download_file(_session(session), path, target)).sha256
        except BaseException:
            if local != "-":
                await asyncio.to_thread(part.unlink, missing_ok=True)
            raise
        finally:
            target.flush()
            if local != "-":
                target.close()
        if local == "-":
            return
        await asyncio.to_thread(part.replace, local)
        print(json.dumps({"path": local, "sha256": sha256}) if as_json else f"{sha256}  {local}")

    run_command(work)


@files_app.command("delete")
def delete_file(session: str, path: Path_, recursive: bool = False, as_json: Json = False) -> None:
    """Delete a file, a link or a folder."""
    request = file_service_pb2.DeleteFileRequest(parent=_session(session), path=path, recursive=recursive)

    async def work(client: AgentRpcClient) -> None:
        answer = await client.call(client.files.DeleteFile, request)
        if as_json:
            _print(answer)

    run_command(work)


@archives_app.command("store")
def store_session(session: str, as_json: Json = False) -> None:
    """Have an archived session written to archive storage, in the background."""
    request = archive_service_pb2.StoreSessionRequest(name=_session(session))
    _archive(lambda client: client.call(client.archives.StoreSession, request), as_json)


@archives_app.command("restore")
def restore_session(session: str, as_json: Json = False) -> None:
    """Have a session brought back from archive storage, in the background."""
    request = archive_service_pb2.RestoreSessionRequest(name=_session(session))
    _archive(lambda client: client.call(client.archives.RestoreSession, request), as_json)


@archives_app.command("get")
def get_archive(session: str, as_json: Json = False) -> None:
    """Show where the data of a session are."""
    request = archive_service_pb2.GetArchiveRequest(name=f"{_session(session)}/archive")
    _archive(lambda client: client.call(client.archives.GetArchive, request), as_json)


def _archive(make: Any, as_json: bool) -> None:  # noqa: ANN401 - a call that answers an archive
    async def work(client: AgentRpcClient) -> None:
        found: archive_pb2.Archive = await make(client)
        if as_json:
            _print(found)
            return
        state = archive_pb2.Archive.State.Name(found.state).removeprefix("STATE_")
        trouble = f", {found.error}" if found.error else ""
        console.print(
            f"{found.name} {state} ({found.event_count} events, {found.file_count} files, {found.size} bytes{trouble})"
        )

    run_command(work)


def _call(make: Any) -> None:  # noqa: ANN401 - a call of any message
    async def work(client: AgentRpcClient) -> None:
        _print(await make(client))

    run_command(work)
