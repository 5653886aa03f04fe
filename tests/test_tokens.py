"""What a text encoder keeps: CLIP's rows as sd-scripts makes them, its tokens as transformers does, what is lost."""

from __future__ import annotations

import functools
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from cutline.compose import clip, tokens
from cutline.compose.kohya import TrainerError
from cutline.compose.tokens import Encoder, chunk_rows, find_trainer, weighted
from cutline.compose.weights import weighted_pieces
from cutline.options import CutlineError, OptionError

ORACLES = Path(__file__).parent / "oracles" / "kohya"
CHUNKS = json.loads((ORACLES / "token_chunks.json").read_text("utf-8"))
WEIGHTED = [json.loads(line) for line in (ORACLES / "weighted_captions.jsonl").read_text("utf-8").splitlines()]
TEXTS = [
    "1girl, solo, long_hair, looking at viewer, :d, ^_^, >:(, astolfo_(fate), re:zero, o_o",
    "it's what they're wearing, isn't it? I'LL we've I'm he'd",
    "漢字かなカナ 한국어 中文 words",
    "😀 👩‍👩‍👧 ❤️ é e\u0301 ﬁ Ａ ß İstanbul",
    "12345 1,000.50 ² ½ 2020s",
    "a<|endoftext|>b <|startoftext|> <|ENDOFTEXT|>",
    "  many \n\t spaces\u00a0\u2003here\r\n",
    "!!!!!! ??? ... ~~~ --- ___ (((a)))",
    "\x00\x01 \ufeff\u200b\ufffd\U0010ffff \x85",
    "supercalifragilisticexpialidocious" * 5,
    "",
]
MESSY = st.text(st.sampled_from("aAsS'tT ,.!\n_-()[]:\\<|>é漢😀1²\u0301\u200bß\x85“”‘’\"")) | st.text(max_size=60)


def encoder(trainer: str, name: str = "", **given: Any) -> Encoder:
    found = find_trainer(trainer, **given).encoders
    return next(one for one in found if not name or one.name == name)


