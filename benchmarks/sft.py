"""SFT: our stage and trl's SFTTrainer, to the same held-out loss.

function-calling rows -> seconds, tokens a second, peak memory and held-out loss of each

    python -m benchmarks.sft
"""

from benchmarks import trainings
from benchmarks.measuring import build_parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser(__doc__, name="sft", rounds=3, minutes=5)
    trainings.add_data(parser)
    trainings.compare(
        "sft",
        parser.parse_args(argv),
        rows="sft.jsonl",
        title="48 rows in batches of 8",
        note="8 rows are trl's own batch; tokens are those of the rows, without padding.",
        batch_size=8,
        num_train_rows=48,
        num_eval_rows=16,
    )


if __name__ == "__main__":
    main()
