import json
import logging
from pathlib import Path

import pytest

from posttrain import storage
from posttrain.config import RUN_ID_ENV
from posttrain.step.running import Running
from posttrain.train.checkpoints import COMPLETE, Checkpoints, Diverged, World, remove_run, remove_trial, step_of


@pytest.fixture
def local(tmp_path) -> Path:
    """A trainer's checkpoint folder, with more in it than resuming needs."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    needed = ["adapter_config.json", "adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth"]
    for name in (*needed, "trainer_state.json", "training_args.bin", "tokenizer.json", "README.md"):
        (folder / name).write_text(f"{name} of the first step")
    (folder / "ref").mkdir()
    (folder / "ref" / "adapter_model.safetensors").write_text("a frozen reference")
    return folder


def checkpoints(tmp_path: Path, *, run_id: str = "run", limit: int = 3, fingerprint: str = "f" * 64) -> Checkpoints:
    return Checkpoints(str(tmp_path / "store"), "train_sft", fingerprint, run_id=run_id, limit=limit)


def steps(kept: Checkpoints) -> list[str]:
    return sorted({name.split("/")[0] for name in storage.list_files(kept.root)})


def published(kept: Checkpoints, step: int) -> Path:
    """The folder of the only checkpoint of a step."""
    (folder,) = Path(kept.root, f"step-{step:08}").iterdir()
    return folder


def test_newest_comes_back_without_what_resuming_does_not_need(tmp_path, local):
    kept = checkpoints(tmp_path)
    kept.publish(local, step=1)
    (local / "optimizer.pt").write_text("later")
    kept.publish(local, step=2)
    newest = checkpoints(tmp_path, run_id="another run").fetch_newest(tmp_path / "resumed")
    assert (newest / "optimizer.pt").read_text() == "later"
    assert (newest / "adapter_model.safetensors").read_text() == "adapter_model.safetensors of the first step"
    left_out = {"training_args.bin", "tokenizer.json", "README.md", "ref"}
    assert {file.name for file in newest.iterdir()} == {file.name for file in local.iterdir()} - left_out


def test_every_kind_of_storage(root, tmp_path, local):
    kept = Checkpoints(root, "train_sft", "f" * 64, run_id="run", limit=1)
    for step in (1, 2):
        kept.publish(local, step=step)
    assert steps(kept) == ["step-00000002"]
    assert (kept.fetch_newest(tmp_path / "resumed") / "optimizer.pt").read_text() == "optimizer.pt of the first step"
    kept.write_divergence("diverged", step=3)
    with pytest.raises(Diverged):
        kept.refuse_if_diverged()


def test_nothing_there(tmp_path):
    assert checkpoints(tmp_path).fetch_newest(tmp_path / "resumed") is None


def test_another_fingerprint_sees_nothing(tmp_path, local):
    checkpoints(tmp_path).publish(local, step=1)
    assert checkpoints(tmp_path, fingerprint="e" * 64).fetch_newest(tmp_path / "resumed") is None


def half_written(folder: Path) -> None:
    (folder / COMPLETE).unlink()


def truncated(folder: Path) -> None:
    (folder / "optimizer.pt").write_text("opt")


def changed(folder: Path) -> None:
    (folder / "optimizer.pt").write_text((folder / "optimizer.pt").read_text().replace("first", "other"))


def missing(folder: Path) -> None:
    (folder / "optimizer.pt").unlink()


def unreadable(folder: Path) -> None:
    (folder / COMPLETE).write_text('{"fingerprint": ')


def foreign(folder: Path) -> None:
    manifest = json.loads((folder / COMPLETE).read_text())
    (folder / COMPLETE).write_text(json.dumps(manifest | {"fingerprint": "e" * 64}))


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (half_written, "half-written: it has no COMPLETE.json"),
        (truncated, "damaged: optimizer.pt has 3 bytes"),
        (changed, "damaged: optimizer.pt has 30 bytes"),
        (missing, "optimizer.pt: no such file"),
        (unreadable, "damaged: COMPLETE.json cannot be parsed"),
        (foreign, "foreign: its fingerprint is eeee"),
    ],
)
def test_what_is_not_whole_is_skipped_and_the_one_before_taken(tmp_path, local, caplog, harm, reason):
    kept = checkpoints(tmp_path)
    kept.publish(local, step=1)
    kept.publish(local, step=2)
    harm(published(kept, 2))
    with caplog.at_level(logging.WARNING):
        newest = kept.fetch_newest(tmp_path / "resumed")
    assert newest.parent.name == "step-00000001"
    assert "step-00000002" in caplog.text and reason in caplog.text


def test_one_that_goes_while_it_is_fetched_gives_way_to_the_newer_one_that_has_replaced_it(
    tmp_path, local, monkeypatch
):
    """As when pods of an earlier attempt still save."""
    earlier, download = checkpoints(tmp_path, limit=1), storage.download_file
    earlier.publish(local, step=1)

    def meanwhile(uri: str, path: Path) -> str:
        if "step-00000001" in uri:
            earlier.publish(local, step=2)
        return download(uri, path)

    monkeypatch.setattr(storage, "download_file", meanwhile)
    assert checkpoints(tmp_path).fetch_newest(tmp_path / "resumed").parent.name == "step-00000002"


def test_only_the_newest_are_kept(tmp_path, local):
    kept = checkpoints(tmp_path, limit=2)
    for step in (1, 2, 3):
        kept.publish(local, step=step)
    assert steps(kept) == ["step-00000002", "step-00000003"]


def test_half_written_ones_do_not_count_and_go_once_they_are_old(tmp_path, local):
    kept = checkpoints(tmp_path, limit=1)
    kept.publish(local, step=1)
    half_written(published(kept, 1))
    kept.publish(local, step=2)
    assert steps(kept) == ["step-00000002"]


def test_half_written_ones_are_none_of_those_that_are_kept(tmp_path, local):
    other, kept = checkpoints(tmp_path, run_id="other", limit=2), checkpoints(tmp_path, limit=2)
    other.publish(local, step=9)
    half_written(published(other, 9))
    for step in (1, 2, 3):
        kept.publish(local, step=step)
    assert steps(kept) == ["step-00000002", "step-00000003", "step-00000009"]


def test_a_slower_run_keeps_the_checkpoint_that_it_knows_to_be_whole(tmp_path, local):
    fast, slow = checkpoints(tmp_path, run_id="fast", limit=1), checkpoints(tmp_path, run_id="slow", limit=1)
    fast.publish(local, step=9)
    truncated(published(fast, 9))
    slow.publish(local, step=2)
    assert steps(slow) == ["step-00000002", "step-00000009"]
    assert slow.fetch_newest(tmp_path / "resumed").parent.name == "step-00000002"


def test_two_processes_of_one_run_never_mix_files(tmp_path, local):
    one, two = checkpoints(tmp_path), checkpoints(tmp_path)
    one.publish(local, step=1)
    (local / "optimizer.pt").write_text("of the second")
    two.publish(local, step=1)
    optimizers = {path.read_text() for path in Path(one.root).glob("step-00000001/*/optimizer.pt")}
    assert optimizers == {"optimizer.pt of the first step", "of the second"}


def test_interrupted_publication_is_no_checkpoint(tmp_path, local, monkeypatch):
    kept = checkpoints(tmp_path)
    upload = storage.upload_file

    def killed(path, uri):
        sha256 = upload(path, uri)
        if uri.endswith("scheduler.pt"):
            raise KeyboardInterrupt
        return sha256

    monkeypatch.setattr(storage, "upload_file", killed)
    with pytest.raises(KeyboardInterrupt):
        kept.publish(local, step=1)
    assert kept.fetch_newest(tmp_path / "resumed") is None


def test_divergence_is_remembered_by_its_run_alone(tmp_path):
    kept = checkpoints(tmp_path)
    kept.refuse_if_diverged()
    kept.write_divergence("diverged at step 3/9: loss nan", step=3)
    with pytest.raises(Diverged, match="^diverged at step 3/9: loss nan$"):
        checkpoints(tmp_path).refuse_if_diverged()
    checkpoints(tmp_path, run_id="another").refuse_if_diverged()


def test_a_run_removes_its_own_checkpoints_and_no_others(root, tmp_path):
    (tmp_path / "trainer_state.json").write_text("{}")
    for run_id, step in (("run-1", 10), ("run-1", 20), ("run-10", 30)):
        checkpoints = Checkpoints(root, "train_sft", "f" * 64, run_id, limit=5)
        checkpoints.publish(tmp_path, step=step)
    remove_run(root, "run-1")
    left = {name.split("/")[3] for name in storage.list_files(storage.join(root, "checkpoints"))}
    assert len(left) == 1
    assert left.pop().startswith("run-10-")


def test_a_run_takes_and_removes_its_own_checkpoints_only(tmp_path, local):
    for run_id, step in (("run-1", 1), ("run-10", 2), ("a-run-1", 3), ("run-1-0123abcd", 4)):
        checkpoints(tmp_path, run_id=run_id, limit=9).publish(local, step=step)
    fresh = Checkpoints(str(tmp_path / "store"), "train_sft", "f" * 64, run_id="run-1", limit=9, is_fresh=True)
    assert step_of(fresh.fetch_newest(tmp_path / "resumed")) == 1
    remove_run(str(tmp_path / "store"), "run-1")
    assert steps(fresh) == ["step-00000002", "step-00000003", "step-00000004"]


@pytest.mark.parametrize("num_rows", [1, 3])
def test_reference_log_probabilities_of_fewer_or_more_rows_are_not_read(num_rows, tmp_path):
    kept = checkpoints(tmp_path)
    kept.write_reference("train", [(-1.0, -2.0)] * 2)
    assert kept.read_reference("train", num_rows=2) == [(-1.0, -2.0)] * 2
    assert kept.read_reference("train", num_rows=num_rows) is None


@pytest.mark.parametrize("fingerprint", ["a" * 64, "z" * 64])
def test_a_manifest_of_another_fingerprint_is_foreign(fingerprint, tmp_path, local, caplog):
    kept = checkpoints(tmp_path)
    kept.publish(local, step=1)
    complete = published(kept, 1) / COMPLETE
    complete.write_text(complete.read_text().replace("f" * 64, fingerprint))
    assert kept.fetch_newest(tmp_path / "resumed") is None
    assert f"foreign: its fingerprint is {fingerprint}" in caplog.text


def of_nodes(root: str, *, limit: int = 3, num_nodes: int = 2) -> list[Checkpoints]:
    """The checkpoints of a training on several nodes with two ranks each, as each node has them."""
    worlds = [World(2 * num_nodes, num_nodes, node) for node in range(num_nodes)]
    training = (root, "train_sft", "f" * 64)
    return [Checkpoints(*training, run_id="run", limit=limit, suffix="01234567", world=world) for world in worlds]


def disk_of(node: int, local: Path) -> Path:
    """Writes what the ranks of a node have on its disk: the first one all that they share, each its random numbers."""
    folder = local.with_name(f"node-{node}")
    folder.mkdir()
    if node == 0:
        for file in filter(Path.is_file, local.iterdir()):
            (folder / file.name).write_bytes(file.read_bytes())
        (folder / "rng_state.pth").unlink()
    for rank in (2 * node, 2 * node + 1):
        (folder / f"rng_state_{rank}.pth").write_text(f"random numbers of {rank}")
    return folder


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_checkpoint_of_two_nodes_is_whole_once_both_have_stored_their_part(root, tmp_path, local, order):
    nodes, disks = of_nodes(root), [disk_of(node, local) for node in (0, 1)]
    first, last = order
    assert not nodes[first].publish(disks[first], step=1)
    assert nodes[first].fetch_newest(tmp_path / "too early") is None and nodes[first].newest_step() is None
    assert nodes[last].publish(disks[last], step=1)
    newest = nodes[0].fetch_newest(tmp_path / "resumed")
    names = {file.name for disk in disks for file in disk.iterdir()}
    assert {file.name for file in newest.iterdir()} == names - {"training_args.bin", "tokenizer.json", "README.md"}
    assert nodes[1].fetch(newest.relative_to(tmp_path / "resumed").as_posix(), tmp_path / "other").is_dir()


def test_nodes_that_are_done_at_the_same_moment_both_have_a_whole_checkpoint(tmp_path, local, monkeypatch):
    nodes, disks = of_nodes(str(tmp_path / "store")), [disk_of(node, local) for node in (0, 1)]
    nodes[0].publish(disks[0], step=1)
    write = storage.write_bytes

    def other_was_first(uri, data, **how):
        if uri.endswith(COMPLETE):
            write(uri, data, **how)
        write(uri, data, **how)

    monkeypatch.setattr(storage, "write_bytes", other_was_first)
    assert nodes[1].publish(disks[1], step=1)
    assert nodes[0].fetch_newest(tmp_path / "resumed")
    with pytest.raises(FileExistsError):  # alone there is nobody else who could have written it
        checkpoints(tmp_path).publish(local, step=2)


def test_a_checkpoint_that_one_node_has_given_up_goes_once_it_is_old(tmp_path, local):
    nodes, disks = of_nodes(str(tmp_path / "store"), limit=1), [disk_of(node, local) for node in (0, 1)]
    for step, done in ((1, (0,)), (2, (0, 1))):
        for node in done:
            nodes[node].publish(disks[node], step=step)
    assert steps(nodes[0]) == ["step-00000002"]


@pytest.mark.parametrize("size", [1, 4])
def test_another_number_of_ranks_resumes_only_if_the_training_is_elastic(size, tmp_path, local, caplog):
    training = (str(tmp_path / "store"), "train_sft", "f" * 64)
    Checkpoints(*training, run_id="run", limit=3, world=World(2)).publish(local, step=1)
    assert Checkpoints(*training, run_id="run", limit=3, world=World(size)).fetch_newest(tmp_path / "resumed") is None
    assert f"it is of 2 ranks, not {size}: set elastic" in caplog.text
    elastic = Checkpoints(*training, run_id="run", limit=3, world=World(size, is_elastic=True))
    assert step_of(elastic.fetch_newest(tmp_path / "resumed")) == 1
    assert f"is of 2 ranks, and {size} continue (elastic): the weights will not be bit for bit" in caplog.text


def test_what_an_earlier_download_left_in_the_folder_goes(tmp_path, local):
    kept = checkpoints(tmp_path)
    kept.publish(local, step=1)
    (kept.fetch_newest(tmp_path / "resumed") / "scaler.pt").write_text("of an earlier attempt")
    assert not (kept.fetch_newest(tmp_path / "resumed") / "scaler.pt").exists()


@pytest.mark.parametrize("is_pruned", [True, False])
def test_a_removal_that_is_interrupted_leaves_no_checkpoint(is_pruned, tmp_path, local, monkeypatch):
    kept = checkpoints(tmp_path, limit=1)
    kept.publish(local, step=1)

    def killed(uri):
        remove(uri)
        raise KeyboardInterrupt

    remove = storage.remove
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(storage, "remove", killed)
        if is_pruned:
            kept.publish(local, step=2)
        else:
            remove_run(str(tmp_path / "store"), "run")
    assert not (published(kept, 1) / COMPLETE).exists() and (published(kept, 1) / "optimizer.pt").exists()
    assert kept.newest_step() == (2 if is_pruned else None)


@pytest.mark.parametrize("is_elastic", [False, True])
def test_the_checkpoints_of_a_step_are_those_of_its_run_and_its_ranks(is_elastic, tmp_path, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "GROUP_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(RUN_ID_ENV, "run-7")
    running = Running("train_sft", str(tmp_path), "f" * 64)
    options = {"is_elastic": True} if is_elastic else {}
    kept = Checkpoints.of(running, limit=2, **options)
    assert (kept.storage_root, kept.step, kept.fingerprint) == (str(tmp_path), "train_sft", "f" * 64)
    assert (kept.run_id, kept.limit, kept.is_fresh) == ("run-7", 2, False)
    assert kept.world == World(1, 1, 0, is_elastic)
    assert checkpoints(tmp_path).world == World(1, 1, 0, False)


def test_a_trial_removes_its_own_checkpoints_of_one_training(tmp_path, local):
    for step, run_id in enumerate(["sweep.trial_1", "other.trial_1", "sweep.trial_10", "trial_1"], start=1):
        checkpoints(tmp_path, run_id=run_id, limit=9).publish(local, step=step)
    checkpoints(tmp_path, run_id="sweep.trial_1", fingerprint="e" * 64).publish(local, step=9)
    remove_trial(str(tmp_path / "store"), "trial_1", step="train_sft", fingerprint="f" * 64)
    assert steps(checkpoints(tmp_path)) == ["step-00000003", "step-00000004"]
    assert steps(checkpoints(tmp_path, fingerprint="e" * 64)) == ["step-00000009"]


@pytest.mark.parametrize("content", ["", "[]", "{}"])
def test_a_mark_of_divergence_that_is_damaged_still_ends_the_run(content, tmp_path, caplog):
    kept = checkpoints(tmp_path)
    kept.write_divergence("diverged")
    (mark,) = Path(kept.root).rglob("DIVERGED.json")
    mark.write_text(content)
    with pytest.raises(Diverged, match=r"DIVERGED\.json: is damaged"):
        kept.refuse_if_diverged()
    assert f"start a new run, or remove {mark}" in caplog.text


def test_reference_log_probabilities_that_are_damaged_or_cannot_be_stored_are_computed_again(tmp_path, caplog):
    kept = checkpoints(tmp_path)
    assert kept.read_reference("train", num_rows=1) is None and not caplog.text
    Path(kept.root).mkdir(parents=True)
    file = Path(kept.root, "reference-train.json")
    file.write_text("[[-1.0]]")
    assert kept.read_reference("train", num_rows=1) is None
    assert f"{file} skipped: damaged: " in caplog.text
    file.unlink()
    file.mkdir()
    kept.write_reference("train", [(-1.0, -2.0)])
    assert "could not be stored, a resume computes them again" in caplog.text
