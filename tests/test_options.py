"""The options walk: every option of every plug-in and command names here what can be seen of it.

An option without an entry fails: nothing is accepted and ignored.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import typer.main
from PIL import Image

import server_options
import tiny
import tiny_tipo
import train_options
from cutline import options, registry
from cutline.annotators.session import Row, RowError
from cutline.cli.main import app
from cutline.dataset import Dataset
from cutline.options import CutlineError, OptionError
from cutline.pictures import Picture
from misbehaving import Misbehaving
from processes import Processes


class World:
    """A little dataset, a tiny model, and short ways to use them."""

    def __init__(self, folder: Path, blip: Path, adapter: Path) -> None:
        self.folder = folder
        self.photos = folder / "photos"
        self.blip, self.adapter = blip, adapter
        (self.photos / "trip").mkdir(parents=True)
        for number, name in enumerate(("a.png", "b.png", "trip/c.png", "trip/d.png")):
            Image.radial_gradient("L").resize((64, 48)).rotate(number * 77).save(self.photos / name)
            (self.photos / name).with_suffix(".txt").write_text(f"cat {number}, dog")

    def cli(self, *words: str | Path, code: int = 0) -> str:
        """Run a command; its standard output (and error, where it fails)."""
        done = subprocess.run(
            [sys.executable, "-m", "cutline", *map(str, words)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout if code == 0 else done.stdout + done.stderr

    def add(self, source: str = "folder", **given: Any) -> Dataset:
        dataset = Dataset(self.photos)
        dataset.add(options.fill(registry.load("sources", source), {"path": self.photos, **given}))
        return dataset

    def export(self, name: str, out: str, **given: Any) -> Path:
        from cutline.compose.recipe import find_recipe
        from cutline.exports.export import export

        dataset = self.add()
        plugin = options.fill(registry.load("exports", name), given)
        return export(dataset, plugin, self.folder / out, recipe=find_recipe(dataset, "")).out

    def rows(self) -> list[Row]:
        return [
            {"key": path.name, "uri": path.name, "picture": Picture(path), "attempt": 1, "content": None}
            | {"width": 64, "height": 48, "format": "PNG"}
            for path in sorted(self.photos.rglob("*.png"))
        ]

    def answers(self, name: str, **given: Any) -> list[Row]:
        plugin = options.fill(registry.load("annotators", name), given)
        return sorted(plugin.load()(iter(self.rows())), key=lambda row: str(row["key"]))

    def say(self, **given: Any) -> list[str]:
        return [row["raw"] for row in self.answers("blip", **{"model": str(self.blip), "max_tokens": 20, **given})]

    def changes(self, **given: Any) -> bool:
        """Whether BLIP says something else with these settings."""
        return self.say() != self.say(**given)

    def samples_change(self, **given: Any) -> bool:
        return self.say(sample=True) != self.say(sample=True, **given)


Seen = Callable[[World], bool]


def refused(act: Callable[[], Any]) -> bool:
    try:
        act()
    except CutlineError:
        return True
    return False


def tiny_model(world: World, name: str, **given: Any) -> str:
    """The folder of a tiny model for this annotator."""
    folder = world.folder / f"{name} {given}"
    if not folder.exists():
        {"image_text": tiny.save_qwen2_vl, "florence2": tiny.save_florence2}[name](folder, **given)
    return str(folder)


def asked(world: World, name: str, **given: Any) -> list[str]:
    """What a model that is given a prompt says."""
    given = {"model": tiny_model(world, name), "max_tokens": 20, "min_tokens": 5, **given}
    return [row["raw"] for row in world.answers(name, **given)]


def of_local_models(name: str, kind: str, user: str) -> dict[str, Seen]:
    """The options that image_text and florence2 share, by what can be seen of them."""

    def changes(also: dict[str, Any] | None = None, **given: Any) -> Seen:
        return lambda w: asked(w, name, **(also or {})) != asked(w, name, **(also or {}), **given)

    def adapted(w: World) -> bool:
        base = Path(tiny_model(w, name))
        folder = tiny.save_adapter(w.folder / "adapter", base, kind, ["q_proj", "v_proj"])
        return asked(w, name) != asked(w, name, model=None, adapter=str(folder))

    def attention(w: World) -> bool:
        given = {"model": tiny_model(w, name), "attention": "eager", "max_tokens": 20}
        session = options.fill(registry.load("annotators", name), given).load()
        return bool(session.model.config._attn_implementation == "eager")

    def prompt(w: World) -> bool:
        (w.folder / "p.toml").write_text(f"user = {user!r}\n")
        return asked(w, name) != asked(w, name, prompt=str(w.folder / "p.toml"))

    def tags(w: World) -> bool:
        given = {"model": "x", "tags": "tags/x", "user": "a [{tags}]"}
        row = {"key": "a", "tags/x": {"general": ["cat"]}}
        return bool(options.fill(registry.load("annotators", name), given).ask(row, 1).user == "a cat")

    drawn = {"sample": True}
    seen: dict[str, Seen] = {
        "model": lambda w: asked(w, name) != asked(w, name, model=tiny_model(w, name, seed=5)),
        "revision": lambda w: refused(lambda: asked(w, name, revision="main")),
        "adapter": adapted,
        "dtype": changes({"max_tokens": 60, "min_tokens": 60}, dtype="bfloat16"),
        "quantize": changes(quantize="nf4"),
        "attention": attention,
        # Rows of one batch share its time.
        "batch_size": lambda w: (
            len({row["seconds"] for row in w.answers(name, model=tiny_model(w, name), max_tokens=5, batch_size=2)}) == 2
        ),
        "threads": lambda w: threads_of(w, 2, name) == 2 and threads_of(w, 4, name) == 4,
        "device": lambda w: refused(lambda: asked(w, name, device="cuda:7")),
        "prompt": prompt,
        "user": changes(user=user),
        "tags": tags,
        "seed": changes(drawn, seed=1),
        "beams": lambda w: asked(w, name, beams=1) != asked(w, name, beams=4),
        "sample": changes(sample=True),
        "temperature": changes(drawn, temperature=3.0),
        "top_p": changes(drawn, top_p=0.1),
        "top_k": changes(drawn, top_k=1),
        "min_p": changes(drawn, min_p=0.9),
        "min_tokens": lambda w: asked(w, name) != asked(w, name, min_tokens=20),
        "max_tokens": lambda w: asked(w, name) != asked(w, name, max_tokens=5),
        "repetition_penalty": changes(repetition_penalty=3.0),
    }
    return {f"annotators {name} {option}": what for option, what in seen.items()}


def threads_of(world: World, count: int, name: str = "blip") -> int:
    """How many threads prepare pictures for a model."""
    model = str(world.blip) if name == "blip" else tiny_model(world, name)
    given = {"model": model, "threads": count, "max_tokens": 20}
    session = options.fill(registry.load("annotators", name), given).load()
    names, prepare, barrier = set(), session.prepare, threading.Barrier(count)

    def watched(row: Row) -> Any:
        names.add(threading.current_thread().name)
        barrier.wait(30)
        return prepare(row)

    session.prepare = watched
    assert len(list(session(iter(world.rows())))) == 4
    return len(names)


def words(dataset: Dataset, layer: str) -> list[Any]:
    return (
        dataset.sql(f'select * exclude (key, content) from "{layer}"').fetchall() if layer in dataset.layers() else []
    )


def found(world: World, source: str, layer: str, **given: Any) -> list[Any]:
    """The rows of a layer as a source finds them."""
    plugin = options.fill(registry.load("sources", source), {"path": world.photos, **given})
    return [row for found in plugin.read() if found.layer == layer for row in found.batch.to_pylist()]


def kohya_file(world: World) -> Path:
    path = world.folder / "meta.json"
    path.write_text(json.dumps({"a.png": {"caption": "a cat"}, "trip/c.png": {"tags": "one, two"}}))
    return path


def dataset_config(world: World, image_dir: str = "") -> Path:
    path = world.folder / "config.toml"
    said = {"image_dir": image_dir or str(world.photos / "trip"), "caption_extension": ".txt"}
    path.write_text("[[datasets]]\n[[datasets.subsets]]\n" + "\n".join(f"{k} = {v!r}" for k, v in said.items()))
    return path


def tagged(world: World, **given: Any) -> bytes:
    """An export with a picture that has tags and no caption."""
    for path in world.photos.rglob("*.txt"):
        path.unlink()
    world.add("kohya", path=kohya_file(world))
    return world.export("kohya", "x.json", **given).read_bytes()


def more_said(world: World, *options: str) -> str:
    """An export by a recipe of two outputs."""
    world.add()
    (world.folder / "two.toml").write_text(
        '[captions]\nfirst_of = ["captions/sidecar"]\n[outputs.more]\nprefix = "so:"\n'
    )
    world.cli("export", world.photos, "kohya", world.folder / "x.json", "--recipe", world.folder / "two.toml", *options)
    return (world.folder / "x.json").read_text()


def coco_file(world: World) -> Path:
    path = world.folder / "captions.json"
    said = [{"id": number, "image_id": 7, "caption": caption} for number, caption in enumerate(("a cat", "on a mat"))]
    path.write_text(json.dumps({"images": [{"id": 7, "file_name": "a.png"}], "annotations": said}))
    return path


def tar_file(world: World) -> Path:
    with tarfile.open(world.folder / "0.tar", "w") as tar:
        for ending in ("png", "txt"):
            tar.add(world.photos / f"a.{ending}", f"a.{ending}")
    return world.folder / "0.tar"


def imagefolder(world: World) -> Path:
    lines = [{"file_name": "a.png", "text": "short", "long": "a longer one"}]
    (world.photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return world.photos


POSTS = "id,rating,score,tag_string_general,tag_string_character,tag_string_copyright,tag_string_artist,tag_string_meta"


def posts(world: World, *lines: str, **given: Any) -> list[Any]:
    """The tags of a booru's table in a dataset of its own, after this add."""
    (world.folder / "posts.csv").write_text("\n".join([f"{POSTS},is_deleted", *(lines or ["1,s,5,cat hat,,,,,f"])]))
    dataset = Dataset(world.folder / "posts")
    dataset.root.mkdir()
    dataset.add(options.fill(registry.load("sources", "booru"), {"path": world.folder / "posts.csv", **given}))
    return [row for name in dataset.layers() if name != "pictures" for row in dataset.sql(f'from "{name}"').fetchall()]


