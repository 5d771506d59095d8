"""A run over a folder of tars, as a user starts it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from helpers import Run

READS = """
from video_pipeline.video.access import MediaFile


class Reading(Plain):
    def __getitem__(self, i):
        item = super().__getitem__(i)
        with MediaFile(self.samples[i]["__video_uri"]) as file:
            item["llm_input"]["prompt"] = Path(file.path).read_text()
        return item


register_dataset("reading")(Reading)
Ask.dataset_name = "reading"
"""


def write_shard(path: Path, *names: str) -> None:
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(f"{name}.mp4")
            info.size = len(name)
            tar.addfile(info, io.BytesIO(name.encode()))


@pytest.mark.parametrize("place", ["shards", "shards/*.tar"])
def test_only_the_members_of_a_new_tar_are_inferred(run: Run, place):
    (run.folder / "shards").mkdir()
    write_shard(run.folder / "shards" / "0.tar", "a", "b")
    run.write_plugin((run.folder / "plugin.py").read_text() + READS)
    run.configure(data={"input_jsonl": place, "id_field": None})
    run.snakemake()
    assert [record["input"]["path"] for record in run.records()] == ["0.tar#a.mp4", "0.tar#b.mp4"]
    write_shard(run.folder / "shards" / "1.tar", "c")
    assert "split again, changed" in run.snakemake()
    paths = [record["input"]["path"] for record in run.records()]
    assert paths == ["0.tar#a.mp4", "0.tar#b.mp4", "1.tar#c.mp4"]
    assert {record["__status"] for record in run.records()} == {"ok"}
    assert set(run.answers().values()) == {1}
    assert "Nothing to be done" in run.snakemake()
