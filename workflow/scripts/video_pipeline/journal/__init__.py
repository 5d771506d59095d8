"""The journal: what cost GPU time, one JSON line a record, and the only truth about what is done.

Each attempt of an inference job appends to a file of its own, ``attempt.*``, in the folder of the
fingerprint (:mod:`~video_pipeline.journal.format` has the lines). Beside it lies what the attempt
spent (:class:`video_pipeline.run.statistics.StatisticsFile`). Every reader ignores a line that a
crash tore off. An error is final until a record in a file ``reopen.*`` takes it back.
"""