@pytest.fixture(scope="module")
def letters(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tokenizer of which each letter is a token, with specials, padding and truncation in its file."""
    path = tmp_path_factory.mktemp("letters") / "tokenizer.json"
    made = Tokenizer(models.BPE(unk_token="?"))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.Split(" ", "isolated")
    alphabet = [chr(code) for code in range(32, 127)]
    made.train_from_iterator([], trainers.BpeTrainer(special_tokens=["?", "</s>"], initial_alphabet=alphabet))
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    made.enable_padding(length=40)
    made.enable_truncation(10)
    made.save(str(path))
    return path.parent


@pytest.fixture(scope="module")
def subwords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.json of a small Unigram that marks words as T5 does."""
    path = tmp_path_factory.mktemp("subwords") / "tokenizer.json"
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.train_from_iterator(TEXTS * 5, trainers.UnigramTrainer(vocab_size=120, unk_token="<unk>"))
    made.save(str(path))
    return path


# CLIP's rows.


@pytest.mark.parametrize("case", CHUNKS["cases"] + CHUNKS["special"])
def test_rows_are_those_of_the_trainer(case: dict[str, Any]) -> None:
    known = CHUNKS["tokenizer"]
    ids = case.get("content_ids") or list(range(1000, 1000 + case["n"]))
    pad = known[f"{case['model']}_pad"]
    length = case["max_token_length"]
    rows = chunk_rows(ids, bos=known["bos"], eos=known["eos"], pad=pad, max_token_length=length)
    assert rows == case["chunks"]
    if length is None:
        assert chunk_rows(ids, bos=known["bos"], eos=known["eos"], pad=pad, max_token_length=75) == rows


@pytest.mark.parametrize("length", [0, 77, 100, 255, 300, -1])
def test_other_lengths_are_refused(length: int) -> None:
    with pytest.raises(OptionError, match="75, 150 or 225"):
        chunk_rows([1], bos=49406, eos=49407, pad=0, max_token_length=length)
    with pytest.raises(OptionError, match="75, 150 or 225"):
        find_trainer("kohya-sdxl", max_token_length=length)


@given(
    st.lists(st.integers(0, 49407), max_size=300), st.sampled_from([None, 75, 150, 225]), st.sampled_from([0, 49407])
)
def test_rows_hold_the_text_in_order(ids: list[int], length: int | None, pad: int) -> None:
    rows = chunk_rows(ids, bos=49406, eos=49407, pad=pad, max_token_length=length)
    assert {len(row) for row in rows} == {77}
    assert len(rows) == (length or 75) // 75
    assert all(row[0] == 49406 for row in rows)
    inside = [id for row in rows for id in row[1:76]]
    same = [(mine, id) for mine, id in zip(inside, ids, strict=False) if mine != id]
    assert all(mine == 49407 and id == pad for mine, id in same)  # a real token that it takes for padding


# Weights.


@pytest.mark.parametrize("case", WEIGHTED, ids=lambda case: case["text"])
def test_weights_are_those_of_the_trainer(case: dict[str, Any]) -> None:
    if "error" in case:
        with pytest.raises(TrainerError) as raised:
            weighted(case["text"])
        assert str(raised.value) == case["error"]
        assert (raised.value.type, raised.value.text) == tuple(case["error"].split(": ", 1))
    else:
        assert [list(piece) for piece in weighted(case["text"])] == case["segments"]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("a (b", [("a ", 1.0), ("b", 1.1)]),  # never closed: to the end
        ("a [b (c", [("a ", 1.0), ("b ", 1 / 1.1), ("c", 1.1 / 1.1)]),
        ("a:1.2)", [("a:1.2)", 1.0)]),  # never opened: text
        ("a:1.2.3)", [("a:1.2.3)", 1.0)]),
        ("(a:1.2)b)", [("a", 1.2), ("b)", 1.0)]),
        ("(a:-.5)", [("a", -0.5)]),
        ("(a: 1.2)", [("a: 1.2", 1.1)]),
        ("(a]b)", [("a]b", 1.1)]),
        ("a\\b\\\\c\\", [("ab\\c", 1.0)]),
        ("((a:2):3)", [("a", 6.0)]),
    ],
)
def test_weights_at_the_edges(text: str, pieces: list[tuple[str, float]]) -> None:
    assert weighted(text) == pieces


@given(st.text(st.sampled_from("ab ()[]:\\1.2"), max_size=30))
def test_a_piece_knows_where_it_stands(text: str) -> None:
    try:
        found = weighted_pieces(text)
    except TrainerError:
        return
    assert all("".join(text[place] for place in places) == piece for piece, _, places in found)
    places = [place for _, _, mine in found for place in mine]
    assert places == sorted(set(places))


# CLIP's tokenizer.


@functools.cache
def of_transformers() -> Any:
    from transformers import CLIPTokenizer

    packaged = clip.packaged()
    assert packaged is not None
    model = json.loads(packaged.to_str())["model"]
    merges: Any = [tuple(pair) for pair in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges)


def ids_of_both(text: str) -> tuple[list[int], list[int]]:
    packaged = clip.packaged()
    assert packaged is not None
    theirs: list[int] = of_transformers()(text, add_special_tokens=False).input_ids
    return packaged.encode(text, add_special_tokens=False).ids, theirs


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_clip_is_that_of_transformers(text: str) -> None:
    ours, theirs = ids_of_both(text)
    assert ours == theirs


@given(MESSY)
@settings(max_examples=300, deadline=None)
def test_clip_is_that_of_transformers_whatever_the_text(text: str) -> None:
    ours, theirs = ids_of_both(text)
    assert ours == theirs


