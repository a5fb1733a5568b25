"""Registers the radius and the ulna of a real wrist in biplane radiographs, and says how repeatable that is.

python benchmarks/wrist.py FOLDER      (see --help)

FOLDER holds Autoscoper's sample wrist: cam0N_FRAME.tif, xr_calib_wrist_cam0N.txt, radius.tif, ulna.tif.  No
true poses are published.  Each bone starts from two points clicked in each film, about which its turn is
unknown; a bone is also carried from the other frame by the motion of its neighbour, and the better answer
kept.  Answers are judged by their spread over random starts, by how far they move when both bones are
registered in one system, by how far one view alone ends from both, and by eye.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F
from common import RESULTS, write_json
from jaxtyping import Float
from PIL import Image
from torch import Tensor

import xreg
from xreg import Rig, Volume, se3
from xreg.geometry.conventions import autoscoper
from xreg.registration import Body, Level, Settings, register, register_bodies
from xreg.registration.search import apart_poses
from xreg.similarity import Term, scores

VOXEL = (0.39625, 0.39625, 0.625)  # mm along x, y and the slices
MU_AT_TOP = 0.06  # 1/mm of the brightest voxel; the similarity does not see this scale
SHRINK = 4  # of the films, to 440²
# The distal end and a point of the shaft, in px of the films as given: ((u, v) distal, (u, v) shaft) a view.
CLICKS = {
    ("radius", 2): (((935, 1202), (910, 1634)), ((608, 1202), (578, 1634))),
    ("ulna", 2): (((855, 1219), (805, 1634)), ((754, 1232), (737, 1634))),
    ("radius", 99): (((867, 1207), (885, 1634)), ((716, 1207), (634, 1634))),
    ("ulna", 99): (((779, 1207), (767, 1634)), ((855, 1244), (799, 1634))),
}
ASIDE = (8.0, 5.0)  # degrees, mm: random starts for the spread
SAME = (1.0, 2.5)  # mm, degrees: further from the answer than this is another answer


def terms(window: int) -> tuple[Term, ...]:
    """Gradients count most: other bones and soft tissue lie over the one that is sought."""
    return (Term("gradient", window, 0.6), Term("image", window, 0.4))


COMMON = {"length_scale": 25.0, "step_limit": (10.0, 8.0), "restarts": 0}
ROUGH = Settings(
    levels=(Level(110, terms(12), 12, 0.1), Level(220, terms(16), 10, 0.1)), shadow=6.0, **COMMON
)
FINE = Settings(
    levels=(Level(220, terms(16), 12, 0.02), Level(440, terms(20), 12, 0.01)), shadow=2.5, **COMMON
)
ROUNDS = 3  # of FINE: what is in the bone's shadow is decided at the start of each


@dataclass(frozen=True)
class Reach:
    """Where a search looks: about and along the bone's axes; coarse renders, and how many are refined."""

    radians: tuple[float, float, float]
    mm: tuple[float, float, float]
    samples: int
    heat: int

    @property
    def box(self) -> Float[Tensor, " 6"]:
        """Half of it."""
        return torch.tensor([*self.radians, *self.mm], dtype=torch.float64)


CLICKED = Reach((0.3, 0.3, math.pi), (8.0, 8.0, 10.0), 2048, 14)  # the turn about the shaft is unknown
BESIDE = Reach((math.radians(ASIDE[0]),) * 3, (ASIDE[1],) * 3, 192, 5)  # of a start that is roughly right


@dataclass
class Moment:
    """The two films of one frame, binned, with masks and cameras."""

    films: list[Tensor]
    masks: list[Tensor]
    rig: Rig


def load_rig(folder: Path) -> Rig:
    """The calibrated cameras, for films as given."""
    texts = [(folder / f"xr_calib_wrist_cam0{n}.txt").read_text() for n in (1, 2)]
    return Rig(tuple(autoscoper.to_camera(autoscoper.parse(text)) for text in texts))


def load_moment(folder: Path, rig: Rig, frame: int) -> Moment:
    """Line integrals up to a gain and an offset, without the dark surround."""
    films, masks = [], []
    for n in (1, 2):
        values = torch.from_numpy(np.array(Image.open(folder / f"cam0{n}_{frame:04d}.tif"), dtype=np.float32))
        dark = F.avg_pool2d((values < 25).float()[None], 41, 1, 20)[0] > 1e-3
        films.append(F.avg_pool2d(-torch.log((values / 255).clamp_min(0.02))[None], SHRINK)[0])
        masks.append(F.avg_pool2d((~dark).float()[None], SHRINK)[0] > 0.999)
    return Moment(films, masks, rig.map(lambda camera: camera.bin(SHRINK)))


