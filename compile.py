"""Compiles the graphs: configs/pipeline_config.yaml -> post_training.yaml, and with configs/sweep_config.yaml ->
sweep.yaml. Needs kfp, not torch.

python compile.py                                        write post_training.yaml and sweep.yaml
python compile.py --check                                exit 1 if one of them is stale
python compile.py --limits                               also list each limit with the rows that it needs
python compile.py --allow-tags                           do not warn about images that have no digest yet
python compile.py --config F --set validation.max_loss=1.5 --output other.yaml
python compile.py --config configs/pipeline_config.yaml configs/clusters/eks.yaml    the second overrides the first
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from runner import streams

if TYPE_CHECKING:
    from posttrain.config import PipelineConfig
    from posttrain.config.sweep import SweepConfig

LINE, SWEEP = "post_training.yaml", "sweep.yaml"

Write = Callable[[Path], None]


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    default = ["configs/pipeline_config.yaml"]
    add("--config", nargs="+", default=default, metavar="FILE", help="later files override earlier ones")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", dest="settings", help="override one key")
    add("--output", metavar="FILE", help=f"write the pipeline only, to this file instead of {LINE}")
    add("--sweep", default="configs/sweep_config.yaml", metavar="FILE", help="settings of the sweep")
    add("--sweep-output", metavar="FILE", help=f"write the sweep only, to this file instead of {SWEEP}")
    add("--check", action="store_true", help="write nothing; exit 1 if an output file is stale")
    add("--limits", action="store_true", help="list each limit and how many rows decide it")
    add("--allow-tags", action="store_true", help="do not warn about images that have no digest yet")
    return parser


def main(argv: list[str] | None = None) -> int:
    streams.keep_open()
    args = build_parser().parse_args(argv)
    logging.basicConfig(format="%(levelname)s: %(message)s")
    try:
        return run(args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def run(args: argparse.Namespace) -> int:
    """Writes or checks the graphs and returns the exit code. The imports take seconds, for which --help does not wait.

    Raises:
        ValueError: the configuration cannot be compiled, or an output not be written.
    """
    from posttrain.config import load_config, requirements
    from posttrain.config.unjudged import unjudged

    config = load_config(args.config, args.settings)
    sweep = read_sweep(args, config)
    graphs = graphs_of(args, config, sweep)
    if args.check:
        return max([check(write, output) for output, write in graphs.items()])
    for output, write in graphs.items():
        try:
            write(output)
        except OSError as error:
            raise ValueError(f"{output}: cannot be written, {error.strerror}: give another output file") from error
    print_written(graphs, allow_tags=args.allow_tags)
    for sentence in unjudged(config.validation):
        print(f"warning: {sentence}", file=sys.stderr)
    print(requirements.table(config) if args.limits else requirements.summary(config))
    if sweep:
        print(requirements.summary_of_sweep(config, sweep))
    return 0


def print_written(outputs: Iterable[Path], *, allow_tags: bool) -> None:
    """Prints the sizes of the graphs, and warns if they run on this machine only."""
    from pipelines.compiler import unpushed_images
    from pipelines.package import Package
    from pipelines.workflow_size import workflow_bytes

    outputs = list(outputs)
    names = " and ".join(map(str, outputs)) + (" runs" if len(outputs) == 1 else " run")
    if not allow_tags and (images := unpushed_images()):
        print(
            f"{names} on this machine only: images/digests.yaml has no digest for {' and '.join(images)}; "
            "push the images and compile again, or give --allow-tags to silence this",
            file=sys.stderr,
        )
    for output in outputs:
        workflow = workflow_bytes(Package.read(output)) / 1e6
        print(f"{output}: {output.stat().st_size / 1e3:.0f} kB; as a Workflow about {workflow:.1f} MB")


def read_sweep(args: argparse.Namespace, config: "PipelineConfig") -> "SweepConfig | None":
    """Returns the settings of the sweep, unless the pipeline alone is to be written."""
    if args.output and not args.sweep_output:
        return None
    from posttrain.config.sweep import SweepConfig

    return SweepConfig.read(args.sweep).for_line(config.stages, config.validation)


def graphs_of(args: argparse.Namespace, config: "PipelineConfig", sweep: "SweepConfig | None") -> dict[Path, Write]:
    """Returns, for each output, the function that writes it: both graphs, or those whose output is named."""
    from pipelines.compiler import compile_graph, compile_sweep

    graphs: dict[Path, Write] = {}
    if args.output or not args.sweep_output:
        graphs[Path(args.output or LINE)] = lambda path: compile_graph(config, path)
    if sweep:
        graphs[Path(args.sweep_output or SWEEP)] = lambda path: compile_sweep(config, sweep, path)
    return graphs


def check(write: Write, output: Path) -> int:
    """Returns 0 if `output` is what the configuration compiles to, and 1 if it is stale."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / "graph.yaml"
        write(fresh)
        if output.is_file() and output.read_bytes() == fresh.read_bytes():
            print(f"{output} is up to date")
            return 0
    print(f"error: {output} is stale: run python compile.py and commit it", file=sys.stderr)
    return 1


if __name__ == "__main__":
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))  # no traceback of an import
    sys.exit(main())
