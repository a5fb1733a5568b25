"""The Python in docs/regression.md runs as it stands, from top to bottom; the options it names exist."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "regression.md"


def test_snippets_run(capsys) -> None:
    snippets = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert len(snippets) == 3
    names: dict = {}
    for snippet in snippets:
        exec(compile(snippet, str(PAGE), "exec"), names)
    assert names["trained"].steps == 40
    assert names["guess"].checks["coverage"] > 0.5
    assert bool((torch.linalg.eigvalsh(names["guess"].covariance) > 0).all())
    assert names["found"].how in ("guess", "variants")


def test_the_options_that_the_page_names_exist() -> None:
    from xreg.cli.register import command as register
    from xreg.cli.train import PRESETS, command
    from xreg.cli.train_many import command as many
    from xreg.regression import PRESETS as RANGES

    known = {flag for verb in (command, register, many) for param in verb.params for flag in param.opts}
    text = re.sub(r"(?s)<!-- \w+:begin -->.*?<!-- \w+:end -->", "", PAGE.read_text())  # tables of benchmarks
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) - {"--nproc-per-node"}
    assert named
    assert named <= known
    assert set(PRESETS) == set(RANGES)
