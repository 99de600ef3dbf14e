"""One tenant's heavy work makes no other wait: templates, executions and files are worked on in turn."""

import asyncio
import contextlib
import threading
from pathlib import Path
from uuid import UUID

import pytest
from sqlalchemy import func, select

from agentrpc import clock
from agentrpc.client import RpcError
from agentrpc.services import files, task_executions, templates
from agentrpc.services.executions import new_execution
from agentrpc.services.templates import Prepared
from agentrpc.store.tables import Session
from agentrpc.store.tasks import lock_task
from agentrpc.v1 import file_service_pb2, session_pb2, task_pb2
from agentrpc.v1 import task_service_pb2 as api

# Until what must not happen has not.
LONG = 60


@pytest.fixture
async def bob(edge):
    async with edge.client("bob") as client:
        yield client


class Workshop:
    """Stands in for what takes long: each piece of work waits for `let_go`, or for the end of the test."""

    def __init__(self):
        self.begun = []
        self.changed = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._go = threading.Semaphore(0)

    def work(self, whose):
        self._loop.call_soon_threadsafe(self._note, whose)
        self._go.acquire()

    def _note(self, whose):
        self.begun.append(whose)
        self.changed.set()

    def let_go(self, count=1):
        self._go.release(count)

    async def until(self, what):
        async with asyncio.timeout(LONG):
            while not what():
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
async def workshop():
    shop = Workshop()
    yield shop
    shop.let_go(10_000)


