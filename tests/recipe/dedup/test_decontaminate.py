"""Evaluation items are found where they were planted, and only there."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from PIL import Image as Picture

from experiments.curation import leaked_items as leaks
from polyphi.data import shards
from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Audio, Image
from polyphi_recipe.dedup.decontaminate import Decontaminate, Index, items
from polyphi_recipe.dedup.phash import (
    Box,
    align,
    boxes,
    crop_hashes,
    distance,
    image_hash,
    thumbnail,
)
from polyphi_recipe.dedup.text_index import TextIndex
from polyphi_recipe.pipeline.documents import document, sample
from polyphi_recipe.synthetic.images import png
from tests.fixtures.variants import few
from tests.recipe.dedup.dedup_run import Take, start, text

QUESTION = (
    "Natalia sold clips to forty-eight of her friends in April, and then she sold half as many "
    "clips in May. How many clips did Natalia sell altogether in April and May?"
)


def sample_of(id: str, *parts: Any, answer: str = "") -> Sample:
    messages = (Message.user(*parts), *([Message.assistant(answer)] if answer else []))
    return Sample(id, messages, "test", "MIT")


def index(*samples: Sample) -> Index:
    return Index.of({"set": samples})


def matching_items(known: Index, sample: Sample) -> list[str]:
    return [f.item for f in known.find(document(sample))]


# -- texts


def test_word_for_word() -> None:
    known = index(sample_of("q", QUESTION, answer="72"))
    page = f"Some exercises follow. {QUESTION.upper().replace(',', ' ')} The answer is at the end."
    (finding,) = known.find(document(sample_of("page", page)))
    assert (finding.set, finding.item, finding.modality, finding.how) == (
        "set",
        "q",
        "text",
        "quoted",
    )
    assert finding.evidence["span"].startswith(
        "natalia sold clips to forty eight of her friends in"
    )
    thirteen = " ".join(QUESTION.split()[3:15])  # "forty-eight" is two words
    assert matching_items(known, sample_of("part", f"They said {thirteen} and no more.")) == ["q"]
    assert not matching_items(
        known, sample_of("less", f"They said {thirteen.rpartition(' ')[0]} and no more.")
    )


def test_short_items() -> None:
    known = index(
        sample_of("ten", "Which river flows through the old town of Prague?", answer="Vltava"),
        sample_of("six", "What is 12 + 30?", answer="42"),
    )
    assert matching_items(
        known, sample_of("a", "Tell me: which river flows through the old town of Prague? Vltava!")
    ) == ["ten"]
    assert not matching_items(
        known, sample_of("b", "Which river flows through the old town? The Moldau.")
    )
    assert matching_items(known, sample_of("c", "what is 12 + 30", answer="42.")) == ["six"]
    assert not matching_items(
        known, sample_of("d", "Now, what is 12 + 30? It is 42.")
    )  # too short to be a match
    assert not matching_items(known, sample_of("e", "What is 12 + 31?", answer="43"))


def test_writing_without_spaces() -> None:
    zh = "小明在星期天上午去图书馆借了三本关于宇宙的书，下午又还了一本，请问他现在手里还有几本书没有归还？"
    ja = "太郎さんは日曜日の午前中に図書館で宇宙についての本を三冊借りて、午後に一冊返しました。今何冊持っていますか。"
    known = index(sample_of("zh", zh), sample_of("ja", ja))
    assert matching_items(known, sample_of("a", f"练习题：{zh[2:40]}。")) == ["zh"]
    assert matching_items(known, sample_of("b", f"問題。{ja}答えは二冊です。")) == ["ja"]
    assert not matching_items(known, sample_of("c", zh[2:20]))
    assert not matching_items(
        known,
        sample_of(
            "d",
            "小红在星期六晚上去电影院看了两部关于海洋的电影，回家以后写了一篇很长的日记，然后睡觉。",
        ),
    )
    changed = zh.replace("请问他现在手里", "那么现在他还").replace("上午", "早上")
    assert matching_items(known, sample_of("e", changed)) == ["zh"]


def test_templates_speak_for_none() -> None:
    words = (
        "red",
        "blue",
        "green",
        "pink",
        "black",
        "white",
        "brown",
        "grey",
        "gold",
        "teal",
        "lime",
        "navy",
    )
    sample = "How many {} circles are there in the large picture on the wall of the little room upstairs?"
    known = index(*(sample_of(w, sample.format(w)) for w in words))
    assert not matching_items(known, sample_of("new", sample.format("violet")))
    assert matching_items(known, sample_of("old", sample.format("teal"))) == ["teal"]


def test_questions_about_media_are_questions_like_any_other() -> None:
    picture = png(Picture.effect_noise((64, 64), 80))
    other = png(Picture.effect_noise((64, 64), 80))
    question = (
        "How many of the round things in the picture are larger than the square one on the left?"
    )
    known = index(sample_of("seen", Image(picture), question))
    assert not matching_items(known, sample_of("other", Image(other), question))
    assert matching_items(known, sample_of("same", Image(picture), "Describe it.")) == ["seen"]


def test_a_conversation_is_known_by_its_answers() -> None:
    """One with questions or a greeting that many rows have doesn't make them known."""
    opening = ("Hello, can you help me?", "Hi! Of course I can. What may I do for you today?")
    questions = {
        "river": "Which river flows through Prague?",
        "lake": "How deep is Lake Baikal at its deepest point, and why?",
    }
    answers = {
        "river": "The Vltava, which rises in the Bohemian Forest and flows into the Elbe near Melnik.",
        "lake": "About 1,642 metres: a rift that still widens by a few millimetres every single year.",
    }

    def talk(topic: str, *media: Any) -> Sample:
        turns = [*opening, questions[topic], answers[topic]]
        roles = [Message.user, Message.assistant] * 2
        messages = [role(text) for role, text in zip(roles, turns, strict=True)]
        return Sample(topic, (Message.user(*media, turns[0]), *messages[1:]), "test", "MIT")

    known = index(talk("river"))
    assert not matching_items(known, talk("lake"))
    assert matching_items(known, talk("river")) == ["river"]
    alone = sample_of("alone", questions["river"], answer=answers["river"])
    assert matching_items(known, alone) == ["river"]

    greeting = Message.user("Hi."), Message.assistant("Hello!")
    short = (*greeting, Message.user("Thanks!"), Message.assistant("Bye."))
    known = index(Sample("short", short, "test", "MIT"))
    assert not matching_items(known, Sample("other", greeting, "test", "MIT"))
    assert matching_items(known, Sample("same", short, "test", "MIT")) == ["short"]

    describe = "Describe the picture in detail, and name all objects that you can see in it."
    pictures = [Image(png(Picture.effect_noise((64, 64), sigma))) for sigma in (60, 70)]
    known = index(sample_of("seen", pictures[0], describe, answer=answers["river"]))
    assert not matching_items(known, sample_of("other", pictures[1], describe, answer="A cat."))
    same_answer = sample_of("same", pictures[1], "What is it?", answer=answers["river"])
    assert matching_items(known, same_answer) == ["seen"]


