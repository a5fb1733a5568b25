"""Which number is which bone: the project's schemes, those of public data sets, and the maps between them.

Bones have one name everywhere: C1 … C7, T1 … T12, L1 … L6, rib_left_1 … rib_right_12, sacrum, hip_right,
hip_left, femur_left, femur_right.  Sides are the patient's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from jaxtyping import Int16, Int64, Integer
from torch import Tensor

from ..errors import ShapeError
from .centroids import centroids

BACKGROUND = "background"
VERTEBRAE = (
    *(f"C{n}" for n in range(1, 8)),
    *(f"T{n}" for n in range(1, 13)),
    *(f"L{n}" for n in range(1, 7)),
)
_RIBS = {side: tuple(f"rib_{side}_{n}" for n in range(1, 13)) for side in ("left", "right")}
_HELD_BY = {"S1": "sacrum"}  # a part with a label of its own, where a coarser scheme has the whole only
_SHOWN = 12  # numbers in a message


@dataclass(frozen=True)
class Scheme:
    """The labels of a kind of label map: ``names[i]`` is what number i stands for, ``names[0]`` background.

    An empty name is a number that the scheme does not use.  Raises ShapeError where names are missing or
    repeated.
    """

    name: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        used = [n for n in self.names if n]
        if not self.names or self.names[0] != BACKGROUND or len(set(used)) != len(used):
            raise ShapeError(
                f'names of the scheme {self.name!r} must begin with "{BACKGROUND}" and differ, got '
                f"{self.names[:3]} …"
            )

    @classmethod
    def of_table(cls, name: str, table: Mapping[int, str]) -> Scheme:
        """A scheme from a table of names, such as `xreg.io.LabelMap.names` or a CSV has them.

        Names are read by `bone_name`, so that vertebrae_L5 becomes L5.  A number without a name is unused.
        """
        if not table or min(table) < 0:
            raise ShapeError(f"a table of names needs numbers of zero or more, got {dict(table)}")
        names = [BACKGROUND, *[""] * max(table)]
        for number, text in table.items():
            if number:
                names[number] = bone_name(text)
        return cls(name, tuple(names))

    def __len__(self) -> int:
        """Count of numbers, the background and unused ones included: the channels of a network."""
        return len(self.names)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers that stand for something, without the background."""
        return tuple(i for i, n in enumerate(self.names) if i and n)

    def index(self, name: str) -> int:
        """The number of a structure by its name (also as other tools write it).  Raises ShapeError."""
        for known in (name, bone_name(name)):
            if known and known in self.names:
                return self.names.index(known)
        raise ShapeError(
            f"the scheme {self.name!r} has no structure {name!r}; it has {_some(self.names[1:])}"
        )

    @property
    def mirror(self) -> Int64[Tensor, " L"]:
        """Number i becomes mirror[i] when left and right are exchanged."""
        swapped = [_other_side(n) for n in self.names]
        return torch.tensor([self.names.index(s) if s in self.names else i for i, s in enumerate(swapped)])

    @property
    def groups(self) -> dict[str, tuple[int, ...]]:
        """Numbers of each region that it has: spine (top first), ribs_left, ribs_right, pelvis, femurs."""
        members = {
            "spine": VERTEBRAE,
            "ribs_left": _RIBS["left"],
            "ribs_right": _RIBS["right"],
            "pelvis": ("sacrum", "S1", "hip_right", "hip_left"),
            "femurs": ("femur_left", "femur_right"),
        }
        found = {
            g: tuple(self.names.index(n) for n in names if n in self.names) for g, names in members.items()
        }
        return {group: numbers for group, numbers in found.items() if numbers}

    def require(self, labels: Integer[Tensor, "*shape"], what: str = "labels") -> None:
        """Raise ShapeError, naming them, where ``labels`` holds numbers that the scheme does not know."""
        present = torch.unique(torch.as_tensor(labels)).tolist()
        known = {0, *self.numbers}
        unknown = [n for n in present if n not in known]
        if unknown:
            raise ShapeError(
                f"{what}: the scheme {self.name!r} ({len(self.numbers)} structures, numbers up to "
                f"{len(self) - 1}) does not know the labels {_some(map(str, unknown))}; choose the scheme of "
                f"this file ({', '.join(SCHEMES)}), or give a table of its names"
            )

    def to(self, other: Scheme) -> Int64[Tensor, " L"]:
        """Table from this scheme's numbers to another's: ``other_labels = table[labels]``.

        Structures meet by name; what the other scheme lacks becomes background, see `dropped`.  A part (S1)
        becomes the whole (sacrum) where only that is known there.
        """
        return torch.tensor([self._counterpart(name, other) for name in self.names])

    def dropped(self, other: Scheme) -> tuple[str, ...]:
        """Names that become background in the other scheme."""
        return tuple(n for n in self.names[1:] if n and not self._counterpart(n, other))

    def known_in(self, other: Scheme) -> Tensor:
        """Bool [len(other)]: which of the other scheme's labels a label map of this scheme could hold."""
        known = torch.zeros(len(other), dtype=torch.bool)
        known[self.to(other)] = True
        known[0] = True
        return known

    @staticmethod
    def _counterpart(name: str, other: Scheme) -> int:
        for candidate in (name, _HELD_BY.get(name, "")):
            if candidate and candidate in other.names:
                return other.names.index(candidate)
        return 0


