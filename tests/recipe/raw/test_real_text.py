import json
import subprocess
import threading
import zipfile
from collections import Counter
from itertools import islice
from pathlib import Path
from random import Random

import pytest

from polyphi.types.tools import CALL, CALL_END
from polyphi_eval.scorers import refuses, tool_calls
from polyphi_recipe.pipeline.corpus import Work
from polyphi_recipe.raw import packages, real_text, safety
from polyphi_recipe.synthetic import calls, instructions
from polyphi_recipe.synthetic.reasoning import FAMILIES, corrupt, draw, draw_problems, verify
from polyphi_recipe.text.lexicon import (
    COLOURS,
    LANGUAGES,
    NOUNS,
    SHAPES,
    digit_words,
    lexicon,
    number_words,
)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Return a `Work` on a machine without network."""
    monkeypatch.setattr(packages, "_fill", _refuse)
    return Work(
        {"train": 20, "test": 10},
        0,
        tmp_path / "cache",
        tmp_path / "data",
        report=lambda line: None,
    )


def _refuse(*_: object) -> None:
    raise packages.Unavailable("no network")


# ------------------------------------------------------------------------------------------------------------- lexicon


def test_number_words_are_what_people_say():
    expected = {
        "en": {13: "thirteen", 42: "forty-two", 90: "ninety"},
        "fr": {21: "vingt et un", 71: "soixante et onze", 80: "quatre-vingts", 81: "quatre-vingt-un"},
        "de": {1: "eins", 16: "sechzehn", 21: "einundzwanzig", 30: "dreißig", 77: "siebenundsiebzig"},
        "it": {21: "ventuno", 28: "ventotto", 33: "trentatré", 90: "novanta"},
        "pt": {16: "dezesseis", 22: "vinte e dois", 100 - 1: "noventa e nove"},
        "es": {16: "dieciséis", 22: "veintidós", 21: "veintiuno", 31: "treinta y uno"},
        "zh": {0: "零", 10: "十", 11: "十一", 20: "二十", 99: "九十九"},
        "ja": {0: "ぜろ", 10: "じゅう", 24: "にじゅうよん", 70: "ななじゅう"},
    }  # fmt: skip
    assert {c: {n: number_words(n, c) for n in table} for c, table in expected.items()} == expected
    for language in LANGUAGES:
        assert len({number_words(n, language) for n in range(100)}) == 100


def test_number_words_refuse_what_they_cannot_say():
    with pytest.raises(ValueError, match="found 100"):
        number_words(100, "en")
    with pytest.raises(ValueError, match="unknown language 'nl'"):
        number_words(1, "nl")
    assert digit_words("403", "fr") == "quatre zéro trois"


def test_lexicon_has_eight_languages_and_japanese_in_kana():
    assert (len(COLOURS), len(SHAPES)) == (8, 6) and len(NOUNS) >= 40
    concepts: dict[str, set[str]] = {}
    for concept, words in lexicon().items():
        assert set(words) == set(LANGUAGES)
        assert all("\u3041" <= c <= "\u30ff" for c in words["ja"]), concept
        for word in words.values():
            concepts.setdefault(word.casefold(), set()).add(concept)
    assert not {word: both for word, both in concepts.items() if len(both) > 1}, (
        "a word with two meanings"
    )


# ------------------------------------------------------------------------------------------------------------- sources


def test_a_missing_source_is_one_line_and_none(tmp_path, monkeypatch):
    monkeypatch.setattr(packages.shutil, "which", lambda name: None)
    messages: list[str] = []
    assert packages.unpack("libreoffice-help-fr", tmp_path, messages.append) is None
    assert packages.unpack("libreoffice-help-fr", tmp_path, messages.append) is None
    assert len(messages) == 1 and messages[0].startswith("skipped libreoffice-help-fr")
    assert not (tmp_path / "libreoffice-help-fr").exists()
    with pytest.raises(ValueError, match="'nothing'"):
        packages.unpack("nothing", tmp_path)


def test_unpacking_is_whole_or_absent_and_done_once(tmp_path, monkeypatch):
    commands: list[list[str]] = []

    def run(command: list[str], folder: Path) -> None:
        commands.append(command)
        with zipfile.ZipFile(folder / "some.whl", "w") as archive:
            archive.writestr("package/data.txt", "real text")

    monkeypatch.setattr(packages, "_run", run)
    monkeypatch.setitem(
        packages.SOURCES,
        "some",
        packages.Package("some", "wheel", "MIT", "somewhere", "data", "1.0"),
    )
    folders: list[Path | None] = []
    threads = [
        threading.Thread(target=lambda: folders.append(packages.unpack("some", tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folders == [tmp_path / "some"] * 4 and len(commands) == 1
    assert (tmp_path / "some/package/data.txt").read_text() == "real text"
    assert json.loads((tmp_path / "some/SOURCE.json").read_text())["licence"] == "MIT"


def test_a_wheel_with_other_content_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(
        packages, "_run", lambda command, folder: (folder / "some.whl").write_bytes(b"other")
    )
    pinned = packages.Package("pinned", "wheel", "MIT", "somewhere", "data", "1.0", "0" * 64)
    monkeypatch.setitem(packages.SOURCES, "pinned", pinned)
    messages: list[str] = []
    assert packages.unpack("pinned", tmp_path, messages.append) is None
    assert (
        "SHA-256" in messages[0]
        and not (tmp_path / "pinned").exists()
        and not (tmp_path / ".pinned.partial").exists()
    )


def test_a_full_disk_is_an_error_not_a_skip(tmp_path, monkeypatch):
    full = subprocess.CompletedProcess([], 2, "", "dpkg-deb: error: No space left on device")
    monkeypatch.setattr(packages.subprocess, "run", lambda *a, **k: full)
    monkeypatch.setattr(packages.shutil, "which", lambda name: name)
    with pytest.raises(OSError, match="no space left"):
        packages.unpack("libreoffice-help-de", tmp_path)


# ---------------------------------------------------------------------------------------------------------------- help


@pytest.fixture
def help_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Work:
    """Return a `Work` with a small synthetic help in two languages, with one untranslated paragraph."""
    page = (
        '<h1 id="hd_id1">{title}</h1><p id="par_id1" class="paragraph">{body} <b>&amp;</b></p>'
        '<p id="par_id2">This paragraph was never translated by anyone.</p><p id="par_id3" class="bascode">Sub Main</p>'
    )
    cache = tmp_path / "cache"
    texts = {
        "en-us": ("Opening a File", "Choose the file that you want to open now"),
        "de": ("Datei öffnen", "Wählen Sie die Datei, die Sie jetzt öffnen wollen"),
    }
    for name, (title, body) in texts.items():
        root = cache / f"libreoffice-help-{name}/usr/share/libreoffice/help/{name}/text"
        for number in range(60):
            (root / "shared").mkdir(parents=True, exist_ok=True)
            html = page.format(title=f"{title} {number}", body=f"{body} {number}")
            (root / f"shared/{number}.html").write_text(html, encoding="utf-8")
        (cache / f"libreoffice-help-{name}/SOURCE.json").write_text("{}")
    monkeypatch.setattr(packages, "_fill", _refuse)
    return Work({"train": 20, "test": 10}, 0, cache, tmp_path / "data", report=lambda line: None)


def test_help_pages_leave_out_untranslated_text_and_code(help_folder):
    page = real_text.help_pages("de", help_folder)["shared/7.html"]
    assert page.title == "Datei öffnen 7"
    assert [t for _, t in page.paragraphs] == [
        page.title,
        "Wählen Sie die Datei, die Sie jetzt öffnen wollen 7 &",
    ]
    assert len(real_text.help_pages("en", help_folder)["shared/7.html"].paragraphs) == 3
    assert real_text.help_pages("fr", help_folder) == {}


def test_pages_are_on_one_side_and_aligned_by_paragraph(help_folder):
    sides = {
        split: {
            path
            for language in ("en", "de")
            for path, _ in real_text.documents(
                language, help_folder, split, Random(0), characters=300
            )
        }
        for split in ("train", "test")
    }
    assert sides["train"] and not sides["train"] & sides["test"]
    pairs = list(real_text.aligned(help_folder, "train", Random(0)))
    assert {(p[1], p[3]) for p in pairs} == {("en", "de"), ("de", "en")}
    for _, source, one, _, other in pairs:
        german = one if source == "de" else other
        assert ("öffnen" in german) and one.split()[-1] == other.split()[-1]


# ------------------------------------------------------------------------------------------------------------ families


def test_instructions_keep_train_and_test_apart(work):
    train_questions = {
        ask.question for ask in islice(instructions.training(work, Random(1)), 8_000)
    }
    test_rows = list(instructions.testing(work, Random(2), 10 * len(instructions.SHARES)))
    assert not [ask for ask in test_rows if ask.question in train_questions]
    tasks = Counter(ask.task for ask in test_rows)
    assert set(tasks) == set(instructions.SHARES) and len(set(tasks.values())) == 1


def test_test_answers_are_balanced(work):
    test_rows = list(instructions.testing(work, Random(2), 32 * len(instructions.SHARES)))
    for task, answers in (("yes_no", 2), ("language_id", 8), ("scene", None)):
        shares = Counter(ask.answer for ask in test_rows if ask.task == task)
        assert answers in (None, len(shares)) and max(shares.values()) <= 2 + min(
            shares.values()
        ), (
            task,
            shares,
        )


def test_instructions_depend_on_the_seed_only(work):
    first, second = (list(islice(instructions.training(work, Random(5)), 200)) for _ in range(2))
    assert first == second


def test_solutions_verify_and_slips_do_not():
    rng = Random(3)
    for family, levels in FAMILIES.items():
        for level in levels:
            for _ in range(60):
                problem = draw(rng, family, level)
                assert verify(problem, problem.solution), problem
                assert not verify(problem, corrupt(problem, rng)), problem


def test_a_wrong_step_is_caught_though_the_answer_is_right():
    problem = draw(Random(0), "add", 2)
    assert not verify(problem, f"1 + 1 = 3.\nAnswer: {problem.answer}")
    assert not verify(problem, f"Answer: {problem.answer}")


def test_problems_of_the_splits_are_apart():
    sides = {
        s: {p.question for p in islice(draw_problems(s, Random(0)), 400)} for s in ("train", "test")
    }
    assert not sides["train"] & sides["test"] and len(sides["test"]) > 300


def test_requests_are_refused_by_their_object():
    for split in ("train", "test"):
        for request in safety.every(split):
            assert refuses(request.chosen) == request.harmful != refuses(request.rejected), request
    train, test = ({r.question for r in safety.every(s)} for s in ("train", "test"))
    assert test and not train & test
    for language, places in safety.PLACES.items():
        assert len(set(places)) == len(places) == len(safety.PLACES["en"])
        for place in places[-safety.TEST_PLACES :]:
            assert any(place in question for question in test), (language, place)
            assert not any(place in question for question in train), (language, place)
    assert Counter(r.language for r in safety.every("test")) == Counter(
        dict.fromkeys(LANGUAGES, 192)
    )


def test_calls_are_json_and_use_an_offered_tool():
    for split in ("train", "test"):
        for tool in [*calls.TOOLS, ""]:
            sample = calls.call(Random(7), split, tool)
            parsed = tool_calls(sample.answer)
            assert sample.answer.startswith(CALL) == sample.answer.endswith(CALL_END) == bool(tool)
            offered = {t["name"] for t in json.loads(sample.tools)}
            assert len(offered) == 2
            if tool:
                assert parsed and parsed[0]["name"] == tool in offered
                assert set(parsed[0]["arguments"]) == set(calls.TOOLS[tool].parameters)
            else:
                assert parsed is None