def test_clip_has_the_published_ids() -> None:
    packaged = clip.packaged()
    assert packaged is not None
    assert packaged.get_vocab_size() == 49408
    assert {mark: packaged.token_to_id(mark) for mark in ("!", "a</w>", "<|startoftext|>", "<|endoftext|>")} == {
        "!": 0,
        "a</w>": 320,
        "<|startoftext|>": 49406,
        "<|endoftext|>": 49407,
    }
    assert packaged.encode("a photo of a cat").ids == [320, 1125, 539, 320, 2368]  # as in CLIP's own notebook


def test_rows_of_a_text_are_those_of_transformers() -> None:
    for text in TEXTS:
        row = of_transformers()(text, padding="max_length", max_length=77, truncation=True).input_ids
        assert encoder("kohya-sd1").read(text).rows == [row]
        assert encoder("kohya-flux-dev", "clip-l").read(text).rows == [row]


# Reading a text.


def test_what_sdxl_keeps() -> None:
    tags = ", ".join(
        f"tag{number}" for number in range(40)
    )  # 3 tokens each with its comma: 1, 2 or more for the number
    short = encoder("kohya-sdxl", "clip-g").read(tags)
    long = encoder("kohya-sdxl", "clip-g", max_token_length="225").read(tags)
    assert short.count == long.count == len(long.tokens) > 75
    assert (short.limit, long.limit, long.lost, len(short.rows), len(long.rows)) == (75, 225, "", 1, 3)
    assert short.kept + short.lost == tags
    assert short.lost.startswith(short.tokens[75].text)
    assert [token.chunk for token in short.tokens] == [0] * 75 + [-1] * (short.count - 75)
    assert [token.chunk for token in long.tokens] == [number // 75 for number in range(long.count)]


@given(MESSY, st.sampled_from([75, 150]), st.booleans())
@settings(max_examples=200, deadline=None)
def test_a_reading_is_whole(text: str, length: int, weights: bool) -> None:
    text = text * 5
    one = encoder("kohya-sdxl", max_token_length=length, weighted_captions=weights)
    try:
        reading = one.read(text)
    except TrainerError:
        assert one.counts([text]).tolist() == [-1]
        return
    assert reading.kept + reading.lost == text
    assert one.counts([text]).tolist() == [reading.count] == [len(reading.tokens)]
    assert bool(reading.lost) == (reading.count > reading.limit)
    assert all(token.text == text[token.start : token.end] for token in reading.tokens)
    assert [token.start for token in reading.tokens] == sorted(token.start for token in reading.tokens)
    assert sum(token.chunk >= 0 for token in reading.tokens) == min(reading.count, length)


def test_a_character_that_is_cut_is_lost() -> None:
    reading = encoder("kohya-sd1").read("a " * 74 + "𠮷 b")  # four bytes of no merge: its tokens are 74 and on
    border = next(token for token in reading.tokens if token.chunk < 0)
    assert border.text == reading.tokens[74].text == "𠮷"
    assert reading.tokens[74].chunk == 0
    assert (reading.kept, reading.lost) == ("a " * 74, "𠮷 b")


def test_weights_are_read_piece_by_piece() -> None:
    plain, with_weights = encoder("kohya-sd1"), encoder("kohya-sd1", weighted_captions="true")
    assert [token.text for token in with_weights.read("astolfo_(fate), 1girl").tokens].count("(") == 0
    assert with_weights.counts(["cat(dog)", "catdog", ""]).tolist() == [2, plain.counts(["catdog"])[0], 0]
    assert with_weights.counts(["(a:1.2.3)", "a"]).tolist() == [-1, 1]
    with pytest.raises(TrainerError, match=r"^ValueError: could not convert string to float: '1.2.3'$"):
        with_weights.read("(a:1.2.3)")


def test_counts_of_many() -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["cat", "dog", "bird"], k=rng.randrange(9))) for _ in range(10_000)]
    found = encoder("kohya-sd1").counts(texts)
    assert found.dtype == np.int64
    assert found.tolist() == [len(text.split()) for text in texts]
    assert encoder("kohya-sd1").counts([]).tolist() == []


