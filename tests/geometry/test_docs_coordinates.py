"""The Python in docs/coordinates.md runs as it stands, from top to bottom."""

import re
from pathlib import Path

from xreg.geometry import CONVENTIONS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "coordinates.md"


def test_snippets_run(capsys) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) >= 8
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    assert names["camera"].principal_point.tolist() == [639.5, 511.5]
    primary, secondary, roll = (float(a) for a in names["lao"].angles)
    assert (round(primary, 6), round(secondary, 6), abs(round(roll, 6))) == (30.0, -10.0, 0.0)
    source = names["lao"].source
    assert source[0] > 0 > source[1]  # right, and behind


def test_every_tool_is_on_the_page() -> None:
    listed = set(re.findall(r"^\| `(\w+)` \|", PAGE.read_text(), flags=re.MULTILINE))
    assert set(CONVENTIONS) <= listed


def test_the_drawing_is_there() -> None:
    assert PAGE.with_name("frames.png").read_bytes().startswith(b"\x89PNG")
    assert PAGE.with_name("draw_frames.py").is_file()
