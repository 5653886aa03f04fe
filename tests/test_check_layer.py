"""`cutline check` on a dataset, end to end: what is written, what is repaired, and what is left alone."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cutline.checks.judging import Policies
from cutline.checks.layer import SAME_TEXT, check, find_tags
from cutline.cli.main import app
from cutline.dataset import Dataset
from cutline.options import OptionError
from cutline.prompts.prompt import Prompt
from cutline.sources.folder import Folder
from running import cutline, environment, make_pictures
from test_stats import dataset

CAPTIONS, CHECKS = "captions/mine", "checks/mine"

GOOD = "A girl with long hair sits on a bench."
LOOP = "The sky is blue. " * 5
ROWS: list[dict[str, Any]] = [
    {
        "key": "claim",
        "texts": ["Two girls. There is a watermark."],
        "verdict": "good",
        "raw": "x",
        "request": "r",
        "attempt": 2,
    },
    {"key": "cut", "texts": ["A girl sits. She we"], "verdict": "good", "finish_reason": "length", "tokens_out": 7},
    {"key": "error", "error": "timeout"},
    {"key": "good", "texts": [GOOD], "verdict": "good"},
    {"key": "loop", "texts": [LOOP], "verdict": "good", "raw": LOOP, "finish_reason": "stop"},
    {"key": "rejected", "verdict": "rejected", "reason": "not_json", "raw": "# x"},
    {"key": "several", "texts": ["A girl.", "I'm sorry, but I can't help with that."], "verdict": "good"},
    {"key": "thinking", "texts": ["<think>Hm.</think>A girl."], "verdict": "repaired", "reason": "crlf", "raw": "raw"},
]
TAGS = [{"key": row["key"], "general": ["1girl", "solo", "long_hair", "bench"]} for row in ROWS]


@pytest.fixture
def mine(tmp_path: Path) -> Dataset:
    keys = [{"key": row["key"]} for row in ROWS]
    return dataset(tmp_path / "photos", [*keys, {"key": "no caption"}], captions=ROWS, tags=TAGS)


def rows(of: Dataset, layer: str) -> dict[str, dict[str, Any]]:
    return {row["key"]: row for row in of.sql(f'from "{layer}" order by key').arrow().to_pylist()}


def ran(of: Dataset, *words: str) -> dict[str, Any]:
    """What the command says as JSON."""
    done = CliRunner().invoke(app, ["check", str(of.root), CAPTIONS, *words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_findings_are_counted_shown_and_kept(mine: Dataset) -> None:
    found = ran(mine)
    assert found["findings"] == {"count": 1, "watermark": 1, "cut": 1, "loop": 1, "refusal": 1, "thinking": 1}
    assert (found["checked"], found["faulty"], found["skipped"], found["tags"]) == (6, 5, 1, "tags/mine")
    assert found["examples"]["loop"]["key"] == "loop"
    assert (found["written"], found["repaired"], found["rejected"]) == (6, 0, 0)
    noted = rows(mine, CHECKS)
    assert noted.keys() == {"claim", "cut", "good", "loop", "several", "thinking"}
    assert noted["claim"]["findings"] == ["count", "watermark"]
    assert len(noted["claim"]["details"]) == 2
    assert (noted["good"]["findings"], noted["good"]["coverage"]) == ([], 1.0)
    said = cutline("check", mine.root, CAPTIONS).stdout
    assert "6 captions checked, 5 with findings; held against tags/mine\n1 left out: rejected before\n" in said
    assert "\nloop              1  loop: 5 times in a row: The sky is blue.\n" in said


def test_a_second_check_writes_nothing(mine: Dataset) -> None:
    assert ran(mine)["written"] == 6
    parts = mine.layer(CHECKS).parts()
    assert ran(mine)["written"] == 0
    assert mine.layer(CHECKS).parts() == parts
    with mine.layer(CAPTIONS).amend() as writer:
        writer.add({"key": "good", "texts": ["Another girl."], "verdict": "good"})
    before = rows(mine, CHECKS)["good"]["caption"]
    assert ran(mine)["written"] == 1
    assert rows(mine, CHECKS)["good"]["caption"] != before


def test_repairing_trims_and_rejects(mine: Dataset) -> None:
    before = rows(mine, CAPTIONS)
    found = ran(mine, "--repair")
    assert (found["repaired"], found["rejected"]) == (3, 1)
    after = rows(mine, CAPTIONS)
    assert {key for key in after if after[key] != before[key]} == {"cut", "loop", "several", "thinking"}
    assert [after["cut"][name] for name in ("texts", "verdict", "reason")] == [["A girl sits."], "repaired", "cut"]
    assert (after["cut"]["raw"], after["cut"]["finish_reason"], after["cut"]["tokens_out"]) == (
        "A girl sits. She we",
        "length",
        7,
    )
    assert [after["loop"][name] for name in ("texts", "verdict", "reason", "raw")] == [None, "rejected", "loop", LOOP]
    assert [after["several"][name] for name in ("texts", "verdict", "reason")] == [["A girl."], "repaired", "refusal"]
    assert [after["thinking"][name] for name in ("texts", "reason", "raw")] == [["A girl."], "crlf, thinking", "raw"]
    noted = rows(mine, CHECKS)
    assert noted["cut"]["findings"] == []  # it is about the caption as it is now
    assert noted["loop"]["findings"] == ["loop"]  # and this one says why
    keys = [key for (key,) in mine.sql("select key from pictures order by key").fetchall()]
    again = mine.missing(CAPTIONS, retry="rejected").keys().to_pylist()
    assert again == [key for key in keys if key in ("loop", "no caption", "rejected")]


def test_a_second_repair_writes_nothing(mine: Dataset) -> None:
    ran(mine, "--repair")
    parts = mine.layer(CAPTIONS).parts(), mine.layer(CHECKS).parts()
    found = ran(mine, "--repair")
    assert (found["written"], found["repaired"], found["rejected"]) == (0, 0, 0)
    assert (mine.layer(CAPTIONS).parts(), mine.layer(CHECKS).parts()) == parts


def test_a_prompt_says_what_is_done(mine: Dataset, tmp_path: Path) -> None:
    prompt = tmp_path / "mine.toml"
    prompt.write_text(
        'user = "Describe."\n[checks]\nwatermark = "trim"\nloop = "keep"\nleast_coverage = 0.9\n', "utf-8"
    )
    found = ran(mine, "--prompt", str(prompt), "--repair")
    assert found["findings"]["coverage"] == 5  # all but `good`
    after = rows(mine, CAPTIONS)
    assert after["claim"]["texts"] == ["Two girls."]
    assert after["loop"]["texts"] == [LOOP]
    prompt.write_text('user = "Describe."\n[checks]\nloop = "often"\n', "utf-8")
    assert "loop='often' does not fit" in cutline("check", mine.root, CAPTIONS, "--prompt", prompt, code=2).stderr


def test_what_a_person_wrote_is_not_repaired(mine: Dataset) -> None:
    with mine.layer("captions/human").write() as writer:
        writer.add({"key": "good", "texts": [LOOP], "verdict": "good"})
    assert check(mine, "captions/human").findings == {"loop": 1}
    failed = cutline("check", mine.root, "captions/human", "--repair", code=2)
    assert "captions/human is what people wrote" in failed.stderr
    assert rows(mine, "captions/human")["good"]["texts"] == [LOOP]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tags/mine"], "tags/mine is no layer of captions of {}; there are: captions/mine"),
        (["captions/other"], "captions/other is no layer of captions of {}; there are: captions/mine"),
        (["nonsense"], "'nonsense' is of no known kind"),
        ([CAPTIONS, "--tags", "tags/other"], "{} has no tag layer tags/other; it has: tags/mine"),
        ([CAPTIONS, "--tags", CAPTIONS], "{} has no tag layer captions/mine; it has: tags/mine"),
        ([CAPTIONS, "--prompt", "nonsense"], "no prompt is called 'nonsense'"),
    ],
)
def test_what_cannot_be_checked_is_refused(mine: Dataset, words: list[str], said: str) -> None:
    done = cutline("check", mine.root, *words, code=1 if words == ["nonsense"] else 2)
    assert said.format(mine.root) in done.stderr
    assert CHECKS not in mine.layers()


def test_no_dataset_is_refused(tmp_path: Path) -> None:
    assert "is no dataset yet" in cutline("check", tmp_path, CAPTIONS, code=1).stderr


def test_of_several_tag_layers_one_is_named(mine: Dataset) -> None:
    with mine.layer("tags/other").write() as writer:
        writer.add({"key": "claim", "general": ["2girls", "watermark"]})
    assert "several tag layers: tags/mine, tags/other. Say which: --tags" in (
        cutline("check", mine.root, CAPTIONS, code=2).stderr
    )
    found = ran(mine, "--tags", "tags/other")
    assert found["tags"] == "tags/other"
    assert not {"count", "watermark"} & found["findings"].keys()
    with pytest.raises(OptionError, match="several"):
        find_tags(mine)


def test_without_tags_nothing_is_held_against_them(tmp_path: Path) -> None:
    made = dataset(
        tmp_path / "photos", [{"key": "a"}], captions=[{"key": "a", "texts": ["Two girls."], "verdict": "good"}]
    )
    found = ran(made)
    assert (found["tags"], found["coverage"], found["findings"]) == (None, None, {})
    assert rows(made, CHECKS)["a"]["coverage"] is None
    assert "held against no tags, since there are none" in cutline("check", made.root, CAPTIONS).stdout


def test_the_same_text_on_many_pictures(tmp_path: Path) -> None:
    texts = ["A girl  sits.", "a GIRL sits.", "A girl\nsits.", " A girl sits. ", "A cat.", "A cat.", "A cat.", "A dog."]
    captions = [{"key": f"p{number}", "texts": [text], "verdict": "good"} for number, text in enumerate(texts)]
    captions.append({"key": "rejected", "texts": ["A cat."], "verdict": "rejected"})
    captions.append({"key": "gone", "texts": ["A cat."], "verdict": "good"})
    pictures = [{"key": row["key"], **({"error": "vanished"} if row["key"] == "gone" else {})} for row in captions]
    made = dataset(tmp_path / "photos", pictures, captions=captions)
    assert SAME_TEXT == 3
    assert check(made, CAPTIONS).findings == {"same_text": 4}
    noted = rows(made, CHECKS)
    assert [noted[f"p{number}"]["findings"] for number in range(8)] == [["same_text"]] * 4 + [[]] * 4
    assert noted["p0"]["details"] == ["4 pictures have this very text"]
    report = check(made, CAPTIONS, policies=Policies(same_text="again"), repair=True)
    assert report.rejected == 4
    assert rows(made, CAPTIONS)["p0"]["reason"] == "same_text"
    assert rows(made, CAPTIONS)["p4"]["verdict"] == "good"


def test_an_annotators_layer_stays_its_own(tmp_path: Path) -> None:
    made = dataset(tmp_path / "photos", [{"key": "a", "content": "1"}, {"key": "b", "content": "2"}])
    with made.layer(CAPTIONS).write("echo", {"says": "x"}) as writer:
        for key, content in (("a", "1"), ("b", "old")):
            writer.add(
                {"key": key, "texts": ["A girl. She"], "verdict": "good", "finish_reason": "length", "content": content}
            )
    assert check(made, CAPTIONS, repair=True).repaired == 1  # `b` is about another picture
    found = rows(made, CAPTIONS)
    assert (found["a"]["texts"], found["a"]["content"]) == (["A girl."], "1")
    assert rows(made, CHECKS)["a"]["content"] == "1"
    made.layer(CAPTIONS).check("echo", {"says": "x"})


def test_by_default_the_policies_are_those_of_the_layers_prompt(tmp_path: Path) -> None:
    made = dataset(tmp_path / "photos", [{"key": "a"}])
    with made.layer(CAPTIONS).write(
        "server", {"prompt": Prompt(user="x", checks=Policies(loop="trim")).settings()}
    ) as writer:
        writer.add({"key": "a", "texts": [LOOP], "verdict": "good"})
    assert ran(made, "--repair")["repaired"] == 1
    assert rows(made, CAPTIONS)["a"]["texts"] == ["The sky is blue."]


def test_an_echo_that_was_seen_while_captioning_is_not_forgotten(mine: Dataset) -> None:
    check(mine, CAPTIONS, tags="tags/mine")
    before = rows(mine, CHECKS)["good"]
    with mine.layer(CHECKS).write() as writer:
        writer.add({**before, "findings": ["prompt_echo"], "details": ["asked and said: x"]})
    report = check(mine, CAPTIONS, tags="tags/mine")
    assert (report.written, report.findings["prompt_echo"]) == (0, 1)


def test_what_a_terminal_obeys_is_shown_and_not_done(tmp_path: Path) -> None:
    text = "A girl\x1b[31m. " * 5
    made = dataset(tmp_path / "photos", [{"key": "a\x1b[2J"}], captions=[{"key": "a\x1b[2J", "texts": [text]}])
    said = cutline("check", made.root, CAPTIONS, env=environment(COLUMNS=80)).stdout
    assert "\x1b" not in said
    assert "a␛[2J" in said


def test_odd_rows_are_no_crash(tmp_path: Path) -> None:
    odd: list[dict[str, Any]] = [
        {"key": "a"},
        {"key": "b", "texts": []},
        {"key": "c", "texts": [None, "A girl."]},
        {"key": "d", "texts": [""]},
    ]
    made = dataset(tmp_path / "photos", [{"key": row["key"]} for row in odd], captions=odd)
    report = check(made, CAPTIONS, repair=True)
    assert report.findings == {"empty": 3}
    found = rows(made, CAPTIONS)
    assert {key: found[key]["verdict"] for key in found} == dict.fromkeys("abd", "rejected") | {"c": None}
    assert check(made, CAPTIONS, repair=True).written == 0


def test_what_was_repaired_stays_so_until_its_source_says_something_else(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    (tmp_path / "p0000.txt").write_text("a cat, " * 40)
    (tmp_path / "p0001.txt").write_text("A cat.")
    dataset = Dataset(tmp_path)
    dataset.add(Folder(path=tmp_path))
    assert check(dataset, "captions/sidecar", repair=True).rejected == 1
    verdicts = 'select verdict from "captions/sidecar" order by key'
    dataset.add(Folder(path=tmp_path))
    assert dataset.sql(verdicts).fetchall() == [("rejected",), ("good",)]
    (tmp_path / "p0000.txt").write_text("A dog.")
    dataset.add(Folder(path=tmp_path))
    assert dataset.sql(verdicts).fetchall() == [("good",), ("good",)]


def test_what_was_lost_is_not_why(tmp_path: Path) -> None:
    told = {"verdict": "repaired", "reason": 'code_fence; lost: "hair, cut, short"', "finish_reason": "length"}
    made = dataset(
        tmp_path / "photos",
        [{"key": "a"}],
        captions=[{"key": "a", "texts": ["A girl. There is a watermark. She"], **told}],
        tags=[{"key": "a", "general": ["1girl", "solo"]}],
    )
    policies = Policies(watermark="trim")
    report = check(made, CAPTIONS, tags="tags/mine", policies=policies, repair=True)
    assert set(report.findings) == {"cut", "watermark"}
    said = rows(made, CAPTIONS)["a"]
    assert said["texts"] == ["A girl."]
    assert said["reason"] == 'code_fence, cut, watermark; lost: "hair, cut, short"'


@pytest.mark.slow
def test_what_to_type_for_rejected_ones_does_as_it_says(tmp_path: Path) -> None:
    make_pictures(tmp_path, 2)
    (tmp_path / "a.json").write_text(json.dumps({"p0001.png": {"caption": "I'm sorry, but I can't do that."}}))
    cutline("add", tmp_path)
    cutline("add", tmp_path, tmp_path / "a.json", "-o", f"image_dir={tmp_path}")
    said = cutline("check", tmp_path, "captions/kohya", "--repair").stderr
    command = shlex.split(said.split("again: cutline ")[1].strip().replace("ANNOTATOR", "echo"))
    assert cutline(*command).returncode == 0
    assert list(rows(Dataset(tmp_path), "captions/echo")) == ["p0001.png"]
