"""Reports: what a log amounts to, the same for the same log, in bounded memory, whatever agents and templates try."""

import io
import json
import re
import subprocess
import sys
import threading
from dataclasses import asdict
from datetime import UTC, datetime
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pypdf
import pytest

from agentrpc.reports.bounded import Curve, Ends, Spans
from agentrpc.reports.collect import Collector
from agentrpc.reports.render import RenderError, check_template
from agentrpc.reports.rendering import Limits, rendered
from agentrpc.reports.usage import UsageCollector
from agentrpc.v1 import event_pb2
from tests.unit.reporting import RUN, SESSION, Story, story

LIMITS = Limits(1024**3, 120, 64 * 1024**2)


def has_pango():
    done = subprocess.run([sys.executable, "-c", "import weasyprint"], capture_output=True, check=False)
    return done.returncode == 0


needs_pango = pytest.mark.skipif(
    not has_pango(), reason="Pango is missing: apt-get install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0"
)


@pytest.fixture
def written(tmp_path):
    """Renders: `await written(document, "HTML", template)`; nothing is left behind."""

    async def written(document, form, template="", limits=LIMITS):
        try:
            async with rendered(document, form, template, limits, tmp_path) as path:
                return path.read_bytes()
        finally:
            assert not list(tmp_path.iterdir())

    return written


