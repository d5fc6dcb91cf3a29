import logging
import threading
from pathlib import Path

import pytest

from posttrain.train.uploads import Uploads


class Storage:
    """Stands for `Checkpoints`: notes the steps it gets; the first waits for `go`, and `error` is raised.

    Unless it is `whole`, another node has not stored its part yet.
    """

    def __init__(self, error: Exception | None = None, *, whole: bool = True):
        self.begun, self.go, self.steps, self.error = threading.Event(), threading.Event(), [], error
        self.whole = whole

    def publish(self, folder: Path, *, step: int) -> bool:
        self.begun.set()
        self.go.wait(10)
        assert (folder / "weights").exists()
        if self.error:
            raise self.error
        self.steps.append(step)
        return self.whole


def folder(tmp_path: Path, step: int) -> Path:
    path = tmp_path / f"checkpoint-{step}"
    path.mkdir()
    (path / "weights").write_text("weights")
    return path


def test_the_training_does_not_wait_and_the_end_does(tmp_path):
    storage = Storage()
    with Uploads(storage) as uploads:
        uploads.submit(folder(tmp_path, 1), step=1)
        assert storage.begun.wait(10) and storage.steps == []
        threading.Timer(0.1, storage.go.set).start()
    assert storage.steps == [1] and uploads.stored_step == 1
    assert not any(tmp_path.iterdir())


def test_of_those_that_wait_the_newest_is_kept(tmp_path, caplog):
    storage = Storage()
    with Uploads(storage) as uploads:
        uploads.submit(folder(tmp_path, 1), step=1)
        assert storage.begun.wait(10)
        for step in (2, 3, 4):
            uploads.submit(folder(tmp_path, step), step=step)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]
        storage.go.set()
    assert storage.steps == [1, 4]
    assert "step 2 is dropped in favour of step 3" in caplog.text
    assert not any(tmp_path.iterdir())


def test_storage_that_is_down_costs_a_checkpoint_and_a_line(tmp_path, caplog):
    storage = Storage(error=OSError("gs://bucket/x: ServiceUnavailable"))
    storage.go.set()
    with caplog.at_level(logging.WARNING), Uploads(storage) as uploads:
        uploads.submit(folder(tmp_path, 1), step=1)
    assert uploads.stored_step is None
    (line,) = [entry.getMessage() for entry in caplog.records]
    assert line == ("checkpoint of step 1 could not be stored, the training goes on: gs://bucket/x: ServiceUnavailable")


def test_a_part_of_a_checkpoint_is_none_to_resume_from(tmp_path):
    storage = Storage(whole=False)
    storage.go.set()
    with Uploads(storage) as uploads:
        uploads.submit(folder(tmp_path, 1), step=1)
    assert storage.steps == [1] and uploads.newest_step() is None


def test_what_is_no_trouble_of_the_storage_ends_the_stage(tmp_path):
    storage = Storage(error=ValueError("a mistake of ours"))
    storage.go.set()
    with pytest.raises(ValueError, match="a mistake of ours"), Uploads(storage) as uploads:
        uploads.submit(folder(tmp_path, 1), step=1)


def test_the_error_of_the_training_counts_more(tmp_path):
    storage = Storage(error=ValueError("a mistake of ours"))
    storage.go.set()
    with pytest.raises(RuntimeError, match="diverged"), Uploads(storage) as uploads:
        uploads.submit(folder(tmp_path, 1), step=1)
        raise RuntimeError("diverged")
