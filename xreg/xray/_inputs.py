"""Images and parameters of one value a film, checked and brought to one shape."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from xreg.errors import BackendError, ImageError


def check_images(images: Any, name: str = "line_integrals") -> Tensor:
    """Return the images if they are float32 or float64, [B, H, W] and finite; ImageError if not."""
    dtype = images.dtype if isinstance(images, Tensor) else type(images).__name__
    if dtype not in (torch.float32, torch.float64):
        raise ImageError(f"{name} must be a tensor [B, H, W] of float32 or float64, got {dtype}; convert it")
    if images.ndim != 3 or images.numel() == 0:
        raise ImageError(f"{name} must have the shape [B, H, W], none of them 0, got {tuple(images.shape)}")
    if not bool(torch.isfinite(images).all()):
        raise ImageError(f"{name} holds NaN or infinity; look for rays that miss, or a volume with NaN")
    return images


def per_film(
    value: Any, name: str, like: Tensor, *, low: float = -float("inf"), high: float = float("inf"),
    tail: tuple[int, ...] = (),
) -> Tensor:  # fmt: skip
    """A parameter as [B, *tail] on the images' device, in their dtype; one value serves every film.

    Raises ImageError, naming the parameter, for another shape, NaN, or a value outside low to high.
    """
    # In the images' dtype from the start: a limit then means the number that is computed with.  And checked
    # where it is, so that numbers of the host wait for no card.
    try:
        found = torch.as_tensor(value, dtype=like.dtype)
    except (TypeError, ValueError) as error:
        raise ImageError(f"{name} must be numbers, got {value!r}") from error
    wanted = (like.shape[0], *tail)
    if found.shape not in (wanted, tail):
        shape = list(tail) if tail else "a number"
        raise ImageError(
            f"{name} must be {shape} for all films, or {list(wanted)}, one a film, got {list(found.shape)}"
        )
    if not bool(((found >= low) & (found <= high)).all()):
        raise ImageError(f"{name} must lie between {low:g} and {high:g}, got {value}")
    return found.to(like.device, non_blocking=True).expand(wanted)


def raised(values: Float[Tensor, "B H W"], power: Float[Tensor, "B 1 1"]) -> Float[Tensor, "B H W"]:
    """Values to a power, below 0 as at 0; gradients flow, and are 0 where a power below 1 has none (at 0)."""
    held = values.clamp_min(0.0)
    steep = (held <= 0) & (power < 1)  # the slope is infinite here, and times the clamp's zero not a number
    return torch.where(steep, 0.0, torch.where(steep, 1.0, held) ** power)


def check_generator(
    generator: Any, device: torch.device, what: str, *, host: bool = False
) -> torch.Generator:
    """Return the generator if it is one on the device (host: or on the host); ImageError if not."""
    if not isinstance(generator, torch.Generator):
        raise ImageError(
            f"{what} draws random numbers: generator must be a torch.Generator, got "
            f"{type(generator).__name__}; pass torch.Generator(device).manual_seed(seed)"
        )
    if generator.device.type not in (device.type, "cpu" if host else device.type):
        raise ImageError(
            f"generator must live on the films' device {device}, got one on {generator.device}; "
            f"pass torch.Generator({str(device)!r})"
        )
    return generator


def kornia(part: str) -> ModuleType:
    """kornia's part 'enhance' or 'filters'; BackendError, naming the extra, where it is missing."""
    try:
        import kornia.enhance
        import kornia.filters
    except ImportError as error:
        raise BackendError(
            "blur, scatter and CLAHE of films need the package kornia: pip install 'xreg[train]'"
        ) from error
    return {"enhance": kornia.enhance, "filters": kornia.filters}[part]


def blurred(
    images: Float[Tensor, "B H W"], sigma: Float[Tensor, " B"], *, reach: int
) -> Float[Tensor, "B H W"]:
    """Gaussian blur by a standard deviation (px) a film, cut off at ``reach`` px; the border is repeated.

    kornia's gaussian_blur2d divides by sigma, so one of 0 becomes a thousandth of a pixel: no blur at all.
    """
    sigmas = sigma.clamp_min(1e-3)[:, None].expand(-1, 2)
    size = (2 * reach + 1, 2 * reach + 1)
    return kornia("filters").gaussian_blur2d(images[:, None], size, sigmas, "replicate")[:, 0]