class Page(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.attributes = set(), [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.ids += [value for name, value in attributes if name == "id"]
        self.links += [value for name, value in attributes if name == "href"]


def test_a_run_adds_up():
    document = story().document()
    tools = {entry.tool: entry for entry in document.tools}
    assert (tools["Bash"].calls, tools["Bash"].succeeded, tools["Bash"].denied) == (4, 3, 1)
    assert (tools["WebFetch"].calls, tools["WebFetch"].failed, tools["WebFetch"].longest) == (7, 1, 9.0)
    assert [(a.state, a.waited, a.scope) for a in document.approvals] == [
        ("ALLOWED", 31.0, "for the session"),
        ("DENIED", 22.0, ""),
    ]
    assert document.wait_seconds == 53.0
    assert [(s.description, s.outcome, s.tokens) for s in document.subagents] == [
        ("Read advisories", "COMPLETED", 24_310)
    ]
    assert [entry.model for entry in document.models] == ["claude-sonnet-5", "claude-haiku-5"]
    # At the end of the run the curve is what the run has used in all, whatever single calls said.
    growth = document.growth
    assert (growth.input[-1], growth.output[-1], growth.cache[-1]) == (21_400, 5_900, 182_000)
    assert growth.cost_usd[-1] == document.tokens.cost_usd == 0.1834
    assert growth.cost_usd == sorted(growth.cost_usd)
    roles = [turn.role for turn in document.conversation]
    assert (roles.count("user"), roles.count("agent"), roles.count("tool")) == (1, 4, 8)
    assert {lane.kind for lane in document.lanes} == {"wait", "model", "tool", "subagent"}
    assert not document.left_out


def test_what_was_retracted_is_not_shown():
    s = Story()
    s.say("secret plan", uuid="a")
    s.say("public plan", uuid="b")
    s.event(messages_retracted=event_pb2.MessagesRetracted(transcript_uuids=["a", "unknown"]))
    assert [turn.text for turn in s.document().conversation] == ["public plan"]


def test_calls_and_questions_without_an_end_go_on_to_the_end():
    s = Story()
    s.event(tool_call_started=event_pb2.ToolCallStarted(tool_use_id="1", tool_name="Bash"))
    s.ask("may I?", "Bash", "{}", decision=None)
    s.say("meanwhile", took=10)
    document = s.document(complete=False)
    assert document.tools[0].open == 1
    assert document.tool_seconds == document.wait_seconds == 10.0
    assert document.approvals[0].state == "PENDING"


def test_long_lists_are_cut_and_say_so():
    s = Story()
    for n in range(300):
        s.call(f"tool{n}", "{}", outcome="FAILED", text="no")
        s.ask(f"question {n}", "Bash", "{}", wait=0.1, number=n)
    document = s.document()
    assert document.left_out == {"approvals": 100, "conversation": 180, "problems": 240}
    assert len(document.tools) == 101
    assert sum(entry.calls for entry in document.tools) == 300
    notes = [turn.text for turn in document.conversation if turn.role == "note"]
    assert notes == ["180 messages and calls are left out here"]
    assert len(document.lanes) <= 12


def test_times_and_points_keep_their_sums_when_they_are_thinned():
    spans, curve = Spans(), Curve()
    for n in range(50_000):
        spans.add(n, n + 0.5)
        curve.call(n, "r", (1, 1, 0, 0))
    curve.run_ended(50_000, "r", (60_000, 50_000, 0, 0), 2.5)
    growth = curve.growth(0)
    assert spans.total == 25_000
    assert len(spans.joined(0)) <= 600
    assert len(growth.seconds) <= 2001
    assert (growth.input[-1], growth.cost_usd[-1]) == (60_000, 2.5)
    ends = Ends(2, 3)
    for n in range(10):
        ends.add(n)
    ends.remove(lambda n: n in {0, 9})
    assert (list(ends), ends.left_out) == ([1, 7, 8], 5)


@pytest.mark.parametrize("form", ["JSON", "MARKDOWN", "HTML", pytest.param("PDF", marks=needs_pango)])
async def test_the_same_log_gives_the_same_document(written, form):
    once, again = [await written(story().document(), form) for _ in range(2)]
    assert once == again
    if form == "JSON":
        assert json.loads(once) == json.loads(json.dumps(asdict(story().document())))


@pytest.mark.parametrize("form", ["JSON", "MARKDOWN", "HTML", pytest.param("PDF", marks=needs_pango)])
async def test_a_report_on_nothing(written, form):
    collector = Collector("run", "Nothing", RUN, "QUEUED", complete=False)
    assert await written(collector.document(), form)
    usage = UsageCollector(
        "Usage", "all users", datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), complete=True
    )
    assert await written(usage.document([], [], {}), form)


HOSTILE = [
    "<script>alert(1)</script>",
    "</style></svg><img src=x onerror=alert(1)>",
    "\"><a href='javascript:alert(1)'>x</a>",
    "{{ 7 * 7 }}{% raw %}",
    "$\\frac{1}{0}$ $x^{$",
    "``` ````\n# heading\n| a | b |\n[x](javascript:alert(1)) <b>bold</b>",
    "\x1b[31mred\x07\x00 \u202e \ud7ff \U0001f600 مرحبا 日本",
    "]]><!ENTITY x SYSTEM 'file:///etc/passwd'>",
]


def hostile():
    s = Story()
    s.prompt(HOSTILE[0])
    for text in HOSTILE:
        s.say(text)
        s.call(text, json.dumps({"command": text}), text=text, outcome="FAILED")
        s.ask(text, text, json.dumps({"x": text}), message=text, decision="DENY")
        s.event(subtask_started=event_pb2.SubtaskStarted(subtask_id=text, description=text, subagent=text))
        s.event(subtask_ended=event_pb2.SubtaskEnded(subtask_id=text, summary=text))
        s.event(notice=event_pb2.Notice(level="LEVEL_WARNING", code=text, text=text))
        s.event(agent_initialized=event_pb2.AgentInitialized(model=text, agent_version=text))
    s.end(text, "\n".join(HOSTILE), began=s.now - 5)
    return s.document(title=HOSTILE[0])


async def test_what_agents_write_is_text(written):
    page = Page((await written(hostile(), "HTML")).decode())
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "form"}
    assert not {name for name in page.attributes if name.startswith("on")}
    assert all(link.startswith("#") for link in page.links if link)
    markdown = (await written(hostile(), "MARKDOWN")).decode()
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", markdown, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside
    assert "](javascript" not in outside
    assert "<b>" not in outside
    assert "\n# heading" not in outside


@needs_pango
async def test_hostile_text_can_be_printed(written):
    assert (await written(hostile(), "PDF")).startswith(b"%PDF")


