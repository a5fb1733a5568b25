"""How work on a card is timed: in a graph, by events, and by the clock; and what the card is."""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any

import torch

WARM = 3  # calls before anything is timed: they compile, allocate and fill caches
BETWEEN = 20  # calls between two events, so that an event's own resolution does not show
LONG_US = 2e4  # but not more of them than take this long


def wait(device: str | torch.device) -> None:
    """Wait for the card, where there is one."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def describe(values: list[float]) -> dict[str, float]:
    """Median, least and how many, of microseconds."""
    return {"median": statistics.median(values), "least": min(values), "count": len(values)}


def sample_wall(call: Callable[[], object], device: str | torch.device, repeats: int) -> dict[str, float]:
    """Microseconds by the clock of one eager call, from an idle card to an idle card."""
    for _ in range(WARM):
        call()
    values = []
    for _ in range(repeats):
        wait(device)
        start = time.perf_counter()
        call()
        wait(device)
        values.append(1e6 * (time.perf_counter() - start))
    return describe(values)


def capture(call: Callable[[], object]) -> torch.cuda.CUDAGraph:
    """A graph of the call, which must neither synchronise nor allocate outside torch."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph


def time_graph(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Microseconds of one replay of the call's graph, by events about many replays in a row."""
    graph = capture(call)
    return by_events(graph.replay, repeats)


def by_events(call: Callable[[], object], repeats: int) -> dict[str, float]:
    """Microseconds on the card of one call, by events about many calls in a row."""
    between = max(1, min(BETWEEN, int(LONG_US / sample_wall(call, "cuda", 1)["median"])))
    values = []
    for _ in range(repeats):
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        for _ in range(between):
            call()
        after.record()
        after.synchronize()
        values.append(1e3 * before.elapsed_time(after) / between)
    return describe(values)


def kernel_time(call: Callable[[], object], device: str | torch.device, repeats: int) -> dict[str, Any]:
    """Time on the card of one call: by a graph, or by events and with the reason where it has no graph.

    On the CPU it is the clock's, so that a dry run goes the same way.
    """
    if torch.device(device).type != "cuda":
        return {**sample_wall(call, device, repeats), "by": "clock"}
    try:
        return {**time_graph(call, repeats), "by": "graph"}
    except RuntimeError as error:
        torch.cuda.synchronize()
        return {**by_events(call, repeats), "by": "events", "why": str(error).splitlines()[0][:200]}


def peak_mb(call: Callable[[], object], device: str | torch.device) -> float | None:
    """The most memory that torch's allocator held during a call, beyond what it held before, MB."""
    if torch.device(device).type != "cuda":
        return None
    call()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def describe_card(device: str | torch.device) -> dict[str, Any] | None:
    """The card, its driver and the software that drives it; None on the CPU."""
    if torch.device(device).type != "cuda":
        return None
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "name": about.name,
        "architecture": f"sm_{about.major}{about.minor}",
        "memory_gib": round(about.total_memory / 2**30, 1),
        "multiprocessors": about.multi_processor_count,
        "l2_mb": round(about.L2_cache_size / 1e6, 1),
        "driver": _asked("driver_version"),
        "clock_mhz": _asked("clocks.max.sm"),
        "cuda": torch.version.cuda,
    }


def _asked(what: str) -> str | None:
    command = ["nvidia-smi", f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.splitlines()[0].strip()