def test_in_other_words() -> None:
    sentences = leaks.manual()
    random.Random(0).shuffle(sentences)
    known = TextIndex.of([([(s, "")], False) for s in sentences[:40]])
    rng = random.Random(1)
    rates = {}
    for name in (
        "15 % of the words replaced",
        "clauses reordered",
        "a word more after every sixth",
    ):
        copies = [leaks.TEXT_CHANGES[name](s, rng) for s in sentences[:40]]
        pages = [" ".join([*sentences[50:53], c, *sentences[60:63]]) for c in copies]
        rates[name] = sum(i in {m.item for m in known.find(p)} for i, p in enumerate(pages)) / 40
    assert min(rates.values()) >= 0.85, rates
    # Only sentences that the manual repeats in nearly the same words are flagged.
    flagged = sum(bool(known.find(s)) for s in sentences[40:]) / len(sentences[40:])
    assert flagged < 0.02
    problems = [leaks.problem(leaks.PROBLEMS[i % 4], rng) for i in range(100)]
    assert not any(known.find(p) for p in problems)


# -- pictures


def test_a_crop_has_the_hash_of_its_box() -> None:
    (tile,) = leaks.photographs(random.Random(0), 1)
    thumb = thumbnail(tile.resize((512, 512)))
    hashes = crop_hashes(thumb)
    assert hashes[0] == image_hash(thumb) and len(boxes()) == len(hashes) == 2401
    for number in (7, 500, 2400):
        box = boxes()[number]
        edges = [round(512 * e) for e in box]
        part = thumbnail(tile.resize((512, 512)).crop(tuple(edges)))
        assert (
            distance(hashes[number], image_hash(part)) <= 6 < distance(hashes[0], image_hash(part))
        )
        score, region = align(part, thumb, Box(*(e + 0.02 for e in box)))
        assert score > 0.98 and np.allclose(region, box, atol=0.015)


