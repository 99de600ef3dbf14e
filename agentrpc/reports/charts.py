"""Pictures as SVG: the same data give the same bytes.

Names of tools and models come from agents: they are drawn as text and never read as mathematics or markup.
"""

import io
import re
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

__all__ = ["charts_of"]

_INK = "#1f2937"
_FAINT = "#6b7280"
_RULE = "#e5e7eb"
_BLUE, _SKY, _TEAL, _AMBER, _RED, _VIOLET, _GREY = (
    "#2f5bd7", "#8fb2f5", "#0f9d8a", "#e09f1f", "#d1495b", "#7c5cc4", "#9ca3af",
)  # fmt: skip
_KINDS = {"model": _BLUE, "tool": _TEAL, "wait": _AMBER, "subagent": _VIOLET}
_WIDTH = 7.1
_MAX_BARS = 12
_LONGEST_LABEL = 26

_STYLE: Any = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _RULE,
    "axes.labelcolor": _FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 8,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": _RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
}


def charts_of(report: dict[str, Any]) -> dict[str, str]:
    """The pictures of a report by name, as SVG elements; those that would show nothing are missing.

    Args:
        report: The JSON of a document.
    """
    made = {
        "timeline": _timeline,
        "growth": _growth,
        "tools": _tools,
        "days": _days,
        "models": _models,
    }
    found = {}
    for name, draw in made.items():
        # The salt makes ids, which the page's pictures must not share.
        with mpl.rc_context({**_STYLE, "svg.hashsalt": name}):
            figure = draw(report)
            if figure is not None:
                found[name] = _svg(figure, name)
    return found


def _svg(figure: Figure, name: str) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = out.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # Ids are the page's: each picture has its own.
    text = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", text)
    # The style sheet decides the size on the page.
    head, _, rest = text.partition(">")
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} class="chart" role="img" aria-label="{name}">{rest}'


# ---- When things happened ----


def _timeline(report: dict[str, Any]) -> Figure | None:
    lanes = report["lanes"]
    if not lanes:
        return None
    total = max(report["seconds"], 0.001)
    figure, axes = _figure(0.6 + 0.24 * len(lanes))
    for at, lane in enumerate(lanes):
        # What is shorter than a hair is still to be seen.
        bars = [(begin, max(end - begin, total / 700)) for begin, end in lane["spans"]]
        axes.broken_barh(bars, (at - 0.32, 0.64), facecolors=_KINDS.get(lane["kind"], _GREY), linewidth=0)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_yticks(range(len(lanes)), [_short(lane["label"]) for lane in lanes])
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set_xlim(0, total)
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    _time_axis(axes, total)
    return figure


def _time_axis(axes: Axes, total: float) -> None:
    unit, name = next(
        (u, n) for limit, u, n in ((180, 1, "seconds"), (3 * 3600, 60, "minutes"), (3 * 86400, 3600, "hours"),
                                   (float("inf"), 86400, "days")) if total <= limit
    )  # fmt: skip
    steps = MaxNLocator(nbins=8, steps=[1, 2, 5, 10]).tick_values(0, total / unit)
    axes.set_xticks([step * unit for step in steps if 0 <= step * unit <= total])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / unit:g}"))
    axes.set_xlabel(f"{name} from the beginning")


# ---- Tokens and cost ----


def _growth(report: dict[str, Any]) -> Figure | None:
    growth = report["growth"]
    if not growth["seconds"]:
        return None
    # With room for what comes at the very end.
    total = max(report["seconds"], 0.001) * 1.02
    figure, axes = _figure(1.75)
    times = [0.0, *growth["seconds"], total]

    def steps(values: list[float]) -> list[float]:
        return [0.0, *values, values[-1]]

    parts = [steps(growth[kind]) for kind in ("cache", "input", "output")]
    axes.stackplot(times, *parts, step="post", colors=[_RULE, _SKY, _BLUE], labels=["cache", "input", "output"], lw=0)
    axes.set_xlim(0, total)
    axes.set_ylim(0, max(map(sum, zip(*parts, strict=True))) * 1.12 or 1)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _amount(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylabel("tokens")
    _time_axis(axes, total)
    if growth["cost_usd"][-1] > 0:
        _cost_axis(axes, times, steps(growth["cost_usd"]))
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.2, columnspacing=1.4)
    return figure


