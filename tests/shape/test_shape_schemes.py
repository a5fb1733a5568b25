import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from xreg.errors import ShapeError
from xreg.io import load_labels
from xreg.shape import SCHEMES, Scheme, relabel, scheme, sides
from xreg.shape.schemes import bone_name


def test_the_scheme_of_54_bones():
    bones = SCHEMES["all"]
    assert len(bones.numbers) == 54
    known = {1: "C1", 8: "T1", 20: "L1", 25: "L6", 26: "rib_left_1", 37: "rib_left_12", 38: "rib_right_1",
             50: "sacrum", 51: "hip_right", 52: "hip_left", 53: "femur_left", 54: "femur_right"}  # fmt: skip
    assert {n: bones.names[n] for n in known} == known
    assert bones.names[:26] == SCHEMES["spine"].names
    assert {name: len(numbers) for name, numbers in bones.groups.items()} == {
        "spine": 25, "ribs_left": 12, "ribs_right": 12, "pelvis": 3, "femurs": 2,
    }  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_the_mirror_is_its_own_inverse_and_keeps_what_has_no_side(name):
    known = SCHEMES[name]
    mirror = known.mirror
    assert torch.equal(mirror[mirror], torch.arange(len(known)))
    for i, other in enumerate(mirror.tolist()):
        words = known.names[i].split("_")
        sided = "left" in words or "right" in words
        assert (other != i) == (sided and known.names[other] != known.names[i])


@pytest.mark.parametrize("name", SCHEMES)
def test_bones_survive_the_way_to_the_54_and_back(name):
    here, there = SCHEMES[name], SCHEMES["all"]
    back = there.to(here)[here.to(there)]
    kept = [i for i in here.numbers if here.names[i] in there.names]
    assert kept
    assert back[kept].tolist() == kept
    assert set(here.dropped(there)) == {here.names[i] for i in here.numbers if not here.to(there)[i]}


def test_maps_of_public_data_sets():
    into = {name: SCHEMES[name].to(SCHEMES["all"]).tolist() for name in SCHEMES}
    assert into["pelvis"] == [0, 50, 52, 51]
    assert into["ctpelvic1k"] == [0, 50, 52, 51, 0]
    assert into["verse"][20] == 20
    assert into["verse"][26:] == [50, 0, 0]
    total = into["totalsegmentator"]
    assert (total[25], total[26], total[27], total[50], total[92], total[104]) == (50, 50, 24, 1, 26, 38)
    assert (total[75], total[76], total[77], total[78], total[5]) == (53, 54, 52, 51, 0)
    first = into["totalsegmentator_v1"]
    assert (first[18], first[41], first[58], first[70], first[88], first[90], first[92]) == (
        24, 1, 26, 38, 53, 52, 50,
    )  # fmt: skip
    known = SCHEMES["spine"].known_in(SCHEMES["all"])
    assert known.nonzero().flatten().tolist() == list(range(26))


def test_relabel_moves_numbers_and_refuses_unknown_ones():
    labels = torch.tensor([[[0, 1, 2, 3]]], dtype=torch.uint8)
    assert relabel(labels, "pelvis", "all").tolist() == [[[0, 50, 52, 51]]]
    assert relabel(labels, "pelvis", "all").dtype == torch.int16
    with pytest.raises(ShapeError, match=r"film\.nii.*'pelvis'.*4, 9"):
        relabel(torch.tensor([0, 4, 9]), "pelvis", "all", what="film.nii")
    with pytest.raises(ShapeError, match="no structure in common"):
        relabel(labels, "pelvis", "ribseg")
    with pytest.raises(ShapeError, match="one of all, spine"):
        scheme("everything")


def test_a_table_of_names_makes_a_scheme():
    known = Scheme.of_table("mine", {1: "vertebrae_L5", 4: "Left hip", 6: "liver"})
    assert known.names == ("background", "L5", "", "", "hip_left", "", "liver")
    assert known.to(SCHEMES["all"]).tolist() == [0, 24, 0, 0, 52, 0, 0]
    assert known.index("hip_left") == 4
    with pytest.raises(ShapeError, match="labels 2"):
        known.require(torch.tensor([0, 2]))
    with pytest.raises(ShapeError, match="no structure 'T3'"):
        known.index("T3")
    with pytest.raises(ShapeError, match="differ"):
        Scheme.of_table("twice", {1: "L5", 2: "vertebra L5"})
    with pytest.raises(ShapeError, match="needs numbers"):
        Scheme.of_table("none", {})


@pytest.mark.parametrize(
    ("text", "name"),
    [("vertebrae_T12", "T12"), ("Vertebra L5", "L5"), ("c1", "C1"), ("rib_left_3", "rib_left_3"),
     ("rib 3 left", "rib_left_3"), ("Left Femur", "femur_left"), ("hip bone, right", "hip_right"),
     ("right hip bone", "hip_right"), ("kidney_left", "kidney_left"), ("sacrum", "sacrum")],
)  # fmt: skip
def test_names_of_other_tools(text, name):
    assert bone_name(text) == name


@given(st.sampled_from(sorted(SCHEMES)), st.data())
def test_every_name_finds_its_number(name, data):
    known = SCHEMES[name]
    number = data.draw(st.sampled_from(known.numbers))
    assert known.index(known.names[number]) == number


def test_sides_are_told_from_the_affine():
    labels = torch.zeros(4, 6, 8, dtype=torch.int16)
    labels[:2, 2:4, 1], labels[:2, 2:4, 6] = 51, 52  # right hip at small i
    left_up = torch.diag(torch.tensor([-2.0, -2.0, 2.0, 1.0], dtype=torch.float64))  # i grows to the left
    assert sides(labels, left_up, "all") == 1
    assert sides(labels, torch.diag(torch.tensor([2.0, -2.0, 2.0, 1.0])), "all") == -1
    assert sides(SCHEMES["all"].mirror[labels.long()], left_up, "all") == -1
    oblique = left_up.clone()
    oblique[0] = torch.tensor([-1.6, 1.2, 0.3, 40.0])
    assert sides(labels, oblique, "all") == 1
    assert sides((labels == 51).int() * 51, left_up, "all") == 0


def test_totalsegmentator_s_own_table_is_our_scheme(shared_data):
    found = load_labels(shared_data / "totalseg" / "label.nii.gz")
    assert Scheme.of_table("file", found.names).names == SCHEMES["totalsegmentator"].names
    SCHEMES["totalsegmentator"].require(found.labels)
    assert sides(found.labels, found.affine, "totalsegmentator") == 1
