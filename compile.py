"""Compiles the graph: configs/pipeline_config.yaml -> post_training.yaml. Needs kfp, not torch.

python compile.py                                        write post_training.yaml
python compile.py --check                                exit 1 if post_training.yaml is stale
python compile.py --allow-tags                           images that have no digest yet are meant
python compile.py --config F --set validation.max_loss=1.5 --output other.yaml
python compile.py --config configs/pipeline_config.yaml configs/clusters/eks.yaml    the second on top of the first
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path

from pipelines.compiler import compile_graph, unpushed_images
from posttrain.config import load_config


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", nargs="+", default=["configs/pipeline_config.yaml"], metavar="FILE")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings")
    parser.add_argument("--output", default="post_training.yaml", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the output file is stale")
    parser.add_argument("--allow-tags", action="store_true", help="say nothing of images that have no digest yet")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        config = load_config(args.config, args.settings)
        if args.check:
            return check(config, Path(args.output))
        compile_graph(config, args.output)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if not args.allow_tags and (images := unpushed_images()):
        print(
            f"{args.output} runs on this machine only: images/digests.yaml has no digest for {' and '.join(images)}; "
            "push and compile again, or give --allow-tags if that is meant",
            file=sys.stderr,
        )
    print(f"{args.output}: {Path(args.output).stat().st_size / 1e3:.0f} kB")
    return 0


def check(config, output: Path) -> int:
    """0 if `output` is what the configuration compiles to, else 1."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "graph.yaml"
        compile_graph(config, fresh)
        if output.is_file() and output.read_bytes() == fresh.read_bytes():
            print(f"{output} is up to date")
            return 0
    print(f"error: {output} is stale: run python compile.py and commit it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
