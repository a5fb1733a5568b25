"""The pictures of a registration: before and after on one sheet, and the way between them as frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

if TYPE_CHECKING:
    from torch import Tensor

    from xreg.geometry import Camera
    from xreg.volume import Volume

SIDE = 388  # px of a panel, of the longer side
FRAMES = 28
_SAMPLES = 200


class Sheet:
    """A film ready to be drawn with renders over it, at the resolution of the picture."""

    def __init__(self, volume: Volume, camera: Camera, film: Tensor, mask: Tensor) -> None:
        """film: line integrals [H, W]; mask: valid pixels [H, W]; both in ``camera``."""
        from xreg.pictures import grey

        height, width = camera.size
        scale = SIDE / max(height, width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        self.volume, self.camera = volume, camera.resize(size)
        self.film = _resized(np.asarray(film, dtype=np.float32), size)
        self.mask = _resized(np.asarray(mask, dtype=np.float32), size) > 0.99
        self.window = tuple(float(v) for v in np.percentile(self.film[self.mask], [3.0, 99.7]))
        self.grey = grey(self.film, self.mask, window=self.window)
        self._drawn: dict[bytes, tuple[Any, Any]] = {}

    def at(self, pose: Tensor) -> tuple[Float[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        """Render and edges at a pose, kept: start and result are shown twice, and the start of each level."""
        key = pose.cpu().numpy().tobytes()
        if key not in self._drawn:
            image = self.render(pose)
            self._drawn[key] = image, self.lines(image)
        return self._drawn[key]

    def render(self, pose: Tensor) -> Float[np.ndarray, "h w"]:
        """Line integrals at a pose, in the film's contrast."""
        from xreg.pictures import match_contrast
        from xreg.renderer import drr

        image = drr(self.volume, self.camera, pose, samples=_SAMPLES).cpu().numpy()
        return match_contrast(image, self.film, self.mask)

    def lines(self, image: Float[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
        """Edges of a render inside the field of the film."""
        from xreg.pictures import edges

        return edges(image) & self.mask

    def before_after(
        self, start: Tensor, final: Tensor, said_start: str, said_final: str, title: str, footer: str
    ) -> UInt8[np.ndarray, "H W 3"]:
        """Film, start and result: renders above, their edges over the film below."""
        from xreg import pictures

        (first, lines_first), (last, lines_last) = self.at(start), self.at(final)
        film = pictures.colour(self.grey, self.mask)
        shown = [pictures.grey(image, window=self.window) for image in (first, last)]
        squares = pictures.checkerboard(self.grey, shown[1])
        top = [
            ("film", film),
            ("CT rendered at the start", pictures.colour(shown[0])),
            ("CT rendered at the result", pictures.colour(shown[1])),
        ]
        below = [
            ("film and result in alternating squares", pictures.colour(squares, self.mask)),
            (f"start over film: {said_start}", pictures.draw_edges(film, lines_first, pictures.RED)),
            (f"result over film: {said_final}", pictures.draw_edges(film, lines_last, pictures.GREEN)),
        ]
        return pictures.panels([top, below], title=title, footer=footer)

    def convergence(
        self, steps: Sequence[Any], said: Callable[[Tensor], str], tell: Callable[..., None]
    ) -> tuple[list[UInt8[np.ndarray, "H W 3"]], list[int]]:
        """Frames of the steps (evenly chosen where they are many) and how many milliseconds each stays."""
        from xreg import pictures

        film = pictures.colour(self.grey, self.mask)
        chosen = sorted({round(n) for n in np.linspace(0, len(steps) - 1, min(FRAMES, len(steps)))})
        frames = []
        for done, n in enumerate(chosen):
            tell(f"frame {done + 1} of {len(chosen)}", done=done, total=len(chosen))
            step = steps[n]
            ink = pictures.GREEN if n == len(steps) - 1 else pictures.YELLOW
            drawn = pictures.draw_edges(film, self.at(step.world_from_body)[1], ink)
            binned = f"film binned {step.bin}x{step.bin}"
            text = f"step {n} of {len(steps) - 1}, {binned}: {said(step.world_from_body)}"
            frames.append(pictures.caption(drawn, text))
        times = [160] * len(frames)
        times[0], times[-1] = 900, 2200
        return frames, times


def _resized(image: Float[np.ndarray, "H W"], size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """The image at another size, outer edges in place; averaged where it shrinks."""
    import torch
    import torch.nn.functional as F

    return F.interpolate(
        torch.from_numpy(np.ascontiguousarray(image))[None, None], size=size, mode="bilinear", antialias=True
    )[0, 0].numpy()
