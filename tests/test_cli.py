"""The command line from outside: it starts without its heavy parts, works without torch, and says what to type next."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path

import pytest
import typer.main
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

from cutline.cli.main import app

ROOT = Path(__file__).resolve().parent.parent
VERBS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
HEAVY = ("duckdb", "pyarrow", "numpy", "PIL", "torch", "transformers")
PLUG_INS = ("cutline.sources", "cutline.annotators", "cutline.exports", "cutline.engine", "cutline.demo")


@dataclass(frozen=True)
class Cutline:
    """Cutline as one Python has it."""

    python: Path = Path(sys.executable)

    def __call__(self, *words: str | Path, code: int = 0, cwd: Path | None = None) -> str:
        """Run a command; what it printed."""
        done = subprocess.run(
            [self.python, "-m", "cutline", *words],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"{done.returncode}: {done.stdout}"
        assert "Traceback" not in done.stdout
        return done.stdout


@pytest.fixture
def cutline() -> Cutline:
    return Cutline()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Cutline:
    """A base install: an environment with what pyproject's `dependencies` bring along, and nothing else."""
    folder = tmp_path_factory.mktemp("base")
    venv.create(folder, symlinks=True)
    site = next((folder / "lib").glob("python*/site-packages"))
    todo = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    seen = set[str]()
    while todo:
        requirement = Requirement(todo.pop())
        name = canonicalize_name(requirement.name)  # one package has several spellings
        if name in seen or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        seen.add(name)
        found = distribution(requirement.name)
        todo += found.requires or []
        for top in {file.parts[0] for file in found.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            (site / top).symlink_to(str(found.locate_file(top)))
    (site / "cutline.pth").write_text(f"{ROOT / 'src'}\n")
    assert "torch" not in seen
    return Cutline(folder / "bin" / "python")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return make_photos(tmp_path / "photos")


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same as a dataset, for those who change nothing in it."""
    folder = make_photos(tmp_path_factory.mktemp("added") / "photos")
    Cutline()("add", folder)
    return folder


def make_photos(folder: Path) -> Path:
    """Two pictures, one of them with a caption."""
    folder.mkdir()
    Image.new("RGB", (40, 30), "navy").save(folder / "blue.png")
    Image.new("RGB", (30, 40), "gold").save(folder / "gold.jpg")
    (folder / "blue.txt").write_text("a blue square")
    return folder


def test_help_lists_every_verb(cutline: Cutline) -> None:
    shown = cutline("--help")
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(cutline: Cutline, verb: str) -> None:
    assert f"cutline {verb} [OPTIONS]" in cutline(verb, "--help")


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["annotate", "--help"]], ids=" ".join)
def test_it_starts_in_a_blink(words: list[str]) -> None:
    """Nothing heavy and no plug-in is imported before it is needed."""
    code = f"import sys; sys.argv[1:] = {words!r}; from cutline.cli.main import main; import atexit; " + (
        "atexit.register(lambda: print('\\n' + ' '.join(sys.modules))); main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "cutline.cli.annotate" in loaded
    assert not [name for name in loaded if name.startswith(PLUG_INS)]
    assert not loaded.intersection(HEAVY)
    if words == ["--help"]:  # else typer itself reads the words with pydantic
        assert "pydantic" not in loaded


def test_a_base_install_does_every_data_job(base: Cutline, photos: Path, tmp_path: Path) -> None:
    assert "2 added" in base("add", photos)
    assert "2 good" in base("annotate", photos, "facts")
    assert "1 good" in base("annotate", photos, "echo", "--as", "captions/human-echo", "--limit", "1")
    assert "2 good" in base("annotate", photos, "echo")
    assert "captions/echo: 2 rows for 2 pictures" in base("stats", photos)
    assert "near: 2 pictures in 1 group" in base("status", photos, "--duplicates")  # both of one colour
    assert "0 missing" not in base("status", photos)
    assert json.loads(base("sql", photos, "select count(*) as facts from facts", "--json")) == {"facts": 2}
    (tmp_path / "r.toml").write_text('[captions]\nfirst_of = ["captions/sidecar", "captions/echo"]\n')
    for name, out in (("sidecar", "words"), ("kohya", "words.json"), ("metadata_jsonl", photos / "metadata.jsonl")):
        assert "2 written" in base("export", photos, name, tmp_path / out, "--recipe", tmp_path / "r.toml")
    words = json.loads((tmp_path / "words.json").read_text())
    assert {name: entry["caption"] for name, entry in words.items()} == {
        "blue.png": "a blue square",
        "gold.jpg": "a picture called gold.jpg",
    }
    assert "parts" in base("compact", photos)


def test_a_base_install_says_what_a_model_needs(base: Cutline, photos: Path, tmp_path: Path) -> None:
    base("add", photos)
    assert "pip install 'cutline[models]'" in base("demo", tmp_path / "demo", code=1)
    assert "pip install 'cutline[models]'" in base("annotate", photos, "blip", code=1)
    assert "annotator  blip" in base("plugins")
    assert "pip install 'cutline[plot]'" in base("stats", photos, "--plots", tmp_path / "plots", code=1)


def test_a_refused_run_leaves_no_layer(cutline: Cutline, photos: Path) -> None:
    cutline("add", photos)
    cutline("annotate", photos, "echo", "--retry", "all", code=2)
    cutline("annotate", photos, "echo", "--where", "nothing = 1", code=1)
    assert "captions/echo" not in cutline("status", photos)


def test_exit_codes(cutline: Cutline, photos: Path, tmp_path: Path) -> None:
    cutline("add", photos)
    cutline("status", tmp_path, code=1)
    cutline("sql", photos, "select nothing", code=1)
    cutline("annotate", photos, code=2)
    cutline("annotate", photos, "echo", "-o", "says", code=2)
    cutline("nothing", code=2)
    (photos / "empty.png").touch()
    cutline("add", photos, code=3)
    cutline("annotate", photos, "echo", code=3)


@pytest.mark.parametrize(
    ("words", "code", "next_step"),
    [
        (["status", "."], 1, "cutline add "),
        (["preview", "photos/blue.png"], 1, "blue.png is a file; a dataset is the folder"),
        (["add", "nowhere"], 1, "there is no"),
        (
            ["add", "photos", "--from", "nothing"],
            2,
            "there are: booru, coco, folder, imagefolder, kohya, kohya_toml, webdataset",
        ),
        (["annotate", "photos", "nothing"], 2, "there are: blip, echo, facts"),
        (["annotate", "photos", "echo", "-o", "say=x"], 2, "It has: open, says, seconds"),
        (["annotate", "photos", "echo", "-o", "open=perhaps"], 2, "does not fit"),
        (["annotate", "photos", "echo", "nowhere.toml"], 2, "nowhere.toml"),
        (["annotate", "photos", "echo", "--as", "facts"], 2, "captions/…"),
        (["annotate", "photos", "echo", "--shard", "2/2"], 2, "such as 0/4"),
        (["annotate", "photos", "echo", "--retry", "all"], 2, "errors or rejected"),
        (["annotate", "photos", "facts", "--retry", "rejected"], 2, "no verdicts"),
        (["export", "photos", "nothing", "out"], 2, "there are: kohya, metadata_jsonl, sidecar, webdataset"),
        (["export", "photos", "kohya", "out"], 2, "must end with .json, .jsonl or .parquet"),
        (["export", "photos", "sidecar", "out", "--recipe", "nothing"], 1, "there is no recipe nothing"),
        (["stats", "photos", "pictures"], 2, "there are: captions/sidecar"),
        (["status", "photos", "--duplicates"], 1, "make it: cutline annotate "),
        (["plugins", "nothing"], 2, "`cutline plugins` lists all"),
        (["sql", "photos", 'from "captions/nothing"'], 1, "captions/nothing"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_says_what_to_type_next(
    cutline: Cutline, added: Path, words: list[str], code: int, next_step: str
) -> None:
    assert next_step in cutline(*words, code=code, cwd=added.parent)