async def test_links_lead_somewhere_and_ids_are_unique(written):
    page = Page((await written(story().document(), "HTML")).decode())
    inside = [link[1:] for link in page.links if link.startswith("#")]
    assert len(inside) > 8
    assert set(inside) <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)


@needs_pango
async def test_a_pdf_has_pages_with_numbers_a_title_and_links(written):
    reader = pypdf.PdfReader(io.BytesIO(await written(story().document(), "PDF")))
    count = len(reader.pages)
    assert 2 <= count <= 6
    texts = [page.extract_text() for page in reader.pages]
    for number, text in enumerate(texts, 1):
        assert f"{number} / {count}" in text
    assert reader.metadata.title == "Nightly dependency audit"
    whole = "\n".join(texts)
    for word in ["Timeline", "Decisions", "Read advisories", "mcp__github__create", "git push origin main", "$0.18"]:
        assert word in whole
    # The table of contents: links inside the document, and none that leads out of it.
    links = [note.get_object() for page in reader.pages for note in page.get("/Annots") or []]
    assert len(links) >= 9
    assert not [link for link in links if "/URI" in link.get("/A", {})]
    assert set(reader.named_destinations) >= {"timeline", "tools", "decisions", "conversation"}


# ---- Templates of callers ----


async def test_a_template_takes_over_a_part_of_ours(written):
    template = "{% extends 'report.html' %}{% block style %}{{ super() }} h1 { color: red }{% endblock %}{% block footer %}{{ report.title }}, {{ report.tokens.cost_usd | money }}{% endblock %}"
    page = (await written(story().document(title="<i>A</i>"), "HTML", template)).decode()
    assert "h1 { color: red }" in page
    assert "&lt;i&gt;A&lt;/i&gt;, $0.18" in page
    assert await written(story().document(), "MARKDOWN", "{{ report.subject }}") == RUN.encode()
    assert await written(story().document(), "HTML", "{{ 'a\\ud800b' }}") == b"a?b"
    svg = await written(story().document(), "HTML", "{{ charts.tools }}{{ report.answer }}")
    assert svg.startswith(b"<svg")


@pytest.mark.parametrize(
    "template",
    [
        "{{ report.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ report.lanes.append(1) }}",
        "{{ lipsum.__globals__ }}",
        "{% include '../render.py' %}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{{ report.nothing.at_all }}",
        "{{ 1 / 0 }}",
        "{{ report.title | safe }}",
        "{{ range(10 ** 9) | list }}",
        "{% for a in [1] %}" * 50 + "{% endfor %}" * 50,
        "{{ report['\\ud800'] }}",
    ],
)
async def test_a_template_gets_no_further_than_its_report(written, template):
    with pytest.raises(RenderError) as caught:
        await written(story().document(), "HTML", template)
    assert caught.value.reason == "TEMPLATE_INVALID"
    assert "agentrpc" not in str(caught.value)


@needs_pango
async def test_a_template_reaches_neither_files_nor_the_network(written, tmp_path_factory, httpd):
    secret = tmp_path_factory.mktemp("secret") / "secret.txt"
    secret.write_text("TOP SECRET")
    template = f"""
    <html><head>
    <link rel="stylesheet" href="{httpd.url}/style.css"><link rel="attachment" href="file://{secret}">
    <style>@import url("{httpd.url}/import.css"); @import url("file://{secret}");
    @font-face {{ font-family: x; src: url("{httpd.url}/font.woff") }} body {{ font-family: x; background: url({httpd.url}/b.png) }}
    .a::before {{ content: url("file://{secret}") }}</style></head>
    <body class="a"><img src="{httpd.url}/img.png"><img src="file://{secret}"><object data="file://{secret}"></object>
    <embed src="{httpd.url}/embed"><img src="data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'><image href='file://{secret}'/><image href='{httpd.url}/svg.png'/></svg>">
    <svg><image href="{httpd.url}/inline.png" width="9" height="9"/><use href="file://{secret}#a"/></svg>
    <a rel="attachment" href="file://{secret}">x</a> still here</body></html>"""
    reader = pypdf.PdfReader(io.BytesIO(await written(story().document(), "PDF", template)))
    assert "still here" in reader.pages[0].extract_text()
    assert not reader.attachments
    assert b"TOP SECRET" not in b"".join(page.get_contents().get_data() for page in reader.pages)
    assert httpd.requests == []


