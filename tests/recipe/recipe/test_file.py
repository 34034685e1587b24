"""Recipe files: mistakes are lines with their place, shares become corpora, stages and parts find each other."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from polyphi import cli
from polyphi.data.shards import Shards
from polyphi.data.sources import FORMATS
from polyphi.train.options import TrainOptions
from polyphi_recipe import stages
from polyphi_recipe.graph import corpora, find, from_file
from polyphi_recipe.graph.graph import Run
from polyphi_recipe.recipe import file as recipe_file
from polyphi_recipe.recipe import new
from polyphi_recipe.recipe.parts import ModelPart
from polyphi_recipe.stages import sizes
from tests.fixtures.command_line import RunCommand
from tests.fixtures.processes import ROOT

CONFIGS = {
    "decoder": sizes.FULL.model.decoder,
    "vision": sizes.FULL.model.vision,
    "audio": sizes.FULL.model.audio,
}

MISTAKES = {
    'size = "ful"': "size: unknown size 'ful'; did you mean 'full'?",
    'size = "full"\nsise = "full"': "top level: unknown key 'sise'; did you mean 'size'?",
    'targets = ["joint_1_vision_speech"]': "top level: 'size' is missing",
    'size = "micro"\ntargets = ["joint_1"]': "targets: unknown stage 'joint_1'; did you mean 'joint_1_vision_speech'",
    'size = "micro"\n[parts]\ndecoders = "x"': "parts: unknown key 'decoders'; did you mean 'decoder'?",
    'size = "micro"\n[corpora.captoins]\nbuiltin = true': "corpora.captoins.builtin: .*'captions'",
    'size = "micro"\n[corpora.captions]': "corpora.captions: expected sources, or builtin = true",
    'size = "micro"\n[corpora.captions]\nsources = ["a"]\nbuiltin = true': "corpora.captions: .*found both",
    'size = "micro"\n[corpora."My data"]\nsources = ["a"]': "corpora.My data: expected a name of small letters",
    'size = "micro"\n[corpora.captions]\nsources = ["a"]\nrows = "10"': r"corpora.captions.rows: .*found '10'",
    'size = "micro"\n[corpora.captions]\nsources = [{ share = 2 }]': r"sources\[0\]: 'path' is missing",
    'size = "micro"\n[corpora.asr]\nsources = [{ path = "a", formt = "csv" }]': r"asr.sources\[0\]: .*'format'",
    'size = "micro"\n[corpora.asr]\nsources = [{ path = "a", format = "cvs" }]': r"sources\[0\].format: .*'csv'",
    'size = "micro"\n[corpora.asr]\nsources = [{ path = "a", language = "xx" }]': r"sources\[0\].language: .*'xx'",
    'size = "micro"\n[corpora.asr]\nsources = [{ path = "a", split = "test" }]': "asr.sources: expected training rows",
    'size = "micro"\n[corpora.asr]\nsources = ["a"]\nfilters = { werr = 1.0 }': "asr.filters: .*'wer'",
    'size = "micro"\n[corpora.asr]\nsources = ["a"]\nfilters = { min_quality = { toxicity = 0.3 } }': "filters.quality",
    'size = "micro"\n[stages.vision_1]\nsteps = 3': "stages.vision_1: unknown stage .*'vision_1_align'",
    'size = "micro"\n[stages.vision_1_align]\nsteps = 0': "stages.vision_1_align.steps: .*found 0",
    'size = "micro"\n[stages.vision_1_align]\nmix = { captoins = 1 }': "vision_1_align.mix.captoins: .*'captions'",
    'size = "micro"\n[stages.text_1_pretrain]\nfile = "x.py"': "text_1_pretrain.file: .*another name",
    'size = "micro"\n[stages.text_3_post]\nsteps = 3\n[parts]\ndecoder = "x"': "stages.text_3_post: .*parts.decoder",
    'size = "micro"\n[corpora.a]\nsources = [{ path = "x", share = 2 }]\n[corpora.a-1]\nsources = ["y"]': "a-1: ",
    'size = "micro"\n[teachers]\ntxt = "http://a/v1#m"': "teachers: unknown key 'txt'; did you mean 'text'?",
    'size = "micro"\n[teachers]\ntext = { address = "http://a/v1#m", key = "K" }': "teachers.text: .*'key_from'",
    'size = "micro"\n[teachers]\ntext = "http://a/v1"': "teachers.text.address: expected an address .* after # a model",
    'size = "micro"\n[teachers]\njudge = "http://a/v1#m"': "teachers: expected a text, vision or speech teacher",
    'size = "micro"\n[teachers]\ntext = "http://a/v1#m"\nrequests = 0': "teachers.requests: .*found 0",
    'size = "micro': "expected TOML",
}  # fmt: skip


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_a_line_with_its_place(text: str, tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(text)
    with pytest.raises(ValueError, match=MISTAKES[text]) as error:
        recipe_file.read(file)
    assert str(error.value).startswith(f"{file}: ") and "\n" not in str(error.value)


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(
        'size = "micro"\nsise = 1\n[parts]\ndecoders = "x"\n[corpora.asr]\nsources = [{}]\n'
    )
    with pytest.raises(ValueError, match="sise") as error:
        find.of(file)
    assert len(str(error.value).splitlines()) == 3


@pytest.mark.parametrize(
    "command", [("plan",), ("curate", "--out", "run"), ("reproduce", "--out", "run")]
)
def test_commands_report_a_mistake_without_a_traceback(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lab.toml").write_text('size = "ful"')
    with pytest.raises(SystemExit):
        cli.main([command[0], "lab.toml", *command[1:]])
    assert "did you mean" in capsys.readouterr().err
    assert not Path("run").exists()


def test_sources_with_shares_are_corpora_that_share_the_weight(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(
        'size = "micro"\n[corpora.captions]\n'
        'sources = [{ path = "a", share = 3 }, "b", { path = "t", split = "test" }]\n'
    )
    lab = find.of(file)
    weights = lab.stages["vision_2_joint"].data.weights
    original = find.of("micro").stages["vision_2_joint"].data.weights
    assert weights["captions-1"] == pytest.approx(3 * weights["captions-2"])
    assert weights["captions-1"] + weights["captions-2"] == pytest.approx(original["captions"])
    assert [s.path for s in lab.corpora["captions-1"].sources] == ["a", "t"]
    assert set(lab.imported_names) == {"captions-1", "captions-2"}


def test_a_built_in_corpus_is_not_made_from_one_with_shares(tmp_path: Path) -> None:
    """It took generated rows; and one without its parents failed at a real size after other stages."""
    file = tmp_path / "lab.toml"
    text = 'size = "{}"\n[corpora.image_qa]\nsources = [{{ path = "a", share = 3 }}, "b"]\n'
    file.write_text(text.format("nano"))
    with pytest.raises(ValueError, match=r"corpora\.image_qa: .*vision_speech .*image_qa-1"):
        find.of(file)
    file.write_text('size = "full"\n[corpora.vision_speech]\nbuiltin = true\n')
    with pytest.raises(ValueError, match=r"image_qa .*rows.*\n.*multi_image"):
        corpora.check(find.of(file), ["vision_speech"])


def test_own_rows_have_no_order_from_easy_to_difficult(tmp_path: Path) -> None:
    """Those of asr were never shuffled in the first epoch."""
    file = tmp_path / "lab.toml"
    for source in ('"a"', '{ path = "a", share = 1 }, "b"'):
        file.write_text(f'size = "nano"\n[corpora.asr]\nsources = [{source}]\n')
        assert find.of(file).stages["speech_0_aed"].data.curriculum == ()
    assert find.of("nano").stages["speech_0_aed"].data.curriculum == ("asr",)


def test_teachers_write_for_corpora_that_have_a_synthesis(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(
        'size = "micro"\n[teachers]\ntext = "http://a/v1#m"\n'
        'corpora = ["tols", "captions", "ocr", "tools"]\n[corpora.ocr]\nsources = ["x"]\n'
    )
    with pytest.raises(ValueError, match="did you mean 'tools'") as error:
        find.of(file)
    _, captions, ocr = str(error.value).splitlines()
    assert "captions needs a vision teacher, found none" in captions
    assert "ocr has sources of its own" in ocr


def test_benchmarks_exist(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('size = "micro"\nbenchmarks = ["nowhere.jsonl"]\n')
    with pytest.raises(ValueError, match=r"benchmarks: .*nowhere\.jsonl"):
        find.of(file)


def test_a_corpus_that_no_stage_uses_is_refused(tmp_path: Path) -> None:
    """A misspelt one, beside which a stage would take generated rows."""
    file = tmp_path / "lab.toml"
    table = '[corpora.captoins]\nsources = ["x.jsonl"]\n[corpora.chatz]\nsources = ["y.jsonl"]\n'
    file.write_text(f'size = "nano"\n{table}')
    with pytest.raises(ValueError, match=r"corpora\.captoins: .*'captions'") as error:
        find.of(file)
    assert "corpora.chatz: " in str(error.value).splitlines()[1]
    file.write_text(
        f'size = "nano"\n{table}[stages.vision_1_align]\nmix = {{ captoins = 1, chatz = 2 }}\n'
    )
    assert set(find.of(file).stages["vision_1_align"].data.weights) == {"captoins", "chatz"}


def test_a_run_of_a_file_is_not_continued_as_one_of_a_size(tmp_path: Path) -> None:
    """It would train on other corpora, and build those of the file anew."""
    file = tmp_path / "lab.toml"
    file.write_text('size = "micro"\n[corpora.captions]\nsources = ["x.jsonl"]\n')
    Run(file, tmp_path / "run")
    Run(file, tmp_path / "run")
    with pytest.raises(ValueError, match="run of a recipe file"):
        Run("micro", tmp_path / "run")


def test_a_run_of_a_file_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_command: RunCommand
) -> None:
    """`curate` and `train` took runs/nano, whose error was a dictionary of hashes."""
    monkeypatch.chdir(tmp_path)
    for name in ("lab", "other"):
        Path(f"{name}.toml").write_text(
            'size = "micro"\n[corpora.captions]\nsources = ["x.jsonl"]\n'
        )
    for words in (("curate", "lab.toml"), ("train", "speech_0_aed", "--recipe", "lab.toml")):
        code, _, error = run_command(*words)
        assert (
            code == 2 and "--out runs/lab" in error.replace("\n", " ") and not Path("runs").exists()
        )
    assert "--out runs/NAME" in new.text("speech", size="nano", parts={}, corpora={})
    Run("lab.toml", Path("run"))
    with pytest.raises(
        ValueError, match=r"run holds a run of lab\.toml .* but other\.toml"
    ) as error:
        Run("other.toml", Path("run"))
    assert not re.search("[0-9a-f]{32}", str(error.value))
    with pytest.raises(ValueError, match=r"seed 0, but lab\.toml .* seed 1 was requested"):
        Run("lab.toml", Path("run"), options=TrainOptions(seed=1))


def test_learning_rates_of_the_file_replace_those_of_the_size(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(STAGE.format(start={}))
    file = tmp_path / "lab.toml"
    file.write_text(
        'size = "nano"\n[stages.text_1_pretrain]\nlr_factor = 3.5\n[corpora.mine]\nsources = ["x"]\n'
        '[stages.mine]\nfile = "mine.py"\nlr_factor = 0.5\nsteps = 9\n'
    )
    lab = find.of(file)
    assert lab.budget(lab.stages["text_1_pretrain"]).lr_factor == 3.5  # not that of the law
    own = lab.budget(lab.stages["mine"])
    assert (own.lr_factor, own.steps, own.batch_tokens) == (0.5, 9, 512)


def test_formats_are_those_of_sources() -> None:
    assert set(recipe_file.FORMATS) == set(FORMATS)


def test_targets_need_their_parents_only(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('size = "micro"\ntargets = ["speech_1_pretrain"]\n')
    lab = find.of(file)
    assert lab.order == (
        *("text_1_pretrain", "text_2_long", "text_3_post", "text_4_align"),
        *("speech_0_aed", "speech_1_pretrain"),
    )
    assert lab.final == "speech_1_pretrain"
    assert lab.exports["model"] == ("speech_1_pretrain", "native")
    file.write_text('size = "micro"\ntargets = ["vision_1_align", "speech_1_pretrain"]\n')
    exports = find.of(file).exports
    assert exports["model"] == ("speech_1_pretrain", "native")
    assert exports["vision_1_align"] == ("vision_1_align", "native") and set(exports) == {
        *("mini", "model", "vision_1_align")
    }


def test_a_stage_takes_the_values_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text(
        'size = "nano"\n[stages.text_1_pretrain]\nsteps = 7\nmix = { documents = 3, math = 1 }\n'
    )
    lab, stage = find.of(file), find.of(file).stages["text_1_pretrain"]
    assert lab.budget(stage).steps == 7 and dict(stage.data.weights) == {"documents": 3, "math": 1}
    assert lab.budget(stage).batch_tokens == find.of("nano").budget(stage).batch_tokens


def test_auxiliary_losses_need_generated_samples(tmp_path: Path) -> None:
    file = tmp_path / "lab.toml"
    file.write_text('size = "lab"\n[corpora.captions]\nsources = ["x"]\n')
    own, built_in = find.of(file).stages, find.of("lab").stages
    for name, weight in (("vision_1_align", "align"), ("vision_0_encoder", "naming")):
        weights = [getattr(every[name].objective, weight) for every in (own, built_in)]
        assert weights == [0.0, 1.0]
        assert getattr(find.of("full").stages[name].objective, weight) == 0.0
    mine = replace(own["text_1_pretrain"], objective=object())  # a user's may be any class
    assert stages.without_auxiliary(mine) is mine
    assert getattr(own["vision_2_joint"].objective, "align") > 0  # noqa: B009 - of generated ocr


STAGE = """
from polyphi.train.loss import NextToken
from polyphi.train.stage import Mix, Stage

