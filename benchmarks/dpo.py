"""DPO: our stage and trl's DPOTrainer, to the same held-out loss.

function-calling pairs -> seconds, tokens a second, peak memory and held-out loss of each

    python -m benchmarks.dpo
"""

from benchmarks import trainings
from benchmarks.measuring import build_parser


def main(argv: list[str] | None = None) -> None:
    parser = build_parser(__doc__, name="dpo", rounds=3, minutes=4)
    trainings.add_data(parser)
    trainings.compare(
        "dpo",
        parser.parse_args(argv),
        rows="preferences.jsonl",
        title="16 pairs in batches of 4",
        note="Tokens are those of both sequences of each pair, without padding; our seconds include the reference of "
        "the held-out pairs too.",
        batch_size=4,
        beta=0.1,
        num_train_rows=16,
        num_eval_rows=4,
    )


if __name__ == "__main__":
    main()
