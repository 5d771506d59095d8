"""Members of tars and rows of Parquet: as inputs, as addresses, and when they mean no good."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from decimal import Decimal
from itertools import islice
from pathlib import Path

import orjson
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from video_pipeline.config import Data
from video_pipeline.config.source import Source, is_row, member_of
from video_pipeline.errors import UserError
from video_pipeline.samples.containers import json_line
from video_pipeline.samples.identity import digest
from video_pipeline.samples.input import video_uri
from video_pipeline.samples.sources import read_blocks
from video_pipeline.storage import access, opening, rows, tars
from video_pipeline.storage.access import Access
from video_pipeline.storage.blobs import Blob, Held, LocalBlob
from video_pipeline.storage.errors import VideoReadError
from video_pipeline.storage.opening import open_blob
from video_pipeline.testing.clips import write_clip
from video_pipeline.video.access import MediaFile
from video_pipeline.video.reader import probe


@pytest.fixture(autouse=True)
def limited(monkeypatch, tmp_path_factory):
    """Sets limits of this process; they end with the test. Indexes go to a folder of the test."""

    def limit(**settings) -> None:
        monkeypatch.setattr(access, "_access", Access.of(Data(**settings)))

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(tars, "_held", {})
    monkeypatch.setattr(rows, "_reader", None)
    limit()
    return limit


@pytest.fixture(scope="module")
def clips(tmp_path_factory) -> list[Path]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{n}.mp4", seconds=1.0 + n, seed=n) for n in range(3)]


def lines(place: Path | str, video_field: str = "path") -> list[dict]:
    text = b"".join(read_blocks(place, video_field))
    return [orjson.loads(line) for line in text.split(b"\n") if line]


def content(address: str) -> bytes:
    with MediaFile(address) as file:
        return Path(file.path).read_bytes()


# --- tars -----------------------------------------------------------------------------------------


@pytest.fixture
def shard(tmp_path, clips) -> Path:
    """A shard as WebDataset writes it."""
    path = tmp_path / "shard-000.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number, clip in enumerate(clips):
            writer.write(
                {
                    "__key__": f"clips/{number}",
                    "mp4": clip.read_bytes(),
                    "json": {"title": f"clip {number}", "__key": "x"},
                    **({"txt": "what is said"} if number == 1 else {}),
                }
            )
    return path


def test_each_member_is_a_sample_with_the_fields_beside_it(shard, clips):
    sizes = [clip.stat().st_size for clip in clips]
    assert lines(shard) == [
        {"size": sizes[0], "title": "clip 0", "path": "shard-000.tar#clips/0.mp4"},
        {
            **{"size": sizes[1], "title": "clip 1", "txt": "what is said"},
            "path": "shard-000.tar#clips/1.mp4",
        },
        {"size": sizes[2], "title": "clip 2", "path": "shard-000.tar#clips/2.mp4"},
    ]


def test_members_weigh_what_they_hold(splitting, shard, clips):
    splitting.run.configure(data={"input_jsonl": str(shard), "id_field": None, "balance": "size"})
    balance = splitting(num_shards=1).manifest.balance
    assert (balance["unknown"], balance["looked_up"]) == (0, 0)
    splitting.run.configure(data={"balance": "duration"})
    splitting(num_shards=2)
    # 3 s are more than 1 s and 2 s less a little.
    paths = [[entry.raw["path"][-5:] for entry in chunk] for chunk in splitting.chunks]
    assert paths == [["2.mp4"], ["0.mp4", "1.mp4"]]


def test_a_member_is_the_video_that_was_put_in(shard, clips):
    for number, clip in enumerate(clips):
        address = video_uri(f"shard-000.tar#clips/{number}.mp4", str(shard.parent))
        assert content(address) == clip.read_bytes()
        assert probe(address) == probe(str(clip))


def test_a_tar_is_read_through_once(shard, monkeypatch):
    lines(shard)
    monkeypatch.setattr(tars, "members", None)  # whoever reads it again fails
    assert content(f"{shard}#clips/1.mp4")
    assert content(f"file://{shard}#clips/2.mp4")


def test_of_a_local_tar_headers_alone_are_read(tmp_path):
    path = write_tar(tmp_path / "x.tar", *(info(f"{n}.mp4", 1_000_000) for n in range(5)))
    blob = Counting(path)
    assert [member.size for member, _ in tars.members(blob)] == [1_000_000] * 5
    assert blob.done < 20_000


def test_a_tar_that_is_written_again_is_read_again(shard, clips):
    assert content(f"{shard}#clips/0.mp4") == clips[0].read_bytes()
    with webdataset.TarWriter(str(shard)) as writer:
        writer.write({"__key__": "clips/0", "mp4": clips[1].read_bytes()})
    assert content(f"{shard}#clips/0.mp4") == clips[1].read_bytes()


@pytest.mark.slow
def test_ten_thousand_members(tmp_path):
    path = tmp_path / "many.tar"
    with webdataset.TarWriter(str(path)) as writer:
        for number in range(10_000):
            writer.write({"__key__": f"{number:05}", "mp4": b"%d" % number, "json": {"n": number}})
    found = lines(path)
    assert [sample["n"] for sample in found] == list(range(10_000))
    for number in (0, 4_321, 9_999):
        assert content(f"{tmp_path}/{found[number]['path']}") == b"%d" % number


def fields_of(path: Path, *names: str) -> dict[str, dict]:
    """The fields of the samples of a tar, by the name of the video. Its members have these names,
    and hold them."""
    holds = {".json": '{"json": "%s"}', ".mp4": "%s", ".txt": "%s"}
    write_members(path, *((name, (holds[Path(name).suffix] % name).encode()) for name in names))
    samples = [(sample.pop("path"), sample) for sample in lines(path) if sample.pop("size")]
    return {address.partition("#")[2]: sample for address, sample in samples}


def test_names_with_more_dots(tmp_path, caplog):
    """Fields belong to the video that has their name up to the last dot."""
    names = ("v1.json", "v1.mp4", "v1.txt", "v2.mp4", "v2.json")
    assert fields_of(tmp_path / "x.tar", *(f"clip.{name}" for name in names)) == {
        "clip.v1.mp4": {"json": "clip.v1.json", "txt": "clip.v1.txt"},
        "clip.v2.mp4": {"json": "clip.v2.json"},
    }
    assert not caplog.text


def test_fields_of_the_name_up_to_the_first_dot(tmp_path, caplog):
    """They belong to all videos with this name, as in WebDataset; a video's own ones win."""
    names = ("0.json", "0.seg.mp4", "1.a.mp4", "1.b.mp4", "1.b.json", "1.json", "1.txt")
    assert fields_of(tmp_path / "x.tar", *names) == {
        "0.seg.mp4": {"json": "0.json"},
        "1.a.mp4": {"json": "1.json", "txt": "1.txt"},
        "1.b.mp4": {"json": "1.b.json", "txt": "1.txt"},
    }
    assert not caplog.text


