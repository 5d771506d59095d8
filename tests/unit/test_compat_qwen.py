"""What is used of qwen-vl-utils beyond its documented functions is there, or the run ends."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import video_pipeline
from qwen_vl_utils import fetch_video, process_vision_info
from qwen_vl_utils import vision_process as qwen
from video_pipeline.errors import UserError
from video_pipeline.video import compat_qwen

PACKAGE = Path(video_pipeline.__file__).parent


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hooks of qwen-vl-utils, and whether they were checked, are as before when a test ends."""
    for hook in ("fetch_image", "get_video_reader_backend"):
        monkeypatch.setattr(qwen, hook, getattr(qwen, hook))
    monkeypatch.setattr(qwen, "VIDEO_READER_BACKENDS", {})
    compat_qwen.check_readers.cache_clear()
    yield
    compat_qwen.check_readers.cache_clear()


def refuse(media: object) -> None:
    raise ValueError("not this one")


def test_no_other_module_uses_what_is_not_documented() -> None:
    importing = re.compile(r"^ *(from|import) qwen_vl_utils.*vision_process", re.MULTILINE)
    users = [path.name for path in PACKAGE.rglob("*.py") if importing.search(path.read_text())]
    assert users == ["compat_qwen.py"]


def test_the_limits_of_frames_are_those_that_fetch_video_applies() -> None:
    """``resize.frame_size`` repeats its arithmetic: tests/unit/test_reader.py compares results."""
    names = fetch_video.__code__.co_names
    for name in ("SPATIAL_MERGE_SIZE", "VIDEO_MIN_TOKEN_NUM", "VIDEO_MAX_TOKEN_NUM"):
        assert name in names
    assert {"MODEL_SEQ_LEN", "FRAME_FACTOR", "smart_resize"} <= set(names)


def test_frames_are_counted_in_pairs() -> None:
    count = compat_qwen.smart_nframes({"fps": 2.0}, total_frames=101, video_fps=10.0)
    assert count == 20
    assert count % compat_qwen.FRAME_FACTOR == 0
    assert compat_qwen.floor_by_factor(7, compat_qwen.FRAME_FACTOR) == 6


def test_each_item_reaches_its_reader() -> None:
    compat_qwen.use_readers(refuse, refuse)
    for item in ({"video": "a"}, {"video": ["a"]}, {"image": "a"}, {"image_url": "a"}):
        with pytest.raises(ValueError, match=r"^not this one$"):
            process_vision_info([{"role": "user", "content": [item]}])


@pytest.mark.parametrize("hook", ["fetch_image", "get_video_reader_backend"])
def test_a_version_that_asks_another_reader_is_refused(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or nothing would be held to what ``data`` allows."""
    compat_qwen.use_readers(refuse, refuse)
    compat_qwen.check_readers.cache_clear()
    other = compat_qwen._stock_fetch_image if hook == "fetch_image" else lambda: "decord"
    monkeypatch.setattr(qwen, hook, other)
    with pytest.raises(UserError, match=r"qwen-vl-utils .* is not supported: .*Tried: 0\.0\.14"):
        compat_qwen.check_readers()


def test_a_version_that_lacks_a_name_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(qwen, "smart_nframes")
    spec = importlib.util.spec_from_file_location("copy", compat_qwen.__file__)
    with pytest.raises(UserError, match=r"is not supported: .*'smart_nframes'\. Tried"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
