"""The Python in docs/films.md runs as it stands, and its tables name what there is."""

import re
from dataclasses import fields
from pathlib import Path

import torch

from xreg.xray import AugmentSettings, FilmSettings, film, occlusion
from xreg.xray.augment import STEPS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "films.md").read_text(encoding="utf-8")


def first_column(heading: str) -> list[str]:
    part = PAGE.split(f"\n## {heading}")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)", part, flags=re.MULTILINE)


def test_snippets_run() -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) == 2
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/films.md", "exec"), names)
    shown, films, noisy, p = (names[key] for key in ("film", "films", "noisy", "p"))
    assert shown.shape == p.shape
    assert float((shown == shown.min()).float().mean()) > 0.2, "the blades cover"
    assert len({one.sum().item() for one in films}) > 10
    error = (noisy - p).square().mean((-1, -2)).sqrt()
    assert bool(((error > 0.02) & (error < 1.0)).all())
    assert torch.isfinite(films).all()


def test_the_tables_name_every_step() -> None:
    assert first_column("One film") == [
        "transmission", "blur", "scatter", "count", "log_signal", "tone", "quantise",
    ]  # fmt: skip
    assert all(hasattr(film, name) for name in first_column("One film"))
    assert all(hasattr(occlusion, name) for name in first_column("What covers a film"))
    assert first_column("Random looks") == list(STEPS)


def test_the_defaults_that_the_page_states() -> None:
    film_part, _, looks = PAGE.partition("## Random looks")
    defaults = FilmSettings()
    for text in (
        f"`blur` {defaults.blur} px", f"`scatter` {defaults.scatter}", "N = 20 000 in air",
        f"`scatter_width` {defaults.scatter_width}",
    ):  # fmt: skip
        assert text in film_part
    assert defaults.photons == 20_000
    settings = AugmentSettings()
    for name in ("power", "hardening", "tool_peak", "tool_width", "gamma", "gain", "blur_px", "scatter_ratio",
                 "scatter_width", "erase_size"):  # fmt: skip
        low, high = getattr(settings, name)
        assert f"{low:g} to {high:g}" in looks, name
    assert "100 to 10 000" in looks
    assert settings.detected == (100, 10_000)
    assert {field.name for field in fields(settings)} >= set(STEPS)
