"""The baseline of fanout: a bare grpc.aio server and its readers, one message for each event."""

import asyncio
import multiprocessing
import sys
import time

import grpc

from agentrpc.embedded.servers import free_port
from agentrpc.v1 import event_pb2


def _serve(port: int, events: int) -> None:
    async def stream(_: bytes, __: object):  # noqa: ANN202 - an async generator
        event = event_pb2.Event()
        for number in range(events):
            event.text_delta.text = f"{number:040d}"
            event.text_delta.message_id = f"m{number}"
            yield event

    async def main() -> None:
        server = grpc.aio.server()
        handler = grpc.unary_stream_rpc_method_handler(stream, response_serializer=event_pb2.Event.SerializeToString)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("bare.Bare", {"Stream": handler}),))
        server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        await server.wait_for_termination()

    import uvloop

    uvloop.run(main())


async def _read(port: int, watchers: int) -> int:
    async def one() -> int:
        async with grpc.aio.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)]
        ) as channel:
            call = channel.unary_stream("/bare.Bare/Stream", response_deserializer=event_pb2.Event.FromString)(
                b"", wait_for_ready=True
            )
            return sum([1 async for _ in call])

    return sum(await asyncio.gather(*(one() for _ in range(watchers))))


def main() -> None:
    events, watchers = int(sys.argv[1]), int(sys.argv[2])
    port = free_port()
    server = multiprocessing.get_context("spawn").Process(target=_serve, args=(port, events), daemon=True)
    server.start()
    time.sleep(1.5)
    import uvloop

    began = time.monotonic()
    count = uvloop.run(_read(port, watchers))
    print(count / (time.monotonic() - began))
    server.terminate()


if __name__ == "__main__":
    main()
