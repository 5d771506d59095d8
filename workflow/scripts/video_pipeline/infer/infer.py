"""Infers one chunk on one GPU, from pending samples to the rank file.

:mod:`video_pipeline.infer.streaming` infers the pending samples into the journal. When the chunk is
complete, :class:`video_pipeline.infer.shard.Shard` writes the rank file from the journal, in input
order.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress

from video_pipeline.common.files import write_text
from video_pipeline.common.locks import waiting_lock
from video_pipeline.common.processes import job_processes
from video_pipeline.config import Config
from video_pipeline.errors import SPLIT_AGAIN, UserError
from video_pipeline.gpu import devices as gpus
from video_pipeline.gpu import leases
from video_pipeline.infer.shard import Shard, Unfinished
from video_pipeline.model.model import with_commit
from video_pipeline.run.layout import Layout
from video_pipeline.run.manifest import Manifest
from video_pipeline.run.origin import check_code
from video_pipeline.run.run import Run
from video_pipeline.run.writers import refuse_live_writers

logger = logging.getLogger(__name__)


def infer(
    config: Config,
    layout: Layout,
    rank: int,
    threads: int,
    *,
    only_writes: bool = False,
    plain: bool = False,
) -> None:
    """Infer the pending samples in the chunk of one rank and write its rank file.

    Args:
        threads: Cores given to the job.
        only_writes: Whether the job has no GPU: it writes the rank file, or leaves pending samples
            to another attempt.
        plain: Infer one sample at a time in this process, for debugging, see
            :mod:`video_pipeline.infer.plain_loop`.

    Raises:
        UserError: The user's input, code or settings are at fault, or more than
            ``run.max_error_rate`` of the samples failed. The workflow does not start the job again.
        EnvironmentFault: Another attempt may succeed, as after :class:`EngineDead` and
            :class:`Unfinished`.
    """
    failure = layout.failure(rank)
    failure.unlink(missing_ok=True)
    try:
        # A second job of the same rank waits for the first, and infers the remaining samples.
        with waiting_lock(layout.lock(rank), logger):
            _infer(config, layout, rank, threads, only_writes, plain)
    except UserError as error:
        write_text(failure, str(error))
        raise


def _infer(
    config: Config, layout: Layout, rank: int, threads: int, only_writes: bool, plain: bool
) -> None:
    """Infer one rank. If nothing is pending, this takes no GPU and loads no model."""
    refuse_live_writers(layout, of_other_shardings=True)
    layout.remove_leftovers(rank)
    manifest = Manifest.of(config, layout)
    run = Run(config, layout, manifest.commit)
    if manifest.settings != run.settings_digest:
        raise UserError(
            "the files of the model have changed since the input was split "
            f"({layout.manifest}); {SPLIT_AGAIN}"
        )
    check_code(manifest.origin["files"], config)
    config = with_commit(config, manifest.commit)
    shard = Shard(config, layout, rank, manifest, run.task)
    if not manifest.rank_pending[rank]:
        with suppress(Unfinished):  # A record was opened again, or is gone.
            shard.write_rank_file()
            logger.info("rank %d: all %d samples are done", rank, len(shard))
            return
    shard.find_pending()
    pending = len(shard.pending)
    if pending and only_writes:
        raise Unfinished(
            f"rank {rank}: all samples were done when this job was started, but {pending} of them "
            "are pending now, and the job has no GPU. Another attempt has one"
        )
    if pending:
        logger.info("rank %d: %d of %d samples pending", rank, pending, len(shard))
        _infer_pending(shard, threads, plain)
    else:
        logger.info("rank %d: all %d samples are done", rank, len(shard))
    shard.write_rank_file()


def _infer_pending(shard: Shard, threads: int, plain: bool) -> None:
    """Take the GPUs and infer the pending samples into the journal."""
    shard.check_requests()
    shard.error_rate.check(shard.rank)
    num_workers = shard.config.data.decode_processes(threads)
    limit_engine_threads(threads - num_workers)
    with leases.lease_for(shard.config) as devices, job_processes() as folder:
        if plain:
            from video_pipeline.infer.plain_loop import run_plain

            run_plain(shard, folder)
        else:
            from video_pipeline.infer.streaming import run_stream

            run_stream(shard, folder, num_workers, gpus.card_of(devices))


def limit_engine_threads(cores: int) -> None:
    """Let this process and those of the engine use ``cores`` cores; the others are for decoding.

    Snakemake has told each process to take all cores of the job. Waiting threads must sleep: a
    thread that spins, as OpenMP's do by default, takes a core from a decode process.
    """
    os.environ["OMP_NUM_THREADS"] = str(max(1, cores))
    os.environ["OMP_WAIT_POLICY"] = "passive"
