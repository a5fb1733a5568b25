"""One registration step as a chain of tensors of fixed size: what a CUDA graph can capture.

Render with Jacobian, patch NCC of image and gradient, damped Gauss-Newton, new pose: nothing is read back
and nothing has a size that depends on values.  On the CPU this is a dry run, checked against
xreg.registration's own step; on a card the step is captured in a graph and timed.

python benchmarks/step.py --help
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from common import PHANTOM, RESULTS, describe_run, find_ct, load_ct, write_json
from cuda_timing import describe_card, sample_wall, time_graph
from jaxtyping import Float
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from xreg import Camera, Volume, drr, se3
from xreg.ops.project import metric_of, project, push_forward
from xreg.registration import Body, Settings
from xreg.registration.gauss_newton import DAMPING, newton_step
from xreg.registration.unknowns import State, Unknowns
from xreg.similarity import _grams, evaluate, shrink, sobel, weigh_patches

GOAL_US = 100.0  # microseconds of a step at 256², in a graph
WINDOW = 12  # px, the patches of the fine levels
SERIES = 7  # terms in the angle squared: good to 1e-16 up to the largest turn of a step
ALLOWED = 1e-5  # how far the step may differ from xreg.registration's, of the step's own size


@dataclass
class Scene:
    """What a step needs and does not change, on one device."""

    volume: Volume
    camera: Camera
    film: Float[Tensor, "H W"]
    mask: Tensor
    start: Float[Tensor, "4 4"]


def make_scene(volume: Volume, pixels: int) -> Scene:
    """A film by another integrator, seen from 20°, and a start some mm and degrees away."""
    words = {"sdd": 1020.0, "sod": 850.0, "primary": 20.0, "isocenter": volume.center}
    camera = Camera.c_arm(**words, size=(pixels, pixels), spacing=400.0 / pixels)
    film = drr(volume, camera, integrator="exact")
    mask = torch.ones(camera.size, dtype=torch.bool)
    mask[:, : pixels // 8] = False  # a collimator
    away = torch.tensor([0.03, -0.02, 0.04, 4.0, -6.0, 5.0], dtype=torch.float64)
    start = se3.retract(torch.eye(4, dtype=torch.float64), away, volume.center)
    return Scene(volume, camera, film, mask, start)


class Step:
    """pose [4, 4] -> pose [4, 4], in place, with all tensors on the volume's device."""

    def __init__(self, scene: Scene, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        volume, camera = scene.volume, scene.camera
        device = volume.mu.device
        self.voxels, self.scale = volume.quantised()
        self.metric = metric_of(volume.affine[:3, :3])  # on the host: it is copied into the launch
        self.size = camera.size
        index = volume.index_from_world.to(device)
        self.across, self.offset = index[:3, :3].T.contiguous(), index[:3, 3].clone()
        self.basis = camera.ray_basis().to(device)
        self.center = volume.center.to(device)
        self.first = torch.eye(6, 1, dtype=torch.float64, device=device)[:, 0].contiguous()
        eye = torch.eye(3, dtype=torch.float64)
        self.crosses = torch.cat([se3.hat(e).T for e in -eye], 1).to(device)  # x @ it = (x × e for each e)
        self.shifts = torch.zeros(3, 6, 3, dtype=torch.float64)
        self.shifts[:, 0] = -eye
        self.shifts, self.eye = self.shifts.to(device), eye.to(device)
        self.hats = torch.stack([se3.hat(e) for e in eye]).reshape(3, 9).to(device)
        self.powers = torch.arange(SERIES, dtype=torch.float64, device=device)
        self.series = _exponential_series().to(device)
        self.film = scene.film.to(device)[None].float()
        mask, edge = scene.mask.float().to(device), shrink(scene.mask).float().to(device)
        self.masks = torch.stack([mask, edge, edge])[:, None]
        self.needed = 0.5 * WINDOW * WINDOW
        self.shares = torch.tensor([0.5, 0.25, 0.25], device=device)[:, None]
        self.balance = torch.tensor([1 / settings.length_scale] * 3 + [1.0] * 3, dtype=torch.float64).to(
            device
        )
        turn, move = settings.step_limit
        self.turn, self.move = math.radians(turn), move
        self.pose = scene.start.to(device).clone()

    def __call__(self) -> None:
        """One step: `self.pose` changes, and `self.score` is what the old one was worth."""
        rotation, shift = self.pose[:3, :3], self.pose[:3, 3]
        center = torch.addmv(shift, rotation, self.center)
        image, jacobian = self._render(rotation, shift, center)
        gradient, hessian = self._normal_equations(image, jacobian)
        self._move(self._solve(gradient, hessian), rotation, shift, center)

    def _render(self, rotation: Tensor, shift: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        """Image [1, H, W] and its six derivative images, as `drr_with_jacobian`."""
        linear = rotation @ self.across  # row vectors of the world to voxels
        rays = torch.addr(self.basis, self.first, shift, alpha=-1) @ linear
        rays = torch.addr(rays, self.first, self.offset)
        arm = torch.addr(self.basis, self.first, center, alpha=-1)
        turns = (arm @ self.crosses).reshape(6, 3, 3).transpose(0, 1)
        change = torch.cat([turns, self.shifts]) @ linear
        image, moments = project(
            self.voxels, rays[None], self.metric, self.size, scale=self.scale, integrator="joseph",
            moments=True, steps=1,
        )  # fmt: skip
        return image, push_forward(moments, change[None])[0]

    def _normal_equations(self, image: Tensor, jacobian: Tensor) -> tuple[Tensor, Tensor]:
        """Gradient [6] and Gauss-Newton matrix [6, 6] of `similarity.evaluate`, all its parts at once."""
        stack = torch.cat([image, self.film, jacobian])
        parts = torch.stack([stack, *sobel(stack)])
        found = weigh_patches(_grams(parts, self.masks, WINDOW), self.needed)
        pull = (self.shares * found.pull).flatten()
        self.score = (self.shares * found.weight * found.score).sum()
        gradient, hessian = pull @ found.gradient.flatten(0, 1), pull @ found.hessian.flatten(2).flatten(0, 1)
        return gradient.double(), hessian.double().reshape(6, 6)

    def _solve(self, gradient: Tensor, hessian: Tensor) -> Tensor:
        """`gauss_newton.newton_step` and its bounds."""
        matrix = hessian * self.balance[:, None] * self.balance
        diagonal = torch.diagonal(matrix)
        floor = diagonal.amax().clamp_min(1e-30) * 1e-9
        solved, _ = torch.linalg.solve_ex(
            matrix + torch.diag(DAMPING[0] * diagonal + floor), gradient * self.balance
        )
        step = -solved * self.balance
        turn, move = step[:3].norm() / self.turn, step[3:].norm() / self.move
        return step / torch.maximum(turn, move).clamp_min(1.0)

    def _move(self, step: Tensor, rotation: Tensor, shift: Tensor, center: Tensor) -> None:
        """`se3.retract`, for the bounded turns of a step."""
        omega, v = step[:3], step[3:]
        a, b, c = (torch.pow((omega * omega).sum(), self.powers) @ self.series).unbind()
        skew = (omega @ self.hats).reshape(3, 3)
        square = skew @ skew
        turn = self.eye + a * skew + b * square
        left = self.eye + b * skew + c * square
        shift = turn @ (shift - center) + center + left @ v
        rotation = turn @ rotation
        self.pose[:3].copy_(torch.cat([rotation, shift[:, None]], 1))


def _exponential_series() -> Float[Tensor, "K 3"]:
    """Coefficients in θ² of sin θ/θ, (1 - cos θ)/θ² and (θ - sin θ)/θ³."""
    rows = [[(-1) ** k / math.factorial(2 * k + 1 + n) for n in range(3)] for k in range(SERIES)]
    return torch.tensor(rows, dtype=torch.float64)


def own_step(scene: Scene, pose: Tensor) -> tuple[Tensor, float]:
    """The same step by xreg.registration, and the score before it."""
    from xreg.renderer import Beam, drr_with_jacobian

    settings = Settings()
    unknowns = Unknowns([Body(scene.volume, pose)], [scene.camera])
    image, jacobian = drr_with_jacobian(scene.volume, scene.camera, pose, beam=Beam("joseph"))
    terms = settings.levels[-1].terms
    found = evaluate(image.cpu(), jacobian.cpu(), scene.film.cpu(), scene.mask, terms, robust=settings.robust)
    step = newton_step(found, unknowns.balance(settings.length_scale), DAMPING[0])
    turn, move = settings.step_limit
    excess = max(float(step[:3].norm()) / math.radians(turn), float(step[3:].norm()) / move, 1.0)
    return unknowns.moved(State((pose,), torch.zeros(0)), step / excess).poses[0], found.score


def compare(scene: Scene, step: Step, count: int = 4) -> list[float]:
    """How far each of some steps is from xreg.registration's from the same pose, of the step's size in mm."""
    errors = []
    for _ in range(count):
        before = step.pose.cpu().clone()
        step()
        expected, _ = own_step(scene, before)
        corners = scene.volume.box_corners
        moved = [se3.apply(p, corners) for p in (before, step.pose.cpu(), expected)]
        errors.append(float((moved[1] - moved[2]).norm() / (moved[2] - moved[0]).norm()))
    return errors


# Operators that only look at memory otherwise, and those that wait for a card or bring host memory to it.
VIEWS = ("view", "reshape", "expand", "permute", "transpose", "t.", "slice", "select", "unsqueeze", "squeeze",
         "unbind", "alias", "detach", "diagonal.", "as_strided", "split")  # fmt: skip
WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "index.Tensor", "equal", "unique", "lift_fresh",
           "_linalg_check_errors")  # fmt: skip


class Counter(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.names: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).split(".", 1)[1]
        self.names[name] = self.names.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def operators_of(call) -> tuple[int, list[str]]:
    """How many operators of a call do work, on a card about as many kernels, and which would wait."""
    with Counter() as counter:
        call()
    working = sum(n for name, n in counter.names.items() if not name.startswith(VIEWS))
    return working, sorted(name for name in counter.names if name.startswith(WAITING))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--ct", help=f"CT, or {PHANTOM!r}; default as in projector.py.")
@click.option("--pixels", default=256, show_default=True, help="Side of the film.")
@click.option("--repeats", default=50, show_default=True)
@click.option("--compile", "compiled", is_flag=True, help="Fuse small operators by torch.compile first.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--dry-run", is_flag=True, help="On the CPU, tiny: shows that the step is right, not its time.")
@click.option("--out", type=click.Path(path_type=Path), default=RESULTS / "step.json", help="Result (JSON).")
def main(ct, pixels, repeats, compiled, device, dry_run, out) -> None:
    """Check one registration step against xreg.registration, and time it in a CUDA graph."""
    if dry_run:
        ct, pixels, repeats, device = ct or PHANTOM, 64, 3, "cpu"
    path = find_ct(ct)
    volume = load_ct(path)
    run = describe_run(path, volume)
    scene = make_scene(volume, pixels)
    scene.volume = volume.to(device)
    step = Step(scene)
    with torch.no_grad():
        errors = compare(scene, step)
        operators, waiting = operators_of(step)
        result = {
            "schema": "xreg.benchmark.step/1", "run": run, "card": describe_card(device), "pixels": pixels,
            "dry_run": dry_run, "compiled": compiled, "operators": operators, "waiting": waiting,
            "off_from_registration": errors, "allowed": ALLOWED,
        }  # fmt: skip
        call = torch.compile(step, fullgraph=True) if compiled else step
        call()
        result["wall_us"] = sample_wall(call, device, repeats)
        result["graph_us"] = None if device == "cpu" else time_graph(call, repeats)
    graph = result["graph_us"]
    met = None if graph is None or pixels != 256 else graph["median"] < GOAL_US
    result["goal"] = {"what": f"a step at {pixels}² in a graph, µs", "goal": f"< {GOAL_US:g}", "met": met}
    write_json(out, result)
    click.echo(
        f"off from xreg.registration by at most {max(errors):.1e} of a step; {result['operators']} operators"
    )
    click.echo(
        f"eager {result['wall_us']['median']:.0f} µs; in a graph: {'not run' if graph is None else graph}"
    )
    if max(errors) > ALLOWED:
        raise SystemExit("the step is not xreg.registration's")


if __name__ == "__main__":
    main()
