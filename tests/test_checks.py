"""The checks of one caption: what is found, what is not, and what the policies make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cutline import options, sentences
from cutline.checks import KINDS, Finding, Judged, Policies, judge
from cutline.checks.findings import DETAIL
from cutline.options import OptionError

ASKED = (
    "You are a helpful image captioner.\nDescribe this picture in a few plain sentences. These tags are known to fit "
    "it: 1girl, solo, long_hair, blue_eyes, school_uniform, sitting, bench, cherry_blossoms, smile, looking_at_viewer."
)
KEEP = Policies(**{kind: "keep" for kind in KINDS if kind not in ("empty", "structure")})  # type: ignore[arg-type]


def look(text: str, general: Sequence[str] = (), **given: Any) -> Judged:
    tags = {"general": general, **given.pop("tags", {})}
    return judge(text, policies=given.pop("policies", Policies()), tags=tags, **given)


def kinds(text: str, *general: str, **given: Any) -> list[str]:
    return [finding.kind for finding in look(text, general, policies=KEEP, **given).findings]


# What a text shows by itself

PLAIN = "A girl with long hair sits on a bench. She smiles."

FAULTY: dict[str, list[str]] = {
    "empty": ["", " \n\t", "...", "—", "None", "none.", "N/A", "null", '""', "。", "No caption."],
    "loop": [
        "white, black, " * 38 + "white",
        "A hat. " + "very " * 9 + "big",
        "The sky is blue. The sky is blue. The sky is blue.",
        "A cat. The dog runs far. A tree. The dog runs far. A house. The dog runs far.",
        "A girl stands in the snow, and the snow is white, " + "and the snow is white, " * 3,
        "the girl is wearing a hat and a red scarf " * 3,
        "とても" * 10,
        "彼女は青い帽子をかぶって、" * 4,
        "A girl screams: A" + "a" * 40,
        "a" + "haha" * 30,
        "She waits" + "." * 80,
        "No. " * 8,
        "red hair, blue eyes, red hair, blue eyes, red hair, blue eyes, red hair, blue eyes",
        "It is 1 1 1 1 1 1 1 1 1 1",
        "A girl." + " -" * 40,
        'She says "no" and ' * 5,
        "<loc_1><loc_1><loc_1><loc_1><loc_1><loc_1><loc_1><loc_1><loc_1>",
    ],
    "refusal": [
        "I'm sorry, but I can't help with that.",
        "I’m sorry, I can’t assist with this request.",
        "Sorry, but I cannot describe this image.",
        "I cannot provide a description of this content.",
        "I can't identify people in images, but I can describe what I see.",
        "I'm unable to view the image.",
        "I am not able to help with explicit content.",
        "I can’t see the image you are referring to.",
        "As an AI language model, I do not see pictures.",
        "As an AI, I can't look at that.",
        "As a large language model I have no eyes.",
        "I am sorry, but as an AI I have no eyes.",
        "I'm sorry but the image is inappropriate.",
        "I regret to inform you that I cannot do so.",
        "The image contains explicit content that I can't describe.",
        "Unfortunately, I am unable to describe it.",
        "I apologize, but I can't continue.",
        "My apologies, I cannot do that.",
        "I must decline this request.",
        "I don't feel comfortable describing this.",
        "This request violates our content policy.",
        "It's against my guidelines to describe this.",
        "**I'm sorry, but I can't assist with that.**",
        "It looks like no image was provided.",
        "It seems you haven't uploaded an image.",
        "Please provide an image so that I can describe it.",
        "申し訳ありませんが、この画像を説明することはできません。",
        "抱歉，我无法描述这张图片。",
        "我无法提供对这张图片的描述。",
        "Thank you for sharing, but I can't describe this image.",
        "Hello! I'm sorry, but I can't.",
        "I understand, but I cannot describe this.",
        "This image contains explicit content that I cannot describe.",
        "I'm not going to describe that.",
        "I'd rather not describe this.",
        "I would not be able to describe this.",
        "I'm sorry.",
        "I cannot.",
        "Cannot assist.",
        "Unable to process the image.",
        "Es tut mir leid, aber ich kann das nicht beschreiben.",
        "Lo siento, pero no puedo ayudar con eso.",
        "Je suis désolé, mais je ne peux pas.",
    ],
    "thinking": [
        "<think>A girl, I see.</think>A girl sits on a bench.",
        "<think>It is a girl, and she",
        "It is a girl.</think> A girl sits on a bench.",
        "<THINKING>hm</THINKING> A girl.",
        "[THINK]hm[/THINK]A girl.",
        "◁think▷hm◁/think▷A girl.",
        "<|channel|>analysis<|message|>We see.<|end|><|start|>assistant<|channel|>final<|message|>A girl.<|return|>",
        "<|channel|>analysis<|message|>We see a",
        "Okay, the user wants me to describe the image. It is a girl.",
        "The user is asking for a caption. Let me look.",
        "Hmm, let me think about this picture.",
        "Let's analyze the image step by step.",
        "First, I need to describe the girl.",
        "We need to write a caption of the picture.",
        "Alright, let me look at the image. There is a girl.",
        "好的，用户要求我描述这张图片。首先",
    ],
    "prompt_echo": [
        "Describe this picture in a few plain sentences. A girl sits.",
        "You are a helpful image captioner. A girl sits.",
        "USER: Describe this picture in a few plain sentences. ASSISTANT: A girl.",
        "system\nYou are a helpful image captioner.\nuser\nA girl.",
        "A girl. These tags are known to fit it: 1girl, solo, long_hair, blue_eyes, school_uniform.",
        "1girl, solo, long hair, blue eyes, school uniform, sitting, bench, cherry blossoms, smile, looking at viewer",
    ],
}

INNOCENT = [
    PLAIN,
    # no loops
    "red, blue, red and white stripes",
    "red hair, blue eyes, red shirt, blue skirt, red shoes, blue hat",
    "La la la, la la la, she sings. La la la, la la la.",
    "A very, very, very big hat.",
    "ha ha ha ha",
    "one, two, one, two, one, two, three",
    "On the left is a girl with a red hat. On the right is a girl with a red scarf. Behind them is a girl with a bow.",
    "The man has a beard. The man has a hat. The man is old.",
    "A girl. A dog. A cat. A girl.",
    "ドキドキドキドキと書かれた吹き出しがある。",
    "うおおおおおおおおと叫ぶ少女。",
    "Yes! Yes! Yes!",
    "Wait... what?",
    "----------\nA girl sits on a bench.",
    "A long, long, long time ago. A long, long way to go.",
    'The sign reads "HA HA HA HA HA HA HA HA HA HA".',
    'The speech bubble says "' + "A" * 40 + '!"',
    "背景には「ゴゴゴゴゴゴゴゴゴゴゴゴゴゴゴゴゴゴゴゴ」という効果音。",
    'The signs read "A" and "B" and "C" and "D" and "E" and "F" and "G" and "H" and "I" and "J".',
    "row, row, row your boat, row, row, row your boat",
    # no refusals
    '"I cannot" says the sign.',
    "I cannot help but notice the girl's dress.",
    "I can't identify the exact breed, but it is a small brown dog on grass.",
    "I'm not able to make out the text, but a girl stands by a sign.",
    "Unable to open the door, a girl waits in the rain.",
    "“I'm sorry, but I can't help with that” is written on a shirt.",
    "「申し訳ありませんができません」と書かれた看板。",
    "I cannot see any text in the image, but a girl sits on a bench.",
    "I can't make out the writing. A girl sits on a bench.",
    'A girl holds a sign: "I can\'t help you".',
    "A woman says: I'm sorry, but I can't help with that.",
    "As an artist, she wears a smock.",
    "As an AI-generated image, it has a smooth style.",
    "Sorry-looking dog in the rain.",
    "I can see a girl on a bench.",
    "I see no people here, but a cat.",
    "Unfortunately for the cat, the dog is awake.",
    "No image on the wall is straight.",
    "I love this: a cat on a mat.",
    "This content creator sits before a screen.",
    "An assistant, unable to lift the box, kneels.",
    # no thoughts
    "A girl is thinking. A thought bubble is above her.",
    'A shirt with "<think>" on it.',
    "The user interface of an old computer fills the screen.",
    "Let me out, begs the dog behind the door.",
    "Okay sign made with one hand.",
    "So many birds fly over the lake.",
    "First light over the mountains.",
    "We see a girl on a bench.",
    "The user's avatar is a cat.",
    # no echoes
    "This picture shows, in a few plain colours, a helpful dog.",
    "A girl with long hair and blue eyes, in school uniform, sitting on a bench beneath cherry blossoms.",
    # not empty
    "7",
    "女の子。",
    "None of the cats looks up.",
    "N",
    "Dr. No smiles.",
]


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, texts in FAULTY.items() for text in texts])
def test_what_is_faulty_is_found(kind: str, text: str) -> None:
    assert kind in kinds(text, asked=ASKED)


@pytest.mark.parametrize("text", INNOCENT)
def test_what_is_innocent_is_left_alone(text: str) -> None:
    judged = look(text, asked=ASKED)
    assert judged == Judged(text, "good", None, (), None, False)


def test_the_tables_are_long_enough() -> None:
    assert sum(map(len, FAULTY.values())) >= 60
    assert len(INNOCENT) >= 45


# What the tags say

AGAINST: list[tuple[str, str, list[str]]] = [
    ("count", "Two girls sit on a bench.", ["1girl", "solo"]),
    ("count", "A boy sits on a bench.", ["1girl", "solo"]),
    ("count", "A girl and a young man.", ["1girl", "long_hair"]),
    ("count", "Three tall, blonde women stand.", ["2girls"]),
    ("count", "A girl sits. Another girl stands behind her.", ["1girl", "solo"]),
    ("count", "Several people walk by.", ["1boy", "solo"]),
    ("count", "A woman in the street.", ["no_humans", "scenery"]),
    ("count", "A man. A group of four people.", ["2boys"]),
    ("count", "A street. No people are visible.", ["1girl", "street"]),
    ("count", "The scene is devoid of people.", ["1girl", "street"]),
    ("count", "A girl beside a male with a hat.", ["1girl", "solo"]),
    ("text", "A girl. It does not feature any text.", ["1girl", "english_text"]),
    ("watermark", "There isn't a watermark.", ["1girl", "watermark"]),
    ("watermark", "A girl with no hat, but a watermark is in the corner.", ["1girl", "solo"]),
    ("watermark", "A girl. There is a watermark in the corner.", ["1girl", "solo"]),
    ("watermark", "A girl. The artist's signature is at the bottom.", ["1girl", "solo"]),
    ("watermark", "A girl. On the left: www.example.com", ["1girl", "solo"]),
    ("watermark", "A girl, with no watermark.", ["1girl", "watermark"]),
    ("text", 'A sign that reads "STOP".', ["1girl", "street"]),
    ("text", "A girl with a speech bubble.", ["1girl", "smile"]),
    ("text", "There is text at the top.", ["1girl", "smile"]),
    ("text", "A girl. There is no text in the image.", ["1girl", "english_text"]),
    ("text", "A girl, without any visible text.", ["1girl", "speech_bubble"]),
]

FITTING: list[tuple[str, list[str]]] = [
    ("Two girls sit on a bench.", ["2girls"]),
    ("Two girls sit on a bench.", ["3girls"]),
    ("Two girls sit on a bench.", ["multiple_girls", "6+girls"]),
    ("Two girls sit on a bench.", ["bench"]),
    ("A boy and a girl.", ["1girl", "1boy"]),
    ("A girl with two swords, and a cat.", ["1girl", "solo"]),
    ("A girl with two cats and girl friends' letters.", ["1girl", "solo"]),
    ("A statue of a man.", ["no_humans", "statue"]),
    ("A girl looks at a painting of a boy.", ["1girl", "solo"]),
    ("A girl in a boy's shirt.", ["1girl", "solo"]),
    ("A woman-like shape.", ["no_humans"]),
    ("A girl in a man's coat, a doll like a boy.", ["1girl", "solo"]),
    ("A boyish girl.", ["1girl", "solo"]),
    ('The title "Two Girls" in red.', ["1girl", "solo", "copyright_name"]),
    ("A boy, or a girl dressed as a boy.", ["1girl", "solo", "crossdressing"]),
    ("A girl seen from three sides; two girls, one says.", ["1girl", "multiple_views"]),
    ("No people in the background, a girl in front.", ["1girl", "solo"]),
    ("A street without people.", ["no_humans"]),
    ("Three people, two girls and a boy.", ["2girls", "1boy"]),
    ("A male lion beside a female lion.", ["no_humans", "lion"]),
    ("A girl sits next to a male dog.", ["1girl", "solo", "dog"]),
    ("Two Chinese characters are written on her shirt.", ["1girl", "solo", "chinese_text"]),
    ("A girl and several people behind her.", ["1girl", "solo_focus"]),
    ("No people are visible except the girl.", ["1girl", "solo"]),
    ("The street behind her has no people.", ["1girl", "solo"]),
    ("There isn't a watermark.", ["1girl", "solo"]),
    ("There aren't any watermarks, signatures or text.", ["1girl", "solo"]),
    ("I do not see any watermark or text.", ["1girl", "solo"]),
    ("A watermark is not present.", ["1girl", "solo"]),
    ("No text, speech bubbles, or logos are present.", ["1girl", "solo"]),
    ("The image doesn't include any readable text.", ["1girl", "solo"]),
    ('A painting titled "Dawn".', ["no_humans", "scenery"]),
    ("There is a watermark.", ["1girl", "watermark"]),
    ("A signature is in the corner.", ["1girl", "artist_name"]),
    ("Her signature twin tails.", ["1girl", "twintails"]),
    ("The artist's web address: www.example.com.", ["web_address"]),
    ("There is no watermark, and no signature.", ["1girl", "solo"]),
    ("A watermark-free picture.", ["1girl"]),
    ('A sign that reads "STOP".', ["1girl", "sign"]),
    ('She says "hello".', ["1girl", "speech_bubble"]),
    ("There is no text.", ["1girl", "smile"]),
    ("There is no other text in the image.", ["1girl", "english_text"]),
    ("There is neither text nor a watermark.", ["1girl", "smile"]),
    ("There are no visible watermarks or text.", ["1girl", "smile"]),
    ("A girl texts on her phone.", ["1girl", "phone"]),
    ("There is a watermark, and text at the top.", []),
]


@pytest.mark.parametrize(("kind", "text", "tags"), AGAINST)
def test_claims_against_the_tags_are_found(kind: str, text: str, tags: list[str]) -> None:
    judged = look(text, tags)
    assert [finding.kind for finding in judged.findings] == [kind]
    assert (judged.verdict, judged.text) == ("good", text)  # by default it is only noted


@pytest.mark.parametrize(("text", "tags"), FITTING)
def test_claims_that_fit_the_tags_are_not(text: str, tags: list[str]) -> None:
    assert kinds(text, *tags) == []


def test_a_list_of_characters_denies_nothing() -> None:
    judged = look("A girl with a watermark, two boys, and text at the top.", tags={"character": ["hatsune_miku"]})
    assert judged.findings == ()
    assert judged.coverage == 0.0


@pytest.mark.parametrize(
    ("text", "tags", "share"),
    [
        (PLAIN, ["1girl", "long_hair", "bench", "smile"], 1.0),
        (PLAIN, ["1girl", "long_hair", "blue_eyes", "umbrella"], 0.5),
        ("Her hair is long and blue.", ["long_hair", "blue_hair"], 1.0),
        (
            "A red ribbon is in her very long hair, and her dress is blue as the far sea.",
            ["red_dress", "red_ribbon"],
            0.5,
        ),
        ("A woman, seated, gazes at the camera.", ["1girl", "sitting", "looking_at_viewer"], 1.0),
        ("She wears dresses and stockings.", ["dress", "stocking", "wearing"], 1.0),
        ("Saber stands.", ["saber_(fate)", "standing", "solo"], 1.0),
        ("Two men with grey beards.", ["2boys", "beard", "gray_beard"], 1.0),
        ("A cat.", ["catalog", "car"], 0.0),
        ("A face: ^_^", ["^_^", "face"], 0.5),
        ("A cat.", ["solo", "no_humans"], None),
        ("A cat.", [], None),
    ],
)
def test_coverage_is_the_share_of_tags_told(text: str, tags: list[str], share: float | None) -> None:
    assert look(text, tags).coverage == share


def test_too_little_coverage_is_a_finding() -> None:
    tags = ["1girl", "long_hair", "umbrella", "blue_eyes"]
    judged = look(PLAIN, tags, policies=Policies(least_coverage=0.75, coverage="again"))
    assert (judged.verdict, judged.reason, judged.again) == ("rejected", "coverage", True)
    assert judged.findings == (
        Finding("coverage", "50% of the tags are told, less than 75%; not: umbrella, blue eyes"),
    )
    assert look(PLAIN, tags, policies=Policies(least_coverage=0.5, coverage="again")).verdict == "good"


def test_unsorted_tags_and_characters_are_told_too() -> None:
    tags = {"unsorted": ["bench"], "character": ["hatsune_miku"], "artist": ["nobody"], "meta": ["highres"]}
    assert judge("Hatsune Miku on a bench.", policies=Policies(), tags=tags).coverage == 1.0


# What is done about it


@pytest.mark.parametrize(
    ("text", "kept", "reason"),
    [
        ("<think>Hm.</think>A girl sits. She", "A girl sits. She", "thinking"),
        ("<think>A</think> One. <think>B</think>Two.", "One. Two.", "thinking"),
        ("<|channel|>analysis<|message|>Hm.<|end|><|channel|>final<|message|>A girl.<|return|>", "A girl.", "thinking"),
    ],
)
def test_thoughts_are_left_out(text: str, kept: str, reason: str) -> None:
    judged = look(text)
    assert (judged.text, judged.verdict, judged.reason) == (kept, "repaired", reason)


def test_nothing_but_thoughts_is_empty() -> None:
    for text in ("<think>Hm.</think>", "<think>Hm", "A girl. <think>Hm", "Okay, the user wants me to describe it."):
        judged = look(text)
        assert (judged.text, judged.verdict, judged.reason, judged.again) == ("", "rejected", "thinking, empty", True)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("A girl sits. She wears a ha", "A girl sits."),
        ("A girl sits.", "A girl sits."),
        ("Dr. Smith is 1.8 m tall. He meets Mr.", "Dr. Smith is 1.8 m tall."),
        ('She says "No." Then she le', 'She says "No."'),
        ('A girl. She says "No. I will', "A girl."),
        ("A girl! Really? She", "A girl! Really?"),
        ("女の子が座っている。雪が降", "女の子が座っている。"),
        ("彼女は「はい。」と言った。次", "彼女は「はい。」と言った。"),
        ("A girl, e.g. Miku. She is 1.", "A girl, e.g. Miku."),
        ("It costs 3.5 or so. Not", "It costs 3.5 or so."),
        ("**A girl sits.** She", "**A girl sits.**"),
        ("A girl waits... then she le. So", "A girl waits... then she le."),
        ("J. R. Smith sits. He", "J. R. Smith sits."),
    ],
)
def test_a_cut_caption_goes_back_to_its_last_whole_sentence(text: str, kept: str) -> None:
    judged = look(text, finish_reason="length")
    assert (judged.text, judged.verdict, judged.reason) == (kept, "repaired", "cut")
    assert look(text, finish_reason="stop").verdict == "good"
    assert look(text).verdict == "good"  # where nobody says that it was cut, it was not


def test_a_cut_caption_without_a_whole_sentence_is_rejected() -> None:
    judged = look("A girl who sits on", finish_reason="length")
    assert (judged.text, judged.verdict, judged.reason, judged.again) == ("", "rejected", "cut", False)
    assert look("A girl, red hair", finish_reason="length", whole=True).text == "A girl, red hair"


TRIM = Policies(loop="trim", refusal="trim", prompt_echo="trim", count="trim", watermark="trim", text="trim")


@pytest.mark.parametrize(
    ("text", "kept", "kind"),
    [
        ("A cat sits. The dog runs far. The dog runs far. The dog runs far.", "A cat sits. The dog runs far.", "loop"),
        ("A cat sits. It is white, black, " + "white, black, " * 20, "A cat sits.", "loop"),
        ("A cat sits. Yes. A cat sits. No. A cat sits. Oh. A cat sits.", "A cat sits. Yes.", "loop"),
        ("女の子。" + "とても" * 30, "女の子。", "loop"),
        ("I'm sorry, but I can't name people. A girl sits on a bench.", "A girl sits on a bench.", "refusal"),
        ("Describe this picture in a few plain sentences. A girl sits.", "A girl sits.", "prompt_echo"),
        ("A girl sits. Two boys stand. A dog.", "A girl sits. A dog.", "count"),
        ("A girl sits. There is a watermark.", "A girl sits.", "watermark"),
        ('A girl sits. A sign reads "No. Go." A dog.', "A girl sits. A dog.", "text"),
    ],
)
def test_trimming_leaves_the_faulty_part_out(text: str, kept: str, kind: str) -> None:
    judged = look(text, ["1girl", "solo"], policies=TRIM, asked=ASKED)
    assert (judged.text, judged.verdict, judged.reason, judged.again) == (kept, "repaired", kind, False)
    assert look(kept, ["1girl", "solo"], policies=TRIM, asked=ASKED).findings == ()


def test_trimming_that_leaves_nothing_rejects() -> None:
    for text in ("white, black, " * 30, "I'm sorry, but I can't help with that.", "There is a watermark."):
        judged = look(text, ["1girl"], policies=TRIM)
        assert (judged.text, judged.verdict, judged.again) == ("", "rejected", False)


@pytest.mark.parametrize(
    ("policy", "verdict", "reason", "again"),
    [("again", "rejected", "loop", True), ("reject", "rejected", "loop", False), ("keep", "good", None, False)],
)
def test_a_policy_says_what_is_done(policy: Any, verdict: str, reason: str | None, again: bool) -> None:
    text = "The sky is blue. " * 5
    judged = look(text, policies=Policies(loop=policy))
    assert (judged.verdict, judged.reason, judged.again) == (verdict, reason, again)
    assert judged.text == (text.strip() if policy == "keep" else "")
    assert [finding.kind for finding in judged.findings] == ["loop"]


def test_what_is_rejected_is_not_held_against_the_tags() -> None:
    judged = look("Two boys. " + "The sky is blue. " * 5, ["1girl", "solo"])
    assert [finding.kind for finding in judged.findings] == ["loop"]
    assert judged.coverage is None


@pytest.mark.parametrize(
    "values",
    [
        *({"loop": "often"}, {"loops": "keep"}, {"empty": "keep"}, {"empty": "trim"}, {"coverage": "trim"}),
        *({"tries": "0"}, {"same_text": "trim"}, {"least_coverage": "1.5"}, {"least_coverage": "-1"}),
        *({"structure": "keep"}, {"structure": "trim"}),
    ],
)
def test_policies_that_cannot_be_are_refused(values: dict[str, str]) -> None:
    with pytest.raises(OptionError, match=next(iter(values))):
        options.fill(Policies, values, name="[checks]")


def test_every_kind_has_a_policy() -> None:
    for kind in KINDS:
        assert Policies().of(kind) in ("again", "trim", "reject", "keep")


def test_a_detail_is_short() -> None:
    judged = look(
        "A girl. I'm " + "x" * 400,
        ["a" * 50 + str(number) for number in range(50)],
        policies=Policies(least_coverage=1),
    )
    assert all(len(finding.detail) <= DETAIL for finding in judged.findings)
    assert judged.findings


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([*INNOCENT, *(text for texts in FAULTY.values() for text in texts)]), max_size=4),
    st.sampled_from(["stop", "length", None]),
    st.sampled_from([(), ("1girl", "solo"), ("no_humans", "english_text")]),
)
def test_what_is_judged_once_is_good(texts: list[str], finish_reason: str | None, tags: Sequence[str]) -> None:
    judged = look(" ".join(texts), tags, finish_reason=finish_reason, asked=ASKED, policies=TRIM)
    assert (judged.text == "") == (judged.verdict == "rejected")
    if judged.verdict == "repaired":
        assert look(judged.text, tags, asked=ASKED, policies=TRIM).findings == ()
    assert look(" ".join(texts), tags, finish_reason=finish_reason, asked=ASKED, policies=TRIM) == judged


@settings(max_examples=200, deadline=None)
@given(st.text() | st.text('ab 。.“”"<think>/', max_size=80), st.lists(st.text()), st.text())
def test_nothing_makes_it_crash(text: str, tags: list[str], asked: str) -> None:
    judged = judge(text, policies=TRIM, finish_reason="length", asked=asked, tags={"general": tags, "meta": tags})
    assert (judged.text == "") == (judged.verdict == "rejected")
    assert sentences.whole(text) in text


@pytest.mark.parametrize("unit", ["<think>", "。", '"a" ', "a girl ", "no text, ", "I'm sorry ", "</think>", "A. "])
def test_long_texts_take_no_square_of_their_length(unit: str) -> None:
    judge(unit * 20_000, policies=Policies(loop="keep"), asked=unit * 100, tags={"general": ["1girl", "solo"]})


@pytest.mark.parametrize(
    "text",
    [
        " ".join("abcd"[number * number * 7919 % 10007 % 4] for number in range(25_000)),
        "".join("女子の青"[number * number * 7919 % 10007 % 4] for number in range(50_000)),
        "<think>" * 7_000,
        "no text, a girl, or two tall men " * 1_500,
        '"' + "A girl. " * 6_000,
    ],
)
def test_long_texts_end_long_before_the_tests_time_limit(text: str) -> None:
    judge(text, policies=TRIM, finish_reason="length", asked=ASKED, tags={"general": ["1girl", "solo", "text"]})
