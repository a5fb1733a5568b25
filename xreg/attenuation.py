"""Hounsfield units to linear attenuation, with the beam's energy stated.

A CT number says how much a voxel attenuates relative to water *at the CT's own effective energy*.
A radiograph is often taken at another energy, where bone is relatively brighter or darker.
``hu_to_mu`` carries a CT number over: up to water by scaling water, above by mixing soft tissue and
cortical bone, exact where both energies agree.

Mass attenuation coefficients are the values of J. H. Hubbell and S. M. Seltzer, "Tables of X-Ray Mass
Attenuation Coefficients", NISTIR 5632 (NIST Standard Reference Database 126, from XCOM), for liquid
water, ICRU-44 skeletal muscle (here: soft tissue) and ICRU-44 cortical bone, with the densities of the
same publication.  Between table energies they are interpolated linearly in log-log.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .errors import VolumeError

MIN_KEV = 20.0
MAX_KEV = 150.0

_TABLE_KEV = (20.0, 30.0, 40.0, 50.0, 60.0, 80.0, 100.0, 150.0)
# µ/ρ in cm²/g at the energies above, and the density in g/cm³
_MATERIALS: dict[str, tuple[float, tuple[float, ...]]] = {
    "water": (1.000, (0.8096, 0.3756, 0.2683, 0.2269, 0.2059, 0.1837, 0.1707, 0.1505)),
    "soft_tissue": (1.050, (0.8205, 0.3783, 0.2685, 0.2262, 0.2048, 0.1823, 0.1693, 0.1492)),
    "bone": (1.920, (4.001, 1.331, 0.6655, 0.4242, 0.3148, 0.2229, 0.1855, 0.1480)),
}

# Soft tissue lies near 50 HU; the bone share grows from nothing to its full slope between these CT numbers.
_KNEE_LOW_HU = 0.0
_KNEE_HIGH_HU = 100.0
_KNEE_MIDDLE_HU = 0.5 * (_KNEE_LOW_HU + _KNEE_HIGH_HU)

# A CT is worked on in blocks of as many numbers as torch gives to one thread, so that no step waits for
# another thread on a busy machine, and few enough for what lies between steps to stay in a core's cache.
_BLOCK = 1 << 15


def materials() -> tuple[str, ...]:
    """The materials that ``linear_attenuation`` knows."""
    return tuple(_MATERIALS)


def check_energy(energy_kev: float, name: str = "energy_kev") -> float:
    """Return the energy as a float in keV; raises VolumeError outside 20 to 150 keV."""
    try:
        energy = float(energy_kev)
    except (TypeError, ValueError) as error:
        raise VolumeError(f"{name} must be a number in keV, got {energy_kev!r}") from error
    if not MIN_KEV <= energy <= MAX_KEV:
        raise VolumeError(
            f"{name} must lie between {MIN_KEV:g} and {MAX_KEV:g} keV (the effective, not the peak, energy), "
            f"got {energy:g}; the effective energy of a tube is roughly half its kVp"
        )
    return energy


def linear_attenuation(material: str, energy_kev: float) -> float:
    """Linear attenuation of a material in 1/mm at an energy in keV.

    ``material`` is "water" (1.00 g/cm³), "soft_tissue" (ICRU-44 skeletal muscle, 1.05 g/cm³) or "bone"
    (ICRU-44 cortical, 1.92 g/cm³).  The table of NISTIR 5632 is interpolated linearly in log-log, which is
    within about 1 % of XCOM between its entries.  Raises VolumeError for another material or energy.
    """
    energy = check_energy(energy_kev)
    if material not in _MATERIALS:
        raise VolumeError(f"material must be one of {', '.join(_MATERIALS)}, got {material!r}")
    density, values = _MATERIALS[material]
    right = next(i for i in range(1, len(_TABLE_KEV)) if energy <= _TABLE_KEV[i])
    low, high = _TABLE_KEV[right - 1], _TABLE_KEV[right]
    share = math.log(energy / low) / math.log(high / low)
    mass = math.exp((1.0 - share) * math.log(values[right - 1]) + share * math.log(values[right]))
    return 0.1 * density * mass


def _slopes(energy_kev: float, ct_energy_kev: float) -> tuple[float, float]:
    """µ of water at the energy in 1/mm, and the extra slope of µ per HU above the knee, in 1/mm.

    The extra slope makes µ of cortical bone come out exactly at bone's own CT number.  Raises VolumeError.
    """
    energy_kev, ct_energy_kev = check_energy(energy_kev), check_energy(ct_energy_kev, "ct_energy_kev")
    water = linear_attenuation("water", energy_kev)
    bone = linear_attenuation("bone", energy_kev)
    if energy_kev == ct_energy_kev:
        return water, 0.0
    ct_water = linear_attenuation("water", ct_energy_kev)
    bone_hu = 1000.0 * (linear_attenuation("bone", ct_energy_kev) / ct_water - 1.0)
    extra = (bone - water * (1.0 + 1e-3 * bone_hu)) / (bone_hu - _KNEE_MIDDLE_HU)
    return water, extra


def _each(values: Tensor, name: str, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of real numbers, each on its own; integers become float32 first.

    Large tensors without a gradient go block by block, which gives the same bits: each step of a formula over
    a whole CT is a pass through main memory into a new buffer.
    """
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError) as error:  # NumPy's views that run backwards among them
        raise VolumeError(f"{name} must be numbers that torch can hold as they lie: {error}") from error
    if tensor.is_complex():
        raise VolumeError(f"{name} must be real numbers, got {tensor.dtype}")
    dtype = tensor.dtype if tensor.is_floating_point() else torch.float32
    tracked = tensor.requires_grad and torch.is_grad_enabled()
    whole = tracked or tensor.device.type != "cpu" or not tensor.is_contiguous()
    if whole or tensor.numel() <= _BLOCK:
        return function(tensor.to(dtype))
    result = torch.empty_like(tensor, dtype=dtype)
    for source, target in zip(tensor.view(-1).split(_BLOCK), result.view(-1).split(_BLOCK), strict=True):
        target.copy_(function(source.to(dtype)))
    return result


