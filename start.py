"""Inspects a model and data, and writes a configuration for them in which every line gives its reason.

python start.py --base-model ./my-model --sft-dataset sft.jsonl --preference-dataset preferences.jsonl
python start.py --base-model org/name@commit --sft-dataset sft.jsonl --output configs/mine.yaml      without DPO

Exit code: 0 the configuration is written; 1 the pipeline cannot take this model or these rows. Then nothing is written,
and each problem is one line with its remedy.
"""

import argparse
import sys
from pathlib import Path


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--base-model", required=True, metavar="URI", help="folder, gs://, s3:// or Hub id[@revision]")
    add("--sft-dataset", default="", metavar="URI", help="rows with messages, or with prompt and completion")
    add("--preference-dataset", default="", metavar="URI", help="rows with prompt, chosen and rejected")
    add("--red-team-prompts", metavar="URI", help="rows with a prompt: harmful requests that must be declined")
    add("--declines-with", metavar="TEXT", help="the sentence that declines (default: taken from the rows)")
    add("--storage-root", default="runs", metavar="URI", help="keeps records and published models (default: runs)")
    add("--output", default="my_pipeline.yaml", metavar="FILE", help="the configuration (default: my_pipeline.yaml)")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(argv)
    if not (args.sft_dataset or args.preference_dataset):
        parser.error("give --sft-dataset, --preference-dataset or both")
    from posttrain.pages import wording
    from starter import draft

    try:
        draft.write(args, Path(args.output))
    except (ValueError, OSError) as error:
        print(f"error: {wording.line(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
