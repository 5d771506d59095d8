"""Gives each request the length of answer that :mod:`benchmarks.gpu.lengths` says.

``BENCH_MEAN_TOKENS`` is their mean. A plugin is loaded before the engine is known, so the engine's
class is changed when it is made.
"""

import os
import sys

from video_pipeline.engine.base import Engine

from benchmarks.gpu.lengths import lengths

NUMBERS = lengths(int(os.environ["BENCH_MEAN_TOKENS"]))


def vary(engine_class):
    generate = engine_class.generate

    async def generate_varied(self, name, request, constraints):
        limited = constraints.with_max_tokens(next(NUMBERS))
        return await generate(self, name, request, limited)

    engine_class.generate = generate_varied


if "video_pipeline.engine.vllm.engine" in sys.modules:
    vary(sys.modules["video_pipeline.engine.vllm.engine"].VllmEngine)
else:
    Engine.__init_subclass__ = classmethod(lambda cls, **_: vary(cls))