def hu_to_mu(
    hu: Float[Tensor, " *shape"], energy_kev: float = 70.0, *, ct_energy_kev: float = 70.0
) -> Float[Tensor, " *shape"]:
    """Linear attenuation in 1/mm at ``energy_kev`` of CT numbers measured at ``ct_energy_kev``.

    hu: CT numbers, any shape; integers become float32, other dtypes stay.  CT numbers under −1000
    (padding outside the scanner's circle) are read as air, µ = 0.  Both energies are effective energies
    in keV, 20 to 150.

    µ = µ_water (1 + HU/1000) at the CT's own energy.  At another energy the part above soft tissue is
    read as cortical bone: a second slope, joined by a parabola over 0 to 100 HU, such that cortical bone
    has its tabulated µ at both energies.  The result is continuous with a continuous derivative above
    −1000 HU, and increases with HU.  Gradients flow to ``hu``, zero under −1000.  Raises VolumeError.
    """
    slopes = _slopes(energy_kev, ct_energy_kev)
    return _each(hu, "hu", lambda part: _mu_of(part, *slopes))


def mu_to_hu(
    mu: Float[Tensor, " *shape"], energy_kev: float = 70.0, *, ct_energy_kev: float = 70.0
) -> Float[Tensor, " *shape"]:
    """CT numbers at ``ct_energy_kev`` of linear attenuations in 1/mm at ``energy_kev``: undoes ``hu_to_mu``.

    Any shape, dtype kept (integers become float32); µ = 0 gives −1000, and a negative µ goes on below it.
    Gradients flow to ``mu``.  Raises VolumeError for an energy outside 20 to 150 keV.
    """
    slopes = _slopes(energy_kev, ct_energy_kev)
    return _each(mu, "mu", lambda part: _hu_of(part, *slopes))


def mu_at_energy(
    mu: Float[Tensor, " *shape"], from_kev: float, to_kev: float, *, ct_energy_kev: float = 70.0
) -> Float[Tensor, " *shape"]:
    """Linear attenuation at ``to_kev`` of what is stated at ``from_kev``: ``mu_to_hu``, then ``hu_to_mu``.

    Any shape, dtype kept (integers become float32).  Gradients flow to ``mu``.  Raises VolumeError for an
    energy outside 20 to 150 keV.
    """
    old, new = _slopes(from_kev, ct_energy_kev), _slopes(to_kev, ct_energy_kev)
    return _each(mu, "mu", lambda part: _mu_of(_hu_of(part, *old), *new))


def _mu_of(hu: Tensor, water: float, extra: float) -> Tensor:
    mu = (hu * (1e-3 * water) + water).clamp_min(0.0)
    if extra == 0.0:
        return mu
    width = _KNEE_HIGH_HU - _KNEE_LOW_HU
    above = hu - _KNEE_LOW_HU
    inside = above.clamp(0.0, width)
    # 0 below the knee, h²/(2 width) inside, h − width/2 beyond; the derivative is inside / width throughout
    return mu + (extra / width) * inside * (above - 0.5 * inside)


def _hu_of(mu: Tensor, water: float, extra: float) -> Tensor:
    slope = 1e-3 * water
    hu = (mu - water) / slope
    if extra == 0.0:
        return hu
    width = _KNEE_HIGH_HU - _KNEE_LOW_HU
    start = water + slope * _KNEE_LOW_HU  # µ where the parabola starts
    end = start + slope * width + 0.5 * extra * width  # and where it ends
    # a h² + slope h = y with a = extra / (2 width): the root that stays finite as a → 0
    rise = (mu - start).clamp(0.0, end - start)
    square = slope * slope + 2.0 * (extra / width) * rise
    root = square * square.rsqrt()  # torch's sqrt wakes all threads for the smallest block
    inside = _KNEE_LOW_HU + 2.0 * rise / (slope + root)
    beyond = _KNEE_HIGH_HU + (mu - end) / (slope + extra)
    return torch.where(mu <= start, hu, torch.where(mu > end, beyond, inside))
