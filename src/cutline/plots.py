"""Drawings of what `statistics`, `preview` and trainings count, as PNG files: frequencies, lengths, cuts, losses.

Needs matplotlib, the extra `plot`. Nothing opens a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cutline.files import storage_error, whole_file
from cutline.options import CutlineError
from cutline.statistics import CaptionCounts, Spread, TagCounts

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, PercentFormatter, SymmetricalLogLocator
except ImportError as error:
    raise CutlineError(f"plots need one more library ({error}): pip install 'cutline[plot]'") from None

if TYPE_CHECKING:
    from cutline.preview.survey import Lengths, Survey

_COLOURS = {
    "all": "#222222",
    "general": "#2f7fd0",
    "character": "#2c9c4b",
    "copyright": "#b04bc0",
    "artist": "#d0453a",
    "meta": "#e59a17",
    "unsorted": "#7a7a7a",
    "g": "#2c9c4b",
    "s": "#2f7fd0",
    "q": "#e59a17",
    "e": "#d0453a",
}
_PLAIN = "#7a7a7a"
_NAMES = {"g": "general", "s": "sensitive", "q": "questionable", "e": "explicit"}
_POINTS = 2000  # of a curve: more would not be seen
_BARS = 60


def draw(found: Mapping[str, TagCounts | CaptionCounts], folder: Path) -> Iterator[Path]:
    """Draw everything that there is to see; one PNG after the other. Raises StorageError."""
    pictures = (
        (f"{layer.replace('/', '-')}-{what}", picture)
        for layer, counts in found.items()
        for what, picture in (_tags(counts) if isinstance(counts, TagCounts) else _captions(counts))
    )
    yield from _save(pictures, folder)


def draw_survey(found: Survey, folder: Path) -> Iterator[Path]:
    """Draw how long texts are for each encoder, and ways to join tags and captions; as `draw`."""
    yield from _save(_survey(found), folder)


def draw_training(metrics: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """Draw `loss.png` and `learning-rate.png` of a run out of the lines of its metrics.jsonl. Raises StorageError."""
    pictures = [
        ("loss", ("loss", "held_out_loss"), "loss: cross entropy of a token, in nats"),
        ("learning-rate", ("learning_rate",), "learning rate"),
    ]
    drawn = []
    for name, series, title in pictures:
        lines = {one: [(line["step"], line[one]) for line in metrics if one in line] for one in series}
        if any(lines.values()):
            drawn.append((name, _one(partial(_curves, lines=lines, title=title))))
    return list(_save(iter(drawn), folder))


def _save(pictures: Iterator[tuple[str, Figure]], folder: Path) -> Iterator[Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    for name, picture in pictures:
        path = folder / f"{name}.png"
        with whole_file(path) as handle:
            picture.savefig(handle, format="png")
        yield path


def _survey(found: Survey) -> Iterator[tuple[str, Figure]]:
    for lengths in found.encoders:
        if lengths.tokens.total:
            yield f"tokens-{lengths.encoder.name}", _one(partial(_tokens, lengths=lengths))
    if found.policies:
        yield "ways-to-join", _one(lambda axes: _policies(axes, found))


def _tags(counts: TagCounts) -> Iterator[tuple[str, Figure]]:
    if counts.frequencies.num_rows:
        yield "frequency", _one(lambda axes: _frequency(axes, counts))
        yield "coverage", _one(lambda axes: _coverage(axes, counts))
    if counts.of.rows:
        name = f"{counts.of.layer}: tags of a picture"
        yield "lengths", _one(lambda axes: _histogram(axes, "picture", name, "tags", counts.lengths["all"]))
    if counts.scores["all"].total:
        yield "scores", _one(lambda axes: _scores(axes, counts))


def _captions(counts: CaptionCounts) -> Iterator[tuple[str, Figure]]:
    if counts.words.total:
        figure = Figure(figsize=(8, 7), dpi=110, layout="constrained")
        words, characters = figure.subplots(2)
        _histogram(_tidy(words), "caption", f"{counts.of.layer}: words of a caption", "words", counts.words)
        _histogram(_tidy(characters), "caption", "characters of a caption", "characters", counts.characters)
        yield "lengths", figure


def _one(fill: Callable[[Axes], None]) -> Figure:
    figure = Figure(figsize=(8, 5), dpi=110, layout="constrained")
    fill(_tidy(figure.subplots()))
    return figure


def _tidy(axes: Axes) -> Axes:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e4e4e4", linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold")


def _frequency(axes: Axes, counts: TagCounts) -> None:
    for name in counts.categories:
        uses = counts.counts(name)
        ranks = np.unique(np.geomspace(1, len(uses), _POINTS).astype(np.int64))
        label = f"{name} ({len(uses):,})"
        axes.plot(ranks, uses[ranks - 1], color=_COLOURS[name], label=label, marker="." if len(uses) < 20 else "")
    axes.set(xscale="log", yscale="log", xlabel="rank of the tag in its category", ylabel="uses")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(_short))
    _title(axes, f"{counts.of.layer}: how often each tag is used")
    axes.legend(frameon=False)


def _coverage(axes: Axes, counts: TagCounts) -> None:
    for name in ("all", *(counts.categories if len(counts.categories) > 1 else ())):
        uses = counts.counts(name)
        ranks = np.unique(np.geomspace(1, len(uses), _POINTS).astype(np.int64))
        kept = np.cumsum(uses)[ranks - 1] / uses.sum()
        bold = 2.4 if name == "all" else 1.3
        axes.plot(ranks, kept, color=_COLOURS[name], label=name, linewidth=bold, zorder=3 if name == "all" else 2)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="size of the vocabulary: the commonest tags", ylabel="uses kept")
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.yaxis.set_major_formatter(PercentFormatter(1))
    _title(axes, f"{counts.of.layer}: what a vocabulary keeps")
    axes.legend(frameon=False, loc="lower right")


def _histogram(axes: Axes, of: str, title: str, unit: str, spread: Spread) -> None:
    """Up to the last in a thousand; what is longer is told in words."""
    end = spread.at(999)
    first = min(int(spread.values[0]), end)
    width = max(1, -(-(end + 1 - first) // _BARS))
    edges = np.arange(first, end + width + 1, width)
    inside = spread.values < edges[-1]
    bars, _ = np.histogram(spread.values[inside], edges, weights=spread.counts[inside])
    axes.bar(edges[:-1] - 0.5, bars, width * 0.92, align="edge", color=_COLOURS["general"])
    for place, name in ((500, "median"), (950, "p95"), (990, "p99")):
        value = spread.at(place)
        axes.axvline(value, color="#222222", linewidth=1, linestyle=(0, (4, 3)))
        label = f"{name} {value:,}  "
        axes.text(value, 1, label, transform=axes.get_xaxis_transform(), rotation=90, va="top", ha="right", fontsize=8)
    head = 1.35  # room for those words
    axes.set(ylim=(0, head * max(bars)), xlabel=f"{unit} ({width} to a bar; longest {int(spread.values[-1]):,})")
    axes.set_ylabel(f"{of}s")
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.grid(axis="x", visible=False)
    _title(axes, title)


def _tokens(axes: Axes, lengths: Lengths) -> None:
    """Lengths of texts up to the last in a thousand, and the limits that lie among them; what is cut is red."""
    spread, mine = lengths.tokens, lengths.encoder.limit
    end = max(spread.at(999), mine)
    width = -(-(end + 1) // _BARS)
    edges = np.arange(0, end + width + 1, width)
    below = np.zeros(len(edges) - 1)
    for chosen, colour in ((spread.values <= mine, "general"), (spread.values > mine, "artist")):
        inside = chosen & (spread.values < edges[-1])
        bars, _ = np.histogram(spread.values[inside], edges, weights=spread.counts[inside])
        axes.bar(edges[:-1] - 0.5, bars, width * 0.92, below, align="edge", color=_COLOURS[colour])
        below = below + bars
    for limit in (limit for limit in lengths.limits if limit <= end):
        over = 100 * lengths.over(limit) / spread.total
        axes.axvline(limit + 0.5, color="#222222", linewidth=2 if limit == mine else 1, linestyle=(0, (4, 3)))
        label = f"{limit}: {over:.1f} % cut  "
        axes.text(limit, 1, label, transform=axes.get_xaxis_transform(), rotation=90, va="top", ha="right", fontsize=8)
    axes.set_ylim(0, 1.35 * axes.get_ylim()[1])  # room for those words
    axes.set(xlabel=f"tokens ({width} to a bar; longest {int(spread.values[-1]):,})", ylabel="texts")
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.grid(axis="x", visible=False)
    _title(axes, f"{lengths.encoder.name}: tokens of a text, of which it keeps {mine}")


def _policies(axes: Axes, found: Survey) -> None:
    """For each way to join, and each limit from light to dark, what is kept of tags and of captions."""
    limits = list(found.policies[0].kept)
    height = 0.8 / len(limits)
    for row, policy in enumerate(found.policies[::-1]):
        for step, limit in enumerate(limits):
            place = row + 0.4 - height * (step + 0.5)
            for side, colour in ((0, _COLOURS["general"]), (1, _COLOURS["meta"])):
                if policy.seen[side]:
                    share = policy.kept[limit][side] * (1 if side else -1)
                    axes.barh(place, share, height * 0.9, color=colour, alpha=0.4 + 0.6 * (step + 1) / len(limits))
            axes.text(0, place, f"{limit}", ha="center", va="center", fontsize=6)
    names = [
        f"{policy.name}\nseen {100 * policy.seen[0]:.0f} / {100 * policy.seen[1]:.0f} %" for policy in found.policies
    ]
    axes.set_yticks(range(len(names)), names[::-1])
    axes.set(xlim=(-1.02, 1.02), xlabel="share of the tokens of tags (left) and of captions (right) within each limit")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{abs(value):.0%}"))
    axes.grid(axis="y", visible=False)
    _title(axes, f"ways to join tags and captions: what {found.exposure.encoder} keeps")


def _scores(axes: Axes, counts: TagCounts) -> None:
    """For each rating a bar from p5 to p95, a thicker one from p25 to p75, and the median."""
    names = [name for name, spread in counts.scores.items() if spread.total][::-1]
    for row, name in enumerate(names):
        spread, colour = counts.scores[name], _COLOURS.get(name, _PLAIN)
        low, lower, median, upper, high = (spread.at(place) for place in (50, 250, 500, 750, 950))
        axes.plot([low, high], [row, row], color=colour, linewidth=3, alpha=0.45, solid_capstyle="round")
        axes.plot([lower, upper], [row, row], color=colour, linewidth=14, alpha=0.8, solid_capstyle="butt")
        axes.plot([median], [row], "o", color="white", markeredgecolor="#222222", markersize=8, zorder=4)
        axes.annotate(f"{median:,}", (median, row), (0, 14), textcoords="offset points", ha="center", fontsize=9)
    axes.set_xscale("symlog", linthresh=10, linscale=0.6)
    axes.xaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=10, subs=[1, 2, 5]))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    axes.set_yticks(range(len(names)), [f"{_NAMES.get(name, name)}\n{counts.scores[name].total:,}" for name in names])
    axes.set(ylim=(-0.6, len(names) - 0.3), xlabel="score: median, middle half, and p5 to p95")
    axes.grid(axis="y", visible=False)
    _title(axes, f"{counts.of.layer}: scores by rating")


def _curves(axes: Axes, lines: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """Series over optimizer steps; what is measured now and then has marks, and its lowest is named."""
    for name, points in lines.items():
        if not points:
            continue
        steps, values = zip(*points, strict=True)
        held_out = name == "held_out_loss"
        colour = _COLOURS["artist" if held_out else "general"]
        label = name.replace("_", " ").replace("held out", "held-out")
        axes.plot(
            steps, values, color=colour, label=label, marker="o" if held_out or len(steps) < 20 else "", linewidth=1.6
        )
        if held_out:
            least = min(range(len(values)), key=values.__getitem__)
            note = f"{values[least]:.3g}"
            axes.annotate(note, (steps[least], values[least]), (0, 8), textcoords="offset points", ha="center")
    axes.set(xlabel="optimizer step")
    axes.set_ylim(bottom=0)
    _title(axes, title)
    if len(lines) > 1:
        axes.legend(frameon=False)


def _short(value: float, _: object = None) -> str:
    """1000 as 1k, 2500000 as 2.5M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
