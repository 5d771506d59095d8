"""Windows: a video is cut into them, and their records are put together again."""

from __future__ import annotations

import copy
import json

import pytest
from video_pipeline.samples.identity import content_key
from video_pipeline.samples.windows import by_video, is_window, whole, windows

RAW = {"path": "a.mp4", "title": "t"}
SEGMENT = {**RAW, "video_start": 1, "video_end": 9.5}


def test_the_edges_cut_a_video_into_windows():
    assert windows(RAW, [0.0, 4.0, 10.0]) == [
        {
            **{"path": "a.mp4", "title": "t", "video_start": 0.0, "video_end": 4.0},
            "clip": {"number": 0, "of": 2, "segment": {}},
        },
        {
            **{"path": "a.mp4", "title": "t", "video_start": 4.0, "video_end": 10.0},
            "clip": {"number": 1, "of": 2, "segment": {}},
        },
    ]


def test_times_of_windows_are_floats_however_they_were_written():
    """Equal JSON, so that the same is asked about both."""
    whole_seconds, as_floats = (
        json.dumps([(w["video_start"], w["video_end"]) for w in windows(RAW, edges)])
        for edges in ([60, 75, 90], [60.0, 75.0, 90.0])
    )
    assert whole_seconds == as_floats


def test_windows_of_a_segment_remember_it():
    first, second = windows(SEGMENT, [1.0, 5.0, 9.5])
    assert (first["video_start"], first["video_end"]) == (1.0, 5.0)
    assert (second["video_start"], second["video_end"]) == (5.0, 9.5)
    assert first["clip"]["segment"] == {"video_start": 1, "video_end": 9.5}
    assert windows({**RAW, "video_start": 2}, [2.0, 3.0])[0]["clip"]["segment"] == {
        "video_start": 2
    }


@pytest.mark.parametrize("raw", [RAW, SEGMENT, {**RAW, "video_end": 8}])
def test_the_whole_is_what_was_cut(raw):
    before = copy.deepcopy(raw)
    cut = windows(raw, [0.0, 1.0, 2.0])
    assert [is_window(window) for window in cut] == [True, True]
    assert [whole(window) for window in cut] == [raw, raw]
    assert raw == before


@pytest.mark.parametrize(
    "clip", [None, "a clip", [], {}, {"number": 1, "of": 2}, {"number": 1, "of": 2, "name": "x"}]
)
def test_a_field_of_the_users_called_clip_makes_no_window(clip):
    raw = {**RAW, "clip": clip, "video_start": 1}
    assert not is_window(raw)
    assert whole(raw) == {**RAW, "clip": clip, "video_start": 1}


def test_records_of_windows_become_one_for_each_video():
    """Those of a video follow each other; a sample that was not cut has one clip."""
    other = {"path": "b.mp4"}
    raws = [*windows(RAW, [0.0, 4.0, 10.0]), *windows(SEGMENT, [1.0, 9.5]), other]
    records = [{"__key": str(n), "input": raw, "answer": n} for n, raw in enumerate(raws)]
    assert list(by_video(records, "path")) == [
        {
            "__key": content_key(RAW, "path"),
            "input": RAW,
            "clips": [
                {"video_start": 0.0, "video_end": 4.0, "__key": "0", "answer": 0},
                {"video_start": 4.0, "video_end": 10.0, "__key": "1", "answer": 1},
            ],
        },
        {
            "__key": content_key(SEGMENT, "path"),
            "input": SEGMENT,
            "clips": [{"video_start": 1.0, "video_end": 9.5, "__key": "2", "answer": 2}],
        },
        {
            "__key": content_key(other, "path"),
            "input": other,
            "clips": [{"video_start": None, "video_end": None, "__key": "3", "answer": 3}],
        },
    ]


def test_what_an_earlier_run_said_of_a_window_stays_with_it():
    """What it said of the whole video stays with the video."""
    earlier = [{"__key": f"k{n}", "output_text": f"text {n}"} for n in range(2)]
    cut = windows({**RAW, "previous": {"__key": "k", "output_text": "of all"}}, [0.0, 4.0, 10.0])
    again = [{**raw, "previous": said} for raw, said in zip(cut, earlier, strict=True)]
    for raws in (copy.deepcopy(cut), again):
        records = [{"__key": f"k{n}", "input": raw, "answer": n} for n, raw in enumerate(raws)]
        (video,) = by_video(records, "path")
        assert [clip["answer"] for clip in video["clips"]] == [0, 1]
        if raws is again:
            assert video["input"] == RAW
            assert [clip["previous"] for clip in video["clips"]] == earlier
        else:
            assert video["input"]["previous"]["output_text"] == "of all"


def test_no_records_are_no_videos():
    assert list(by_video([], "path")) == []
