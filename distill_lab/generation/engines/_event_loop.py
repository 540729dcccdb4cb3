"""Iterate over a coroutine's results: it runs in an event loop in a separate thread, at most `room` items ahead.

    async def produce(deliver):
        await deliver(await something())

    for item in iterate(produce, room=8): ...

Works even if an event loop is already running (a notebook), and keeps working between items.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
Deliver = Callable[[T], Awaitable[None]]
"""Delivers an item; waits while `room` items are waiting."""


class _End:
    """Marks the end of the items."""


def iterate(produce: Callable[[Deliver[T]], Coroutine[object, object, None]], *, room: int) -> Generator[T]:
    """Yield what `produce(deliver)` delivers, in that order, then raise what it raises.

    Nothing runs before the first `next`. Stopping early (break, an error, Ctrl-C) cancels running work. An item whose
    delivery is canceled while it waits for room is still yielded.
    """
    items: SimpleQueue[T | _End] = SimpleQueue()
    free = asyncio.Semaphore(room)
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever, name="event loop", daemon=True)
    thread.start()

    async def deliver(item: T) -> None:
        try:
            await free.acquire()
        finally:
            items.put(item)

    working = asyncio.run_coroutine_threadsafe(produce(deliver), loop)
    working.add_done_callback(lambda _: items.put(_End()))
    try:
        while not isinstance(item := items.get(), _End):
            loop.call_soon_threadsafe(free.release)
            yield item
        working.result()
    finally:
        asyncio.run_coroutine_threadsafe(_cancel_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
