"""Where data sets keep a patient's CT and label maps, and in which scheme; nothing is read but names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from xreg.errors import FileError

LAYOUTS = {
    "totalsegmentator": "PATIENT/ct.nii.gz with PATIENT/segmentations/STRUCTURE.nii.gz (0/1, one each), "
    "or one PATIENT/label.nii.gz in the classes of version 2",
    "ctpelvic1k": "NAME_data.nii.gz with NAME_mask_4label.nii.gz, in any folders",
    "ctspine1k": "NAME.nii.gz with NAME_seg.nii.gz, in any folders",
    "verse": "rawdata/**/SUB_ct.nii.gz with derivatives/**/SUB_seg-vert_msk.nii.gz (as of 2021)",
    "ribseg": "NAME-image.nii.gz with NAME-rib-seg.nii.gz, in any folders",
    "swinx2s": "PATIENT/film_cor.nii.gz, film_sag.nii.gz, label_SCHEME.nii.gz and mostly ct.nii.gz; "
    "these films are kept, not rendered",
    "plain": "PATIENT/ct.nii.gz with PATIENT/label.nii.gz, or NAME.nii.gz with NAME_label.nii.gz; say "
    "--scheme or --names",
}
# The ending of a CT, and of its label map, which stand for the same name.
_ENDINGS = {
    "ctpelvic1k": ("_data.nii.gz", "_mask_4label.nii.gz"),
    "ctspine1k": (".nii.gz", "_seg.nii.gz"),
    "verse": ("_ct.nii.gz", "_seg-vert_msk.nii.gz"),
    "ribseg": ("-image.nii.gz", "-rib-seg.nii.gz"),
    "plain": (".nii.gz", "_label.nii.gz"),
}
_SCHEMES = {"ctpelvic1k": "ctpelvic1k", "ctspine1k": "ctspine1k", "verse": "verse", "ribseg": "ribseg"}


@dataclass(frozen=True)
class Case:
    """A patient's files.  parts: 0/1 masks by structure; labels: one map of all; ``scheme``: its numbers."""

    name: str
    ct: Path
    labels: Path | None = None
    parts: tuple[tuple[str, Path], ...] = ()
    scheme: str | None = None


def find_cases(folder: Path, dataset: str) -> list[Case]:
    """Patients in a data set's folder, by name.  Raises FileError where none lie as `LAYOUTS` says."""
    if dataset not in LAYOUTS or dataset == "swinx2s":
        raise FileError(f"dataset must be one of {', '.join(LAYOUTS)}, got {dataset!r}")
    if not folder.is_dir():
        raise FileError(f"{folder}: no such folder; expected a data set: {LAYOUTS[dataset]}")
    cases = []
    if dataset in ("totalsegmentator", "plain"):
        cases = [case for place in _places(folder) if (case := _in_folder(place, dataset))]
    if dataset in _ENDINGS and not cases:
        cases = _by_endings(folder, dataset)
    if not cases:
        raise FileError(f"{folder}: holds no patient as {dataset} has them: {LAYOUTS[dataset]}")
    names = [case.name for case in cases]
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise FileError(
            f"{folder}: {', '.join(twice[:5])} occur more than once; prepare the folders one by one"
        )
    return sorted(cases, key=lambda case: case.name)


def _places(folder: Path) -> list[Path]:
    return sorted(file.parent for file in (*folder.glob("ct.nii.gz"), *folder.glob("*/ct.nii.gz")))


def _in_folder(place: Path, dataset: str) -> Case | None:
    parts = tuple(
        (file.name.removesuffix(".nii.gz"), file)
        for file in sorted((place / "segmentations").glob("*.nii.gz"))
    )
    whole = place / "label.nii.gz"
    if dataset == "totalsegmentator" and parts:
        return Case(place.name, place / "ct.nii.gz", parts=parts)
    if whole.is_file():
        scheme = "totalsegmentator" if dataset == "totalsegmentator" else None
        return Case(place.name, place / "ct.nii.gz", labels=whole, scheme=scheme)
    return None


def _by_endings(folder: Path, dataset: str) -> list[Case]:
    image, label = _ENDINGS[dataset]
    labels = {file.name.removesuffix(label): file for file in folder.rglob(f"*{label}")}
    cases = []
    for file in folder.rglob(f"*{image}"):
        if file.name.endswith(label):
            continue
        name = file.name.removesuffix(image)
        if name in labels:
            cases.append(Case(name, file, labels[name], scheme=_SCHEMES.get(dataset)))
    return cases
