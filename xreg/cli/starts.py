"""Where `xreg register` starts: the CT's header, poses, landmarks, a network, or a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import click

from xreg.cli.options import PATH, POSITIVE, Number
from xreg.cli.terminal import Tell, Terminal
from xreg.cli.view import read_pose

if TYPE_CHECKING:
    from torch import Tensor

    from xreg.io import Radiograph
    from xreg.registration import RegistrationResult
    from xreg.registration.landmarks import LandmarkPose
    from xreg.volume import Volume

_OPTIONS = (
    click.option(
        "--init",
        type=PATH,
        multiple=True,
        help="Pose to start from (JSON or .tfm). Repeated: each is tried and the best answer kept.  "
        "[default: as the CT's header says]",
    ),
    click.option(
        "--landmarks",
        type=PATH,
        help="Start from points of the CT: .mrk.json or .fcsv of 3D Slicer, or .csv, .json with name,x,y,z "
        "in RAS mm; four or more, not on one line.",
    ),
    click.option(
        "--pixels",
        type=PATH,
        multiple=True,
        help="Where FILM shows the landmarks: .csv or .json with name,u,v (whole numbers are pixel centres), "
        "or .mrk.json placed on the film in 3D Slicer. Once a film.",
    ),
    click.option(
        "--pixels-spacing",
        type=POSITIVE,
        nargs=2,
        metavar="ROW COL",
        help="Spacing in mm that 3D Slicer has for the film of a .mrk.json.  [default: 1 1]",
    ),
    click.option(
        "--ransac-px",
        type=POSITIVE,
        metavar="PX",
        help="Landmarks that miss by more are put aside as wrong.  [default: 4 mm at the detector]",
    ),
    click.option(
        "--model",
        type=PATH,
        metavar="DIR",
        help="Start from the guess of a network that xreg train made of this CT.",
    ),
    click.option(
        "--search",
        is_flag=True,
        help="Start from nowhere: look through a box of poses about the CT's header.",
    ),
    click.option(
        "--box-degrees",
        type=Number(min=0),
        nargs=3,
        metavar="A B C",
        help="Of --search: ± about the detector's v axis (primary), its u axis (secondary) and the beam.  "
        "[default: 45 30 15]",
    ),
    click.option(
        "--box-mm",
        type=Number(min=0),
        nargs=3,
        metavar="X Y Z",
        help="Of --search: ± along u, v and the beam, at the body.  [default: 60 60 80]",
    ),
)


@dataclass(frozen=True)
class Start:
    """A kind of start (such as "header", "init", "search"), its poses, and what to say of it."""

    kind: str
    poses: tuple[Tensor, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


def start_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Options that say where a registration starts."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def check_start(options: Mapping[str, Any], films: int) -> None:
    """UsageError where more than one kind of start was asked for, or half of one."""
    kinds = [flag for flag in ("init", "landmarks", "model", "search") if options[flag]]
    if len(kinds) > 1:
        named = " and ".join(f"--{kind}" for kind in kinds)
        raise click.UsageError(f"{named} exclude each other: give one kind of start.")
    for flag, needs in (
        ("pixels", "landmarks"),
        ("pixels_spacing", "landmarks"),
        ("ransac_px", "landmarks"),
        ("box_degrees", "search"),
        ("box_mm", "search"),
    ):
        if options[flag] and not options[needs]:
            raise click.UsageError(f"--{flag.replace('_', '-')} is for --{needs}; give that as well.")
    if options["landmarks"]:
        count = len(options["pixels"])
        if not count:
            raise click.UsageError("--landmarks needs --pixels: where the film shows them.")
        if count > films:
            raise click.UsageError(
                f"--pixels was given {count} times for {films} films; once a film at most."
            )


def find_start(options: Mapping[str, Any], films: Sequence[Radiograph], terminal: Terminal) -> Start:
    """The start that the options ask for, with its poses where it has some before the registration."""
    if options["landmarks"]:
        return _from_landmarks(options, films)
    if options["model"]:
        from xreg.regression.checkpoint import MODEL

        return Start("model", (), {"model": str(options["model"])}, f"guess of {options['model'] / MODEL}")
    if options["search"]:
        box = _box(options)
        degrees, mm = (", ".join(f"{v:g}" for v in side) for side in (box.degrees, box.mm))
        facts = {"box_degrees": list(box.degrees), "box_mm": list(box.mm), "evolution": _has_cmaes()}
        if not _has_cmaes():
            terminal.note(
                "note: the search goes without its last resort, evolution: pip install 'xreg[search]'"
            )
        return Start("search", (), facts, f"search: ±{degrees}° and ±{mm} mm")
    if not options["init"]:
        return Start("header", (), {}, "as the CT's header says")
    poses = tuple(read_pose(path) for path in options["init"])
    files = [str(path) for path in options["init"]]
    text = files[0] if len(files) == 1 else f"the best of {len(files)}: {', '.join(files)}"
    return Start("init", poses, {"files": files}, text)


def solve(
    volume: Volume, films: Sequence[Radiograph], start: Start, options: Mapping[str, Any], tell: Tell
) -> tuple[RegistrationResult, Start]:
    """Register from a start, and tell each step that was taken; with the start, which may know more then."""
    from xreg import registration

    film, camera = (
        (films[0], films[0].camera) if len(films) == 1 else (list(films), [f.camera for f in films])
    )
    restarts = options["restarts"]
    settings = registration.Settings() if restarts is None else registration.Settings(restarts=restarts)
    known = {"settings": settings, "on_step": teller(tell)}
    if start.kind == "search":
        hard = registration.SearchSettings() if _has_cmaes() else registration.SearchSettings(evolution=0)
        tell("looking through the box", key="search")
        found = registration.register_anywhere(volume, film, camera, box=_box(options), search=hard, **known)
        return found, start
    if start.kind == "model":
        return _from_model(volume, film, camera, start, options, known, tell)
    if len(start.poses) > 1:
        return registration.register_best(volume, film, camera, start.poses, **known), start
    first = start.poses[0] if start.poses else None
    return registration.register(volume, film, camera, first, **known), start


def _from_model(
    volume: Volume, film: Any, camera: Any, start: Start, options: Mapping[str, Any], known: Any, tell: Tell
) -> tuple[RegistrationResult, Start]:
    """Guess and refine; the start then holds what the network said."""
    from xreg.regression import Regressor, register_guessed
    from xreg.regression.start import SEARCH

    search = SEARCH if _has_cmaes() else replace(SEARCH, evolution=0)
    found = register_guessed(
        Regressor.load(options["model"], device=options["device"]), volume, film, camera, search=search,
        on_stage=lambda stage: tell(stage, key=stage), **known,
    )  # fmt: skip
    guess = found.guess
    degrees = [math.degrees(v) for v in guess.sigma[:3].tolist()]
    facts = {
        **start.facts, "guess": guess.world_from_body.tolist(), "checks": dict(guess.checks),
        "deviation": {"degrees": degrees, "mm": guess.sigma[3:].tolist()},
        "how": found.how, "sigmas_apart": found.sigmas, "problems": list(found.problems),
    }  # fmt: skip
    text = f"{start.text}, ±{max(degrees):.1f}° and ±{float(guess.sigma[3:].max()):.0f} mm, then by "
    text += f"{found.how}; the answer lies {found.sigmas:.1f} standard deviations from the guess"
    text += "".join(f"; {problem}" for problem in found.problems)
    return found.result, replace(start, facts=facts, text=text)


def teller(tell: Tell) -> Callable[[Any], None]:
    """What `register` calls with each step: a line where the level changes, the bar otherwise."""

    def on_step(step: Any) -> None:
        tell(f"binned {step.bin}×, {step.renders} renders, score {step.score:.3f}", key=step.level)

    return on_step


def _box(options: Mapping[str, Any]) -> Any:
    from xreg.registration import SearchBox

    given = {"degrees": options["box_degrees"], "mm": options["box_mm"]}
    return SearchBox(**{name: tuple(value) for name, value in given.items() if value})


def _has_cmaes() -> bool:
    return find_spec("cmaes") is not None


def _from_landmarks(options: Mapping[str, Any], films: Sequence[Radiograph]) -> Start:
    from xreg.io import load_landmarks, load_pixels, match_landmarks
    from xreg.io.landmarks import TABLES
    from xreg.registration.landmarks import pose_from_landmarks

    films_of_slicer = [p for p in options["pixels"] if p.suffix.lower() not in TABLES]
    spacing = dict.fromkeys(films_of_slicer or options["pixels"], options["pixels_spacing"] or None)
    shown = [load_pixels(path, spacing=spacing.get(path)) for path in options["pixels"]]
    matched = match_landmarks(load_landmarks(options["landmarks"]), *shown)
    cameras = [film.camera for film in films[: len(shown)]]
    found = pose_from_landmarks(
        matched.points, list(matched.pixels), cameras, seen=list(matched.seen), ransac_px=options["ransac_px"]
    )
    facts = _landmark_facts(options, matched, found)
    aside = [f"{wrong['name']} ({wrong['px']:.1f} px)" for wrong in facts["put_aside"]]
    text = f"landmarks: {facts['agree']} of {facts['sights']} agree, {found.rms_px:.2f} px rms"
    text += f"; put aside as wrong: {', '.join(aside)}" if aside else ""
    text += f"; {len(found.others)} other pose(s) explain them too, all are tried" if found.others else ""
    return Start("landmarks", (found.world_from_body, *found.others), facts, text)


def _landmark_facts(options: Mapping[str, Any], matched: Any, found: LandmarkPose) -> dict[str, Any]:
    wrong = (matched.seen & ~found.inliers).nonzero().tolist()
    aside = [
        {"name": matched.names[n], "film": view + 1, "px": float(found.residuals_px[view, n])}
        for view, n in wrong
    ]
    return {
        "files": [str(path) for path in (options["landmarks"], *options["pixels"])],
        "sights": int(matched.seen.sum()),
        "agree": int(found.inliers.sum()),
        "rms_px": found.rms_px,
        "put_aside": aside,
        "not_shown": list(matched.left_out),
        "poses": [pose.tolist() for pose in (found.world_from_body, *found.others)],
    }
