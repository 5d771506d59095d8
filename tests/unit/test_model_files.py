"""A model is known by what its files hold, wherever they lie and whenever they were copied."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from video_pipeline.model.files import WHOLE_BYTES, model_files

TENSOR_BYTES = WHOLE_BYTES // 4


def digests(path: Path) -> dict[str, str]:
    found = model_files(path)
    assert found is not None
    return found


def write_safetensors(path: Path, tensors: int = 6, fill: dict[int, bytes] | None = None) -> None:
    """Weights that are too large to be read as a whole; ``fill`` says what some tensors hold."""
    spans = {
        f"layers.{n}.weight": {
            "dtype": "I8",
            "shape": [TENSOR_BYTES],
            "data_offsets": [n * TENSOR_BYTES, (n + 1) * TENSOR_BYTES],
        }
        for n in range(tensors)
    }
    header = json.dumps({"__metadata__": {"format": "pt"}, **spans}).encode()
    with open(path, "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        for n in range(tensors):
            stream.write((fill or {}).get(n, b"0") * TENSOR_BYTES)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder that looks like a model."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for name in ("config.json", "model.safetensors.index.json", "sub/tokenizer.json"):
        (folder / name).write_text("{}")
    write_safetensors(folder / "model.safetensors")
    (folder / "old.bin").write_bytes(bytes(WHOLE_BYTES + 3_000_000))
    return folder


def test_a_copy_is_the_same_model(model: Path, tmp_path: Path) -> None:
    """Whenever it was made, and whatever the folder is called."""
    os.utime(model / "model.safetensors", ns=(10**18, 10**18))
    copy = tmp_path / "scratch" / "copied"
    shutil.copytree(model, copy, copy_function=shutil.copyfile)
    assert (copy / "model.safetensors").stat().st_mtime_ns != 10**18
    assert digests(copy) == digests(model)


def test_what_no_engine_reads_does_not_matter(model: Path) -> None:
    before = digests(model)
    (model / "README.md").write_text("words")
    (model / "LICENSE").write_text("words")
    (model / "figure.png").write_text("words")
    (model / "__pycache__").mkdir()
    (model / "__pycache__" / "code.cpython-311.pyc").write_text("x")
    (model / ".cache" / "huggingface").mkdir(parents=True)  # as `hf download --local-dir` leaves it
    (model / ".cache" / "huggingface" / "config.json.metadata").write_text("123.4")
    assert digests(model) == before


def add_file(folder: Path) -> None:
    (folder / "sub" / "extra.txt").write_text("x")


def add_code(folder: Path) -> None:
    (folder / "modeling.py").write_text("x")


def rename(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model2.safetensors")


def edit_in_place(folder: Path) -> None:
    (folder / "config.json").write_text("[]")  # of the same size


def another_header(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"I8"', b'"U8"', 1))


def more_weights(folder: Path) -> None:
    write_safetensors(folder / "model.safetensors", tensors=7)


def trained_further(folder: Path) -> None:
    """A later checkpoint of one training: the same header and size, one tensor differs."""
    write_safetensors(folder / "model.safetensors", fill={3: b"1"})


def other_head(folder: Path) -> None:
    with open(folder / "old.bin", "r+b") as stream:
        stream.write(b"x")


def other_tail(folder: Path) -> None:
    with open(folder / "old.bin", "r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        stream.write(b"x")


def longer(folder: Path) -> None:
    with open(folder / "old.bin", "ab") as stream:
        stream.write(bytes(1))


@pytest.mark.parametrize(
    "change",
    [
        *(add_file, add_code, rename, edit_in_place, another_header, more_weights),
        *(trained_further, other_head, other_tail, longer),
    ],
)
def test_other_content_is_another_model(model: Path, change: Callable[[Path], None]) -> None:
    before = digests(model)
    assert digests(model) == before
    change(model)
    assert digests(model) != before


def test_little_of_the_weights_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a model of 100 GB as of one of 1 GB: the header, and no more than so many samples."""
    header = json.dumps(
        {
            f"layers.{n}.weight": {
                "dtype": "I8",
                "shape": [10**8],
                "data_offsets": [n * 10**8, (n + 1) * 10**8],
            }
            for n in range(1000)
        }
    ).encode()
    with open(tmp_path / "model.safetensors", "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + 10**11)  # a sparse file
    with open(tmp_path / "model.gguf", "wb") as stream:
        stream.truncate(10**11)
    read: list[int] = []
    real = os.pread

    def counting(handle: int, count: int, place: int) -> bytes:
        data = real(handle, count, place)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", counting)
    assert len(digests(tmp_path)) == 2
    assert len(read) < 600
    assert sum(read) < 6_000_000


def test_a_single_file_is_a_model(model: Path, tmp_path: Path) -> None:
    before = digests(model / "old.bin")
    assert list(before) == ["old.bin"]
    other_tail(model)
    assert digests(model / "old.bin") != before
    assert model_files(tmp_path / "nowhere") is None


def test_a_file_that_is_no_safetensors_is_no_crash(model: Path) -> None:
    for head in (
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 4) + b"[1]\n",
        struct.pack("<Q", 7) + b'{"a":1}',
    ):
        (model / "model.safetensors").write_bytes(head.ljust(WHOLE_BYTES + 10**7, b"0"))
        assert digests(model)


def test_links_are_followed(model: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(model)
    assert digests(tmp_path / "link") == digests(model)
    store = tmp_path / "store"
    store.mkdir()
    (store / "blob").write_text("x")
    before = digests(model)
    (model / "linked.json").symlink_to(store / "blob")
    (model / "more").symlink_to(store)
    after = digests(model)
    assert after.keys() - before.keys() == {"linked.json", "more/blob"}
    (store / "blob").write_text("y")
    assert digests(model)["linked.json"] != after["linked.json"]


def test_a_dangling_link_is_no_crash(model: Path) -> None:
    before = digests(model)
    (model / "gone.bin").symlink_to("nowhere")
    assert digests(model) == {**before, "gone.bin": "missing"}


def test_a_snapshot_of_the_hub_is_its_commit(model: Path, tmp_path: Path) -> None:
    """However much of it was fetched."""
    snapshot = tmp_path / "hub" / "models--some--model" / "snapshots" / ("0123456789" * 4)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(snapshot)
    assert digests(snapshot) == {"some/model": "0123456789" * 4}
    assert digests(tmp_path / "link") == digests(snapshot)


def test_the_order_in_which_a_disk_lists_files_does_not_matter(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, before = os.walk, list(digests(model).items())

    def backwards(*arguments: Any, **options: Any) -> Iterator[tuple[str, list[str], list[str]]]:
        for parent, folders, files in real(*arguments, **options):
            yield parent, folders, sorted(files, reverse=True)

    monkeypatch.setattr(os, "walk", backwards)
    assert list(digests(model).items()) == before


def test_the_identity_of_files_is_pinned(model: Path) -> None:
    """Changing it would infer everybody's finished samples again."""
    assert digests(model) == PINNED


PINNED = {
    "config.json": "2 2afb9b83f9314e5d029766197f539792",
    "model.safetensors": "25166419 a144678957afc6c7098c54f2ce6e14d4",
    "model.safetensors.index.json": "2 2afb9b83f9314e5d029766197f539792",
    "old.bin": "19777216 f70fd7272c887cf36ce16984f2018845",
    "sub/tokenizer.json": "2 2afb9b83f9314e5d029766197f539792",
}
