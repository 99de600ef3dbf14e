"""Carries out deliveries to webhooks: at least once each, in bounded time, whatever an endpoint does.

An endpoint that hangs, redirects, fails or talks without end costs one attempt's time-out and holds up nobody else:
each has a bounded share of what is under way, and one that keeps failing has the least, and comes last. A worker that
dies in the middle leaves a lease that passes; the event is sent again then, with the same id.
"""

import asyncio
import ssl  # noqa: TC003 - beside its siblings
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID
from weakref import WeakValueDictionary

import httpx
import structlog

from agentrpc import clock
from agentrpc.domain.webhooks import longest_wait, retry_after, signatures
from agentrpc.errors import AgentRpcError
from agentrpc.services.addresses import Resolver, resolver
from agentrpc.services.secrets import SecretBox
from agentrpc.services.webhooks import disable, signing_keys
from agentrpc.settings import Settings
from agentrpc.store.database import Database
from agentrpc.store.webhooks import (
    DeliveryRow,
    WebhookRow,
    claim_deliveries,
    forget_deliveries,
    give_back,
    lock_delivery,
    lock_webhook,
)
from agentrpc.v1 import webhook_pb2

__all__ = ["WebhookDeliveries"]

log = structlog.get_logger()

_AT_ONCE = 64
_PER_WEBHOOK = 4
_LOOKUPS_PER_OWNER = 4
_LOOK = 0.5
_ATTEMPTS_KEPT = 20
_MAX_ERROR = 200
_CONNECT_TIMEOUT = 5.0
# What a lease has beyond the attempt's time-out: to load what is sent, and to store what came of it.
_MARGIN = timedelta(seconds=30)
_FORGET_EVERY = 600.0


