"""The methods of WebhookService."""

from agentrpc.rpc.methods import Service, emptied
from agentrpc.services.webhooks import Webhooks
from agentrpc.v1 import webhook_service_pb2

__all__ = ["webhook_service"]


def webhook_service(webhooks: Webhooks) -> Service:
    """WebhookService."""
    return Service(
        webhook_service_pb2.DESCRIPTOR.services_by_name["WebhookService"],
        {
            "CreateWebhook": lambda call, r: webhooks.create(call.principal, r),
            "GetWebhook": lambda call, r: webhooks.get(call.principal, r.name),
            "ListWebhooks": lambda call, r: webhooks.list(call.principal, r),
            "UpdateWebhook": lambda call, r: webhooks.update(call.principal, r),
            "DeleteWebhook": emptied(lambda call, r: webhooks.delete(call.principal, r.name, r.etag)),
            "RotateWebhookSecret": lambda call, r: webhooks.rotate(call.principal, r),
            "TestWebhook": lambda call, r: webhooks.test(call.principal, r),
            "GetWebhookDelivery": lambda call, r: webhooks.get_delivery(call.principal, r.name),
            "ListWebhookDeliveries": lambda call, r: webhooks.list_deliveries(call.principal, r),
            "RedeliverWebhook": lambda call, r: webhooks.redeliver(call.principal, r),
        },
    )