def scheme(which: str | Scheme) -> Scheme:
    """A scheme by its name.  Raises ShapeError, naming those that exist."""
    if isinstance(which, Scheme):
        return which
    if which not in SCHEMES:
        raise ShapeError(f"scheme must be one of {', '.join(SCHEMES)}, got {which!r}")
    return SCHEMES[which]


def relabel(
    labels: Integer[Tensor, "*shape"], source: str | Scheme, target: str | Scheme, *, what: str = "labels"
) -> Int16[Tensor, "*shape"]:
    """A label map in another scheme's numbers, int16.

    What the target lacks becomes background.  Raises ShapeError for numbers that the source does not know,
    and where the two schemes have no structure in common.
    """
    known, wanted = scheme(source), scheme(target)
    values = torch.as_tensor(labels)
    known.require(values, what)
    table = known.to(wanted)
    if not bool(table.any()):
        raise ShapeError(
            f"{what}: the schemes {known.name!r} and {wanted.name!r} have no structure in common"
        )
    return table.to(device=values.device, dtype=torch.int16)[values.long()]


def sides(labels: Integer[Tensor, "D H W"], affine: Any, source: str | Scheme) -> int:
    """Whether left and right in a label map are where its affine says: 1 yes, -1 exchanged, 0 unknown.

    labels: [D, H, W] in the numbers of ``source``; affine: [4, 4], index (i, j, k) to world RAS mm.  Each
    pair of bones (rib_left_5 and rib_right_5, the hips …) of which both are present votes by the R
    coordinates of their centroids; 0 where there is no pair, or votes are split.
    """
    known = scheme(source)
    across = torch.as_tensor(affine, dtype=torch.float64)[0, :3].cpu()
    place = (centroids(torch.as_tensor(labels).long(), len(known)) @ across).tolist()
    votes = [
        1 if place[i] < place[other] else -1
        for i, other in enumerate(known.mirror.tolist())
        if "left" in known.names[i].split("_") and other != i and isfinite(place[i] + place[other])
    ]
    return votes[0] if votes and len(set(votes)) == 1 else 0


def bone_name(text: str) -> str:
    """The project's name of a structure as other tools write it; other names are only tidied.

    vertebrae_L5, "Vertebra L5" and l5 are L5; "left hip" is hip_left; rib_12_right is rib_right_12.
    """
    words = [w for w in re.split(r"[\s_\-.,]+", text.strip().lower()) if w not in ("vertebrae", "vertebra")]
    if len(words) == 1 and re.fullmatch(r"[ctls]\d+", words[0]):
        return words[0].upper()
    sides = [w for w in words if w in ("left", "right")]
    rest = [w for w in words if w not in ("left", "right", "bone")]
    if len(sides) == 1 and rest and rest[0] in ("rib", "ribs", "hip", "hips", "femur"):
        return "_".join([rest[0].rstrip("s"), sides[0], *rest[1:]])
    return "_".join(words)


def _other_side(name: str) -> str:
    swap = {"left": "right", "right": "left"}
    return "_".join(swap.get(word, word) for word in name.split("_"))


def _some(items: Iterable[Any]) -> str:
    shown = [str(i) for i in items if str(i)]
    return ", ".join(shown[:_SHOWN]) + (f" … ({len(shown)} in all)" if len(shown) > _SHOWN else "")


