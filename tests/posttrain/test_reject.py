from pathlib import Path

import pytest

from posttrain import reject
from posttrain.step import records, run
from posttrain.verdict import Verdict, at_least, below, holds

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
    assert capsys.readouterr().err.splitlines()[-2:] == [f"failed: {LOSS.sentence}", f"failed: {FILES.sentence}"]


def test_an_undecided_verdict_says_so(tmp_path, capsys):
    unsure = at_least("output_format_valid", 0.92, 0.9, interval=(0.85, 0.95), more_rows=41)
    with pytest.raises(SystemExit) as stopped:
        reject.main(arguments(tmp_path, unsure))
    assert stopped.value.code.startswith("rejected by check_sft (undecided): output_format_valid: 0.92, limit >= 0.9")
    assert "About 41 more rows would decide" in capsys.readouterr().err


def test_what_a_check_quotes_cannot_command_a_terminal(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        reject.main(arguments(tmp_path, holds("rows", False, detail="row '\x1b[2J\u202e'\nINFO: promoted")))
    assert "\x1b" not in capsys.readouterr().err + stopped.value.code
    assert stopped.value.code.endswith("rows (row '\\u{1b}[2J\\u{202e}' INFO: promoted)")


def test_the_rejection_is_recorded(tmp_path):
    with pytest.raises(SystemExit):
        reject.main(arguments(tmp_path, LOSS))
    [found] = records.read_records(str(tmp_path / "store"), run.run_id())
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
