"""What holds for every test: no network, one thread for a model, and no skipping on the quiet."""

from __future__ import annotations

import io
import os
from collections.abc import Generator
from pathlib import Path

import pytest

# Before anything imports huggingface_hub or torch; commands that tests run inherit it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models gain nothing by two threads, and on a busy machine lose tenfold

MAY_SKIP = ("root may read everything", "cannot mount")
"""How the reasons begin for which a test may be skipped even where `.ci/run` counts a skipped test as failed."""


@pytest.fixture(scope="session")
def whole_demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a demo at full size, whose captioner knows its job, and what it said. A minute, so only once."""
    from rich.console import Console

    from cutline.demo import run

    folder, said = tmp_path_factory.mktemp("whole") / "demo", io.StringIO()
    run(folder, Console(file=said, width=80))
    return folder, said.getvalue()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _judge(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _judge(report)
    return report


def _judge(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.outcome != "skipped" or hasattr(report, "wasxfail") or os.environ.get("CUTLINE_NO_SKIP") != "1":
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not reason.startswith(MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = f"It was skipped, and must run here: {reason}"
