"""The Python in docs/registration.md runs as it stands, from top to bottom, and finds what it looks for."""

import re
from pathlib import Path

from xreg.metrics import mtre

PAGE = Path(__file__).resolve().parents[2] / "docs" / "registration.md"


def test_snippets_run(capsys) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) >= 8
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    truth, points = names["truth"], names["body"].points

    def error(pose) -> float:
        return mtre(pose, truth, points)

    assert error(names["start"].world_from_body) < 1e-3
    assert (~names["start"].inliers).nonzero().tolist() == [[0, 2]]
    assert error(names["found"].world_from_body) < 3
    assert error(names["both"].world_from_body) < 1
    assert error(names["together"].bodies[0].world_from_body) < 2
    assert names["both"].covariance[3:, 3:].trace() < names["one"].covariance[3:, 3:].trace()
    assert all(result.accepted for result in names["answer"].bodies)
    assert not any(frame.lost for frame in names["tracker"].frames)
    assert names["beam"] > names["across"]


def test_the_options_that_the_page_names_exist() -> None:
    from xreg.cli.register import command

    known = {flag for param in command.params for flag in param.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE.read_text()))
    assert named
    assert named <= known
