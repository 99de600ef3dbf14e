"""A Python client: channel, tokens, retries of what is safe to retry, and streams that resume by themselves.

async with AgentRpcClient("127.0.0.1:7400", username="admin", password="…") as client:
session = await client.create_session()
async for event in client.run(session.name, "List the files here"):
print(event)
"""

from agentrpc.client.client import AgentRpcClient, TokenStore
from agentrpc.client.errors import RpcError
from agentrpc.client.preview import Preview

__all__ = ["AgentRpcClient", "Preview", "RpcError", "TokenStore"]
