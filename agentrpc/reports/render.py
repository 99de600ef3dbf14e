"""A document as bytes. Runs in the rendering process alone: templates are callers', and what they show is agents'."""

import hashlib
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import FunctionLoader, StrictUndefined, TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

__all__ = ["CONTENT_TYPES", "RenderError", "check_template", "render"]

CONTENT_TYPES = {
    "JSON": "application/json",
    "MARKDOWN": "text/markdown; charset=utf-8",
    "HTML": "text/html; charset=utf-8",
    "PDF": "application/pdf",
}

_OURS = {"report.html", "report.md", "style.css"}
_FOLDER = Path(__file__).parent / "templates"
_PANGO = (
    "PDF needs Pango on the workers, which cannot be loaded: ask the operator to install it "
    "(Debian and Ubuntu: apt-get install libpango-1.0-0 libpangoft2-1.0-0 libharfbuzz-subset0 fonts-dejavu-core), "
    "or take HTML"
)


class RenderError(Exception):
    """It cannot be rendered.

    Attributes:
        reason: A value of `ReportError.Reason` without its prefix.
        line: The line of the template, if that is to blame; 0: not known.
    """

    def __init__(self, reason: str, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.reason = reason
        self.line = line


def check_template(text: str) -> None:
    """Raise RenderError unless the text parses. Nothing of it is carried out, and no constant computed."""
    try:
        _environment(autoescape=True).parse(text)
    except TemplateSyntaxError as error:
        message = f"line {error.lineno} of the template: {error.message}"
        raise RenderError("TEMPLATE_INVALID", message, error.lineno) from None
    except RecursionError:
        raise RenderError("TEMPLATE_INVALID", "the template is nested too deeply: flatten it") from None


def render(report: dict[str, Any], form: str, template: str) -> bytes:
    """The report, written.

    Args:
        report: The JSON of a document.
        form: `JSON`, `MARKDOWN`, `HTML` or `PDF`.
        template: In place of ours; empty: ours.

    Raises:
        RenderError: The template fails, or PDF cannot be made here.
    """
    if form == "JSON":
        return (json.dumps(report, indent=2, ensure_ascii=False) + "\n").encode()
    # A template may make lone surrogates, which no document can hold.
    data = _text(report, form, template).encode(errors="replace")
    return _pdf(data.decode()) if form == "PDF" else data


def _text(report: dict[str, Any], form: str, template: str) -> str:
    environment = _environment(autoescape=form != "MARKDOWN")
    charts = {} if form == "MARKDOWN" else _charts(report)
    try:
        if template:
            chosen = environment.from_string(template)
        else:
            chosen = environment.get_template("report.md" if form == "MARKDOWN" else "report.html")
        return chosen.render(report=report, charts=charts)
    except (TemplateError, SecurityError) as error:
        if not template:
            raise
        line = error.lineno if isinstance(error, TemplateSyntaxError) else _line(error)
        raise RenderError("TEMPLATE_INVALID", f"line {line} of the template: {error}", line) from None
    except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError, RecursionError, SyntaxError) as error:
        if not template:
            raise
        line = _line(error)
        message = f"line {line} of the template: {type(error).__name__}: {error}"
        raise RenderError("TEMPLATE_INVALID", message, line) from None


def _charts(report: dict[str, Any]) -> dict[str, Markup]:
    from agentrpc.reports.charts import charts_of  # noqa: PLC0415 - edges check templates without the plotting library

    return {name: Markup(svg) for name, svg in charts_of(report).items()}  # noqa: S704 - our own pictures


def _line(error: BaseException) -> int:
    """The line of the caller's template where it failed."""
    line = 0
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename in {"<template>", "<unknown>"}:
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _environment(*, autoescape: bool) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(_ours),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # What an agent wrote is never markup.
    del environment.filters["safe"]
    environment.filters.update(_FILTERS)
    return environment


def _ours(name: str) -> str | None:
    return (_FOLDER / name).read_text() if name in _OURS else None


def _pdf(html: str) -> bytes:
    try:
        import weasyprint  # noqa: PLC0415 - loads Pango, which only PDF needs
        from weasyprint.urls import URLFetcher  # noqa: PLC0415
    except OSError:
        raise RenderError("NOT_CONFIGURED", _PANGO) from None
    logging.getLogger("weasyprint").setLevel(logging.CRITICAL)
    fetcher = URLFetcher(timeout=1, allowed_protocols=["data"], allow_redirects=False)
    page = weasyprint.HTML(string=html, base_url="about:blank", url_fetcher=fetcher)
    identifier = hashlib.sha256(html.encode()).digest()[:16]
    data: bytes = page.write_pdf(pdf_identifier=identifier, pdf_tags=True)
    return data


# ---- Filters ----


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02} min"
    return f"{hours // 24} d {hours % 24} h"


def _money(usd: float) -> str:
    if usd and usd < 0.01:
        return f"${usd:.4f}"
    return f"${usd:,.2f}"


def _number(count: float) -> str:
    return f"{count:,}"


def _instant(text: str) -> str:
    """`21 Nov 2026, 11:22:50 UTC`."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%-d %b %Y, %H:%M:%S UTC") if text else "-"


def _clock(text: str) -> str:
    """`11:22:50`."""
    return datetime.fromisoformat(text).astimezone(UTC).strftime("%H:%M:%S") if text else ""


def _words(name: str) -> str:
    """`REQUIRES_ACTION` as `requires action`."""
    return name.replace("_", " ").lower()


def _markdown(text: str) -> str:
    """Text of others on one line of Markdown, as they wrote it: nothing in it is markup."""
    flat = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_{}[]()#+-.!|~" else c for c in flat)


def _fence(text: str) -> str:
    """Text of others as a block of code, which it cannot end."""
    longest = run = 0
    for c in text:
        run = run + 1 if c == "`" else 0
        longest = max(longest, run)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


_FILTERS: dict[str, Callable[..., str]] = {
    "duration": _duration,
    "money": _money,
    "number": _number,
    "instant": _instant,
    "clock": _clock,
    "words": _words,
    "markdown": _markdown,
    "fence": _fence,
}
