"""A process that reads streams: N watchers of the given sessions, each decoding every event."""

import argparse
import asyncio
import json
import time

import grpc

from agentrpc.v1 import session_service_pb2, session_service_pb2_grpc


async def watch(channel: grpc.aio.Channel, token: str, session: str, expected: int, latencies: list[float],
                counts: list[int], opened: asyncio.Semaphore) -> None:  # fmt: skip
    stub = session_service_pb2_grpc.SessionServiceStub(channel)
    request = session_service_pb2.WatchSessionRequest(
        name=session, include_deltas=True, event_types=["text_delta", "notice"]
    )
    call = stub.WatchSession(request, metadata=[("authorization", f"Bearer {token}")])
    seen = 0
    started = False
    async for response in call:
        if response.HasField("caught_up") and not started:
            started = True
            opened.release()
        now = time.time()
        # Every event is decoded; the oldest of a response is the one that waited longest.
        for event in response.events[:1]:
            text = event.text_delta.text or event.notice.text
            if "." in text:
                latencies.append(now - float(text.split()[0]))
        seen += len(response.events)
        if expected and seen + response.shed_count >= expected:
            break
    counts.append(seen)


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--address")
    parser.add_argument("--token")
    parser.add_argument("--sessions")
    parser.add_argument("--watchers", type=int, default=1)
    parser.add_argument("--channels", type=int, default=0, help="connections; 0: one for each watcher")
    parser.add_argument("--expected", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=30)
    given = parser.parse_args()
    latencies: list[float] = []
    counts: list[int] = []
    opened = asyncio.Semaphore(0)
    sessions = [session for session in given.sessions.split(",") for _ in range(given.watchers)]
    channels = [
        grpc.aio.insecure_channel(given.address, options=[("grpc.use_local_subchannel_pool", 1)])
        for _ in range(given.channels or len(sessions))
    ]
    tasks = [
        asyncio.create_task(
            watch(
                channels[at % len(channels)],
                given.token,
                f"sessions/{session}",
                given.expected,
                latencies,
                counts,
                opened,
            )
        )
        for at, session in enumerate(sessions)
    ]
    for _ in tasks:
        await opened.acquire()
    print("ready", flush=True)
    began = time.monotonic()
    done, pending = await asyncio.wait(tasks, timeout=given.seconds)
    elapsed = time.monotonic() - began
    for task in pending:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for channel in channels:
        await channel.close()
    print(json.dumps({"latencies": latencies[-200_000:], "counts": counts, "elapsed": elapsed, "done": len(done)}))


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
