"""Data sets' folders to samples: one result whatever way the axes run, sides kept, bad cases named."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from xreg.cli import main
from xreg.cli.shape_prepare import DATASETS
from xreg.errors import FileError, ImageError, ShapeError, VolumeError
from xreg.io import VoxelGrid
from xreg.io.labels import header_table
from xreg.shape.datasets import LAYOUTS, Case, find_cases
from xreg.shape.patients import Patient
from xreg.shape.prepare import Preparation, prepare, prepare_shipped, read_patient, upright_grid
from xreg.shape.samples import Sample
from xreg.shape.schemes import SCHEMES

ALL, TOTAL = SCHEMES["all"], SCHEMES["totalsegmentator"]
SMALL = Preparation(shape=(14, 12, 12), fine=1)
BONES = {
    "L1": (9, 4, 6),
    "L2": (5, 4, 6),
    "rib_left_12": (9, 7, 9),
    "hip_left": (2, 5, 10),
    "hip_right": (2, 5, 2),
}


def body(scheme=ALL) -> tuple[np.ndarray, np.ndarray]:
    """CT and labels indexed [x, y, z] in RAS+ (4 mm): bones are boxes, left at small x."""
    size = (13, 11, 12)
    ct, labels = np.full(size, -1000, dtype=np.int16), np.zeros(size, dtype=np.uint8)
    ct[1:-1, 1:-1] = 40
    for bone, (z, y, x) in BONES.items():
        if bone in scheme.names:
            box = (slice(12 - x - 1, 12 - x + 2), slice(y - 1, y + 2), slice(z - 1, z + 2))
            ct[box], labels[box] = 500, scheme.index(bone)
    return ct, labels


def affine_to(codes: str) -> np.ndarray:
    return nib.orientations.ornt_transform(
        nib.orientations.axcodes2ornt("RAS"), nib.orientations.axcodes2ornt(codes)
    )


def write(path: Path, array: np.ndarray, codes: str = "RAS", names: dict | None = None) -> Path:
    """A NIfTI of an RAS array whose axes run another way, which puts each voxel where it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    affine[:3, 3] = [-20.0, 13.0, 170.0]
    change = affine_to(codes)
    image = nib.Nifti1Image(array, affine).as_reoriented(change)
    assert "".join(nib.aff2axcodes(image.affine)) == codes
    if names:
        image.header.extensions.append(nib.nifti1.Nifti1Extension("ignore", header_table(names)))
    nib.save(image, path)
    return path


def case_of(folder: Path, codes: str = "RAS", scheme: str = "all", name: str = "p") -> Case:
    ct, labels = body(SCHEMES[scheme])
    return Case(
        name,
        write(folder / "ct.nii.gz", ct, codes),
        write(folder / "label.nii.gz", labels, codes),
        scheme=scheme,
    )


@pytest.mark.parametrize("codes", ["LAS", "LPS", "PSR", "SLA"])
def test_every_orientation_gives_the_same_sample(tmp_path, codes: str) -> None:
    first, patient = prepare(read_patient(case_of(tmp_path / "ras")), SMALL)
    other, _ = prepare(read_patient(case_of(tmp_path / "other", codes)), SMALL)
    assert torch.equal(first.labels, other.labels)
    torch.testing.assert_close(first.films, other.films, atol=0.0041, rtol=0)  # one of 256 levels
    torch.testing.assert_close(first.grid.affine, other.grid.affine)
    assert len(first.labels.unique()) == 1 + len(BONES)
    place = {}
    for bone in ("hip_left", "hip_right", "L1", "L2"):
        k, j, i = (first.labels == ALL.index(bone)).nonzero().double().mean(0)
        place[bone] = first.grid.affine[:3, :3] @ torch.stack([i, j, k]) + first.grid.affine[:3, 3]
        z, y, x = BONES[bone]
        expected = torch.tensor([4.0 * (12 - x) - 20.0, 4.0 * y + 13.0, 4.0 * z + 170.0]).double()
        torch.testing.assert_close(place[bone], expected, atol=1.5, rtol=0)
    assert place["hip_left"][0] < place["hip_right"][0]
    assert patient.name == "p"