def test_a_tar_of_the_current_folder(tmp_path, clips):
    """`tar -c .` begins all names with `./`, which hides nothing."""
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name in ("./a/0.mp4", "./.cache/1.mp4", "./.2.mp4"):
            tar.add(clips[0], name)
    (sample,) = lines(tmp_path / "x.tar")
    assert sample["path"] == "x.tar#./a/0.mp4"
    assert content(f"{tmp_path}/{sample['path']}") == clips[0].read_bytes()


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.json", "b.json", "a.mp4", "b.mp4"), "2 .json or .txt member(s) gave no fields, for "),
        (("a.mp4", "b.mp4", "a.json", "c/b.txt"), "2 .json or .txt member(s) gave no fields, for "),
        (("README.txt", "a.mp4", "a.json"), "1 .json or .txt member(s) gave no fields, for exampl"),
        (("a.mp4", "a.meta.json"), "for example 'a.meta.json': no video next to it"),
        (("._a.json", "a.mp4", ".b.txt"), ""),
    ],
)
def test_fields_of_no_video_are_not_lost_in_silence(tmp_path, caplog, names, message):
    path = tmp_path / "x.tar"
    fields = fields_of(path, *names)
    assert fields.get("a.mp4") == ({"json": "a.json"} if "README.txt" in names else {})
    assert message in caplog.text
    assert len(caplog.records) == bool(message)
    assert (f"{path}: " in caplog.text) == bool(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"n": 1, "n": 2}', "the name 'n' is there twice"),
        (b'{"n": 123456789012345678901234567890}', "does not fit into 64 bits"),
        (b"[1]", "expected a JSON object, got list"),
    ],
)
def test_fields_that_json_cannot_carry_are_not_changed_in_silence(tmp_path, data, message):
    path = write_members(tmp_path / "x.tar", ("a.json", data), ("a.mp4", b"A"))
    with pytest.raises(UserError, match=rf"x\.tar: the member 'a\.json': .*{message}"):
        lines(path)