_DOWN = VERTEBRAE[:24]  # C1 … L5
_UP = _DOWN[::-1]
# TotalSegmentator's classes: J. Wasserthal et al., Radiology: AI 5 (2023), and the class map of its release.
_TOTAL = (
    "spleen kidney_right kidney_left gallbladder liver stomach pancreas adrenal_gland_right "
    "adrenal_gland_left lung_upper_lobe_left lung_lower_lobe_left lung_upper_lobe_right "
    "lung_middle_lobe_right lung_lower_lobe_right esophagus trachea thyroid_gland small_bowel duodenum "
    "colon urinary_bladder prostate kidney_cyst_left kidney_cyst_right sacrum S1 {up} heart aorta "
    "pulmonary_vein brachiocephalic_trunk subclavian_artery_right subclavian_artery_left "
    "common_carotid_artery_right common_carotid_artery_left brachiocephalic_vein_left "
    "brachiocephalic_vein_right atrial_appendage_left superior_vena_cava inferior_vena_cava "
    "portal_vein_and_splenic_vein iliac_artery_left iliac_artery_right iliac_vena_left iliac_vena_right "
    "humerus_left humerus_right scapula_left scapula_right clavicula_left clavicula_right femur_left "
    "femur_right hip_left hip_right spinal_cord gluteus_maximus_left gluteus_maximus_right "
    "gluteus_medius_left gluteus_medius_right gluteus_minimus_left gluteus_minimus_right autochthon_left "
    "autochthon_right iliopsoas_left iliopsoas_right brain skull {left} {right} sternum costal_cartilages"
)
_TOTAL_V1 = (
    "spleen kidney_right kidney_left gallbladder liver stomach aorta inferior_vena_cava "
    "portal_vein_and_splenic_vein pancreas adrenal_gland_right adrenal_gland_left lung_upper_lobe_left "
    "lung_lower_lobe_left lung_upper_lobe_right lung_middle_lobe_right lung_lower_lobe_right {up} "
    "esophagus trachea heart_myocardium heart_atrium_left heart_ventricle_left heart_atrium_right "
    "heart_ventricle_right pulmonary_artery brain iliac_artery_left iliac_artery_right iliac_vena_left "
    "iliac_vena_right small_bowel duodenum colon {left} {right} humerus_left humerus_right scapula_left "
    "scapula_right clavicula_left clavicula_right femur_left femur_right hip_left hip_right sacrum face "
    "gluteus_maximus_left gluteus_maximus_right gluteus_medius_left gluteus_medius_right "
    "gluteus_minimus_left gluteus_minimus_right autochthon_left autochthon_right iliopsoas_left "
    "iliopsoas_right urinary_bladder"
)


def _listed(name: str, words: Iterable[str] | str) -> Scheme:
    if isinstance(words, str):
        words = words.format(
            up=" ".join(_UP), left=" ".join(_RIBS["left"]), right=" ".join(_RIBS["right"])
        ).split()
    return Scheme(name, (BACKGROUND, *words))


_ALL = (
    *VERTEBRAE,
    *_RIBS["left"],
    *_RIBS["right"],
    "sacrum",
    "hip_right",
    "hip_left",
    "femur_left",
    "femur_right",
)
SCHEMES: dict[str, Scheme] = {
    s.name: s
    for s in (
        _listed("all", _ALL),
        _listed("spine", VERTEBRAE),
        _listed("pelvis", ("sacrum", "hip_left", "hip_right")),
        _listed("totalsegmentator", _TOTAL),  # version 2
        _listed("totalsegmentator_v1", _TOTAL_V1),
        # A. Sekuboyina et al., VerSe, Medical Image Analysis 73 (2021); 28 is a thirteenth thoracic vertebra.
        _listed("verse", (*VERTEBRAE, "sacrum", "coccyx", "T13")),
        # Y. Deng et al., CTSpine1K, arXiv:2105.14711.
        _listed("ctspine1k", VERTEBRAE),
        # P. Liu et al., CTPelvic1K, IJCARS 16 (2021); 4 is the lumbar spine as one.
        _listed("ctpelvic1k", ("sacrum", "hip_left", "hip_right", "lumbar_spine")),
        # L. Jin et al., RibSeg v2, IEEE TMI 43 (2024): 24 ribs.  Its documents do not say which side comes
        # first; right is assumed, so ask `sides` of each file and mirror the labels where it answers -1.
        _listed("ribseg", (*_RIBS["right"], *_RIBS["left"])),
    )
}
