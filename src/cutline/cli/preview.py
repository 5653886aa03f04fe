"""`cutline preview`: what a trainer will see of a whole dataset, or what would go wrong with its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cutline.cli.common import DONE_IN_PART, AsJson, print_json, say, visible
from cutline.options import CutlineError, OptionError, option
from cutline.preview import several

if TYPE_CHECKING:
    from rich.console import Console

    from cutline.preview.drawn import Found
    from cutline.preview.lint import Lint
    from cutline.preview.survey import Survey

_TRAINER = "kohya-sdxl"
_RESOLUTIONS = {"sd1": "512,512", "sd2": "768,768"}  # what these models were trained at; the others at 1024


@dataclass(frozen=True)
class Resolution:
    """The size of a training run's pictures."""

    resolution: tuple[int, ...] = option((), "its --resolution in pixels: width,height, or one number for both")

    def __post_init__(self) -> None:
        if len(self.resolution) > 2 or min(self.resolution, default=1) < 1:
            shown = ",".join(map(str, self.resolution))
            raise OptionError(f"resolution={shown}: one number of pixels from 1 up, or two: width,height")

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height; None where the run says no resolution."""
        return (self.resolution[0], self.resolution[-1]) if self.resolution else None


@dataclass(frozen=True)
class TrainingRun(Resolution):
    """How a training run will be started, as far as what is wrong with its files depends on it."""

    cache_text: bool = option(False, "it will have --cache_text_encoder_outputs")
    cache_latents: bool = option(False, "it will have --cache_latents")
    workers: int = option(1, "its --max_data_loader_n_workers")
    max_token_length: int | None = option(None, "its --max_token_length")
    caption_extension: str = option("", "of a folder: its --caption_extension; .caption where it does not say")


@dataclass(frozen=True)
class Sizes(Resolution):
    """How a trainer sorts the pictures of a dataset by size."""

    max_bucket_reso: int = option(1024, "its --max_bucket_reso: pixels of a bucket's side, at most")
    bucket_no_upscale: bool = option(False, "it will have --bucket_no_upscale")


def run(
    dataset: Annotated[
        Path,
        typer.Argument(
            metavar="DATASET",
            help="A dataset's folder; or a kohya dataset config (.toml, .json) or a folder of pictures and sidecars, "
            "to look for faults.",
            show_default=False,
        ),
    ],
    recipe: Annotated[
        str, typer.Option(metavar="RECIPE", help="A TOML file, or the name of one in .cutline/recipes.")
    ] = "",
    trainer: Annotated[
        str, typer.Option(metavar="TRAINER", help=f"Whose text encoders read the texts; {_TRAINER} by default.")
    ] = "",
    options: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--option",
            metavar="KEY=VALUE",
            help="A setting of the trainer, such as max_token_length=225; for files, of the run, such as workers=8.",
        ),
    ] = None,
    output: Annotated[str, typer.Option(metavar="NAME", help="One of the recipe's outputs.")] = "",
    epochs: Annotated[int, typer.Option(min=1, help="Compose and count every picture so many times.")] = 1,
    seed: Annotated[int, typer.Option(help="What the recipe's random choices are drawn from.")] = 0,
    sample: Annotated[int | None, typer.Option(min=1, help="Only so many pictures, drawn by the seed.")] = None,
    top: Annotated[
        int | None, typer.Option(min=0, help="How many tags of each sort to name; 10 by default.", show_default=False)
    ] = None,
    plots: Annotated[Path | None, typer.Option(metavar="DIR", help="Draw pictures of it into this folder.")] = None,
    buckets: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write into this .csv which bucket each picture falls into.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 3 if something will be lost.")] = False,
) -> None:
    """Say what a trainer will see: lengths in tokens, what is cut, how often each tag is seen, what is empty or odd."""
    from cutline import options as settings
    from cutline.dataset import Dataset

    given = settings.parse(options or [])
    opened = Dataset(dataset)
    if not opened.exists and (dataset.is_dir() or dataset.suffix in (".toml", ".json")):
        said = {"--recipe": recipe, "--trainer": trainer, "--output": output, "--sample": sample, "--plots": plots}
        said |= {"--epochs": epochs > 1, "--seed": seed, "--top": top is not None}
        if idle := [name for name, value in said.items() if value]:
            raise OptionError(
                f"{', '.join(idle)} is about datasets of Cutline, and {dataset} is none: its files are looked at as "
                f"they are. Make it one: cutline add {dataset}"
            )
        _refuse_recipe(dataset)
        losses = _lint(dataset, given, buckets, as_json)
    else:
        if plots:
            from cutline.plots import draw_survey  # says at once where it cannot
        from cutline.compose.buckets import Buckets
        from cutline.compose.recipe import find_recipe
        from cutline.compose.tokens import find_trainer
        from cutline.preview.survey import placed, survey

        opened.key_rule  # noqa: B018  it says so where there is no dataset
        top = 10 if top is None else top
        asked = {field.name: given.pop(field.name) for field in fields(Sizes) if field.name in given}
        of_model = _RESOLUTIONS.get((trainer or _TRAINER).partition("-")[2], "1024,1024")
        training = settings.fill(Sizes, {"resolution": of_model, **asked}, name="preview")
        sizes = Buckets(
            training.size or (1024, 1024), max_size=training.max_bucket_reso, no_upscale=training.bucket_no_upscale
        )
        chosen = find_trainer(trainer or _TRAINER, **given)
        words = find_recipe(opened, recipe)
        found = survey(
            opened, words, chosen, output=output, epochs=epochs, seed=seed, sample=sample or 0, buckets=sizes
        )
        losses = found.losses()
        if buckets:
            with _csv(buckets) as write:
                for key, size, bucket in placed(opened, sizes):
                    write(key, size, bucket)
        if as_json:
            print_json(found.as_dict(top))
        else:
            _print(found, top)
        if plots:
            for path in draw_survey(found, plots):
                say(f"drawn: {path}")
        if strict:
            for lengths in found.encoders:
                if lengths.encoder.problem:
                    say(f"not counted: {lengths.encoder.problem}")
    if strict and losses:
        for loss in losses:
            say(f"lost: {visible(loss)}")
        raise typer.Exit(DONE_IN_PART)


@contextmanager
def _csv(path: Path) -> Iterator[Callable[[str, tuple[int, int], tuple[int, int]], None]]:
    """Writes a line for each picture: its name, its size and its bucket in pixels. Raises StorageError."""
    import csv

    from cutline.files import storage_error, whole_file

    try:
        with whole_file(path, "w") as handle:
            writer = csv.writer(handle, lineterminator="\n")
            writer.writerow(("picture", "width", "height", "bucket_width", "bucket_height"))
            yield lambda name, size, bucket: writer.writerow((name, *size, *bucket))
    except OSError as error:
        raise storage_error(path, error) from error
    say(f"{path}: the bucket of each picture")


def _refuse_recipe(path: Path) -> None:
    """Raise OptionError for a recipe, which people may give for a config."""
    from cutline import toml_files
    from cutline.compose.recipe import TABLES

    if path.suffix == ".toml" and path.is_file():
        try:
            tables = {*toml_files.read(path.absolute(), "dataset config")}  # its name may begin with ~
        except CutlineError:
            return  # the one that reads it as a config says why it cannot
        if tables and tables <= {*TABLES}:
            raise OptionError(
                f"{path} is a recipe. What it makes of a dataset: cutline preview DATASET --recipe {path}"
            )


def _lint(path: Path, given: dict[str, str], buckets: Path | None, as_json: bool) -> list[str]:
    """Print what is wrong with files; what of it is a loss."""
    import dataclasses

    from cutline import options as settings
    from cutline.preview.lint import lint

    run = settings.fill(TrainingRun, given, name="a training run")
    said = {**dataclasses.asdict(run), "resolution": run.size}
    if buckets:
        with _csv(buckets) as write:
            found = lint(path, **said, each=write)
    else:
        found = lint(path, **said)
    if as_json:
        print_json(found.as_dict())
    else:
        _print_lint(found, path)
    return [f"{finding.code} ({finding.where})" for finding in found.findings if finding.lost]


def _print_lint(found: Lint, path: Path) -> None:
    console = _console()
    console.print(
        f"{visible(str(path))}: {several(found.pictures, 'picture')} that a trainer would load", soft_wrap=True
    )
    for lost, title in ((True, "lost, wrong, or a stop"), (False, "worth knowing")):
        for finding in (mine := [finding for finding in found.findings if finding.lost == lost]):
            if finding is mine[0]:
                console.print(f"\n{title}")
            console.print(f"  {visible(f'{finding.where}: {finding.what}')}  [{finding.code}]", soft_wrap=True)
            console.print(f"    way out: {finding.way_out}", soft_wrap=True)
    if not found.findings:
        console.print("nothing wrong was found")
    if found.buckets:
        console.print("\nbuckets")
        rows = [
            (visible(entry.dataset), f"{entry.width}x{entry.height}", f"{entry.pictures:,}") for entry in found.buckets
        ]
        _table(console, ["dataset", "bucket", "pictures"], rows)


def _print(found: Survey, top: int) -> None:
    console = _console()
    epochs = f" in {found.epochs:,} epochs: {found.texts:,} texts" if found.epochs > 1 else ""
    console.print(f"{several(found.pictures, 'picture')}{epochs}, as {found.trainer} reads them")
    _print_lengths(console, found)
    _print_policies(console, found)
    _print_exposure(console, found, top)
    _print_odd(console, found)
    if found.epochs > 1:
        spread = found.distinct.as_dict()
        if found.distinct.total:
            least, most = spread["min"], spread["max"]
            said = f"{least:,} to {most:,}, median {spread['median']:,}" if least < most else f"{most:,}"
            console.print(f"\ndifferent texts of a picture over {found.epochs:,} epochs: {said}")
    if set(found.buckets) - {None}:
        bounds = f"sides of at most {found.max_bucket_reso:,}; others: -o max_bucket_reso=2048"
        console.print(f"\nbuckets at {found.resolution[0]}x{found.resolution[1]}, {bounds}")
        names = [("unknown size" if size is None else f"{size[0]}x{size[1]}", n) for size, n in found.buckets.items()]
        _table(console, ["bucket", "pictures"], [(name, f"{count:,}") for name, count in names])
    losses, unknown = found.losses(), [one.encoder.name for one in found.encoders if one.encoder.problem]
    nothing = f"nothing lost was found, without {' and '.join(unknown)}" if unknown else "nothing will be lost"
    console.print("\nlost" if losses else f"\n{nothing}")
    for loss in losses:
        console.print(f"  {loss}", soft_wrap=True)


def _print_lengths(console: Console, found: Survey) -> None:
    counted = [lengths for lengths in found.encoders if lengths.tokens.total]
    if counted:
        places = {"min": 0, "median": 500, "p90": 900, "p99": 990, "max": 1000}
        console.print("\ntokens of a text")
        rows = [
            (one.encoder.name, *(f"{one.tokens.at(place):,}" for place in places.values()), f"{one.encoder.limit:,}")
            for one in counted
        ]
        _table(console, ["encoder", *places, "keeps"], rows)
        console.print("\ntexts that are cut, were this the limit (* it is)")
        limits = sorted({limit for one in counted for limit in one.limits})
        cells = [
            (
                one.encoder.name,
                *(
                    f"{_percent(one.over(limit), one.tokens.total)}{'*' if limit == one.encoder.limit else ' '}"
                    for limit in limits
                ),
            )
            for one in counted
        ]
        _table(console, ["encoder", *(f"{limit} " for limit in limits)], cells)
    for lengths in found.encoders:
        if lengths.encoder.problem:
            console.print(f"\n{lengths.encoder.name} is not counted: {lengths.encoder.problem}", soft_wrap=True)
        elif lengths.stops:
            console.print(f"\n{lengths.encoder.name}: the trainer would stop at {several(lengths.stops, 'text')}")


def _print_policies(console: Console, found: Survey) -> None:
    if not found.policies:
        return
    limits = list(found.policies[0].kept)
    console.print(
        f"\nways to join: how many % of the tokens of tags / of captions {found.exposure.encoder} keeps at each limit"
    )
    rows = [
        (
            policy.name,
            f"{100 * policy.seen[0]:.0f}/{100 * policy.seen[1]:.0f}",
            *(
                f"{_or_none(tags, policy.seen[0])}/{_or_none(caption, policy.seen[1])}"
                for tags, caption in policy.kept.values()
            ),
        )
        for policy in found.policies
    ]
    _table(console, ["", "in texts", *map(str, limits)], rows)


def _or_none(share: float, seen: float) -> str:
    return f"{int(100 * share)}" if seen else "-"  # 100 % is all of it


def _print_exposure(console: Console, found: Survey, top: int) -> None:
    exposure = found.exposure
    if not len(exposure.tags) and not len(exposure.never):
        return
    console.print(f"\n{several(len(exposure.tags), 'tag')}, in texts {several(exposure.texts, 'time')}")
    if exposure.encoder:
        within = _percent(exposure.texts - exposure.lost, exposure.texts)
        console.print(f"of those within {exposure.encoder}'s limit: {within}")
    commonest, rarest = exposure.tags.slice(0, top), exposure.tags.slice(max(len(exposure.tags) - top, 0))
    shown = [("commonest", commonest.to_pylist())]
    if len(exposure.tags) > top:
        shown.append(("rarest", rarest.to_pylist()[::-1]))
    for title, tags in shown if top else ():
        console.print(f"\n{title}")
        columns = ["tag", "texts", *(["kept"] if exposure.encoder else []), "pictures"]
        rows = [(visible(row["tag"]), *(f"{row[name]:,}" for name in columns[1:])) for row in tags]
        _table(console, columns, rows)
    for title, table, name in (
        ("in a layer, and in no text", exposure.never, "pictures"),
        ("always in the same place", exposure.fixed, "place"),
    ):
        if len(table):
            first = 1 if name == "place" else 0  # people count from 1
            some = ", ".join(
                f"{visible(row['tag'])} ({row[name] + first:,})" for row in table.slice(0, top).to_pylist()
            )
            more = " …" if some and len(table) > top else ""
            console.print(
                f"\n{title} ({name}): {several(len(table), 'tag')}{': ' if some else ''}{some}{more}", soft_wrap=True
            )


def _print_odd(console: Console, found: Survey) -> None:
    from cutline.preview.texts import CAUSES

    said = found.said
    groups = {
        "empty texts": {CAUSES[cause]: one for cause, one in found.empty.items()},
        "said more than once": {
            "pictures with an earlier one's text": said.same,
            "… but for case and spaces": said.alike,
            "texts with a tag twice": said.twice,
            "… but for case and spaces, too": said.twice_alike,
            "texts whose caption says a tag again": said.again,
        },
        "tags dropped by the recipe's cleaning": found.cleaned,
        "entries that the trainer would misread": found.misread,
        "texts with what rarely is meant": {
            **found.leftovers,
            "tags that stick to what is beside them": found.fused,
        },
    }
    for title, group in groups.items():
        rows = [(visible(name), f"{one.count:,}", _examples(one)) for name, one in group.items() if one.count]
        if rows:
            console.print(f"\n{title}")
            _table(console, ["", "", "such as"], rows)


def _examples(found: Found) -> str:
    return "\n".join(visible(text if len(text) <= 60 else f"{text[:57]}…") for text in found.examples)


def _percent(part: int, whole: int) -> str:
    share = 100 * part / whole if whole else 0.0
    if part and share < 0.1:
        return "<0.1 %"
    if part < whole and share > 99.9:
        return ">99.9 %"
    return f"{share:.1f} %" if whole else "-"


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, emoji=False, highlight=False)  # a tag may look like either


def _table(console: Console, columns: list[str], rows: list[Any]) -> None:
    from rich.table import Table

    table = Table(*columns, box=None)
    for column in table.columns[1:]:
        if column.header != "such as":
            column.justify = "right"
    for row in rows:
        table.add_row(*row)
    console.print(table)