def test_the_film_shows_the_left_hip_where_its_camera_says(tmp_path) -> None:
    sample, _ = prepare(read_patient(case_of(tmp_path)), Preparation(shape=(28, 24, 24), fine=1))
    for film, camera in zip(sample.films, sample.cameras, strict=True):
        for bone in ("hip_left", "rib_left_12"):
            z, y, x = BONES[bone]
            point = torch.tensor([[4.0 * (12 - x) - 20.0, 4.0 * y + 13.0, 4.0 * z + 170.0]]).double()
            u, v = camera.project(point)[0].round().int().tolist()
            if camera is sample.cameras[0]:
                mirrored = film[v, film.shape[1] - 1 - u]
                assert float(film[v, u]) > float(mirrored) + 0.2 or bone == "hip_left"
            assert float(film[v, u]) > 0.4
    # Columns of the frontal film go to the patient's left, of the lateral one to the front.
    left = sample.grid.center + torch.tensor([-10.0, 0.0, 0.0])
    front = sample.grid.center + torch.tensor([0.0, 10.0, 0.0])
    middle = (sample.films.shape[2] - 1) / 2
    assert float(sample.cameras[0].project(left[None])[0, 0]) > middle + 1
    assert float(sample.cameras[1].project(front[None])[0, 0]) > middle + 1


def test_totalsegmentator_folders(tmp_path) -> None:
    ct, labels = body()
    place = tmp_path / "s1"
    write(place / "ct.nii.gz", ct, "LAS")
    for bone, name in {"L1": "vertebrae_L1", "hip_left": "hip_left", "rib_left_12": "rib_left_12"}.items():
        part = (labels == ALL.index(bone)).astype(np.uint8)
        write(place / "segmentations" / f"{name}.nii.gz", part, "LAS")
    write(place / "segmentations" / "spleen.nii.gz", (ct > 9000).astype(np.uint8), "LAS")
    case_of(tmp_path / "s2", scheme="totalsegmentator")
    first, second = find_cases(tmp_path, "totalsegmentator")
    patient = read_patient(first)
    known = {ALL.names[n] for n in patient.known.nonzero()[:, 0].tolist()}
    assert known == {"background", "L1", "hip_left", "rib_left_12"}
    whole = read_patient(second)
    assert {ALL.names[n] for n in whole.labels.unique().tolist()} == {"background", *BONES}
    assert not bool(whole.known[ALL.index("L6")])
    for bone in ("L1", "hip_left"):
        one, two = (p.labels == ALL.index(bone) for p in (patient, whole))
        assert int(one.sum()) == int(two.sum()) == 27


@pytest.mark.parametrize(
    ("dataset", "ct_name", "label_name", "scheme"),
    [
        ("ctpelvic1k", "a/dataset6_001_data.nii.gz", "b/dataset6_001_mask_4label.nii.gz", "ctpelvic1k"),
        ("ctspine1k", "data/COLONOG/001.nii.gz", "label/COLONOG/001_seg.nii.gz", "ctspine1k"),
        ("verse", "rawdata/sub-1/sub-1_ct.nii.gz", "derivatives/sub-1/sub-1_seg-vert_msk.nii.gz", "verse"),
        ("plain", "001.nii.gz", "001_label.nii.gz", "all"),
    ],
)
def test_folders_of_other_data_sets(
    tmp_path, dataset: str, ct_name: str, label_name: str, scheme: str
) -> None:
    ct, labels = body(SCHEMES[scheme])
    write(tmp_path / ct_name, ct, "LPS")
    write(tmp_path / label_name, labels, "LPS")
    cases = find_cases(tmp_path, dataset)
    assert len(cases) == 1
    patient = read_patient(cases[0], source=SCHEMES[scheme])
    held = {b for b in BONES if b in SCHEMES[scheme].names}
    assert {ALL.names[n] for n in patient.labels.unique().tolist()} == {"background", *held}
    assert torch.equal(patient.known, SCHEMES[scheme].known_in(ALL))


def test_the_help_says_of_every_data_set_how_it_lies() -> None:
    text = CliRunner().invoke(main, ["shape", "prepare", "--help"]).output
    assert tuple(LAYOUTS) == DATASETS
    words = text[text.index("Where the files lie") :].split()
    for name, layout in LAYOUTS.items():
        wanted = [name, *layout.split()]
        assert any(words[i : i + len(wanted)] == wanted for i in range(len(words))), name


