"""Radiographs from volumes: the renderer that a user holds.

`drr` joins a `Volume` (or plain arrays), cameras and poses to the projector of `xreg.ops`.  It lives in
`renderer.py`, and not in a module `drr`, because `xreg.drr` is the function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import GeometryError, VolumeError
from xreg.geometry import Camera, Rig, se3
from xreg.geometry._numbers import as_tensor, broadcast_shapes, tensor64
from xreg.ops.project import INTEGRATORS, metric_of, project, project_labels, push_forward
from xreg.volume import Volume

DEFAULT_SAMPLES = 500
ALIKE = 1.25  # views of a batch whose numbers of samples differ by less take the greatest of them


@dataclass(frozen=True)
class Beam:
    """How a view is integrated.

    integrator: 'trilinear' (fixed step), 'joseph', 'siddon' (voxels of constant value) or 'exact' (the
    trilinear field integrated exactly).  samples: for 'trilinear', how many over the depth that the volume
    fills between source and detector.  storage: 'int16' reads quantised voxels (a rounding of 2e-5 of the
    densest voxel, faster), 'float' the volume's own; a volume that requires grad is always read as it is.
    """

    integrator: str = "trilinear"
    samples: int = DEFAULT_SAMPLES
    storage: str = "int16"

    def __post_init__(self) -> None:
        if self.integrator not in INTEGRATORS:
            raise GeometryError(
                f"integrator must be one of {', '.join(INTEGRATORS)}, got {self.integrator!r}"
            )
        if not isinstance(self.samples, Integral) or self.samples < 2:
            raise GeometryError(f"samples must be a whole number of at least 2, got {self.samples!r}")
        object.__setattr__(self, "samples", int(self.samples))
        if self.storage not in ("int16", "float"):
            raise GeometryError(f"storage must be 'int16' or 'float', got {self.storage!r}")


@dataclass(frozen=True, eq=False)
class _View:
    """One camera (or batch) with a pose: its rays in voxel coordinates, and the depths where the volume lies.

    near, far: t in [0, 1] from source to detector, a view; the volume is out of its reach where near >= far.
    """

    camera: Camera
    pose: Float[Tensor, "*batch 4 4"]
    rays: Float[Tensor, "*batch 6 3"]
    near: Float[Tensor, "*batch"]
    far: Float[Tensor, "*batch"]


def rays_in_volume(
    volume: Volume, camera: Camera, world_from_body: Float[Tensor, "*batch 4 4"] | None = None
) -> Float[Tensor, "*batch 6 3"]:
    """The camera's rays in voxel coordinates of a volume: (s0, su, sv, d0, du, dv), float64.

    Cameras without a source-to-detector distance get one that ends behind the volume.  Gradients flow to
    the camera and the pose.
    """
    return _into_volume(volume, camera, pose_of(world_from_body, camera))[0]


def _into_volume(volume: Volume, camera: Camera, pose: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rays in voxel coordinates, the same in the world [..., 6, 3], and the 3x3 between their directions."""
    basis = camera.ray_basis(None if camera.sdd is not None else _depth_behind(volume, camera, pose))
    index_from_world = volume.index_from_world.to(basis.device) @ se3.inverse(pose)
    linear = index_from_world[..., :3, :3]
    rays = basis @ linear.transpose(-1, -2) + _at_source(basis) * index_from_world[..., None, :3, 3]
    return rays, basis, linear


def _at_source(basis: Tensor) -> Float[Tensor, "6 1"]:
    """1 for the row s0, the only point among a bundle's six vectors."""
    first = torch.zeros(6, 1, dtype=basis.dtype, device=basis.device)
    first[0] = 1.0
    return first