def table(world: World, text: str) -> Path:
    (world.folder / "table.csv").write_text(text)
    return world.folder / "table.csv"


def pairs(world: World) -> Path:
    return table(world, "antecedent_name,consequent_name,status\ncat,kitten,active\n")


def table_of_fur(world: World) -> Path:
    """What a cat has, by another table than `table`."""
    path = world.folder / "fur.csv"
    path.write_text("antecedent_name,consequent_name\ncat,fur\n")
    return path


def column_map(world: World) -> str:
    (world.folder / "m.toml").write_text('[columns]\nid = "id"\n[tags]\nmeta = "tag_string_general"\n')
    return str(world.folder / "m.toml")


PLUGINS: dict[str, Seen] = {
    "sources booru path": lambda w: posts(w)[0][0] == "1",
    "sources booru map": lambda w: posts(w, map=column_map(w))[0][5] == ["cat", "hat"],
    "sources booru layer": lambda w: bool(posts(w, layer="x")) and "tags/x" in Dataset(w.folder / "posts").layers(),
    "sources booru vocabulary": lambda w: (
        posts(w, vocabulary=table(w, "name,category\nfur,4\n"), implications=table_of_fur(w))[0][2] == ["fur"]
    ),
    "sources booru aliases": lambda w: posts(w, aliases=pairs(w))[0][1] == ["kitten", "hat"],
    "sources booru implications": lambda w: posts(w, implications=pairs(w))[0][1] == ["cat", "hat", "kitten"],
    "sources booru old_ratings": lambda w: posts(w, old_ratings=True)[0][7] == "g",
    "sources booru deleted": lambda w: len(posts(w, "1,s,5,cat,,,,,t", "2,g,5,cat,,,,,f", deleted="keep")) == 2,
    "sources folder path": lambda w: w.add(path=w.photos / "trip").sql("from pictures").count() == 2,
    "sources folder sidecars": lambda w: bool(words(w.add(sidecars="tags"), "tags/sidecar")),
    "sources imagefolder path": lambda w: w.add("imagefolder", path=imagefolder(w)).sql("from pictures").count() == 4,
    "sources imagefolder text_column": lambda w: (
        w.add("imagefolder", path=imagefolder(w), text_column="long")
        .sql('select text from "captions/imagefolder"')
        .fetchall()
        == [("a longer one",)]
    ),
    "sources kohya path": lambda w: len(words(w.add("kohya", path=kohya_file(w)), "captions/kohya")) == 1,
    "sources kohya image_dir": lambda w: (
        w.add("kohya", path=kohya_file(w), image_dir=w.photos).sql("from pictures").count() == 2
    ),
    "sources kohya layer": lambda w: "tags/mine" in w.add("kohya", path=kohya_file(w), layer="mine").layers(),
    "sources kohya posts": lambda w: (
        len(found(w, "kohya", "pictures", path=kohya_file(w), posts=True)) == 2
        and not found(w, "kohya", "pictures", path=kohya_file(w))
    ),
    "sources kohya rejected": lambda w: (
        w.add("kohya", path=kohya_file(w), rejected=True).sql('select verdict from "captions/kohya"').fetchall()
        == [("rejected",)]
    ),
    "sources kohya latents": lambda w: (
        (w.photos / "a.npz").write_bytes(b"x") > 0
        and len(words(w.add("kohya", path=kohya_file(w), latents=w.photos), "latents/kohya")) == 1
    ),
    "sources kohya_toml path": lambda w: len(words(w.add("kohya_toml", path=dataset_config(w)), "captions/kohya")) == 2,
    "sources kohya_toml relative_to": lambda w: (
        refused(lambda: w.add("kohya_toml", path=dataset_config(w, "trip")))
        and w.add("kohya_toml", path=dataset_config(w, "trip"), relative_to=w.photos).sql("from pictures").count() == 2
    ),
    "sources kohya_toml layer": lambda w: (
        "captions/mine" in w.add("kohya_toml", path=dataset_config(w), layer="mine").layers()
    ),
    "sources coco path": lambda w: len(words(w.add("coco", path=coco_file(w)), "captions/coco")) == 1,
    "sources coco image_dir": lambda w: (
        w.add("coco", path=coco_file(w), image_dir=w.photos).sql("from pictures").count() == 1
    ),
    "sources coco layer": lambda w: "captions/mine" in w.add("coco", path=coco_file(w), layer="mine").layers(),
    "sources coco joined": lambda w: (
        w.add("coco", path=coco_file(w), joined=True).sql('select text from "captions/coco"').fetchall()
        == [("a cat on a mat",)]
    ),
    "sources webdataset path": lambda w: w.add("webdataset", path=tar_file(w)).sql("from pictures").count() == 1,
    "sources webdataset layer": lambda w: (
        len(words(w.add("webdataset", path=tar_file(w), layer="mine"), "captions/mine")) == 1
    ),
    "exports webdataset count": lambda w: len(list(w.export("webdataset", "out", count=3).glob("*.tar"))) == 2,
    "exports webdataset size": lambda w: len(list(w.export("webdataset", "out", size=4096).glob("*.tar"))) == 4,
    "exports webdataset names": lambda w: (
        b"trip_c.png" in (w.export("webdataset", "out", names="flat") / "00000.tar").read_bytes()
    ),
    "exports sidecar extension": lambda w: (w.export("sidecar", "out", extension="caption") / "a.caption").exists(),
    "exports sidecar mode": lambda w: (
        (
            w.export("sidecar", "out"),
            (w.folder / "out/a.txt").write_text("mine"),
            w.export("sidecar", "out", mode="append"),
        )
        and (w.folder / "out/a.txt").read_text() == "mine, cat 0, dog"
    ),
    "exports sidecar separator": lambda w: (
        (
            w.export("sidecar", "out"),
            (w.folder / "out/a.txt").write_text("mine"),
            w.export("sidecar", "out", mode="prepend", separator=" | "),
        )
        and (w.folder / "out/a.txt").read_text() == "cat 0, dog | mine"
    ),
    "exports kohya image_size": lambda w: (
        "image_size" not in w.export("kohya", "x.json", image_size=False).read_text()
        and "image_size" in w.export("kohya", "y.json").read_text()
    ),
    "exports kohya legacy": lambda w: (
        set(json.loads(w.export("kohya", "x.json", legacy=True).read_text())) == set("abcd")
    ),
    "exports kohya caption_from_tags": lambda w: (
        b'"caption": "one, two"' not in tagged(w, apart=True)
        and b'"caption": "one, two"' in tagged(w, apart=True, caption_from_tags=True)
    ),
    "exports kohya apart": lambda w: b'"tags": "one, two"' in tagged(w, apart=True),
    "exports kohya output": lambda w: '"so:, cat 0, dog"' in more_said(w, "-o", "output=more"),
    "exports kohya bake_epochs": lambda w: (
        w.export("kohya", "x.json", bake_epochs=2).name == "x-1.json"
        and '"cat 0, dog"' in (w.folder / "x-1.json").read_text()
        and (w.folder / "x-2.json").exists()
    ),
    "exports kohya missing": lambda w: (
        not w.export("kohya", "x.json", missing=False).with_name("missing.json").exists()
        and w.export("kohya", "y.json").with_name("missing.json").exists()
    ),
    "exports metadata_jsonl pictures": lambda w: (
        w.export("metadata_jsonl", "out", pictures="copy").with_name("a.png").exists()
        and refused(lambda: w.export("metadata_jsonl", "elsewhere"))
    ),
    "annotators echo says": lambda w: w.answers("echo", says="{width}")[0]["texts"] == ["64"],
    "annotators echo open": lambda w: (
        (w.photos / "a.png").write_bytes(b"no picture") > 0
        and w.answers("echo", open="false")[0].get("error") is None
        and w.answers("echo")[0]["error"] == "not_an_image"
    ),
    "annotators echo seconds": lambda w: (
        refused(lambda: w.answers("echo", seconds=-1)) and _takes(w, seconds=0.05) > 0.2
    ),
    "annotators blip model": lambda w: w.say() != w.say(model=str(tiny.save_blip(w.folder / "other", seed=5))),
    "annotators blip revision": lambda w: refused(lambda: w.say(revision="main")),
    "annotators blip adapter": lambda w: w.changes(adapter=str(w.adapter)),
    "annotators blip prompt": lambda w: w.changes(prompt="a red"),
    "annotators blip beams": lambda w: w.say(max_tokens=30) != w.say(max_tokens=30, beams=1),
    "annotators blip sample": lambda w: w.changes(sample=True),
    "annotators blip temperature": lambda w: w.samples_change(temperature=3.0),
    "annotators blip top_p": lambda w: w.samples_change(top_p=0.1),
    "annotators blip seed": lambda w: w.samples_change(seed=1),
    "annotators blip min_tokens": lambda w: w.changes(min_tokens=20),
    "annotators blip max_tokens": lambda w: w.changes(max_tokens=5),
    "annotators blip repetition_penalty": lambda w: w.changes(repetition_penalty=3.0),
    "annotators blip dtype": lambda w: w.changes(dtype="bfloat16"),
    # Rows of one batch share its time.
    "annotators blip batch_size": lambda w: (
        len({row["seconds"] for row in w.answers("blip", model=str(w.blip), max_tokens=5, batch_size=2)}) == 2
    ),
    "annotators blip threads": lambda w: threads_of(w, 2) == 2 and threads_of(w, 4) == 4,
    "annotators blip device": lambda w: refused(lambda: w.say(device="cuda:7")),
    "annotators blip top_k": lambda w: w.samples_change(top_k=1),
    "annotators blip min_p": lambda w: w.samples_change(min_p=0.9),
    "annotators blip quantize": lambda w: w.changes(quantize="nf4"),
    "annotators blip attention": lambda w: (
        refused(lambda: w.say(attention="sdpa")) and not w.changes(attention="eager")
    ),
    **of_local_models("florence2", "Florence2ForConditionalGeneration", "<CAPTION>"),
    "annotators florence2 system": lambda w: refused(lambda: asked(w, "florence2", system="a cat")),
    **of_local_models("image_text", "Qwen2VLForConditionalGeneration", "a red cat"),
    "annotators image_text system": lambda w: asked(w, "image_text") != asked(w, "image_text", system="a red cat"),
    "annotators image_text min_pixels": lambda w: asked(w, "image_text") != asked(w, "image_text", min_pixels=9000),
    "annotators image_text max_pixels": lambda w: asked(w, "image_text") != asked(w, "image_text", max_pixels=800),
}