def load_bone(folder: Path, name: str) -> Volume:
    """The bone; its slices run from the wrist to the elbow, and its axes are right-handed as stored."""
    stack = Image.open(folder / f"{name}.tif")
    slices = []
    for n in range(stack.n_frames):
        stack.seek(n)
        slices.append(np.array(stack, dtype=np.float32))
    return Volume(torch.from_numpy(np.stack(slices)) / 4095 * MU_AT_TOP, np.diag([*VOXEL, 1.0]))


def first_guess(rig: Rig, clicks: tuple, bone: Volume) -> Float[Tensor, "4 4"]:
    """The bone along the clicked line; its turn about that is arbitrary."""
    ends = [
        rig.triangulate([torch.tensor([view[k]], dtype=torch.float64) for view in clicks])[0][0]
        for k in (0, 1)
    ]
    z = (ends[1] - ends[0]) / (ends[1] - ends[0]).norm()
    x = torch.linalg.cross(z, torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64))
    x = x / x.norm()
    rotation = torch.stack([x, torch.linalg.cross(z, x), z], 1)
    middle = ends[0] + z * bone.extent[2] / 2
    return se3.from_rt(rotation, middle - rotation @ bone.center)


def scattered(pose: Tensor, bone: Volume, reach: Reach, count: int, seed: int) -> Float[Tensor, "N 4 4"]:
    """Poses spread evenly about one, each axis of the bone within its reach."""
    engine = torch.quasirandom.SobolEngine(6, scramble=True, seed=seed)
    x = (2 * engine.draw(count, dtype=torch.float64) - 1) * reach.box
    home = se3.from_translation(bone.center)
    return pose @ home @ se3.exp(x) @ se3.inverse(home)


def search(bone: Volume, moment: Moment, guess: Tensor, reach: Reach) -> tuple[Tensor, list[float]]:
    """The best of many coarse renders about a guess, refined; and the scores of the best few."""
    poses = torch.cat([guess[None], scattered(guess, bone, reach, reach.samples, 0)])
    coarse, total = bone.resample(1.2), torch.zeros(len(poses))
    for film, mask, camera in zip(moment.films, moment.masks, moment.rig, strict=True):
        small = F.avg_pool2d(film[None], 4)[0]
        valid = F.avg_pool2d(mask.float()[None], 4)[0] > 0.999
        for part in torch.arange(len(poses)).split(200):
            images = xreg.drr(coarse, camera.bin(4), poses[part], integrator="joseph")
            total[part] += scores(images, small, valid, terms(12)) / 2
    order = total.argsort(descending=True)[: 6 * reach.heat]
    found = []
    for start in apart_poses([poses[i] for i in order], reach.heat, bone.center, 8.0, 4.0):
        out = register(bone, moment.films, moment.rig, start, mask=moment.masks, settings=ROUGH)
        found.append((out.score, out.world_from_body))
    found.sort(key=lambda pair: -pair[0])
    return found[0][1], [score for score, _ in found[:4]]


def settle(bone: Volume, films, cameras, masks, start: Tensor) -> tuple[Tensor, float]:
    """From a rough start to the answer: its pose and score."""
    pose = register(bone, films, cameras, start, mask=masks, settings=ROUGH).world_from_body
    for _ in range(ROUNDS):
        out = register(bone, films, cameras, pose, mask=masks, settings=FINE)
        pose = out.world_from_body
    return pose, out.score


def answer_of(bone: Volume, moment: Moment, guess: Tensor, reach: Reach) -> tuple[Tensor, float]:
    """Search about a guess, and settle: pose and score."""
    rough, _ = search(bone, moment, guess, reach)
    return settle(bone, moment.films, moment.rig, moment.masks, rough)


def answers_of(bones: dict, moments: dict, rig: Rig, samples: int) -> dict:
    """{(bone, frame): (pose, score)} from the clicks, then from the other frame where that is better."""
    reach, found = replace(CLICKED, samples=samples), {}
    for (name, frame), clicks in CLICKS.items():
        guess = first_guess(rig, clicks, bones[name])
        found[name, frame] = answer_of(bones[name], moments[frame], guess, reach)
    for name, frame in CLICKS:
        beside = next(other for other in bones if other != name)
        before = next(other for other in moments if other != frame)
        motion = found[beside, frame][0] @ se3.inverse(found[beside, before][0])
        carried = answer_of(bones[name], moments[frame], motion @ found[name, before][0], BESIDE)
        found[name, frame] = max(found[name, frame], carried, key=lambda pair: pair[1])
    return found


def together(bones: dict, moment: Moment, poses: dict) -> dict:
    """{bone: pose} of both bones in one system: where they overlap in a film, their images add up."""
    for settings in [ROUGH] + [FINE] * ROUNDS:
        bodies = [Body(bones[name], pose) for name, pose in poses.items()]
        out = register_bodies(bodies, moment.films, moment.rig, mask=moment.masks, settings=settings)
        poses = {n: b.world_from_body for n, b in zip(poses, out.bodies, strict=True)}
    return poses