# Every trainer.


@pytest.mark.parametrize("name", tokens.trainers())
def test_every_trainer_says_what_it_lacks_or_counts(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    for one in find_trainer(name).encoders:
        if one.problem:
            assert "-o " in one.problem
            assert "hf download " in one.problem
            with pytest.raises(CutlineError, match="is not here"):
                one.counts(["a"])
            with pytest.raises(CutlineError, match="is not here"):
                one.read("a")
        else:
            assert one.read('a "b"').lost == ""
            assert one.counts(['a "b"'])[0] > 0


LIMITS = [
    ("kohya-sd1", {}, {"clip-l": 75}),
    ("kohya-sd2", {"max_token_length": 150}, {"clip-h": 150}),
    ("kohya-sdxl", {"max_token_length": 225}, {"clip-l": 225, "clip-g": 225}),
    ("kohya-sd3", {}, {"clip-l": 75, "clip-g": 75, "t5-xxl": 255}),
    ("kohya-sd3", {"t5xxl_max_token_length": "512"}, {"clip-l": 75, "clip-g": 75, "t5-xxl": 511}),
    ("kohya-flux-dev", {}, {"clip-l": 75, "t5-xxl": 511}),
    ("kohya-flux-schnell", {}, {"clip-l": 75, "t5-xxl": 255}),
    ("kohya-chroma", {}, {"t5-xxl": 511}),
    ("kohya-lumina2", {}, {"gemma-2-2b": 255}),
    ("kohya-hunyuan-image", {}, {"qwen2.5-vl": 1024, "byt5": 127}),
    ("kohya-anima", {"t5_max_token_length": 100}, {"qwen3-0.6b": 512, "t5": 99}),
    ("kohya-anima", {"qwen3_max_token_length": 100}, {"qwen3-0.6b": 100, "t5": 511}),
    ("diffusers-sd1", {}, {"clip-l": 75}),
    ("diffusers-sdxl", {}, {"clip-l": 75, "clip-g": 75}),
    ("diffusers-sd3", {}, {"clip-l": 75, "clip-g": 75, "t5-xxl": 76}),
    ("diffusers-flux", {"max_sequence_length": 256}, {"clip-l": 75, "t5-xxl": 255}),
]


@pytest.mark.parametrize(("name", "given_settings", "limits"), LIMITS)
def test_limits(
    name: str, given_settings: dict[str, Any], limits: dict[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))  # whatever this machine has
    assert {one.name: one.limit for one in find_trainer(name, **given_settings).encoders} == limits


def test_every_trainer_is_in_the_table_of_limits() -> None:
    assert {name for name, _, _ in LIMITS} == set(tokens.trainers())


@pytest.mark.parametrize(
    ("name", "setting", "said"),
    [
        ("kohya-sd3", "max_token_length=225", "does nothing with max_token_length. It has: .*t5xxl_max_token_length"),
        ("kohya-flux-dev", "weighted_captions=true", "does nothing with weighted_captions"),
        ("kohya-anima", "max_token_length=225", "qwen3_max_token_length.*t5_max_token_length"),
        (
            "kohya-sdxl",
            "system_prompt=x",
            "does nothing with system_prompt. It has: max_token_length, weighted_captions, clip",
        ),
        ("diffusers-sd1", "max_token_length=225", "It has: clip"),
        ("kohya-sdxl", "max_tokens=225", "has no option 'max_tokens'"),
        ("kohya-sdxl", "max_token_length=many", "does not fit"),
        ("kohya-sd3", "t5xxl_max_token_length=1", "leaves no room"),
        ("kohya-sdxl", "clip=no/where", "clip=no/where: .*hf download no/where tokenizer.json"),
        ("kohya", "clip=no/where", "no trainer is called 'kohya'. There are: .*kohya-sdxl"),
    ],
)
def test_a_setting_has_an_effect_or_is_refused(name: str, setting: str, said: str) -> None:
    key, _, value = setting.partition("=")
    with pytest.raises(OptionError, match=said):
        find_trainer(name, **{key: value})


def test_a_trainer_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    row = '[[encoders]]\nname = "mine"\ntokenizer = "clip"\nlength = 12\nspecials = 2\n'
    path.write_text(row, "utf-8")
    assert [(one.name, one.limit) for one in find_trainer(str(path)).encoders] == [("mine", 10)]
    for text, said in (
        (row.replace("length = 12", "size = 12"), "an encoder has no option 'size'"),
        (row.replace('"clip"', '"other"'), "no tokenizer 'other'; there are: clip, t5xxl, t5, gemma2, qwen, bytes"),
        (row + 'option = "other"', "no option 'other'"),
        (row.replace('"mine"', '"../../x/y"'), "files are named after it"),
        (row + row, "two encoders are called mine"),
        (row.replace("length = 12", "length = 248") + "pad = 0", "chunked and pad are for CLIP's rows: length = 77"),
        (row + "chunked = true", "chunked and pad are for CLIP's rows: length = 77"),
        (row.replace("specials = 2", "specials = 12"), "specials = 12 leaves no text"),
        ("name = 1\n" + row, r"a list of \[\[encoders\]\]"),
        ("encoders = 1", r"a list of \[\[encoders\]\]"),
        ("", r"a list of \[\[encoders\]\]"),
    ):
        path.write_text(text, "utf-8")
        with pytest.raises(OptionError, match=f"mine.toml: .*{said}"):
            find_trainer(str(path))


# Other tokenizers, out of files.


def test_a_hard_cut(letters: Path) -> None:
    one = encoder("kohya-sd3", "t5-xxl", t5xxl=str(letters), t5xxl_max_token_length=11)
    reading = one.read("0123456789abc")
    assert (reading.count, reading.limit, reading.kept, reading.lost, reading.rows) == (13, 10, "0123456789", "abc", [])
    assert [token.chunk for token in reading.tokens] == [0] * 10 + [-1] * 3
    assert one.counts(["0123456789abc", "", "ab"]).tolist() == [13, 0, 2]  # the file's own padding and cut do not count


def test_a_system_prompt_takes_room(letters: Path) -> None:
    given: dict[str, Any] = {"gemma2": letters / "tokenizer.json", "gemma2_max_token_length": 41}
    given = {key: str(value) for key, value in given.items()}
    free = encoder("kohya-lumina2", **given)
    told = encoder("kohya-lumina2", **given, system_prompt="Be kind")
    taken = len("Be kind <Prompt Start> ")
    assert (free.limit, told.limit) == (40, 40 - taken)
    text = "0123456789" * 3
    assert (free.read(text).lost, told.read(text).kept) == ("", text[: 40 - taken])
    assert told.read(text).count == told.counts([text])[0] == free.counts([text])[0] == 30
    assert [token.start for token in told.read(text).tokens] == list(range(30))
    crowded = encoder("kohya-lumina2", **given, system_prompt="Be kind" * 9)
    assert (crowded.limit, crowded.read("abc").kept, crowded.read("abc").lost) == (0, "", "abc")


def test_a_template_is_no_part_of_the_text(letters: Path) -> None:
    one = encoder("kohya-hunyuan-image", "qwen2.5-vl", qwen=str(letters))
    template = len(one.before)
    assert one.before.endswith("<|im_start|>user\n")
    assert one.limit == 1058 - template  # with the real tokenizer that is 34
    reading = one.read("x" * 1000)
    assert (reading.count, len(reading.kept)) == (1000, 1058 - template)
    assert one.counts(["x" * 1000]).tolist() == [1000]


def test_glyphs_are_what_is_quoted() -> None:
    one = encoder("kohya-hunyuan-image", "byt5")
    text = 'a sign "OPEN" by a door ‘ÜBER’ and “開” and “OPEN”'
    reading = one.read(text)
    assert "".join(token.text for token in reading.tokens) == "OPENÜÜBER開開開OPEN"
    assert (reading.kept, reading.lost) == ('"OPEN"‘ÜBER’“開”“OPEN”', "")
    assert reading.count == len('Text "OPEN". Text "ÜBER". Text "開". Text "OPEN". '.encode())
    assert one.read("no quotes, it's").tokens == []
    assert one.counts([text, "no quotes", 'cut "in half']).tolist() == [reading.count, 0, 0]
    cut = one.read(f'a "{"x" * 200}" b "y"')
    assert cut.kept + cut.lost == f'"{"x" * 200}""y"'
    assert (len(cut.kept), cut.limit) == (1 + 127 - len('Text "'), 127)


def test_glyphs_are_read_by_the_kind_of_mark() -> None:
    """`"…"` before `‘…’` before `“…”`, wherever they stand, and each as often as it stands there."""
    one = encoder("kohya-hunyuan-image", "byt5")
    texts = ['a sign "OPEN" and a sign "OPEN"', '"it is ‘fine’ now"']
    assert one.counts(texts).tolist() == [26, 42]
    assert one.read(texts[1]).kept == '"it is ‘fine’ now"‘fine’'
    cut = one.read(f'“{"A" * 200}” and "{"B" * 100}" and ""')
    assert cut.kept == f'"{"B" * 100}"""“AAA'  # 109 + 9 + 6 ids before the first A
    assert cut.lost == f"{'A' * 197}”"
    assert [token.chunk for token in cut.tokens if token.text == "A"].count(0) == 3
    assert one.read(f'‘x’ "{"y" * 118}"').lost == "‘x’"


def test_subwords_have_spans(subwords: Path) -> None:
    text = "1girl, solo  words 漢字 unknown ☃ end"
    one = encoder("kohya-anima", "t5", t5=str(subwords), t5_max_token_length=9)
    reading = one.read(text)
    assert reading.kept + reading.lost == text
    assert reading.count == one.counts([text])[0] == len(reading.tokens) > reading.limit == 8
    assert reading.lost.startswith(reading.tokens[8].text)


def test_the_cache_of_hugging_face(letters: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "models--google--gemma-2-2b"
    for commit, text in (("old", "not it"), ("new", (letters / "tokenizer.json").read_text("utf-8"))):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "tokenizer.json").write_text(text, "utf-8")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("new", "utf-8")
    assert encoder("kohya-lumina2").counts(["abc"]).tolist() == [3]
    assert encoder("kohya-sd1", clip="google/gemma-2-2b").counts(["abc"]).tolist() == [3]
    (folder / "refs" / "main").write_text("old", "utf-8")
    with pytest.raises(CutlineError, match=r"tokenizer\.json is no tokenizer\.json"):
        encoder("kohya-lumina2")


def test_without_open_clip_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # where packages are looked for
    clip.packaged.cache_clear()
    try:
        one = encoder("kohya-sdxl")
    finally:
        clip.packaged.cache_clear()
    assert "pip install --no-deps open_clip_torch; or name its file: -o clip=PATH" in one.problem


def test_counting_needs_no_torch() -> None:
    code = (
        "import sys; from cutline.compose.tokens import find_trainer as find; find('kohya-sdxl').encoders[0].read('a')"
    )
    code += "; print({'torch', 'transformers', 'open_clip', 'huggingface_hub'}.intersection(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "set()\n"


def test_the_two_encoders_of_sdxl_count_alike() -> None:
    first, second = find_trainer("kohya-sdxl").encoders
    assert first.counts_as(second)
    assert not first.counts_as(encoder("kohya-sdxl", weighted_captions=True))
    assert first.read("a").rows != second.read("a").rows  # padding