def drr(
    volume: Volume | tuple[Any, Any],
    camera: Camera | Rig | Sequence[Camera],
    world_from_body: Any = None,
    *,
    integrator: str = "trilinear",
    samples: int = DEFAULT_SAMPLES,
    storage: str = "int16",
    labels: str | None = None,
    energy_kev: float | None = None,
) -> Tensor | np.ndarray | list:
    """Render digitally reconstructed radiographs: line integrals of attenuation, no unit.

    volume: a `Volume`, or (mu [D, H, W] in 1/mm, affine [4, 4]) as arrays or tensors.  camera: one view or
    a batch [...]; or several of different sizes (a `Rig` or a list), which gives a list of images.
    world_from_body [..., 4, 4]: where the volume is (default: where its affine says), broadcast with the
    camera's batch.  Result: [..., H, W] float32 (float64 for a float64 volume read with storage='float').

    labels: None, or 'hard'/'soft' for one channel a label, [..., C, H, W], C = highest label + 1; channel
    0 is what has no label, and the channels add up to the image.  energy_kev: render at another photon
    energy than the volume's own.  integrator, samples, storage: see `Beam`.

    Gradients flow to the volume's mu, the camera and the pose.  Numpy arrays in (as the volume or the
    pose) give a numpy array out.  GeometryError if there is no view, or the volume lies outside every one.
    """
    beam = Beam(integrator, samples, storage)
    as_numpy = isinstance(world_from_body, np.ndarray)
    if not isinstance(volume, Volume):
        if not isinstance(volume, (tuple, list)) or len(volume) != 2:
            raise VolumeError(f"drr takes a Volume, or (mu, affine), got {type(volume).__name__}")
        as_numpy = as_numpy or isinstance(volume[0], np.ndarray)
        volume = Volume(mu=as_tensor(volume[0]), affine=volume[1])
    if energy_kev is not None:
        volume = volume.at_energy(energy_kev)
    views = _views(volume, camera, world_from_body)
    _require_seen(volume, views)
    images = [_render(volume, one, beam, labels) for one in views]
    if as_numpy:
        images = [image.detach().cpu().numpy() for image in images]
    return images[0] if isinstance(camera, Camera) else images


def drr_with_jacobian(
    volume: Volume,
    camera: Camera,
    world_from_body: Float[Tensor, "*batch 4 4"],
    *,
    center: Float[Tensor, " 3"] | None = None,
    beam: Beam = Beam(),
    more: Float[Tensor, "K 6 3"] | None = None,
) -> tuple[Float[Tensor, "*batch H W"], Float[Tensor, "*batch 6+K H W"]]:
    """Image and its derivative along the six directions of a pose step, from one march.

    The step is ξ = (ω rad, v mm) of `se3.retract(world_from_body, ξ, center)`; center: a world point (mm),
    by default where the pose puts the volume's middle.  more: derivatives of `rays_in_volume` with respect to
    K other things, a focal length for example, whose images follow the six.  Nothing carries gradients here.
    """
    with torch.no_grad():
        pose = pose_of(world_from_body, camera)
        if center is None:
            center = se3.apply(pose, volume.center.to(pose)[None])[..., 0, :]
        center = tensor64(center, "center", device=pose.device)
        rays, basis, linear = _into_volume(volume, camera, pose)
        _require_some(rays)
        rays_dot = rays_dot_of(basis, linear, center)
        if more is not None:
            rays_dot = torch.cat([rays_dot, more.expand(*rays_dot.shape[:-3], *more.shape[-3:])], -3)
        batch, count = rays.shape[:-2], rays_dot.shape[-3]
        mu, scale = _voxels(volume, beam)
        flat = rays.reshape(-1, 6, 3).to(mu.device, non_blocking=True)
        known = {"scale": scale, "integrator": beam.integrator, "moments": True}
        metric = metric_of(volume.affine[:3, :3])
        groups = _groups(beam, len(flat), lambda: _depth_range(volume, rays))
        image, moments = _launched(
            lambda some, steps: project(mu, some, metric, camera.size, steps=steps, **known), flat, groups
        )
        jacobian = push_forward(moments, rays_dot.expand(*batch, count, 6, 3).reshape(-1, count, 6, 3))
    return image.reshape(*batch, *camera.size), jacobian.reshape(*batch, count, *camera.size)


def rays_dot_of(basis: Tensor, linear: Tensor, center: Tensor) -> Float[Tensor, "*batch 6 6 3"]:
    """d rays / d ξ: moving the body by ξ moves the rays by -ξ, seen from the body."""
    arm = basis - _at_source(basis) * center.to(basis)[..., None, :]
    eye = torch.eye(3, dtype=basis.dtype, device=basis.device)
    turn = torch.linalg.cross(
        *torch.broadcast_tensors(arm[..., None, :, :], eye[:, None])
    )  # -(ω × x) = x × ω
    shift = torch.zeros(3, 6, 3, dtype=basis.dtype, device=basis.device)
    shift[:, 0] = -eye
    dot = torch.cat([turn, shift.expand_as(turn)], -3)
    return dot @ linear[..., None, :, :].transpose(-1, -2)


