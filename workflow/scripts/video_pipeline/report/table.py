"""Writes the figures of a run, and of its plan, as a table for Snakemake's own report."""

from __future__ import annotations

import csv
import io

from video_pipeline.common.files import read_object, write_text
from video_pipeline.report.plan import plan_facts
from video_pipeline.report.summary import summary_facts
from video_pipeline.run.layout import Layout


def write_table(layout: Layout) -> None:
    """Write ``layout.report_table`` about the finished output."""
    rows = [("run", *fact) for fact in summary_facts(read_object(layout.summary))]
    if plan := read_object(layout.plan_report):
        rows += [("plan", name.strip(), text) for name, text in plan_facts(plan)]
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerows([("of", "figure", "value"), *rows])
    write_text(layout.report_table, text.getvalue())