# -- server (tests/server_options.py) --
PLUGINS |= server_options.SEEN

# -- captioner (tests/train_options.py) --
PLUGINS |= train_options.SEEN


def _takes(world: World, **given: Any) -> float:
    import time

    started = time.monotonic()
    world.answers("echo", **given)
    return time.monotonic() - started


def plugin_options() -> Iterator[str]:
    for group in ("sources", "annotators", "exports", "trainings"):
        for name in registry._BUILT_IN[group]:
            for entry in dataclasses.fields(registry.load(group, name)):
                yield f"{group} {name} {entry.name}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    blip = tiny.save_blip(tmp_path_factory.mktemp("blip"))
    return blip, tiny.save_blip_adapter(tmp_path_factory.mktemp("adapter"), blip)


@pytest.fixture
def world(tmp_path: Path, models: tuple[Path, Path]) -> World:
    return World(tmp_path, *models)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(plugin_options()))
def test_every_option_of_a_plugin_can_be_seen(name: str, world: World) -> None:
    assert name in PLUGINS, "say in PLUGINS what can be observed of this option"
    assert PLUGINS[name](world)


def test_no_entry_is_left_over() -> None:
    assert set(PLUGINS) == set(plugin_options())
    assert set(COMMANDS) == set(command_options())


@pytest.mark.parametrize("name", sorted(set(PLUGINS)))
def test_every_option_has_a_help_text_and_survives_as_text(name: str) -> None:
    group, plugin, option = name.split()
    entry = next(e for e in dataclasses.fields(registry.load(group, plugin)) if e.name == option)
    assert entry.metadata["help"]
    if isinstance(entry.default, (bool, int, float)):
        made = options.fill(registry.load(group, plugin), {**_required(group, plugin), option: str(entry.default)})
        assert getattr(made, option) == entry.default


