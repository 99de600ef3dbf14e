"""Commands show what others have written as it is: no markup is read in it, and no escape sequence reaches the terminal."""

import json
from concurrent import futures

import grpc
import pytest
import typer
from google.protobuf import descriptor_pool, message_factory
from rich.console import ConsoleDimensions
from typer.testing import CliRunner

from agentrpc.app import app
from agentrpc.cli import terminal
from agentrpc.cli.render import event_line
from agentrpc.domain.visible_text import visible
from agentrpc.v1 import event_pb2

HOSTILE = [
    "[/etc/hosts]",
    "[wip] deploy",
    "rm -rf [a-c]*.txt",
    "\x1b]0;owned\x07",
    "\x9b2J\x7f \u202egnp",
    "a\rb :smile: \\[b]",
]
NAME = "01a223b0-e598-7000-8ba0-1cecf6fcee7b"
# These run something here, or stream without an end.
ELSEWHERE = {"up", "quickstart", "serve", "worker", "worker-process", "scheduler", "migrate", "create-user",
             "login", "run", "chat", "watch", "doctor", "download", "put", "create-admin", "metrics"}  # fmt: skip
SHOWN = {"list", "show", "search", "entries", "versions", "executions", "deliveries", "tools", "catalogue", "templates",
         "grants", "read", "get"}  # fmt: skip


def filled(message, text, depth=0):
    """The message with this text in all its strings, and one element in each of its lists."""
    for field in message.DESCRIPTOR.fields:
        if field.name == "next_page_token" or (field.message_type and field.message_type.GetOptions().map_entry):
            continue
        if field.type == field.TYPE_STRING:
            value = json.dumps({"command": text}) if field.name.endswith("_json") else text
            getattr(message, field.name).append(value) if field.is_repeated else setattr(message, field.name, value)
        elif field.type == field.TYPE_MESSAGE and field.message_type.file.package == "agentrpc.v1" and depth < 4:
            inner = getattr(message, field.name)
            filled(inner.add() if field.is_repeated else inner, text, depth + 1)
            if not field.is_repeated:
                inner.SetInParent()
    return message


class Answers(grpc.GenericRpcHandler):
    """Answers every call with a message of one text."""

    text = ""

    def service(self, details):
        service, _, method = details.method.removeprefix("/").partition("/")
        found = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(method)
        assert not found.server_streaming
        answer = filled(message_factory.GetMessageClass(found.output_type)(), self.text)
        return grpc.unary_unary_rpc_method_handler(lambda *_: answer.SerializeToString())


@pytest.fixture(scope="module")
def answers():
    server, handler = grpc.server(futures.ThreadPoolExecutor(2)), Answers()
    server.add_generic_rpc_handlers([handler])
    handler.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield handler
    server.stop(None).wait()


def commands(group, *path):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, *path, name)
        elif name not in ELSEWHERE and not (path == ("files",) and name == "get") and not command.hidden:
            yield (*path, name), command


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_there_are_many_commands():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_what_commands_print_is_the_text_of_others_and_nothing_that_it_does(answers, path, monkeypatch):
    monkeypatch.setattr(terminal, "_on_terminal", lambda: True)
    monkeypatch.setattr(terminal.Terminal, "size", property(lambda _: ConsoleDimensions(4000, 25)))
    required = [NAME for each in COMMANDS[path].params if each.param_type_name == "argument" and each.required]
    for answers.text in HOSTILE:
        done = CliRunner().invoke(app, ["--server", answers.address, "--token", "t", *path, *required])
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exc_info
        assert not set(done.output) & set("\x1b\x07\x9b\x08\x7f\r\u202e")
        if path[-1] in SHOWN and not done.exit_code:
            flat = " ".join(answers.text.split())
            ways = {visible(answers.text), visible(flat), json.dumps(answers.text)[1:-1]}
            assert any(way in done.output for way in ways), done.output
    assert path[-1] not in SHOWN or not done.exit_code, done.output


@pytest.mark.parametrize("text", HOSTILE)
def test_lines_of_events_too(text):
    seen = 0
    for field in event_pb2.Event.DESCRIPTOR.oneofs_by_name["payload"].fields:
        event = event_pb2.Event()
        filled(getattr(event, field.name), text)
        getattr(event, field.name).SetInParent()
        line = event_line(event)
        assert line is None or not set(str(line)) & set("\x1b\x07\x9b\x08\x7f\r\u202e")
        seen += line is not None and (visible(text) in str(line) or visible(" ".join(text.split())) in str(line))
    assert seen >= 3
