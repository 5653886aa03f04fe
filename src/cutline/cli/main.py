"""The command line: one file per verb, and here what they share at the end: errors and exit codes.

0 all done, 1 the command failed, 2 bad usage, 3 done in part, or by `preview --strict`: something will be lost,
130 interrupted.
"""

from __future__ import annotations

import os
import sys

import typer

from cutline.cli import (
    add,
    annotate,
    check,
    compact,
    demo,
    evaluate,
    export,
    former,
    merge,
    plugins,
    presets,
    preview,
    show,
    sql,
    stats,
    status,
    train,
)
from cutline.options import CutlineError, OptionError

app = typer.Typer(
    name="cutline",
    help="Words for pictures: gather, caption, compose and export the text of image-text datasets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for verb in (
    demo,
    add,
    status,
    stats,
    show,
    preview,
    annotate,
    check,
    evaluate,
    export,
    train,
    merge,
    plugins,
    presets,
    sql,
    compact,
):
    app.command(verb.__name__.rpartition(".")[2], cls=former.Verb)(verb.run)


@app.callback(invoke_without_command=True)
def top(version: bool = typer.Option(False, "--version", help="Say which Cutline this is.", is_eager=True)) -> None:
    """Words for pictures: gather, caption, compose and export the text of image-text datasets."""
    if version:
        from cutline import __version__

        print(f"cutline {__version__}")
        raise typer.Exit()


def main() -> None:
    """Run the command line and end the process with its exit code."""
    code = 0
    try:
        app()
    except SystemExit as end:  # typer makes one of Ctrl-C, too
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.__context__, KeyboardInterrupt) or isinstance(
            getattr(end.__context__, "__cause__", None), KeyboardInterrupt
        ):
            _say_interrupted()
    except CutlineError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2 if isinstance(error, OptionError) else 1
    except KeyboardInterrupt:
        _say_interrupted()
        code = 130
    except BrokenPipeError:  # `cutline sql … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)


def _say_interrupted() -> None:
    print("interrupted; what was published is kept: give the same command again to go on", file=sys.stderr)
