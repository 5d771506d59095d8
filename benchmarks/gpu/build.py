"""Build the parts that are carried to a GPU machine without a network.

    python benchmarks/gpu/build.py CHECKOUT OUT [--work DIR] [--python PYTHON] [--caches FILE]

CHECKOUT is a git checkout of this project; its HEAD is packed. OUT gets p1/, p2/ and SHA256SUMS;
each part is one transfer, below 58 MiB. DIR keeps downloads (about 450 MB) for the next build.
PYTHON has this project's CPU environment and writes the model folders; the default is
CHECKOUT/.venv/bin/python, and where there is none, CHECKOUT/envs/install.sh builds one in DIR.
FILE is the caches.tar.xz that an earlier run on the same kind of machine handed back: with it the
engine starts warm the first time.

Needs pip, git, tar and xz. The same pins, checkout and xz give the same bytes: archives are sorted
and have one date and owner.
"""

import argparse
import hashlib
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import zipfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

HERE = Path(__file__).resolve().parent
MOST = 58 * 2**20
PLATFORMS = [
    *(f"manylinux_2_{minor}_x86_64" for minor in (31, 28, 27, 26, 24, 17, 12, 5)),
    *("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"),
]
"""pip takes a wheel only if one of its tags is named, so each must be listed. 2.31 is the newest
glibc that any of the pins needs."""

PARTS = {
    "p1": {"av": 6, "site": 6, "vllm": 6, "project": 6, "models": 9},
    "p2": {"ext": 6, "fa3": 6, "nvdec": 6},
}
"""Archives of each part, with the level for xz. Part 1 can do something useful before part 2 has
come: it has what encodes the clips, and all Python files, to compile. The models' tokenizers differ
by a few bytes in 10 MB, which only the dictionary of level 9 is large enough to see."""

SCRIPTS = ("assemble.sh", "env.sh")
"""What a part must have beside its archives; all else is in the project's own archive."""

PRUNED = ["vllm/_C_stable_libtorch.abi3.so", "vllm/_moe_C_stable_libtorch.abi3.so"]
FA3 = "vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so"
KEPT = [f"vllm/{name}.abi3.so" for name in ("cumem_allocator", "fs_io_C", "spinloop")]
"""vLLM's compiled files that are carried. FlashAttention 3 is for sm_90 alone as it is. Left out:
FlashAttention 2 (300 MB; on Hopper vLLM takes 3), FlashMLA, QuTLASS, DeepSelect, FlashKDA, the Rust
front end: nothing in a run of Qwen2.5-VL or Qwen3-VL loads them."""

VLLM_SKIPPED = re.compile(
    r"vllm/third_party/(deep_gemm|fmha_sm100|tml_fa4)/|vllm/vllm_flash_attn/cute/|vllm/vllm-rs$"
    r"|vllm/.*/static/|.*\.jpg$"
)
"""Kernels for other models and GPUs, and web pages."""

SITE_SKIPPED = re.compile(
    r"(sqlalchemy|snakemake|docutils|pulp|pandas)/(.*/)?tests?/"
    r"|pycountry/locales/|mistral_common/data/|include/|samples/|benchmarks/|bin/"
    r"|pulp/.*solverdir/.*(win|osx|arm64|i32)|av/.*\.pyi$"
    r"|PyNvVideoCodec/lib\w+\.so(\.|\.\d+\.\d+\.\d+)?$"  # four copies each: lib.so.MAJOR is loaded
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkout", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--work", type=Path, default=None)
    parser.add_argument("--python", type=Path, default=None)
    parser.add_argument("--caches", type=Path, default=None)
    options = parser.parse_args()
    out, checkout = options.out.resolve(), options.checkout.resolve()
    work = (options.work or out / "work").resolve()
    work.mkdir(parents=True, exist_ok=True)
    wheels = download(work / "wheels")
    stage = work / "stage"
    shutil.rmtree(stage, ignore_errors=True)
    for folder in ("site", "nvdec", "project", "models"):
        (stage / folder).mkdir(parents=True)
    unpack(wheels, stage)
    check_compiled(stage)
    for path in PRUNED:
        prune(stage / "site" / path)
    git = subprocess.run(
        ["git", "-C", checkout, "archive", "HEAD"], check=True, capture_output=True
    )
    subprocess.run(["tar", "-xf", "-", "-C", stage / "project"], input=git.stdout, check=True)
    for needed in (
        "Snakefile",
        "workflow/envs/gpu.yaml",
        "workflow/rules",
        "benchmarks/gpu/drive.py",
    ):
        if not (stage / "project" / needed).exists():
            raise SystemExit(f"{checkout}: HEAD has no {needed}")
    say(f"project: {revision(checkout)}")
    models(stage, python_of(options.python, checkout, work))
    pack(stage, out, work / "archives", options.caches)


