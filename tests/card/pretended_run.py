"""Runs a script on a pretended card: `python tests/card/pretended_run.py SCRIPT WORDS...`.

Beside `pretended`, what a benchmark asks of torch.cuda is there: streams, events (by the clock), graphs (that
replay nothing), and a card's description.  So a script comes to its end as on a card; its times mean nothing.
"""

import contextlib
import runpy
import sys
import time
import types
from pathlib import Path
from unittest import mock

import pretended
import torch

CARD = types.SimpleNamespace(
    name="pretended", major=9, minor=0, total_memory=2**36, multi_processor_count=132, L2_cache_size=2**25
)


class Event:
    """Marks the clock."""

    def __init__(self, **_: object) -> None:
        self.at = 0.0

    def record(self, *_: object) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        """Nothing to wait for."""

    def elapsed_time(self, other: "Event") -> float:
        return 1e3 * (other.at - self.at)


def nothing(*_: object, **__: object) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext()


def main() -> None:
    script = Path(sys.argv[1])
    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(script.parent))
    stream = types.SimpleNamespace(wait_stream=nothing, synchronize=nothing)
    graph = types.SimpleNamespace(replay=nothing)
    answers = {"get_device_properties": CARD, "get_device_name": CARD.name, "current_device": 0,
               "current_stream": stream, "Stream": stream, "CUDAGraph": graph, "memory_allocated": 0,
               "max_memory_allocated": 0, "get_sync_debug_mode": 0}  # fmt: skip
    patches = {name: mock.Mock(return_value=value) for name, value in answers.items()}
    patches |= dict.fromkeys(
        ("synchronize", "stream", "graph", "empty_cache", "reset_peak_memory_stats", "set_sync_debug_mode"),
        nothing,
    )
    with pretended.pretended(), mock.patch.multiple(torch.cuda, Event=Event, **patches):
        runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
