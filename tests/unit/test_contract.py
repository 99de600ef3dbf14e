"""What the contract promises about itself, and the kernel about the contract."""

import re
import subprocess
import sys
from pathlib import Path

from agentrpc import clock, names
from agentrpc.rpc.methods import ServiceMethods
from agentrpc.v1 import (
    approval_service_pb2,
    auth_service_pb2,
    errors_pb2,
    run_service_pb2,
    session_service_pb2,
)

ROOT = Path(__file__).parent.parent.parent
MODULES = (approval_service_pb2, auth_service_pb2, run_service_pb2, session_service_pb2)


def test_streams_share_their_first_fields():
    shared = [
        {field.number: (field.name, field.type) for field in message.DESCRIPTOR.fields if field.number < 10}
        for message in (session_service_pb2.WatchSessionResponse, run_service_pb2.StreamRunResponse)
    ]
    assert shared[0] == shared[1]


def test_every_rpc_has_a_method_and_names_are_unique():
    rpcs = [
        method.name
        for module in MODULES
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]
    assert len(rpcs) == len(set(rpcs))
    methods = ServiceMethods(*[None] * 8)  # type: ignore[arg-type]
    assert all(methods.of(name) for name in rpcs)


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
