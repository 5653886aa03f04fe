"""Run docs/learning-example.md from nothing, and put into the page what it prints and draws.

`.venv/bin/python docs/make_training.py`, three or four minutes on two processor cores. The page's blocks of `sh` and
`python` are run in a new folder; a `text` block that follows one becomes what that printed. Pictures go to
docs/images/training.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
PAGE = DOCS / "learning-example.md"
RUN = Path("scenes", ".cutline", "runs", "renamed")
MIDDLE = "step-000015"
"""The sheet on which the new words are there, and mixed up."""


def main() -> None:
    """Run it all; what was there before stays where a command fails."""
    with tempfile.TemporaryDirectory(prefix="cutline-example-") as desk:
        made = run_blocks(PAGE.read_text("utf-8"), Path(desk))
        keep_pictures(Path(desk) / RUN)
    PAGE.write_text(made, "utf-8")


def run_blocks(page: str, desk: Path) -> str:
    """Run a page's blocks in a folder. Returns the page with what they printed."""
    printed = ""

    def fill(block: re.Match[str]) -> str:
        nonlocal printed
        kind, body = block.groups()
        if kind == "text":
            return f"```text\n{printed.strip()}\n```"
        printed = run(kind, body, desk)
        return block[0]

    return re.sub(r"^```(sh|python|text)(?: no-run)?\n(.*?)^```$", fill, page, flags=re.DOTALL | re.MULTILINE)


def run(kind: str, body: str, desk: Path) -> str:
    """Run one block. Returns what it printed, without colours or progress."""
    print(body, flush=True)
    command = ["bash", "-euo", "pipefail", "-c"] if kind == "sh" else [sys.executable, "-c"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        [*command, body],
        cwd=desk,
        env={**os.environ, "PATH": path, "COLUMNS": "120"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    print(done.stdout, flush=True)
    if done.returncode:
        sys.exit(f"that ended with {done.returncode}; {PAGE.name} stays as it was")
    return done.stdout.replace(f"{desk}/", "")


def keep_pictures(folder: Path) -> None:
    """Copy a run's plots and three of its sheets, in few colours and so in few bytes."""
    out = DOCS / "images" / "training"
    out.mkdir(parents=True, exist_ok=True)
    sheets = sorted((folder / "samples").glob("*.png"))
    chosen = {"before": sheets[0], "middle": folder / "samples" / f"{MIDDLE}.png", "after": sheets[-1]}
    pictures = {name: folder / f"{name}.png" for name in ("loss", "learning-rate")}
    pictures |= {f"sample-{name}": sheet for name, sheet in chosen.items()}
    for name, source in pictures.items():
        with Image.open(source) as image:
            image.convert("RGB").quantize(64, dither=Image.Dither.NONE).save(out / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
