"""The command line that a step becomes; tests/docker runs it."""

import os

import pytest

from posttrain.config.placement import num_bytes
from runner import places
from runner.docker import Docker
from runner.local import Step

ARTIFACTS = "root/artifacts/r1"


@pytest.fixture
def step(tmp_path) -> Step:
    (tmp_path / "model").mkdir()
    folder = tmp_path / ARTIFACTS / "fetch_model"
    folder.mkdir(parents=True)
    arguments = {
        "step": "fetch_model", "storage_root": str(tmp_path / "root"), "base_model": str(tmp_path / "model"),
        "config": {"allowed_prefixes": ["/", "hf://"]},
    }  # fmt: skip
    return Step("fetch_model", "image:local", ["python", "-m", "posttrain.model", "--step", "x"], {"KFP_RUN_ID": "r1"},
                arguments, folder, num_gpus=0, settings={})  # fmt: skip


@pytest.fixture
def docker(tmp_path) -> Docker:
    return Docker(places.of_step, lambda step: [], tmp_path / "root" / "cache")


def but(docker: Docker, **changes) -> Docker:
    return Docker(**(vars(docker) | changes))


def changed(step: Step, **changes) -> Step:
    return Step(**(vars(step) | changes))


def mounts(command: list[str]) -> dict[str, bool]:
    """Target -> whether it is writable."""
    fields = [option.removeprefix("--mount=").split(",") for option in command if option.startswith("--mount=")]
    return {field[2].removeprefix("target="): "readonly" not in field for field in fields}


def test_a_step_sees_its_places_under_their_own_names(docker, step, tmp_path):
    command = docker.command(step)
    assert mounts(command) == {
        str(tmp_path / "model"): False, str(tmp_path / ARTIFACTS): False, str(tmp_path / "root"): True,
        str(step.folder): True, "/cache": True,
    }  # fmt: skip
    assert command[-6:] == ["image:local", *step.command]
    assert "--network=none" in command
    assert {"--cap-drop=ALL", "--security-opt=no-new-privileges", "--read-only", "--entrypoint="} < set(command)


def test_a_container_never_runs_as_root(docker, step, monkeypatch):
    (user,) = (option for option in docker.command(step) if option.startswith("--user="))
    assert user == (f"--user={os.getuid()}:{os.getgid()}" if os.getuid() else "--user=10001:10001")
    monkeypatch.setattr("os.getuid", lambda: 501)
    monkeypatch.setattr("os.getgid", lambda: 20)
    assert "--user=501:20" in docker.command(step)


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_the_container_may_write_what_root_made_and_nothing_else_changes_hands(docker, step, tmp_path):
    (tmp_path / "root" / "runs").mkdir(parents=True)
    for name, owner in (("runs/ours", 0), ("runs/theirs", 4321), ("id_rsa", 0)):
        (tmp_path / "root" / name).touch()
        os.chown(tmp_path / "root" / name, owner, owner)
    docker.command(step)
    names = ("root", "root/runs", "root/runs/ours", "root/runs/theirs", "root/id_rsa", "model")
    owners = [(tmp_path / name).stat().st_uid for name in names]
    assert owners == [10001, 10001, 10001, 4321, 0, 0]


@pytest.mark.parametrize(
    "arguments",
    [
        {"base_model": "org/model@main"},
        {"dataset": "gs://bucket/rows.jsonl"},
        {"storage_root": "s3://bucket/root"},
        {"config": {"publish_root": "gs://bucket/models"}},
        {"config": {"upload_to_hub": True, "hub_repo_id": "org/name"}},
        {"config": {"validation": {"red_team_prompts": "s3://bucket/prompts.jsonl"}}},
        {"config": {"validation": {"judge_model": "org/guard"}}},
    ],
)
def test_a_step_that_reads_or_writes_elsewhere_has_a_network(docker, step, arguments):
    assert "--network=none" not in docker.command(changed(step, arguments=step.arguments | arguments))


def test_the_value_of_a_variable_is_on_no_command_line(docker, step, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("CREDENTIALS", str(tmp_path / "key.json"))
    monkeypatch.setenv("OTHER", "other")
    monkeypatch.delenv("NOT_HERE", raising=False)
    (tmp_path / "key.json").write_text("{}")
    asked = {"fetch_model": ["HF_TOKEN", "CREDENTIALS", "NOT_HERE"]}
    command = but(docker, variables_of=asked.get).command(step)
    assert {"--env=HF_TOKEN", "--env=CREDENTIALS", "--env=KFP_RUN_ID"} < set(command)
    assert not [option for option in command if "secret" in option or "OTHER" in option or "NOT_HERE" in option]
    assert mounts(command)[str(tmp_path / "key.json")] is False


def test_only_steps_that_the_graph_gives_a_gpu_get_one(docker, step):
    with_gpus = but(docker, gpus="all")
    assert "--gpus=all" not in with_gpus.command(step)
    shm = {"emptyDirMounts": [{"mountPath": "/dev/shm", "medium": "Memory", "sizeLimit": "16Gi"}]}
    command = with_gpus.command(changed(step, num_gpus=1, settings=shm))
    assert {"--gpus=all", f"--shm-size={16 << 30}"} < set(command)
    assert "--gpus=all" not in docker.command(changed(step, num_gpus=1))


def test_links_of_the_hubs_cache_lead_somewhere(docker, step, tmp_path):
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (tmp_path / "models--org--name" / "blobs").mkdir()
    step = changed(step, arguments=step.arguments | {"base_model": str(snapshot)})
    assert mounts(docker.command(step))[str(tmp_path / "models--org--name" / "blobs")] is False


def test_what_other_links_of_a_model_lead_to_is_not_mounted(docker, step, tmp_path):
    (tmp_path / "secrets").mkdir()
    (tmp_path / "secrets" / "token").write_text("s3cret")
    (tmp_path / "model" / "NOTICE").symlink_to(tmp_path / "secrets" / "token")
    assert str(tmp_path / "secrets") not in mounts(docker.command(step))


def test_a_path_with_a_comma_stays_one_path(docker, step, tmp_path):
    odd = tmp_path / "a,b"
    odd.mkdir()
    command = docker.command(changed(step, arguments=step.arguments | {"base_model": str(odd)}))
    assert f'--mount=type=bind,"source={odd}","target={odd}",readonly' in command


@pytest.mark.parametrize(("code", "meant"), [(0, 0), (1, 1), (75, 75), (125, 125), (137, -9), (143, -15), (255, 255)])
def test_an_exit_code_says_whether_a_signal_ended_the_step(docker, code, meant):
    assert docker.exit_code(code) == meant


@pytest.mark.parametrize(("quantity", "size"), [("16Gi", 16 << 30), ("500M", 500_000_000), ("64", 64)])
def test_kubernetes_quantities_are_bytes(quantity, size):
    assert num_bytes(quantity) == size


def test_another_quantity_is_refused():
    with pytest.raises(ValueError, match="'16GB' is not a quantity"):
        num_bytes("16GB")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "there is no docker on PATH"),
        (
            "echo 'Cannot connect to the Docker daemon' >&2; exit 1",
            "docker info: Cannot connect.*start Docker's engine",
        ),
        (
            "[ $1 = info ] || { echo 'no such host' >&2; exit 1; }",
            "docker pull: no such host: build it with make image",
        ),
    ],
)
def test_what_is_missing_is_one_error(docker, monkeypatch, tmp_path, script, words):
    (tmp_path / "bin").mkdir()
    if script:
        (tmp_path / "bin" / "docker").write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / "bin" / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ValueError, match=words):
        docker.check(["posttrain-cpu:local", "posttrain-train:local"])