def test_ribs_on_the_wrong_side_of_their_scheme_are_exchanged(tmp_path) -> None:
    """RibSeg's documents do not say which side comes first; the affine does."""
    ct, labels = body()
    for side, at in (("left", 9), ("right", 3)):
        box = (slice(12 - at - 1, 12 - at + 2), slice(6, 9), slice(8, 11))
        wrong = {"left": "right", "right": "left"}[side]
        labels[box], ct[box] = SCHEMES["ribseg"].index(f"rib_{wrong}_12"), 500
    labels[labels > 24] = 0
    labels[(labels == ALL.index("L1")) | (labels == ALL.index("L2"))] = 0
    write(tmp_path / "R1-image.nii.gz", ct)
    write(tmp_path / "R1-rib-seg.nii.gz", labels)
    patient = read_patient(find_cases(tmp_path, "ribseg")[0])
    left = (patient.labels == ALL.index("rib_left_12")).nonzero().double().mean(0)[2]
    right = (patient.labels == ALL.index("rib_right_12")).nonzero().double().mean(0)[2]
    assert left < right  # RAS: i to the right


def test_bad_cases_say_what_is_wrong(tmp_path) -> None:
    ct, labels = body()
    good = case_of(tmp_path / "good")
    exchanged = write(tmp_path / "x.nii.gz", np.asarray(ALL.mirror)[labels].astype(np.uint8))
    with pytest.raises(ShapeError, match="--sides swap"):
        read_patient(Case("x", good.ct, exchanged, scheme="all"))
    mended = read_patient(Case("x", good.ct, exchanged, scheme="all"), check_sides="swap")
    assert torch.equal(mended.labels, _same(good))
    bad = np.where(labels == ALL.index("L1"), 77, labels).astype(np.uint8)
    with pytest.raises(ShapeError, match="does not know the labels 77"):
        read_patient(Case("u", good.ct, write(tmp_path / "u.nii.gz", bad), scheme="all"))
    with pytest.raises(VolumeError, match="not on the grid"):
        read_patient(Case("g", good.ct, write(tmp_path / "g.nii.gz", labels[:-1]), scheme="all"))
    moved = np.where(ct > 100, 0, np.roll(labels, (3, 2), (1, 2)))
    with pytest.raises(ShapeError, match="one scan and posture"):
        read_patient(Case("m", good.ct, write(tmp_path / "m.nii.gz", moved), scheme="all"))
    with pytest.raises(ShapeError, match="no bone"):
        read_patient(Case("e", good.ct, write(tmp_path / "e.nii.gz", labels * 0), scheme="all"))
    with pytest.raises(ShapeError, match="--scheme"):
        read_patient(Case("n", good.ct, good.labels))
    names = {n: ALL.names[n] for n in range(1, len(ALL))}
    named = write(tmp_path / "named.nii.gz", labels, names=names)
    assert torch.equal(read_patient(Case("n", good.ct, named)).labels, _same(good))
    with pytest.raises(ImageError, match="one value"):
        prepare(read_patient(good), Preparation(shape=(8, 8, 8), voxel_mm=0.05, fine=1))
    with pytest.raises(FileError, match="holds no patient"):
        find_cases(tmp_path / "good", "verse")


def _same(case: Case) -> torch.Tensor:
    return read_patient(case).labels


def test_the_upright_grid_holds_all_of_an_oblique_one() -> None:
    turn = torch.linalg.matrix_exp(torch.tensor([[0, -0.4, 0.1], [0.4, 0, 0.2], [-0.1, -0.2, 0]]).double())
    affine = torch.eye(4, dtype=torch.float64)
    affine[:3, :3] = turn @ torch.diag(torch.tensor([2.0, -3.0, 4.0]).double())
    grid = VoxelGrid((10, 20, 30), affine)
    upright = upright_grid(grid, (40, 30, 32))
    assert bool(upright.contains(grid.box_corners * 0.999 + grid.center * 0.001).all())
    assert torch.equal(upright.affine[:3, :3].sign(), torch.diag(torch.tensor([-1.0, 1.0, 1.0]).double()))


