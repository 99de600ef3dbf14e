"""A CLI that is missing, crashes or hangs at its start: a clear error, and nothing left."""

import asyncio
import time
from pathlib import Path

import psutil
import pytest

from agentrpc import clock
from agentrpc.claude.agent import AgentProcess, AgentSpec, AgentStartError
from agentrpc.claude.launcher import SessionPaths
from agentrpc.domain.gate import Verdict
from agentrpc.v1 import session_pb2
from tests.isolations import usable_isolation


async def deny(_):
    return Verdict(allow=False)


def spec(tmp_path, cli):
    session_id = clock.uuid7()
    paths = SessionPaths.under(tmp_path, session_id, tmp_path / "workspace")
    paths.create()
    paths.workspace.mkdir(exist_ok=True)
    return AgentSpec(
        session_id=session_id, claude_session_id=str(session_id), resume=False, options=session_pb2.SessionOptions(),
        paths=paths, gateway_url="http://127.0.0.1:9", token="t", isolation=usable_isolation(), gate=deny,
        on_transcript=lambda *_: None, on_fault=pytest.fail, cli_path=cli,
    )  # fmt: skip


async def test_missing(tmp_path):
    with pytest.raises(AgentStartError, match="missing"):
        await AgentProcess.start(spec(tmp_path, tmp_path / "nothing"), timeout=5)


async def test_crashing(tmp_path):
    with pytest.raises(AgentStartError, match="ended while it was starting"):
        await AgentProcess.start(spec(tmp_path, Path("/bin/false")), timeout=10)


def hanging(tmp_path):
    cli = tmp_path / "cli"
    cli.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    cli.chmod(0o755)
    return cli


def started(cli):
    """What runs of it, or is just to run it."""
    return [p for p in psutil.process_iter(["cmdline"]) if str(cli.parent) in " ".join(p.info["cmdline"] or [])]


async def test_hanging(tmp_path):
    cli = hanging(tmp_path)
    began = time.monotonic()
    with pytest.raises(AgentStartError, match="did not answer"):
        await AgentProcess.start(spec(tmp_path, cli), timeout=1)
    assert time.monotonic() - began < 10
    assert not started(cli)


async def test_given_up_at_any_moment_of_its_start(tmp_path):
    cli = hanging(tmp_path)
    for at in range(40):
        receipts = []
        starting = asyncio.create_task(
            AgentProcess.start(spec(tmp_path, cli), timeout=10, on_abandoned=receipts.append)
        )
        await asyncio.sleep(at * 0.002)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not started(cli)
        assert all(receipt.confirmed for receipt in receipts)
