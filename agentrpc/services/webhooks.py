"""Webhooks: what callers set and ask, and what is put on its way when something happens.

A delivery is stored in the transaction that takes the event from the outbox, so each event reaches each webhook that
wants it at least once. `webhook_delivery.py` carries them out.
"""

import asyncio
import json
import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from uuid import UUID

from google.protobuf.message import Message as ProtoMessage

from agentrpc import clock
from agentrpc.domain.principal import Principal, Role
from agentrpc.domain.webhooks import EVENT_TYPES, KEY_BYTES, TEST, secret_text
from agentrpc.errors import FailedPrecondition, NotFound, PermissionDenied, ResourceExhausted
from agentrpc.names import (
    delivery_name,
    parse_delivery,
    parse_delivery_or_wildcard,
    parse_execution,
    parse_user,
    parse_webhook,
    run_name,
    session_name,
    task_name,
    user_name,
    webhook_name,
)
from agentrpc.services.access import require_visible, require_write, visible_owner
from agentrpc.services.addresses import check_url
from agentrpc.services.fields import check_etag, copy_path, etag_of, settable_paths
from agentrpc.services.idempotency import RequestKey, known_request, request_hash
from agentrpc.services.pages import Pager, fitting, order_key, order_values, page_size, parse_order
from agentrpc.services.secrets import SecretBox
from agentrpc.services.signals import Doorbell
from agentrpc.services.task_views import task_spec
from agentrpc.services.validation import Faults, check_enums, request_uuid
from agentrpc.settings import Settings
from agentrpc.store.database import Database, Transaction, after_commit
from agentrpc.store.outbox import Message
from agentrpc.store.tables import SessionEvent
from agentrpc.store.tasks import ExecutionRow, TaskRow
from agentrpc.store.webhooks import (
    WEBHOOK_ORDER,
    DeliveryQuery,
    DeliveryRow,
    WebhookQuery,
    WebhookRow,
    count_webhooks,
    fail_deliveries,
    find_deliveries,
    find_webhooks,
    lock_webhook,
    matching_webhooks,
    send_again,
    webhooks_for,
)
from agentrpc.v1 import approval_pb2, event_pb2, run_pb2, session_pb2, webhook_pb2, webhook_service_pb2

__all__ = ["JOB", "Webhooks", "check_webhook", "signing_keys"]

JOB = "webhooks"

_MAX_WEBHOOKS = 100
_SETTABLE = ("display_name", "url", "event_types", "session_labels", "all_users", "disabled")
_OVERLAP = timedelta(days=1)
_MAX_OVERLAP = timedelta(days=7)


