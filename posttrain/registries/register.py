"""Register a published model in Kubeflow Model Registry and MLflow, as configured under `registries`.

folder of a published version, configuration -> the version in each registry, with its address, and with digests,
sources and every gate's numbers as properties

The version is verified first, as by `posttrain.verify`. A registry that has the version is left as it is, so this can
be repeated, also after a run that published while a registry was away. One that has another version of this name
refuses. A token is read from the variable POSTTRAIN_MODEL_REGISTRY_TOKEN or POSTTRAIN_MLFLOW_TOKEN.

    python -m posttrain.registries.register gs://bucket/published/my-model/05ceb577bb54 --config FILE
"""

import argparse
import sys

from posttrain import verify
from posttrain.config import load_config
from posttrain.pages import wording
from posttrain.registries.entry import read_entry
from posttrain.registries.registration import KINDS, register
from posttrain.step import run


def check_published(folder: str) -> None:
    """Refuses a version that is not whole; ValueError with all its faults."""
    if faults := verify.verify(folder).faults:
        raise ValueError(f"{folder}: is not registered: {' | '.join(faults)}")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("published", help="folder of the published version: path, gs:// or s3://")
    parser.add_argument("--config", nargs="+", required=True, metavar="FILE", help="configuration with `registries`")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", dest="settings", help="change a setting")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    run.configure_logging()
    try:
        registries = load_config(args.config, args.settings).registries
        if registries is None:
            raise ValueError(
                f"{', '.join(args.config)}: has no section registries: add one, with the servers' addresses"
            )
        check_published(args.published)
        outcome = register(read_entry(args.published), registries)
    except (OSError, ValueError) as error:
        print(f"error: {wording.line(str(error))}", file=sys.stderr)
        return 1
    for name, address in outcome.registered.items():
        print(wording.line(f"{KINDS[name].TITLE}: {address}"))
    for error in outcome.errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if outcome.errors else 0


if __name__ == "__main__":
    sys.exit(main())
