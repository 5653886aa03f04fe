"""What annotators with local weights share: refusals before weights are read, formats, adapters and batch sizes."""

from __future__ import annotations

import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import tiny
from asking import say, scene_rows, words
from cutline.annotators.blip import Blip
from cutline.annotators.image_text import ImageText
from cutline.annotators.local import FEW, MOST, Draw, Local, Search, choose_batch_size, drawing, fitting
from cutline.annotators.session import Row
from cutline.options import CutlineError, OptionError, fill


@dataclasses.dataclass(frozen=True)
class Some(Local, Search):
    """An annotator of a test."""

    called: ClassVar[str] = "some"

    def __post_init__(self) -> None:
        Search.__post_init__(self)
        Local.__post_init__(self)


@pytest.fixture(scope="module")
def llava_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(scope="module")
def adapter_folder(tmp_path_factory: pytest.TempPathFactory, llava_folder: Path) -> Path:
    return tiny.save_adapter(
        tmp_path_factory.mktemp("adapter"), llava_folder, "LlavaForConditionalGeneration", ["q_proj", "v_proj"]
    )


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return scene_rows(tmp_path_factory.mktemp("scenes"), 6)


def settings(model: Path, **given: Any) -> ImageText:
    return ImageText(**{"model": str(model), "max_tokens": 12, **given})


# -- how many at once -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("free", "one", "fits"),
    [
        (10_000, 1_000, 8),  # 80 % of what is free
        (10_000, 1_001, 7),
        (10_000, 9_000, 1),  # one is tried in any case; running out of memory is a row's error then
        (0, 1_000, 1),
        (80 * 2**30, 2**20, MOST),
        (80 * 2**30, 0, MOST),
    ],
)
def test_a_batch_takes_most_of_what_is_free(free: int, one: int, fits: int) -> None:
    assert fitting(free=free, one=one) == fits


def test_the_batch_size_is_measured_on_gpus_alone() -> None:
    def probe() -> None:
        raise AssertionError("nothing is to be measured here")

    cpu = torch.device("cpu")
    assert choose_batch_size(Some(model="x"), cpu, probe) == FEW
    assert choose_batch_size(Some(model="x", batch_size=3), cpu, probe) == 3
    assert fill(Some, {"model": "x", "batch_size": "3"}).batch_size == 3
    assert fill(Some, {"model": "x", "batch_size": "auto"}).batch_size == "auto"


# -- searching and drawing --------------------------------------------------------------------------------------


def test_a_search_is_drawn_from_its_second_try_on() -> None:
    greedy, beams, drawn = Some(model="x"), Some(model="x", beams=4), Some(model="x", sample=True, temperature=0.2)
    assert [one.sampling() for one in (greedy, beams, drawn)] == [None, None, {"temperature": 0.2, "top_p": 0.9}]
    assert [one.sampling(2) for one in (greedy, beams)] == [{"temperature": 0.7}] * 2
    assert drawn.sampling(2) == drawn.sampling()
    assert [beams.generation(attempt)["num_beams"] for attempt in (1, 2)] == [4, 1]


def test_what_is_drawn_narrows_as_asked() -> None:
    scores = torch.tensor([[0.4, 0.3, 0.2, 0.08, 0.02]]).log().expand(2000, -1)

    def found(**sampling: float) -> set[int]:
        made = scores
        for processor in drawing({"temperature": 1.0, **sampling}, [f"0/{number}" for number in range(2000)]):
            made = processor(torch.empty(2000, 0, dtype=torch.long), made)
        return set(made.argmax(dim=-1).tolist())

    assert found() == {0, 1, 2, 3, 4}
    assert found(top_k=2) == {0, 1}
    assert found(top_p=0.6) == {0, 1}
    assert found(min_p=0.4) == {0, 1, 2}
    assert found(temperature=0.01) == {0}
    assert drawing(None, [1, 2]) == []


def test_seeds_are_numbers_or_texts() -> None:
    scores = torch.zeros(1, 1000)
    drawn = [int(Draw([seed])(torch.empty(1, 0), scores).argmax()) for seed in (0, 1, 2**63 - 1, "0/a", "0/b")]
    again = [int(Draw([seed])(torch.empty(1, 0), scores).argmax()) for seed in (0, 1, 2**63 - 1, "0/a", "0/b")]
    assert drawn == again
    assert len(set(drawn)) == 5


def test_noise_is_that_of_the_generator_that_is_named() -> None:
    def number(seed: int, place: int) -> int:
        """The number at that place, from 1, of SplitMix64 started at the seed."""
        mask = 2**64 - 1
        bits = (seed + place * 0x9E3779B97F4A7C15) & mask
        bits = (bits ^ bits >> 30) * 0xBF58476D1CE4E5B9 & mask
        bits = (bits ^ bits >> 27) * 0x94D049BB133111EB & mask
        return bits ^ bits >> 31

    draw = Draw([0, 2**63 - 1])
    scores = torch.tensor([[0.0, -torch.inf, 1.0], [2.0, 0.0, -1.0]])
    for step in range(3):
        found = draw(torch.empty(2, 0), scores)
        for row, seed in enumerate(draw.seeds):
            for token in range(3):
                chance = ((number(seed, (step << 32) + token + 1) >> 11) + 0.5) / 2**53
                wanted = float(scores[row, token]) - math.log(-math.log(chance))
                assert float(found[row, token]) == pytest.approx(wanted, rel=1e-5, abs=1e-6)


