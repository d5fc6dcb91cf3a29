from pathlib import Path

import pytest

from posttrain import record, reject
from posttrain.verdict import Verdict, below, holds

LOSS = below("held_out_loss", 2.5, 2.0, remedy="Train longer.")
FILES = holds("adapter_readable", False, detail="truncated")


def arguments(folder: Path, *checks) -> list[str]:
    verdict = Verdict(gate="check_sft", subject={}, checks=checks)
    (folder / "verdict.json").write_text(verdict.model_dump_json())
    return ["--step", "reject_sft", "--storage-root", str(folder / "store"), "--verdict", str(folder / "verdict.json")]


def test_every_failed_check_is_printed_and_the_last_line_names_the_first(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        reject.main(arguments(tmp_path, holds("tokenizer", True), LOSS, FILES))
    assert stopped.value.code == "rejected by check_sft: held_out_loss: 2.5, not < 2. Train longer. (and 1 more)"
    assert capsys.readouterr().err.splitlines()[-2:] == [LOSS.sentence, FILES.sentence]


def test_the_rejection_is_recorded(tmp_path):
    with pytest.raises(SystemExit):
        reject.main(arguments(tmp_path, LOSS))
    [found] = record.read_records(str(tmp_path / "store"), record.run_id())
    assert (found.step, found.status) == ("reject_sft", "failed")
    assert "rejected by check_sft" in found.error


def test_a_passed_verdict_ends_the_run_too(tmp_path):
    with pytest.raises(SystemExit) as stopped:
        reject.main(arguments(tmp_path, holds("tokenizer", True)))
    assert "the graph does not follow its gates" in stopped.value.code


def test_what_a_verdict_claims_does_not_count(tmp_path):
    flags = arguments(tmp_path, LOSS)
    path = tmp_path / "verdict.json"
    path.write_text(path.read_text().replace('"passed":false', '"passed":true'))
    with pytest.raises(SystemExit) as stopped:
        reject.main(flags)
    assert stopped.value.code.startswith("rejected by check_sft")
