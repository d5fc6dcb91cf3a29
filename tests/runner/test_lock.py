import signal
import subprocess
import sys
from pathlib import Path

from posttrain.config import ReportStep
from runner.lock import killed_runs, under_way

SETTINGS = ReportStep(pipeline_id="demo", steps=["fetch_model"])
RUN = """
import sys, time
from pathlib import Path
from runner.lock import under_way
from posttrain.config import ReportStep
with under_way(Path(sys.argv[1]), ReportStep(pipeline_id="demo", steps=["fetch_model"])):
    print("it runs", flush=True)
    time.sleep(60)
"""


def test_a_killed_run_is_given_once(tmp_path):
    (tmp_path / "r1").mkdir()
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path / "r1")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "it runs\n"
    assert list(killed_runs(tmp_path)) == []  # it runs
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert list(killed_runs(tmp_path)) == [("r1", SETTINGS)]
    assert list(killed_runs(tmp_path)) == []


def test_a_run_that_ended_is_not_taken_for_killed(tmp_path: Path):
    with under_way(tmp_path, SETTINGS):
        pass
    assert list(killed_runs(tmp_path.parent)) == []
