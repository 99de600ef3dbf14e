"""What an agent puts in the place of its files leads the service nowhere: links, pipes, sockets, closed and endless trees.

Each test plants something in a place that an agent can write, and lets the service do there all that it does. Beside it
is a folder of somebody else, which must stay as it was; and nothing may wait for a pipe.
"""

import contextlib
import os
import shutil
import socket
import stat
import tarfile
from pathlib import Path

import pytest

from agentrpc import clock
from agentrpc.claude import workspace_trees
from agentrpc.claude.launcher import SessionPaths
from agentrpc.claude.revival import Conversation, own_folders
from agentrpc.claude.workspace_files import Incoming, delete, inspect, place_tree
from agentrpc.claude.workspace_lists import list_entries, look_at_tree, used_space
from agentrpc.claude.workspace_trees import remove_tree
from agentrpc.claude.workspaces import WorkspaceError, WorkspaceStore
from agentrpc.errors import AgentRpcError
from tests.trees import nested
from tests.work.recording import golden_lines

SESSION = "11111111-1111-4111-8111-111111111111"


def picture(folder):
    """All that can be told of a folder and of what is in it."""
    found = {}
    for path in [folder, *sorted(folder.rglob("*"))]:
        info = path.lstat()
        content = path.read_bytes() if stat.S_ISREG(info.st_mode) else b""
        found[str(path)] = (info.st_mode, info.st_ino, info.st_mtime_ns, content)
    return found


@pytest.fixture
def victim(tmp_path):
    """A folder of somebody else with all names that the service looks for; it is compared at the end."""
    folder = tmp_path / "victim"
    for name in ("projects", "key", SESSION, "subagents", "tool-results", "files", "x"):
        (folder / name / SESSION / "subagents").mkdir(parents=True)
        (folder / name / f"{SESSION}.jsonl").write_text("theirs")
        (folder / name / "precious").write_text("theirs")
    (folder / f"{SESSION}.jsonl").write_text("theirs")
    (folder / "x" / "closed").mkdir(mode=0o500)
    before = picture(folder)
    yield folder
    assert picture(folder) == before
    # Nobody else gets rid of what is so deep.
    for path in tmp_path.iterdir():
        remove_tree(path)


def folder_link(at, victim):
    at.symlink_to(victim)


def link_to_a_folder_below(at, victim):
    at.symlink_to(victim / "x")


def file_link(at, victim):
    at.symlink_to(victim / f"{SESSION}.jsonl")


def link_to_nothing(at, victim):
    at.symlink_to(victim / "made-by-the-service")


def link_up(at, victim):
    at.symlink_to(os.path.relpath(victim, at.parent))


def pipe(at, victim):
    os.mkfifo(at)


def bound_socket(at, victim):
    # By a short path: the name of a socket has an end.
    parent = os.open(at.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"/proc/self/fd/{parent}/{at.name}")
    os.close(parent)


def file(at, victim):
    at.write_text("mine")


def closed_file(at, victim):
    at.touch(0o000)


def hard_link(at, victim):
    (at.parent / "other-name").write_text("mine")
    os.link(at.parent / "other-name", at)


def folder(at, victim):
    (at / "sub").mkdir(parents=True)
    (at / "sub/file").write_text("mine")
    (at / "link").symlink_to(victim)


def closed_folder(at, victim):
    folder(at, victim)
    (at / "sub").chmod(0o000)
    at.chmod(0o000)


def folder_of_links(at, victim):
    at.mkdir()
    for name in ("subagents", "tool-results", "sub", f"{SESSION}.jsonl"):
        (at / name).symlink_to(victim / "x")


def deep_folder(at, victim):
    at.mkdir()
    with nested(at, 1200) as deepest:
        os.symlink(victim, "out", dir_fd=deepest)


PLANTS = [folder_link, link_to_a_folder_below, file_link, link_to_nothing, link_up, pipe, bound_socket, file, closed_file,
          hard_link, folder, closed_folder, folder_of_links, deep_folder]  # fmt: skip


def planted(at, plant, victim):
    """Put it there, in the place of whatever there is."""
    remove_tree(at)
    at.parent.mkdir(parents=True, exist_ok=True)
    plant(at, victim)


# ---- The CLI's own folders ----


@pytest.fixture
def paths(tmp_path):
    paths = SessionPaths(tmp_path / "data" / "session", tmp_path / "data" / "workspace")
    paths.create()
    return paths


