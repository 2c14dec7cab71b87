"""The page of a large run: writing it, its first view in Chromium, opening rows, searching texts.

    python -m benchmarks.viewer [--trajectories 10000] [--segments 10] [--sentences 8] [--all]

Rows are generated, about 5,900 characters each by default, of words drawn at random, which compress
worse than a model's thinking. The first view is the time from the start of navigation until the
list and the first row stand on the screen (`performance.now()` two frames later), in a fresh
browser each time. Memory is the peak of `dto view`. Of a run with more than 10,000 trajectories the
page shows a part; `--all` shows all of them.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import psutil

from tests.viewer.browser import Browser
from tests.viewer.generated import write

SAMPLES = 4
STEPS = 30


def main() -> None:
    """Generate, write, open."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trajectories", type=int, default=10_000)
    parser.add_argument("--segments", type=int, default=10)
    parser.add_argument("--sentences", type=int, default=8)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--all", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        problems = arguments.trajectories // SAMPLES
        amounts = (folder / "run", problems, SAMPLES, arguments.segments, arguments.sentences)
        # In a process of its own: a child's peak would otherwise begin with what this one holds.
        generate = get_context("spawn").Process(target=write, args=amounts)
        generate.start()
        generate.join()
        path = folder / "run/view.html"
        begun = time.perf_counter()
        command = [sys.executable, "-m", "dto.cli", "view", str(folder / "run"), "--no-open"]
        command += ["--all"] * arguments.all
        child, peak = psutil.Popen(command), 0
        while child.poll() is None:
            with suppress(psutil.Error):
                peak = max(peak, child.memory_info().rss)
            time.sleep(0.05)
        assert child.returncode == 0, "dto view has failed"
        seconds = time.perf_counter() - begun
        logging.info(
            "dto view    %.1f s, peak memory %.0f MB, file %.1f MB",
            seconds, peak / 1e6, path.stat().st_size / 1e6,
        )  # fmt: skip
        for number in range(arguments.repetitions):
            measure(path, folder / f"profile{number}")


def measure(path: Path, profile: Path) -> None:
    """One browser from its start."""
    browser = Browser(profile)
    try:
        browser.open(path.as_uri())
        first = browser.js("+document.body.dataset.ready")
        steps = []
        for _ in range(STEPS):
            browser.press("PageDown")
            steps.append(
                timed(browser, "document.body.dataset.opened === document.body.dataset.chosen")
            )
        browser.press("/")
        browser.type("zzz no such text")
        search = timed(browser, "document.body.dataset.searched")
        heap = browser.js("performance.memory.usedJSHeapSize")
        logging.info(
            "first view  %.2f s; a page of rows on %.0f ms (at most %.0f); all texts searched in "
            "%.1f s; heap %.0f MB",
            first / 1e3, median(steps) * 1e3, max(steps) * 1e3, search, heap / 1e6,
        )  # fmt: skip
    finally:
        browser.close()


def timed(browser: Browser, condition: str) -> float:
    """Seconds until it is true, with what a question to the browser takes."""
    begun = time.perf_counter()
    browser.wait(condition)
    return time.perf_counter() - begun


if __name__ == "__main__":
    main()
