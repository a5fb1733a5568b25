import pytest
import torch
from cli_files import done, said, xreg

from xreg.cli import doctor
from xreg.ops import registry


def test_it_says_what_runs_and_that_it_is_right():
    answer = said("doctor")
    assert answer["passed"] is True
    assert answer["kernels"]["backend on the CPU"]["value"] == registry.backend()
    assert answer["python packages"]["torch"]["origin"] == "required"
    assert answer["system"]["torch threads"]["value"] >= 1
    assert set(answer["self-test"]) >= {"trilinear", "joseph", "siddon", "exact"}
    text = done("doctor").stdout
    assert "self-test passed" in text
    assert registry.backend() in text


def test_quick_leaves_the_test_out():
    assert "self-test" not in done("doctor", "--quick").stdout


def test_a_failed_self_test_is_exit_code_1(monkeypatch):
    monkeypatch.setattr(doctor, "TOLERANCE", 0.0)
    result = xreg("doctor")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert said("doctor", code=1)["status"] == "failed"


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_kernel_that_returns_nan_fails_the_test(monkeypatch, bad):
    from xreg.ops import reference

    true = reference.project

    def wrong(mu, scale, rays, metric, height, width, number, *known):
        image, moments = true(mu, scale, rays, metric, height, width, number, *known)
        if number == 2:  # one pixel, of neither the first nor the last integrator
            image[0, 3, 4] = bad
        return image, moments

    monkeypatch.setattr(reference, "project", wrong)  # either side of the comparison may hold it
    result = xreg("doctor")
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    answer = said("doctor", code=1)
    assert answer["passed"] is False
    assert answer["self-test"]["siddon"]["value"]["image"] is None


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(registry, "backend", lambda: "reference")
    monkeypatch.setattr(registry, "library_path", lambda half="cpu": tmp_path / f"xreg_{half}.so")
    text = done("doctor", "--quick").stdout
    assert "nvcc is not on the path" in text
    assert "xreg_cpu.so has not been built" in text


@pytest.mark.parametrize("compiler", [True, False])
def test_a_card_without_kernels_is_told_what_to_do(monkeypatch, tmp_path, compiler):
    if compiler:
        (tmp_path / "nvcc").write_text("#!/bin/sh\n")
        (tmp_path / "nvcc").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("NVCC", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(registry, "cuda_reason", lambda: "xreg_cuda.so has not been built")
    fact = doctor._cuda_backend()
    assert fact.value == "reference"
    assert "xreg_cuda.so has not been built" in fact.note
    assert "pip install --no-build-isolation ." in fact.note
    assert ("no nvcc on the path" in fact.note) != compiler
    monkeypatch.setattr(registry, "cuda_reason", lambda: None)
    assert doctor._cuda_backend().value == "cuda"


def test_without_a_card_there_is_no_backend_for_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor._cuda_backend().value is None