def _required(group: str, plugin: str) -> dict[str, str]:
    needed = {
        "sources": {"path": "."},
        "annotators image_text": {"model": "."},
        "annotators server": server_options.REQUIRED,
        "trainings captioner": train_options.REQUIRED,
    }
    return needed.get(group) or needed.get(f"{group} {plugin}") or {}


# -- commands -------------------------------------------------------------------------------------------------


def with_error(world: World) -> Path:
    """The dataset, echoed once while one file had been changed behind its back."""
    world.cli("add", world.photos)
    saved = (world.photos / "a.png").read_bytes()
    (world.photos / "a.png").write_bytes(b"changed!")
    world.cli("annotate", world.photos, "echo", code=3)
    (world.photos / "a.png").write_bytes(saved)
    return world.photos


def echoed(world: World, *words: str | Path) -> int:
    """How many rows `annotate echo` leaves with these words."""
    world.cli("add", world.photos)
    world.cli("annotate", world.photos, "echo", *words)
    layer = "captions/b" if "captions/b" in words else "captions/echo"
    dataset = Dataset(world.photos)
    return dataset.sql(f'from "{layer}"').count() if layer in dataset.layers() else 0


def preset(world: World) -> Path:
    path = world.folder / "p.toml"
    path.write_text('says = "from a preset"')
    return path


def texts(world: World) -> set[str]:
    return {text for (text,) in Dataset(world.photos).sql('select text from "captions/echo"').fetchall()}


def recipe(world: World) -> Path:
    path = world.folder / "r.toml"
    path.write_text('[captions]\nfirst_of = ["captions/echo"]\n')
    return path


def two_layers(world: World) -> Path:
    world.cli("add", world.photos)
    world.cli("annotate", world.photos, "echo")
    return world.photos


def copied(world: World) -> Path:
    """The dataset with a picture that is there twice, and a third time a little changed; with facts."""
    shutil.copy(world.photos / "a.png", world.photos / "copy.png")
    with Image.open(world.photos / "a.png") as image:
        image.crop((0, 0, 62, 47)).save(world.photos / "near.png")
    world.cli("add", world.photos)
    world.cli("annotate", world.photos, "facts")
    return world.photos


def vanish(world: World, *words: str, code: int) -> str:
    world.cli("add", world.photos)
    for name in ("a.png", "b.png", "trip/c.png"):
        (world.photos / name).unlink()
    return world.cli("add", world.photos, *words, code=code)


def tipo_model(world: World) -> Path:
    folder = world.folder / "tipo"
    return folder if folder.exists() else tiny_tipo.save_tipo(folder)


def tipo(world: World, row: Row | None = None, **given: Any) -> list[Any]:
    """What TIPO writes from the tags of four pictures: the raw text of each, or its error."""
    general = ["1girl", "long_hair", "smile", "rain"]
    tags = {"general": general, "artist": ["someone"], "rating": "s", "error": None, "unsorted": ["solo"]}
    others = {"tags/a": tags, "tags/b": {"general": ["2girls"]}, "captions/s": {"texts": ["Two girls."]}, **(row or {})}
    rows = [{**one, **others, "picture": None} for one in world.rows()]
    given = {"tags": "tags/a", "max_tokens": 16, "attempts": 1, "temperature": 2.0, **given}
    if "endpoints" not in given:
        given = {"model": str(tipo_model(world)), **given}
    settings = options.fill(registry.load("annotators", "tag_to_text"), given)
    found = sorted(settings.load()(iter(rows)), key=lambda row: str(row["key"]))
    return [one.get("raw") or one.get("error") for one in found]


