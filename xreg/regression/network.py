"""The network: a film in, a pose and its own uncertainty out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xreg.errors import RegistrationError
from xreg.optional import optional
from xreg.regression.ranges import SCALE_FLOOR, PoseRange

LOG_VARIANCE = (-9.0, 4.0)  # least and most, of errors in units of half the range
ERROR_UNIT = (math.radians(5.0), 10.0)  # rad, mm: in which errors and their deviations are counted


@dataclass(frozen=True)
class NetworkSettings:
    """What the network is made of.

    backbone: 'small' (our own residual network), 'monai:resnet18' (or another ResNet of MONAI), or
    'timm:NAME'; the latter two need these packages.  width: channels of the small one's first stage; the
    others double.  depths: blocks a stage, each stage halving the map.  features, hidden: channels kept a
    place of the last map, and of the layer behind it; places are not pooled, since translation needs them.
    """

    backbone: str = "small"
    width: int = 32
    depths: tuple[int, ...] = (1, 2, 2, 1)
    features: int = 64
    hidden: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "depths", tuple(int(d) for d in self.depths))
        if self.width < 8 or self.width % 8 or not self.depths or min(self.depths) < 1:
            raise RegistrationError(
                f"a network needs a width that is a multiple of 8 and at least one block a stage, got {self}"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `from_dict` reads them."""
        return {**asdict(self), "depths": list(self.depths)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> NetworkSettings:
        """Read what `to_dict` wrote."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or set(data) != known:
            raise RegistrationError(f"a network needs the entries {sorted(known)}, got {data!r}")
        return cls(**data)


class Prediction(NamedTuple):
    """Poses of films in the canonical camera.

    rotation [B, 3, 3] of canonical_from_body.  place [B, 3]: the body's middle, mm.  log_variance [B, 6]: of
    the error that `losses.tangent` defines, in units of ERROR_UNIT.
    """

    rotation: Tensor
    place: Tensor
    log_variance: Tensor


class Block(nn.Module):
    """Two 3×3 convolutions with group norm, and a way past them (He et al. 2016; Wu and He 2018)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.first_norm = nn.GroupNorm(8, outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.second_norm = nn.GroupNorm(8, outputs)
        same = stride == 1 and inputs == outputs
        self.past = nn.Identity() if same else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first_norm(self.first(x)), inplace=True)
        return F.relu(self.second_norm(self.second(y)) + self.past(x), inplace=True)


class SmallBackbone(nn.Sequential):
    """A residual network whose first step folds 4×4 pixels into channels: its work is on small maps."""

    def __init__(self, settings: NetworkSettings) -> None:
        width = settings.width
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(4),
            nn.Conv2d(16, width, 3, 1, 1, bias=False),
            nn.GroupNorm(8, width),
            nn.ReLU(inplace=True),
        ]
        channels = width
        for stage, depth in enumerate(settings.depths):
            for block in range(depth):
                outputs = width * 2**stage
                layers.append(Block(channels, outputs, 2 if stage and not block else 1))
                channels = outputs
        super().__init__(*layers)