CONVERSATION_PLACES = ["", "KEY", "KEY/ID", "KEY/ID.jsonl", "KEY/ID/subagents", "KEY/ID/tool-results", "KEY/ID/x",
                       "KEY/ID/subagents/agent.jsonl"]  # fmt: skip


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", CONVERSATION_PLACES)
def test_a_new_process_finds_its_conversation_whatever_was_left_in_its_place(paths, victim, place, plant):
    lines = golden_lines("subagent")
    Conversation(lines).write(paths, SESSION)
    projects = paths.config / "projects"
    [key] = projects.iterdir()
    wanted = {path.relative_to(projects): path.read_bytes() for path in projects.rglob("*") if path.is_file()}
    assert len(wanted) == 3
    planted(projects / place.replace("KEY", key.name).replace("ID", SESSION), plant, victim)
    Conversation(lines).write(paths, SESSION)
    for path, content in wanted.items():
        assert not (projects / path).is_symlink()
        assert (projects / path).read_bytes() == content
        at = projects / path
        while at != paths.config:
            at = at.parent
            assert not at.is_symlink()
    # Of an empty conversation nothing is left.
    Conversation([]).write(paths, SESSION)
    assert not any(os.path.lexists(projects / path) for path in wanted)


@pytest.mark.parametrize("plant", PLANTS)
def test_the_rest_of_the_session_starts_whatever_was_left_there(paths, victim, plant):
    for name in ("plans", "todos", ".claude.json", "settings.json", "shell-snapshots"):
        planted(paths.config / name, plant, victim)
    for name in (".bashrc", ".claude", "fake-cli", "x"):
        planted(paths.home / name, plant, victim)
    for name in (paths.home, paths.config):
        name.chmod(0o000)
    paths.create()
    Conversation(golden_lines("text")).write(paths, SESSION)
    own_folders(paths, SESSION)
    assert (paths.config / "plans").lstat()
    assert remove_tree(paths.root)
    assert not paths.root.exists()


def test_long_results_stay_and_what_is_a_link_does_not(paths, victim):
    Conversation(golden_lines("text")).write(paths, SESSION)
    [key] = (paths.config / "projects").iterdir()
    results = key / SESSION / "tool-results"
    results.mkdir(parents=True)
    (results / "toolu_1.txt").write_text("long")
    (results / "out").symlink_to(victim)
    Conversation(golden_lines("text")).write(paths, SESSION)
    assert (results / "toolu_1.txt").read_text() == "long"
    shutil.rmtree(results)
    results.symlink_to(victim)
    Conversation(golden_lines("text")).write(paths, SESSION)
    assert not os.path.lexists(results)


# ---- Trees that are removed ----


@pytest.mark.parametrize("plant", PLANTS)
def test_a_tree_is_removed_and_nothing_that_it_points_to(tmp_path, victim, plant):
    tree = tmp_path / "tree"
    (tree / "a/b").mkdir(parents=True)
    for at in (tree / "x", tree / "a/x", tree / "a/b/x"):
        planted(at, plant, victim)
    (tree / "a/b").chmod(0o500)
    (tree / "a").chmod(0o000)
    assert remove_tree(tree)
    assert not os.path.lexists(tree)
    planted(tree, plant, victim)
    assert remove_tree(tree)
    assert not os.path.lexists(tree)
    assert remove_tree(tree)
    assert remove_tree(tmp_path / "never" / "was")


def test_folders_that_become_links_while_they_are_removed_lead_nowhere(tmp_path, monkeypatch, victim):
    tree = tmp_path / "tree"
    for number in range(30):
        (tree / f"d{number}" / "x" / "precious").mkdir(parents=True)
    enter, swapped = workspace_trees.enter, []

    def swap(parent, name):
        with contextlib.suppress(OSError):
            os.rename(name, f"{name}.was", src_dir_fd=parent, dst_dir_fd=parent)
            os.symlink(victim, name, dir_fd=parent)
            swapped.append(name)
        return enter(parent, name)

    remove_tree(tmp_path / "nothing")
    monkeypatch.setattr(workspace_trees, "enter", swap)
    remove_tree(tree)
    assert swapped
    monkeypatch.undo()
    assert remove_tree(tmp_path / "tree.was")


def test_a_removal_that_takes_too_long_is_given_up_and_goes_on_later(tmp_path):
    tree = tmp_path / "tree"
    for number in range(50):
        (tree / str(number) / "x").mkdir(parents=True)
    assert not remove_tree(tree, seconds=0)
    assert remove_tree(tree)


# ---- Workspaces ----


