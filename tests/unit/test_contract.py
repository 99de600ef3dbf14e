"""What the contract promises about itself, and the kernel about the contract."""

import importlib
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import MagicMock

import agentrpc.v1
from agentrpc import clock, names
from agentrpc.app import UseCases
from agentrpc.settings import Settings
from agentrpc.v1 import errors_pb2, run_service_pb2, session_service_pb2

ROOT = Path(__file__).parent.parent.parent


def test_streams_share_their_first_fields():
    shared = [
        {field.number: (field.name, field.type) for field in message.DESCRIPTOR.fields if field.number < 10}
        for message in (session_service_pb2.WatchSessionResponse, run_service_pb2.StreamRunResponse)
    ]
    assert shared[0] == shared[1]


def test_every_rpc_has_a_method():
    served = [
        service
        for module in pkgutil.iter_modules(agentrpc.v1.__path__, "agentrpc.v1.")
        if module.name.endswith("_service_pb2")
        for service in importlib.import_module(module.name).DESCRIPTOR.services_by_name
    ]
    settings = Settings(database_url="postgresql://nowhere", redis_url="redis://nowhere", signing_key="k" * 32)
    services = UseCases(MagicMock(), MagicMock(), MagicMock(), settings).services(MagicMock())
    assert {service.descriptor.name for service in services} == set(served)
    for service in services:
        assert set(service.methods) == {method.name for method in service.descriptor.methods}


def test_every_reason_in_the_code_is_in_the_contract():
    reasons = set()
    for path in (ROOT / "agentrpc").rglob("*.py"):
        if "/v1/" not in str(path):
            reasons |= set(re.findall(r'reason="([A-Z_]+)"', path.read_text()))
    assert len(reasons) > 15
    known = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118
    assert reasons <= known


def test_ids_increase_and_names_come_back():
    ids = [clock.uuid7() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    assert all(one.version == 7 for one in ids[:10])
    session, run = ids[:2]
    assert names.parse_run(names.run_name(session, run)) == (session, run)
    assert names.parse_session_or_wildcard("sessions/-") is None


def test_the_client_does_not_load_the_server():
    code = (
        "import agentrpc.client, sys; print([m for m in sys.modules if m.startswith(('sqlalchemy', 'agentrpc.rpc'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