def tipo_changes(world: World, **given: Any) -> bool:
    return tipo(world) != tipo(world, **given)


def tipo_server(world: World, script: str = "good", key: str = "", **given: Any) -> tuple[list[Any], Misbehaving]:
    """The same of a server that does this to every request."""
    with Misbehaving(always=script, key=key, says="A girl.") as server:
        return tipo(world, endpoints=server.url, model="tiny", **given), server


def with_key(world: World, name: str) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MY_KEY", "secret")
        patch.delenv("OPENAI_API_KEY", raising=False)
        return tipo_server(world, key="secret", key_env=name)[0] == ["A girl."] * 4


def tipo_session(world: World, **given: Any) -> Any:
    settings = {"model": str(tipo_model(world)), "tags": "tags/a", **given}
    return options.fill(registry.load("annotators", "tag_to_text"), settings).load()


def tipo_threads(world: World, count: int) -> int:
    """How many threads make prompts ready."""
    session = tipo_session(world, threads=count)
    names, barrier = set(), threading.Barrier(count)

    def watched(row: Row) -> None:
        names.add(threading.current_thread().name)
        barrier.wait(30)
        raise RowError("enough", "seen")

    session.prepare = watched
    assert len(list(session(iter(world.rows())))) == 4
    return len(names)


SHORT_TASK: dict[str, Any] = {"task": "short_to_long", "short": "captions/s"}

PLUGINS |= {
    "annotators tag_to_text tags": lambda w: tipo_changes(w, tags="tags/b"),
    "annotators tag_to_text task": lambda w: tipo_changes(w, **SHORT_TASK),
    "annotators tag_to_text short": lambda w: (
        tipo(w, **SHORT_TASK) != tipo(w, {"captions/s": {"texts": ["A red hat."]}}, **SHORT_TASK)
    ),
    "annotators tag_to_text length": lambda w: tipo_changes(w, length="very_short"),
    "annotators tag_to_text metadata": lambda w: tipo_changes(w, metadata="rating"),
    "annotators tag_to_text blacklist": lambda w: tipo_changes(w, blacklist="long hair"),
    "annotators tag_to_text temperature": lambda w: tipo_changes(w, temperature=0.1),
    "annotators tag_to_text top_p": lambda w: tipo_changes(w, top_p=0.05),
    "annotators tag_to_text top_k": lambda w: tipo_changes(w, top_k=1),
    "annotators tag_to_text min_p": lambda w: tipo_changes(w, min_p=1.0),
    "annotators tag_to_text max_tokens": lambda w: tipo_changes(w, max_tokens=5),
    "annotators tag_to_text seed": lambda w: tipo_changes(w, seed=1),
    "annotators tag_to_text attempts": lambda w: (
        len(tipo_server(w, "empty", attempts=1)[1].asked) == 4
        and len(tipo_server(w, "empty", attempts=3)[1].asked) == 12
    ),
    "annotators tag_to_text least_coverage": lambda w: (
        len(tipo_server(w, attempts=3)[1].asked) == 4
        and len(tipo_server(w, attempts=3, least_coverage=0.9)[1].asked) == 12
    ),
    "annotators tag_to_text model": lambda w: tipo_changes(
        w, model=str(tiny_tipo.save_tipo(w.folder / "other", seed=5))
    ),
    "annotators tag_to_text revision": lambda w: refused(lambda: tipo(w, revision="main")),
    "annotators tag_to_text adapter": lambda w: tipo_changes(
        w, adapter=str(tiny_tipo.save_tipo_adapter(w.folder / "lora", tipo_model(w)))
    ),
    "annotators tag_to_text dtype": lambda w: tipo_changes(w, dtype="bfloat16"),
    "annotators tag_to_text quantize": lambda w: tipo_changes(w, quantize="int8"),
    "annotators tag_to_text attention": lambda w: (
        tipo_session(w, attention="eager").model.config._attn_implementation == "eager"
        and tipo_session(w).model.config._attn_implementation == "sdpa"
    ),
    "annotators tag_to_text batch_size": lambda w: tipo_session(w, batch_size=3).batch_size == 3,
    "annotators tag_to_text threads": lambda w: tipo_threads(w, 2) == 2 and tipo_threads(w, 4) == 4,
    "annotators tag_to_text device": lambda w: refused(lambda: tipo(w, device="cuda:7")),
    "annotators tag_to_text endpoints": lambda w: tipo_server(w)[0] == ["A girl."] * 4,
    "annotators tag_to_text key_env": lambda w: (
        with_key(w, "MY_KEY") and refused(lambda: with_key(w, "OPENAI_API_KEY"))
    ),
    "annotators tag_to_text in_flight": lambda w: tipo_server(w, in_flight=1)[1].peak == 1,
    "annotators tag_to_text deadline": lambda w: tipo_server(w, "hang", deadline=0.2, tries=1)[0] == ["timeout"] * 4,
    "annotators tag_to_text tries": lambda w: (
        [len(tipo_server(w, "500", tries=tries)[1].asked) for tries in (1, 2)] == [4, 8]
    ),
    "annotators tag_to_text patience": lambda w: tipo_server(w, "429", patience=0.1)[0] == ["rate_limited"] * 4,
}


COMMANDS: dict[str, Seen] = {**train_options.COMMANDS}


def seen(name: str) -> Callable[[Seen], Seen]:
    """What can be observed of this option of a command."""

    def keep(act: Seen) -> Seen:
        COMMANDS[name] = act
        return act

    return keep


def added(world: World, *words: str | Path, code: int = 0) -> str:
    """Add the pictures, then run this command."""
    world.cli("add", world.photos)
    return world.cli(*words, code=code)


def exported(world: World, *words: str | Path) -> str:
    return added(world, "export", world.photos, "sidecar", world.folder / "out", *words)


@seen("demo folder")
def _(w: World) -> bool:
    (w.folder / "pictures").mkdir()
    return "not the demo's" in w.cli("demo", w.folder, code=1)


@seen("add dataset")
def _(w: World) -> bool:
    return "4 added" in w.cli("add", w.photos)


@seen("add paths")
def _(w: World) -> bool:
    return "2 added" in w.cli("add", w.photos, w.photos / "trip")


@seen("add source")
def _(w: World) -> bool:
    return "(folder)" in w.cli("add", imagefolder(w), "--from", "folder")


@seen("add options")
def _(w: World) -> bool:
    return "tags/sidecar" in w.cli("add", w.photos, "-o", "sidecars=tags")


@seen("add key")
def _(w: World) -> bool:
    w.cli("add", w.photos, "--key", "stem")
    return Dataset(w.photos).picture("d").path.name == "d.png"


