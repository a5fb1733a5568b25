"""Training: it learns, resumes to the same bits, and refuses what cannot be."""

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small_training import BOX, body, narrow, same, settings

import xreg
from xreg.attenuation import hu_to_mu
from xreg.errors import FileError, GeometryError, RegistrationError, VolumeError
from xreg.regression import Canonical, TrainSettings, Weights, checkpoint, normalise, parse_range, train
from xreg.regression.films import FilmSource, field_cut, identity, require_same_ct, same_ct
from xreg.regression.network import Prediction
from xreg.regression.ranges import pose_of
from xreg.regression.train import Trainer, schedule
from xreg.regression.validation import summary
from xreg.xray import AugmentSettings


def tensors_of(folder: Path, name: str = checkpoint.TRAINING) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder / name)[0]


class Killed(Exception):
    pass


def killer(step: int):
    def on_report(report) -> None:
        if report.step == step:
            raise Killed

    return on_report


def test_a_killed_training_ends_with_the_same_bits(tmp_path) -> None:
    volume, known = body(), settings(augment=AugmentSettings())
    whole = train([volume], BOX, known, tmp_path / "whole")
    with pytest.raises(Killed):
        train([volume], BOX, known, tmp_path / "parts", on_report=killer(5))  # saved after steps 2 and 4
    assert checkpoint.load(tmp_path / "parts" / checkpoint.TRAINING)[1]["step"] == 4
    rest = train([volume], BOX, known, tmp_path / "parts", resume=True)
    assert (whole.steps, rest.steps) == (6, 6)
    for name in (checkpoint.TRAINING, checkpoint.MODEL):
        assert same(tensors_of(tmp_path / "whole", name), tensors_of(tmp_path / "parts", name))
    curves = [checkpoint.read_log(tmp_path / f) for f in ("whole", "parts")]
    for line in (*curves[0], *curves[1]):
        line.pop("seconds")
    assert curves[0] == curves[1]
    assert [line["step"] for line in curves[0]] == [2, 4, 6]


def test_another_seed_is_another_training(tmp_path) -> None:
    for seed in (0, 1):
        train([body()], BOX, settings(steps=2, seed=seed), tmp_path / str(seed))
    assert not same(tensors_of(tmp_path / "0"), tensors_of(tmp_path / "1"))


