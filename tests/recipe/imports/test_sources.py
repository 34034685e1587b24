"""Corpora of a recipe file: filters, held-out rows, bad rows, data of others in the folder of a run."""

import io
import json
import random
import shutil
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image as Pillow
from rich.console import Console

from polyphi.data import formats, shards
from polyphi.data.shards import Shards
from polyphi.planning.assumptions import Hardware
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.runtime.files import whole_folder
from polyphi.train import aed
from polyphi_recipe.corpora import cards
from polyphi_recipe.graph import evaluation, export, parallel, plan
from polyphi_recipe.graph.corpora import check, check_stages
from polyphi_recipe.graph.folder import RunFolder
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.imports import recognizers
from polyphi_recipe.imports import sources as imports
from polyphi_recipe.imports.sources import imported
from polyphi_recipe.pipeline import corpus as curation
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.pipeline.machines import Machines
from polyphi_recipe.recipe import file as recipe_file
from polyphi_recipe.stages import sizes
from polyphi_recipe.stages.sizes import CORPORA
from tests.fixtures.command_line import RunCommand
from tests.fixtures.variants import few

ALL_OFF = (
    "language = false, rules = false, personal_data = false, duplicates = false, held_out = false"
)


def run(folder: Path, corpora: str, **options: Any) -> Run:
    own = sorted(set(tomllib.loads(corpora)["corpora"]) - set(CORPORA))  # a stage has them all
    mix = f"[stages.text_1_pretrain]\nmix = {{ {', '.join(f'{n} = 1' for n in own)} }}\n"
    (folder / "lab.toml").write_text(f'size = "micro"\n{corpora}{mix if own else ""}')
    return Run(folder / "lab.toml", folder / "run", console=Console(quiet=True), **options)


