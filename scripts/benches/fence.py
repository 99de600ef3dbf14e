"""fence: what the egress proxy costs, on loopback, against connections without it."""

import asyncio
import ipaddress
import socket
import sys
import threading
import time

import uvloop

from agentrpc.domain.network import NetworkMode, NetworkPolicy
from agentrpc.gateway.egress import EgressProxy
from scripts.benches.frame import Figure, Outcome

_SIZE = 200_000_000
_PIECE = bytes(256 * 1024)
_CONNECTIONS = 2000
_AT_ONCE = 32


def _serve_bytes() -> None:
    """Answers each connection with as many bytes as its first line says."""

    def answer(client: socket.socket) -> None:
        with client:
            left = int(client.makefile().readline())
            while left > 0:
                left -= client.send(memoryview(_PIECE)[:left])

    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            client, _ = listener.accept()
            threading.Thread(target=answer, args=(client,), daemon=True).start()


async def _serve_proxy() -> None:
    policy = NetworkPolicy(NetworkMode.PUBLIC, private=(ipaddress.ip_network("127.0.0.0/8"),))
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    await EgressProxy(policy, report=lambda _: None).serve(listener)
    print(listener.getsockname()[1], flush=True)
    await asyncio.Event().wait()


async def _start(role: str) -> tuple[asyncio.subprocess.Process, int]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "scripts.benches.fence", role, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    return process, int(await process.stdout.readline())


def _download(port: int, proxy: int | None) -> float:
    """Megabytes a second."""
    buffer = memoryview(bytearray(len(_PIECE)))
    with socket.create_connection(("127.0.0.1", proxy or port)) as sock:
        if proxy:
            sock.sendall(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert sock.recv(1024).startswith(b"HTTP/1.1 200")
        began = time.monotonic()
        sock.sendall(b"%d\n" % _SIZE)
        left = _SIZE
        while left > 0 and (count := sock.recv_into(buffer)):
            left -= count
        assert not left
        return _SIZE / (time.monotonic() - began) / 1e6


async def _connect(port: int, proxy: int | None) -> float:
    """Connections a second, each with an answer of 100 bytes."""
    left = iter(range(_CONNECTIONS))

    async def client() -> None:
        for _ in left:
            reader, writer = await asyncio.open_connection("127.0.0.1", proxy or port)
            if proxy:
                writer.write(f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.write(b"100\n")
            assert len(await reader.read()) == 100
            writer.close()

    began = time.monotonic()
    await asyncio.gather(*(client() for _ in range(_AT_ONCE)))
    return _CONNECTIONS / (time.monotonic() - began)


async def fence() -> Outcome:
    (server, port), (proxy, door) = await asyncio.gather(_start("server"), _start("proxy"))
    try:
        # By turns, and the best of each: what else runs on the machine takes from both.
        pairs = [
            (await asyncio.to_thread(_download, port, None), await asyncio.to_thread(_download, port, door))
            for _ in range(5)
        ]
        bare, through = (max(found) for found in zip(*pairs, strict=True))
        direct = await _connect(port, None)
        rate = await _connect(port, door)
    finally:
        for process in (server, proxy):
            process.kill()
            await process.wait()
    return Outcome(
        [
            Figure("200 MB through the proxy against direct", through / bare, "x", 0.5, "more"),
            Figure("200 MB through the proxy", through, "MB/s"),
            Figure("connections through the proxy", rate, "connections/s", 500, "more"),
        ],
        {"direct MB/s": bare, "direct connections/s": direct},
    )


if __name__ == "__main__":
    if sys.argv[1] == "server":
        _serve_bytes()
    else:
        uvloop.run(_serve_proxy())
