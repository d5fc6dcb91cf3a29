"""The README's table of settings says what posttrain/config.py says."""

import json
import re
from pathlib import Path

from posttrain.config import PipelineConfig, Section

ROW = re.compile(r"^\| `([\w.]+)` \| .+? \| (.+?) \| .+? \| .+? \|$", re.MULTILINE)
SUMMED_UP = {"placement.gpu"}  # one row for the whole section


def settings(section: Section, prefix: str = "") -> dict[str, object]:
    """Every key of the configuration by its dotted name, with its default."""
    result = {}
    for name in type(section).model_fields:
        value, key = getattr(section, name), prefix + name
        nested = isinstance(value, Section) and key not in SUMMED_UP
        result |= settings(value, f"{key}.") if nested else {key: value}
    return result


def test_every_setting_has_its_row_with_its_default():
    rows = dict(ROW.findall(Path("README.md").read_text(encoding="utf-8")))
    defaults = settings(PipelineConfig())
    assert rows.keys() == defaults.keys()
    wrong = {key: rows[key] for key in rows.keys() - SUMMED_UP if json.loads(rows[key].strip("`")) != defaults[key]}
    assert wrong == {}