def test_the_verb_makes_samples_and_names_what_it_leaves_out(tmp_path) -> None:
    case_of(tmp_path / "in" / "one", "LPS")
    ct, labels = body()
    write(tmp_path / "in" / "two" / "ct.nii.gz", ct)
    write(tmp_path / "in" / "two" / "label.nii.gz", labels * 0)
    words = ["shape", "prepare", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--dataset", "plain",
             "--scheme", "all", "--shape", "14", "12", "12", "--sdd", "900", "--sod", "700",
             "--view", "0", "0", "--view", "80", "10"]  # fmt: skip
    done = CliRunner().invoke(main, [*words, "--json"])
    assert done.exit_code == 3, done.output
    assert '"left_out"' in done.output
    assert "two" in done.output
    sample = Sample.load(tmp_path / "out" / "one")
    assert sample.grid.shape == (14, 12, 12)
    assert tuple(sample.films.shape) == (2, 28, 24)
    assert not sample.cameras[0].parallel
    assert Patient.load(tmp_path / "out" / "one").grid.shape == (28, 24, 24)
    assert not (tmp_path / "out" / "two").exists()
    assert CliRunner().invoke(main, [*words, "--sod", "3"]).exit_code == 1
    assert CliRunner().invoke(main, words[:-10]).exit_code == 3
    assert (
        CliRunner()
        .invoke(main, ["shape", "prepare", "x", "-o", "y", "--dataset", "verse", "--scheme", "all"])
        .exit_code
        == 2
    )


def test_nothing_is_left_where_no_patient_can_be_used(tmp_path) -> None:
    ct, labels = body()
    write(tmp_path / "in" / "two" / "ct.nii.gz", ct)
    write(tmp_path / "in" / "two" / "label.nii.gz", labels * 0)
    words = ["shape", "prepare", str(tmp_path / "in"), "-o", str(tmp_path / "new" / "out")]
    done = CliRunner().invoke(main, [*words, "--dataset", "plain", "--scheme", "all"])
    assert done.exit_code == 1
    assert "no patient could be used" in done.output
    assert not (tmp_path / "new").exists()


def test_published_patients_take_no_options_of_films(tmp_path) -> None:
    words = ["shape", "prepare", str(tmp_path), "-o", str(tmp_path / "out"), "--dataset", "swinx2s"]
    given = {
        "--rescale": ("1", "0"), "--fine": ("2",), "--view": ("0", "0"), "--sdd": ("900",), "--sod": ("700",),
        "--size": ("40", "40"), "--film": ("threshold",), "--sides": ("check",),
    }  # fmt: skip
    for option, values in given.items():
        alone = CliRunner().invoke(main, [*words, option, *values])
        assert alone.exit_code == 2
        assert f"{option}: not for --dataset swinx2s" in " ".join(alone.output.split())
    every = CliRunner().invoke(main, [*words, *(word for o, v in given.items() for word in (o, *v))])
    assert f"{', '.join(given)}: not for" in " ".join(every.output.split())
    used = CliRunner().invoke(main, [*words, "--shape", "14", "12", "12", "--voxel", "4"])
    assert used.exit_code == 1  # there is no patient in the folder
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("patient", ["0510", "0694"])
def test_published_patients_keep_their_own_films(shared_data, patient: str) -> None:
    folder = shared_data / "swinx2s" / patient
    if not folder.is_dir():
        pytest.skip("the patients of Swin-X2S are not among the shared data")
    sample, kept = prepare_shipped(folder)
    assert tuple(sample.films.shape) == (2, 160, 128)
    assert sample.grid.shape == (80, 64, 64)
    names = {sample.names[n] for n in sample.labels.unique().tolist() if n}
    assert {"L1", "L5", "T10"} <= names
    assert ("sacrum" in names) == (patient == "0510")
    assert bool(sample.known[ALL.index("sacrum")]) == (patient == "0510")
    assert not bool(sample.known[ALL.index("rib_left_7")])
    bone = kept.hu[kept.labels > 0].mean()
    assert 150 < float(bone) < 900
