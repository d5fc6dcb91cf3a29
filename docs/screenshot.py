"""Takes the picture of a report for the README, with headless Chromium.

storage root -> PNG of the newest run's report.html, the upper part of the page

python -m docs.screenshot runs/function_calling docs/images/report.png
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

WIDTH, HEIGHT = 1200, 1270  # pixels of the window
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip


def newest_report(storage_root: Path) -> Path:
    """Returns the report of the newest run.

    Raises:
        ValueError: no run below the storage root has one.
    """
    newest = max(storage_root.glob("runs/*/report.html"), key=lambda path: path.stat().st_mtime, default=None)
    if newest is None:
        raise ValueError(f"{storage_root}/runs: no run has a report.html: run the pipeline first")
    return newest


def without_folder(page: str, storage_root: Path) -> str:
    """Returns the page with relative addresses: a published picture says nothing of its maker's machine."""
    return page.replace(str(storage_root.absolute()), str(storage_root))


def screenshot(page: str, picture: Path, *, browser: str, height: int) -> None:
    """Writes the picture of a page, with a browser profile that is thrown away."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.html")
        file.write_text(page, encoding="utf-8")
        options = [f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}"]
        options.append(f"--screenshot={picture.absolute()}")
        subprocess.run([browser, *FLAGS, *options, file.as_uri()], check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("storage_root", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--browser", default="chromium", help="command that starts Chromium or Chrome")
    parser.add_argument("--height", type=int, default=HEIGHT, help="pixels of the page to show")
    args = parser.parse_args()
    report = newest_report(args.storage_root)
    page = without_folder(report.read_text(encoding="utf-8"), args.storage_root)
    screenshot(page, args.picture, browser=args.browser, height=args.height)
    print(f"{args.picture}: {args.picture.stat().st_size / 1e3:.0f} kB, of {report}")


if __name__ == "__main__":
    main()
