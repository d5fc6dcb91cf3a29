"""Takes the picture of a report for the README, with headless Chromium.

storage root -> PNG of the newest run's report.html, the upper part of the page

python -m docs.screenshot runs/function_calling docs/images/report.png
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

SIZE = (1200, 1000)  # pixels, width and height of the window
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def newest_report(storage_root: Path) -> Path:
    """Raises `ValueError` if no run below the storage root has a report."""
    reports = storage_root.glob("runs/*/report.html")
    newest = max(reports, key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ValueError(f"{storage_root}/runs: no run has a report.html: run the pipeline first")
    return newest


def screenshot(page: Path, picture: Path, *, browser: str, size: tuple[int, int]) -> None:
    """Writes the picture of a page, with a browser profile that is thrown away."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    width, height = size
    with tempfile.TemporaryDirectory() as profile:
        options = [
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
            f"--screenshot={picture.absolute()}",
        ]
        subprocess.run([browser, *FLAGS, *options, page.absolute().as_uri()], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage_root", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--browser", default="chromium", help="command that starts Chromium or Chrome")
    parser.add_argument("--height", type=int, default=SIZE[1], help="pixels of the page to show")
    args = parser.parse_args()
    page = newest_report(args.storage_root)
    screenshot(page, args.picture, browser=args.browser, size=(SIZE[0], args.height))
    print(f"{args.picture}: {args.picture.stat().st_size / 1e3:.0f} kB, of {page}")


if __name__ == "__main__":
    main()