def test_training_leaves_the_global_random_state(tmp_path) -> None:
    before = torch.random.get_rng_state()
    train([body()], BOX, settings(steps=1), tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_it_learns(tmp_path) -> None:
    """Within some seconds, well below what the middle of the range would be worth."""
    box = narrow()
    known = settings(steps=100, batch=16, groups=1, held_out=64, rate=6e-3, cut=0.0, contrast=(1.0, 1.0))
    trained = train([body()], box, known, tmp_path)
    found = trained.validations[-1]["validation"]
    x = box.spread(2000) - box.middle
    assert found["degrees"] < 0.6 * math.degrees(float(torch.deg2rad(x[:, :3]).norm(dim=1).median()))
    assert found["in_plane_mm"] < 0.5 * float(x[:, 3:5].norm(dim=1).median())
    # its own deviations hold on films that it has not seen, to a factor of three
    assert all(0.1 < c < 10 for c in found["calibration"])


def test_several_volumes_one_after_another(tmp_path) -> None:
    first, second = body(), body()
    second = replace(second, mu=second.mu.flip(2))
    trainer = Trainer([first, second], BOX, settings(steps=2), tmp_path, torch.device("cpu"))
    assert trainer.films_at(0)[1] is trainer.sources[0]
    assert trainer.films_at(1)[1] is trainer.sources[1]
    assert identity(first)["sha256"] != identity(second)["sha256"]
    train([first, second], BOX, settings(steps=2), tmp_path)
    assert len(checkpoint.load(tmp_path / checkpoint.MODEL)[1]["volumes"]) == 2


def test_terms_through_the_renderer_reach_the_weights(tmp_path) -> None:
    terms = Weights(image=1.0, dice=1.0, rendered=2)
    known = settings(steps=2, weights=terms, labels=("spine", "ribs"))
    trainer = Trainer([body()], BOX, known, tmp_path, torch.device("cpu"))
    found = trainer.advance(0.5, *trainer.films_at(0))
    assert {"geodesic", "nll", "image", "dice"} <= found.keys()
    assert 0 < found["dice"] <= 1
    assert 0 <= found["image"] <= 2
    assert found["loss"] == pytest.approx(
        found["geodesic"] + 0.2 * found["nll"] + found["image"] + found["dice"], rel=1e-5
    )
    assert float(trainer.net.out.weight.grad.abs().sum()) > 0


def test_minutes_bound_a_training(tmp_path) -> None:
    trained = train([body()], BOX, settings(steps=None, minutes=0.02), tmp_path)
    assert trained.steps >= 1
    assert 1.2 <= trained.seconds < 30
    assert trained.ended == "the budget is spent"


def test_a_budget_for_no_step_is_refused(tmp_path) -> None:
    with pytest.raises(RegistrationError, match="before its first step: give it more minutes"):
        train([body()], BOX, settings(steps=None, minutes=1e-9), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_it_stops_when_nothing_improves(tmp_path) -> None:
    known = settings(steps=40, rate=1e-12, validations=20, patience=2)
    trained = train([body()], BOX, known, tmp_path)
    assert trained.steps < 40
    assert "no better for 2" in trained.ended


def no_films(*_):
    raise AssertionError("films were made")


def test_a_training_that_ended_stays_as_it_is(tmp_path, monkeypatch) -> None:
    """No step more, however often it is gone on with, and no film made."""
    known = settings(steps=40, rate=1e-12, validations=20, patience=2)
    first = train([body()], BOX, known, tmp_path)
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    monkeypatch.setattr(FilmSource, "__init__", no_films)
    for _ in range(2):
        again = train([body()], BOX, known, tmp_path, resume=True)
        assert (again.steps, again.ended) == (first.steps, "no better for 2 validations")
        assert again.validations == first.validations
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == kept


def test_a_spent_budget_makes_no_films(tmp_path, monkeypatch) -> None:
    train([body()], BOX, settings(steps=1), tmp_path)
    monkeypatch.setattr(FilmSource, "__init__", no_films)
    again = train([body()], BOX, settings(steps=1), tmp_path, resume=True)
    assert (again.steps, again.ended) == (1, "the budget is spent")


def test_wrong_beginnings_are_told_before_films_are_made(tmp_path, monkeypatch) -> None:
    volume, known = body(), settings(steps=1)
    train([volume], BOX, known, tmp_path / "net")
    wider = replace(known, network=replace(known.network, width=16))
    monkeypatch.setattr(FilmSource, "__init__", no_films)
    net, other = tmp_path / "net", replace(volume, mu=volume.mu.flip(2))
    for volumes, chosen, folder, words, said in (
        ([volume], wider, "new", {"start": net}, "other layers"),
        ([volume], known, "new", {"start": tmp_path / "none"}, "none"),
        ([volume], known, "new", {"resume": True}, "is not there"),
        ([volume], replace(known, batch=16), "net", {"resume": True}, "settings differ"),
        ([other], known, "net", {"resume": True}, "volumes differ"),
    ):
        with pytest.raises(FileError, match=said):
            train(volumes, BOX, chosen, tmp_path / folder, **words)
    with pytest.raises(RegistrationError, match="give one"):
        train([volume], BOX, known, net, resume=True, start=net)


def test_fine_tuning_begins_with_the_weights_of_another(tmp_path) -> None:
    train([body()], BOX, settings(steps=3), tmp_path / "first")
    trainer = Trainer([body()], BOX, settings(steps=1), tmp_path / "second", torch.device("cpu"))
    trainer.begin_from(tmp_path / "first")
    assert same(dict(trainer.net.state_dict()), tensors_of(tmp_path / "first", checkpoint.MODEL))
    train([body()], BOX, settings(steps=1), tmp_path / "second", start=tmp_path / "first")
    facts = json.loads((tmp_path / "second" / checkpoint.FACTS).read_text())
    assert facts["parent"].endswith("at step 3")


def test_checkpoints_that_do_not_fit(tmp_path) -> None:
    volume, known = body(), settings(steps=1)
    train([volume], BOX, known, tmp_path)
    wider = replace(known, network=replace(known.network, width=16))
    with pytest.raises(FileError, match="other layers"):
        train([volume], BOX, wider, tmp_path / "new", start=tmp_path)
    with pytest.raises(FileError, match="settings differ"):
        train([volume], BOX, replace(known, steps=2), tmp_path, resume=True)
    with pytest.raises(FileError, match="range differ"):
        train([volume], narrow(), known, tmp_path, resume=True)
    with pytest.raises(FileError, match="volumes differ"):
        train([replace(volume, mu=volume.mu.flip(2))], BOX, known, tmp_path, resume=True)
    with pytest.raises(FileError, match="is not there"):
        train([volume], BOX, known, tmp_path / "empty", resume=True)
    with pytest.raises(RegistrationError, match="give one"):
        train([volume], BOX, known, tmp_path, resume=True, start=tmp_path)
    assert not (tmp_path / "empty").exists()


def test_bad_input_is_refused_before_any_work(tmp_path) -> None:
    volume, folder = body(), tmp_path / "net"
    with pytest.raises(GeometryError, match="never sees"):
        train([volume], parse_range(BOX, ["lateral=3000:3010"]), settings(), folder)
    with pytest.raises(VolumeError, match="label map"):
        train([replace(volume, labels=None)], BOX, settings(labels=(5,)), folder)
    with pytest.raises(VolumeError, match="no voxel of label 77"):
        train([volume], BOX, settings(labels=(5, 77)), folder)
    with pytest.raises(VolumeError, match="named"):
        train([volume], BOX, settings(labels=("femur",)), folder)
    with pytest.raises(VolumeError, match="at least one"):
        train([], BOX, settings(), folder)
    assert not folder.exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"steps": 1, "minutes": 1.0}, {"steps": 0}, {"minutes": -1.0}, {"steps": 1, "size": 50},
        {"steps": 1, "batch": 0}, {"steps": 1, "contrast": (2.0, 1.0)},
        {"steps": 1, "weights": Weights(dice=1.0)},
    ],
)  # fmt: skip
def test_settings_that_cannot_be(wrong: dict) -> None:
    with pytest.raises(RegistrationError):
        TrainSettings(**wrong)


