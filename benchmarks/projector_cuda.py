"""The projector on a card beside nanodrr's Triton backend: what `projector.py --device cuda` runs.

Each renderer gives two calls a mode: `eager`, through its public functions as a user calls it, and `kernels`,
on tensors that lie on the card, which a CUDA graph captures.  A dry run takes the same way on the CPU.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from common import PHANTOM, describe_run, find_ct, load_ct, write_json
from cuda_timing import describe_card, kernel_time, peak_mb, sample_wall
from projector_cuda_report import floor_us, goals, show
from renderers import SAMPLES
from rich.console import Console
from torch import Tensor
from views import EVERY, SDD, SIZES, SOD, VIEWS, batch_camera, make_camera, references, relative_error

import xreg
from xreg.geometry import Camera
from xreg.ops import registry
from xreg.ops.project import INTEGRATORS, metric_of, project
from xreg.ops.reference import pixel_rays
from xreg.renderer import Beam, rays_in_volume
from xreg.volume import Volume

MODES = ("forward", "pose", "volume")
Calls = dict[str, Callable[[], object]]


@dataclass
class Own:
    """xreg with one way to integrate; `atlas` reads 16-bit voxels from textures."""

    volume: Volume
    beam: Beam
    atlas: object = None

    def __post_init__(self) -> None:
        samples = f" {self.beam.samples}" if self.beam.integrator == "trilinear" else ""
        self.name = f"xreg {self.beam.integrator}{samples} {self.beam.storage}"
        self.name += " texture" if self.atlas is not None else ""
        whole = self.beam.storage == "int16"
        self.modes = ("forward",) if self.atlas is not None else ("forward", "pose") if whole else MODES
        self.device = self.volume.mu.device
        self.voxels, self.scale = self.volume.quantised() if whole else (self.volume.mu, 1.0)
        self.metric = metric_of(self.volume.affine[:3, :3])
        self.options = {
            "integrator": self.beam.integrator, "samples": self.beam.samples, "storage": self.beam.storage,
        }  # fmt: skip

    def eager(self, camera: Camera, weights: Tensor) -> Calls:
        """Through `xreg.drr`; camera and pose lie on the host, as a user has them."""

        def pose() -> Tensor:
            at = torch.eye(4, dtype=torch.float64, requires_grad=True)
            (xreg.drr(self.volume, camera, at, **self.options) * weights).sum().backward()
            return at.grad

        def volume() -> Tensor:
            leaf = replace(self.volume, mu=self.volume.mu.detach().requires_grad_())
            (xreg.drr(leaf, camera, **self.options) * weights).sum().backward()
            return leaf.mu.grad

        def forward() -> Tensor:
            with torch.no_grad():
                return xreg.drr(self.volume, camera, **self.options)

        return {"pose": pose, "volume": volume} | ({} if self.atlas is not None else {"forward": forward})

    def kernels(self, camera: Camera, weights: Tensor) -> Calls:
        """The operators on tensors on the card, from a pose on the card."""
        device = self.device
        basis = camera.ray_basis().to(device).expand(*camera.batch_shape, 6, 3)
        body = self.volume.index_from_world.expand(*camera.batch_shape, 4, 4).to(device).contiguous()
        first = torch.eye(6, 1, dtype=torch.float64, device=device)
        near_far = rays_in_volume(self.volume, camera)
        steps = _steps_of(self.volume, near_far, self.beam)
        words = {"scale": self.scale, "integrator": self.beam.integrator, "steps": steps}

        def render(at: Tensor, voxels: Tensor) -> Tensor:
            rays = basis @ at[:, :3, :3].transpose(1, 2) + first * at[:, None, :3, 3]
            return project(voxels, rays, self.metric, camera.size, **words)[0]

        def forward() -> Tensor:
            with torch.no_grad():
                if self.atlas is not None:
                    rays = basis @ body[:, :3, :3].transpose(1, 2) + first * body[:, None, :3, 3]
                    return self.atlas.project(rays, self.metric, camera.size)[0]
                return render(body, self.voxels)

        def pose() -> Tensor:
            at = body.detach().requires_grad_()
            return torch.autograd.grad((render(at, self.voxels) * weights).sum(), at)[0]

        def volume() -> Tensor:
            leaf = self.voxels.detach().requires_grad_()
            return torch.autograd.grad((render(body, leaf) * weights).sum(), leaf)[0]

        return {"forward": forward, "pose": pose, "volume": volume}


def _steps_of(volume: Volume, rays: Tensor, beam: Beam) -> int:
    from xreg.renderer import _depth_range, _groups

    count = rays.shape[:-2].numel()
    ((steps, _),) = _groups(beam, count, lambda: _depth_range(volume, rays))  # its views are all one
    return steps


class Nano:
    """nanodrr with a pose in float32; the volume in float32 or float16, its function compiled or not."""

    modes = MODES

    def __init__(self, volume: Volume, dtype: torch.dtype = torch.float32, compiled: bool = False) -> None:
        from nanodrr.data import Subject
        from nanodrr.drr import render

        backend = "triton" if volume.mu.is_cuda else "torch"
        if backend == "triton":
            import triton  # noqa: F401  without it nanodrr would fail at its first image
        short = {torch.float32: "f32", torch.float16: "f16 voxels"}[dtype]
        self.name = f"nanodrr {backend} {short}" + (" compiled" if compiled else "")
        mu = volume.mu.detach().to(dtype)[None, None]
        self.device = mu.device
        self.subject = Subject(
            mu, torch.zeros_like(mu), volume.affine.float(), volume.index_from_world.float(),
            Subject._make_voxel_to_grid(mu.shape), volume.center.float(), 0, convert_to_mu=False,
        ).to(self.device)  # fmt: skip
        self.subject._image_hu = self.subject._image_hu.to(dtype)
        self.render = torch.compile(render) if compiled else render
        self.words = {"n_samples": SAMPLES, "backend": backend}

    def eager(self, camera: Camera, weights: Tensor) -> Calls:
        """Its `render`, with matrices that lie on the card already."""
        from nanodrr.camera.intrinsics import make_k_inv

        from xreg.geometry.conventions import nanodrr

        device = self.device
        p = nanodrr.from_camera(camera[0])
        k_inv = make_k_inv(p.sdd, p.delx, p.dely, p.x0, p.y0, p.height, p.width, dtype=torch.float32)
        k_inv = k_inv.expand(len(camera), 3, 3).contiguous().to(device)
        sdd = torch.full((len(camera),), p.sdd, dtype=torch.float32, device=device)
        rt_inv = torch.linalg.inv(camera.camera_from_world).float().to(device)

        def image(at: Tensor) -> Tensor:
            return self.render(self.subject, k_inv, at, sdd, *camera.size, **self.words)[:, 0]

        def forward() -> Tensor:
            with torch.no_grad():
                return image(rt_inv)

        def pose() -> Tensor:
            at = rt_inv.detach().requires_grad_()
            return torch.autograd.grad((image(at) * weights).sum(), at)[0]

        def volume() -> Tensor:
            voxels = self.subject._image_hu.requires_grad_()
            try:
                return torch.autograd.grad((image(rt_inv) * weights).sum(), voxels)[0]
            finally:
                voxels.requires_grad_(False)

        return {"forward": forward, "pose": pose, "volume": volume}

    kernels = eager


def open_renderers(volume: Volume, console: Console) -> tuple[list, dict[str, str]]:
    """xreg's ways and nanodrr's, and why some are missing."""
    makers: dict[str, Callable] = {}
    for name, samples in (("trilinear", SAMPLES), ("joseph", SAMPLES), ("exact", SAMPLES)):
        for store in ("int16", "float"):
            beam = Beam(name, samples, store)
            makers[f"xreg {name} {store}"] = lambda beam=beam: Own(volume, beam)
    makers["xreg joseph int16 texture"] = lambda: _with_atlas(volume)
    makers["nanodrr f32"] = lambda: Nano(volume)
    makers["nanodrr f16 voxels"] = lambda: Nano(volume, torch.float16)
    if volume.mu.is_cuda:
        makers["nanodrr f32 compiled"] = lambda: Nano(volume, compiled=True)
    found, skipped = [], {}
    for name, make in makers.items():
        try:
            found.append(make())
        except Exception as error:  # what is absent is reported, never fatal
            skipped[name] = f"{type(error).__name__}: {error}"
            console.print(f"left out: {name} ({skipped[name]})")
    return found, skipped


def _with_atlas(volume: Volume) -> Own:
    from xreg.ops.atlas import Atlas

    return Own(volume, Beam("joseph"), Atlas(*volume.quantised()))


def matched(volume: Volume, nano: Nano, camera: Camera, truth: Tensor, every: int) -> Own | None:
    """xreg's trilinear with the fewest samples, in steps of 5 %, whose error is at most nanodrr's."""
    limit = _error_of(nano, camera, truth, every)
    for samples in sorted({SAMPLES, *(round(200 * 1.05**n) for n in range(60))}):
        one = Own(volume, Beam("trilinear", samples))
        if _error_of(one, camera, truth, every) <= limit:
            one.name = "xreg trilinear matched int16"
            return one
    return None


def _error_of(one, camera: Camera, truth: Tensor, every: int) -> float:
    """Of a batch's first image, which is the view itself."""
    weights = torch.ones(1, device=one.device)
    image = one.kernels(camera, weights)["forward"]()[0, ::every, ::every].cpu()
    return relative_error(image, truth)


