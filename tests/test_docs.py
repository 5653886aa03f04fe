"""What the documentation says is run: page by page, every block of `sh` and `python`, in a folder of real photographs.

A `text` block after another shows what that one prints, where `…` stands for anything. A block marked `file=NAME` is
written to that file. One marked `no-run` is not run: it asks for what no test may do.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

import pytest

import tiny
from cutline import toml_files
from cutline.compose import recipe

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    kind: str
    marks: str
    body: str
    line: int
    follows: bool
    """Whether nothing stands between the block before it and this one."""


def blocks(page: Path) -> list[Block]:
    text = page.read_text("utf-8")
    found, end = [], 0
    for match in re.finditer(r"^```(\w*) *(.*)\n((?s:.*?))^```$", text, re.MULTILINE):
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], match[2], match[3], line, not text[end : match.start()].strip()))
        end = match.end()
    return found


@pytest.fixture
def desk(tmp_path: Path) -> Path:
    """Where a reader of the documentation sits: four photographs, two captions, and a kohya file."""
    import skimage

    samples = Path(skimage.__file__).parent / "data"
    (tmp_path / "photos" / "trip").mkdir(parents=True)
    for sample, name in (
        ("chelsea.png", "cat.png"),
        ("coffee.png", "coffee.png"),
        ("moon.png", "trip/moon.png"),
        ("rocket.jpg", "trip/rocket.jpg"),
    ):
        shutil.copy(samples / sample, tmp_path / "photos" / name)
    (tmp_path / "photos" / "coffee.txt").write_text("a cup of coffee on a wooden table", "utf-8")
    (tmp_path / "photos" / "trip" / "rocket.txt").write_text("a rocket on its launch pad", "utf-8")
    words = {"cat.png": {"tags": "cat, whiskers, solo"}, "trip/rocket.jpg": {"tags": "rocket, no_humans"}}
    (tmp_path / "meta_lat.json").write_text(json.dumps(words), "utf-8")
    return tmp_path


@pytest.fixture
def reader(desk: Path) -> dict[str, str]:
    """The environment of that reader. Models are there as if the hub had sent them, but tiny, with random weights."""
    hub = desk / ".hub"
    for name, save in (
        ("Salesforce/blip-image-captioning-base", tiny.save_blip),
        ("HuggingFaceTB/SmolVLM-256M-Instruct", tiny.save_smolvlm),
        ("florence-community/Florence-2-base-ft", tiny.save_florence2),
    ):
        folder = hub / "hub" / f"models--{name.replace('/', '--')}"
        save(folder / "snapshots" / "0")
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0")
    plug_ins = desk / ".plug-ins"
    return {
        **os.environ,
        "HOME": str(desk),
        "HF_HOME": str(hub),
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "COLUMNS": "120",
        # What `pip install ./a-plug-in` installs goes to a folder of its own, and nothing is fetched for it.
        "PYTHONPATH": str(plug_ins),
        "PIP_TARGET": str(plug_ins),
        "PIP_NO_DEPS": "1",
        "PIP_NO_INDEX": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # pip's way to say yes
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_ROOT_USER_ACTION": "ignore",
    }


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES])
def test_what_a_page_says_is_so(page: Path, desk: Path, reader: dict[str, str]) -> None:
    printed = ""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.marks == "no-run":
            printed = "…"
        elif block.marks.startswith("file="):
            path = desk / block.marks.removeprefix("file=")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.body, "utf-8")
        elif block.kind in ("sh", "python"):
            printed = run(block, desk, reader, where)
        elif block.kind == "text" and block.follows and printed != "…":
            assert matches(printed, block.body), f"{where}: it printed\n{printed}"


def run(block: Block, desk: Path, reader: dict[str, str], where: str) -> str:
    command = ["bash", "-euo", "pipefail", "-c"] if block.kind == "sh" else [sys.executable, "-c"]
    done = subprocess.run(
        [*command, block.body],
        cwd=desk,
        env=reader,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, f"{where} ended with {done.returncode}:\n{done.stdout}"
    return done.stdout


def matches(printed: str, shown: str) -> bool:
    lines = [re.escape(line.rstrip()).replace("…", ".*") for line in shown.strip().splitlines()]
    plain = "\n".join(line.rstrip() for line in printed.strip().splitlines())
    return re.fullmatch("\n".join(lines), plain, re.DOTALL) is not None


def test_pages_lead_to_pages_that_are_there() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text("utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name} leads to {target}"


def test_the_command_line_reference_is_current(tmp_path: Path) -> None:
    """After a change of the command line: `.venv/bin/python docs/make_cli.py`."""
    script = tmp_path / "docs" / "make_cli.py"
    script.parent.mkdir()
    shutil.copy(ROOT / "docs" / "make_cli.py", script)
    subprocess.run([sys.executable, str(script)], check=True)
    assert script.with_name("cli.md").read_text("utf-8") == (ROOT / "docs" / "cli.md").read_text("utf-8")


def test_the_tree_in_the_readme_is_the_tree() -> None:
    """One line for each file, and the folders they are in."""
    shown = next(block.body for block in blocks(ROOT / "README.md") if block.marks == "tree")
    named, stack = set(), list[str]()
    for line in shown.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()  # type: ignore[union-attr]
        del stack[len(indent) // 2 :]
        stack.append(name)
        if not name.endswith("/"):
            named.add("".join(stack))
    there = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("src/**/*.py", "tests/*.py", "benchmarks/*.py", "docs/*.md", "docs/*.py", "examples/*", ".ci/*")
        for path in ROOT.glob(pattern)
        if path.name != "__init__.py" or path.parent.name == "cutline"
    }
    assert {name for name in named if "/" in name} == there


def test_the_manual_of_recipes_has_every_key() -> None:
    """After a change of a recipe's tables: paste the line that it misses."""
    page = (ROOT / "docs" / "recipes.md").read_text("utf-8")
    for table in (recipe.Captions, recipe.Tags, recipe.Latents, recipe.Text):
        for line in manual(table):
            assert f"\n{line}\n" in page, f"docs/recipes.md has no line\n{line}"
    for preset in toml_files.presets("recipes"):
        assert f"\n| `{preset}` | " in page


def manual(table: type) -> list[str]:
    """A line of the manual for each key of a recipe's table."""
    hints, lines = typing.get_type_hints(table), []
    for entry in dataclasses.fields(table):
        default = getattr(table(), entry.name)
        said = f"`{json.dumps(default, ensure_ascii=False)}`" if default not in ((), "", {}) else ""
        choices = typing.get_args(hints[entry.name]) if typing.get_origin(hints[entry.name]) is typing.Literal else ()
        others = ", ".join(f'`"{choice}"`' for choice in choices)
        cells = [f"`{entry.name}`", said, f"{others}: {entry.metadata['help']}" if others else entry.metadata["help"]]
        plain = (cell.replace("\\", "\\\\").replace("|", "\\|").strip() for cell in cells)
        lines.append("| " + " | ".join(plain) + " |")
    return lines