Pictures = tuple[list[Picture.Image], Index, tuple[Any, ...]]


@pytest.fixture(scope="module")
def pictures() -> Pictures:
    """12 photographs and 12 drawings, their index, and the state of the generator that drew them."""
    rng = random.Random(0)
    drawn = leaks.photographs(rng, 12) + [leaks.drawn(rng, i) for i in range(12)]
    known = index(*(sample_of(str(i), Image(png(p))) for i, p in enumerate(drawn)))
    return drawn, known, rng.getstate()


@pytest.mark.parametrize(
    ("change", "least"),
    few(
        [
            ("half the size", 1.0),
            ("cropped by 10-20 % a side", 0.85),
            ("JPEG 30", 0.9),
            ("darker and paler", 1.0),
            ("cropped by 10 % a side", 0.9),
            ("cropped by 20-30 % a side", 0.8),
        ],
        2,
    ),
)
def test_copies_of_pictures(pictures: Pictures, change: str, least: float) -> None:
    originals, known, state = pictures
    rng = random.Random()
    rng.setstate(state)
    copies = [leaks.PICTURE_CHANGES[change](p, rng) for p in originals]
    matches = [matching_items(known, sample_of("copy", Image(png(c)))) for c in copies]
    assert sum(f == [str(i)] for i, f in enumerate(matches)) / len(originals) >= least
    assert all(f in ([], [str(i)]) for i, f in enumerate(matches))


def test_other_pictures_are_left_alone() -> None:
    rng = random.Random(0)
    tiles = leaks.photographs(rng, 24)
    pictures = tiles[:12] + [leaks.drawn(rng, i) for i in range(12)]
    known = index(*(sample_of(str(i), Image(png(p))) for i, p in enumerate(pictures)))
    others = tiles[12:] + [leaks.drawn(rng, i) for i in range(12)]
    assert not any(matching_items(known, sample_of("other", Image(png(p)))) for p in others)
    empty = png(Picture.new("RGB", (60, 60), (255, 255, 255)))
    assert not matching_items(
        index(sample_of("empty", Image(empty))), sample_of("also", Image(empty))
    )


# -- clips


@pytest.fixture(scope="module")
def sentences() -> list[np.ndarray]:
    """Twenty clips of some four seconds, by each voice in turn."""
    texts = [" ".join(s.split()[:12]) for s in leaks.manual()[:200:10]]
    voices = leaks.voices() or [None]
    return [leaks.read_aloud(s, voices[i % len(voices)]) for i, s in enumerate(texts)]


@pytest.fixture(scope="module")
def known_clips(sentences: list[np.ndarray]) -> Index:
    """The first half of the sentences."""
    return index(*(sample_of(str(i), Audio(leaks.wav(s))) for i, s in enumerate(sentences[:10])))


@pytest.mark.parametrize(
    ("change", "least"),
    few(
        [
            ("later, both ends cut", 0.9),
            ("pitch +1 and noise at 15 dB", 0.7),
            ("a tenth as loud", 1.0),
            ("noise at 10 dB", 1.0),
            ("pitch -2 semitones", 0.7),
            ("pitch +1 semitones", 0.8),
            ("played +2 semitones faster", 0.8),
        ],
        2,
    ),
)
def test_copies_of_clips(
    sentences: list[np.ndarray], known_clips: Index, change: str, least: float
) -> None:
    rng = random.Random(0)
    copies = [leaks.CLIP_CHANGES[change](s, rng) for s in sentences[:10]]
    matches = [matching_items(known_clips, sample_of("copy", Audio(leaks.wav(c)))) for c in copies]
    assert sum(f == [str(i)] for i, f in enumerate(matches)) / 10 >= least
    assert all(f in ([], [str(i)]) for i, f in enumerate(matches))


