"""A CT volume that can be rendered: attenuation on a grid, where the grid lies, and what its voxels are."""

from __future__ import annotations

import difflib
import math
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Real
from os import PathLike
from typing import Any

import torch
from jaxtyping import Float, Float64, Int16, Integer
from torch import Tensor

from .attenuation import check_energy, hu_to_mu, mu_at_energy, mu_to_hu
from .errors import VolumeError
from .geometry._numbers import as_tensor
from .io.grid import (
    axis_weights,
    channels_of,
    check_affine,
    check_box,
    check_finite,
    check_labels,
    check_mu,
    closest_axes,
    labelled,
    quantise,
)
from .io.lattice import Lattice

_CACHE_LOCK = threading.Lock()


@dataclass(frozen=True, eq=False, repr=False)
class Volume(Lattice):
    """Linear attenuation on a regular grid, with its place in the world and optional labels.

    mu: float32 or float64 [D, H, W] (index [k, j, i]), linear attenuation in 1/mm; may require grad.
    affine: [4, 4], voxel index (i, j, k) = (x, y, z) to world RAS mm; kept as float64 on the CPU.  Voxel
        centres sit at integer indices.  The determinant may be negative (LAS grids are ordinary).
    labels: integer [D, H, W] or None; 0 is background.  Kept as uint8 where the largest is at most 255.
    label_names: label number to name.
    energy_kev: effective energy at which mu is stated, None where it is not known.
    provenance: where the voxels came from and what was done to them.

    Raises VolumeError for a mu that is not floating, not 3D, not finite or without one voxel above zero;
    for a singular or non-finite affine; for labels of another shape, negative or not integers.
    """

    mu: Float[Tensor, "D H W"]
    affine: Float64[Tensor, "4 4"]
    labels: Integer[Tensor, "D H W"] | None = None
    label_names: Mapping[int, str] = field(default_factory=dict)
    energy_kev: float | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = check_mu(self.mu)
        put = object.__setattr__
        put(self, "mu", self.mu.contiguous())
        put(self, "affine", check_affine(self.affine))
        put(self, "labels", check_labels(self.labels, self.mu))
        put(self, "label_names", {int(number): str(name) for number, name in dict(self.label_names).items()})
        put(self, "energy_kev", None if self.energy_kev is None else check_energy(self.energy_kev))
        put(self, "provenance", dict(self.provenance))
        put(self, "_range", (low, high))
        put(self, "_made", {})

    @classmethod
    def load(cls, path: str | PathLike, *, mask: str | PathLike | None = None, **options: Any) -> Volume:
        """Read a CT from a NIfTI file or a folder of DICOM slices, with an optional label map beside it.

        ``mask`` is a NIfTI label map on the same grid.  ``options`` are those of ``xreg.io.load_volume``:
        energy_kev=70, ct_energy_kev=70 (effective, in keV), units="hu"|"mu"|"auto", label_names (dict, CSV
        or JSON), series_uid and recursive (DICOM), dtype.  Raises FileError and VolumeError.
        """
        from .io import load_volume

        return load_volume(path, mask=mask, **options)

    @classmethod
    def from_hu(
        cls,
        hu: Float[Tensor, "D H W"],
        affine: Float64[Tensor, "4 4"],
        *,
        energy_kev: float = 70.0,
        ct_energy_kev: float = 70.0,
        labels: Integer[Tensor, "D H W"] | None = None,
        label_names: Mapping[int, str] | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Volume:
        """Make a volume from CT numbers [D, H, W]: attenuation at ``energy_kev`` by ``hu_to_mu``.

        hu: floating or integer (becomes float32); ``ct_energy_kev`` is the CT's effective energy.  Gradients
        flow to ``hu``.  Raises VolumeError.
        """
        values = as_tensor(hu)
        if values.is_floating_point():
            check_finite(values, "hu")
        notes = {**(provenance or {}), "ct_energy_kev": float(ct_energy_kev)}
        mu = hu_to_mu(values, energy_kev, ct_energy_kev=ct_energy_kev)
        return cls(mu, affine, labels, label_names or {}, energy_kev, notes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (D, H, W), that is along k, j and i."""
        return tuple(self.mu.shape)

    @property
    def axis_codes(self) -> str:
        """Which way i, j and k grow, such as "RAS" or "LPS" (nearest anatomical direction of each)."""
        axes, flips = closest_axes(self.affine)
        return "".join(("LPI" if f else "RAS")[a] for a, f in zip(axes, flips, strict=True))

    @property
    def hu(self) -> Float[Tensor, "D H W"]:
        """CT numbers at the CT's energy, by ``mu_to_hu``; gradients flow to mu.  Needs ``energy_kev``."""
        return mu_to_hu(self.mu, self._energy("hu"), ct_energy_kev=self.ct_energy_kev)

    @property
    def ct_energy_kev(self) -> float:
        """Effective energy of the CT in keV: the one it was loaded with, otherwise 70."""
        return float(self.provenance.get("ct_energy_kev", 70.0))

    def crop(
        self,
        box: Iterable[tuple[int, int]] | None = None,
        *,
        labels: int | str | Iterable[int | str] | None = None,
        margin_mm: float = 0.0,
    ) -> Volume:
        """Cut out a box of voxels; every voxel kept stays where it was in the world.

        box: three half-open index ranges (start, stop) along i, j and k.  Or ``labels``: the smallest box
        round these structures plus ``margin_mm`` on each side, cut at the edge of the grid.  Gradients
        flow to mu.  Raises VolumeError for an empty or outside box, or a label without a voxel.
        """
        if (box is None) == (labels is None):
            raise VolumeError(
                "crop takes either box (three index ranges along i, j, k) or labels, and not both"
            )
        if not (math.isfinite(margin_mm) and margin_mm >= 0):
            raise VolumeError(f"margin_mm must be a finite number of mm, zero or more, got {margin_mm}")
        ranges = self._label_box(labels, margin_mm) if box is None else check_box(box, self.size)
        (i0, i1), (j0, j1), (k0, k1) = ranges
        part = (slice(k0, k1), slice(j0, j1), slice(i0, i1))
        shift = torch.eye(4, dtype=torch.float64)
        shift[:3, 3] = torch.tensor([i0, j0, k0], dtype=torch.float64)
        cut = None if self.labels is None else self.labels[part]
        return self._changed("crop", ranges, mu=self.mu[part], affine=self.affine @ shift, labels=cut)

    def resample(self, spacing: float | Iterable[float], *, antialias: bool = True) -> Volume:
        """Resample to another voxel spacing in mm (one number, or one each along i, j and k).

        mu is interpolated trilinearly; where voxels grow, it is averaged over the new voxel first
        (``antialias=False`` samples at its centre only).  Labels take the nearest voxel.  The middle of the
        grid stays; the box of voxels agrees to half a new voxel.  Samples beyond the outermost centres repeat
        them.  Gradients flow to mu.  Raises VolumeError.
        """
        target = (spacing,) * 3 if isinstance(spacing, Real) else tuple(spacing)
        if len(target) != 3 or not all(math.isfinite(s) and s > 0 for s in target):
            raise VolumeError(
                f"spacing must be one or three positive numbers of mm along i, j, k, got {spacing}"
            )
        ratio = [float(new) / old for new, old in zip(target, self.spacing, strict=True)]
        count = [max(1, round(n / r)) for n, r in zip(self.size, ratio, strict=True)]
        start = [(n - 1) / 2 - r * (m - 1) / 2 for n, r, m in zip(self.size, ratio, count, strict=True)]
        mu, labels = self.mu, self.labels
        for axis, (n, m, r, o) in enumerate(zip(self.size, count, ratio, start, strict=True)):
            weights = axis_weights(n, m, r, o, antialias).to(mu)
            mu = torch.movedim(torch.movedim(mu, 2 - axis, -1) @ weights.T, -1, 2 - axis)
            if labels is not None:
                nearest = (o + r * torch.arange(m, dtype=torch.float64)).round().clamp(0, n - 1).long()
                labels = labels.index_select(2 - axis, nearest.to(labels.device))
        change = torch.eye(4, dtype=torch.float64)
        change[:3, :3] = torch.diag(torch.tensor(ratio, dtype=torch.float64))
        change[:3, 3] = torch.tensor(start, dtype=torch.float64)
        return self._changed("resample", target, mu=mu, affine=self.affine @ change, labels=labels)

    def threshold(self, min_mu: float | None = None, *, min_hu: float | None = None) -> Volume:
        """Set mu to zero below a limit in 1/mm, or below a CT number (which needs ``energy_kev``).

        Gradients flow through the voxels that stay.  Raises VolumeError where none would.
        """
        if (min_mu is None) == (min_hu is None):
            raise VolumeError("threshold takes either min_mu (1/mm) or min_hu (CT number), and not both")
        if min_mu is None:
            limit = torch.tensor(float(min_hu), dtype=torch.float64)
            min_mu = float(hu_to_mu(limit, self._energy("min_hu"), ct_energy_kev=self.ct_energy_kev))
        kept = torch.where(self.mu < min_mu, torch.zeros_like(self.mu), self.mu)
        if not bool((kept.detach() > 0).any()):
            raise VolumeError(
                f"threshold at {min_mu:.4g} /mm leaves no voxel; the largest mu is {self._range[1]:.4g} /mm"
            )
        return self._changed("threshold", float(min_mu), mu=kept)

    def only(self, labels: int | str | Iterable[int | str]) -> Volume:
        """Keep only the voxels of these structures, by number or name; mu and labels elsewhere become zero.

        Gradients flow through the voxels kept.  Raises VolumeError for an unknown name or an absent label.
        """
        numbers = self.label_numbers(labels)
        inside = self._label_mask(numbers)
        mu = torch.where(inside, self.mu, torch.zeros_like(self.mu))
        cut = torch.where(inside, self.labels, torch.zeros_like(self.labels))
        return self._changed("only", numbers, mu=mu, labels=cut)

    def label_numbers(self, labels: int | str | Iterable[int | str]) -> list[int]:
        """The numbers of structures given by number or by name.  Raises VolumeError for an unknown name."""
        self._some_labels()
        wanted = [labels] if isinstance(labels, (int, str)) else list(labels)
        numbers: list[int] = []
        for item in wanted:
            found = [n for n, name in self.label_names.items() if name == item]
            if isinstance(item, str) and not found:
                near = difflib.get_close_matches(item, self.label_names.values(), n=3, cutoff=0.4)
                known = (
                    f"{len(self.label_names)} names are known"
                    if self.label_names
                    else ("none has a name: give label_names (--label-names), or use numbers")
                )
                hint = f"did you mean {', '.join(near)}?" if near else known
                raise VolumeError(f"no label is named {item!r}; {hint}")
            numbers += found if isinstance(item, str) else [int(item)]
        if not numbers:
            raise VolumeError("labels must name at least one structure, got none")
        return numbers

    def at_energy(self, energy_kev: float) -> Volume:
        """The same anatomy seen at another effective energy in keV; needs ``energy_kev``.  Gradients flow."""
        old, new = self._energy("at_energy"), check_energy(energy_kev)
        if old == new:
            return self
        mu = mu_at_energy(self.mu, old, new, ct_energy_kev=self.ct_energy_kev)
        return self._changed("at_energy", new, mu=mu, energy_kev=new)

    def reoriented(self) -> Volume:
        """The same voxels with axes permuted and flipped so that i, j, k grow nearest to R, A, S.

        Nothing is interpolated; an oblique grid stays oblique.  Gradients flow to mu.
        """
        axes, flips = closest_axes(self.affine)
        if axes == (0, 1, 2) and not any(flips):
            return self
        change = torch.zeros(4, 4, dtype=torch.float64)
        change[3, 3] = 1.0
        for old, (new, flip) in enumerate(zip(axes, flips, strict=True)):
            change[old, new] = -1.0 if flip else 1.0
            change[old, 3] = self.size[old] - 1 if flip else 0.0
        flipped = [2 - old for old in range(3) if flips[old]]
        order = [2 - axes.index(new) for new in (2, 1, 0)]
        mu = self.mu.flip(flipped).permute(order)
        labels = None if self.labels is None else self.labels.flip(flipped).permute(order).contiguous()
        return self._changed("reoriented", "RAS", mu=mu, affine=self.affine @ change, labels=labels)

    def quantised(self) -> tuple[Int16[Tensor, "D H W"], float]:
        """Voxels as int16 and their scale in 1/mm: mu ≈ q · scale, scale = max|mu| / 32767.

        Off by at most half a scale.  Computed once and kept, again after torch changed mu in place, and each
        time for a mu that requires grad.  Torch is not told of changes through NumPy or ``.data``: make a new
        Volume after these.  Carries no gradient.
        """
        mu = self.mu.detach()
        return quantise(mu) if self.mu.requires_grad else self._kept("quantised", mu, quantise)

    def label_channels(self) -> tuple[Int16[Tensor, "D H W"], int]:
        """Labels as int16, and how many channels they fill: the largest label and one more.

        Computed once and kept, again after torch changed labels in place.  Raises VolumeError without labels,
        and for labels above 32767.
        """
        return self._kept("labels", self._some_labels(), channels_of)

    def to(self, device: torch.device | str | None = None, *, dtype: torch.dtype | None = None) -> Volume:
        """The same volume on another device or in another floating dtype; the affine stays on the CPU."""
        mu = self.mu.to(device=device, dtype=dtype)
        if mu is self.mu:
            return self
        return replace(self, mu=mu, labels=None if self.labels is None else self.labels.to(mu.device))

    def save(self, path: str | PathLike, *, units: str = "mu", labels: str | PathLike | None = None) -> None:
        """Write NIfTI, atomically: mu as float32 in 1/mm, or with units="hu" CT numbers as int16.

        ``labels`` is a second path for the label map.  Raises FileError and VolumeError.
        """
        from .io import save_volume

        save_volume(path, self, units=units, labels=labels)

    def __repr__(self) -> str:
        size = "×".join(str(n) for n in self.size)
        spacing = "×".join(f"{s:.4g}" for s in self.spacing)
        energy = "unknown energy" if self.energy_kev is None else f"{self.energy_kev:g} keV"
        count = 0 if self.labels is None else len(self.label_names)
        labels = "no labels" if self.labels is None else f"labels ({count} named)"
        dtype = str(self.mu.dtype).removeprefix("torch.")
        return (
            f"Volume({size} voxels [i×j×k] of {spacing} mm, {self.axis_codes}, "
            f"µ {self._range[0]:.3g}…{self._range[1]:.3g} /mm at {energy}, {labels}, "
            f"{dtype} on {self.mu.device})"
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}  # a copied tensor counts its changes anew

    def _changed(self, step: str, detail: Any, **fields: Any) -> Volume:
        steps = (*self.provenance.get("steps", ()), (step, detail))
        return replace(self, **fields, provenance={**self.provenance, "steps": steps})

    def _kept(self, name: str, source: Tensor, make: Callable[[Tensor], Any]) -> Any:
        """``make(source)``, kept until ``source`` is changed in place."""
        if source.is_inference():  # which does not count its changes
            return make(source)
        with _CACHE_LOCK:
            if name not in self._made or self._made[name][0] != source._version:
                self._made[name] = (source._version, make(source))
            return self._made[name][1]

    def _some_labels(self) -> Integer[Tensor, "D H W"]:
        if self.labels is None:
            raise VolumeError(
                "this volume has no labels; load it with mask=, or pass labels= with the shape of mu"
            )
        return self.labels

    def _energy(self, what: str) -> float:
        if self.energy_kev is None:
            raise VolumeError(
                f"{what} needs the energy at which mu is stated; make the volume with energy_kev="
            )
        return self.energy_kev

    def _label_mask(self, numbers: list[int]) -> Tensor:
        inside = labelled(self.labels, numbers)
        if not bool(inside.any()):
            present = self.labels.unique().tolist()
            shown = ", ".join(str(n) for n in present[:20]) + (" …" if len(present) > 20 else "")
            raise VolumeError(f"no voxel has label {numbers}; the labels present are {shown}")
        return inside

    def _label_box(self, labels: Any, margin_mm: float) -> list[tuple[int, int]]:
        inside = self._label_mask(self.label_numbers(labels))
        ranges = []
        for axis, (n, spacing) in enumerate(zip(self.size, self.spacing, strict=True)):
            others = [d for d in range(3) if d != 2 - axis]
            hit = inside.any(dim=others[1]).any(dim=others[0]).nonzero()
            extra = math.ceil(margin_mm / spacing - 1e-9)
            ranges.append((max(0, int(hit.min()) - extra), min(n, int(hit.max()) + 1 + extra)))
        return ranges
