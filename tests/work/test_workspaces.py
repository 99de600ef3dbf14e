"""Workspaces: made once and never again, checkpoints and copies that follow no link out and cost the service nothing."""

import os
import stat
from pathlib import Path

import pytest

from agentrpc import clock
from agentrpc.claude.workspaces import CheckpointTooLarge, WorkspaceError, WorkspaceLost, WorkspaceStore

SESSION = clock.uuid7()


def build(root, limit=1024**2, kept=3):
    store = WorkspaceStore(root, checkpoint_limit=limit, checkpoints_kept=kept)
    store.create(SESSION)
    return store


@pytest.fixture
def store(tmp_path):
    return build(tmp_path / "workspaces")


@pytest.fixture
def files(store):
    return store.path(SESSION)


def fill(files):
    """What agents leave behind."""
    (files / "a").write_text("one")
    (files / "run.sh").write_text("#!/bin/sh\n")
    (files / "run.sh").chmod(0o755)
    (files / "sub/deep").mkdir(parents=True)
    (files / "sub/deep/b").write_bytes(b"\0" * 5000)
    os.link(files / "a", files / "sub/hard")
    (files / "inside").symlink_to("sub/deep")
    (files / "outside").symlink_to("/etc/passwd")
    (files / "broken").symlink_to("nowhere")
    (files / "sub/closed").mkdir()
    (files / "sub/closed/c").write_text("c")
    (files / "sub/closed").chmod(0o500)
    os.mkfifo(files / "pipe")


def picture(files):
    """Names, kinds, modes and contents."""
    found = {}
    for folder, folders, names in os.walk(files):
        for name in [*folders, *names]:
            path = Path(folder, name)
            mode = path.lstat().st_mode
            what = str(path.readlink()) if path.is_symlink() else path.read_bytes() if stat.S_ISREG(mode) else b""
            found[str(path.relative_to(files))] = (stat.S_IFMT(mode), 0 if path.is_symlink() else mode & 0o777, what)
    return found


def restore(store, run):
    fresh = store.unpack(SESSION, run)
    store.exchange(SESSION, fresh)
    store.discard(fresh)


def test_it_is_made_once_and_found_again(store, files):
    (files / "a").write_text("one")
    store.create(SESSION)
    store.open(SESSION)
    assert (files / "a").read_text() == "one"
    assert files.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("what", ["all", "files", "id", "another id"])
def test_one_that_is_gone_is_not_made_again(store, files, what):
    {
        "all": lambda: store.remove(SESSION),
        "files": files.rmdir,
        "id": (files.parent / "id").unlink,
        "another id": lambda: (files.parent / "id").write_text(f"{clock.uuid7()}\n"),
    }[what]()
    with pytest.raises(WorkspaceLost):
        store.open(SESSION)
    assert what not in {"all", "files"} or not files.exists()


def test_a_checkpoint_brings_everything_back_and_links_stay_links(store, files):
    fill(files)
    before = picture(files)
    run = clock.uuid7()
    store.checkpoint(SESSION, run)
    (files / "a").write_text("two")
    (files / "later").write_text("x")
    (files / "inside").unlink()
    restore(store, run)
    del before["pipe"]
    assert picture(files) == before
    assert sorted(path.name for path in files.parent.iterdir()) == ["checkpoints", "files", "id"]
    store.open(SESSION)


def test_an_exchange_can_be_taken_back_and_one_cut_short_is_mended(store, files):
    run = clock.uuid7()
    (files / "a").write_text("one")
    store.checkpoint(SESSION, run)
    (files / "a").write_text("two")
    fresh = store.unpack(SESSION, run)
    store.exchange(SESSION, fresh)
    assert (files / "a").read_text() == "one"
    store.exchange(SESSION, fresh)
    assert (files / "a").read_text() == "two"
    files.rename(files.parent / "files.old")
    store.open(SESSION)
    assert (files / "a").read_text() == "two"


