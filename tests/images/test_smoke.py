from pathlib import Path

import pytest

from images import smoke

LOCK = Path("images/cpu.lock")


def test_the_stages_are_those_of_the_components():
    stages = smoke.stages(Path("components"))
    assert stages["posttrain.sft"] == stages["validators.alignment"] == "train"
    assert stages["posttrain.model"] == stages["validators.data"] == "cpu"
    assert {module.partition(".")[0] for module in stages} == {"posttrain", "validators"}


def test_a_folder_without_components_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no component names a module"):
        smoke.stages(tmp_path)


def test_every_command_of_the_repository_answers():
    assert list(smoke.check_commands("cpu", Path("components"))) == []


def test_a_command_that_is_not_there_is_found(tmp_path):
    (tmp_path / "gone.py").write_text('container("posttrain.gone", "cpu", step=step)\n')
    (finding,) = smoke.check_commands("cpu", tmp_path)
    assert "posttrain.gone" in finding and "No module named" in finding


def test_what_an_image_must_not_have_is_found():
    (finding,) = smoke.check_absent("train")  # this environment compiles too
    assert finding.startswith("kfp is installed")


def test_every_package_is_one_of_the_lock(tmp_path):
    lock = tmp_path / "train.lock"
    lock.write_text("# head\nnumpy==2.4.6 --hash=sha256:00\ntorch==2.13.0+cpu --hash=sha256:00\n")
    assert list(smoke.check_locked([lock, LOCK], {"numpy": "2.4.6", "torch": "2.13.0+cpu", "pyyaml": "6.0.3"})) == []
    (finding,) = smoke.check_locked([lock], {"numpy": "2.4.6", "torch": "2.13.0"})
    assert finding == "torch 2.13.0 is installed, and it is in none of train.lock"


def test_a_user_who_may_change_the_code_is_found(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    for variable in ("HOME", "HF_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "cache"))
    monkeypatch.setattr("os.getuid", lambda: 10001)
    (finding,) = smoke.check_user()
    assert finding == f"{tmp_path} is writable: copy it as root"


def test_an_image_without_certificates_is_found(monkeypatch, tmp_path):
    assert list(smoke.check_certificates()) == []
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(variable, str(tmp_path / "none"))
    (finding,) = smoke.check_certificates()
    assert finding.endswith("install ca-certificates")


def test_a_faulty_image_ends_the_build(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(smoke, "CPU_LIBRARIES", "json")
    (tmp_path / "gone.py").write_text('container("posttrain.gone", "cpu", step=step)\n')
    assert smoke.main(["--image", "cpu", "--components", str(tmp_path), "--locks", str(LOCK)]) == 1
    errors = capsys.readouterr().err
    assert (
        "smoke: torch is installed" in errors
        and "smoke: python -m posttrain.step.attempts posttrain.gone --help: exit 1" in errors
    )
