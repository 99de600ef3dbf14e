"""What was used over a period as a document: by day and by model, run by run. Sessions and owners come added up."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from agentrpc.reports.bounded import instant
from agentrpc.reports.document import Document, ModelEntry, Share, Tokens

__all__ = ["UsageCollector", "UsedRun"]

_MAX_MODELS = 50


@dataclass(frozen=True, slots=True)
class UsedRun:
    """What a run used: its tokens in all and by model, and how many seconds it was under way."""

    created: datetime
    state: str
    tokens: Tokens
    models: tuple[tuple[str, Tokens], ...]
    seconds: float


class UsageCollector:
    """Takes the runs of a period.

    Args:
        title: Of the document.
        subject: Whose usage it is.
        begin: The first moment.
        end: The moment after the last.
        complete: Whether the period is over.
    """

    def __init__(self, title: str, subject: str, begin: datetime, end: datetime, *, complete: bool) -> None:
        seconds = (end - begin).total_seconds()
        self._document = Document(kind="usage", title=title, subject=subject, seconds=seconds, complete=complete)
        self._document.begin, self._document.end = instant(begin.timestamp()), instant(end.timestamp())
        self._days: dict[date, Share] = {}
        self._models: dict[str, Tokens] = {}
        day = begin.astimezone(UTC).date()
        while day <= (end - timedelta(microseconds=1)).astimezone(UTC).date():
            self._days[day] = Share(day.isoformat(), "", 0, 0, Tokens())
            day += timedelta(days=1)

    def add(self, run: UsedRun) -> None:
        """A run."""
        document = self._document
        document.run_count += 1
        document.run_states[run.state] = document.run_states.get(run.state, 0) + 1
        document.busy_seconds += run.seconds
        document.tokens.add(run.tokens)
        day = self._days[run.created.astimezone(UTC).date()]
        day.runs += 1
        day.failed += run.state == "FAILED"
        day.tokens.add(run.tokens)
        for model, tokens in run.models:
            label = model if model in self._models or len(self._models) < _MAX_MODELS else "(other models)"
            self._models.setdefault(label, Tokens()).add(tokens)

    def document(self, sessions: list[Share], owners: list[Share], left_out: dict[str, int]) -> Document:
        """The document, once everything is in.

        Args:
            sessions: The dearest ones.
            owners: The dearest ones; none when it is about one owner.
            left_out: How many of `sessions` and `owners` are missing.
        """
        document = self._document
        document.busy_seconds = round(document.busy_seconds, 3)
        document.days = list(self._days.values())
        by_cost = sorted(self._models.items(), key=lambda item: (-item[1].cost_usd, -item[1].total, item[0]))
        document.models = [ModelEntry(model, tokens) for model, tokens in by_cost]
        document.sessions, document.owners = sessions, owners
        document.left_out = {name: count for name, count in left_out.items() if count}
        return document
