"""The benchmark of the classical methods runs: a tiny scan of the phantom."""

import json

from benchmark_scripts import run


def test_a_tiny_run(tmp_path):
    out = tmp_path / "a.json"
    said = run("tomography.py", "--ct", "phantom", "--size", "16", "--views", "10", "--out", str(out))
    found = json.loads(out.read_text())
    rows = {row["method"]: row for row in found["results"][0]["rows"]}
    assert {"FDK ramp", "FDK hann", "OS-SART", "CGLS"} <= rows.keys()
    assert all(10 < row["psnr_db"] < 60 and 0 < row["ssim"] < 1 for row in rows.values())
    assert "FISTA-TV" in said
    assert "/" not in found["run"]["command"].replace("benchmarks/tomography.py", "")
