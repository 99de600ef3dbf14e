"""Errors as statuses: however long and in whatever script, they fit into what clients take."""

import base64
from urllib.parse import quote

import pytest
from google.rpc import error_details_pb2, status_pb2

from agentrpc.errors import AgentRpcError, FieldViolation, InvalidArgument
from agentrpc.rpc.status import to_status


def unpacked(status):
    """The size of the trailing metadata, the status in it, and its details by their type."""
    [(_, data)] = status.trailing_metadata
    whole = status_pb2.Status.FromString(data)
    size = len(quote(status.details, safe=" !\"#$&'()*+,/:;<=>?@[\\]^`{|}")) + len(base64.b64encode(data))
    return size, whole, {detail.TypeName(): detail.value for detail in whole.details}


@pytest.mark.parametrize("text", ["a", "%", "\n", "ü", "名", "😀", "\ud800", "a名😀"])
def test_everything_fits_whatever_the_script(text):
    long = text * 1000
    error = AgentRpcError(
        long,
        reason="FIELD_INVALID",
        metadata={"field": long, "limit": long, "actual": long},
        violations=tuple(FieldViolation(long, long) for _ in range(20)),
        retry_after=1,
    )
    status = to_status(error, "r" * 64)
    size, whole, details = unpacked(status)
    assert size < 6000
    assert whole.message == status.details
    known = f"FIELD_INVALID: {long}".replace("\ud800", "?")
    assert known.startswith(status.details)
    assert len(status.details) > 150
    bad = error_details_pb2.BadRequest.FromString(details["google.rpc.BadRequest"])
    assert bad.field_violations
    for violation in bad.field_violations:
        assert violation.field
        assert known.removeprefix("FIELD_INVALID: ").startswith(violation.description)
    assert error_details_pb2.RequestInfo.FromString(details["google.rpc.RequestInfo"]).request_id == "r" * 64
    assert error_details_pb2.RetryInfo.FromString(details["google.rpc.RetryInfo"]).retry_delay.seconds == 1


def test_what_is_short_is_told_as_it_is():
    violations = [FieldViolation(f"f{number}", "ist zu groß") for number in range(5)]
    _, whole, details = unpacked(to_status(InvalidArgument.fields(*violations), "r"))
    assert whole.message == "FIELD_INVALID: " + "; ".join(f"f{number}: ist zu groß" for number in range(5))
    bad = error_details_pb2.BadRequest.FromString(details["google.rpc.BadRequest"])
    assert [(one.field, one.description) for one in bad.field_violations] == [
        (v.field, v.description) for v in violations
    ]
