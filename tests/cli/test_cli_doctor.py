from cli_files import done, said, xreg

from xreg.cli import doctor
from xreg.ops import registry


def test_it_says_what_runs_and_that_it_is_right():
    answer = said("doctor")
    assert answer["passed"] is True
    assert answer["kernels"]["backend on the CPU"]["value"] == registry.backend()
    assert answer["python packages"]["torch"]["origin"] == "required"
    assert answer["system"]["torch threads"]["value"] >= 1
    assert set(answer["self-test"]) == {"trilinear", "joseph", "siddon", "exact"}
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


def test_what_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(registry, "backend", lambda: "reference")
    monkeypatch.setattr(registry, "library_path", lambda half="cpu": tmp_path / f"xreg_{half}.so")
    text = done("doctor", "--quick").stdout
    assert "nvcc is not on the path" in text
    assert "xreg_cpu.so has not been built" in text