@pytest.fixture
def store(tmp_path):
    store = WorkspaceStore(tmp_path / "workspaces", checkpoint_limit=1024**2, checkpoints_kept=3)
    store.session = clock.uuid7()
    store.create(store.session)
    return store


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("place", ["x", "a/x", "a/b/x"])
def test_whatever_is_in_a_workspace_everything_that_is_done_with_it_stays_in_it(tmp_path, store, victim, place, plant):
    files = store.path(store.session)
    (files / "a/b").mkdir(parents=True)
    (files / "a/file").write_text("mine")
    planted(files / place, plant, victim)
    run, other = clock.uuid7(), clock.uuid7()
    done = []

    def attempt(what, *args, **kwargs):
        # It works, or says why not.
        with contextlib.suppress(WorkspaceError, AgentRpcError):
            what(*args, **kwargs)
            done.append(what)

    held = len(list(Path("/proc/self/fd").iterdir()))
    store.open(store.session)
    attempt(store.checkpoint, store.session, run)
    if store.has_checkpoint(store.session, run):
        fresh = store.unpack(store.session, run)
        store.exchange(store.session, fresh)
        store.exchange(store.session, fresh)
        store.discard(fresh)
    attempt(store.copy, store.session, other)
    top = store.find(store.session)
    try:
        attempt(lambda: list(list_entries(top, "", recursive=True)))
        attempt(look_at_tree, top)
        attempt(inspect, top, place)
        used_space(files, most=10_000)
        for path in (place, f"{place}/new", f"{place}/subagents/new"):
            incoming = Incoming(store.incoming(store.session))
            incoming.write(b"uploaded")
            attempt(incoming.place, top, path, overwrite=True, executable=False, etag="", sha256="")
            incoming.close()
        source = tmp_path / "source"
        (source / "subagents/deep").mkdir(parents=True)
        (source / "subagents/deep/new").write_text("uploaded")
        attempt(place_tree, source, top, place, overwrite=True)
        attempt(delete, top, f"{place}/precious", lambda: store.make_aside(store.session), recursive=True, etag="")
        attempt(delete, top, place, lambda: store.make_aside(store.session), recursive=True, etag="")
    finally:
        os.close(top)
    assert done
    assert len(list(Path("/proc/self/fd").iterdir())) == held
    fresh = store.make_fresh(store.session)
    planted(fresh / "x", plant, victim)
    store.replace(store.session, fresh)
    store.discard(fresh)
    store.set_aside(store.session)
    store.remove_aside()
    store.remove(other)
    assert sorted(path.name for path in (tmp_path / "workspaces").iterdir()) == ["removed"]
    assert not list((tmp_path / "workspaces/removed").iterdir())


def test_a_copy_and_a_checkpoint_keep_their_links_as_links(store, victim):
    files = store.path(store.session)
    (files / "d").mkdir()
    (files / "d/out").symlink_to(victim)
    run, other = clock.uuid7(), clock.uuid7()
    store.checkpoint(store.session, run)
    store.copy(store.session, other)
    fresh = store.unpack(store.session, run)
    for copy in (store.path(other), fresh):
        assert (copy / "d/out").readlink() == victim
    store.discard(fresh)


@pytest.mark.parametrize("size", [4 * 1024**4])
def test_holes_stay_holes_in_a_copy(store, size):
    files = store.path(store.session)
    with (files / "sparse").open("wb") as out:
        out.write(b"begin")
        out.seek(size // 2)
        out.write(b"middle")
        out.truncate(size)
    other = clock.uuid7()
    store.copy(store.session, other)
    copy = store.path(other) / "sparse"
    assert copy.stat().st_size == size
    assert copy.stat().st_blocks * 512 < 1024**2
    with copy.open("rb") as read:
        assert read.read(6) == b"begin\0"
        read.seek(size // 2 - 1)
        assert read.read(8) == b"\0middle\0"


def test_a_folder_with_too_many_names_is_told_and_held_by_nobody(monkeypatch, store):
    files = store.path(store.session)
    for number in range(20):
        (files / str(number)).touch()
    monkeypatch.setattr(workspace_trees, "MAX_NAMES", 10)
    for what in (
        lambda: store.checkpoint(store.session, clock.uuid7()),
        lambda: store.copy(store.session, clock.uuid7()),
    ):
        with pytest.raises(WorkspaceError, match="more than 10 entries"):
            what()


def test_a_checkpoint_in_which_a_link_comes_before_a_folder_of_its_name_is_refused(store, victim):
    run = clock.uuid7()
    store.checkpoint(store.session, run)
    with tarfile.open(store.path(store.session).parent / "checkpoints" / f"{run}.tar", "w") as tar:
        link = tarfile.TarInfo("d")
        link.type, link.linkname = tarfile.SYMTYPE, str(victim)
        tar.addfile(link)
        tar.addfile(tarfile.TarInfo("d/made-by-the-service"))
    with pytest.raises(WorkspaceError):
        store.unpack(store.session, run)
    assert [
        path.name for path in Path(store.path(store.session).parent).iterdir() if path.name.startswith("files.")
    ] == []