class _Last(nn.Module):
    """The last of several feature maps."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[-1]


def _monai(name: str) -> nn.Module:
    nets = _package("monai.networks.nets", "monai", "pip install monai")
    if not hasattr(nets, name) or not name.startswith("resnet"):
        raise RegistrationError(f"monai:{name}: MONAI has no such ResNet; try monai:resnet18")
    norm = ("group", {"num_groups": 8})
    whole = getattr(nets, name)(spatial_dims=2, n_input_channels=1, feed_forward=False, norm=norm)
    stages = ("conv1", "bn1", "act", "maxpool", "layer1", "layer2", "layer3", "layer4")
    return nn.Sequential(*(getattr(whole, stage) for stage in stages))


def _timm(name: str) -> nn.Module:
    timm = _package("timm", "timm", "pip install timm (which brings torchvision)")
    return _Last(timm.create_model(name, pretrained=False, features_only=True, in_chans=1))


def _package(module: str, name: str, install: str) -> Any:
    return optional(module, f"the backbone {name}:... needs the package {name}: {install}, or take 'small'")


def make_backbone(settings: NetworkSettings) -> nn.Module:
    """The module that turns films [B, 1, S, S] into a feature map [B, C, h, w]."""
    kind, _, name = settings.backbone.partition(":")
    if kind == "small" and not name:
        return SmallBackbone(settings)
    if kind == "monai" and name:
        return _monai(name)
    if kind == "timm" and name:
        return _timm(name)
    raise RegistrationError(
        f"backbone must be 'small', 'monai:NAME' or 'timm:NAME', got {settings.backbone!r}"
    )


class PoseNet(nn.Module):
    """Films of one canonical camera to poses about a range's middle.

    The rotation is nine numbers brought to the nearest rotation (roma; Levinson et al., NeurIPS 2020), and is
    told as seen along the ray through the body's middle: a shifted body looks the same from there, so the
    network need not learn how shift and apparent turn go together.  Translation is where that ray pierces
    the isocentre's plane, and the logarithm of how far along it the body is.
    """

    def __init__(self, settings: NetworkSettings, box: PoseRange, size: int) -> None:
        super().__init__()
        self.settings, self.sod = settings, box.sod
        self.backbone = make_backbone(settings)
        with torch.no_grad():
            shape = self.backbone(torch.zeros(1, 1, size, size)).shape
        places = shape[2] * shape[3]
        self.narrow = nn.Conv2d(shape[1], settings.features, 1)
        self.hidden = nn.Linear(settings.features * places, settings.hidden)
        self.out = nn.Linear(settings.hidden, 18)
        reach = torch.maximum(box.half[3:], torch.tensor(SCALE_FLOOR[1], dtype=torch.float64))
        middle = box.place(box.middle)
        self.register_buffer("nominal", box.rotation(box.middle).float(), persistent=False)
        self.register_buffer("middle", middle.float(), persistent=False)
        self.register_buffer("reach", reach.float(), persistent=False)

    def forward(self, images: Float[Tensor, "B S S"]) -> Prediction:
        """Poses of normalised films."""
        x = images[:, None].contiguous(memory_format=torch.channels_last)
        x = F.relu(self.narrow(self.backbone(x)))
        out = self.out(F.relu(self.hidden(x.flatten(1)))).float()
        place = self._place(out[:, 9:12])
        return Prediction(self._rotation(out[:, :9], place), place, _bounded(out[:, 12:]))

    def _place(self, out: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3"]:
        depth = self.middle[2] * torch.exp(out[:, 2] * self.reach[2] / self.middle[2])
        across = (self.middle[:2] + out[:, :2] * self.reach[:2]) / self.middle[2]
        return torch.cat([across * depth[:, None], depth[:, None]], 1)

    def _rotation(self, out: Float[Tensor, "B 9"], place: Tensor) -> Float[Tensor, "B 3 3"]:
        import roma

        eye = torch.eye(3, dtype=out.dtype, device=out.device)
        own = roma.special_procrustes(eye + out.reshape(-1, 3, 3))
        return along(place) @ own @ self.nominal


def along(place: Float[Tensor, "B 3"]) -> Float[Tensor, "B 3 3"]:
    """The least rotation that turns the beam's axis z to the ray through a point before the source."""
    ray = F.normalize(place, dim=-1)
    x, y, z = ray.unbind(-1)
    k = 1 / (1 + z)
    rows = [1 - k * x * x, -k * x * y, x, -k * x * y, 1 - k * y * y, y, -x, -y, z]
    return torch.stack(rows, -1).reshape(-1, 3, 3)


def _bounded(x: Tensor) -> Tensor:
    """A soft bound on log-variances, the identity in the middle."""
    low, high = LOG_VARIANCE
    middle, half = 0.5 * (low + high), 0.5 * (high - low)
    return middle + half * torch.tanh((x - middle) / half)


def make_network(settings: NetworkSettings, box: PoseRange, size: int, seed: int) -> PoseNet:
    """A network with weights drawn from a seed; the global random state is as before."""
    with torch.random.fork_rng(devices=[]):  # modules draw from it when they are made; drawn anew below
        net = PoseNet(settings, box, size)
    generator = torch.Generator().manual_seed(seed)
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, Block):
            nn.init.zeros_(module.second_norm.weight)
    with torch.no_grad():
        net.out.weight.mul_(0.05)  # so that training starts at the middle of the range
    return net.to(memory_format=torch.channels_last)
