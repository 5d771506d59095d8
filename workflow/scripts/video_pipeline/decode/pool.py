"""The decode processes of a job: they may die or hang, and cost only the sample in their hands."""

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
    """Decode processes, each at the end of a pipe of its own.

    One that dies, hangs or is killed takes nothing with it but the sample in its hands, and is
    replaced. (Pools that share a queue between processes cannot promise that: a process killed
    while it holds the queue's lock stops all others.)
    """

    def __init__(
        self, server: ForkServer, spec: ProcessSpec, num_processes: int, timeout_s: float
    ) -> None:
        """
        Args:
            server: Forks the processes; it ends with the pool. Those that use the GPU come from
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
        # The last one that was used comes first: no more processes start than have work.
        self._idle: queue.LifoQueue[DecodeProcess] = queue.LifoQueue()
        for process in reversed(self._processes):
            self._idle.put(process)

    def submit(self, *question: Any) -> Future[Any]:
        """Have the next idle process answer; the future raises what :meth:`DecodeProcess.ask`
        raises."""
        return self._threads.submit(self._ask, question)

    def _ask(self, question: tuple[Any, ...]) -> Any:
        process = self._idle.get()  # There is one for each thread.
        try:
            return process.ask(*question)
        finally:
            self._idle.put(process)

    async def prepare(
        self, position: int, parts: Collection[str], files: Mapping[str, Fetched] = NOTHING
    ) -> Prepared:
        """Prepare the conversations ``parts`` of the sample at ``position`` of the chunk, in a pool
        for a :class:`WorkerSpec`. ``files``: what was fetched ahead, by address. Raises what
        :meth:`DecodeProcess.ask` raises."""
        future = self.submit(position, frozenset(parts), files)
        prepared: Prepared = await asyncio.wrap_future(future)
        return prepared

    def stop(self) -> None:
        """Kill the processes and drop what they were doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in self._processes:
            process.stopped = True
        for server in self._servers:
            server.stop()
        for process in self._processes:
            process.end()
        self._threads.shutdown()