def from_middle(poses: Float[Tensor, "N 4 4"], middle: Tensor, bone: Volume) -> tuple[Tensor, Tensor]:
    """Degrees and mm (at the bone's centre) of each pose from one."""
    turn, _ = se3.geodesic_distance(middle, poses)
    shift = se3.apply(poses, bone.center[None])[:, 0] - se3.apply(middle, bone.center[None])[0]
    return torch.rad2deg(turn), shift


def spread(bone: Volume, moment: Moment, answer: Tensor, starts: int) -> dict:
    """How far answers from random starts lie from the one in their middle."""
    poses, seconds = [], []
    for start in scattered(answer, bone, BESIDE, starts, 1):
        began = time.perf_counter()
        poses.append(answer_of(bone, moment, start, BESIDE)[0])
        seconds.append(time.perf_counter() - began)
    degrees, shift = from_middle(torch.stack(poses), answer, bone)
    mm = shift.norm(dim=-1)
    same = (mm < SAME[0]) & (degrees < SAME[1])
    return {
        "starts": starts,
        "same_answer": int(same.sum()),
        "rms_mm": float(mm[same].square().mean().sqrt()),
        "rms_degrees": float(degrees[same].square().mean().sqrt()),
        "rms_mm_all": float(mm.square().mean().sqrt()),
        "rms_degrees_all": float(degrees.square().mean().sqrt()),
        "worst_mm": float(mm.max()),
        "worst_degrees": float(degrees.max()),
        "seconds": float(np.median(seconds)),
    }


def alone(bone: Volume, moment: Moment, answer: Tensor) -> list[dict]:
    """Where each view alone ends, from the answer of both: along its detector and along its beam."""
    found = []
    for film, mask, camera in zip(moment.films, moment.masks, moment.rig, strict=True):
        pose, _ = settle(bone, film, camera, mask, answer)
        degrees, shift = from_middle(pose[None], answer, bone)
        local = camera.camera_from_world[:3, :3] @ shift[0]
        found.append(
            {
                "degrees": float(degrees[0]),
                "in_plane_mm": float(local[:2].norm()),
                "depth_mm": float(local[2].abs()),
            }
        )
    return found


def picture(bone: Volume, moment: Moment, pose: Tensor, path: Path) -> None:
    """Each film around the bone, alone and with the render over it."""
    tiles = []
    for film, camera in zip(moment.films, moment.rig, strict=True):
        image = xreg.drr(bone, camera, pose)
        image = image / image.max()
        rows, columns = (torch.where((image > 0.02).any(axis))[0] for axis in (1, 0))
        part = (slice(max(0, rows[0] - 15), rows[-1] + 15), slice(max(0, columns[0] - 25), columns[-1] + 25))
        grey = film[part] / torch.quantile(film[part].flatten(), 0.98)
        over = torch.stack([grey, torch.maximum(0.6 * grey, image[part]), grey], -1)
        tiles += [over, grey[..., None].expand_as(over)]
    height = max(t.shape[0] for t in tiles)
    sheet = torch.cat([F.pad(t, (0, 0, 0, 0, 0, height - t.shape[0])) for t in tiles], 1).clamp(0, 1)
    shown = Image.fromarray((255 * sheet).byte().numpy())
    shown.resize((3 * shown.width, 3 * shown.height)).save(path)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--starts", default=30, show_default=True, help="Random starts for the spread.")
@click.option("--samples", default=2048, show_default=True, help="Coarse renders of the search.")
@click.option("--pictures", type=click.Path(path_type=Path), help="Folder for overlays.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "wrist.json", help="Result (JSON).")
def main(folder: Path, starts: int, samples: int, pictures: Path | None, out: Path) -> None:
    """Register both bones at both frames."""
    rig = load_rig(folder)
    bones = {name: load_bone(folder, name) for name, _ in CLICKS}
    moments = {frame: load_moment(folder, rig, frame) for _, frame in CLICKS}
    answers = answers_of(bones, moments, rig, samples)
    both = {f: together(bones, m, {n: answers[n, f][0] for n in bones}) for f, m in moments.items()}
    rows = []
    for (name, frame), (answer, score) in answers.items():
        bone, moment = bones[name], moments[frame]
        degrees, shift = from_middle(both[frame][name][None], answer, bone)
        row = {"bone": name, "frame": frame, "score": score}
        row |= {"with_neighbour": {"degrees": float(degrees[0]), "mm": float(shift.norm())}}
        row |= {"spread": spread(bone, moment, answer, starts), "alone": alone(bone, moment, answer)}
        rows.append(row)
        print(row, flush=True)
        if pictures:
            pictures.mkdir(parents=True, exist_ok=True)
            picture(bone, moment, answer, pictures / f"{name}_{frame}.png")
    write_json(out, {"schema": "xreg.benchmark.wrist/1", "threads": torch.get_num_threads(), "rows": rows})


if __name__ == "__main__":
    main()