@dataclass(frozen=True, slots=True)
class _Request:
    """What is sent."""

    owner: UUID
    url: str
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What came of an attempt.

    Attributes:
        start: When it began.
        status: Of the answer; 0: there was none.
        error: What went wrong; empty: nothing.
        retry_after: What the endpoint asks for.
        ours: The endpoint has no part in it.
    """

    start: datetime
    status: int = 0
    error: str = ""
    retry_after: timedelta | None = None
    ours: bool = False


class WebhookDeliveries:
    """The job. Any number may run.

    Args:
        database: The store.
        settings: The settings.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database = database
        self._settings = settings
        self._box = SecretBox(settings.secret_keys)
        self._resolve: Resolver = resolver(allow_private=settings.allow_private_addresses)
        self._turns: WeakValueDictionary[UUID, asyncio.Semaphore] = WeakValueDictionary()
        self._lease = timedelta(seconds=settings.webhook_timeout) + _MARGIN
        self._trust: ssl.SSLContext | None = None
        self._forget_at = 0.0

    async def drain(self) -> int:
        """Deliver what is due, and what becomes due meanwhile; how many attempts that were."""
        await self._forget()
        count = 0
        under_way: set[asyncio.Task[None]] = set()
        timeout = httpx.Timeout(self._settings.webhook_timeout, connect=_CONNECT_TIMEOUT)
        # No connection is kept: the pool knows them by address, and another host may have the same one.
        limits = httpx.Limits(max_keepalive_connections=0)
        if self._trust is None:
            self._trust = httpx.create_ssl_context()
            # Authorities that the operator has added to the system.
            self._trust.load_default_certs()
        async with httpx.AsyncClient(verify=self._trust, timeout=timeout, limits=limits, trust_env=False) as client:
            try:
                while True:
                    if room := _AT_ONCE - len(under_way):
                        claimed = await claim_deliveries(
                            self._database, room, per_webhook=_PER_WEBHOOK, lease=self._lease
                        )
                        count += len(claimed)
                        under_way |= {asyncio.create_task(self._deliver(client, *one)) for one in claimed}
                    if not under_way:
                        return count
                    _, under_way = await asyncio.wait(under_way, timeout=_LOOK, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)

    async def _forget(self) -> None:
        if clock.monotonic() < self._forget_at:
            return
        before = clock.utcnow() - timedelta(seconds=self._settings.webhook_log_ttl)
        while await forget_deliveries(self._database, before):
            continue
        self._forget_at = clock.monotonic() + _FORGET_EVERY

    # ---- One attempt ----

    async def _deliver(self, client: httpx.AsyncClient, delivery_id: UUID, lease: UUID) -> None:
        start = clock.utcnow()
        try:
            try:
                request = await self._request(delivery_id, start)
                if request is None:
                    return
                outcome = await self._attempt(client, request, start)
            except AgentRpcError as error:
                if error.reason == "STORE_UNAVAILABLE":
                    raise
                outcome = _Outcome(start, error=error.message, ours=True)
            except Exception:
                # What is recorded nowhere would be repeated as soon as its lease passes, for ever.
                log.exception("delivery_failed", delivery=str(delivery_id))
                outcome = _Outcome(start, error="a fault of the service", ours=True)
            await self._record(delivery_id, lease, outcome)
        except AgentRpcError as error:
            # The lease passes.
            log.warning("delivery_not_recorded", delivery=str(delivery_id), reason=error.reason)
        except asyncio.CancelledError:
            await give_back(self._database, lease)
            raise
        except Exception:
            log.exception("delivery_not_recorded", delivery=str(delivery_id))

    async def _request(self, delivery_id: UUID, now: datetime) -> _Request | None:
        async with self._database.transaction() as tx:
            row = await tx.get(DeliveryRow, delivery_id)
            webhook = await tx.get(WebhookRow, row.webhook_id) if row is not None else None
        if row is None or webhook is None:
            return None
        body, timestamp = row.payload.encode(), int(now.timestamp())
        headers = {
            "content-type": "application/json",
            "user-agent": "AgentRPC-Webhooks/1",
            "webhook-id": str(row.id),
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signatures(signing_keys(self._box, webhook, now), str(row.id), timestamp, body),
        }
        return _Request(webhook.owner, webhook.url, headers, body)

    async def _attempt(self, client: httpx.AsyncClient, request: _Request, start: datetime) -> _Outcome:
        limit = self._settings.webhook_timeout
        try:
            async with asyncio.timeout(limit):
                response = await self._post(client, request)
        except TimeoutError:
            return _Outcome(start, error=f"there was no answer within {limit:g} s")
        except AgentRpcError as error:
            return _Outcome(start, error=error.message)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as error:
            return _Outcome(start, error=f"{type(error).__name__}: {error}")
        if response.is_success:
            return _Outcome(start, response.status_code)
        asked = response.headers.get("retry-after", "") if response.status_code in {429, 503} else ""
        told = "redirects are not followed" if response.is_redirect else "only 2xx is success"
        return _Outcome(
            start,
            response.status_code,
            f"the endpoint answered {response.status_code}: {told}",
            retry_after(asked, clock.utcnow()) if asked else None,
        )

    async def _post(self, client: httpx.AsyncClient, request: _Request) -> httpx.Response:
        """Send it to the first address that can be reached. The answer's body is of no interest, and not read."""
        url = httpx.URL(request.url)
        port = url.port or (443 if url.scheme == "https" else 80)
        addresses = await self._addresses(request.owner, url.host, port)
        for left, address in enumerate(addresses, 1 - len(addresses)):
            pinned = client.build_request(
                "POST",
                url.copy_with(host=address),
                headers={**request.headers, "host": url.netloc.decode()},
                content=request.body,
                # What the certificate has to be for.
                extensions={"sni_hostname": url.host},
            )
            try:
                response = await client.send(pinned, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if not left:
                    raise
                continue
            await response.aclose()
            return response
        raise OSError("the host has no address")

    async def _addresses(self, owner: UUID, host: str, port: int) -> list[str]:
        """The addresses of an owner's host. It has its turn until the look-up has ended, whoever still waits for it."""
        turns = self._turns.setdefault(owner, asyncio.Semaphore(_LOOKUPS_PER_OWNER))
        await turns.acquire()
        looking = asyncio.ensure_future(self._resolve(host, port))
        looking.add_done_callback(lambda _: turns.release())
        return await asyncio.shield(looking)

    # ---- What comes of it ----

    async def _record(self, delivery_id: UUID, lease: UUID, outcome: _Outcome) -> None:
        now = clock.utcnow()
        async with self._database.transaction() as tx:
            found = await tx.get(DeliveryRow, delivery_id)
            # The webhook first, as all do that change both.
            webhook = await lock_webhook(tx, found.webhook_id) if found is not None else None
            row = await lock_delivery(tx, delivery_id)
            if row is None or webhook is None or row.state != "PENDING" or (outcome.error and row.lease != lease):
                return
            _add_attempt(row, outcome, now)
            row.lease = row.lease_time = None
            if not outcome.error:
                row.state, row.end_time = "SUCCEEDED", now
                webhook.consecutive_failures, webhook.failing_since = 0, None
                webhook.hold_time, webhook.last_success_time = None, now
                return
            self._put_off(row, webhook, outcome, now)
            if outcome.ours:
                return
            webhook.consecutive_failures += 1
            webhook.failing_since = webhook.failing_since or outcome.start
            patience = timedelta(seconds=self._settings.webhook_disable_after)
            if outcome.status == 410:
                reason = "GONE"
            elif now - webhook.failing_since > patience:
                reason = "FAILING"
            else:
                return
            if webhook.disable_reason is None:
                webhook.revision += 1
                await tx.flush()
                await disable(tx, webhook, reason, now)
                log.info("webhook_disabled", webhook=str(webhook.id), reason=reason)

    def _put_off(self, row: DeliveryRow, webhook: WebhookRow, outcome: _Outcome, now: datetime) -> None:
        row.tries += 1
        longest = longest_wait(row.tries, self._settings.webhook_retry_delay)
        wait = timedelta(seconds=clock.jitter(longest / 2, 1.0))
        if outcome.retry_after is not None:
            wait = max(wait, outcome.retry_after)
            webhook.hold_time = now + outcome.retry_after
        # Once more at the very end.
        row.due_time = min(now + wait, row.give_up_time)
        if now >= row.give_up_time:
            row.state, row.end_time = "FAILED", now


def _add_attempt(row: DeliveryRow, outcome: _Outcome, now: datetime) -> None:
    kept = webhook_pb2.WebhookDelivery.FromString(row.attempts)
    attempt = kept.attempts.add(status_code=outcome.status, error=outcome.error[:_MAX_ERROR])
    attempt.start_time.FromDatetime(outcome.start)
    attempt.latency.FromTimedelta(now - outcome.start)
    del kept.attempts[:-_ATTEMPTS_KEPT]
    row.attempts = kept.SerializeToString()
    row.attempt_count += 1
