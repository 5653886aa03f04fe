"""What the benchmarks share: timings taken in pairs, their median ratio, and a verdict on each figure.

The machine may be busy with other things. So a baseline is timed beside what is measured, in turn and in the same run:
whatever else goes on hurts both, and of several pairs the median counts.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
from collections.abc import Callable
from pathlib import Path


def take_pairs(
    count: int, baseline: Callable[[], float], measured: Callable[[], float], *, show: bool = True
) -> list[tuple[float, float]]:
    """Time both sides `count` times, in turn: (baseline, measured). Which comes first in a pair alternates."""
    pairs = []
    for number in range(count):
        if number % 2:
            second, first = measured(), baseline()
        else:
            first, second = baseline(), measured()
        pairs.append((first, second))
        if show:
            print(f"pair {number + 1}: {first:.3f} s, {second:.3f} s, ratio {second / first:.3f}", flush=True)
    return pairs


def median_ratio(pairs: list[tuple[float, float]]) -> float:
    """The median of the pairs' ratios, measured to baseline."""
    return statistics.median(measured / baseline for baseline, measured in pairs)


def middle(pairs: list[tuple[float, float]], side: int) -> float:
    """The median of one side: 0 the baseline, 1 what is measured."""
    return statistics.median(pair[side] for pair in pairs)


def spread(pairs: list[tuple[float, float]]) -> str:
    """The least and the greatest ratio, for people."""
    ratios = sorted(measured / baseline for baseline, measured in pairs)
    return f"{ratios[0]:.2f} to {ratios[-1]:.2f} in {len(ratios)} pairs"


def processor_seconds() -> float:
    """What this process and its children that have ended took of the processors: a clock that others do not slow."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def verdict(figure: str, value: float, target: float, unit: str, note: str = "") -> bool:
    """Print one figure with its target; whether it is met."""
    met = value <= target
    says = f"{figure}: {value:.2f} {unit}, target at most {target:g} {unit}. {note}"
    print(f"{'met   ' if met else 'MISSED'} {says}".strip(), flush=True)
    return met


def finish(*met: bool) -> None:
    """End the process: 1 where a target was missed."""
    sys.exit(0 if all(met) else 1)


def say_machine() -> None:
    """Print what this ran on."""
    names = [line for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    processor = names[0].partition(":")[2].strip() if names else platform.machine()
    load = os.getloadavg()[0]
    print(f"{os.cpu_count()} cores, {processor}, Python {platform.python_version()}, load at the start {load:.1f}")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