def test_other_clips_of_the_same_voices_are_left_alone(
    sentences: list[np.ndarray], known_clips: Index
) -> None:
    assert not any(
        matching_items(known_clips, sample_of("other", Audio(leaks.wav(s)))) for s in sentences[10:]
    )


def test_clips_of_one_template_and_voice_are_told_apart() -> None:
    """Another number is another clip; the same number, encoded again, is a copy."""
    sentence = "Please go to room {} and wait for the doctor."
    numbers = [14, 40, 7, 83, 115, 62, 29, 50, 90, 333, 12, 76]
    voice = (leaks.voices() or [None])[-1]
    clips = {n: leaks.read_aloud(sentence.format(n), voice) for n in numbers}
    known = index(*(sample_of(str(n), Audio(leaks.wav(clips[n]))) for n in numbers[:6]))

    def matches(clip: np.ndarray) -> list[str]:
        return matching_items(known, sample_of("copy", Audio(leaks.wav(clip))))

    rng = random.Random(0)
    assert all(matches(leaks.ogg(clips[n], rng)) == [str(n)] for n in numbers[:6])
    assert not any(matches(clips[n]) for n in numbers[6:])


def test_the_evidence_names_the_change_of_a_clip(sentences: list[np.ndarray]) -> None:
    known = index(sample_of("clip", Audio(leaks.wav(sentences[0]))))
    higher = leaks.CLIP_CHANGES["played +2 semitones faster"](sentences[0], random.Random(0))
    (finding,) = known.find(document(sample_of("copy", Audio(leaks.wav(higher)))))
    assert finding.evidence["semitones"] == 2.0 and finding.evidence["tempo"] == pytest.approx(
        1.122
    )
    assert finding.modality == "audio" and finding.how == "landmarks" and finding.score > 0.2
    assert 0.84 <= finding.evidence["agreement"] <= 1


# -- the filter


