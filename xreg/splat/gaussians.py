"""A body as a sum of Gaussians: its radiographs, its voxels, its files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GaussianError, GeometryError
from xreg.geometry import Camera, se3
from xreg.ops.project import push_forward
from xreg.ops.splatting import CUTOFF, splat, voxelize
from xreg.renderer import pose_of, rays_dot_of
from xreg.volume import Volume

MODES = ("exact", "affine")
_WIDTHS = {"mean": 3, "log_scale": 3, "rotation": 4}


@dataclass(frozen=True, eq=False, repr=False)
class Gaussians:
    """µ(x) = Σ density · exp(−½ |diag(e^−log_scale) Rᵀ (x − mean)|²) in 1/mm, in RAS+ mm.

    mean: [N, 3] mm.  log_scale: [N, 3], natural logarithm of the standard deviations in mm.  rotation: [N,
    4], quaternion (x, y, z, w) of R, whose columns are the Gaussian's axes; any norm but zero.  density: [N]
    in 1/mm, the attenuation at the mean, as it is: of any sign, and without an activation, because images and
    volumes are linear in it.  All float32 or all float64, on one device; all may require grad.  N may be
    zero. energy_kev: effective energy at which the attenuation is stated, None where it is not known.

    Raises GaussianError for another shape or dtype, a number that is not finite, or a quaternion of zero.
    """

    mean: Float[Tensor, "N 3"]
    log_scale: Float[Tensor, "N 3"]
    rotation: Float[Tensor, "N 4"]
    density: Float[Tensor, " N"]
    energy_kev: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, value in self.items():
            _check(name, value, self.mean)
        lengths = self.rotation.detach().norm(dim=-1)
        if not bool((lengths > 1e-8).all()):
            n = int((lengths <= 1e-8).nonzero()[0])
            raise GaussianError(
                "rotation must hold quaternions (x, y, z, w) of a norm above zero, got "
                f"{self.rotation[n].tolist()} for Gaussian {n}; (0, 0, 0, 1) is no rotation"
            )

    def items(self) -> Iterator[tuple[str, Tensor]]:
        """The four tensors with their names."""
        return iter({n: getattr(self, n) for n in ("mean", "log_scale", "rotation", "density")}.items())

    @classmethod
    def from_volume(cls, volume: Volume, count: int, **options: Any) -> Gaussians:
        """Gaussians that resemble a volume, without looking at an image; see `initialise.from_volume`."""
        from xreg.splat.initialise import from_volume

        return from_volume(volume, count, **options)

    @classmethod
    def load(cls, path: str | PathLike) -> Gaussians:
        """Read what `save` or `to_ply` wrote, by its suffix.  Raises FileError."""
        from xreg.splat import files

        return files.load(path)

    @classmethod
    def from_ply(cls, path: str | PathLike) -> Gaussians:
        """Read a 3D Gaussian splatting .ply, see `files.read_ply`.  Raises FileError."""
        from xreg.splat import files

        return files.read_ply(path)

    @property
    def scale(self) -> Float[Tensor, "N 3"]:
        """Standard deviations in mm along the axes."""
        return self.log_scale.exp()

    @property
    def center(self) -> Float[Tensor, " 3"]:
        """The mean of the means, weighed by |density| · volume, in RAS mm, float64; the origin where N is
        0.
        """
        weight = (self.density.detach().abs().double() * self.log_scale.detach().double().sum(-1).exp())[
            :, None
        ]
        return (weight * self.mean.detach().double()).sum(0) / weight.sum().clamp_min(1e-300)

    @property
    def detail_mm(self) -> float:
        """Edge of the cube that holds what the middle one of the Gaussians does at its peak density: √(2π) σ.

        It stands for a voxel's edge where the detail of a body counts; NaN where N is 0.
        """
        return math.sqrt(2 * math.pi) * float(self.log_scale.detach().mean(-1).exp().nanmedian())

    @property
    def device(self) -> torch.device:
        """Where they are, and their images are made."""
        return self.mean.device

    def __len__(self) -> int:
        return len(self.mean)

    def __repr__(self) -> str:
        dtype = str(self.mean.dtype).removeprefix("torch.")
        return f"Gaussians({len(self)}, {dtype} on {self.mean.device})"

    def to(self, device: torch.device | str | None = None, *, dtype: torch.dtype | None = None) -> Gaussians:
        """The same Gaussians on another device or in another floating dtype."""
        return replace(self, **{name: value.to(device=device, dtype=dtype) for name, value in self.items()})

    def detach(self) -> Gaussians:
        """The same numbers without their gradients."""
        return replace(self, **{name: value.detach() for name, value in self.items()})

    def widened(self, variance: float) -> Gaussians:
        """All convolved with a round Gaussian of this variance along each axis (mm²), or freed of one below
        zero; what each holds stays.  Raises GaussianError where a Gaussian is narrower than what is taken.
        """
        if variance == 0:
            return self
        if variance < 0 and float(self.scale.detach().amin() ** 2 if len(self) else 1) <= -variance:
            raise GaussianError(
                f"some Gaussians have less than the variance {-variance} mm² to be taken away"
            )
        scale, density = widened(self.scale, self.density, variance)
        return replace(self, log_scale=scale.log(), density=density)

    def rays(self, camera: Camera, world_from_body: Any = None) -> Float[Tensor, "*batch 6 3"]:
        """The camera's rays (s0, su, sv, d0, du, dv) in the body's mm, float64; gradients to camera and
        pose.
        """
        return _into_body(camera, pose_of(world_from_body, camera))[0]

    def render(
        self, camera: Camera, world_from_body: Any = None, *, mode: str = "exact", cutoff: float = CUTOFF
    ) -> Float[Tensor, "*batch H W"]:
        """Line integrals of the attenuation, no unit, [..., H, W] in the Gaussians' dtype.

        camera: a view or a batch.  world_from_body [..., 4, 4]: where the body is (default: where it says).
        mode: 'exact', the closed form, or 'affine', each projection taken as linear about its mean.  cutoff:
        sigmas beyond which a Gaussian is zero.  The line is not cut at the detector, and a Gaussian that is
        not wholly in front of the source is left out.  Gradients to all four tensors, to the camera and to
        the pose.  Raises GeometryError.
        """
        rays = self.rays(camera, world_from_body)
        image, _ = splat(
            *self._tensors(),
            self._flat(rays),
            camera.size,
            kind=_kind(camera, mode),
            cutoff=_above_zero(cutoff),
        )
        return image.reshape(*rays.shape[:-2], *camera.size)

    def render_with_jacobian(
        self,
        camera: Camera,
        world_from_body: Any = None,
        *,
        center: Float[Tensor, " 3"] | None = None,
        more: Float[Tensor, "K 6 3"] | None = None,
        cutoff: float = CUTOFF,
    ) -> tuple[Float[Tensor, "*batch H W"], Float[Tensor, "*batch 6+K H W"]]:
        """Image and its derivative along the six directions of a pose step, as
        `xreg.renderer.drr_with_jacobian`.

        The step is ξ = (ω rad, v mm) of `se3.retract(world_from_body, ξ, center)`; center: a world point
        (mm), by default where the pose puts `self.center`.  more: derivatives of `rays` with respect to K
        other things. Nothing carries gradients here.
        """
        with torch.no_grad():
            pose = pose_of(world_from_body, camera)
            if center is None:
                center = se3.apply(pose, self.center.to(pose)[None])[..., 0, :]
            rays, basis, linear = _into_body(camera, pose)
            dot = rays_dot_of(basis, linear, center)
            if more is not None:
                dot = torch.cat([dot, more.expand(*dot.shape[:-3], *more.shape[-3:])], -3)
            batch, count = rays.shape[:-2], dot.shape[-3]
            kind = _kind(camera, "exact")
            image, moments = splat(
                *self._tensors(),
                self._flat(rays),
                camera.size,
                kind=kind,
                cutoff=_above_zero(cutoff),
                moments=True,
            )
            jacobian = push_forward(moments, dot.expand(*batch, count, 6, 3).reshape(-1, count, 6, 3))
        return image.reshape(*batch, *camera.size), jacobian.reshape(*batch, count, *camera.size)

    def require_in_beam(self, cameras: Sequence[Camera], world_from_body: Any = None) -> None:
        """GeometryError unless the mean of some Gaussian in front of the source falls on some view."""
        for camera in cameras:
            pose = pose_of(world_from_body, camera)
            pixels = camera.project(se3.apply(pose, self.mean.detach().to(pose)))
            height, width = camera.size
            limit = torch.tensor([width - 0.5, height - 0.5], dtype=pixels.dtype, device=pixels.device)
            if bool(((pixels >= -0.5) & (pixels <= limit)).all(-1).any()):
                return
        raise GeometryError(
            f"none of {len(self)} Gaussians lies in the beam of any view; check the pose and the isocentre "
            f"(their middle is at {[round(c, 1) for c in self.center.tolist()]} mm)"
        )

    def voxelize(
        self, grid: Volume | tuple[Tensor, tuple[int, int, int]], *, cutoff: float = CUTOFF
    ) -> Float[Tensor, "D H W"]:
        """Attenuation in 1/mm at the voxel centres of a volume's grid, or of (affine [4, 4], (D, H, W)).

        Gradients to all four tensors.  Raises GeometryError and VolumeError.
        """
        affine, shape = (grid.affine, grid.shape) if isinstance(grid, Volume) else _grid(*grid)
        return voxelize(*self._tensors(), affine, shape, cutoff=_above_zero(cutoff))

    def to_volume(
        self, grid: Volume | tuple[Tensor, tuple[int, int, int]], *, cutoff: float = CUTOFF
    ) -> Volume:
        """As `voxelize`, as a `Volume`.  Raises VolumeError where no voxel is above zero."""
        affine = grid.affine if isinstance(grid, Volume) else grid[0]
        notes = {**self.provenance, "gaussians": len(self)}
        return Volume(
            self.voxelize(grid, cutoff=cutoff), affine, energy_kev=self.energy_kev, provenance=notes
        )

    def save(self, path: str | PathLike) -> None:
        """Write a .safetensors file with its metadata, or a .ply, by the suffix; atomic.  Raises
        FileError.
        """
        from xreg.splat import files

        files.save(path, self)

    def to_ply(self, path: str | PathLike) -> None:
        """Write a 3D Gaussian splatting .ply that viewers open, see `files.write_ply`.  Raises FileError."""
        from xreg.splat import files

        files.write_ply(path, self)

    def _tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.mean, self.scale, self.rotation, self.density

    def _flat(self, rays: Tensor) -> Tensor:
        return rays.reshape(-1, 6, 3).to(self.mean.device, non_blocking=True)


def widened(
    scale: Float[Tensor, "N 3"], density: Float[Tensor, " N"], variance: float
) -> tuple[Float[Tensor, "N 3"], Float[Tensor, " N"]]:
    """Scales and densities after a convolution with a round Gaussian (variance in mm²); with gradients."""
    wide = (scale.square() + variance).sqrt()
    return wide, density * (scale / wide).prod(-1)


def _into_body(camera: Camera, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rays in the body's mm, the same in the world [..., 6, 3], and the rotation between their directions."""
    basis = camera.ray_basis(1000.0 if camera.sdd is None else None)  # how long a ray is does not matter here
    body_from_world = se3.inverse(pose)
    rays = se3.rotate(body_from_world, basis)
    first = torch.zeros(6, 1, dtype=basis.dtype, device=basis.device)
    first[0] = 1.0
    return rays + first * body_from_world[..., None, :3, 3], basis, body_from_world[..., :3, :3]