@pytest.fixture
def httpd():
    """A server that notes what it is asked for."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.requests.append(self.path)
            self.send_error(404)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.requests = []
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("template", "limits", "reason"),
    [
        ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", Limits(1024**3, 3, 10**6), "LIMIT_REACHED"),
        ("{{ 'x' * (2 ** 31) }}", LIMITS, "LIMIT_REACHED"),
        ("{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", Limits(700 * 1024**2, 60, 10**6), "LIMIT_REACHED"),
        ("{{ 'x' * 2000000 }}", Limits(1024**3, 60, 10**6), "TOO_LARGE"),
    ],
)  # fmt: skip
async def test_a_template_takes_no_more_than_it_may(written, template, limits, reason):
    with pytest.raises(RenderError) as caught:
        await written(story().document(), "HTML", template, limits)
    assert caught.value.reason == reason


def test_templates_are_checked_without_being_carried_out():
    check_template("{{ 2 ** 99999999 }}{{ 'x' * 10 ** 12 }}{% include 'nothing' %}")
    for wrong in ["{% if %}", "{{ a", "{% block a %}{% block a %}", "{% nothing %}", "{{" + "(" * 50_000]:
        with pytest.raises(RenderError):
            check_template(wrong)


# ---- Bounds ----

_MANY = """
import resource, sys
sys.path.insert(0, {root!r})
from tests.unit.reporting import Story
from agentrpc.reports.collect import Collector
from agentrpc.reports.document import Document
import asyncio, pathlib
from agentrpc.reports.rendering import Limits, rendered

def events():
    story = Story()
    text = "word " * 400
    for n in range(33334):
        story.events.clear()
        story.call(f"tool{{n % 300}}", '{{"command": "' + text + str(n) + '"}}', text=text, outcome="FAILED" if n % 3 else "SUCCEEDED")
        if n % 10 == 0:
            story.ask(f"question {{n}}", "Bash", "{{}}", wait=0.1, number=n % 10, decision=None if n % 20 else "ALLOW")
        yield from story.events

collector = Collector("session", "t", {session!r}, "IDLE", complete=True)
for event in events():
    collector.add(event)
document = collector.document()
assert document.event_count > 100_000, document.event_count

async def render():
    async with rendered(document, {form!r}, "", Limits(2**30, 300, 2**26), pathlib.Path(sys.argv[1])) as path:
        return path.stat().st_size

size = asyncio.run(render())
# Not ru_maxrss, which a process takes over from the one that has started it.
own = int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
child = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(own, child, size)
"""


@pytest.mark.parametrize("form", ["HTML", pytest.param("PDF", marks=needs_pango)])
def test_a_hundred_thousand_events_take_little_memory(form, tmp_path):
    code = _MANY.format(root=str(Path(__file__).parent.parent.parent), session=SESSION, form=form)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    own, child, size = (int(word) for word in done.stdout.split())
    print(f"reading {own // 1024} MB, rendering {child // 1024} MB, document {size // 1024} kB")
    assert own + child < 300 * 1024
    assert size < 2 * 1024 * 1024


async def test_without_pango_a_pdf_says_what_to_install(written, monkeypatch):
    from agentrpc.reports import render

    monkeypatch.setitem(sys.modules, "weasyprint", None)

    def missing(name, *args, real=__import__, **kwargs):
        if name == "weasyprint":
            raise OSError("cannot load library 'libpango-1.0-0'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr("builtins.__import__", missing)
    with pytest.raises(RenderError, match="apt-get install libpango") as caught:
        render._pdf("<p>x</p>")
    assert caught.value.reason == "NOT_CONFIGURED"
