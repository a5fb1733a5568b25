"""Bones that follow each other: vertebrae and ribs share what they look like, and differ by a number.

A network tells one continuous number at a place, how far down the row it is, and each bone's logit falls with
the distance of its own number.  So what is learned about one vertebra is known about the next, and a wrong
level is a near one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from xreg.shape.schemes import Scheme

_ROWS = (("spine",), ("ribs_left", "ribs_right"))  # groups of one row count along one number
Rows = tuple[tuple[tuple[int, ...], ...], ...]


def rows_of(names: Scheme) -> Rows:
    """For each row, the numbers of its groups' labels in order; rows that the scheme lacks are left out."""
    groups = names.groups
    found = (tuple(groups[g] for g in row if g in groups) for row in _ROWS)
    return tuple(row for row in found if row)


class Orders(nn.Module):
    """Numbers along the rows to what they add to each label's logit.

    The n-th label of its row gets -a log(1 + (c - n)^2), c being the row's number at a place: flat far away,
    so that a wrong start can be left.
    """

    def __init__(self, rows: Rows, labels: int) -> None:
        super().__init__()
        row, place = torch.zeros(labels, dtype=torch.long), torch.zeros(labels)
        ordered = torch.zeros(labels)
        for number, groups in enumerate(rows):
            for members in map(list, groups):
                row[members], ordered[members] = number, 1.0
                place[members] = torch.arange(len(members), dtype=torch.float32)
        for name, value in (("row", row), ("place", place), ("ordered", ordered)):
            self.register_buffer(name, value, persistent=False)
        self.steep = nn.Parameter(torch.zeros(max(1, len(rows))))  # a is 0.7: bones begin as rare as they are

    def forward(self, levels: Float[Tensor, "B R N"]) -> Float[Tensor, "B L N"]:
        """levels: the number of each row, 0 at the first bone."""
        if not levels.shape[1]:
            return levels.new_zeros(levels.shape[0], len(self.row), levels.shape[2])
        away = levels[:, self.row] - self.place[:, None]
        return -(F.softplus(self.steep)[self.row] * self.ordered)[:, None] * torch.log1p(away.square())
