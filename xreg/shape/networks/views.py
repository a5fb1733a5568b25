"""Films with the geometry that a network needs: where each voxel of a grid lies in each film.

Films are turned the same way round first (columns and rows are flipped, never interpolated), so that one
encoder serves stored images of any orientation, and a mirrored patient is an ordinary case.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from xreg.errors import ImageError, ShapeError
from xreg.geometry import Camera
from xreg.io.voxel_grid import VoxelGrid

RAY_CHANNELS = 10  # beam, columns, rows (three numbers each), and the logarithm of a pixel's size
FILM_CHANNELS = 1 + RAY_CHANNELS + 2  # the film, its geometry, and where in the film a pixel lies
TOWARDS = (0.5**0.5, 0.5**0.5, 0.0)  # columns run to the right or to the front: half-way between both views
USUAL_MM = 2.5  # a pixel, of which the logarithm is zero
_TENSORS = ("films", "matrices", "rays", "place", "flips")


@dataclass(frozen=True, eq=False)
class Views:
    """A batch of cases with V films each.

    films [B, V, H, W] float32.  matrices [B, V, 3, 4]: index (i, j, k, 1) of the grid to homogeneous pixels.
    rays [B, V, 10]: unit vectors (world) of the beam and of growing columns and rows, log of a pixel's size
    at the grid's middle.  place [B, 3, 4]: index to mm from the grid's middle.  flips [B, V, 2]: whether rows
    and columns were reversed against the films that were given.  shape: of the grid (D, H, W).
    """

    films: Float[Tensor, "B V H W"]
    matrices: Float[Tensor, "B V 3 4"]
    rays: Float[Tensor, "B V 10"]
    place: Float[Tensor, "B 3 4"]
    flips: Bool[Tensor, "B V 2"]
    shape: tuple[int, int, int]

    @property
    def crossing(self) -> float:
        """The greatest sine of the angle between two beams of the first case; 0 of one film."""
        beams = self.rays[0, :, :3].double()
        return float(torch.linalg.cross(beams[:, None], beams[None], dim=-1).norm(dim=-1).max())

    @classmethod
    def of(
        cls,
        films: Float[Tensor, "V H W"],
        cameras: Sequence[Camera],
        grid: VoxelGrid,
        *,
        mirror: bool = False,
    ) -> Views:
        """One case.  mirror: as if the patient's left and right were exchanged (along the grid's i axis).

        The labels of a mirrored case are those of the case with i reversed and sides swapped.  Raises
        ImageError where films and cameras do not fit.
        """
        if films.ndim != 3 or films.shape[0] != len(cameras) or not cameras:
            raise ImageError(
                f"films must be [V, H, W], a camera each, got {tuple(films.shape)} and {len(cameras)} cameras"
            )
        change = torch.eye(4, dtype=torch.float64)
        if mirror:
            change[0, 0], change[0, 3] = -1.0, grid.shape[2] - 1
        parts = [_view(f, c, grid, change, mirror) for f, c in zip(films, cameras, strict=True)]
        seen, matrices, rays, flips = (torch.stack(part)[None] for part in zip(*parts, strict=True))
        middle = torch.tensor([(n - 1) / 2 for n in grid.size], dtype=torch.float64)
        place = torch.cat([grid.affine[:3, :3], -(grid.affine[:3, :3] @ middle)[:, None]], 1)
        known = {"device": films.device, "dtype": torch.float32}
        return cls(seen, matrices.to(**known), rays.to(**known), place[None].to(**known), flips, grid.shape)

    @classmethod
    def batch(cls, cases: Sequence[Views]) -> Views:
        """Several cases as one; ShapeError where films or grids have different sizes."""
        sizes = {(tuple(case.films.shape[1:]), case.shape) for case in cases}
        if len(sizes) != 1:
            raise ShapeError(
                f"cases of a batch must have films and grids of one size, got {sorted(sizes)} (V, H, W; "
                "grid D, H, W); take a batch of one, or prepare samples of one size"
            )
        parts = {name: torch.cat([getattr(case, name) for case in cases]) for name in _TENSORS}
        return cls(**parts, shape=cases[0].shape)

    def to(self, device: torch.device | str) -> Views:
        """The views on another device."""
        return replace(self, **{name: getattr(self, name).to(device) for name in _TENSORS})

    def with_films(self, films: Float[Tensor, "B V H W"]) -> Views:
        """The same geometry with other grey values."""
        return replace(self, films=films)

    def scaled(self, factor: float) -> Views:
        """As if patient and machine were larger by a factor: films, and voxels' places in them, stay."""
        return replace(self, rays=self._rays_of(factor), place=self.place * factor)

    def reframed(self, zoom: float, start: Float[Tensor, 3]) -> Views:
        """One case on a grid of as many voxels, ``zoom`` times as large, from voxel ``start`` (i, j, k) on.

        Each film is zoomed as much about the pixel of the new grid's middle, which comes to its own middle;
        what lies beyond it is black.
        """
        known = {"device": self.place.device}
        change = torch.eye(4, **known)
        change[:3, :3] *= zoom
        change[:3, 3] = start
        middle = torch.tensor([*((n - 1) / 2 for n in self.shape[::-1]), 1.0], **known)
        place = self.place @ change
        place[..., 3] -= place @ middle
        matrices = self.matrices @ change
        height, width = self.films.shape[-2:]
        half = torch.tensor([(width - 1) / 2, (height - 1) / 2], **known)
        seen = matrices @ middle
        at = seen[..., :2] / seen[..., 2:]
        depth = matrices[..., 2:, :]
        about = matrices[..., :2, :] - at[..., None] * depth
        matrices = torch.cat([about / zoom + half[:, None] * depth, depth], -2)
        move = torch.zeros(*at.shape[:2], 2, 3, **known)
        move[..., 0, 0] = move[..., 1, 1] = zoom
        move[..., 2] = 2 * (at - half) / torch.tensor([width, height], **known)
        flat = self.films.flatten(0, 1)[:, None]
        moved = F.affine_grid(move.flatten(0, 1), flat.shape, align_corners=False)
        films = F.grid_sample(flat, moved, align_corners=False)[:, 0].reshape(self.films.shape)
        return replace(self, films=films, matrices=matrices, rays=self._rays_of(zoom), place=place)

    def _rays_of(self, factor: float) -> Float[Tensor, "B V 10"]:
        """The films' numbers with pixels larger by a factor."""
        return torch.cat([self.rays[..., :-1], self.rays[..., -1:] + math.log(factor)], -1)

    def turned(self, maps: Float[Tensor, "B V K H W"]) -> Float[Tensor, "B V K H W"]:
        """Maps of the films as they were given, the way round that they are here; and back."""
        rows, columns = (self.flips[:, :, n, None, None, None] for n in (0, 1))
        maps = torch.where(rows, maps.flip(-2), maps)
        return torch.where(columns, maps.flip(-1), maps)

    def inputs(self) -> Float[Tensor, "N 13 H W"]:
        """What the film encoder reads, of all films of all cases."""
        return film_inputs(self.films.flatten(0, 1), self.rays.flatten(0, 1))

    def pixels(self, index: Float[Tensor, "B N 3"]) -> tuple[Float[Tensor, "B V N 2"], Bool[Tensor, "B V N"]]:
        """Where voxels lie in the films, from -1 to 1 between the films' outer edges, and whether inside."""
        height, width = self.films.shape[-2:]
        ones = torch.ones_like(index[..., :1])
        found = torch.einsum("bvij,bnj->bvni", self.matrices, torch.cat([index, ones], -1))
        ahead = found[..., 2] > 1e-6
        depth = torch.where(ahead, found[..., 2], 1.0)
        size = found.new_tensor([width, height])
        at = (2 * found[..., :2] / depth[..., None] + 1) / size - 1
        return at, ahead & (at.abs() <= 1).all(-1)