@seen("add prefix")
def _(w: World) -> bool:
    w.cli("add", w.photos, "--prefix", "x/")
    return Dataset(w.photos).picture("x/a.png").path.name == "a.png"


@seen("add allow_vanish")
def _(w: World) -> bool:
    refusal = vanish(w, code=1)
    return "--allow-vanish" in refusal and "3 vanished" in w.cli("add", w.photos, "--allow-vanish")


@seen("add as_json")
def _(w: World) -> bool:
    return bool(json.loads(w.cli("add", w.photos, "--json"))["added"] == 4)


@seen("status dataset")
def _(w: World) -> bool:
    return "4 readable" in w.cli("status", two_layers(w))


@seen("status missing")
def _(w: World) -> bool:
    echoed(w, "--limit", "1")
    return "captions/echo\tb.png" in w.cli("status", w.photos, "--missing")


@seen("status as_json")
def _(w: World) -> bool:
    return bool(json.loads(w.cli("status", two_layers(w), "--json"))["pictures"] == {"readable": 4})


@seen("status duplicates")
def _(w: World) -> bool:
    return "exact\t1\ta.png\nexact\t1\tcopy.png" in w.cli("status", copied(w), "--duplicates")


@seen("status distance")
def _(w: World) -> bool:
    near = (w.cli("status", copied(w), "--duplicates", "--distance", bits).count("near\t") for bits in ("0", "12"))
    return sorted(near) == [0, 3]


@seen("stats dataset")
def _(w: World) -> bool:
    return "captions/sidecar: 4 rows for 4 pictures" in added(w, "stats", w.photos)


@seen("stats layer")
def _(w: World) -> bool:
    return "captions/echo" in w.cli("stats", two_layers(w)) and "echo" not in w.cli(
        "stats", w.photos, "captions/sidecar"
    )


@seen("stats top")
def _(w: World) -> bool:
    w.cli("add", w.photos, "-o", "sidecars=tags")
    return "the 1 commonest of 5" in w.cli("stats", w.photos, "--top", "1")


@seen("stats plots")
def _(w: World) -> bool:
    added(w, "stats", w.photos, "--plots", w.folder / "plots")
    return (w.folder / "plots/captions-sidecar-lengths.png").read_bytes().startswith(b"\x89PNG")


@seen("stats tags")
def _(w: World) -> bool:
    w.cli("add", w.photos, "-o", "sidecars=tags")
    w.cli("stats", w.photos, "--tags", w.folder / "tags.csv")
    return '"dog","unsorted",4' in (w.folder / "tags.csv").read_text()


@seen("stats as_json")
def _(w: World) -> bool:
    return bool(json.loads(added(w, "stats", w.photos, "--json"))["captions/sidecar"]["words"]["median"] == 3)


def shown(world: World, *words: str | Path, code: int = 0) -> str:
    return added(world, "show", world.photos, "a.png", *words, code=code)


@seen("show dataset")
def _(w: World) -> bool:
    return "texts: cat 0, dog" in shown(w)


@seen("show key")
def _(w: World) -> bool:
    return "texts: cat 3, dog" in added(w, "show", w.photos, "trip/d.png")


@seen("show recipe")
def _(w: World) -> bool:
    two_layers(w)
    return "epochs 0 to 2\n  a picture called a.png" in shown(w, "--recipe", recipe(w))


@seen("show output")
def _(w: World) -> bool:
    path = recipe(w)
    path.write_text('[captions]\nfirst_of = ["captions/sidecar"]\n[outputs.short]\nprefix = "short"\n')
    return "  short, cat 0, dog" in shown(w, "--recipe", path, "--output", "short")


@seen("show trainer")
def _(w: World) -> bool:
    return "kohya-sdxl: clip-l and clip-g: 4 tokens, of 75" in shown(w, "--trainer", "kohya-sdxl")


@seen("show options")
def _(w: World) -> bool:
    return "4 tokens, of 225 in 3 chunks" in shown(w, "--trainer", "kohya-sdxl", "-o", "max_token_length=225")


@seen("show epochs")
def _(w: World) -> bool:
    return "epochs 0 to 6" in shown(w, "--epochs", "7")


@seen("show seed")
def _(w: World) -> bool:
    path = recipe(w)
    path.write_text(
        '[captions]\nfirst_of = ["captions/sidecar"]\n[text]\nprefix = "{1|2|3|4|5|6|7|8|9}"\nwildcards = true\n'
    )
    return len({shown(w, "--recipe", path, "--seed", str(seed)) for seed in range(3)}) > 1


@seen("show as_json")
def _(w: World) -> bool:
    return bool(json.loads(shown(w, "--json"))["texts"][0]["text"] == "cat 0, dog")


def previewed(world: World, *words: str | Path, code: int = 0) -> str:
    return added(world, "preview", world.photos, *words, code=code)


def mixed(world: World) -> Path:
    path = recipe(world)
    path.write_text(
        '[captions]\nfirst_of = ["captions/sidecar"]\n[text]\nprefix = "{1|2|3|4|5|6|7|8|9}"\nwildcards = true\n'
        '[outputs.short]\nprefix = "not much:"\n'
    )
    return path


@seen("preview dataset")
def _(w: World) -> bool:
    return "4 pictures, as kohya-sdxl" in previewed(w) and "a trainer would load" in w.cli("preview", w.photos / "trip")


@seen("preview recipe")
def _(w: World) -> bool:
    two_layers(w)
    return "more than one layer" in previewed(w, code=1) and "4 pictures" in previewed(w, "--recipe", recipe(w))


@seen("preview trainer")
def _(w: World) -> bool:
    return "as diffusers-sd1 reads" in previewed(w, "--trainer", "diffusers-sd1")


@seen("preview options")
def _(w: World) -> bool:
    long = json.loads(previewed(w, "-o", "max_token_length=225", "--json"))
    return bool(long["encoders"]["clip-l"]["limit"] == 225)


@seen("preview output")
def _(w: World) -> bool:
    said = [json.loads(previewed(w, "--recipe", mixed(w), "--json", *more)) for more in ((), ("--output", "short"))]
    longest = [one["encoders"]["clip-l"]["tokens"]["max"] for one in said]
    return bool(longest[0] < longest[1])


@seen("preview epochs")
def _(w: World) -> bool:
    return "4 pictures in 5 epochs: 20 texts" in previewed(w, "--epochs", "5")


@seen("preview seed")
def _(w: World) -> bool:
    said = [previewed(w, "--recipe", mixed(w), "--epochs", "4", "--json", "--seed", str(seed)) for seed in range(3)]
    return len({json.dumps(json.loads(one)["distinct"]) for one in said}) > 1


