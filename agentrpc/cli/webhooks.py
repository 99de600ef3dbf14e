"""`agentrpc webhooks`."""

from typing import Annotated

import typer
from google.protobuf.field_mask_pb2 import FieldMask
from rich.table import Column, Table

from agentrpc.cli.connection import fail, run_command
from agentrpc.cli.resources import Json, full_name, print_json, show, when
from agentrpc.cli.terminal import Terminal
from agentrpc.client import AgentRpcClient
from agentrpc.v1 import webhook_pb2, webhook_service_pb2

__all__ = ["app"]

app = typer.Typer(help="Endpoints that are told what happens.", no_args_is_help=True)
console = Terminal()

Events = Annotated[list[str] | None, typer.Option("--event", help="Only this event type; may be repeated.")]
Labels = Annotated[list[str] | None, typer.Option("--label", help="KEY=VALUE of sessions; may be repeated.")]


def _name(text: str) -> str:
    return full_name("webhooks", text)


def _labels(given: list[str] | None) -> dict[str, str]:
    pairs = [text.partition("=") for text in given or []]
    if not all(separator for _, separator, _ in pairs):
        raise fail("--label must be KEY=VALUE", 2)
    return {key: value for key, _, value in pairs}


@app.command("create")
def create_webhook(
    url: str,
    event: Events = None,
    label: Labels = None,
    display_name: str = "",
    all_users: Annotated[bool, typer.Option(help="What happens to all users; for admins.")] = False,
) -> None:
    """Create a webhook, and show its secret, which is shown only now."""
    webhook = webhook_pb2.Webhook(
        url=url,
        display_name=display_name,
        event_types=event or [],
        session_labels=_labels(label),
        all_users=all_users,
    )
    request = webhook_service_pb2.CreateWebhookRequest(webhook=webhook)
    show(lambda client: client.call(client.webhooks.CreateWebhook, request))


@app.command("list")
def list_webhooks(page_size: int = 50, as_json: Json = False) -> None:
    """List webhooks, newest first."""

    async def work(client: AgentRpcClient) -> None:
        request = webhook_service_pb2.ListWebhooksRequest(page_size=page_size)
        response = await client.call(client.webhooks.ListWebhooks, request)
        if as_json:
            print_json(response)
            return
        table = Table(Column("webhook", no_wrap=True), "state", "last success", "url", box=None)
        for found in response.webhooks:
            state = f"failing ({found.consecutive_failures})" if found.consecutive_failures else "on"
            if found.disabled:
                reason = webhook_pb2.Webhook.DisableReason.Name(found.disable_reason)
                state = f"off: {reason.removeprefix('DISABLE_REASON_').lower()}"
            table.add_row(found.name, state, when(found.last_success_time), found.url)
        console.print(table)

    run_command(work)


@app.command("get")
def get_webhook(webhook: str) -> None:
    """Show a webhook."""
    request = webhook_service_pb2.GetWebhookRequest(name=_name(webhook))
    show(lambda client: client.call(client.webhooks.GetWebhook, request))


@app.command("update")
def update_webhook(
    webhook: str,
    url: Annotated[str | None, typer.Option()] = None,
    event: Events = None,
    display_name: Annotated[str | None, typer.Option()] = None,
    enable: Annotated[bool | None, typer.Option("--enable/--disable", help="Send again, or nothing more.")] = None,
) -> None:
    """Change a webhook."""
    given = webhook_pb2.Webhook(
        name=_name(webhook),
        url=url or "",
        event_types=event or [],
        display_name=display_name or "",
        disabled=enable is False,
    )
    options = {"url": url, "event_types": event, "display_name": display_name, "disabled": enable}
    mask = FieldMask(paths=[path for path, value in options.items() if value is not None])
    if not mask.paths:
        raise fail("say what to change: --url, --event, --display-name, --enable or --disable", 2)
    request = webhook_service_pb2.UpdateWebhookRequest(webhook=given, update_mask=mask)
    show(lambda client: client.call(client.webhooks.UpdateWebhook, request))


@app.command("delete")
def delete_webhook(webhook: str) -> None:
    """Delete a webhook and its deliveries."""
    request = webhook_service_pb2.DeleteWebhookRequest(name=_name(webhook))
    show(lambda client: client.call(client.webhooks.DeleteWebhook, request))


@app.command("rotate-secret")
def rotate_secret(
    webhook: str,
    overlap: Annotated[int, typer.Option(help="Seconds for which the old one signs too.")] = 86400,
) -> None:
    """Give a webhook a new secret, and show it."""
    request = webhook_service_pb2.RotateWebhookSecretRequest(name=_name(webhook))
    request.overlap.FromSeconds(overlap)
    show(lambda client: client.call(client.webhooks.RotateWebhookSecret, request))


@app.command("test")
def send_test(webhook: str) -> None:
    """Send an event of type `test`; `deliveries` says what came of it."""
    request = webhook_service_pb2.TestWebhookRequest(name=_name(webhook))
    show(lambda client: client.call(client.webhooks.TestWebhook, request))


@app.command("deliveries")
def list_deliveries(
    webhook: str,
    state: Annotated[list[str] | None, typer.Option(help="pending, succeeded or failed; may be repeated.")] = None,
    page_size: int = 20,
    as_json: Json = False,
) -> None:
    """List what was sent to a webhook, newest first."""
    known = webhook_pb2.WebhookDelivery.State
    try:
        request = webhook_service_pb2.ListWebhookDeliveriesRequest(
            parent=_name(webhook), states=[f"STATE_{text.upper()}" for text in state or []], page_size=page_size
        )
    except ValueError:
        raise fail("--state must be pending, succeeded or failed", 2) from None

    async def work(client: AgentRpcClient) -> None:
        response = await client.call(client.webhooks.ListWebhookDeliveries, request)
        if as_json:
            print_json(response)
            return
        table = Table(Column("delivery", no_wrap=True), "event", "state", "tries", "next", "last answer", box=None)
        for found in response.deliveries:
            last = found.attempts[-1] if found.attempts else webhook_pb2.WebhookAttempt()
            answer = last.error or str(last.status_code or "")
            name, state = found.name.rpartition("/")[2], known.Name(found.state).removeprefix("STATE_")
            next_time = when(found.next_attempt_time)
            table.add_row(name, found.event_type, state, str(found.attempt_count), next_time, answer)
        console.print(table)

    run_command(work)


@app.command("redeliver")
def redeliver(
    webhook: str, delivery: Annotated[str, typer.Argument(help="Left out: all that have failed.")] = "-"
) -> None:
    """Send again what has ended."""
    name = delivery if delivery.startswith("webhooks/") else f"{_name(webhook)}/deliveries/{delivery}"
    request = webhook_service_pb2.RedeliverWebhookRequest(name=name)
    show(lambda client: client.call(client.webhooks.RedeliverWebhook, request))