stage = Stage(name="x", start={start}, trainable={{"decoder.*": 1e-4}}, data=Mix({{"mine": 1}}), objective=NextToken(),
              context=256, batch_tokens=512, steps=2)
"""


def test_own_stages_start_from_nothing_from_stages_and_are_in_order(tmp_path: Path) -> None:
    for name, start in (
        ("a", {}),
        ("b", {"*": "a"}),
        ("c", {"*": "b", "decoder.norm.*": "text_1_pretrain"}),
    ):
        (tmp_path / f"{name}.py").write_text(STAGE.format(start=start))
    lines = [f'[stages.{name}]\nfile = "{name}.py"' for name in "cab"]
    text = '\nsize = "micro"\ntargets = ["c"]\n[corpora.mine]\nsources = ["x"]\n'
    file = tmp_path / "lab.toml"
    file.write_text(text + "\n".join(lines))
    lab = find.of(file)
    assert lab.order == ("text_1_pretrain", "a", "b", "c")
    origin = lab.lineage.origin
    assert origin("decoder.norm.weight", lab.stages["c"]).stage == "text_1_pretrain"
    assert origin("decoder.embed_tokens.weight", lab.stages["c"]).stage == "b"
    assert origin("decoder.embed_tokens.weight", lab.stages["a"]).stage is None
    (tmp_path / "a.py").write_text(STAGE.format(start={"*": "nowhere"}))
    with pytest.raises(ValueError, match=r"stages\.a: starts from 'nowhere'"):
        find.of(file)
    (tmp_path / "a.py").write_text(STAGE.format(start={"*": "c"}))
    with pytest.raises(ValueError, match="start from each other"):
        find.of(file)


@pytest.mark.parametrize("size", ["lab", "full"])
def test_nothing_is_silently_generated_at_a_real_size(size: str, tmp_path: Path) -> None:
    lab = find.of(size)
    with pytest.raises(ValueError, match="builtin = true") as error:
        lab.check_corpora(["documents", "captions"])
    assert len(str(error.value).splitlines()) == 3
    file = tmp_path / "lab.toml"
    file.write_text(f'size = "{size}"\n[corpora.documents]\nbuiltin = true\n')
    find.of(file).check_corpora(["documents"])
    find.of("nano").check_corpora(["documents"])


@pytest.mark.parametrize("goal", new.GOALS)
def test_new_files_are_valid_and_name_every_corpus(
    goal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        from_file, "open_part", lambda name, *_: ModelPart(name, "x", CONFIGS[name], dict)
    )
    text = new.text(goal, size="full", parts={}, corpora={"asr": ["a.tsv"]})
    file = tmp_path / "lab.toml"
    file.write_text(text)
    lab = find.of(file)
    assert set(lab.parts) == set(new.GOALS[goal].parts)
    assert lab.tokens_needed()
    for corpus in lab.tokens_needed():
        assert f"[corpora.{corpus}]" in text


@pytest.fixture
def with_audio_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A micro run with a given audio encoder, which transcribes nothing by itself."""
    part = ModelPart("audio", "x", sizes.MICRO.model.audio, dict)
    monkeypatch.setattr(from_file, "open_part", lambda *_: part)
    file = tmp_path / "lab.toml"
    file.write_text('size = "micro"\n[parts]\naudio = "x"\n')
    return Run(file, tmp_path / "run", console=Console(quiet=True))