class Read:
    """Documents from memory, as a first step."""

    def __init__(self, samples: list[Sample]) -> None:
        self.samples = samples

    def __call__(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        return map(document, self.samples[rank::world_size])


def test_the_filter_drops_and_keeps_a_ledger(tmp_path: Path) -> None:
    rng = random.Random(0)
    (tile,) = leaks.photographs(rng, 1)
    clip = leaks.read_aloud(
        "the quick brown fox jumps over the lazy dog again", (leaks.voices() or [None])[0]
    )
    shards.write(
        tmp_path / "charts" / "test",
        [sample_of("c1", Image(png(tile)), "What is this?")],
        pipeline="test",
    )
    lines = [{"id": "g1", "question": QUESTION, "answer": "72"}]
    (tmp_path / "gsm.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    sets = {
        "gsm": tmp_path / "gsm.jsonl",
        "charts": tmp_path / "charts" / "test",
        "speech": iter([sample_of("s1", Audio(leaks.wav(clip)), "Transcribe.")]),
    }
    Index.of(sets).save(tmp_path / "known")
    assert not any("pkl" in p.name or "pickle" in p.name for p in (tmp_path / "known").iterdir())
    noisy = leaks.CLIP_CHANGES["noise at 10 dB"](clip, rng)
    training = [
        sample_of("fine", "Name a colour.", answer="Blue."),
        sample_of("quoted", f"Solve this. {QUESTION}", answer="72"),
        sample_of(
            "cropped",
            Image(png(leaks.PICTURE_CHANGES["cropped by 10 % a side"](tile, rng))),
            "And?",
        ),
        sample_of("noisy", Audio(leaks.wav(noisy)), "What do you hear?"),
        sample_of("broken", Image(b"\x89PNG\r\n\x1a\nnothing"), "What is this?"),
    ]
    for drop in (True, False):
        documents: list[Document] = []
        step = Decontaminate(tmp_path / "known", tmp_path / "ledger", drop=drop)
        for _ in range(2):  # a repeated task rewrites its ledger
            LocalPipelineExecutor(
                [Read(training), step, Take(documents)],
                2,
                1,
                skip_completed=False,
                logging_dir=str(tmp_path / "logs"),
            ).run()
        ledger = [
            json.loads(line)
            for path in sorted((tmp_path / "ledger").glob("*.jsonl"))
            for line in path.read_text().splitlines()
        ]
        rows = {
            (entry["sample"], entry["set"], entry["item"], entry["modality"]) for entry in ledger
        }
        assert rows == {
            ("quoted", "gsm", "g1", "text"),
            ("cropped", "charts", "c1", "image"),
            ("noisy", "speech", "s1", "audio"),
        }
        assert len(ledger) == 3 and all(entry["evidence"] for entry in ledger)
        names = {d.id for d in documents}
        assert names == ({"fine", "broken"} if drop else {s.id for s in training})
        lineage = {d.id: d.metadata["lineage"] for d in documents}
        assert "damaged" in lineage["broken"][0]["unreadable"]
        assert drop or lineage["quoted"][0]["item"] == "g1"


def test_a_long_document_loses_only_the_passages_with_items(tmp_path: Path) -> None:
    lines = [{"id": "g1", "question": QUESTION, "answer": "72"}]
    (tmp_path / "gsm.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Index.of({"gsm": tmp_path / "gsm.jsonl"}).save(tmp_path / "known")
    training = [
        shards.document(id, text, "polyphi", "MIT")
        for id, text in (
            ("long", f"The first page.\n\nSolve this. {QUESTION}\n\nThe last page."),
            ("fine", "One page.\n\nAnother one."),
            ("known", QUESTION),
        )
    ]
    documents: list[Document] = []
    step = Decontaminate(tmp_path / "known", tmp_path / "ledger", passages=True)
    LocalPipelineExecutor(
        [Read(training), step, Take(documents)], 1, 1, logging_dir=str(tmp_path / "logs")
    ).run()
    assert {d.id: sample(d).answer for d in documents} == {
        "long": "The first page.\n\nThe last page.",
        "fine": "One page.\n\nAnother one.",
    }
    assert [d.metadata["lineage"][0]["removed"] for d in documents] == [1, 0]
    ledger = (tmp_path / "ledger/00000.jsonl").read_text().splitlines()
    assert [json.loads(line)["sample"] for line in ledger] == ["long", "known"]


def test_what_is_no_evaluation_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.jsonl"):
        list(items(tmp_path / "nothing.jsonl"))
    (tmp_path / "a.jsonl").write_text('{"text": "good"}\n{"prompt": "bad"}\n')
    with pytest.raises(ValueError, match=r"line 2: .*found \['prompt'\]"):
        list(items(tmp_path / "a.jsonl"))
    (tmp_path / "b.jsonl").write_text("not json\n")
    with pytest.raises(ValueError, match="line 1: expected JSON"):
        list(items(tmp_path / "b.jsonl"))
    with pytest.raises(ValueError, match=r"items\.json"):
        Index.load(tmp_path)
    index(sample_of("x", QUESTION)).save(tmp_path / "known")
    (tmp_path / "known" / "clips.bands.npy").unlink()  # as an earlier version saved it
    with pytest.raises(ValueError, match=r"clips\.bands\.npy"):
        Index.load(tmp_path / "known")
    with pytest.raises(ValueError, match="set, item x"):
        index(sample_of("x", Image(b"nothing")))


@pytest.mark.long
def test_memory_stays_flat(tmp_path: Path) -> None:
    """Memory is the same for ten times as many documents (7 MB of text more) with the same index."""
    known = [sample_of(str(n), text(n)) for n in range(5)]
    index(*known).save(tmp_path / "known")
    growth = []
    for rows in (400, 4000):
        status, grown = start(tmp_path / str(rows), rows, "--known", tmp_path / "known")
        assert status == 0
        growth.append(grown)
        ledger = sorted((tmp_path / str(rows) / "ledger").glob("*.jsonl"))
        items_found = {
            json.loads(line)["item"] for p in ledger for line in p.read_text().splitlines()
        }
        assert items_found == {n for n in "01234"}
    assert growth[1] - growth[0] < 4 << 20
