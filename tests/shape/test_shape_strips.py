"""Films straightened along a line, and what reads levels off them, on a made-up spine."""

import json
import math
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from spine_phantom import ALL, FIRST, GRID, LAST, SACRUM, SPINE, films_of, spine

from xreg.cli import main
from xreg.errors import FileError, ShapeError
from xreg.geometry import se3
from xreg.shape.centroids import points_of
from xreg.shape.film_cases import FilmVariation
from xreg.shape.films import label_thickness
from xreg.shape.level import WITNESSES, decide_level
from xreg.shape.samples import Sample
from xreg.shape.shares import Shares
from xreg.shape.spine import SpineLine, count_vertebrae, renumbered, renumbered_maps
from xreg.shape.spine_reading import LevelShares, SpineModel
from xreg.shape.spine_training import SpineTrainSettings, levels_at, reader_losses, train_spine
from xreg.shape.strips import REACH, STEP_MM, labelled_line, resampled, straighten

SACRAL = 25  # the sacrum's level
STILL = FilmVariation(gamma=1.0, shade=0.0, veil=0.0, sharpness=0.0, noise=0.0)


def sample(name: str, size: float = 1.0) -> Sample:
    labels = spine(size)
    films, cameras = films_of(labels, size=size)
    return Sample(films, cameras, labels, GRID, "all", name, None)


# ---- geometry ----


@pytest.mark.parametrize("sod", [None, 800.0])
def test_a_point_beside_the_line_lies_in_its_row_and_column(sod: float | None) -> None:
    labels = spine()
    _, cameras = films_of(labels, sod=sod)
    line, _ = resampled(labelled_line(labels, GRID, ALL)[0], STEP_MM)
    plain = straighten(torch.zeros(2, 100, 60), cameras, line)
    assert plain.values.shape == (2, len(line), 2 * REACH + 1)
    torch.testing.assert_close(plain.across.abs(), torch.eye(2), atol=0.15, rtol=0)
    assert bool((plain.across.sum(1) > 0).all())  # to the right, and to the front
    row, column = 40, 9.0
    for number, camera in enumerate(cameras):
        way = torch.cat([plain.across[number], torch.zeros(1)])
        point = line[row] + column * way / way.norm()
        u, v = camera.project(point[None].double())[0].tolist()
        rows, columns = torch.meshgrid(torch.arange(100.0), torch.arange(60.0), indexing="ij")
        spot = torch.exp(-((rows - v) ** 2 + (columns - u) ** 2) / 4)
        film = torch.zeros(2, 100, 60)
        film[number] = spot
        seen = straighten(film, cameras, line).values[number]
        total = seen.sum()
        middle = (seen.sum(1) @ torch.arange(len(line)).float()) / total
        beside = (seen.sum(0) @ torch.arange(-REACH, REACH + 1).float()) / total
        assert float(middle) == pytest.approx(row, abs=0.7)
        assert STEP_MM * float(beside) == pytest.approx(column, abs=1.5)


def test_strips_of_the_mirrored_patient() -> None:
    films, cameras = torch.rand(2, 100, 60, generator=torch.Generator().manual_seed(0)), films_of(spine())[1]
    line, _ = resampled(labelled_line(spine(), GRID, ALL)[0], STEP_MM)
    own, other = (straighten(films, cameras, line, mirror=m) for m in (False, True))
    torch.testing.assert_close(other.values[0], own.values[0].flip(1))
    torch.testing.assert_close(other.values[1], own.values[1])
    assert float(other.across[0, 0]) == pytest.approx(float(own.across[0, 0]))


def test_a_line_goes_straight_on_beyond_its_ends() -> None:
    line = torch.stack([torch.zeros(9), torch.zeros(9), -6.0 * torch.arange(9)], 1)
    points, place = resampled(line, 3.0, start=-9.0, count=25)
    torch.testing.assert_close(points[:, 2], 9.0 - 3.0 * torch.arange(25))
    torch.testing.assert_close(place, (-9.0 + 3.0 * torch.arange(25)) / 6)
    assert len(resampled(line, 3.0)[0]) == 17