def write(path: Path, rows: Iterable[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def dialogue(number: int) -> dict[str, str]:
    return {"question": f"What comes after {number}?", "answer": f"{number + 1}"}


def answers(run: Run, corpus: str, split: str = "train") -> list[str]:
    return [sample.answer for sample in Shards(run.folder.data / corpus / split)]


def test_rows_are_held_out_by_their_content(tmp_path: Path) -> None:
    """Equal rows are on one side; a file more moves none to the other side."""
    write(tmp_path / "a.jsonl", [dialogue(n % 100) for n in range(200)])
    own = run(
        tmp_path, f'[corpora.x]\nsources = ["*.jsonl"]\nheld_out = 0.2\nfilters = {{ {ALL_OFF} }}\n'
    )
    own.build("x")
    train, test = answers(own, "x"), answers(own, "x", "test")
    assert len(train) + len(test) == 200 and 10 < len(test) < 80
    assert not set(train) & set(test)
    write(tmp_path / "b.jsonl", [dialogue(n) for n in range(100, 150)])
    own.build("x")
    assert set(test) <= set(answers(own, "x", "test"))
    assert not set(answers(own, "x")) & set(answers(own, "x", "test"))


def test_a_bound_of_held_out_rows_is_one_of_all_files_and_loses_none(tmp_path: Path) -> None:
    """Rows above the bound vanished, and the first files had all held-out rows."""
    for part in range(3):
        write(tmp_path / f"{part}.jsonl", [dialogue(1000 * part + n) for n in range(300)])
    own = run(
        tmp_path,
        f'[corpora.x]\nsources = ["*.jsonl"]\nheld_out = 0.5\ntest_rows = 30\nfilters = {{ {ALL_OFF} }}\n',
    )
    own.build("x")
    train, test = answers(own, "x"), answers(own, "x", "test")
    assert len(train) + len(test) == len({*train, *test}) == 900
    assert 15 < len(test) < 60 and {int(answer) // 1000 for answer in test} == {0, 1, 2}


def test_media_of_other_rows_are_not_decoded_for_the_held_out_split(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(60):
        (tmp_path / f"{n}.jpg").write_bytes(noise(64, n))
    write(tmp_path / "a.jsonl", [{"image": f"{n}.jpg", "answer": f"{n}"} for n in range(60)])
    own = run(
        tmp_path,
        f'[corpora.x]\nsources = ["a.jsonl"]\nheld_out = 0.1\nfilters = {{ {ALL_OFF}, image_sizes = false }}\n',
    )
    table = imported(own.recipe, "x")
    assert table is not None and table.held_out_share == 0.1
    decoded = list[int]()
    decode = formats.media.decode_image
    monkeypatch.setattr(
        formats.media, "decode_image", lambda data: decoded.append(1) or decode(data)
    )
    test = list(imports._held_out_rows(table, 0, 1))
    assert 0 < len(test) == len(decoded) < 30
    train = {one.answer for one in imports._training_rows(table, 0, 1)}
    assert {f"{n}" for n in range(60)} - train == {one.answer for one in test}


def test_training_rows_wait_for_the_jobs_of_held_out_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submitted = list[tuple[str, list[str]]]()

    def submit(corpus: Corpus, work: Work, machines: Machines) -> dict[str, Any]:
        submitted.append((corpus.name, list(work.rows)))
        return {}

    monkeypatch.setattr(curation, "build", submit)
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", map(dialogue, range(60)))
    corpora = "".join(f"[corpora.{name}]\nsources = ['{name}.jsonl']\n" for name in "ab")
    own = run(tmp_path, corpora)
    assert own.build("a", Machines("slurm"))
    assert submitted == [("a", ["test"]), ("b", ["test"])]


def test_all_rows_of_sources_for_them_are_held_out(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", map(dialogue, range(60)))
    write(tmp_path / "test.jsonl", map(dialogue, range(100, 130)))
    sources = '["train.jsonl", { path = "test.jsonl", split = "test" }]'
    own = run(
        tmp_path,
        f"[corpora.x]\nsources = {sources}\nrows = 20\ntest_rows = 5\nfilters = {{ {ALL_OFF} }}\n",
    )
    own.build("x")
    assert answers(own, "x") == [f"{n + 1}" for n in range(20)]
    assert answers(own, "x", "test") == [f"{n + 1}" for n in range(100, 130)]


def test_a_source_for_training_has_no_held_out_rows(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", map(dialogue, range(60)))
    write(tmp_path / "b.jsonl", map(dialogue, range(100, 160)))
    sources = '["a.jsonl", { path = "b.jsonl", split = "train" }]'
    own = run(
        tmp_path, f"[corpora.x]\nsources = {sources}\nheld_out = 0.5\nfilters = {{ {ALL_OFF} }}\n"
    )
    own.build("x")
    train, test = (set(map(int, answers(own, "x", split))) for split in ("train", "test"))
    assert set(range(101, 161)) <= train and test and max(test) <= 60
    assert train | test == {*range(1, 61), *range(101, 161)}


def test_a_row_is_in_one_of_the_sources_with_shares(tmp_path: Path) -> None:
    """As in one corpus: also near duplicates, and after a change of the first source."""
    text = (
        "the river and the old bridge of this town have been there for many years with its people"
    )
    write(tmp_path / "a.jsonl", [*map(dialogue, range(60)), {"question": "So?", "answer": text}])
    write(tmp_path / "b.jsonl", [*map(dialogue, range(40, 80)), {"question": "so", "answer": text}])
    shares = '{ path = "a.jsonl", share = 3 }, "b.jsonl"'
    table = f"[corpora.x]\nsources = [{shares}]\nheld_out = 0\n"
    own = run(tmp_path, table)
    own.build("x-2")
    first, second = answers(own, "x-1"), answers(own, "x-2")
    assert (len(first), len(second)) == (61, 20) and not set(first) & set(second)
    write(tmp_path / "a.jsonl", map(dialogue, range(20)))
    own = run(tmp_path, table)
    own.build("x-2")
    assert [len(answers(own, f"x-{n}")) for n in (1, 2)] == [20, 41]


def test_a_corpus_with_shares_is_curated_by_its_name(
    tmp_path: Path, run_command: RunCommand
) -> None:
    """One that is built in was generated instead."""
    for name in "ab":
        write(tmp_path / f"{name}.jsonl", map(dialogue, range(30)))
    file = tmp_path / "lab.toml"
    sources = f'[{{ path = "a.jsonl", share = 3 }}, "b.jsonl"]\nfilters = {{ {ALL_OFF} }}'
    file.write_text(f'size = "micro"\n[corpora.sums]\nsources = {sources}\n')
    code, _, error = run_command("curate", str(file), "sums", "--out", str(tmp_path / "run"))
    assert code == 0, error
    corpora = {path.parents[1].name for path in (tmp_path / "run/data").glob("*/train/*.json")}
    assert corpora == {"sums-1", "sums-2"}


def test_bad_rows_are_counted_until_there_are_too_many(tmp_path: Path) -> None:
    rows: list[Any] = list(map(dialogue, range(300)))
    rows[7] = {"question": "no answer"}
    write(tmp_path / "a.jsonl", rows)
    corpora = f'[corpora.x]\nsources = ["a.jsonl"]\nfilters = {{ {ALL_OFF} }}\nheld_out = 0\n'
    own = run(tmp_path, corpora)
    own.build("x")
    assert len(answers(own, "x")) == 299
    assert "Readable rows" in cards.card(own.folder.data / "x")
    assert "a.jsonl, line 8: unreadable: expected `messages`" in cards.card(own.folder.data / "x")
    assert "a.jsonl, line 8" in cards.explain(own.folder.data / "x", f"{tmp_path}/a.jsonl, line 8")
    write(
        tmp_path / "a.jsonl",
        [{"question": "no answer"} if n % 4 == 3 else r for n, r in enumerate(rows)],
    )
    with pytest.raises(ValueError, match=r"corpora\.x: 75 of 300 rows can't be read.*max_bad_rows"):
        own.build("x")
    with pytest.raises(ValueError, match=r"corpora\.x\.sources\[0\]: .*line 1"):
        write(tmp_path / "a.jsonl", [{"question": "no answer"}] * 5)
        check(run(tmp_path, corpora).recipe, ["x"])


def test_a_source_whose_rows_all_vanish_is_a_warning(tmp_path: Path) -> None:
    """Named as in the recipe file; files of one name in two folders are two sources."""
    write(tmp_path / "a/train.jsonl", map(dialogue, range(60)))
    write(tmp_path / "b/train.jsonl", ({"text": f"a red square {n}"} for n in range(30)))
    out = io.StringIO()
    (tmp_path / "lab.toml").write_text(
        'size = "micro"\n[corpora.x]\nsources = ["a", "b"]\nheld_out = 0\n'
        "[stages.text_1_pretrain]\nmix = { x = 1 }\n"
    )
    own = Run(tmp_path / "lab.toml", tmp_path / "run", console=Console(file=out, width=1000))
    own.build("x")
    [line] = [line for line in out.getvalue().splitlines() if line.startswith("warning: x/train")]
    assert "has 0 rows of b: of 30 samples 30 were dropped" in line
    card = cards.card(own.folder.data / "x")
    assert line in card and card.count("a red square 0") == 2  # below its step, too


def test_few_bad_rows_at_the_start_are_few(tmp_path: Path) -> None:
    """Nor do held-out rows, which are a small part, decide what many are."""
    write(tmp_path / "a.jsonl", [*[{"question": "no answer"}] * 7, *map(dialogue, range(1500))])
    file = (tmp_path / "a.jsonl").read_text()
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(dialogue(-1))}\n{file}{{\n{{\n")
    own = run(tmp_path, f'[corpora.x]\nsources = ["a.jsonl"]\nfilters = {{ {ALL_OFF} }}\n')
    own.build("x")
    assert len({*answers(own, "x"), *answers(own, "x", "test")}) == 1501


def test_missing_sources_and_one_without_rows(tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    own = run(tmp_path, '[corpora.x]\nsources = ["empty.jsonl", "nowhere.tar"]\n')
    with pytest.raises(
        ValueError, match=r"sources\[0\]: empty\.jsonl has no rows\n.*\[1\]: .*nowhere"
    ):
        check(own.recipe, ["x"])


def test_files_of_rows_outside_their_folder(tmp_path: Path) -> None:
    """They are read where the source says so; its path is relative to the recipe file."""
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.jpg").write_bytes(noise(64, 1))
    write(tmp_path / "rows/a.jsonl", [{"image": "../images/a.jpg", "answer": "noise"}])
    source = '[corpora.x]\nsources = [{{ path = "rows"{} }}]\nheld_out = 0\n'
    with pytest.raises(ValueError, match=r"sources\[0\]: .*allowed_media_path"):
        check(run(tmp_path, source.format("")).recipe, ["x"])
    own = run(tmp_path, source.format(', allowed_media_path = ["images"]'))
    assert own.build("x") and answers(own, "x") == ["noise"]


def test_a_source_without_images_for_a_stage_that_compares_them(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", map(dialogue, range(30)))
    own = run(tmp_path, '[corpora.captions]\nsources = ["a.jsonl"]\n')
    with pytest.raises(ValueError, match=r"corpora\.captions: .* found text in a\.jsonl"):
        check_stages(own.recipe, ["vision_0_encoder"])
    with pytest.raises(ValueError, match=r"corpora\.captions: .* found text in a\.jsonl"):
        plan.plan("vision_0_encoder", own.recipe, Hardware("8xH100"))


def noise(side: int, seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    out = io.BytesIO()
    Pillow.fromarray(pixels).save(out, "JPEG")
    return out.getvalue()


def test_default_filters_of_images_and_their_card(tmp_path: Path) -> None:
    images = {
        "good.jpg": noise(64, 1),
        "again.jpg": noise(64, 1),
        "tiny.jpg": noise(20, 2),
        "large.jpg": noise(1500, 3),
    }
    for name, data in images.items():
        (tmp_path / name).write_bytes(data)
    rows = [{"image": name, "question": "What is this?", "answer": "noise"} for name in images]
    rows.append(
        {"image": "good.jpg", "question": "What is this?", "answer": "call +1 415-555-2671 now"}
    )
    write(tmp_path / "a.jsonl", rows)
    own = run(tmp_path, '[corpora.x]\nsources = ["a.jsonl"]\nheld_out = 0\n')
    own.build("x")
    texts = sorted(answers(own, "x"))
    assert texts == [
        "call [PHONE] now",
        "noise",
        "noise",
    ]  # good and large; the copy and the tiny one are gone
    from polyphi.media.media import decode_image
    from polyphi.types.messages import media
    from polyphi.types.parts import Image

    sizes = {
        decode_image(i.source).size
        for s in Shards(own.folder.data / "x/train")
        for i in media(s.messages, Image)
    }
    assert max(map(max, sizes)) == 1344
    card = cards.card(own.folder.data / "x")
    for step in ("ImageSizeFilter", "DownscaleImages", "Personal", "Duplicates"):
        assert step in card, step


def test_default_filters_of_audio(tmp_path: Path) -> None:
    for name, seconds in (("short", 0.5), ("long", 31.0)):
        wave = np.random.default_rng(len(name)).uniform(-0.2, 0.2, round(16_000 * seconds))
        soundfile.write(tmp_path / f"{name}.wav", wave, 16_000)
    write(tmp_path / "a.jsonl", [{"audio": f"{n}.wav", "answer": n} for n in ("short", "long")])
    own = run(tmp_path, '[corpora.x]\nsources = ["a.jsonl"]\nheld_out = 0\n')
    own.build("x")
    assert answers(own, "x") == ["short"]


@pytest.fixture
def recognizer(tmp_path: Path) -> str:
    """The stage of a finished run with a recognizer of random weights, which learned from heard.jsonl."""
    other = tmp_path / "other"
    tokenizer = Tokenizer.train(["one two three"] * 4, 512)
    audio = sizes.MICRO.model.audio
    assert audio is not None
    model = aed.Recognizer(audio, tokenizer.vocab_size, 1, Processor(tokenizer))
    with whole_folder(other / "recogniser") as partial:
        model.save(partial)
    file = tmp_path / "other.toml"
    file.write_text('size = "micro"\n[corpora.asr]\nsources = ["heard.jsonl"]\n')
    Run(file, other)
    return "other/stages/speech_0_aed"


def speech(folder: Path, name: str) -> None:
    """Four transcripts, a spoken question with its transcript, and one without."""
    rows: list[dict[str, str]] = [{"answer": f"{n} and {n + 1}"} for n in range(4)]
    rows += [{"question": "", "answer": "yes", "transcript": "is it so"}]
    rows += [{"question": "Is it so?", "answer": "no"}]
    for n in range(len(rows)):
        wave = np.random.default_rng(n).uniform(-0.2, 0.2, 8_000)
        soundfile.write(folder / f"{name}-{n}.wav", wave, 16_000)
    write(folder / f"{name}.jsonl", [r | {"audio": f"{name}-{n}.wav"} for n, r in enumerate(rows)])


@pytest.mark.parametrize(
    ("limit", "count", "workers"), few([(0.01, 1, 1), (1e6, 6, 1), (0.01, 1, 2)], 2)
)
def test_word_errors_of_a_recognizer(
    limit: float, count: int, workers: int, tmp_path: Path, recognizer: str
) -> None:
    """It failed for every corpus. A row that doesn't say what is spoken isn't judged."""
    speech(tmp_path, "new")
    filters = f"wer = {limit}, recogniser = '{recognizer}'"
    own = run(
        tmp_path,
        f"[corpora.calls]\nsources = ['new.jsonl']\nheld_out = 0\nfilters = {{ {filters} }}\n",
    )
    own.build("calls", Machines(workers=workers))
    assert len(answers(own, "calls")) == count and "no" in answers(own, "calls")
    record = cards.explain(own.folder.data / "calls", "new.jsonl, line 5")
    assert "word errors" in record and ("dropped by WordErrors" in record) == (count == 1)


def test_a_recognizer_is_the_one_of_a_given_encoder(tmp_path: Path, recognizer: str) -> None:
    speech(tmp_path, "new")
    corpora = "[corpora.calls]\nsources = ['new.jsonl']\nfilters = { wer = 0.4 }\n"
    with pytest.raises(ValueError, match=r"corpora\.calls\.filters\.wer: .*found none"):
        run(tmp_path, corpora)
    table = recipe_file.RecipeFile.model_validate(tomllib.loads(f'size = "micro"\n{corpora}'))
    calls = table.corpora["calls"]
    assert recognizers.folder_of(calls, recognizer, tmp_path) == tmp_path / "other/recogniser"
    with pytest.raises(ValueError, match="found microsoft/Phi-4-multimodal-instruct"):
        recognizers.folder_of(calls, "microsoft/Phi-4-multimodal-instruct", tmp_path)


@pytest.mark.parametrize("path", ["heard.jsonl", "*.jsonl", "other/data/asr/train"])
def test_no_corpus_is_judged_by_a_model_that_learned_it(
    path: str, tmp_path: Path, recognizer: str
) -> None:
    speech(tmp_path, "heard")
    shards.write(
        tmp_path / "other/data/asr/train", [shards.document("1", "x", "x", "CC0")], pipeline="x"
    )
    with pytest.raises(ValueError, match=r"corpora\.calls\.filters\.wer: .*sources\[0\]"):
        run(
            tmp_path,
            f"[corpora.calls]\nsources = ['{path}']\nfilters = {{ wer = 0.4, recogniser = '{recognizer}' }}\n",
        )
    assert not (tmp_path / "run").exists()


def test_default_filters_of_documents(tmp_path: Path) -> None:
    sentence = (
        "the river and the old bridge of this town have been there for many years with its people"
    )
    words = sentence.split()
    rng = random.Random(0)

    def page(seed: int) -> str:
        rng.seed(seed)
        return "\n".join(" ".join(rng.choices(words, k=12)).capitalize() + "." for _ in range(12))

    pages = [page(n) for n in range(40)]
    german = "Der Hund läuft heute schnell über die Straße und freut sich. " * 12
    others = [pages[0], "Too short.", "日本語の文章です。" * 40]
    write(tmp_path / "a.jsonl", [{"text": text} for text in [*pages, german, *others]])
    own = run(
        tmp_path,
        '[corpora.x]\nsources = ["a.jsonl"]\nheld_out = 0.1\nfilters = { rules = false }\n',
    )
    own.build("x")
    train, test = answers(own, "x"), answers(own, "x", "test")
    assert "Too short." not in train and len(set(train)) == len(train)
    assert not set(train) & set(test)
    strict = tmp_path / "strict"
    strict.mkdir()
    write(strict / "a.jsonl", [{"text": "# # # " * 60}, *({"text": text} for text in pages)])
    own = run(
        strict, '[corpora.x]\nsources = ["a.jsonl"]\nheld_out = 0\nfilters = { language = false }\n'
    )
    own.build("x")
    assert "Rules" in cards.card(own.folder.data / "x")


def test_held_out_rows_and_benchmarks_stay_out_of_all_corpora(tmp_path: Path) -> None:
    text = "Natalia sold clips to forty eight of her friends in April and then half as many in May every day"
    item = {"question": text, "answer": "72"}
    write(
        tmp_path / "bench.jsonl",
        [{"question": f"{text} of the year that came after", "answer": "1"}],
    )
    write(tmp_path / "a.jsonl", [*map(dialogue, range(20)), item])
    write(tmp_path / "b.jsonl", [*map(dialogue, range(50, 70)), {**item, "answer": "73"}])
    tables = (
        'benchmarks = ["bench.jsonl"]\n'
        '[corpora.a]\nsources = ["a.jsonl"]\nheld_out = 0\n'
        '[corpora.b]\nsources = ["b.jsonl"]\nheld_out = 0\n'
    )
    own = run(tmp_path, tables)
    for name in ("a", "b"):
        own.build(name)
        assert not {"72", "73"} & set(answers(own, name))
        assert len(answers(own, name)) == 20


def test_data_that_a_run_did_not_build_is_never_replaced(tmp_path: Path) -> None:
    """As own shards in the folder of a built-in corpus, and of one with sources."""
    micro = Run("micro", tmp_path / "micro", console=Console(quiet=True))
    mine = [shards.document(f"{n}", f"page {n} of mine", "mine", "CC0") for n in range(50)]
    shards.write(micro.folder.data / "documents/train", mine, pipeline="mine")
    with pytest.raises(
        ValueError, match=r"50 rows that this run didn't build.*corpora\.documents\.sources"
    ):
        micro.build("documents")
    assert len(Shards(micro.folder.data / "documents/train")) == 50
    sources = f'[corpora.documents]\nsources = ["{micro.folder.data / "documents/train"}"]\nfilters = {{ {ALL_OFF} }}\n'
    own = run(tmp_path, f"{sources}held_out = 0\n")
    own.build("documents")
    assert [s.answer for s in Shards(own.folder.data / "documents/train")] == [
        s.answer for s in mine
    ]


def test_a_copy_of_another_run_is_never_replaced(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", map(dialogue, range(50)))
    table = f'[corpora.tools]\nsources = ["a.jsonl"]\nfilters = {{ {ALL_OFF} }}\n'
    own = run(tmp_path, table)
    own.build("tools")
    micro = Run("micro", tmp_path / "micro", console=Console(quiet=True))
    shutil.copytree(own.folder.data / "tools", micro.folder.data / "tools")
    with pytest.raises(ValueError, match="rows that this run didn't build"):
        micro.build("tools")
    shutil.copytree(own.folder.path, tmp_path / "copy")  # a copy of the whole run goes on
    write(tmp_path / "a.jsonl", map(dialogue, range(60)))
    again = Run(tmp_path / "lab.toml", tmp_path / "copy", console=Console(quiet=True))
    assert again.build("tools")


def test_a_split_without_rows_is_empty(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", ({"text": f"page {n}"} for n in range(5)))
    own = run(tmp_path, '[corpora.x]\nsources = ["a.jsonl"]\nheld_out = 0\n')
    assert own.build("x")
    assert answers(own, "x", "test") == []


def test_a_changed_source_of_a_finished_run_is_imported_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished stages stay as they are, and the run says so."""
    write(tmp_path / "a.jsonl", map(dialogue, range(30)))
    table = f'targets = ["text_1_pretrain"]\n[corpora.x]\nsources = ["a.jsonl"]\nfilters = {{ {ALL_OFF} }}\n'
    first = run(tmp_path, table)
    first.build("x")
    (first.folder.stages / "text_1_pretrain").mkdir(parents=True)
    manifest = first.folder.stages / "text_1_pretrain/manifest.json"
    manifest.write_text(json.dumps({"budget": {"batch_tokens": 512}}))
    for module, name in (
        (export, "export"),
        (parallel, "evaluate"),
        (evaluation, "evaluate"),
        (evaluation, "run_benchmarks"),
        (Run, "write_page"),
    ):
        monkeypatch.setattr(module, name, lambda *_: None)
    out = io.StringIO()
    monkeypatch.setattr(RunFolder, "report", lambda self, text: out.write(text))
    first.reproduce()
    assert "text_1_pretrain" not in out.getvalue()
    write(tmp_path / "a.jsonl", map(dialogue, range(60)))
    again = run(tmp_path, table)
    again.reproduce()
    assert "text_1_pretrain" in out.getvalue() and len(answers(again, "x")) > 40


def test_an_import_is_not_repeated_by_other_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from polyphi_recipe.pipeline import corpus

    write(tmp_path / "a.jsonl", map(dialogue, range(30)))
    own = run(tmp_path, f'[corpora.x]\nsources = ["a.jsonl"]\nfilters = {{ {ALL_OFF} }}\n')
    assert own.build("x") and not own.build("x")
    monkeypatch.setattr(corpus, "imported", lambda file: [tmp_path / "a.jsonl"])
    assert not own.build("x")
    write(tmp_path / "a.jsonl", map(dialogue, range(40)))
    assert own.build("x")


def test_a_further_file_of_a_source_is_imported(tmp_path: Path) -> None:
    write(tmp_path / "pages/a.jsonl", map(dialogue, range(30)))
    table = f'[corpora.x]\nsources = ["pages"]\nheld_out = 0\nfilters = {{ {ALL_OFF} }}\n'
    assert run(tmp_path, table).build("x") and not run(tmp_path, table).build("x")
    write(tmp_path / "pages/b.jsonl", map(dialogue, range(30, 40)))
    own = run(tmp_path, table)
    assert own.build("x") and len(answers(own, "x")) == 40