def test_no_corpus_needs_a_stage_that_a_part_replaces(with_audio_part: Run) -> None:
    """vision_speech did, and failed after all other stages."""
    order = with_audio_part.recipe.order
    for name in with_audio_part.recipe.tokens_needed():
        assert set(with_audio_part.corpora.find(name).stages) <= set(order), name


@pytest.mark.long
def test_spoken_questions_are_unfiltered_without_a_recognizer(with_audio_part: Run) -> None:
    with_audio_part.build("vision_speech")
    rows = Shards(with_audio_part.folder.data / "vision_speech/train")
    assert {row.meta["filter"] for row in rows} == {"none"}


def test_the_schema_has_every_key_of_the_file() -> None:
    schema = recipe_file.schema()
    assert set(schema["properties"]) == set(recipe_file.RecipeFile.model_fields)
    source = schema["$defs"]["CorpusSource"]["properties"]
    assert set(source) == set(recipe_file.CorpusSource.model_fields)
    assert all("description" in value for value in source.values())
    page = ROOT / "docs/recipe.schema.json"
    assert page.read_text(encoding="utf-8") == f"{json.dumps(schema, indent=1)}\n", (
        "write it again: polyphi recipe schema > docs/recipe.schema.json"
    )


def test_every_corpus_is_described() -> None:
    assert set(new.CONTENTS) == set(sizes.CORPORA)