def pose_of(world_from_body: Any, camera: Camera) -> Float[Tensor, "*batch 4 4"]:
    """A pose as given by a user: float64 on the camera's device, checked; the identity for None."""
    if world_from_body is None:
        return torch.eye(4, dtype=torch.float64, device=camera.device)
    pose = tensor64(world_from_body, "world_from_body", device=camera.device, rows=True)
    se3.require_rigid(pose, "world_from_body")
    try:
        if pose.ndim > 2 and camera.batch_shape:
            broadcast_shapes(pose.shape[:-2], camera.batch_shape)
    except RuntimeError as error:
        raise GeometryError(
            f"poses of the batch {tuple(pose.shape[:-2])} do not broadcast with cameras of the batch "
            f"{tuple(camera.batch_shape)}"
        ) from error
    return pose


def _depth_behind(volume: Volume, camera: Camera, pose: Tensor) -> Tensor:
    """A source-to-detector distance (mm) that ends behind the whole volume.

    Rounded up by at most a part in 64, so that small moves change neither it nor where samples lie.
    """
    body_from_index = volume.affine.to(pose)
    corners = se3.apply(
        camera.camera_from_world @ pose @ body_from_index, _field_corners(volume, pose.device)
    )
    depth = corners[..., 2].amax(-1).clamp_min(1.0).detach()
    unit = torch.exp2(torch.floor(torch.log2(depth)) - 6)
    return torch.ceil(depth / unit) * unit


def _voxels(volume: Volume, beam: Beam) -> tuple[Tensor, float]:
    mu = volume.mu
    if beam.storage == "int16" and not mu.requires_grad:
        return volume.quantised()
    return mu.contiguous(), 1.0


def _depth_range(volume: Volume, rays: Float[Tensor, "*batch 6 3"]) -> tuple[Tensor, Tensor]:
    """The t in [0, 1] between which the volume lies, a view; empty where near >= far.

    Planes of constant t are parallel to the detector, so t is affine in the position.
    """
    rays = rays.detach()
    corners = _field_corners(volume, rays.device)
    s0, su, sv, d0, du, dv = rays.unbind(-2)
    across = torch.stack([torch.where(du.abs() > 0, du, su), torch.where(dv.abs() > 0, dv, sv)])
    normal = torch.linalg.cross(across[0], across[1])
    t = ((corners - s0[..., None, :]) * normal[..., None, :]).sum(-1) / (d0 * normal).sum(-1, keepdim=True)
    return t.amin(-1).clamp(0.0, 1.0), t.amax(-1).clamp(0.0, 1.0)


def _groups(
    beam: Beam, count: int, range_of: Callable[[], tuple[Tensor, Tensor]]
) -> list[tuple[int, list[int]]]:
    """How many samples lie between source and detector, and of which of `count` views.

    Each view gets at least the beam's samples where it sees the volume; views that need about as many share
    a number.
    """
    if beam.integrator != "trilinear":
        return [(1, list(range(count)))]
    near, far = range_of()
    depths = (far - near).flatten()
    needed = torch.ceil(beam.samples / depths.clamp_min(1e-3)).clamp_min(2)
    needed = torch.where(depths > 0, needed, 2).to(torch.int64).tolist()  # what sees nothing may join any
    groups: list[tuple[int, list[int]]] = []
    for view in sorted(range(len(needed)), key=needed.__getitem__, reverse=True):
        if not groups or (needed[view] > 2 and needed[view] * ALIKE < groups[-1][0]):
            groups.append((needed[view], []))
        groups[-1][1].append(view)
    return groups


def _launched(
    launch: Callable[[Tensor, int], Sequence[Tensor]],
    rays: Float[Tensor, "B 6 3"],
    groups: Sequence[tuple[int, list[int]]],
) -> Sequence[Tensor]:
    """What `launch(rays, steps)` gives for each group of views, in the order of the rays."""
    if len(groups) == 1:
        return launch(rays, groups[0][0])
    parts = [launch(rays[views], steps) for steps, views in groups]
    order = torch.tensor([view for _, views in groups for view in views]).argsort()
    return [torch.cat(each)[order.to(each[0].device)] for each in zip(*parts, strict=True)]


def require_in_beam(volume: Volume, camera: Camera | Sequence[Camera], world_from_body: Any = None) -> None:
    """GeometryError unless some view sees the volume: its box on the image, and in front of the detector."""
    _require_seen(volume, _views(volume, camera, world_from_body))


