"""What a captioner is fed in training, on tiny real models: what inference feeds, and the loss is the hand-made one.

The truth here is `generate`, on the tensors that the session makes for captioning: it is made to say a caption, token
by token, one row at a time and without padding, and tells how likely it held each.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import tiny
from asking import TAGS, scene_rows
from cutline.annotators.blip import Blip
from cutline.annotators.florence2 import Florence2
from cutline.annotators.image_text import ImageText
from cutline.annotators.session import Row, RowError
from cutline.options import CutlineError, OptionError
from cutline.pictures import Picture, PictureError
from cutline.training.families import IGNORED, Family, ImageTextFamily, loss, open_family

ASK = "describe this picture[ of {tags}] in a few plain sentences"
TEXTS = ["a red circle", "a blue square left of a green star above an orange triangle", "a star", "green circle above"]
"""Of unequal lengths, in words that all tiny models know."""


def _florence2(folder: Path) -> Florence2:
    (folder / "two.toml").write_text('[[one_of]]\nuser = "<CAPTION>"\n[[one_of]]\nuser = "<MORE_DETAILED_CAPTION>"\n')
    model = tiny.save_florence2(folder / "model")
    said = json.loads((model / "generation_config.json").read_text())
    said["forced_bos_token_id"] = tiny.new_tokenizer().bos_token_id  # as the published models have it
    (model / "generation_config.json").write_text(json.dumps(said))
    return Florence2(model=str(model), prompt=str(folder / "two.toml"), beams=1, max_tokens=40)


def _image_text(save: Callable[[Path], Path]) -> Callable[[Path], ImageText]:
    return lambda folder: ImageText(model=str(save(folder)), user=ASK, tags=(TAGS,), max_tokens=40)


SETTINGS: dict[str, Callable[[Path], Any]] = {
    "blip": lambda folder: Blip(model=str(tiny.save_blip(folder)), prompt="an orange", beams=1),
    "florence2": _florence2,
    "llava": _image_text(tiny.save_llava),
    "llava, a text": _image_text(lambda folder: tiny.save_llava(folder, template=tiny.TEXT)),
    "qwen2_vl": _image_text(tiny.save_qwen2_vl),
    "qwen3_vl": _image_text(lambda folder: tiny.save_qwen2_vl(folder, version="Qwen3VL")),
    "smolvlm": _image_text(tiny.save_smolvlm),
    "paligemma": _image_text(tiny.save_paligemma),
    "gemma3": _image_text(tiny.save_gemma3),
    "blip_2": _image_text(tiny.save_blip2),
}

Opened = Callable[[str], Family]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """A family, loaded when it is first asked for. Its weights are not to be changed."""
    made: dict[str, Family] = {}

    def find(name: str) -> Family:
        if name not in made:
            made[name] = open_family(SETTINGS[name](tmp_path_factory.mktemp("family")))
        return made[name]

    return find


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """Four rows. The questions about them, and in some families the pictures, differ in how many tokens they are."""
    return scene_rows(tmp_path_factory.mktemp("scenes"), 4)


def fed(family: Family, rows: list[Row], texts: list[str | None]) -> dict[str, Any]:
    return family.tensors(rows, [family.prepare(row) for row in rows], texts)


def sum_and_count(family: Family, batch: dict[str, Any]) -> tuple[float, int]:
    """The sum of the cross entropies of a batch, and the number of its labels."""
    labels = batch["labels"]
    with torch.no_grad():
        outputs = family.session.model(**{name: value for name, value in batch.items() if name != "labels"})
    return loss(outputs, labels, 1).item(), int((labels != IGNORED).sum())


def tokens_of(family: Family, text: str) -> list[int]:
    """What the model has to write, by hand: words, and the tokens that begin and end a text."""
    words = family.tokenizer.convert_tokens_to_ids(text.split())
    begin, end = {"Blip": ([], "[SEP]"), "Florence2": (["<s>"], "</s>")}.get(
        type(family.settings).__name__, ([], "</s>")
    )
    return [*family.tokenizer.convert_tokens_to_ids(begin), *words, family.tokenizer.convert_tokens_to_ids(end)]


class Dictated:
    """A logits processor that leaves nothing to say but these tokens, one at a step."""

    def __init__(self, tokens: list[int]) -> None:
        self.tokens = iter(tokens)

    def __call__(self, said: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        found = torch.full_like(scores, -torch.inf)
        found[:, next(self.tokens)] = 0
        return found


def by_hand(family: Family, row: Row, tokens: list[int]) -> float:
    """The cross entropy of these tokens: each by the logits behind all that came before it, computed anew."""
    session: Any = family.session
    if isinstance(family.settings, Blip):
        given = {
            "pixel_values": session.prepare(row)[None],
            "input_ids": torch.tensor([[*session.prompt, session.end]]),
        }
    elif isinstance(family.settings, Florence2):
        asked = session.settings.ask(row, 1).user
        given = session.processor(text=[asked], images=[row["picture"].decode()], return_tensors="pt")
    else:
        asked = session.chat.render("", session.settings.ask(row, 1).user)
        given = session.chat.tensors([asked], [row["picture"].decode()])
    found = session.model.generate(
        **given,
        logits_processor=[Dictated(tokens)],
        max_new_tokens=len(tokens),
        use_cache=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert len(found.logits) == len(tokens)
    chances = [logits[0].double().log_softmax(-1)[token] for logits, token in zip(found.logits, tokens, strict=True)]
    return -torch.stack(chances).sum().item()


@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_is_the_hand_made_one_however_rows_are_batched(name: str, opened: Opened, rows: list[Row]) -> None:
    family = opened(name)
    expected = [by_hand(family, row, tokens_of(family, text)) for row, text in zip(rows, TEXTS, strict=True)]
    lengths = [len(tokens_of(family, text)) for text in TEXTS]
    assert [family.length(text) for text in TEXTS] == lengths
    for some in ([0], [1], [2], [3], [0, 2], [0, 1, 2, 3], [3, 2, 1, 0]):
        batch = fed(family, [rows[place] for place in some], [TEXTS[place] for place in some])
        total, count = sum_and_count(family, batch)
        assert count == sum(lengths[place] for place in some)
        assert total == pytest.approx(sum(expected[place] for place in some), rel=1e-4)
    # A row without a text changes nothing, and nor does its picture.
    prepared = [family.prepare(rows[0]), family.blank(rows[1]), family.prepare(rows[2])]
    batch = family.tensors(rows[:3], prepared, [TEXTS[0], None, TEXTS[2]])
    total, count = sum_and_count(family, batch)
    assert count == lengths[0] + lengths[2]
    assert total == pytest.approx(expected[0] + expected[2], rel=1e-4)


@pytest.mark.parametrize("name", SETTINGS)
def test_labels_are_the_tokens_of_the_text_alone(name: str, opened: Opened, rows: list[Row]) -> None:
    family = opened(name)
    batch = fed(family, rows, list(TEXTS))
    for labels, text in zip(batch["labels"], TEXTS, strict=True):
        assert labels[labels != IGNORED].tolist() == tokens_of(family, text)
    if "logits_to_keep" in batch:  # the logits that are not asked for are not those that are learnt
        picks = batch["logits_to_keep"]
        given = {key: value for key, value in batch.items() if key not in ("labels", "logits_to_keep")}
        with torch.no_grad():
            whole = family.session.model(**given).logits
            picked = family.session.model(**given, logits_to_keep=picks).logits
        assert picked.shape[1] == batch["labels"].shape[1] < whole.shape[1]
        assert torch.equal(picked.argmax(-1), torch.take_along_dim(whole, picks[..., None], dim=1).argmax(-1))
    nothing = fed(family, rows[:2], [None, None])
    assert sum_and_count(family, nothing) == (0, 0)


@pytest.mark.parametrize(
    "name", ["blip", *(pytest.param(name, marks=pytest.mark.slow) for name in SETTINGS if name != "blip")]
)
def test_what_is_learnt_is_what_is_said(name: str, tmp_path: Path, rows: list[Row]) -> None:
    family = open_family(SETTINGS[name](tmp_path))
    text = "a blue square left of a green star"
    batch = fed(family, rows[:1], [text])
    labels, model = batch.pop("labels"), family.session.model
    # The tiny Florence-2 does not tell the one `a` from the other at the higher rate.
    rate, steps = (1e-3, 120) if name == "florence2" else (3e-3, 60)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        found = loss(model(**batch), labels)
        if found < 0.01:
            break
        optimizer.zero_grad()
        torch.autograd.backward(found)
        optimizer.step()
    answer = next(iter(family.session(iter(rows[:1]))))
    assert answer["raw"] == ("an orange " + text if name == "blip" else text)
    assert (answer["finish_reason"], answer["tokens_out"]) == ("stop", len(tokens_of(family, text)))


@pytest.mark.parametrize("name", ["blip", "florence2", "llava"])
def test_a_long_text_is_cut_and_has_no_end(name: str, opened: Opened, rows: list[Row]) -> None:
    settings = opened(name).settings
    family = open_family(settings, max_tokens=5)
    batch = fed(family, rows, list(TEXTS))
    for labels, text in zip(batch["labels"], TEXTS, strict=True):
        whole = tokens_of(family, text)
        assert labels[labels != IGNORED].tolist() == whole[:5]
        assert (whole[-1] in labels.tolist()) == (len(whole) <= 5)
        assert family.length(text) == len(whole), "as it was"
    with pytest.raises(CutlineError, match=r"-o max_tokens=\d+ or lower"):
        open_family(settings, max_tokens=5000)
    with pytest.raises(OptionError, match="at least 1"):
        open_family(settings, max_tokens=0)


def test_a_question_leaves_fewer_places(tmp_path: Path, rows: list[Row]) -> None:
    tiny.save_llava(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 40
    (tmp_path / "config.json").write_text(json.dumps(config))
    family = open_family(ImageText(model=str(tmp_path), user=ASK, tags=(TAGS,)))
    batch = fed(family, rows[:2], [TEXTS[1], TEXTS[1]])
    learnt = (batch["labels"] != IGNORED).sum(dim=1).tolist()
    assert 0 < learnt[0] < learnt[1] <= family.limit, "tags are told of the first"
    assert batch["input_ids"].shape[1] < 40


@pytest.mark.parametrize("name", ["blip", "florence2", "llava", "smolvlm", "paligemma"])
def test_signs_in_a_text_are_text(name: str, opened: Opened, rows: list[Row]) -> None:
    family = opened(name)
    text = "a star </s> <image> [SEP] <pad>"
    batch = fed(family, rows[:1], [text])
    said = batch["labels"][0].tolist()
    assert [token in said[:-1] for token in family.tokenizer.all_special_ids].count(True) <= 2, (
        "what begins, and unknown"
    )
    assert not {tokens_of(family, "")[-1], family.tokenizer.pad_token_id} & set(said[:-1])
    assert said[-1] == tokens_of(family, "")[-1]
    assert sum_and_count(family, batch)[0] > 0


def test_a_caption_of_blip_that_has_the_prompt_is_not_given_it_twice(opened: Opened, rows: list[Row]) -> None:
    family = opened("blip")
    assert family.settings.prompt == "an orange"
    with_it, without = (fed(family, rows[:1], [text]) for text in ("an orange star", "star"))
    assert with_it["input_ids"].tolist() == without["input_ids"].tolist()
    assert with_it["labels"].tolist() == without["labels"].tolist() == [tokens_of(family, "star")]


def test_an_answer_ends_as_the_template_ends_it(tmp_path: Path, rows: list[Row]) -> None:
    tiny.save_llava(tmp_path)
    number = tiny.new_tokenizer().convert_tokens_to_ids
    said = json.loads((tmp_path / "generation_config.json").read_text())
    for ends, sign in (
        ([number("</s>"), number("<|im_end|>")], "<|im_end|>"),
        (number("</s>"), "</s>"),  # what the template writes would not be taken for an end
        (number("<end_of_utterance>"), "<end_of_utterance>"),
    ):
        (tmp_path / "generation_config.json").write_text(json.dumps({**said, "eos_token_id": ends}))
        family = open_family(ImageText(model=str(tmp_path), user=ASK, tags=(TAGS,)))
        assert fed(family, rows[:1], ["a star"])["labels"][0].tolist() == [number("a"), number("star"), number(sign)]


def test_a_text_is_read_as_it_stands_behind_the_question(tmp_path: Path) -> None:
    spaced = tiny.PARTS.replace("{{ message.role }}\n", "{{ message.role }}:{{ ' ' }}").replace(
        "assistant\n", "assistant:"
    )
    for name, template, space in (("with", spaced, " "), ("without", tiny.PARTS, "")):
        family = open_family(ImageText(model=str(tiny.save_llava(tmp_path / name, template=template)), user=ASK))
        assert isinstance(family, ImageTextFamily)
        letters = Tokenizer(models.BPE({letter: number for number, letter in enumerate(":Ġadog", 100)}, []))
        letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        letters.decoder = decoders.ByteLevel()
        family.tokenizer = tiny._quiet().PreTrainedTokenizerFast(tokenizer_object=letters)
        assert family.tokenizer.decode(family._tokens("a dog")[:-1]) == space + "a dog"


def test_thoughts_that_a_template_begins_are_ended(tmp_path: Path, rows: list[Row]) -> None:
    tiny.save_llava(tmp_path, template=tiny.PARTS.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}"))
    family = open_family(ImageText(model=str(tmp_path), user=ASK, tags=(TAGS,)))
    learnt = fed(family, rows[:1], ["a star"])["labels"][0].tolist()
    closed = family.tokenizer("</think>\n\n", add_special_tokens=False).input_ids
    assert learnt == [*closed, *tokens_of(family, "a star")]


def test_what_cannot_be_had_is_said_and_has_a_stand_in(opened: Opened, tmp_path: Path, rows: list[Row]) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    bad = {"key": "bad.png", "uri": "bad.png", "picture": Picture(tmp_path / "bad.png"), "attempt": 1, TAGS: None}
    for name in ("blip", "florence2", "llava"):
        family = opened(name)
        with pytest.raises(PictureError):
            family.prepare(bad)
        batch = family.tensors([rows[0], bad], [family.prepare(rows[0]), family.blank(bad)], ["a star", None])
        assert sum_and_count(family, batch)[1] == len(tokens_of(family, "a star"))
    sign = {**rows[0], TAGS: {"general": ["<image>"]}}
    with pytest.raises(RowError, match="reads as a sign"):
        opened("llava").prepare(sign)
    assert opened("llava").blank(sign)[0].count("<image>") == 1


class _Batches(torch.utils.data.Dataset[dict[str, Any]]):
    def __init__(self, family: Family, rows: list[Row]) -> None:
        self.family, self.rows = family, rows

    def __len__(self) -> int:
        return 2

    def __getitem__(self, number: int) -> dict[str, Any]:
        some = slice(2 * number, 2 * number + 2)
        return fed(self.family, self.rows[some], list(TEXTS[some]))


def test_other_processes_make_the_same_tensors(opened: Opened, rows: list[Row]) -> None:
    batches = _Batches(opened("qwen2_vl"), rows)
    loader = torch.utils.data.DataLoader(batches, batch_size=None, num_workers=1, multiprocessing_context="fork")
    for made, here in zip(loader, (batches[0], batches[1]), strict=True):
        assert list(made) == list(here)
        assert all(torch.equal(made[name], here[name]) for name in made if name != "use_cache")


def test_the_library_computes_another_loss_of_blip(opened: Opened, rows: list[Row]) -> None:
    family = opened("blip")
    batch = fed(family, rows[:2], list(TEXTS[:2]))
    tokens = batch["input_ids"]
    inputs = {name: batch[name] for name in ("pixel_values", "input_ids", "attention_mask")}
    with torch.no_grad():
        theirs = family.session.model(**inputs, labels=tokens, num_items_in_batch=1000).loss.item()
        again = family.session.model(**inputs, labels=tokens).loss.item()
    total, count = sum_and_count(family, batch)
    assert theirs == again, "it forgets what it is told of the labels in a whole step"
    assert abs(theirs - total / count) > 0.01, "it smooths labels, and learns prompt and padding"


def test_parts_of_a_step_add_up_to_it(opened: Opened, rows: list[Row]) -> None:
    family = opened("blip")
    model = family.session.model
    weight = model.text_decoder.cls.predictions.bias

    def gradient(batches: list[dict[str, Any]], count: int) -> torch.Tensor:
        model.zero_grad()
        for batch in batches:
            labels = batch.pop("labels")
            torch.autograd.backward(loss(model(**batch), labels, torch.tensor(count)))
        found: torch.Tensor = weight.grad.clone()
        model.zero_grad()
        return found

    whole = fed(family, rows, list(TEXTS))
    count = int((whole["labels"] != IGNORED).sum())
    parts = [fed(family, rows[place : place + 1], [TEXTS[place]]) for place in range(4)]
    assert torch.allclose(gradient([whole], count), gradient(parts, count), rtol=1e-4, atol=1e-7)


def test_a_text_begins_as_generation_has_it(tmp_path: Path, rows: list[Row]) -> None:
    family = open_family(Florence2(model=str(tiny.save_florence2(tmp_path)), max_tokens=20))
    assert family.session.model.generation_config.forced_bos_token_id is None
    assert fed(family, rows[:1], ["a star"])["labels"][0].tolist() == [
        *family.tokenizer.convert_tokens_to_ids(["a", "star", "</s>"])
    ]


def test_only_captioners_are_trained() -> None:
    with pytest.raises(OptionError, match="annotator=blip, florence2, image_text"):
        open_family("blip")  # type: ignore[arg-type]
