"""What every training of a network here shares: its folder, its rate, its random numbers, its state.

A folder holds `model.safetensors` (the weights to use), `training.safetensors` (all that a training needs to
go on), `log.jsonl` (its curve), and `model.json`, for people: the same facts as in the headers of the first
two, which are what is read.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xreg.errors import FileError, XregError
from xreg.io import atomic_write, write_json
from xreg.io.tensors import load_tensors, save_tensors

MODEL, TRAINING, FACTS, LOG = "model.safetensors", "training.safetensors", "model.json", "log.jsonl"
NAMES = (TRAINING, MODEL, FACTS, LOG)  # what to go on with is the first to be removed
REMEDY = "train into another folder, or start from it with --from"  # for what cannot be resumed
_TIDY = 50  # steps from one handing back of memory to the next
_SHOWN, _LONG = 4, 60  # differences of what cannot be resumed, and characters of each value
_NONE = object()  # where one of two readings has no entry, which a null is not


def forget(folder: Path) -> None:
    """Remove an earlier training from a folder, so that nothing goes on with it once another began there."""
    for name in NAMES:
        (folder / name).unlink(missing_ok=True)


class Budget:
    """What a training may take, in steps or in minutes, and how much of it is spent."""

    def __init__(self, steps: int | None, minutes: float | None) -> None:
        self.steps, self.minutes = steps, minutes
        self.before, self.began = 0.0, time.perf_counter()

    def begin(self) -> None:
        """A sitting begins now."""
        self.began = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Time spent training, earlier sittings (`before`) included."""
        return self.before + time.perf_counter() - self.began

    def spent(self, step: int) -> float:
        """The part that is spent when `step` steps are done, 0 to 1."""
        done = step / self.steps if self.minutes is None else self.seconds / (60 * self.minutes)
        return min(1.0, done)