def _views(volume: Volume, camera: Camera | Rig | Sequence[Camera], world_from_body: Any) -> list[_View]:
    """What the check and the render of a view have in common, once."""
    views = []
    if not isinstance(camera, (Camera, Rig)) and not (
        isinstance(camera, Sequence) and all(isinstance(one, Camera) for one in camera)
    ):
        raise GeometryError(f"camera must be a Camera, a Rig or a list of cameras, got {camera!r:.80}")
    for one in [camera] if isinstance(camera, Camera) else camera:
        pose = pose_of(world_from_body, one)
        rays = _into_volume(volume, one, pose)[0]
        _require_some(rays)
        views.append(_View(one, pose, rays, *_depth_range(volume, rays)))
    if not views:
        raise GeometryError("camera must be one view or more, got an empty list")
    return views


def _require_some(rays: Float[Tensor, "*batch 6 3"]) -> None:
    if not rays.numel():
        raise GeometryError(
            f"cameras and poses must be one or more, got the batch {tuple(rays.shape[:-2])}, which has none"
        )


def _require_seen(volume: Volume, views: Sequence[_View]) -> None:
    seen = [_seen(volume, view) for view in views]
    if any(hit for hit, _ in seen):
        return
    raise GeometryError(
        f"the volume lies outside the beam of every view: {seen[0][1]}. Check the pose, the isocentre "
        "(volume.center is a good one) and the source and detector distances"
    )


def _seen(volume: Volume, view: _View) -> tuple[bool, str]:
    """Whether any view of a batch sees the volume, and where the volume is for them."""
    near, far, pose = view.near, view.far, view.pose
    corners = _field_corners(volume, pose.device) @ volume.affine[:3, :3].to(pose).T
    corners = corners + volume.affine[:3, 3].to(pose)
    pixels = view.camera.project(se3.apply(pose, corners)).detach()
    height, width = view.camera.size
    limit = torch.tensor([width - 0.5, height - 0.5], dtype=pixels.dtype, device=pixels.device)
    known = ~pixels.isnan().any(-1, keepdim=True)  # corners behind the source have no pixel
    low = torch.where(known, pixels, torch.inf).amin(-2)
    high = torch.where(known, pixels, -torch.inf).amax(-2)
    on_image = ((low <= limit) & (high >= -0.5)).all(-1) | ~known.all(-1).all(-1)
    depth = f"{float(near.min()):.2f} to {float(far.max()):.2f}"
    where = (
        f"its corners project to u {_range(low, high, 0)}, v {_range(low, high, 1)} px on an image of "
        f"{width} x {height} (W x H), and it fills t {depth} of the way from source to detector"
    )
    return bool(((near < far) & on_image).any()), where


def _field_corners(volume: Volume, device: torch.device) -> Float[Tensor, "8 3"]:
    """Corners, in voxel coordinates, of the box outside which the trilinear field is zero."""
    size = torch.tensor(volume.size, dtype=torch.float64, device=device)
    bits = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64, device=device)] * 3)
    return bits * (size + 1) - 1


def _range(low: Tensor, high: Tensor, axis: int) -> str:
    return f"{float(low[..., axis].min()):.0f} to {float(high[..., axis].max()):.0f}"


def _render(volume: Volume, view: _View, beam: Beam, labels: str | None) -> Tensor:
    rays, size = view.rays, view.camera.size
    batch = rays.shape[:-2]
    groups = _groups(beam, batch.numel(), lambda: (view.near, view.far))
    mu, scale = _voxels(volume, beam)
    flat = rays.reshape(-1, 6, 3).to(mu.device, non_blocking=True)
    known: dict[str, Any] = {"scale": scale, "integrator": beam.integrator}
    metric = metric_of(volume.affine[:3, :3])
    if labels is None:
        (image,) = _launched(
            lambda some, steps: project(mu, some, metric, size, steps=steps, **known)[:1], flat, groups
        )
        return image.reshape(*batch, *size)
    if labels not in ("hard", "soft"):
        raise VolumeError(f"labels must be None, 'hard' or 'soft', got {labels!r}")
    if volume.labels is None:
        raise VolumeError(f"labels={labels!r} needs a volume with labels; load it with mask=...")
    numbers, channels = volume.label_channels()
    known |= {"channels": channels, "soft": labels == "soft"}
    (image,) = _launched(
        lambda some, steps: (project_labels(mu, numbers, some, metric, size, steps=steps, **known),),
        flat,
        groups,
    )
    return image.reshape(*batch, channels, *size)