def test_members_that_belong_to_no_video_may_hold_anything(tmp_path):
    path = write_members(
        tmp_path / "x.tar",
        *[("list.json", b"[1]"), ("0.mp4", b"0"), ("0.boxes.json", b"[1]")],
        ("0.log.txt", bytes([255]) * 2_000_000),
    )
    assert lines(path) == [{"size": 1, "path": "x.tar#0.mp4"}]


def test_folders_and_patterns_of_tars(shard, clips):
    assert [sample["path"] for sample in lines(shard.parent)] == [
        f"shard-000.tar#clips/{number}.mp4" for number in range(3)
    ]
    assert lines(shard.parent / "*.tar") == lines(shard.parent)
    (shard.parent / "a.mp4").touch()
    assert lines(shard.parent) == [{"path": "a.mp4"}]


def test_split_resumes_members(splitting, shard):
    splitting.run.configure(data={"input_jsonl": str(shard), "id_field": None})
    first = splitting()
    assert len(first.pending) == 3
    splitting.finish(first.pending[0])
    assert len(splitting().pending) == 2


def test_a_missing_tar_is_a_missing_file(splitting):
    splitting.run.configure(data={"id_field": None}, run={"task": "describe", "plugins": []})
    with pytest.raises(
        UserError, match=r"2 of the 2 files .* cannot be found; the first: .*x\.tar "
    ):
        splitting([{"path": f"x.tar#{name}.mp4"} for name in "ab"])


def test_a_question_mark_is_part_of_a_local_path_alone():
    assert is_row("/data/take?2/part.parquet#17:video")
    assert is_row("s3://b/part.parquet?versionId=1#17:video")
    assert not is_row("/data/part.parquet?/shard.tar#a.mp4")


def test_which_addresses_name_members():
    assert member_of("a/b.tar#c#d.mp4") == ("a/b.tar", "c#d.mp4")
    assert member_of("https://h/B.TAR?sig=1#c.mp4") == ("https://h/B.TAR?sig=1", "c.mp4")
    for address in ("clip#1.mp4", "https://h/a.mp4#t", "a.tar", "a.tar#", "x.tars#a"):
        assert member_of(address) is None


@pytest.fixture
def remote(monkeypatch) -> dict[str, bytes]:
    """What lies at http addresses, on a server without ETag and Last-Modified."""
    found: dict[str, bytes] = {}
    monkeypatch.setattr(opening, "HttpBlob", lambda address, *_: Held(found[address]))
    return found


def test_two_tars_whose_addresses_differ_in_their_query(remote, tmp_path):
    for shard, names in enumerate(["ab", "ba"]):
        path = write_tar(tmp_path / "x.tar", *(info(f"{name}.mp4") for name in names), fill=names)
        remote[f"https://h/get.tar?shard={shard}"] = path.read_bytes()
    for shard in (0, 1):
        for name in "ab":
            assert content(f"https://h/get.tar?shard={shard}#{name}.mp4") == name.encode() * 10


def test_two_parquet_files_whose_addresses_differ_in_their_query(remote, tmp_path):
    for shard in (b"0", b"1"):
        pyarrow.parquet.write_table(pyarrow.table({"video": [shard]}), tmp_path / "x.parquet")
        remote[f"https://h/get.parquet?shard={int(shard)}"] = (tmp_path / "x.parquet").read_bytes()
    assert len(set(map(len, remote.values()))) == 1
    assert content("https://h/get.parquet?shard=0#0:video") == b"0"
    assert content("https://h/get.parquet?shard=1#0:video") == b"1"


