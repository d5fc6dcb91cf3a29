"""Write the judged model in the formats of serving engines, for the gate check_export to judge and publishing to add.

model folder -> folder of exported files: model-<format>.gguf for llama.cpp, fp8/ for vLLM

    python -m posttrain.serving.export --step export_model --storage-root DIR --model DIR --export DIR
        --config '{"export": {"formats": ["q8_0"]}}'
"""

import argparse
from pathlib import Path

from posttrain import config
from posttrain.config import ExportStep
from posttrain.serving import formats
from posttrain.step import digests, frame, kfp_io
from posttrain.step.running import Running


def export(model: Path, folder: Path, kinds: list[str]) -> dict[str, float]:
    """Writes the formats to a new folder; returns the size of each in GB, and of the model.

    Raises:
        ValueError: the model has something that a format has no place for.
    """
    formats.write(model, folder, kinds)
    sizes = {"model_gb": _gigabytes(model)}
    return sizes | {f"{kind}_gb": _gigabytes(formats.path_of(folder, kind)) for kind in kinds}


def _gigabytes(path: Path) -> float:
    files = digests.files_of(path) if path.is_dir() else [path]
    return round(sum(file.stat().st_size for file in files) / 1e9, 6)


def build_parser() -> argparse.ArgumentParser:
    parser = kfp_io.parser(__spec__.name, __doc__)
    parser.add_argument("--model", required=True, help="folder of the judged model")
    parser.add_argument("--export", required=True, help="output: folder of the exported files")
    return parser


def main(argv: list[str] | None = None) -> None:
    args = build_parser().parse_args(argv)
    settings = config.parse_step(ExportStep, args.config)
    formats.check_installed(settings.export)

    def work(_: Running) -> dict[str, float]:
        return export(Path(args.model), Path(args.export), settings.export.formats)

    frame.run_step(args, inputs={"model": args.model}, outputs={"export": args.export}, config=settings, work=work)


if __name__ == "__main__":
    main()
