"""`--limit` as people write it."""

import pytest
from typer.testing import CliRunner

from agentrpc.cli.limits import resource_limits
from agentrpc.cli.main import app
from agentrpc.v1 import session_pb2


def test_sizes_have_units_and_counts_have_none():
    given = ["memory=2GiB", "processes=300", "cpus=0.5", "open-files=512", "workspace=1.5GB", "workspace-files=5000"]
    assert resource_limits([*given, "tmp=67108864"]) == session_pb2.ResourceLimits(
        memory_bytes=2 * 2**30,
        processes=300,
        cpus=0.5,
        open_files=512,
        workspace_bytes=1_500_000_000,
        workspace_files=5000,
        tmp_bytes=64 * 2**20,
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["memory"], "--limit memory must be a number of bytes, such as 2GiB or 500MB, not ''"),
        (["memory=2gb"], "not '2gb'"),
        (["memory=-1"], "not '-1'"),
        (["memory=nan"], "not 'nan'"),
        (["memory=9000000TiB"], "must be a whole number that is not too large"),
        (["memory=0.5"], "must be a whole number"),
        (["processes=2KiB"], "--limit processes must be a number, not '2KiB'"),
        (["processes=1.5"], "must be a whole number"),
        (["processes=99999999999"], "not too large"),
        (["cpus=inf"], "not 'inf'"),
        (["cpus=\u0663"], "must be a number"),
        (["disk=2GiB"], "'disk' is not one of memory, processes, cpus"),
        (["tmp=1GiB", "tmp=2GiB"], "--limit tmp is given twice"),
    ],
)
def test_what_is_no_limit_is_refused_before_anything_is_asked(given, said):
    arguments = [part for text in given for part in ("--limit", text)]
    done = CliRunner().invoke(app, ["sessions", "create", *arguments])
    assert done.exit_code == 2
    assert said in done.stderr