def test_a_tar_that_is_signed_again_is_read_once(remote, shard, monkeypatch):
    for signature in "12":
        remote[f"https://h/x.tar?part=7&sig={signature}"] = shard.read_bytes()
    first = content("https://h/x.tar?part=7&sig=1#clips/1.mp4")
    monkeypatch.setattr(tars, "members", None)  # whoever reads it again fails
    assert content("https://h/x.tar?part=7&sig=2#clips/1.mp4") == first


# --- tars that mean no good -----------------------------------------------------------------------


def write_tar(path: Path, *infos: tarfile.TarInfo, fill: str = "", **kind: object) -> Path:
    """``fill``: a letter for each member, of which its bytes are; by default they are zeros."""
    with tarfile.open(path, "w", **kind) as tar:
        for info, letter in zip(infos, fill or "\0" * len(infos), strict=True):
            tar.addfile(info, io.BytesIO(letter.encode() * info.size))
    return path


def info(name: str, size: int = 10, **attributes: object) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.size = size
    for attribute, value in attributes.items():
        setattr(entry, attribute, value)
    return entry


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (info("../x.mp4"), "has a name that leads out of the tar"),
        (info("/etc/x.mp4"), "has a name that leads out of the tar"),
        (info("x.mp4", 0, type=tarfile.SYMTYPE, linkname="/etc/passwd"), "is a link to '/etc/pas"),
        (info("x.mp4", 0, type=tarfile.LNKTYPE, linkname="a.mp4"), "is a link to 'a.mp4'"),
        (info("x.mp4", 0, type=tarfile.FIFOTYPE), "is not a regular file"),
        (info("a.json", 0, type=tarfile.SYMTYPE, linkname="b.json"), "is a link to 'b.json'"),
    ],
)
def test_a_member_that_may_not_be_read(tmp_path, member, message):
    path = write_tar(tmp_path / "x.tar", info("a.mp4"), member)
    with pytest.raises(UserError, match=f"x.tar: the member '{member.name}' {message}"):
        lines(path)
    with pytest.raises(VideoReadError, match=message):
        open_blob(f"{path}#{member.name}")
    assert content(f"{path}#a.mp4") == bytes(10)


def write_members(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            tar.addfile(info(name, len(data)), io.BytesIO(data))
    return path


def test_a_video_whose_name_is_there_twice(tmp_path):
    """As after `tar -r` or `tar -u`: neither of them may pass for the other."""
    path = write_members(
        tmp_path / "dup.tar",
        *[("x.mp4", b"A"), ("x.json", b'{"who": "first"}'), ("y.mp4", b"Y")],
        *[("x.mp4", b"B"), ("x.json", b'{"who": "second"}')],
    )
    message = "the member 'x.mp4' is in the tar more than once, .* pack it again"
    with pytest.raises(UserError, match=rf"dup\.tar: {message}"):
        lines(path)
    with pytest.raises(VideoReadError, match=message):
        open_blob(f"{path}#x.mp4")
    assert content(f"{path}#y.mp4") == b"Y"


@pytest.mark.parametrize("between", [[], [("y.mp4", b"Y")]], ids=["next to it", "apart"])
def test_fields_whose_name_is_there_twice(tmp_path, between):
    """As after `tar -u`: the first ones may be out of date."""
    first, second = ("x.json", b'{"who": "first"}'), ("x.json", b'{"who": "second"}')
    path = write_members(tmp_path / "dup.tar", ("x.mp4", b"A"), first, *between, second)
    with pytest.raises(UserError, match=r"dup\.tar: the member 'x\.json' is in the tar more than"):
        lines(path)


def test_other_members_may_have_the_same_name(tmp_path):
    again = [("a.log", b"1"), ("README.txt", b"1")]
    path = write_members(tmp_path / "x.tar", *again, ("a.mp4", b"A"), *again)
    assert lines(path) == [{"size": 1, "path": "x.tar#a.mp4"}]
    with pytest.raises(VideoReadError, match=r"'a\.log' is in the tar more than once"):
        open_blob(f"{path}#a.log")


def test_an_index_of_form_1_is_not_used(tmp_path):
    """It may hold the last of two members with the same name."""
    path = write_members(tmp_path / "x.tar", ("a.mp4", b"A"), ("a.mp4", b"B"))
    blob = LocalBlob(str(path))
    name = digest(orjson.dumps([str(path), blob.size, blob.version]))
    index = Path(os.environ["XDG_CACHE_HOME"], "video-pipeline", "tars", f"{name}.json")
    index.parent.mkdir(parents=True)
    index.write_text('{"a.mp4": [1536, 1]}')
    with pytest.raises(VideoReadError, match="more than once"):
        open_blob(f"{path}#a.mp4")


def test_a_user_without_a_home_reads_a_tar(tmp_path, monkeypatch):
    """As in a container with a user id of its own."""

    def fail(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "expanduser", fail)
    path = write_members(tmp_path / "x.tar", ("a.mp4", b"A"))
    assert open_blob(f"{path}#a.mp4").read(0, 1) == b"A"


def test_a_giant_member(tmp_path, limited):
    path = write_tar(tmp_path / "x.tar", info("a.mp4", 2_000_000))
    limited(max_download_gb=0.001)
    with pytest.raises(VideoReadError, match=r"has 0\.002 GB, more than the limit"):
        open_blob(f"{path}#a.mp4")
    data = bytearray(path.read_bytes())
    header = info("a.mp4", 1 << 40).tobuf(tarfile.GNU_FORMAT)
    data[:512] = header[:512]
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"x\.tar"):
        lines(path)


