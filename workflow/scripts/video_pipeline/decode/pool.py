"""The decode processes of a job. One that dies or hangs costs only its current sample."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from video_pipeline.decode.fork_server import ForkServer
from video_pipeline.decode.process import DecodeProcess
from video_pipeline.decode.spec import ProcessSpec
from video_pipeline.storage.fetched import NOTHING, Fetched

if TYPE_CHECKING:
    from video_pipeline.decode.preparing import Prepared


class DecodePool:
    """Decode processes, each with a pipe of its own.

    A process that dies, hangs or is killed costs only its current sample, and is replaced. (Pools
    that share a queue between processes cannot promise that: a process that is killed while it
    holds the queue's lock stops all others.)
    """

    def __init__(
        self, server: ForkServer, spec: ProcessSpec, num_processes: int, timeout_s: float
    ) -> None:
        """
        Args:
            server: Forks the processes; it ends with the pool. Processes that use the GPU come from
                another server, in which nothing has touched CUDA.
            num_processes: How many there are at most.
            timeout_s: Seconds that one answer may take.
        """
        on_gpu = [spec.decoder_of(number) != "cpu" for number in range(num_processes)]
        clean = ForkServer(shares=False) if any(on_gpu) else server
        self._servers = {server, clean}
        for fork_server in self._servers:
            fork_server.load(spec)
        self._processes = [
            DecodeProcess(clean if uses_gpu else server, spec, number, timeout_s)
            for number, uses_gpu in enumerate(on_gpu)
        ]
        self._threads = ThreadPoolExecutor(num_processes, thread_name_prefix="decode")
        # The process that was used last comes first, so that no more start than have work.
        self._idle: queue.LifoQueue[DecodeProcess] = queue.LifoQueue()
        for process in reversed(self._processes):
            self._idle.put(process)

    def submit(self, *question: Any) -> Future[Any]:
        """Let the next idle process answer. The future raises as :meth:`DecodeProcess.ask` does."""
        return self._threads.submit(self._ask, question)

    def _ask(self, question: tuple[Any, ...]) -> Any:
        process = self._idle.get()  # There are as many processes as threads.
        try:
            return process.ask(*question)
        finally:
            self._idle.put(process)

    async def prepare(
        self, position: int, parts: Collection[str], files: Mapping[str, Fetched] = NOTHING
    ) -> Prepared:
        """Prepare the conversations ``parts`` of the sample at ``position`` of the chunk, in a pool
        for a :class:`WorkerSpec`. ``files`` are those that were fetched ahead, by address. Raises
        what :meth:`DecodeProcess.ask` raises."""
        future = self.submit(position, frozenset(parts), files)
        prepared: Prepared = await asyncio.wrap_future(future)
        return prepared

    def stop(self) -> None:
        """Kill the processes, and drop their questions."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.stopped = True
        for server in self._servers:
            server.stop()
        for process in self._processes:
            process.end()
        self._threads.shutdown()