def test_settings_survive_json() -> None:
    known = settings(labels=("spine", 3), weights=Weights(image=0.5))
    assert TrainSettings.from_dict(json.loads(json.dumps(known.to_dict()))) == known


# ---- the films ----


def test_films_are_those_of_their_poses() -> None:
    volume, known = body(), settings(cut=0.0, contrast=(1.0, 1.0), grid_mm=8.0)
    source = FilmSource(volume, BOX, Canonical.of(BOX, 32), known)
    batch = source.draw(4, torch.Generator().manual_seed(0))
    poses = pose_of(batch.rotation, batch.place, volume.center)
    plain = xreg.drr(volume.resample(8.0), source.camera, poses, integrator="joseph")
    assert torch.allclose(batch.images, normalise(plain), atol=2e-3)


def test_contrast_acts_on_bone_alone() -> None:
    volume = body()
    source = FilmSource(volume, BOX, Canonical.of(BOX, 32), settings(grid_mm=8.0))
    more = source.with_contrast(3.0)
    bone = source.bare.mu > 0.0193 * 1.15
    assert torch.equal(more.mu[~bone], source.bare.mu[~bone])
    assert bool(
        (more.mu[source.bare.mu > 0.0193 * 1.2] > source.bare.mu[source.bare.mu > 0.0193 * 1.2]).all()
    )


def test_smaller_fields() -> None:
    generator = torch.Generator().manual_seed(0)
    assert bool(field_cut(50, 32, 0.0, generator).all())
    share = field_cut(400, 32, 1.0, generator).float().mean((1, 2))
    assert float(share.min()) > 0.2
    assert 0.5 < float(share.mean()) < 0.95


def test_the_identity_of_a_ct_does_not_depend_on_the_energy() -> None:
    volume = body()
    assert same_ct(identity(volume), identity(volume.at_energy(55.0)))
    changed = volume.mu.clone()
    changed[20, 20, 20] += 1e-3
    assert not same_ct(identity(replace(volume, mu=changed)), identity(volume))


def with_hu(volume, hu: torch.Tensor):
    return replace(volume, mu=hu_to_mu(hu, volume.energy_kev, ct_energy_kev=volume.ct_energy_kev))


def uneven(volume, shift: float = 0.0):
    """The volume with CT numbers that are not whole; most of them lie close to a half."""
    noise = torch.rand(volume.shape, generator=torch.Generator().manual_seed(0)) - 0.5
    return with_hu(volume, volume.hu.round() + 0.5 + 0.001 * noise + shift)


def test_a_ct_without_whole_numbers_is_known_at_every_energy(tmp_path) -> None:
    volume = uneven(body())
    mine = identity(volume)
    assert len(mine["means"]) == 8**3
    for kev in (40.0, 60.0, 80.0, 120.0):
        other = identity(volume.at_energy(kev))
        assert other["sha256"] != mine["sha256"], "rounding turns on the last bit"
        require_same_ct([mine], volume.at_energy(kev), "net")
    for wrong in (uneven(body(), 0.3), replace(volume, mu=volume.mu.flip(2))):
        with pytest.raises(VolumeError, match="another CT"):
            require_same_ct([mine], wrong, "net")
    train([volume], BOX, settings(steps=1), tmp_path)
    assert train([volume.at_energy(60.0)], BOX, settings(steps=1), tmp_path, resume=True).steps == 1
    with pytest.raises(FileError, match="volumes differ"):
        train([uneven(body(), 0.3)], BOX, settings(steps=1), tmp_path, resume=True)


