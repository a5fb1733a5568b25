"""The baseline Swin-X2S: two orthogonal films, each read by a Swin transformer, to labels on one grid.

Made anew on MONAI's Swin and UNETR blocks after K. Liu et al., "Swin-X2S: Reconstructing 3D Shape from 2D
Biplanar X-ray with Swin Transformers", arXiv:2501.05961 (2025), and the configuration in its repository: one
2D Swin encoder for both films; each of its maps is repeated along the film's own axis with a factor and an
offset a slice; residual 3D blocks follow; the deepest level of each film attends to the other's; one U-shaped
decoder gives labels for each film's branch.  Training adds the divergence between the two branches.  Not
taken over: weights of another training to begin with, and stochastic depth.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xreg.errors import ShapeError
from xreg.optional import optional
from xreg.shape.networks.backproject import Places
from xreg.shape.networks.settings import NetworkSettings, Output
from xreg.shape.networks.views import Views
from xreg.shape.schemes import Scheme
from xreg.shape.shares import Shares

_MULTIPLE = 32  # by which the deepest level is coarser than the grid
_LEVELS = 6


def _monai(module: str) -> Any:
    return optional(
        module, "the baseline Swin-X2S needs the packages MONAI and einops: pip install 'xreg[swin]'"
    )


class Expand(nn.Module):
    """A map repeated along a new axis, each slice with a factor and an offset of its own."""

    def __init__(self, slices: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.ones(slices))
        self.offset = nn.Parameter(torch.zeros(slices))

    def forward(self, x: Float[Tensor, "B C d n"], axis: int) -> Float[Tensor, "B C d h w"]:
        shape = [1, 1, 1, 1, 1]
        shape[axis] = -1
        return x.unsqueeze(axis) * self.factor.view(shape) + self.offset.view(shape)


class CrossAttention(nn.Module):
    """Tokens of one film ask those of the other, and the other way round; weights are shared."""

    def __init__(self, channels: int, heads: int, tokens: int) -> None:
        super().__init__()
        self.embed = nn.Conv3d(channels, channels, 1)
        self.position = nn.Parameter(torch.zeros(tokens, channels))
        self.before = nn.LayerNorm(channels, eps=1e-6)
        self.attention = nn.MultiheadAttention(channels, heads, batch_first=True)
        self.after = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, a: Float[Tensor, "B C d h w"], b: Float[Tensor, "B C d h w"]) -> tuple[Tensor, Tensor]:
        own, other = (self.before(self.embed(x).flatten(2).transpose(1, 2) + self.position) for x in (a, b))
        found = (self.attention(q, k, k, need_weights=False)[0] for q, k in ((own, other), (other, own)))
        return tuple(self.after(x).transpose(1, 2).reshape(a.shape) for x in found)


class SwinX2S(nn.Module):
    """Two films whose beams run along the grid's j and i axes, to label logits of each film's branch."""

    def __init__(self, settings: NetworkSettings, names: Scheme) -> None:
        super().__init__()
        depth, height, width = settings.grid
        if height != width or any(n % _MULTIPLE for n in settings.grid) or max(settings.grid) == _MULTIPLE:
            raise ShapeError(
                f"swin_x2s needs a grid (D, H, W) with H = W, of multiples of {_MULTIPLE} and with more than "
                f"one of them, got {settings.grid}"
            )
        self.settings = settings
        nets, blocks = _monai("monai.networks.nets.swin_unetr"), _monai("monai.networks.blocks")
        _monai("einops")
        f = settings.width
        self.swin = nets.SwinTransformer(
            1, f, (settings.window,) * 2, (2, 2), settings.depths, settings.heads, patch_norm=True,
            spatial_dims=2,
        )  # fmt: skip
        channels = [1, f, 2 * f, 4 * f, 8 * f, 16 * f]
        outputs = [f, *channels[1:]]
        self.expand = nn.ModuleList(Expand(width // 2**n) for n in range(_LEVELS))
        self.level = nn.ModuleList(
            blocks.UnetrBasicBlock(3, a, b, 3, 1, "instance", True)
            for a, b in zip(channels, outputs, strict=True)
        )
        self.cross = CrossAttention(16 * f, settings.heads[-1], depth * height * width // _MULTIPLE**3)
        self.up = nn.ModuleList(
            blocks.UnetrUpBlock(3, deep, fine, 3, 2, "instance", True) for fine, deep in pairwise(outputs)
        )
        self.out = nn.Conv3d(f, len(names), 1)

    def start(self) -> None:
        """Nothing: all first values are drawn or are those of the parts."""

    def forward(self, views: Views, places: Places | None = None) -> Output:
        """Logits [B, L, …] of both branches at voxels of the grid, by default at all of them."""
        along_j, along_i = self.films(views)
        a, b = self._read(along_j, 3), self._read(along_i, 4)
        a[-1], b[-1] = self.cross(a[-1], b[-1])
        logits = [self._decide(levels) for levels in (a, b)]
        return Output(tuple(x if places is None else places.take(x) for x in logits), None)

    @torch.no_grad()
    def probabilities(self, views: Views, doubt: float, chunk: int = 0) -> tuple[Shares, None]:
        """What the voxels of one case may be whose background has less than 1 - doubt.

        It tells nothing of what is on the films: None.
        """
        found = self(views).combined[0].float().softmax(0).flatten(1)
        flat = (found[0] < 1 - doubt).nonzero()[:, 0]
        return Shares.of(flat, found[:, flat].T.contiguous()), None

    def films(self, views: Views) -> tuple[Float[Tensor, "B 1 D W"], Float[Tensor, "B 1 D H"]]:
        """The film along j and the one along i, looked up at the grid's middle plane.

        The network takes beams to be parallel to the axes; what they are not is its error.  ShapeError for
        another number of films, another grid, or two films along one axis.
        """
        if views.shape != self.settings.grid or views.films.shape[1] != 2:
            raise ShapeError(
                f"this swin_x2s is for 2 films and a grid of {self.settings.grid} (D, H, W), got "
                f"{views.films.shape[1]} films and {views.shape}"
            )
        along = torch.linalg.solve(views.place[:, None, :, :3], views.rays[:, :, :3, None])[..., 0]
        along = (along * views.place[:, None, :, :3].norm(dim=2)).abs()[..., :2].argmax(-1)  # 0: i, 1: j
        if not bool((along.sum(1) == 1).all()):
            raise ShapeError("swin_x2s needs one film along the grid's j axis and one along its i axis")
        rows = torch.arange(len(along), device=along.device)
        planes = []
        for axis in (1, 0):
            which = along.eq(axis).float().argmax(1)
            index = _middle_plane(views.shape, axis).to(views.films)
            at, _ = views.pixels(index.expand(len(rows), -1, -1))
            found = F.grid_sample(
                views.films[rows, which][:, None], at[rows, which][:, :, None], "bilinear", "border",
                align_corners=False,
            )  # fmt: skip
            planes.append(found[..., 0].unflatten(-1, (views.shape[0], -1)))
        return planes[0], planes[1]

    def _read(self, film: Float[Tensor, "B 1 D n"], axis: int) -> list[Tensor]:
        maps = [film, *self.swin(film)]
        parts = zip(maps, self.expand, self.level, strict=True)
        return [level(expand(x, axis)) for x, expand, level in parts]

    def _decide(self, levels: list[Tensor]) -> Tensor:
        x = levels[-1]
        for up, skip in zip(reversed(self.up), reversed(levels[:-1]), strict=True):
            x = up(x, skip)
        return self.out(x)


def _middle_plane(shape: tuple[int, int, int], axis: int) -> Float[Tensor, "N 3"]:
    """Indices (i, j, k) of the middle plane across i (0) or j (1): rows along k, columns along the other."""
    depth, height, width = shape
    other, middle = (height, (width - 1) / 2) if axis == 0 else (width, (height - 1) / 2)
    k, n = torch.meshgrid(torch.arange(depth).float(), torch.arange(other).float(), indexing="ij")
    fixed = torch.full_like(k, middle)
    return torch.stack([fixed, n, k] if axis == 0 else [n, fixed, k], -1).reshape(-1, 3)
