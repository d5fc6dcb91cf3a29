"""Compares the trials of a sweep that was cut short before its own steps could: the table and the best so far.

results of the trials that have ended -> comparison.html or .md, trials.csv, best_so_far.yaml in the run's folder
"""

import logging
from importlib.util import find_spec

from posttrain import storage
from posttrain.config import merged
from posttrain.config.line import COMPARE_TRIALS
from posttrain.config.sweep import nested
from posttrain.pages import wording
from posttrain.storage import layout
from posttrain.sweep import compare, table
from posttrain.sweep.study import Study
from posttrain.sweep.table import Comparison
from runner.request import RunRequest

BEST = "best_so_far.yaml"

logger = logging.getLogger(__name__)


def write_table(study: Study, run_id: str, request: RunRequest) -> tuple[Comparison, dict[str, str]]:
    """Compares the trials that have ended and writes the table; returns the comparison and where its parts are."""
    rungs = [rung.number for rung in study.sweep.rungs if study.ended(rung)]
    comparison = compare.compare(study, rungs[-1], "Sweep, cut short")
    folder = layout.runs(study.storage_root, run_id, COMPARE_TRIALS)
    names = {"As CSV": compare.NAMES["csv"], "Table": compare.NAMES["summary"]}
    texts = {"As CSV": table.to_csv(comparison), "Table": table.markdown(comparison)}
    if find_spec("matplotlib"):  # for its plots; a machine that only submits runs may lack it
        names["Table"], texts["Table"] = compare.NAMES["table"], table.html(comparison)
    best = comparison.rows[0].candidate
    if best.qualifies:
        names["Best so far"], texts["Best so far"] = BEST, best_config(request, best.settings)
    places = {title: storage.join(folder, name) for title, name in names.items()}
    try:
        for title, place in places.items():
            storage.write_bytes(place, texts[title].encode())
    except OSError as error:
        logger.warning("the table of the sweep cannot be written: %s", wording.line(str(error)))
        places = {}
    return comparison, places


def best_config(request: RunRequest, settings: dict) -> str:
    """Returns the line's configuration with the settings of the best trial so far."""
    pipeline = request.config.model_dump(mode="json", exclude_none=True)
    parameters = {name: request.parameters[name] for name in compare.PARAMETERS}
    return compare.winner_config(pipeline, parameters, merged(request.parameters["overrides"], nested(settings)))