# -- weights ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantize", "kind"), [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_are_quantised(quantize: Any, kind: str, dtype: Any, llava_folder: Path, rows: list[Row]) -> None:
    session = settings(llava_folder, quantize=quantize, dtype=dtype).load()
    kinds = {type(part).__name__ for part in session.model.modules()}
    assert kind in kinds
    assert session.model.dtype == getattr(torch, dtype)
    assert not any(answer.get("error") for answer in session(iter(rows)))


def test_the_format_is_the_stored_one_unless_another_is_asked(tmp_path: Path, llava_folder: Path) -> None:
    from transformers import LlavaForConditionalGeneration

    for file in llava_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    LlavaForConditionalGeneration.from_pretrained(llava_folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
    assert settings(llava_folder).load().model.dtype == torch.float32
    assert settings(tmp_path).load().model.dtype == torch.bfloat16
    assert settings(tmp_path, dtype="float32").load().model.dtype == torch.float32


def test_an_adapter_is_merged_or_lies_on_top(llava_folder: Path, adapter_folder: Path, rows: list[Row]) -> None:
    plain = settings(llava_folder)
    adapted = ImageText(adapter=str(adapter_folder), max_tokens=12)
    assert adapted.model == str(llava_folder), "the adapter names its base"
    merged, on_top = adapted.load(), dataclasses.replace(adapted, quantize="int8").load()
    assert type(merged.model).__name__ == "LlavaForConditionalGeneration"
    assert type(on_top.model).__name__ == "PeftModel"
    assert words(say(adapted, rows)) != words(say(plain, rows))
    quantised = words({row["key"]: row for row in on_top(iter(rows))})
    assert quantised != words(say(dataclasses.replace(plain, quantize="int8"), rows))


def test_an_adapter_of_another_model_is_refused(tmp_path: Path, adapter_folder: Path) -> None:
    other = tiny.save_qwen2_vl(tmp_path)
    with pytest.raises(CutlineError, match="does not fit"):
        ImageText(model=str(other), adapter=str(adapter_folder)).load()


def test_pickled_weights_are_not_read(tmp_path: Path, llava_folder: Path, adapter_folder: Path) -> None:
    from safetensors.torch import load_file

    def pickled(folder: Path, weights: str, name: str) -> Path:
        made = tmp_path / folder.name
        made.mkdir()
        for file in folder.iterdir():
            if file.name != weights:
                (made / file.name).write_bytes(file.read_bytes())
        torch.save(load_file(folder / weights), made / name)
        return made

    with pytest.raises(CutlineError, match=r"no file named model\.safetensors"):
        settings(pickled(llava_folder, "model.safetensors", "pytorch_model.bin")).load()
    adapter = pickled(adapter_folder, "adapter_model.safetensors", "adapter_model.bin")
    with pytest.raises(CutlineError, match=r"has no adapter_model\.safetensors"):
        ImageText(adapter=str(adapter)).load()


# -- refusals ---------------------------------------------------------------------------------------------------


def test_libraries_that_are_lacking_are_named(
    tmp_path: Path, llava_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CutlineError, match="needs the package flash-attn, which is not installed"):
        settings(llava_folder, attention="flash_attention_2", dtype="bfloat16").load()
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("raise RuntimeError('no libbitsandbytes for this torch')")
    hide(monkeypatch, "bitsandbytes")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CutlineError, match=r"does not work with the torch .* \(no libbitsandbytes for this torch\)"):
        settings(llava_folder, quantize="int8").load()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "none")])
    with pytest.raises(CutlineError, match=r"needs bitsandbytes: pip install 'cutline\[quant\]'"):
        settings(llava_folder, quantize="int8").load()


def hide(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    """Forget that a package was imported."""
    for name in list(sys.modules):
        if name.partition(".")[0] == package:
            monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json", "processor_config.json"])
@pytest.mark.parametrize("spoil", [lambda _: b"", lambda data: data[: len(data) // 2], lambda _: b"[5]"])
def test_files_that_are_cut_short_or_another_kind_are_said_so(
    tmp_path: Path, llava_folder: Path, file: str, spoil: Callable[[bytes], bytes]
) -> None:
    for part in llava_folder.iterdir():
        (tmp_path / part.name).write_bytes(spoil(part.read_bytes()) if part.name == file else part.read_bytes())
    with pytest.raises(CutlineError, match=f"model={tmp_path} is a folder, but cannot be loaded: .* Give a folder"):
        settings(tmp_path).load()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"batch_size": "-1"}, "at least 1"),
        ({"threads": "0"}, "at least 1"),
        ({"top_k": "3"}, "no effect without -o sample=true"),
        ({"repetition_penalty": "inf"}, "more than 0"),
        ({"temperature": "nan", "sample": "true"}, "more than 0"),
        ({"min_tokens": "400"}, "0 to max_tokens"),
        ({"adapter": "/no/such/folder", "model": ""}, "hf download"),
        ({"attention": "flash_attention_2", "dtype": "float32"}, "does not work in float32"),
    ],
    ids=str,
)
def test_bad_values_are_refused(options: dict[str, str], problem: str) -> None:
    with pytest.raises(CutlineError, match=problem):
        fill(Some, {"model": "x", **options})


def test_a_model_is_needed() -> None:
    with pytest.raises(OptionError, match="some needs a model: -o model="):
        Some()


def test_blip_says_what_it_has_not() -> None:
    with pytest.raises(OptionError, match="attention=sdpa is not to be had"):
        Blip(attention="sdpa")
    assert Blip(attention="eager").attention == "eager"


@pytest.mark.parametrize("model", ["./gone", "/nowhere/model", "~/gone", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused_at_once(model: str) -> None:
    with pytest.raises(OptionError, match="no such folder"):
        ImageText(model=model)