class Webhooks:
    """The use cases.

    Args:
        database: The store.
        doorbell: Is rung when there may be something to deliver.
        settings: The settings.
    """

    def __init__(self, database: Database, doorbell: Doorbell, settings: Settings) -> None:
        self._database = database
        self._doorbell = doorbell
        self._settings = settings
        self._box = SecretBox(settings.secret_keys)
        self._pager = Pager(settings.signing_key.get_secret_value())
        self._ringing: set[asyncio.Task[None]] = set()

    # ---- What callers set ----

    async def create(
        self, principal: Principal, request: webhook_service_pb2.CreateWebhookRequest
    ) -> webhook_pb2.Webhook:
        """CreateWebhook."""
        require_write(principal, "webhooks.create")
        given = request.webhook
        self._check(principal, given)
        key = _request_key(principal, "CreateWebhook", request)
        self._box.require()
        now = clock.utcnow()
        row = WebhookRow(id=clock.uuid7(), owner=principal.user_id, revision=1, create_time=now, update_time=now)
        _set(row, given)
        row.disable_reason = "CALLER" if given.disabled else None
        row.consecutive_failures = 0
        row.secret = self._box.seal(secrets.token_bytes(KEY_BYTES), webhook_name(row.id))
        async with self._database.transaction() as tx:
            if (known := await known_request(tx, key, row.id)) is not None:
                row = await _load(tx, principal, known)
            else:
                if await count_webhooks(tx, principal.user_id) >= _MAX_WEBHOOKS:
                    raise ResourceExhausted(
                        f"you have {_MAX_WEBHOOKS} webhooks: delete one first",
                        reason="LIMIT_REACHED",
                        metadata={"limit": str(_MAX_WEBHOOKS)},
                    )
                tx.add(row)
        return self._with_secret(row)

    async def get(self, principal: Principal, name: str) -> webhook_pb2.Webhook:
        """GetWebhook."""
        async with self._database.transaction() as tx:
            return _message(await _load(tx, principal, parse_webhook(name)))

    async def list(
        self, principal: Principal, request: webhook_service_pb2.ListWebhooksRequest
    ) -> webhook_service_pb2.ListWebhooksResponse:
        """ListWebhooks."""
        size = page_size(request.page_size)
        order = parse_order(request.order_by, WEBHOOK_ORDER)
        after = self._pager.read(request, principal.user_id)
        mine = visible_owner(principal)
        owners = [parse_user(request.owner, field="owner")] if request.owner else []
        query = WebhookQuery(
            owners=[*owners, *([mine] if mine is not None else [])],
            disabled=request.disabled if request.HasField("disabled") else None,
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            rows = await find_webhooks(tx, query)
        webhooks = fitting([_message(row) for row in rows[:size]])
        response = webhook_service_pb2.ListWebhooksResponse(webhooks=webhooks)
        if len(rows) > len(webhooks):
            last = rows[len(webhooks) - 1]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def update(
        self, principal: Principal, request: webhook_service_pb2.UpdateWebhookRequest
    ) -> webhook_pb2.Webhook:
        """UpdateWebhook."""
        webhook_id = parse_webhook(request.webhook.name, field="webhook.name")
        require_write(principal, "webhooks.update")
        paths = settable_paths(request.update_mask, request.webhook, _SETTABLE)
        async with self._database.transaction() as tx:
            row = await _load(tx, principal, webhook_id, lock=True)
            check_etag(request.webhook.etag, row.revision, "webhook")
            before = _message(row)
            wanted = _message(row)
            for path in paths:
                copy_path(request.webhook, wanted, path)
            # Whoever may not set it may not keep it either when it is set anew.
            self._check(principal, wanted, already_all=before.all_users and "all_users" not in paths)
            if wanted != before:
                now = clock.utcnow()
                _set(row, wanted)
                if wanted.disabled and not before.disabled:
                    await disable(tx, row, "CALLER", now)
                elif before.disabled and not wanted.disabled:
                    row.disable_reason, row.failing_since, row.hold_time = None, None, None
                    row.consecutive_failures = 0
                row.revision += 1
                row.update_time = now
            return _message(row)

    async def delete(self, principal: Principal, name: str, etag: str) -> None:
        """DeleteWebhook."""
        require_write(principal, "webhooks.delete")
        async with self._database.transaction() as tx:
            row = await _load(tx, principal, parse_webhook(name), lock=True)
            check_etag(etag, row.revision, "webhook")
            await tx.delete(row)

    async def rotate(
        self, principal: Principal, request: webhook_service_pb2.RotateWebhookSecretRequest
    ) -> webhook_pb2.Webhook:
        """RotateWebhookSecret."""
        webhook_id = parse_webhook(request.name)
        require_write(principal, "webhooks.update")
        overlap = _OVERLAP
        if request.HasField("overlap"):
            faults = Faults()
            faults.duration("overlap", request.overlap, timedelta(0), _MAX_OVERLAP)
            faults.done()
            overlap = request.overlap.ToTimedelta()
        key = _request_key(principal, "RotateWebhookSecret", request)
        async with self._database.transaction() as tx:
            row = await _load(tx, principal, webhook_id, lock=True)
            if await known_request(tx, key, clock.uuid7()) is None:
                row.previous_secret = row.secret if overlap else None
                row.previous_expire_time = clock.utcnow() + overlap if overlap else None
                row.secret = self._box.seal(secrets.token_bytes(KEY_BYTES), webhook_name(row.id))
        return self._with_secret(row)

    # ---- Deliveries ----

    async def test(
        self, principal: Principal, request: webhook_service_pb2.TestWebhookRequest
    ) -> webhook_pb2.WebhookDelivery:
        """TestWebhook."""
        webhook_id = parse_webhook(request.name)
        require_write(principal, "webhooks.test")
        key = _request_key(principal, "TestWebhook", request)
        async with self._database.transaction() as tx:
            webhook = await _load(tx, principal, webhook_id)
            _require_enabled(webhook)
            name = webhook_name(webhook_id)
            row = self._delivery(webhook_id, TEST, name, {"webhook": name}, clock.utcnow())
            if (known := await known_request(tx, key, row.id)) is not None:
                return delivery_message(await _load_delivery(tx, webhook_id, known))
            tx.add(row)
        await self._doorbell.ring_job(JOB)
        return delivery_message(row)

    async def get_delivery(self, principal: Principal, name: str) -> webhook_pb2.WebhookDelivery:
        """GetWebhookDelivery."""
        webhook_id, delivery_id = parse_delivery(name)
        async with self._database.transaction() as tx:
            await _load(tx, principal, webhook_id, within=name)
            return delivery_message(await _load_delivery(tx, webhook_id, delivery_id))

    async def list_deliveries(
        self, principal: Principal, request: webhook_service_pb2.ListWebhookDeliveriesRequest
    ) -> webhook_service_pb2.ListWebhookDeliveriesResponse:
        """ListWebhookDeliveries."""
        webhook_id = parse_webhook(request.parent, field="parent")
        size = page_size(request.page_size)
        faults = Faults()
        check_enums(request, faults)
        for event_type in request.event_types:
            faults.no_nul("event_types", event_type)
        faults.done()
        order = parse_order(request.order_by, {"create_time"})
        after = self._pager.read(request, principal.user_id)
        query = DeliveryQuery(
            webhook_id=webhook_id,
            states=[webhook_pb2.WebhookDelivery.State.Name(s).removeprefix("STATE_") for s in request.states],
            event_types=request.event_types,
            order=order,
            after=None if after is None else order_values(order, after),
            limit=size + 1,
        )
        async with self._database.transaction() as tx:
            await _load(tx, principal, webhook_id)
            rows = await find_deliveries(tx, query)
        deliveries = fitting([delivery_message(row) for row in rows[:size]])
        response = webhook_service_pb2.ListWebhookDeliveriesResponse(deliveries=deliveries)
        if len(rows) > len(deliveries):
            last = rows[len(deliveries) - 1]
            response.next_page_token = self._pager.issue(request, principal.user_id, order_key(last, order))
        return response

    async def redeliver(
        self, principal: Principal, request: webhook_service_pb2.RedeliverWebhookRequest
    ) -> webhook_service_pb2.RedeliverWebhookResponse:
        """RedeliverWebhook."""
        webhook_id, delivery_id = parse_delivery_or_wildcard(request.name)
        require_write(principal, "webhooks.redeliver")
        faults = Faults()
        since = faults.time(request, "create_time_from")
        faults.done()
        now = clock.utcnow()
        async with self._database.transaction() as tx:
            webhook = await _load(tx, principal, webhook_id, lock=True, within=request.name)
            _require_enabled(webhook)
            # Who asks for it thinks that the endpoint is well.
            webhook.hold_time = None
            count = await send_again(tx, webhook_id, delivery_id, since, now=now, until=self._give_up(now))
        if delivery_id is not None and not count:
            raise NotFound("WebhookDelivery", request.name)
        await self._doorbell.ring_job(JOB)
        return webhook_service_pb2.RedeliverWebhookResponse(delivery_count=count)

    # ---- What happens ----

    async def consume(self, tx: Transaction, message: Message) -> None:
        """Put an event on its way to whoever wants it. A consumer of the outbox."""
        webhooks = await matching_webhooks(tx, message.topic, message.tenant, message.session_id)
        if message.topic == "task_execution_ended":
            webhooks += await _notified(tx, message)
        if not webhooks:
            return
        subject, data = await _told(tx, message)
        for webhook_id in dict.fromkeys(webhooks):
            tx.add(self._delivery(webhook_id, message.topic, subject, data, message.time))
        self._ring_later(tx)

    def _delivery(
        self, webhook_id: UUID, event_type: str, subject: str, data: Mapping[str, object], time: datetime
    ) -> DeliveryRow:
        now = clock.utcnow()
        body = {"type": event_type, "timestamp": time.isoformat().replace("+00:00", "Z"), "data": data}
        return DeliveryRow(
            id=clock.uuid7(),
            webhook_id=webhook_id,
            event_type=event_type,
            subject=subject,
            payload=json.dumps(body, separators=(",", ":"), ensure_ascii=False),
            state="PENDING",
            attempts=b"",
            attempt_count=0,
            tries=0,
            due_time=now,
            give_up_time=self._give_up(now),
            create_time=time,
        )

    def _give_up(self, now: datetime) -> datetime:
        return now + timedelta(seconds=self._settings.webhook_retry_window)

    def _ring_later(self, tx: Transaction) -> None:
        def ring() -> None:
            task = asyncio.get_running_loop().create_task(self._doorbell.ring_job(JOB), name="ring-webhooks")
            self._ringing.add(task)
            task.add_done_callback(self._ringing.discard)

        after_commit(tx, ring)

    # ---- Checks and views ----

    def _check(self, principal: Principal, webhook: webhook_pb2.Webhook, *, already_all: bool = False) -> None:
        faults = Faults()
        faults.text("webhook.display_name", webhook.display_name, 200)
        for event_type in webhook.event_types:
            good = event_type in EVENT_TYPES
            faults.check(good, "webhook.event_types", f"{event_type[:80]!r} is not one of {', '.join(EVENT_TYPES)}")
        good = len(set(webhook.event_types)) == len(webhook.event_types)
        faults.check(good, "webhook.event_types", "names a type twice")
        faults.labels("webhook.session_labels", webhook.session_labels.items())
        allow = self._settings.allow_private_addresses
        if "@" in webhook.url.partition("//")[2].partition("/")[0]:
            faults.add("webhook.url", "must have no user name and password: requests are signed instead")
        check_url("webhook.url", webhook.url, faults, allow_private=allow)
        faults.done()
        if webhook.all_users and not already_all and principal.role is not Role.ADMIN:
            raise PermissionDenied("webhooks.allUsers")

    def _with_secret(self, row: WebhookRow) -> webhook_pb2.Webhook:
        message = _message(row)
        message.secret = secret_text(self._box.open(row.secret, webhook_name(row.id)))
        return message


def signing_keys(box: SecretBox, row: WebhookRow, now: datetime) -> list[bytes]:
    """The keys that requests are signed with now. Raises NOT_CONFIGURED."""
    sealed = [row.secret]
    if row.previous_secret is not None and row.previous_expire_time is not None and row.previous_expire_time > now:
        sealed.append(row.previous_secret)
    return [box.open(secret, webhook_name(row.id)) for secret in sealed]


async def disable(tx: Transaction, row: WebhookRow, reason: str, now: datetime) -> None:
    """Send nothing more to a webhook, which is locked; give up what waits."""
    row.disable_reason = reason
    await fail_deliveries(tx, row.id, now)


async def check_webhook(tx: Transaction, principal: Principal, name: str, *, field: str) -> None:
    """Check that the caller has a webhook that another resource names. Raises NAME_INVALID, NOT_FOUND."""
    await _load(tx, principal, parse_webhook(name, field=field))


async def _load(
    tx: Transaction, principal: Principal, webhook_id: UUID, *, lock: bool = False, within: str = ""
) -> WebhookRow:
    row = await (lock_webhook(tx, webhook_id) if lock else tx.get(WebhookRow, webhook_id))
    kind = "WebhookDelivery" if within else "Webhook"
    require_visible(principal, row.owner if row else None, kind, within or webhook_name(webhook_id))
    assert row is not None
    return row


async def _load_delivery(tx: Transaction, webhook_id: UUID, delivery_id: UUID) -> DeliveryRow:
    row = await tx.get(DeliveryRow, delivery_id)
    if row is None or row.webhook_id != webhook_id:
        raise NotFound("WebhookDelivery", delivery_name(webhook_id, delivery_id))
    return row


def _require_enabled(row: WebhookRow) -> None:
    if row.disable_reason is not None:
        raise FailedPrecondition(
            "the webhook is disabled: set `disabled` to false first",
            reason="STATE_INVALID",
            metadata={"state": f"DISABLE_REASON_{row.disable_reason}"},
        )


def _request_key(principal: Principal, method: str, request: ProtoMessage) -> RequestKey:
    request_id = request_uuid(request.request_id)  # type: ignore[attr-defined]  # those that are given here have one
    return RequestKey(principal, method, request_id, request_hash(request))


def _set(row: WebhookRow, wanted: webhook_pb2.Webhook) -> None:
    row.display_name = wanted.display_name
    row.url = wanted.url
    row.event_types = list(wanted.event_types)
    row.session_labels = dict(wanted.session_labels)
    row.all_users = wanted.all_users


async def _notified(tx: Transaction, message: Message) -> list[UUID]:
    """The webhooks that the task of an execution names for an end like this one.

    Of a shared task others begin executions too: a webhook hears of those that its owner may see.
    """
    task_id, execution_id = parse_execution(message.subject)
    task, execution = await tx.get(TaskRow, task_id), await tx.get(ExecutionRow, execution_id)
    if task is None or execution is None:
        return []
    state = run_pb2.Run.State.Value(f"STATE_{execution.state}")
    named = [one.webhook for one in task_spec(task).notifications if not one.states or state in one.states]
    found = await webhooks_for(tx, execution.creator, [parse_webhook(name) for name in dict.fromkeys(named)])
    return list(found)


async def _told(tx: Transaction, message: Message) -> tuple[str, dict[str, str | int | bool]]:
    """What a message is about, and the data of its body."""
    if message.topic == "task_execution_ended":
        task_id, execution_id = parse_execution(message.subject)
        execution = await tx.get_one(ExecutionRow, execution_id)
        return message.subject, {
            "task": task_name(task_id),
            "execution": message.subject,
            "state": f"STATE_{execution.state}",
        }
    if message.session_id is None or message.sequence is None:
        return message.subject, {"subject": message.subject}
    subject = session_name(message.session_id)
    data: dict[str, str | int | bool] = {"session": subject, "sequence": message.sequence}
    if message.run_id is not None:
        subject = data["run"] = run_name(message.session_id, message.run_id)
    row = await tx.get(SessionEvent, (message.session_id, message.sequence))
    event = event_pb2.Event() if row is None else event_pb2.Event.FromString(row.data)
    match event.WhichOneof("payload"):
        case "run_state_changed":
            data["state"] = run_pb2.Run.State.Name(event.run_state_changed.state)
        case "run_ended":
            data["state"] = run_pb2.Run.State.Name(event.run_ended.state)
        case "session_state_changed":
            data["state"] = session_pb2.Session.State.Name(event.session_state_changed.state)
        case "session_pause_changed":
            data["paused"] = event.session_pause_changed.paused
        case "approval_requested":
            subject = data["approval"] = event.approval_requested.approval.name
        case "approval_resolved":
            subject = data["approval"] = event.approval_resolved.approval
            data["state"] = approval_pb2.Approval.State.Name(event.approval_resolved.state)
    return subject, data


def _message(row: WebhookRow) -> webhook_pb2.Webhook:
    message = webhook_pb2.Webhook(
        name=webhook_name(row.id),
        display_name=row.display_name,
        url=row.url,
        event_types=row.event_types,
        session_labels=row.session_labels,
        all_users=row.all_users,
        disabled=row.disable_reason is not None,
        disable_reason=f"DISABLE_REASON_{row.disable_reason or 'UNSPECIFIED'}",
        owner=user_name(row.owner),
        consecutive_failures=row.consecutive_failures,
        etag=etag_of(row.revision),
    )
    for name in ("failing_since", "last_success_time", "create_time", "update_time"):
        if (time := getattr(row, name)) is not None:
            getattr(message, name).FromDatetime(time)
    if row.previous_expire_time is not None and row.previous_expire_time > clock.utcnow():
        message.previous_secret_expire_time.FromDatetime(row.previous_expire_time)
    return message


def delivery_message(row: DeliveryRow) -> webhook_pb2.WebhookDelivery:
    """`agentrpc.v1.WebhookDelivery`."""
    message = webhook_pb2.WebhookDelivery.FromString(row.attempts)
    message.name = delivery_name(row.webhook_id, row.id)
    message.event_type = row.event_type
    message.subject = row.subject
    message.MergeFrom(webhook_pb2.WebhookDelivery(state=f"STATE_{row.state}"))
    message.payload_json = row.payload
    message.attempt_count = row.attempt_count
    message.create_time.FromDatetime(row.create_time)
    if row.state == "PENDING":
        message.next_attempt_time.FromDatetime(row.due_time)
    if row.end_time is not None:
        message.end_time.FromDatetime(row.end_time)
    return message
