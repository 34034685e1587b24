"""Gopher's, C4's and FineWeb's rules keep prose in each of the eight languages, and drop other text."""

from dataclasses import replace

import pytest
from recipe.filters.test_language import SAID, raw

from polyphi.data import shards
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi_recipe.filters.rules import QualityRulesFilter, Words, judge
from polyphi_recipe.pipeline.documents import document, sample

PROSE = {
    "en": """The harbour wakes before the town does, and its first sounds are those of ropes and gulls.
By six the boats have left, and only the oldest men remain on the quay with their coffee.
They talk of the weather that their fathers knew. None of them believes the forecast!
In summer the visitors come and ask which of the islands can be reached on foot at low tide.
You should never try it without a guide, because the water returns faster than anyone can walk.""",
    "de": """Der Hafen erwacht vor der Stadt, und seine ersten Geräusche sind die von Tauen und Möwen.
Um sechs sind die Boote fort, und nur die ältesten Männer bleiben mit ihrem Kaffee am Kai.
Sie sprechen von dem Wetter, das ihre Väter kannten. Keiner von ihnen glaubt der Vorhersage!
Im Sommer kommen Gäste und fragen, welche der Inseln man bei Ebbe zu Fuß erreicht.
Man sollte es nie ohne Führer versuchen, denn das Wasser kehrt schneller zurück, als man geht.""",
    "zh": """港口比小镇醒得更早，最先传来的是缆绳和海鸥的声音。
六点钟渔船都已出海，只有年纪最大的老人端着咖啡留在码头上。
他们谈论父辈熟悉的天气。没有人相信天气预报！
夏天游客到来，总要问退潮时可以步行走到哪一座岛。
没有向导千万不要尝试，因为潮水回来的速度比人走路还快。""",
    "ja": """港は町よりも早く目を覚まし、最初に聞こえるのは綱とかもめの音である。
六時には舟が出てしまい、年老いた男たちだけがコーヒーを手に岸壁に残る。
彼らは父親たちの知っていた天気について話す。予報を信じる者はいない！
夏になると旅行者がやって来て、引き潮のときに歩いて渡れる島はどれかと尋ねる。
案内人なしで試してはいけない。潮は人が歩くよりも速く戻ってくるからだ。""",
}


@pytest.mark.parametrize("language", PROSE)
def test_prose_is_kept_whole(language: str) -> None:
    assert judge(PROSE[language], language) == ("", PROSE[language])


@pytest.mark.parametrize("language", PROSE)
def test_what_is_not_prose_is_dropped(language: str) -> None:
    prose = PROSE[language]
    assert judge(prose[:30], language)[0] == "gopher_short_doc"
    assert judge(f"{prose}\n\n" * 3, language)[0].startswith("repetition_dup_")
    assert judge(prose.replace("\n", " {}\n", 1), language)[0] == "c4_curly_bracket"
    assert judge(" ".join(str(i * 7919) for i in range(300)), language)[0].startswith("gopher")
    assert judge("\n".join(prose[i : i + 8] for i in range(0, len(prose), 8)), language)[0]


def test_lines_that_c4_leaves_out_are_left_out_of_the_sample() -> None:
    one = raw(f"{PROSE['en']}\nThis page needs Javascript to be shown.", language="en")
    assert QualityRulesFilter().filter(one) is True
    assert sample(one).answer == PROSE["en"]
    assert one.metadata["lineage"] == [{"step": "rules", "broken": "", "lines_left_out": 1}]


def test_conversations_pass_unread() -> None:
    talk = replace(
        shards.document("one", "", "here", "MIT"),
        messages=(Message("user", (Text("2 + 2?"),)), Message("assistant", (Text("4"),))),
    )
    assert QualityRulesFilter().filter(document(talk)) is True


def test_the_reason_says_which_rule() -> None:
    assert QualityRulesFilter().filter(raw("Too short.", language="en")) == (
        False,
        "gopher_short_doc",
    )


def test_other_languages_are_refused() -> None:
    with pytest.raises(ValueError, match="found 'pl'"):
        judge("Ala ma kota.", "pl")


def test_words_need_no_spaces() -> None:
    assert Words().word_tokenize("我用GPU算。Don't stop") == [
        *"我用",
        "GPU",
        *"算。",
        "Don't",
        "stop",
    ]
    assert Words().sent_tokenize(f"{SAID['ja']}{SAID['en']}") == [SAID["ja"], SAID["en"]]
