"""The journal: one JSON line for each record. It alone decides what is done.

Each attempt of an inference job appends to a file of its own, ``attempt.*``, in the folder of the
fingerprint (:mod:`~video_pipeline.journal.format` describes the lines). The attempt's statistics
lie beside it (:class:`video_pipeline.run.statistics.StatisticsFile`). Readers ignore a line that a
crash tore off. An error is final until a record in a file ``reopen.*`` takes it back.
"""