@dataclass(frozen=True)
class NetworkFiles:
    """Networks of one kind on disk: their schema, and the command that writes them."""

    schema: str
    made_by: str

    def save(self, path: str | PathLike, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Write tensors with JSON facts and a checksum, atomically.  Raises FileError."""
        save_tensors(path, tensors, facts, schema=self.schema)

    def load(self, path: str | PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Read what `save` wrote.  FileError for a file that is missing, truncated, changed, or another's."""
        what, remedy = f"a network that {self.made_by} wrote", "take a copy, or train anew"
        return load_tensors(path, schema=self.schema, what=what, remedy=remedy)

    def save_facts(self, folder: Path, facts: Mapping[str, Any]) -> None:
        """The facts of a folder, for people."""
        write_json(folder / FACTS, {"schema": self.schema, **facts})

    def save_training(
        self,
        folder: Path,
        facts: Mapping[str, Any],
        mark: int,
        log: Sequence[Mapping[str, Any]],
        state: tuple[nn.Module, nn.Module, torch.optim.Optimizer],
    ) -> None:
        """The network to use, what is needed to go on, and the curve; each file whole or not at all.

        mark: looks at the validation that were due so far.  state: network, running average, optimiser.
        """
        write_log(folder / LOG, log)
        self.save(folder / TRAINING, state_tensors(*state), {**facts, "log": log, "mark": mark})
        self.save(folder / MODEL, state[1].state_dict(), facts)
        self.save_facts(folder, facts)

    def resume(
        self,
        folder: Path,
        mine: Mapping[str, Any],
        same: tuple[str, ...],
        state: tuple[nn.Module, nn.Module, torch.optim.Optimizer],
        *,
        remedy: str = REMEDY,
    ) -> dict[str, Any]:
        """Load what `save_training` wrote into ``state``; its facts.

        FileError where the facts named in ``same`` differ from ``mine``: it is another training;
        remedy: what to do then.
        """
        file = folder / TRAINING
        tensors, facts = self.load(file)
        require(facts, (*same, "step", "seconds", "log", "mark"), file)
        require_same(facts, mine, same, file, remedy=remedy)
        take_up(tensors, *state, file)
        return facts


def require_one_end(steps: int | None, minutes: float | None, error: type[XregError]) -> None:
    """Raise ``error`` unless a training ends after steps or after minutes, just one, and above zero."""
    if (steps is None) == (minutes is None):
        raise error(
            f"a training ends after steps or after minutes: give exactly one, got steps={steps} and "
            f"minutes={minutes}"
        )
    if not (minutes if steps is None else steps) > 0:
        raise error(f"steps and minutes must be positive, got {steps}, {minutes}")


def require_one_beginning(start: object, resume: bool, error: type[XregError]) -> None:
    """Raise ``error`` where a training shall both begin with other weights and go on with its own."""
    if resume and start is not None:
        raise error("resume goes on with what is in the folder; start begins anew: give one, not both")


def descend(
    net: nn.Module, optimiser: torch.optim.Optimizer, loss: Tensor, *, rate: float, clip: float
) -> None:
    """One step of the optimiser down a loss; none where the gradient is not finite.

    So a case that breaks a step does not break the network.  clip: greatest norm of the gradient.
    """
    for group in optimiser.param_groups:
        group["lr"] = rate
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    norm = nn.utils.clip_grad_norm_(net.parameters(), clip)
    if bool(torch.isfinite(norm)):
        optimiser.step()


def hand_back_memory(step: int) -> None:
    """Give memory that was freed back to the system, at every fiftieth step (of a training, or of reading).

    glibc before 2.38 seldom uses freed aligned memory again (its bug 14581): steps on films of many sizes
    came to hold 13 GB of which they used one.  Other C libraries are left alone.
    """
    if step % _TIDY == 0 and sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def looks_due(progress: float, looks: int) -> int:
    """How many of ``looks``, evenly over a training, are due at a part of its budget."""
    return math.floor(progress * looks + 1e-9)


def schedule(progress: float, warm_up: float) -> float:
    """The learning rate at a part of the budget: a line up from a little, then half a cosine down."""
    if progress < warm_up:
        return 0.05 + 0.95 * progress / warm_up
    return 0.5 * (1 + math.cos(math.pi * (progress - warm_up) / (1 - warm_up)))


def step_seed(seed: int, step: int, part: int = 0) -> int:
    """A seed of one part (a process, a sample) of one step, in [0, 2^63)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + part * 0x94D049BB133111EB) % 2**63


def step_generator(seed: int, step: int, part: int = 0) -> torch.Generator:
    """Random numbers of one part of one step."""
    return torch.Generator().manual_seed(step_seed(seed, step, part))


@contextlib.contextmanager
def drawing_from(seed: int) -> Iterator[None]:
    """Modules that take no generator (when they are made, or drop out) draw from a seed here.

    The global random state is as before afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.random.manual_seed(seed)
        yield


@torch.no_grad()
def follow(average: nn.Module, net: nn.Module, step: int, decay: float) -> None:
    """Move a running average of the weights towards `net`; at first it follows closely."""
    keep = min(decay, (1 + step) / (10 + step))
    for mine, newest in zip(average.parameters(), net.parameters(), strict=True):
        mine.lerp_(newest, 1 - keep)


def state_tensors(net: nn.Module, average: nn.Module, optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors that a training needs to go on, under the names that `take_up` knows."""
    tensors = {f"net.{k}": v for k, v in net.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.state_dict().items()}
    for number, state in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{number}.{k}": torch.as_tensor(v) for k, v in state.items()}
    return tensors


def take_up(
    tensors: Mapping[str, Tensor],
    net: nn.Module,
    average: nn.Module,
    optimiser: torch.optim.Optimizer,
    file: Path,
) -> None:
    """Load what `state_tensors` gave.  FileError where the networks have other layers."""
    load_weights(net, _part(tensors, "net."), file)
    load_weights(average, _part(tensors, "average."), file)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in _part(tensors, "adam.").items():
        number, _, key = name.partition(".")
        state.setdefault(int(number), {})[key] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})


def load_weights(net: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Give a network its weights; FileError where it has other layers."""
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise FileError(
            f"{file}: its network has other layers than the one asked for; take the same backbone, width and "
            f"size ({str(error).splitlines()[-1].strip()})"
        ) from error


def require(facts: Mapping[str, Any], names: tuple[str, ...], file: str | PathLike) -> None:
    """FileError where facts lack an entry."""
    if missing := [name for name in names if name not in facts]:
        raise FileError(f"{file}: lacks the entries {missing}; was it written by another version of xreg?")


def write_log(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """The curve of a training, a JSON object a line, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(
            "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines), encoding="utf-8"
        )


def read_log(folder: str | PathLike) -> list[dict[str, Any]]:
    """The lines of a training's log; FileError where there is none or a line is damaged."""
    file = Path(folder) / LOG
    try:
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines() if line]
    except (OSError, json.JSONDecodeError) as error:
        raise FileError(f"{file}: the log of a training cannot be read ({error})") from error


def require_same(
    known: Mapping[str, Any],
    mine: Mapping[str, Any],
    names: tuple[str, ...],
    file: Path,
    *,
    remedy: str = REMEDY,
) -> None:
    """FileError, with what to do next, where a training that shall go on was asked for with other facts."""
    for name in names:
        asked = json.loads(json.dumps(mine[name]))
        if known[name] != asked:
            other = _differences(known[name], asked, name)
            shown = "; ".join(other[:_SHOWN]) + (" …" if len(other) > _SHOWN else "")
            raise FileError(
                f"{file}: cannot be resumed, since its {name} differ from those asked for ({shown}); {remedy}"
            )


def _differences(known: Any, mine: Any, name: str) -> list[str]:
    """What differs between two readings of a JSON value, each with its place in it."""
    if isinstance(known, dict) and isinstance(mine, dict):
        keys = dict.fromkeys([*known, *mine])
        parts = [_differences(known.get(key, _NONE), mine.get(key, _NONE), f"{name}.{key}") for key in keys]
        return [one for part in parts for one in part]
    return [] if known == mine else [f"{name}: {_short(known)} there, {_short(mine)} asked for"]


def _short(value: Any) -> str:
    text = "nothing" if value is _NONE else json.dumps(value)
    return text if len(text) <= _LONG else f"{text[: _LONG - 1]}…"


def _part(tensors: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    return {k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}