@seen("preview sample")
def _(w: World) -> bool:
    return "2 pictures, as" in previewed(w, "--sample", "2")


@seen("preview top")
def _(w: World) -> bool:
    w.add(sidecars="tags")
    (w.folder / "tags.toml").write_text('[tags]\nfirst_of = ["tags/sidecar"]\n')
    said = [previewed(w, "--recipe", w.folder / "tags.toml", "--top", top) for top in ("1", "0")]
    return "commonest\n" in said[0] and "commonest\n" not in said[1]


@seen("preview plots")
def _(w: World) -> bool:
    previewed(w, "--plots", w.folder / "drawn")
    return (w.folder / "drawn" / "tokens-clip-l.png").stat().st_size > 1000


@seen("preview buckets")
def _(w: World) -> bool:
    previewed(w, "--buckets", w.folder / "b.csv", "-o", "resolution=64,64")
    w.cli("preview", w.photos / "trip", "--buckets", w.folder / "c.csv", "-o", "resolution=512,512")
    lines = [(w.folder / name).read_text().splitlines() for name in ("b.csv", "c.csv")]
    return [len(one) for one in lines] == [5, 3] and lines[0][1].startswith("a.png,64,48,")


@seen("preview as_json")
def _(w: World) -> bool:
    return bool(json.loads(previewed(w, "--json"))["pictures"] == 4)


@seen("preview strict")
def _(w: World) -> bool:
    (w.photos / "a.txt").write_text("word " * 200)
    return "falls off" not in previewed(w) and "clip-l cuts 1 of 4" in previewed(w, "--strict", code=3)


@seen("annotate dataset")
def _(w: World) -> bool:
    return echoed(w) == 4


@seen("annotate annotator")
def _(w: World) -> bool:
    return "no annotator is called" in added(w, "annotate", w.photos, "nobody", code=2)


@seen("annotate preset")
def _(w: World) -> bool:
    return echoed(w, preset(w)) == 4 and texts(w) == {"from a preset"}


@seen("annotate options")
def _(w: World) -> bool:
    return echoed(w, preset(w), "-o", "says=typed") == 4 and texts(w) == {"typed"}


@seen("annotate layer")
def _(w: World) -> bool:
    return echoed(w, "--as", "captions/b") == 4


@seen("annotate where")
def _(w: World) -> bool:
    return echoed(w, "--where", "key like 'trip/%'") == 2


@seen("annotate retry")
def _(w: World) -> bool:
    return "1 good" in w.cli("annotate", with_error(w), "echo", "--retry", "errors")


@seen("annotate limit")
def _(w: World) -> bool:
    return echoed(w, "--limit", "3") == 3


@seen("annotate shard")
def _(w: World) -> bool:
    return echoed(w, "--shard", "0/2") < 4 and echoed(w, "--shard", "1/2") == 4


@seen("annotate workers")
def _(w: World) -> bool:
    return _workers(w, 1) == 1 and _workers(w, 3) == 3


@seen("annotate reparse")
def _(w: World) -> bool:
    (w.folder / "bad.json").write_text(json.dumps({"a.png": {"caption": '{"a": "A cat.", }'}}))
    w.cli("add", w.photos)
    given = ("-o", f"image_dir={w.photos}", "-o", "rejected=true", "-o", "layer=bad")
    w.cli("add", w.photos, w.folder / "bad.json", "--from", "kohya", *given)
    words = ("image_text", "-o", "model=none", "-o", "prompt=toriigate-json", "--as", "captions/bad", "--reparse")
    return "1 changed (1 repaired)" in w.cli("annotate", w.photos, *words)


@seen("annotate dry_run")
def _(w: World) -> bool:
    said = added(w, "annotate", w.photos, "echo", "--dry-run")
    return '"says": "a picture called a.png"' in said and "captions/echo" not in Dataset(w.photos).layers()


@seen("annotate log_json")
def _(w: World) -> bool:
    lines = added(w, "annotate", w.photos, "echo", "--log-json").split("\n")[:-1]
    events = [json.loads(line) for line in lines]
    return (events[0]["event"], events[-1]["event"], events[-1]["good"]) == ("start", "end", 4)


@seen("export dataset")
def _(w: World) -> bool:
    return "4 written" in exported(w)


@seen("export format")
def _(w: World) -> bool:
    return "no export is called" in added(w, "export", w.photos, "nothing", "out", code=2)


@seen("export out")
def _(w: World) -> bool:
    exported(w)
    return (w.folder / "out" / "a.txt").exists()


@seen("export recipe")
def _(w: World) -> bool:
    guess = w.cli("export", two_layers(w), "sidecar", w.folder / "out", code=1)
    exported(w, "--recipe", recipe(w))
    return "more than one layer" in guess and (w.folder / "out/a.txt").read_text() == "a picture called a.png"


@seen("export options")
def _(w: World) -> bool:
    exported(w, "-o", "extension=x")
    return (w.folder / "out/a.x").exists()


@seen("export dry_run")
def _(w: World) -> bool:
    return "+cat 0, dog" in exported(w, "--dry-run") and not (w.folder / "out").exists()


@seen("export seed")
def _(w: World) -> bool:
    return len({exported_shuffled(w, "--seed", str(seed)) for seed in range(3)}) > 1


@seen("export epoch")
def _(w: World) -> bool:
    return len({exported_shuffled(w, "--epoch", str(epoch)) for epoch in range(3)}) > 1


def exported_shuffled(w: World, *more: str) -> str:
    w.add(sidecars="tags")
    (w.folder / "mixed.toml").write_text('[tags]\nfirst_of = ["tags/sidecar"]\nshuffle = true\n')
    exported(w, "--recipe", str(w.folder / "mixed.toml"), "-o", "mode=overwrite", *more)
    return "|".join(path.read_text() for path in sorted((w.folder / "out").rglob("*.txt")))


@seen("plugins name")
def _(w: World) -> bool:
    return "-o says=" in w.cli("plugins", "echo") and "-o" not in w.cli("plugins")


def _doubtful(world: World) -> Path:
    """The dataset with a caption that loops, one that the tags of one layer deny, and another layer of tags."""
    (world.photos / "a.txt").write_text("a cat, " * 40)
    (world.photos / "b.txt").write_text("Two girls on a beach.")
    world.cli("add", world.photos)
    dataset = Dataset(world.photos)
    for layer, tag in (("tags/one", "1girl"), ("tags/two", "2girls")):
        with dataset.layer(layer).write() as writer:
            writer.add({"key": "b.png", "general": [tag, "hat"]})
    return world.photos