async def ended(tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


# ---- Templates ----


def created(client, template):
    task = task_pb2.Task(display_name="t", prompt_template=template)
    return asyncio.ensure_future(client.call(client.tasks.CreateTask, api.CreateTaskRequest(task=task)))


@pytest.fixture
def slow_templates(monkeypatch, workshop):
    """Templates are found good when the test says so."""

    def exchange(request):
        workshop.work(request["template"].split()[0])
        return {"faults": [], "variables": "{}", "prompt": request["template"]}

    monkeypatch.setattr(templates, "_exchange", exchange)
    return workshop


async def test_a_task_is_checked_before_the_rest_of_what_another_user_waits_for(client, bob, slow_templates):
    anns = [created(client, f"ann {number}") for number in range(20)]
    await slow_templates.until(lambda: len(slow_templates.begun) == 2)
    await asyncio.gather(*[client.call(client.tasks.ListTasks, api.ListTasksRequest()) for _ in range(3)])
    bobs = created(bob, "bob")
    await bob.call(bob.tasks.ListTasks, api.ListTasksRequest())
    done = 0
    while not bobs.done():
        slow_templates.let_go()
        done += 1
        await slow_templates.until(lambda done=done: len(slow_templates.begun) > done)
        if "bob" in slow_templates.begun:
            slow_templates.let_go(3)
            await bobs
    # Of ann's those that were at work, and no more than one that had its turn before bob's call came in.
    assert slow_templates.begun.index("bob") <= 3
    assert sum(task.done() for task in anns) <= 6
    slow_templates.let_go(100)
    await asyncio.gather(*anns)


async def test_only_so_much_of_one_user_waits_and_he_is_told_when_to_come_back(client, bob, slow_templates):
    anns = [created(client, f"ann {number}") for number in range(60)]
    refused = []
    async with asyncio.timeout(LONG):
        while len(refused) < 60 - 2 - 32:
            done, _ = await asyncio.wait(
                [task for task in anns if task not in refused], return_when=asyncio.FIRST_COMPLETED
            )
            refused += done
    errors = {(task.exception().code, task.exception().reason, task.exception().retry_after > 0) for task in refused}
    assert errors == {("RESOURCE_EXHAUSTED", "RATE_LIMITED", True)}
    # Another user is not in the way of his bound.
    bobs = created(bob, "bob")
    slow_templates.let_go(100)
    await bobs
    await asyncio.gather(*anns, return_exceptions=True)
    assert sum(task.exception() is None for task in anns) == 34


async def test_who_gives_up_and_asks_again_gets_no_more_than_his_turn(slow_templates):
    ann, bob = clock.uuid7(), clock.uuid7()

    def asked(user, template):
        return asyncio.ensure_future(templates.prepare(user, template=template, schema="", defaults="", given=""))

    first = [asked(ann, "ann") for _ in range(2)]
    await slow_templates.until(lambda: len(slow_templates.begun) == 2)
    await ended(first)
    # Their processes are still at it: what ann asks now waits behind bob.
    again = [asked(ann, "ann") for _ in range(10)]
    await asyncio.sleep(0)
    bobs = asked(bob, "bob")
    await asyncio.sleep(0)
    await ended(again[:5])
    slow_templates.let_go(2)
    await slow_templates.until(lambda: len(slow_templates.begun) == 4)
    assert "bob" in slow_templates.begun[2:]
    slow_templates.let_go(100)
    await asyncio.gather(bobs, *again[5:])


# ---- Executions ----


@pytest.fixture
def pending(edge):
    """So many executions of a task, as a schedule makes them."""

    async def pending(task, count):
        async with edge.database.transaction() as tx:
            row = await lock_task(tx, UUID(task.name.removeprefix("tasks/")))
            for _ in range(count):
                new_execution(tx, row, trigger="SCHEDULE", creator=row.owner, variables="{}")

    return pending


async def test_of_what_is_due_each_user_has_his_turn(monkeypatch, edge, client, bob, pending):
    begun = []

    async def prepare(*args, template, **_):
        begun.append(template)
        return Prepared("{}", template)

    monkeypatch.setattr(task_executions, "prepare", prepare)
    await pending(await created(client, "ann"), 99)
    await pending(await created(bob, "bob"), 1)
    assert await edge.use_cases.executions.start_due() == 64
    assert begun.index("bob") <= 1
    async with edge.database.transaction() as tx:
        assert await tx.scalar(select(func.count()).select_from(Session)) == 64


async def test_what_comes_due_while_others_begin_does_not_wait_for_all_of_them(
    monkeypatch, edge, client, bob, pending, workshop
):
    async def prepare(*args, template, **_):
        await asyncio.to_thread(workshop.work, template)
        return Prepared("{}", template)

    monkeypatch.setattr(task_executions, "prepare", prepare)
    monkeypatch.setattr(task_executions, "_LOOK_AGAIN", 0.0, raising=False)
    tasks = [await created(client, "ann"), await created(bob, "bob")]
    await pending(tasks[0], 99)
    beginning = asyncio.create_task(edge.use_cases.executions.start_due())
    await workshop.until(lambda: len(workshop.begun) == 4)
    await pending(tasks[1], 1)
    while "bob" not in workshop.begun and len(workshop.begun) < 64:
        before = len(workshop.begun)
        workshop.let_go()
        await workshop.until(lambda before=before: len(workshop.begun) > before)
    assert workshop.begun.index("bob") <= 5
    workshop.let_go(200)
    await beginning


# ---- Files ----


def listed(client, session, path="", **fields):
    request = file_service_pb2.ListFilesRequest(parent=session, path=path, **fields)
    return asyncio.ensure_future(client.call(client.files.ListFiles, request))


@pytest.fixture
def folder_of(edge):
    return lambda session: edge.settings.workspaces / session.removeprefix("sessions/") / "files"


@pytest.fixture
def slow_lists(monkeypatch, workshop):
    """Lists of the folder `many` are made when the test says so."""
    page = files._page

    def slow(folder, path, *rest):
        if path == "many":
            workshop.work("ann")
        return page(folder, path, *rest)

    monkeypatch.setattr(files, "_page", slow)
    return workshop


async def owned(client, name="a.txt"):
    session = (await client.create_session(session_pb2.Session())).name
    await client.transfers.upload_file(session, name, b"x")
    return session


async def test_long_lists_of_one_user_keep_no_other_from_his(client, bob, slow_lists, folder_of):
    anns, bobs = await owned(client, "many/x"), await owned(bob)
    waiting = [listed(client, anns, "many") for _ in range(12)]
    await slow_lists.until(lambda: len(slow_lists.begun) >= 2)
    async with asyncio.timeout(LONG):
        assert [file.path for file in (await listed(bob, bobs)).files] == ["a.txt"]
        await bob.transfers.upload_file(bobs, "b.txt", b"y")
    assert not any(task.done() for task in waiting)
    # A call that waits holds no descriptor.
    assert len(slow_lists.begun) == 2
    assert held_below(folder_of(anns)) == 2
    slow_lists.let_go(12)
    assert {len((await task).files) for task in waiting} == {1}


def held_below(folder):
    found = 0
    for number in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found += number.readlink().is_relative_to(folder)
    return found


async def test_a_page_looks_at_so_many_names_and_a_longer_way_is_told(monkeypatch, client, folder_of):
    session = await owned(client)
    for number in range(40):
        (folder_of(session) / f"d{number % 4}").mkdir(exist_ok=True)
        (folder_of(session) / f"d{number % 4}/{number:03}").touch()
    monkeypatch.setattr(files, "_MAX_NAMES", 30)
    found, token = [], ""
    while True:
        page = await listed(client, session, recursive=True, page_size=1000, page_token=token)
        assert len(page.files) < 30
        found += [file.path for file in page.files]
        if not (token := page.next_page_token):
            break
    below = [f"d{number % 4}/{number:03}" for number in range(40)]
    assert found == sorted(["a.txt", "d0", "d1", "d2", "d3", *below], key=lambda path: path.split("/"))
    monkeypatch.setattr(files, "_MAX_NAMES", 9)
    with pytest.raises(RpcError) as caught:
        await listed(client, session, "d1")
    assert (caught.value.code, caught.value.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_REACHED")


@pytest.mark.parametrize("size", [1, 2, 7, 100])
async def test_pages_are_in_order_and_whole_whatever_their_size(client, folder_of, size):
    session = await owned(client)
    names = sorted(["a.txt", *(f"{number * 7919 % 1000:03}" for number in range(60))])
    for name in names:
        (folder_of(session) / name).touch()
    found, token = [], ""
    while True:
        page = await listed(client, session, page_size=size, page_token=token)
        found += [file.path for file in page.files]
        if not (token := page.next_page_token):
            break
    assert found == names