def film_inputs(films: Float[Tensor, "N H W"], rays: Float[Tensor, "N 10"]) -> Float[Tensor, "N 13 H W"]:
    """What the film encoder reads: film, geometry, and each pixel's place.

    Places run from -1 to 1 over the film: convolutions can then tell high from low, and left from right.
    """
    n, h, w = films.shape
    lines = [torch.linspace(-1, 1, m, device=films.device) for m in (h, w)]
    place = torch.stack(torch.meshgrid(*lines, indexing="ij")).expand(n, 2, h, w)
    return torch.cat([films[:, None], rays[..., None, None].expand(n, RAY_CHANNELS, h, w), place], 1)


def fitted(
    films: Float[Tensor, "V H W"], cameras: Sequence[Camera], grid: VoxelGrid
) -> tuple[Float[Tensor, "V h w"], tuple[Camera, ...]]:
    """Films averaged over blocks of pixels until a pixel is about a voxel; they stay where that is so.

    Networks are trained on such films, and finer ones would be another scale to them.
    """
    return averaged(films, cameras, sum(grid.spacing) / 3, grid.center)


def averaged(
    films: Float[Tensor, "V H W"], cameras: Sequence[Camera], size_mm: float, point: Float[Tensor, " 3"]
) -> tuple[Float[Tensor, "V h w"], tuple[Camera, ...]]:
    """Films averaged over blocks of pixels until a pixel is about ``size_mm`` at a point."""
    sizes = [pixel_mm(camera, point) for camera in cameras]
    n = int(max(1, min(size_mm / max(sizes) + 0.5, *(min(c.size) // 8 for c in cameras))))
    if n == 1:
        return films, tuple(cameras)
    height, width = (m // n * n for m in films.shape[-2:])
    small = F.avg_pool2d(films[:, None, :height, :width], n)[:, 0]
    return small, tuple(camera.bin(n) for camera in cameras)


def pixel_mm(camera: Camera, point: Float[Tensor, " 3"]) -> float:
    """The size of a pixel at a point."""
    return 1 / float(_slopes(camera.projection_matrix.detach().cpu(), point).norm(dim=1).mean())


def _view(
    film: Tensor, camera: Camera, grid: VoxelGrid, change: Tensor, mirror: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A film the usual way round, its matrix from the grid's index, its ten numbers, how it was turned."""
    if camera.batch_shape or tuple(camera.size) != tuple(film.shape):
        raise ImageError(
            f"a film of {tuple(film.shape)} px (H, W) needs one camera of that size, got "
            f"{tuple(camera.size)} in a batch of {tuple(camera.batch_shape)}"
        )
    matrix = camera.projection_matrix.detach().cpu()
    slopes = _slopes(matrix, grid.center)
    beam = camera.camera_from_world.detach().cpu()[2, :3].clone()
    matrix = matrix @ grid.affine @ change
    if mirror:  # the world's normal of the plane that maps onto itself
        normal = grid.affine[:3, 0] / grid.affine[:3, 0].norm()
        turn = torch.eye(3, dtype=torch.float64) - 2 * normal[:, None] * normal
        slopes, beam = slopes @ turn, turn @ beam
    height, width = film.shape
    columns = float(slopes[0] @ torch.tensor(TOWARDS, dtype=torch.float64)) < 0
    rows = float(slopes[1, 2]) > 0  # they shall run to the feet
    flips = torch.tensor([rows, columns])
    u = (width - 1) * matrix[2] - matrix[0] if columns else matrix[0]
    v = (height - 1) * matrix[2] - matrix[1] if rows else matrix[1]
    film = film.flip([axis for axis in (0, 1) if flips[axis]])
    slopes = torch.where(flips.flip(0)[:, None], -slopes, slopes)
    length = slopes.norm(dim=1)
    size = -length.log().mean() - math.log(USUAL_MM)
    rays = torch.cat([beam, *(slopes / length[:, None]), size[None]])
    return film, torch.stack([u, v, matrix[2]]), rays, flips


def _slopes(matrix: Float[Tensor, "3 4"], point: Float[Tensor, " 3"]) -> Float[Tensor, "2 3"]:
    """How a point's pixel (u, v) moves with the point, px a mm."""
    u, v, depth = (matrix[:, :3] @ point + matrix[:, 3]).tolist()
    if depth <= 0:
        raise ImageError("a camera does not face the grid: its middle lies behind the source")
    return (matrix[:2, :3] - torch.tensor([[u], [v]], dtype=torch.float64) / depth * matrix[2, :3]) / depth