def planes_of(volume: Volume, camera: Camera) -> float:
    """How many planes across their dominant axis all rays of a view cross in the volume: Joseph's samples.

    The integral of ones by Joseph's rule is the sum of the planes' shares times mm a plane.
    """
    ones = torch.ones(volume.shape)
    rays = rays_in_volume(volume, camera).reshape(-1, 6, 3)
    metric = metric_of(volume.affine[:3, :3])
    image = project(ones, rays, metric, camera.size, integrator="joseph", steps=1)[0]
    direction = pixel_rays(rays, *camera.size)[1]
    mm = (direction @ volume.affine[:3, :3].T).norm(dim=-1)
    return float((image.double() / mm * direction.abs().amax(-1)).sum())


def measure(one, mode: str, camera: Camera, weights: Tensor, repeats: int) -> dict:
    """Times and memory of one renderer in one mode; or why there are none."""
    eager, kernels = one.eager(camera, weights).get(mode), one.kernels(camera, weights)[mode]
    try:
        row = {
            "kernel": kernel_time(kernels, one.device, repeats),
            "wall": None if eager is None else sample_wall(eager, one.device, repeats),
        }
        return row | {"peak_mb": peak_mb(kernels, one.device)}
    except RuntimeError as error:  # out of memory is one
        if one.device.type == "cuda":
            torch.cuda.empty_cache()
        return {"failed": f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"}


def rows_of(one, key: dict, camera: Camera, weights: Tensor, truth: Tensor, repeats: int) -> list[dict]:
    """One row a mode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            error = _error_of(one, camera, truth, EVERY[key["size"]])
        except Exception as problem:  # a peer that does not compile here, or has no memory, ends nothing
            why = f"{type(problem).__name__}: {str(problem)[:200]}"
            return [{**key, "mode": mode, "error": None, "failed": why} for mode in one.modes]
        return [
            {**key, "mode": mode, "error": error, **measure(one, mode, camera, weights, repeats)}
            for mode in one.modes
        ]


def measure_view(renderers: list, camera: Camera, key: dict, truth: Tensor, repeats: int) -> list[dict]:
    """All renderers on one view and batch, one after another."""
    generator = torch.Generator().manual_seed(0)
    weights = torch.rand(len(camera), *camera.size, generator=generator)
    rows = []
    for one in renderers:
        rows += rows_of(one, {"renderer": one.name, **key}, camera, weights.to(one.device), truth, repeats)
    return rows


def run_on_card(ct, repeats, views, sizes, batches, out: Path, dry_run: bool, console: Console) -> None:
    """Measure, and write and show what came out."""
    device = "cuda"
    if dry_run:
        device, ct, repeats, views, sizes, batches = "cpu", ct or PHANTOM, 1, ["45"], ["w16"], [1, 2]
    elif not torch.cuda.is_available():
        raise SystemExit("torch finds no CUDA card here; --dry-run shows that the measurement works")
    registry.load()
    path = find_ct(ct)
    host = load_ct(path)
    run = describe_run(path, host)
    volume = host.to(device)
    renderers, skipped = open_renderers(volume, console)
    console.print("float64 references, on the CPU ...")
    cameras = {(v, s): make_camera(host, v, s) for s in sizes for v in views}
    truths = {key[0]: truth for key, (truth, _) in references(host, cameras).items() if key[1]}
    samples = {key: planes_of(host, camera) for key, camera in cameras.items()}
    card, rows = describe_card(device), []
    nano = next((r for r in renderers if isinstance(r, Nano)), None)
    for (view, size), truth in truths.items():
        extra = None
        if nano is not None:
            try:
                extra = matched(volume, nano, batch_camera(host, view, size, 1), truth, EVERY[size])
            except Exception as problem:  # a peer that fails ends nothing
                console.print(
                    f"{size} {view}: nothing is matched to nanodrr ({type(problem).__name__}: {problem})"
                )
        for count in batches:
            key = {"view": view, "size": size, "batch": count}
            camera = batch_camera(host, view, size, count)
            rows += measure_view([*renderers, *([extra] if extra else [])], camera, key, truth, repeats)
            console.print(f"{size} {view}, batch {count}: done")
    result = {
        "schema": "xreg.benchmark.projector_cuda/1", "run": run, "card": card, "dry_run": dry_run,
        "geometry": {"sdd_mm": SDD, "sod_mm": SOD, "sizes": SIZES, "views_deg": VIEWS, "error_every": EVERY},
        "samples": SAMPLES, "integrators": list(INTEGRATORS), "skipped": skipped, "rows": rows,
        "floors": [
            {"view": v, "size": s, "samples": n, "us": floor_us(n, card)} for (v, s), n in samples.items()
        ],
    }  # fmt: skip
    result["goals"] = goals(result)
    write_json(out, result)
    show(result, console)