def test_a_giant_header(tmp_path):
    """A name of any length is read whole by tarfile."""
    path = write_tar(tmp_path / "x.tar", info("x" * 3_000_000), format=tarfile.GNU_FORMAT)
    with pytest.raises(UserError, match="a part of it claims to be 3,000,"):
        lines(path)


@pytest.mark.parametrize("cut", [700, 1500, 2100, -10_000])
def test_a_tar_that_is_cut_off_is_not_taken_for_a_shorter_one(tmp_path, cut):
    path = write_tar(tmp_path / "x.tar", info("a.mp4", 600), info("b.mp4", 600), info("c.mp4", 600))
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"cannot read .*x\.tar|cut off"):
        lines(path)


def test_a_damaged_header_is_not_taken_for_the_end(tmp_path):
    path = write_tar(tmp_path / "x.tar", info("a.mp4", 600), info("b.mp4", 600))
    data = bytearray(path.read_bytes())
    data[1536 + 20] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"damaged or cut off at byte 1,536"):
        lines(path)


def test_a_tar_after_another_one_is_not_lost(tmp_path):
    """As `cat` makes it: to tarfile the file ends where the first tar does."""
    first, second = (write_tar(tmp_path / f"{n}.tar", info(f"{n}.mp4")) for n in "ab")
    both = tmp_path / "both.tar"
    both.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(UserError, match=r"both\.tar.*another tar follows"):
        lines(both)


