"""What a network is made of, and what it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor

from xreg.errors import ShapeError

if TYPE_CHECKING:
    from xreg.shape.networks.heads import FilmMaps

KINDS = ("rays", "swin_x2s")


@dataclass(frozen=True)
class NetworkSettings:
    """The parts of a network.

    kind: 'rays', our own, for any cameras; or 'swin_x2s', the baseline for two orthogonal films and one grid.

    rays: film_widths, channels of the film encoder's levels, each half as fine as the one before; features,
    channels carried into space; cells, of the 3D network along the grid's longest edge; space_widths,
    channels of its levels; hidden, of the head that answers at a voxel; orders, whether the number along a
    row of bones (which is learned in any case) moves their logits.

    swin_x2s: width, channels after the patch embedding; depths and heads a stage; window, in tokens; grid
    (D, H, W), which its weights depend on.
    """

    kind: str = "rays"
    film_widths: tuple[int, ...] = (24, 32, 64, 96, 128, 160)
    features: int = 32
    cells: int = 40
    space_widths: tuple[int, ...] = (24, 48, 96, 128)
    hidden: int = 96
    orders: bool = False
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    grid: tuple[int, int, int] = (160, 128, 128)

    def __post_init__(self) -> None:
        for name in ("film_widths", "space_widths", "depths", "heads", "grid"):
            object.__setattr__(self, name, tuple(int(n) for n in getattr(self, name)))
        if self.kind not in KINDS:
            raise ShapeError(f"kind of a network must be one of {', '.join(KINDS)}, got {self.kind!r}")
        numbers = (*self.film_widths, *self.space_widths, self.features, self.cells, self.hidden, self.width)
        if min(numbers) < 1 or not self.film_widths or not self.space_widths:
            raise ShapeError(f"a network needs positive widths and at least one level each, got {self}")
        if len(self.depths) != 4 or len(self.heads) != 4 or len(self.grid) != 3:
            raise ShapeError(f"swin_x2s needs four depths, four heads and a grid (D, H, W), got {self}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` reads them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkSettings:
        """Read what `to_dict` wrote."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != known:
            raise ShapeError(f"a network needs the entries {sorted(known)}, got {data!r}")
        return cls(**data)


_SMALL, _LARGE = (2, 2, 6, 2), (2, 2, 18, 2)
# 'light' is for a training on a CPU.  Widths, depths and heads of Swin-X2S: its repository's configuration.
PRESETS: dict[str, NetworkSettings] = {
    "rays": NetworkSettings(),
    "rays-light": NetworkSettings(
        film_widths=(16, 32, 48, 64, 96, 128), features=24, cells=20, space_widths=(32, 64, 96), hidden=64
    ),
    "swin-x2s-tiny": NetworkSettings("swin_x2s", width=32, depths=_SMALL, heads=(1, 2, 4, 8)),
    "swin-x2s-small": NetworkSettings("swin_x2s", width=64, depths=_SMALL, heads=(2, 4, 8, 16)),
    "swin-x2s-base": NetworkSettings("swin_x2s", width=96, depths=_LARGE, heads=(3, 6, 12, 24)),
    "swin-x2s-large": NetworkSettings("swin_x2s", width=128, depths=_LARGE, heads=(4, 8, 16, 32)),
}


@dataclass(frozen=True, eq=False)
class Output:
    """What a network gives for training.

    logits: one [B, L, …] or, of a network that answers for each film, several.  maps: predictions in the
    films, or None.  levels [B, R, …]: numbers along rows of bones that follow each other, or None.
    """

    logits: tuple[Float[Tensor, "B L *n"], ...]
    maps: FilmMaps | None
    levels: Float[Tensor, "B R *n"] | None = None

    @property
    def combined(self) -> Float[Tensor, "B L *n"]:
        """The logits' mean, which is what counts."""
        return sum(self.logits) / len(self.logits)