@seen("check dataset")
def _(w: World) -> bool:
    return "loop" in w.cli("check", _doubtful(w), "captions/sidecar", "--tags", "tags/two")


@seen("check layer")
def _(w: World) -> bool:
    return "is no layer of captions" in w.cli("check", _doubtful(w), "captions/none", "--tags", "tags/two", code=2)


@seen("check tags")
def _(w: World) -> bool:
    said = [w.cli("check", _doubtful(w), "captions/sidecar", "--tags", layer) for layer in ("tags/one", "tags/two")]
    return ["count " in text for text in said] == [True, False]


@seen("check prompt")
def _(w: World) -> bool:
    (w.folder / "strict.toml").write_text('user = "What?"\n[checks]\nleast_coverage = 0.9\ncoverage = "reject"\n')
    words = ("check", _doubtful(w), "captions/sidecar", "--tags", "tags/one")
    return "coverage" not in w.cli(*words) and "coverage" in w.cli(*words, "--prompt", w.folder / "strict.toml")


@seen("check repair")
def _(w: World) -> bool:
    w.cli("check", _doubtful(w), "captions/sidecar", "--tags", "tags/two", "--repair")
    rejected = "select key from \"captions/sidecar\" where verdict = 'rejected'"
    return Dataset(w.photos).sql(rejected).fetchall() == [("a.png",)]


@seen("check as_json")
def _(w: World) -> bool:
    return bool(
        json.loads(w.cli("check", _doubtful(w), "captions/sidecar", "--tags", "tags/two", "--json"))["findings"]
    )


def _merged(w: World, *words: str | Path) -> bool:
    """Whether a merge writes a model that says what base and adapter said."""
    out = w.folder / "merged"
    app(["merge", *map(str, words), str(out), "--model", str(w.blip)], standalone_mode=False)
    return w.say(model=str(out)) == w.say(adapter=str(w.adapter))


@seen("merge adapter")
def _(w: World) -> bool:
    return _merged(w, w.adapter)


@seen("merge out")
def _(w: World) -> bool:
    return refused(lambda: app(["merge", str(w.adapter), str(w.folder)], standalone_mode=False))


@seen("merge model")
def _(w: World) -> bool:
    nameless = shutil.copytree(w.adapter, w.folder / "nameless")
    said = nameless / "adapter_config.json"
    said.write_text(json.dumps(json.loads(said.read_text()) | {"base_model_name_or_path": None}))
    return _merged(w, nameless)


@seen("presets kind")
def _(w: World) -> bool:
    return "recipes " in w.cli("presets") and "recipes " not in w.cli("presets", "prompts")


@seen("presets name")
def _(w: World) -> bool:
    return 'answer = "json"' in w.cli("presets", "prompts", "toriigate-json")


@seen("sql dataset")
def _(w: World) -> bool:
    return "4" in added(w, "sql", w.photos, "select count(*) from pictures")


@seen("sql query")
def _(w: World) -> bool:
    return "Catalog Error" in added(w, "sql", w.photos, "from nothing", code=1)


@seen("sql as_json")
def _(w: World) -> bool:
    return bool(json.loads(added(w, "sql", w.photos, "select 1 as one", "--json")) == {"one": 1})


@seen("compact dataset")
def _(w: World) -> bool:
    return "pictures: 2 parts -> 1" in _two_parts(w)


@seen("compact layers")
def _(w: World) -> bool:
    _two_parts(w, run=False)
    return "pictures" not in w.cli("compact", w.photos, "captions/sidecar")


def _two_parts(world: World, *, run: bool = True) -> str:
    world.cli("add", world.photos)
    Image.new("RGB", (9, 9)).save(world.photos / "new.png")
    world.cli("add", world.photos)
    return world.cli("compact", world.photos) if run else ""


def _workers(world: World, count: int) -> int:
    """How many processes an annotator's rows come from."""
    from cutline.engine.here import annotate
    from cutline.engine.selection import Selection

    dataset = world.add()
    layer, folder = f"captions/{count}", world.folder / str(count)
    folder.mkdir()
    annotate(Selection(dataset, Processes(folder, count), layer), workers=count)
    return len(dataset.sql(f'select distinct text from "{layer}"').fetchall())


def command_options() -> Iterator[str]:
    group: Any = typer.main.get_command(app)
    for verb, command in group.commands.items():
        for parameter in command.params:
            if parameter.name != "help":
                yield f"{verb} {parameter.name}"


@pytest.mark.slow
@pytest.mark.parametrize("name", list(command_options()))
def test_every_option_of_a_command_can_be_seen(name: str, world: World) -> None:
    assert name in COMMANDS, "say in COMMANDS what can be observed of this option"
    assert COMMANDS[name](world)


# -- how text becomes settings --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """Some settings."""

    count: int = options.option(1, "how many")
    rate: float = options.option(0.5, "how fast")
    loud: bool = options.option(False, "whether")
    names: list[str] = options.option(["a"], "which")
    way: Literal["up", "down"] = options.option("up", "where to")


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ({"count": "8"}, 8),
        ({"rate": "1e-3"}, 0.001),
        ({"loud": "true"}, True),
        ({"names": "b, c"}, ["b", "c"]),
        ({"names": ["d"]}, ["d"]),
        ({"way": "down"}, "down"),
    ],
)
def test_text_becomes_typed(given: dict[str, Any], value: Any) -> None:
    assert getattr(options.fill(Sample, given), next(iter(given))) == value


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"cuont": "8"}, "no option 'cuont'"),
        ({"count": "many"}, "count='many' does not fit"),
        ({"way": "left"}, "way='left' does not fit"),
        ({"loud": "perhaps"}, "loud='perhaps' does not fit"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(given: dict[str, str], says: str) -> None:
    with pytest.raises(OptionError, match=says):
        options.fill(Sample, given)


@pytest.mark.parametrize("pair", ["count", "=8", "count=1 count=2"])
def test_pairs_that_are_none_are_refused(pair: str) -> None:
    with pytest.raises(OptionError):
        options.parse(pair.split())


def test_identity_is_the_settings_that_count_and_the_bytes_of_models(tmp_path: Path) -> None:
    model = tiny.save_blip(tmp_path / "one")
    copy = tiny.save_blip(tmp_path / "two")
    other = tiny.save_blip(tmp_path / "three", seed=9)
    blip = registry.load("annotators", "blip")

    def code(**given: Any) -> str:
        return options.digest(options.identity(options.fill(blip, given)))

    assert code(model=str(model)) == code(model=str(copy), batch_size=3, threads=1, device="cpu")
    assert len({code(model=str(model)), code(model=str(other)), code(model=str(model), beams=1)}) == 3