@pytest.mark.parametrize("size", [-512, -4096])  # This header comes next, too; before the start.
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_negative_size_does_not_lead_back_for_ever(tmp_path, monkeypatch, kind, size):
    """Python 3.11.14, 3.12.12 and later refuse it themselves (CVE-2025-8194)."""
    blocks = lambda _, count: -(-count // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE  # noqa: E731
    monkeypatch.setattr(tarfile.TarInfo, "_block", blocks)
    header = bytearray(info("b.mp4", 0, type=kind).tobuf(tarfile.GNU_FORMAT))
    header[124:136] = size.to_bytes(12, signed=True)
    header[148:156] = b"%06o\0 " % (sum(header[:148] + header[156:]) + 8 * ord(" "))
    path = write_tar(tmp_path / "x.tar", info("a.mp4"))
    path.write_bytes(path.read_bytes()[:1024] + header + bytes(10240))
    members = tars.members(LocalBlob(str(path)))
    with pytest.raises(VideoReadError, match="the tar is damaged"):
        assert list(islice(members, 5)) is None


def test_what_is_no_tar(tmp_path):
    path = tmp_path / "x.tar"
    for data in (b"no tar at all" * 100, gzip.compress(b"x" * 9999)):
        path.write_bytes(data)
        with pytest.raises(UserError, match="not a tar, a compressed one, or a damaged one"):
            lines(path)
    with pytest.raises(UserError, match="no member is named like a video"):
        lines(write_tar(tmp_path / "y.tar", info("a.doc")))
    with pytest.raises(UserError, match=r"the member 'a\.json': not JSON"):
        lines(write_tar(tmp_path / "z.tar", info("a.mp4"), info("a.json")))
    with pytest.raises(UserError, match=r"the member 'a\.b\.txt' has 2,000,000 bytes, more than a"):
        lines(write_tar(tmp_path / "z.tar", info("a.b.mp4"), info("a.b.txt", 2_000_000)))


def test_roots_hold_for_members(tmp_path, limited):
    path = write_tar(tmp_path / "x.tar", info("a.mp4"))
    (tmp_path / "allowed").mkdir()
    limited(allowed_roots=[tmp_path / "allowed"])
    with pytest.raises(VideoReadError, match="outside the folders"):
        open_blob(f"{path}#a.mp4")
    (tmp_path / "allowed" / "y.tar").symlink_to(path)
    with pytest.raises(VideoReadError, match="outside the folders"):
        open_blob(f"{tmp_path}/allowed/y.tar#a.mp4")
    limited(allowed_roots=[tmp_path])
    with pytest.raises(VideoReadError, match=r"the tar has no member '\.\./\.\./etc/passwd'"):
        open_blob(f"{path}#../../etc/passwd")


# --- Parquet --------------------------------------------------------------------------------------


@pytest.fixture(params=["bytes", "struct"])
def table(request, tmp_path, clips) -> Path:
    """Videos in a column, plain or as Hugging Face's ``datasets`` writes them."""
    videos: list = [clip.read_bytes() for clip in clips] * 4
    kind = pyarrow.binary()
    if request.param == "struct":
        videos = [{"bytes": data, "path": "x.mp4"} for data in videos]
        kind = pyarrow.struct({"bytes": pyarrow.binary(), "path": pyarrow.string()})
    columns = {"n": pyarrow.array(range(12)), "video": pyarrow.array(videos, kind)}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "p-0.parquet", row_group_size=5)
    return tmp_path / "p-0.parquet"


def test_each_row_is_a_sample(table):
    expected = [{"n": n, "path": f"p-0.parquet#{n}:video"} for n in range(12)]
    assert lines(table) == expected
    assert lines(table.parent) == expected
    named = [{"n": n, "video": f"p-0.parquet#{n}:video"} for n in range(12)]
    assert lines(table, "video") == named


@pytest.mark.parametrize(
    "kind",
    [
        pyarrow.large_binary(),
        pyarrow.binary_view(),
        pyarrow.dictionary(pyarrow.int32(), pyarrow.binary()),
        pyarrow.struct({"bytes": pyarrow.binary_view()}),
    ],
    ids=str,
)
def test_bytes_of_every_layout_are_bytes(tmp_path, kind):
    """As the video, with and without its name, and as another column."""
    path, data = tmp_path / "p.parquet", [b"video 0", b"video 1", b"video 0"]
    is_struct = pyarrow.types.is_struct(kind)
    videos = pyarrow.array([{"bytes": one} if is_struct else one for one in data], kind)
    columns = {"n": [0, 1, 2], "path": videos, "icon": videos}
    try:
        pyarrow.parquet.write_table(pyarrow.table(columns), path)
    except pyarrow.ArrowNotImplementedError as error:  # Views came with pyarrow 21.
        pytest.skip(str(error))
    expected = [{"n": n, "path": f"p.parquet#{n}:path"} for n in range(3)]
    assert pyarrow.parquet.read_schema(path).field("path").type == kind
    assert lines(path) == expected
    assert [content(f"{tmp_path}/{sample['path']}") for sample in expected] == data
    pyarrow.parquet.write_table(pyarrow.table({"video": videos}), path)
    assert lines(path) == [{"path": f"p.parquet#{n}:video"} for n in range(3)]