def _kind(camera: Camera, mode: str) -> str:
    if mode not in MODES:
        raise GeometryError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    return "parallel" if camera.parallel else mode


def _above_zero(cutoff: float) -> float:
    if not 0.5 <= cutoff <= 12.0:
        raise GeometryError(f"cutoff must be between 0.5 and 12 sigmas, got {cutoff}")
    return float(cutoff)


def _grid(affine: Any, shape: Any) -> tuple[Tensor, tuple[int, int, int]]:
    from xreg.io.grid import check_affine

    sizes = tuple(int(n) for n in shape)
    if len(sizes) != 3 or min(sizes) < 1:
        raise GeometryError(f"the shape of a grid must be (D, H, W), each at least 1, got {shape}")
    return check_affine(affine), sizes


def _check(name: str, value: Any, mean: Any) -> None:
    width = _WIDTHS.get(name)
    shape = f"[N, {width}]" if width else "[N]"
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        found = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise GaussianError(f"{name} must be a float32 or float64 tensor {shape}, got {found}")
    if value.ndim != (2 if width else 1) or (width and value.shape[1] != width) or len(value) != len(mean):
        raise GaussianError(
            f"{name} must be {shape} with N = {len(mean)} as of mean, got {tuple(value.shape)}"
        )
    if value.dtype != mean.dtype or value.device != mean.device:
        raise GaussianError(
            f"{name} must have the dtype and device of mean, {mean.dtype} on {mean.device}, got "
            f"{value.dtype} on {value.device}"
        )
    if not bool(value.detach().isfinite().all()):
        rows = (~value.detach().reshape(len(value), -1).isfinite()).any(1)
        raise GaussianError(
            f"{name} must be finite, got NaN or infinity in {int(rows.sum())} of {len(value)} Gaussians, "
            f"first in number {int(rows.nonzero()[0])}; a fit that diverged has too large a step"
        )
