"""Fits how far an answer may be trusted, on simulated films, and writes xreg/registration/trust.json.

python benchmarks/calibrate.py --pelvis ct.nii.gz      (see --help)

Two things are fitted.  The covariance of the normal equations is too small, because films differ from
renders by more than noise; a factor and a power of the voxel size make 95 % of true poses fall into its
95 % ellipsoid.  The verdict is a logistic model over what can be measured at an answer, monotone in each
quantity, regularised.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path

import click
import numpy as np
from common import PHANTOM, write_json
from hard_cases import Trial, nees, run_trials
from rich.progress import track
from scipy.optimize import minimize
from scipy.stats import chi2

from xreg.registration.trust import MODEL, counted

GOOD_MM, BAD_MM = 2.0, 5.0
SIGNS = {"score": 1, "least_term": 1, "restarts_apart_mm": -1, "step_left_mm": -1, "views_apart_mm": -1}
RIDGE = 0.03
SEEDS_FROM = 0  # those of trust.py are others


def fit_covariance(trials: list[Trial]) -> dict[str, float]:
    """Factor and power of greatest likelihood, then the factor stretched until 95 % of truths are inside."""
    good = [t for t in trials if t.raw and t.error_mm < GOOD_MM]
    errors = np.array([t.tangent for t in good])
    raw = np.array([np.array(t.raw) * t.views for t in good])
    voxels = np.array([t.voxel for t in good])

    def squares(x: np.ndarray) -> np.ndarray:
        spread = math.exp(x[0]) * raw * (voxels ** x[1])[:, None, None]
        return np.einsum("ni,ni->n", errors, np.linalg.solve(spread, errors[..., None])[..., 0])

    def loss(x: np.ndarray) -> float:
        return float((squares(x) + 6 * (x[0] + x[1] * np.log(voxels))).mean())

    x = minimize(loss, np.array([2.0, 1.0]), method="Nelder-Mead", options={"maxiter": 4000}).x
    stretch = float(np.quantile(squares(x), 0.95) / chi2.ppf(0.95, 6))
    return {"scale": math.exp(x[0]) * stretch, "voxel_power": float(x[1])}


def features(trials: list[Trial], names: list[str], typical: dict[str, float]) -> np.ndarray:
    """What the logistic model sees, [trials, names]."""
    return np.array([[counted(n, t.evidence.get(n), typical[n]) for n in names] for t in trials], dtype=float)


def fit_verdict(trials: list[Trial]) -> dict:
    """Weights of the logistic model, and the threshold that accepts no bad answer among the trials."""
    judged = [t for t in trials if t.evidence]
    right = np.array([t.error_mm < GOOD_MM for t in judged])
    names = list(SIGNS)
    typical = {
        n: float(
            np.median([t.evidence[n] for t in judged if n in t.evidence and t.error_mm < GOOD_MM] or [0.1])
        )
        for n in names
    }
    x = features(judged, names, typical)
    x0, scale = x[right].mean(0), x.std(0) + 1e-9
    z = (x - x0) / scale
    signs = np.where(right, 1.0, -1.0)

    def loss(w: np.ndarray) -> float:
        margin = signs * (z @ w[1:] + w[0])
        return float(np.logaddexp(0, -margin).mean() + RIDGE * (w[1:] ** 2).sum() / 2)

    bounds = [(None, None)] + [(0, None) if SIGNS[n] > 0 else (None, 0) for n in names]
    w = minimize(loss, np.zeros(len(names) + 1), method="L-BFGS-B", bounds=bounds).x
    weights = w[1:] / scale
    probability = 1 / (1 + np.exp(-(z @ w[1:] + w[0])))
    errors = np.array([t.error_mm for t in judged])
    worst_bad = float(probability[errors > BAD_MM].max(initial=0.0))
    least_good = float(np.quantile(probability[right], 0.05))
    threshold = min(
        0.95, max(0.5, 0.5 * (worst_bad + least_good) if least_good > worst_bad else worst_bad + 0.01)
    )
    return {
        "bias": float(w[0] - (weights * x0).sum()),
        "weights": {n: float(v) for n, v in zip(names, weights, strict=True)},
        "typical": typical,
        "threshold": threshold,
        "tolerance_mm": GOOD_MM,
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--ct", help=f"Chest CT, or {PHANTOM!r}; default XREG_CHEST_CT, else that of `xreg demo`.")
@click.option("--pelvis", help="A second CT, of another part of the body.")
@click.option("--cases", default=840, show_default=True)
@click.option("--jobs", default=2, show_default=True, help="Processes, of one thread each.")
@click.option(
    "--trials", type=click.Path(path_type=Path), help="Trials already run (JSON lines), to fit again."
)
@click.option("--save", type=click.Path(path_type=Path), help="Where to keep the trials that were run.")
@click.option("--out", type=click.Path(path_type=Path), default=MODEL, show_default="the package's own")
def main(
    ct: str | None,
    pelvis: str | None,
    cases: int,
    jobs: int,
    trials: Path | None,
    save: Path | None,
    out: Path,
) -> None:
    """Fit the covariance's scale and the verdict on simulated registrations."""
    if trials:
        found = [Trial(**json.loads(line)) for line in trials.read_text().splitlines()]
    else:
        seeds = range(SEEDS_FROM, SEEDS_FROM + cases)
        found = list(track(run_trials(ct, pelvis, seeds, jobs), "registering", cases))
    if save:
        save.write_text("".join(json.dumps(asdict(t)) + "\n" for t in found))
    fitted = {"covariance": fit_covariance(found), "verdict": fit_verdict(found)}
    fitted["fitted_on"] = {"cases": len(found), "right": sum(t.error_mm < GOOD_MM for t in found)}
    write_json(out, fitted)
    good = [t for t in found if t.raw and t.error_mm < GOOD_MM]
    inside = np.mean([nees(t) < chi2.ppf(0.95, 6) for t in good])
    print(f"before: {100 * inside:.0f} % of {len(good)} right answers inside their 95 % ellipsoid")
    print(json.dumps(fitted, indent=1))


if __name__ == "__main__":
    main()
