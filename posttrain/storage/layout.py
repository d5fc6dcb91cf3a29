"""The folders below a storage root.

runs/<run id>/                       records, verdicts, pages and report of a run
runs/<run id>/settings/              settings of its steps, each under its SHA-256
runs/<run id>/nodes/                 orders and endings of trainings on several nodes
results/<step>/<fingerprint>/        finished results, which later runs reuse
checkpoints/<step>/<fingerprint>/    of trainings, from which another attempt resumes
published/<model name>/<version>/    published models, unless publish_root says otherwise
published/<model name>/CURRENT       which version is current: what deployments read
published/<model name>/promotions/   every promotion of a version to current, numbered
sweeps/<fingerprint>/                settings and results of the trials of a sweep
"""

from posttrain.storage.address import Uri, join

RUNS, RESULTS, CHECKPOINTS, PUBLISHED, SWEEPS = "runs", "results", "checkpoints", "published", "sweeps"
FOLDERS = (RUNS, RESULTS, CHECKPOINTS, PUBLISHED, SWEEPS)
CURRENT, PROMOTIONS = "CURRENT", "promotions"  # beside the versions of a published model


def runs(storage_root: Uri, *names: str) -> str:
    """Returns the URI of the folder of all runs, or of something in it: run id, file name."""
    return join(storage_root, RUNS, *names)


def results(storage_root: Uri, *names: str) -> str:
    """Returns the URI of the folder of all results, or of something in it: step, fingerprint, file name."""
    return join(storage_root, RESULTS, *names)


def checkpoints(storage_root: Uri, *names: str) -> str:
    """Returns the URI of the folder of all checkpoints, or of something in it: step, fingerprint."""
    return join(storage_root, CHECKPOINTS, *names)


def published(storage_root: Uri, *names: str) -> str:
    """Returns the URI of the folder of all published models, or of something in it: model name, version."""
    return join(storage_root, PUBLISHED, *names)


def versions(storage_root: Uri, publish_root: Uri | None, model_name: str) -> str:
    """Returns the URI of the folder of all versions of a published model; `publish_root`: as configured."""
    return join(publish_root or published(storage_root), model_name)


def current(model_folder: Uri) -> str:
    """Returns the URI of the file that names the current version of a published model."""
    return join(model_folder, CURRENT)


def promotions(model_folder: Uri, *names: str) -> str:
    """Returns the URI of the folder of all promotions of a published model, or of one of them."""
    return join(model_folder, PROMOTIONS, *names)


def sweeps(storage_root: Uri, *names: str) -> str:
    """Returns the URI of the folder of all sweeps, or of something in it: fingerprint."""
    return join(storage_root, SWEEPS, *names)