def _cost_axis(axes: Axes, times: list[Any], cost: list[float], **style: Any) -> None:  # noqa: ANN401 - of a line
    right = axes.twinx()
    right.grid(visible=False)
    right.spines["right"].set_visible(False)
    right.plot(times, cost, color=_RED, lw=1.4, label="cost", **{"drawstyle": "steps-post", **style})
    right.set_ylim(0, max(cost) * 1.12)
    right.yaxis.set_major_locator(MaxNLocator(4))
    right.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"${value:,.4g}"))
    right.tick_params(axis="y", labelcolor=_RED)


def _days(report: dict[str, Any]) -> Figure | None:
    days = report["days"]
    if not days or not report["run_count"]:
        return None
    figure, axes = _figure(1.9)
    at = list(range(len(days)))
    below = [0.0] * len(days)
    for label, kinds, colour in (
        ("cache", ("cache_write", "cache_read"), _RULE),
        ("input", ("input",), _SKY),
        ("output", ("output",), _BLUE),
    ):
        values = [float(sum(day["tokens"][kind] for kind in kinds)) for day in days]
        axes.bar(at, values, bottom=below, width=0.8, color=colour, label=label, linewidth=0)
        below = [low + value for low, value in zip(below, values, strict=True)]
    axes.set_ylim(0, max(below) * 1.12 or 1)
    axes.set_xlim(-0.6, len(days) - 0.4)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: _amount(value)))
    axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.set_ylabel("tokens")
    axes.grid(visible=False, axis="x")
    every = -(-len(days) // 12)
    axes.set_xticks(at[::every], [day["label"][5:] if len(days) <= 60 else day["label"][2:] for day in days[::every]])
    cost = [day["tokens"]["cost_usd"] for day in days]
    if max(cost) > 0:
        marker = "o" if len(days) <= 62 else ""
        _cost_axis(axes, at, cost, drawstyle="default", marker=marker, markersize=2.5)
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.2, columnspacing=1.4)
    return figure


# ---- Shares ----


def _tools(report: dict[str, Any]) -> Figure | None:
    tools = report["tools"][:_MAX_BARS]
    if not tools:
        return None
    figure, axes = _figure(0.8 + 0.22 * len(tools))
    at = range(len(tools))
    below = [0] * len(tools)
    for label, kinds, colour in (
        ("succeeded", ("succeeded",), _TEAL),
        ("failed", ("failed",), _RED),
        ("denied", ("denied",), _AMBER),
        ("not finished", ("interrupted", "unknown", "open"), _GREY),
    ):
        values = [sum(tool[kind] for kind in kinds) for tool in tools]
        if any(values):
            axes.barh(at, values, left=below, height=0.62, color=colour, label=label, linewidth=0)
            below = [low + value for low, value in zip(below, values, strict=True)]
    for row, count in enumerate(below):
        axes.text(count + max(below) * 0.01, row, f"{count:,}", va="center", color=_FAINT)
    axes.set_yticks(at, [_short(tool["tool"]) for tool in tools])
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set_ylim(len(tools) - 0.4, -0.6)
    axes.set_xlim(0, max(below) * 1.08 or 1)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("calls")
    figure.legend(loc="outside upper left", ncols=4, handlelength=1.0, columnspacing=1.4)
    return figure


def _models(report: dict[str, Any]) -> Figure | None:
    models = [entry for entry in report["models"] if entry["tokens"]["cost_usd"] > 0][:_MAX_BARS]
    if len(models) < 2:
        return None
    figure, axes = _figure(0.5 + 0.22 * len(models))
    cost = [entry["tokens"]["cost_usd"] for entry in models]
    axes.barh(range(len(models)), cost, height=0.62, color=_BLUE, linewidth=0)
    for row, value in enumerate(cost):
        axes.text(value + max(cost) * 0.01, row, f"${value:,.4g}", va="center", color=_FAINT)
    axes.set_yticks(range(len(models)), [_short(entry["model"]) for entry in models])
    axes.tick_params(axis="y", labelcolor=_INK)
    axes.set_ylim(len(models) - 0.4, -0.6)
    axes.set_xlim(0, max(cost) * 1.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"${value:,.4g}"))
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    return figure


# ---- Helpers ----


def _figure(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _short(text: str) -> str:
    """A label; control characters have no picture."""
    clean = "".join(c if c.isprintable() else "·" for c in text)
    return clean if len(clean) <= _LONGEST_LABEL else f"{clean[: _LONGEST_LABEL - 1]}…"


def _amount(value: float) -> str:
    for limit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:g} {name}"
    return f"{value:g}"