def say(text: str) -> None:
    print(f"{time.strftime('%X')} {text}", flush=True)


def revision(checkout: Path) -> str:
    command = ["git", "-C", checkout, "rev-parse", "--short=12", "HEAD"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def download(folder: Path) -> list[Path]:
    """The wheels of requirements.txt; pip checks their hashes."""
    pins = [
        line.split(" ")[0].split("==")
        for line in (HERE / "requirements.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    ]
    if repeated := [n for n, k in Counter(_name(name) for name, _ in pins).items() if k > 1]:
        raise SystemExit(f"pinned more than once: {repeated}")

    def wheels() -> dict[str, Path]:
        return {_name(p.name.split("-")[0]): p for p in folder.glob("*.whl")}

    wanted = {_name(name): version for name, version in pins}
    have = {name: p.name.split("-")[1] for name, p in wheels().items()}
    if have != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        say(f"downloading {len(pins)} wheels")
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--require-hashes"]
        command += ["--only-binary=:all:", "--implementation=cp", "--python-version=3.12"]
        command += [f"--platform={name}" for name in PLATFORMS]
        command += ["-d", str(folder), "-r", str(HERE / "requirements.txt")]
        subprocess.run(command, check=True)
    paths = wheels()
    if paths.keys() != wanted.keys() or len(list(folder.glob("*.whl"))) != len(wanted):
        raise SystemExit(f"not one wheel for each pin: {paths.keys() ^ wanted.keys()}")
    say(f"{len(paths)} wheels, {sum(p.stat().st_size for p in paths.values()) / 1e6:.0f} MB")
    return sorted(paths.values())


def _name(text: str) -> str:
    return re.sub(r"[-_.]+", "-", text).lower()


def unpack(wheels: list[Path], stage: Path) -> None:
    """What is carried of each wheel, into stage/site; PyNvVideoCodec into stage/nvdec. No file may
    come from two wheels."""
    owner: dict[str, str] = {}
    for wheel in wheels:
        python, abi, _ = wheel.stem.split("-")[-3:]
        fits = (abi == "none" and "py3" in re.findall("py3|py2", python)) or abi == "cp312"
        if not fits and not (abi == "abi3" and int(python.removeprefix("cp3")) <= 12):
            raise SystemExit(f"{wheel.name} is not for CPython 3.12")
        target = stage / ("nvdec" if wheel.name.startswith("pynvvideocodec") else "site")
        vllm = wheel.name.startswith("vllm-")
        with zipfile.ZipFile(wheel) as archive:
            for item in archive.infolist():
                parts = PurePosixPath(item.filename).parts
                if item.is_dir():
                    continue
                if parts[0].endswith(".data"):
                    if parts[1] not in ("purelib", "platlib"):
                        continue  # scripts, headers, sources
                    parts = parts[2:]
                path = "/".join(parts)
                if SITE_SKIPPED.match(path) or "__pycache__" in parts:
                    continue
                if "/licenses/" in path and ".dist-info" in path:
                    continue
                if vllm and (VLLM_SKIPPED.match(path) or path.endswith(".dist-info/RECORD")):
                    continue
                if vllm and path.endswith(".so") and path not in [*PRUNED, FA3, *KEPT]:
                    continue
                if path in owner:
                    raise SystemExit(f"{path} comes from {owner[path]} and from {wheel.name}")
                owner[path] = wheel.name
                file = target / path
                file.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(item) as source, open(file, "wb") as copy:
                    shutil.copyfileobj(source, copy, 2**20)
                if item.external_attr >> 16 & 0o111:
                    file.chmod(0o755)
    for path in [*PRUNED, FA3, *KEPT]:
        if not (stage / "site" / path).exists():
            raise SystemExit(f"vLLM's wheel has no {path}")
    say(f"unpacked {len(owner)} files")


def check_compiled(stage: Path) -> None:
    """Every compiled module is for CPython 3.12 or the stable ABI, and for x86-64."""
    count: Counter[str] = Counter()
    for file in sorted([*stage.glob("site/**/*.so*"), *stage.glob("nvdec/**/*.so*")]):
        if tag := re.search(r"\.(cpython-\w+|abi3)[.-]", file.name):
            kind = "cp312" if tag[1].startswith("cpython-312") else tag[1]
        else:
            kind = "library"
        with open(file, "rb") as stream:
            head = stream.read(20)
        if head[:5] != b"\x7fELF\x02" or struct.unpack_from("<H", head, 18)[0] != 62:
            raise SystemExit(f"{file} is not an ELF file for x86-64")
        if kind not in ("cp312", "abi3", "library"):
            raise SystemExit(f"{file} is for {kind}")
        count[kind] += 1
    say(f"compiled files: {dict(count)}")


# A CUDA extension holds, in its section .nv_fatbin, one container for each source file, and in it
# one entry (a cubin, or PTX) for each GPU architecture that it was compiled for. Only the sm_90
# cubins are ever loaded on an H100 or H200; the others are most of the bytes, and compress badly.
#
# The code of the extension holds the address of each container, so nothing may move: a container
# stays where it is, gets its sm_90 cubins moved to the front, its size set to theirs, and zeros in
# the rest, which compress to nothing. The file keeps its length, and its Python side is untouched.
# A container without any sm_90 cubin (kernels for other GPUs that happen to be in the same file)
# must not be empty, since the CUDA runtime reads all of them when the extension is loaded: it gets
# one small cubin of another architecture, which is never chosen. Calling such a kernel on an H100
# fails as it would with the whole file, unless that had PTX for it: then it would have been
# compiled on the spot, and now it says "no kernel image is available". A bf16 Qwen2.5-VL needs none
# of them (it ran); FP8 was not tried yet.

CONTAINER = struct.Struct("<IHHQ")  # magic, version, bytes of this header, bytes of the entries
ENTRY = struct.Struct("<HHIQIIHHIIIQQQ")  # kind, ., bytes of header, of payload, ..., arch, ...
MAGIC = 0xBA55ED50
CUBIN, SM_90 = 2, 90


def containers(fatbin: bytes):
    """(offset, bytes of its header, bytes of the entries, entries as (kind, arch, begin, end))."""
    at = 0
    while at + CONTAINER.size <= len(fatbin):
        magic, _, header, size = CONTAINER.unpack_from(fatbin, at)
        if magic != MAGIC:
            at += 8  # they are aligned to 8
            continue
        entries, begin, end = [], at + header, at + header + size
        while begin < end:
            fields = ENTRY.unpack_from(fatbin, begin)
            kind, entry_header, payload, arch = fields[0], fields[2], fields[3], fields[8]
            entries.append((kind, arch, begin, begin + entry_header + payload))
            begin += entry_header + payload
        if begin != end:
            raise SystemExit(f"container at {at}: its entries end at {begin}, not at {end}")
        yield at, header, size, entries
        at = end


def prune(path: Path) -> None:
    """Leave only the sm_90 cubins in the CUDA extension ``path``, and verify that."""
    begin, size = section(path, b".nv_fatbin")
    data = path.read_bytes()
    before = data[begin : begin + size]
    after = bytearray(before)
    originals = list(containers(before))
    others = [e for *_, entries in originals for e in entries if e[0] == CUBIN and e[1] != SM_90]
    _, _, first, last = min(others, key=lambda e: e[3] - e[2])
    filler = before[first:last]
    kept = []
    for at, header, room, entries in originals:
        ours = [before[b:e] for kind, arch, b, e in entries if (kind, arch) == (CUBIN, SM_90)]
        kept.append(ours)
        body = b"".join(ours) or filler
        if len(body) > room:
            raise SystemExit(f"{path.name}: no room in the container at {at}")
        after[at + header : at + header + room] = body + bytes(room - len(body))
        struct.pack_into("<Q", after, at + 8, len(body))
    path.write_bytes(data[:begin] + after + data[begin + size :])

    # read again, as the CUDA runtime will: every container in its place, its cubins bit for bit
    written = path.read_bytes()
    now = {at: (h, entries) for at, h, _, entries in containers(written[begin : begin + size])}
    intact = [at for at, *_ in originals] == list(now) and len(written) == len(data)
    for (at, header, _, _), ours in zip(originals, kept, strict=True):
        got = [written[begin + b : begin + e] for _, _, b, e in now[at][1]] if intact else []
        intact = intact and now[at][0] == header and got == (ours or [filler])
    if not intact or not any(kept):
        raise SystemExit(f"{path.name}: pruning went wrong")
    cubins = [cubin for ours in kept for cubin in ours]
    say(
        f"{path.name}: {len(originals)} containers, {len(cubins)} sm_90 cubins kept, intact: "
        f"{sum(map(len, cubins)) / 1e6:.1f} of {size / 1e6:.1f} MB"
    )


def section(path: Path, wanted: bytes) -> tuple[int, int]:
    """Offset and size of a section of an ELF file."""
    with open(path, "rb") as stream:
        head = stream.read(64)
        (table,) = struct.unpack_from("<Q", head, 0x28)
        entry, count, names = struct.unpack_from("<HHH", head, 0x3A)
        stream.seek(table)
        raw = stream.read(entry * count)
        sections = [struct.unpack_from("<IIQQQQ", raw, i * entry) for i in range(count)]
        stream.seek(sections[names][4])
        text = stream.read(sections[names][5])
    for name, _, _, _, offset, size in sections:
        if text[name : text.index(b"\0", name)] == wanted:
            return offset, size
    raise SystemExit(f"{path} has no section {wanted.decode()}")


def python_of(given: Path | None, checkout: Path, work: Path) -> Path:
    """A Python with this project's CPU environment."""
    if given is not None:
        return given.absolute()
    own = checkout / ".venv/bin/python"
    if own.exists():
        return own
    say("building the project's CPU environment (some minutes)")
    subprocess.run([checkout / "envs/install.sh", work / "venv"], check=True)
    return work / "venv/bin/python"


def models(stage: Path, python: Path) -> None:
    """Folders of the models, without weights."""
    path = [str(stage / "project/workflow/scripts"), str(stage / "project")]
    environment = {**os.environ, "PYTHONPATH": ":".join(path), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {"HF_HUB_OFFLINE": "1"}
    command = [python, "-m", "benchmarks.real_model", stage / "models"]
    subprocess.run(command, check=True, env=environment)


def pack(stage: Path, out: Path, kept: Path, caches: Path | None) -> None:
    kept.mkdir(parents=True, exist_ok=True)
    site = stage / "site"
    tops = sorted(p.name for p in site.iterdir())
    av = [name for name in tops if re.match(r"av($|\.libs$|-.*\.dist-info$)", name)]
    vllm = [name for name in tops if re.match(r"vllm($|-.*\.dist-info$)", name)]
    compiled = [*PRUNED, FA3]
    contents = {
        "av": (site, av, []),
        "site": (site, [name for name in tops if name not in [*av, *vllm]], []),
        "vllm": (site, vllm, compiled),
        "ext": (site, PRUNED, []),
        "fa3": (site, [FA3], []),
        "nvdec": (stage / "nvdec", ["."], []),
        "project": (stage / "project", ["."], []),
        "models": (stage / "models", ["."], []),
    }
    jobs = []
    copied = {"p2": caches} if caches else {}
    for part, archives in PARTS.items():
        shutil.rmtree(out / part, ignore_errors=True)
        (out / part).mkdir(parents=True)
        for name in SCRIPTS:
            shutil.copy(stage / "project" / "benchmarks" / "gpu" / name, out / part / name)
        if part in copied:
            shutil.copy(copied[part], out / part / "caches.tar.xz")
        for name, level in archives.items():
            jobs.append((out / part / f"{name}.tar.xz", level, *contents[name]))
    with ThreadPoolExecutor(max(1, os.cpu_count() // 2)) as pool:
        list(pool.map(lambda job: tar(kept, *job), sorted(jobs, key=lambda job: job[2] != site)))
    sums = []
    for part in PARTS:
        files = sorted(p for p in (out / part).rglob("*") if p.is_file())
        total = sum(p.stat().st_size for p in files)
        for file in files:
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            sums.append(f"{digest}  {file.relative_to(out)}\n")
        say(f"{part}: {total / 2**20:.1f} MiB")
        if total > MOST:
            raise SystemExit(f"{part} is larger than {MOST / 2**20:.0f} MiB")
    (out / "SHA256SUMS").write_text("".join(sums))


def tar(
    kept: Path, file: Path, level: int, folder: Path, names: list[str], without: list[str]
) -> None:
    """One .tar.xz whose bytes depend on nothing but the files' names, modes and content. What is
    compressed already is taken from the folder ``kept``."""
    command = ["tar", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]
    command += ["--mode=go=rX,u+rw", "--mtime=2026-01-01 00:00Z", "--format=gnu"]
    command += ["--exclude=__pycache__", *(f"--exclude={path}" for path in without)]
    plain = file.with_suffix("")
    subprocess.run([*command, "-C", folder, "-cf", plain, *names], check=True)
    with open(plain, "rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    packed = kept / f"{digest[:32]}-{level}.xz"
    if not packed.exists():
        part = packed.with_suffix(".part")
        with open(plain, "rb") as source, open(part, "wb") as target:
            # -T2: blocks of a fixed size, the same bytes with any number of threads but one
            subprocess.run(["xz", f"-{level}", "-T2"], stdin=source, stdout=target, check=True)
        part.replace(packed)
    plain.unlink()
    shutil.copyfile(packed, file)


if __name__ == "__main__":
    main()
