"""Snakemake, with a SLURM plugin that does not wait: ``python tests/slurm/at_once.py ARGUMENTS``.

The plugin sleeps five seconds before it submits a job. It looks at its jobs after ten seconds more
each time none has finished.
"""

from __future__ import annotations

import sys
from types import SimpleNamespace

import snakemake_executor_plugin_slurm as plugin
from snakemake.cli import main

plugin.time = SimpleNamespace(**{**vars(plugin.time), "sleep": lambda seconds: None})
plugin.Executor.next_seconds_between_status_checks = property(
    lambda executor: 1.0, lambda executor, seconds: None
)
sys.exit(main())
