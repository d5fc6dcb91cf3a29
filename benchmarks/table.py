"""Makes benchmarks/README.md of the figures in benchmarks/results.

benchmarks/results/*.json, which the scripts here write -> a table for each comparison

    python -m benchmarks.table
"""

import json
import statistics
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).parent / "README.md"
HEAD = """# Benchmarks

`make bench` runs every benchmark and writes this page; `make bench-<name>` runs one, and `python -m benchmarks.table`
writes the page again. In each benchmark the sides take turns on the same input, each in a process of its own; times
include start-up and imports unless the text says otherwise. A figure is the median over the rounds, followed by the
smallest and the largest. A ratio is the median of the rounds' ratios to the side that has none. Memory is that of the
largest process. Every single measurement is in `results/`. `make bench-gpu` is apart, because it needs a GPU.
"""
LABELS = {"seconds": "seconds", "cpu_seconds": "CPU s", "peak_mb": "peak MB"}


def section(results: dict) -> str:
    """All tables of one script, as Markdown."""
    where = f"{results['date']}, {results['machine']}; load at the end {results['load']}. `{results['command']}`"
    tables = "\n\n".join(render(one) for one in results["tables"])
    return f"## {results['title']}\n\n{results['note']}\n\n{tables}\n\n{where}"


def render(one: dict) -> str:
    """A row for each side, a column for each number."""
    runs, compared = one["runs"], one["compared"]
    others = [key for key in dict.fromkeys(key for rounds in runs.values() for key in rounds[0]) if key != compared]
    heads = [one["title"], LABELS.get(compared, compared.replace("_", " ")), "least to most", "ratio"]
    heads += [LABELS.get(key, key.replace("_", " ")) for key in others]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for name, rounds in runs.items():
        values = [run[compared] for run in rounds]
        ratio = "" if name == one["ours"] else f"{_ratio(values, [run[compared] for run in runs[one['ours']]]):.2f}"
        cells = [name, shown(statistics.median(values)), f"{shown(min(values))} to {shown(max(values))}", ratio]
        lines.append(cells + [_median(rounds, key) for key in others])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _median(rounds: list[dict], key: str) -> str:
    return shown(statistics.median(run[key] for run in rounds)) if key in rounds[0] else ""


def _ratio(values: list[float], ours: list[float]) -> float:
    """The sides of a round stand under the same load: their ratio says more than that of the medians."""
    return statistics.median(value / our for value, our in zip(values, ours, strict=True))


def shown(value: float) -> str:
    """Three digits, or all of a large number."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def main() -> None:
    sections = [section(json.loads(path.read_text())) for path in sorted(RESULTS.glob("*.json"))]
    README.write_text("\n".join([HEAD, *(f"{one}\n" for one in sections)]), encoding="utf-8")


if __name__ == "__main__":
    main()
