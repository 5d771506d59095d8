"""What the processes of a run cost: CPU, memory and priority of each, by kind."""

from __future__ import annotations

import subprocess
from typing import Any

import psutil


def end(process: subprocess.Popen[bytes]) -> None:
    """Kill a run: all results are there, and a clean end would take time of the machine. The watch
    processes of its jobs stay alive, for they remove its shared memory."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.kill()
    for one in family:
        try:
            if not any(
                part.endswith("video_pipeline/common/processes.py") for part in one.cmdline()
            ):
                one.kill()
        except psutil.Error:
            pass
    psutil.wait_procs(family, timeout=10)
    process.wait()


def rows(pid: int, *, memory: bool) -> list[dict[str, Any]]:
    """A row for each process below ``pid``: its kind, CPU seconds, nice value and threads; with
    ``memory`` also its resident and private megabytes."""
    table = []
    try:
        family = psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    feeders = {one.pid for one in family if _is_feeder(one)}
    engines = _engines(family)
    for one in family:
        try:
            with one.oneshot():
                times = one.cpu_times()
                row = {
                    "pid": one.pid,
                    "kind": _kind(one, feeders, engines),
                    "cpu": round(times.user + times.system, 2),
                    "nice": one.nice(),
                    "threads": one.num_threads(),
                    "started": round(one.create_time(), 2),
                    "command": " ".join(one.cmdline())[-60:],
                }
            if memory:
                full = one.memory_full_info()
                row["rss_mb"], row["uss_mb"] = round(full.rss / 1e6), round(full.uss / 1e6)
        except psutil.Error:
            continue
        table.append(row)
    return table


def _is_feeder(one: psutil.Process) -> bool:
    try:
        command = one.cmdline()
    except psutil.Error:
        return False
    return any(part.endswith("infer.py") for part in command[:4])


def _engines(family: list[psutil.Process]) -> set[int]:
    """The engine's processes, by the name that vLLM gives them where it can; otherwise those that
    hold much of the GPU's memory."""
    named = set()
    for one in family:
        try:
            if "EngineCore" in " ".join([one.name(), *one.cmdline()[:1]]):
                named.add(one.pid)
        except psutil.Error:
            continue
    if named:
        return named
    query = ["nvidia-smi", "--query-compute-apps=pid,used_memory", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return set()
    pids = {one.pid for one in family}
    held = [line.split(",") for line in output.splitlines()]
    return {int(pid) for pid, mib in held if int(pid) in pids and float(mib) > 10_000}


def _kind(one: psutil.Process, feeders: set[int], engines: set[int]) -> str:
    """``feeder``, ``engine``, ``fork server``, ``decode``, ``helper`` (watch and trackers), or
    ``snakemake`` with its shells."""
    parents = [parent.pid for parent in one.parents()]
    if one.pid in engines or engines & set(parents):
        return "engine"
    if one.pid in feeders:
        return "feeder"
    if not feeders & set(parents):
        return "snakemake"
    command = " ".join(one.cmdline())
    if "fork_server" not in command:
        return "helper"
    return "fork server" if parents[0] in feeders else "decode"


def by_kind(table: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The sum of the CPU seconds, and the mean and the largest memory, of each kind of process."""
    kinds: dict[str, dict[str, Any]] = {}
    for kind in sorted({row["kind"] for row in table}):
        same = [row for row in table if row["kind"] == kind]
        kinds[kind] = {
            "processes": len(same),
            "cpu": round(sum(row["cpu"] for row in same), 1),
            "nice": sorted({row["nice"] for row in same}),
        }
        for name in ("rss_mb", "uss_mb"):
            values = [row[name] for row in same if name in row]
            if values:
                kinds[kind][name] = {"mean": round(sum(values) / len(values)), "most": max(values)}
    return kinds