def test_no_bytes_become_text(tmp_path):
    source = Source(str(tmp_path / "x.parquet"))
    with pytest.raises(UserError, match=r"x\.parquet, sample 7: .* JSON .*: bytes; .*'icon': b'1"):
        json_line(source, 7, {"icon": b"1"})
    assert json_line(source, 7, {"score": Decimal("0.5")}) == b'{"score":"0.5"}'


def test_a_row_is_the_video_that_was_put_in(table, clips):
    for number in (0, 1, 4, 5, 3, 11, 11, 2):
        assert content(f"{table}#{number}:video") == clips[number % 3].read_bytes()
    assert probe(f"{table}#7:video") == probe(str(clips[1]))


class Counting(Blob):
    """A blob that notes how much is read of it."""

    is_local = True

    def __init__(self, path: Path) -> None:
        self._blob, self.done = LocalBlob(str(path)), 0

    @property
    def size(self) -> int:
        return self._blob.size

    def read(self, start: int, stop: int) -> bytes:
        self.done += stop - start
        return self._blob.read(start, stop)


def test_rows_in_order_are_read_once(tmp_path):
    path = tmp_path / "x.parquet"
    data = [bytes([n]) * 1_000_000 for n in range(20)]
    columns = pyarrow.table({"video": data})
    pyarrow.parquet.write_table(columns, path, compression="none", use_dictionary=False)
    blob = Counting(path)
    for number in range(20):
        assert rows.row(blob, "x", f"{number}:video", 1 << 30).read(0, 5) == data[number][:5]
    assert blob.done < 1.5 * path.stat().st_size


class Breaking(Counting):
    """A blob of which one read fails, as one of a remote file does."""

    breaks = False

    def read(self, start: int, stop: int) -> bytes:
        if self.breaks:
            self.breaks = False
            raise VideoReadError("download: nothing came for 30 s")
        return super().read(start, stop)


def test_a_read_that_fails_costs_one_row(tmp_path):
    path = tmp_path / "x.parquet"
    data = [bytes([n]) * 1_000_000 for n in range(6)]
    pages = {"write_batch_size": 1, "data_page_size": 1}  # Each row has one, which is read alone.
    columns = pyarrow.table({"video": data})
    pyarrow.parquet.write_table(columns, path, compression="none", use_dictionary=False, **pages)
    blob = Breaking(path)

    def first_bytes(number: int) -> bytes:
        return rows.row(blob, "x", f"{number}:video", 1 << 30).read(0, 5)

    assert first_bytes(0) == data[0][:5]
    blob.breaks = True
    with pytest.raises(VideoReadError, match="nothing came for 30 s"):
        first_bytes(1)
    for number in (2, 3, 1, 4):
        assert first_bytes(number) == data[number][:5]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ("99:video", "no row 99: the file has 12 rows"),
        ("1:n", "no column 'n' of bytes; the file has n, video"),
        ("1:gone", "no column 'gone' of bytes"),
        ("video", "'video' names no row of Parquet"),
        ("-1:video", "names no row"),
    ],
)
def test_a_row_that_is_not_there(table, member, message):
    with pytest.raises(VideoReadError, match=message):
        open_blob(f"{table}#{member}")


def test_a_row_that_is_empty_or_too_large(tmp_path, limited):
    path = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(
        pyarrow.table({"video": [None, bytes(50_000_000)]}), path, compression="zstd"
    )
    assert path.stat().st_size < 100_000
    limited(max_download_gb=0.01)
    with pytest.raises(VideoReadError, match="row 0 has no bytes in the column 'video'"):
        open_blob(f"{path}#0:video")
    with pytest.raises(VideoReadError, match=r"larger than 0\.01 GB"):
        open_blob(f"{path}#1:video")


def test_what_is_no_parquet(tmp_path):
    path = tmp_path / "x.parquet"
    path.write_bytes(b"PAR1 and then nothing PAR1")
    with pytest.raises(VideoReadError, match="not a Parquet file"):
        open_blob(f"{path}#0:video")
    with pytest.raises(UserError, match=r"cannot read .*x\.parquet"):
        lines(path)