def test_identities_of_earlier_networks_hold() -> None:
    """They have a hash alone, as those of CTs of whole numbers still do."""
    whole, other = with_hu(body(), body().hu.round()), uneven(body())
    assert set(identity(whole)) == {"shape", "affine", "sha256"}
    assert all(identity(whole.at_energy(kev)) == identity(whole) for kev in (40.0, 80.0, 120.0))
    earlier = {k: v for k, v in identity(other).items() if k != "means"}
    require_same_ct([earlier], other, "net")
    with pytest.raises(VolumeError, match="another CT"):
        require_same_ct([earlier], uneven(body(), 0.3), "net")


def test_medians_and_calibration() -> None:
    error = torch.tensor([[math.radians(3.0), 0, 0, 3.0, 4.0, 7.0]]).repeat(5, 1)
    found = summary(error, torch.zeros(5, 6))
    assert found.degrees == pytest.approx(3, rel=1e-5)
    assert (found.in_plane_mm, found.depth_mm) == (5, 7)
    assert found.calibration[5] == pytest.approx(0.49)


# ---- several processes ----

WORKER = """
import sys, torch, torch.distributed as dist
from small_training import BOX, body, settings
from xreg.regression import train
rank = int(sys.argv[1])
store = dist.FileStore(sys.argv[2] + "/store", 2)
dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
train([body()], BOX, settings(steps=3), sys.argv[2] + "/net")
dist.destroy_process_group()
"""


@pytest.mark.slow  # starts two more interpreters
def test_two_processes_train_one_network(tmp_path) -> None:
    here = str(Path(__file__).parent)
    paths = os.pathsep.join([here, str(Path(here).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    if sys.platform == "linux":
        environment["GLOO_SOCKET_IFNAME"] = "lo"  # a machine's own name need not lead to it
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(tmp_path)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    for worker in workers:
        _, problem = worker.communicate(timeout=120)
        assert worker.returncode == 0, problem
    found, facts = checkpoint.load(tmp_path / "net" / checkpoint.TRAINING)
    assert facts["step"] == 3
    # the same films in one process: each process's half, gradients averaged
    trainer = Trainer([body()], BOX, settings(steps=3), tmp_path / "one", torch.device("cpu"))
    both = [Trainer([body()], BOX, settings(steps=3), tmp_path / "x", torch.device("cpu")) for _ in range(2)]
    for rank, half in enumerate(both):
        half.rank, half.world = rank, 2
    for step in range(3):
        gradients = []
        for half in both:
            half.net.load_state_dict(trainer.net.state_dict())
            half.net.zero_grad()
            batch, source = half.films_at(step)
            parts = half.losses(Prediction(*half.net(batch.images)), batch, source)
            sum(w * p for w, p in parts.values()).backward()
            gradients.append([p.grad for p in half.net.parameters()])
        for p, a, b in zip(trainer.net.parameters(), *gradients, strict=True):
            p.grad = 0.5 * (a + b)
        for group in trainer.optimiser.param_groups:
            group["lr"] = trainer.settings.rate * schedule(step / 3, trainer.settings.warm_up)
        torch.nn.utils.clip_grad_norm_(trainer.net.parameters(), trainer.settings.clip)
        trainer.optimiser.step()
    for name, tensor in trainer.net.state_dict().items():
        assert torch.allclose(found[f"net.{name}"], tensor, atol=2e-5), name


def test_a_training_that_diverges_says_so(tmp_path) -> None:
    with pytest.raises(RegistrationError, match=r"diverged at step \d+: take a rate below 1e\+08"):
        train([body()], BOX, settings(steps=16, rate=1e8, validations=4), tmp_path / "net")
    assert not (tmp_path / "net").exists() or not any((tmp_path / "net").glob("*.jsonl"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"clip": -5.0},
        {"clip": math.nan},
        {"rate": math.inf},
        {"cut": -1.0},
        {"warm_up": 2.0},
        {"decay": -1.0},
    ],
)
def test_numbers_of_a_training_are_within_bounds(wrong) -> None:
    with pytest.raises(RegistrationError, match=next(iter(wrong))):
        TrainSettings(steps=1, **wrong)