def test_files_that_are_lost_come_back_from_a_checkpoint(store, files):
    run = clock.uuid7()
    (files / "a").write_text("one")
    store.checkpoint(SESSION, run)
    (files / "a").unlink()
    files.rmdir()
    restore(store, run)
    assert (files / "a").read_text() == "one"


def test_the_first_checkpoint_of_a_run_stays_and_the_newest_are_kept(store, files):
    runs = [clock.uuid7() for _ in range(5)]
    for run in runs:
        (files / "a").write_text(str(run))
        store.checkpoint(SESSION, run)
    assert [store.has_checkpoint(SESSION, run) for run in runs] == [False, False, True, True, True]
    (files / "a").write_text("changed")
    store.checkpoint(SESSION, runs[-1])
    restore(store, runs[-1])
    assert (files / "a").read_text() == str(runs[-1])


@pytest.mark.parametrize("shape", ["big", "sparse", "many"])
def test_too_much_gets_no_checkpoint(store, files, shape):
    if shape == "many":
        for number in range(1100):
            (files / str(number)).touch()
    else:
        with (files / "big").open("wb") as file:
            file.truncate(2 * 1024**2 if shape == "big" else 2**40)
    run = clock.uuid7()
    with pytest.raises(CheckpointTooLarge):
        store.checkpoint(SESSION, run)
    assert not store.has_checkpoint(SESSION, run)
    assert not list((files.parent / "checkpoints").iterdir())


def test_a_checkpoint_can_be_given_up(store, files):
    (files / "a").touch()
    with pytest.raises(WorkspaceError):
        store.checkpoint(SESSION, run := clock.uuid7(), wanted=lambda: False)
    assert not store.has_checkpoint(SESSION, run)


def test_folders_without_end_are_refused(store, files):
    deep = files
    for _ in range(210):
        deep = deep / "d"
        deep.mkdir()
    with pytest.raises(WorkspaceError, match="nested"):
        store.checkpoint(SESSION, clock.uuid7())


def test_a_full_disk_is_told_and_leaves_nothing(store, files):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (files / "a").write_bytes(b"x" * 100_000)
    run = clock.uuid7()
    (files.parent / "checkpoints").mkdir()
    (files.parent / "checkpoints" / f"{run}.new").symlink_to("/dev/full")
    with pytest.raises(WorkspaceError, match="No space left") as caught:
        store.checkpoint(SESSION, run)
    assert not list((files.parent / "checkpoints").iterdir())
    assert "/" not in str(caught.value)


def test_a_copy_that_fails_is_told_and_leaves_nothing(store, files):
    (files / "a").touch()
    (files / "b").mkdir()
    other = clock.uuid7()
    (files.parent.parent / str(other)).touch()
    with pytest.raises(WorkspaceError) as caught:
        store.copy(SESSION, other)
    assert "/" not in str(caught.value)
    assert not store.path(other).exists()


def test_a_copy_is_whole_and_apart(store, files):
    fill(files)
    os.mknod(files / "socket", 0o600 | stat.S_IFSOCK)
    store.copy(SESSION, other := clock.uuid7())
    copied = picture(store.path(other))
    wanted = picture(files)
    del wanted["pipe"], wanted["socket"]
    assert copied == wanted
    store.open(other)
    (store.path(other) / "a").write_text("two")
    (store.path(other) / "sub/hard").write_text("three")
    assert (files / "a").read_text() == "one"
    store.remove(other)
    assert not store.path(other).parent.exists()
    with pytest.raises(WorkspaceLost):
        store.copy(other, clock.uuid7())


def test_a_checkpoint_that_leads_out_is_refused(store, files, tmp_path):
    import tarfile

    run = clock.uuid7()
    store.checkpoint(SESSION, run)
    with tarfile.open(files.parent / "checkpoints" / f"{run}.tar", "w") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("out/evil"))
    with pytest.raises(WorkspaceError):
        store.unpack(SESSION, run)
    assert not (tmp_path / "evil").exists()
    assert sorted(path.name for path in files.parent.iterdir()) == ["checkpoints", "files", "id"]