def test_levels_of_a_labelled_spine() -> None:
    labels = spine()
    line, levels = labelled_line(labels, GRID, ALL)
    for number in range(FIRST, LAST + 1):
        middle = (labels == number).nonzero().double().mean(0).flip(0)
        point = se3.apply(GRID.affine, middle).float()
        nearest = int((line - point).norm(dim=1).argmin())
        assert float(levels[nearest]) == pytest.approx(SPINE.index(number), abs=0.15)
    sacrum = levels == SACRAL
    assert bool(sacrum[-5:].all())
    assert bool((levels[~sacrum].isfinite()).sum() > 30)
    cut = labels.clone()
    cut[GRID.shape[0] // 2 :] = 0  # the head is gone, and a vertebra is cut by what remains of the grid
    rest = labelled_line(labels[: GRID.shape[0] // 2], replace(GRID, shape=(50, 40, 40)), ALL)
    assert rest is not None
    top = rest[1][rest[1].isfinite()][0]
    assert float(top) > SPINE.index(FIRST)
    assert labelled_line(torch.zeros_like(labels), GRID, ALL) is None
    assert labelled_line(torch.where(labels == LAST, labels, 0), GRID, ALL) is None


def test_levels_between_points() -> None:
    levels = torch.tensor([3.0, 3.5, 4.0, torch.nan, SACRAL, SACRAL])
    place = torch.tensor([-0.1, 0.5, 1.25, 2.5, 3.6, 4.5, 5.0, 5.1])
    expected = torch.tensor([torch.nan, 3.25, 3.625, torch.nan, SACRAL, SACRAL, SACRAL, torch.nan])
    torch.testing.assert_close(levels_at(levels, place), expected, equal_nan=True)


# ---- what is told ----


def test_losses_are_least_for_the_truth() -> None:
    levels = torch.tensor([[10.0, 10.25, 10.5, 11.0, SACRAL, torch.nan]])
    parts, numbers = torch.full((1, 8, 6), -9.0), torch.full((1, 26, 6), -9.0)
    for row, (bins, number) in enumerate((((3, 4), 10), ((5, 6), 10), ((7, 0), 10), ((3, 4), 11))):
        parts[0, list(bins), row] = 0.0
        numbers[0, number, row] = 9.0
    numbers[0, SACRAL, 4] = 9.0
    found = reader_losses(parts, numbers, levels)
    assert float(found["part"]) == pytest.approx(math.log(2), abs=1e-3)
    assert float(found["number"]) < 1e-3
    moved = reader_losses(parts, numbers, levels + torch.tensor([0.5, 0.5, 0.5, 0.5, 0.0, 0.0]))
    assert float(moved["part"]) > 5
    assert all(float(x) == 0 for x in reader_losses(parts, numbers, levels * torch.nan).values())


def test_shares_of_levels() -> None:
    parts, numbers = torch.full((1, 8), 1e-3), torch.full((1, 26), 1e-3)
    parts[0, 3:5], numbers[0, 20] = 0.497, 0.975
    told = LevelShares(parts.log(), numbers.log())
    levels = torch.arange(0, 24.9, 1 / 32)
    assert float(levels[told.at(levels)[0].argmax()]) == pytest.approx(20.0, abs=0.07)
    usual = 2 * 0.497 * math.log(0.497) + 6 * 1e-3 * math.log(1e-3)
    assert float(told.sacrum[0]) == pytest.approx(math.log(1e-3) + usual, rel=0.01)
    twice = told.weighed(2.0, 0.5)
    torch.testing.assert_close(
        twice.at(levels[640:641]),
        (2 * parts[0, 3].log() + 0.5 * numbers[0, 20].log()).reshape(1, 1),
        atol=0.2,
        rtol=0,
    )


# ---- training ----


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return [sample("a", 0.9), sample("b", 1.0), sample("c", 1.1)]


SETTINGS = SpineTrainSettings(
    steps=90, batch=3, rows=96, rate=6e-3, width=8, size=0.05, bend=1.0, off=(1.0, 1.0), average=0.9,
    variation=STILL,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(samples, tmp_path_factory):
    place = tmp_path_factory.mktemp("net")
    facts = train_spine(samples, SETTINGS, place, held_out=["c"])
    assert facts["patients"] == ["a", "b"]
    return place


def test_a_reader_counts_where_the_network_is_wrong(folder, samples) -> None:
    """The network names every vertebra a whole level too high; the reader knows better."""
    case = samples[1]
    reader = SpineModel.beside(folder)
    voxels = (case.labels.reshape(-1) > 0).nonzero()[:, 0]
    own = case.labels.reshape(-1)[voxels].long()
    dense = torch.zeros(len(voxels), len(ALL))
    dense[torch.arange(len(voxels)), torch.where(own == SACRUM, own, own - 1)] = 0.9
    dense[:, 0] = 0.1
    found, points = Shares.of(voxels, dense), points_of(GRID, voxels)

    def read(line):
        return reader.read(case.films, case.cameras, line)

    line = count_vertebrae(points, found, GRID, ALL, None, None, read=read)
    made = renumbered(points, found, ALL, line, 0.0)
    right = (made.best() == own)[own != SACRUM].float().mean()
    assert float(right) > 0.85
    assert int(line.numberings.argmax()) == 2  # no shift
    labels = torch.zeros(GRID.shape, dtype=torch.int16).reshape(-1)
    labels[voxels] = made.best().to(torch.int16)
    level = decide_level(labels.reshape(GRID.shape), found, GRID, ALL, numberings=line.numberings)
    assert level.shift == 0
    assert level.confidence > 0.6
    odds = WITNESSES * float(line.numberings[2] - line.numberings[3])
    assert math.log(level.confidence / level.shares[1]) == pytest.approx(odds, rel=1e-4)


def test_a_training_goes_on_with_the_same_bits(samples, tmp_path) -> None:
    few = replace(SETTINGS, steps=10)
    train_spine(samples, few, tmp_path / "whole")

    def stop(report) -> None:
        if report.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_spine(samples, few, tmp_path / "broken", on_report=stop)
    train_spine(samples, few, tmp_path / "broken", resume=True)
    one, two = (SpineModel.beside(tmp_path / name).net.state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    for others, known, what in ((samples, replace(few, batch=2), "settings"), (samples[:2], few, "patients")):
        with pytest.raises(FileError, match=f"{what} differ .* into another folder, or anew$"):  # no --from
            train_spine(others, known, tmp_path / "broken", resume=True)


def test_what_is_refused(samples, tmp_path) -> None:
    with pytest.raises(ShapeError, match="two whole vertebrae"):
        train_spine(samples[:1], SETTINGS, tmp_path, held_out=["a"])
    with pytest.raises(ShapeError, match="no labels"):
        train_spine([replace(samples[0], labels=None)], SETTINGS, tmp_path)
    with pytest.raises(ShapeError, match="exactly one"):
        SpineTrainSettings()
    assert SpineModel.beside(tmp_path) is None
    (tmp_path / "spine").mkdir()
    (tmp_path / "spine" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(FileError):
        SpineModel.beside(tmp_path)


def test_thickness_follows_the_levels() -> None:
    labels = spine()
    _, cameras = films_of(labels)
    true = torch.stack([label_thickness(labels, GRID, camera, len(ALL)) for camera in cameras])
    wrong = true.clone()
    wrong[:, SPINE] = true[:, SPINE].roll(1, 1)
    points, levels = labelled_line(labels, GRID, ALL)
    line = SpineLine(points, levels.masked_fill(levels == SACRAL, torch.nan), 1.0)
    made = renumbered_maps(wrong, cameras, ALL, line)
    both = [*SPINE, SACRUM]
    torch.testing.assert_close(made[:, both].sum(1), true[:, both].sum(1), atol=0.6, rtol=1e-4)
    assert float((made - true)[:, SACRUM].sum() / true[:, SACRUM].sum()) < 0.1  # of L5
    off = (made - true)[:, SPINE].abs().sum() / true[:, SPINE].sum()
    before = (wrong - true)[:, SPINE].abs().sum() / true[:, SPINE].sum()
    assert float(off) < 0.35
    assert float(before) > 1.5
    other = [n for n in range(len(ALL)) if n not in both]
    assert torch.equal(made[:, other], true[:, other])


def test_the_command_line(samples, tmp_path) -> None:
    for one in samples:
        one.save(tmp_path / "prepared" / one.patient)
    run = CliRunner().invoke
    known = [
        str(tmp_path / "prepared"),
        "-o",
        str(tmp_path / "net"),
        "--steps",
        "2",
        "--batch",
        "2",
        "--json",
    ]
    done = run(main, ["shape", "train-spine", *known, "--hold-out", "b"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["patients"] == ["a", "c"]
    assert told["step"] == 2
    assert (tmp_path / "net" / "spine" / "model.safetensors").is_file()
    model = tmp_path / "net" / "spine" / "model.safetensors"
    before = model.read_bytes()
    words = ["shape", "train-spine", *known, "--hold-out", "b"]
    again = run(main, [*words, "--seed", "4"])
    assert again.exit_code == 2
    assert "--resume to go on with it, another folder, or --overwrite" in " ".join(again.output.split())
    assert run(main, [*words, "--resume"]).exit_code == 0
    assert model.read_bytes() == before
    other = [*known[:2], str(tmp_path / "other"), *known[3:]]
    assert run(main, ["shape", "train-spine", *other, "--hold-out", "nobody"]).exit_code == 1
    assert run(main, ["shape", "train-spine", *other, "--minutes", "1"]).exit_code == 2
    assert not (tmp_path / "other").exists()
    assert run(main, [*words, "--seed", "4", "--overwrite"]).exit_code == 0
    assert model.read_bytes() != before


def test_patients_may_have_different_numbers_of_films(tmp_path) -> None:
    one, two = sample("a"), sample("b", 1.1)
    single = replace(one, films=one.films[:1], cameras=one.cameras[:1])
    few = replace(SETTINGS, steps=2, batch=4)
    assert train_spine([single, two], few, tmp_path)["patients"] == ["a", "b"]
