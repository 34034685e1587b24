"""`polyphi finetune`: the built-in stages equal the same stage in a file; runs grow; refusals leave no files."""

import json
import os
import shlex
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Picture
from safetensors.torch import load_file

import polyphi
from polyphi import Message, cli
from polyphi.engine.greedy import greedy_answers
from polyphi.finetuning import plan as planning
from polyphi.finetuning.job import check
from polyphi.finetuning.prepare import FinetunePlan, prepare, run_folder
from polyphi.finetuning.run import run as run_plan
from polyphi.finetuning.stages import STAGES, for_rows
from polyphi.model.config import AdapterConfig
from polyphi.runtime.progress import read_metrics
from polyphi.train.epochs import RowTokens, epoch_steps, steps_of
from polyphi.train.evaluation import EVALUATIONS
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.stage import Mix, Stage
from tests.core.train.small import Fails, trajectory
from tests.fixtures import published
from tests.fixtures.command_line import Refused
from tests.fixtures.variants import few

ROWS = {
    "vision": ("native", ["llava.json"], {"image"}),
    "speech": ("native", ["clips.jsonl"], {"audio"}),
    "both": ("native", ["pictures.jsonl", "clips.jsonl"], {"image", "audio"}),
    "text": ("mini", ["words.jsonl"], set()),
    "preferences": ("native", ["pairs.jsonl"], {"image"}),
}
"""Kind -> model, files of rows, modalities of the rows."""
ADAPTERS = {"native": ["vision", "speech"], "mini": []}
MEDICAL = replace(
    STAGES["vision"],
    name="medical",
    adapters={"medical": AdapterConfig(rank=3, alpha=6.0)},
    trainable={"decoder.*.lora.medical.*": 1e-4},
    data=Mix({"scans": 1}, adapter={"scans": "medical"}),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints, and rows of all kinds: a LLaVA file, columns, pairs of TRL."""
    source = tmp_path_factory.mktemp("source")
    for layout in ("native", "mini"):
        published.write(source / layout, layout, torch.float32)
    published.write_data(source / "data")
    colours = list(published.COLOURS)
    llava, pairs, text_pairs = [], [], []
    for i in range(12):
        chosen, rejected = colours[i % 3], colours[(i + 1) % 3]
        turns = [
            {"from": "human", "value": "<image>\nwhich colour is it"},
            {"from": "gpt", "value": chosen},
        ]
        llava.append({"id": str(i), "image": f"{i}.png", "conversations": turns})
        pair = {"question": "which colour is it", "answer": chosen, "rejected": rejected}
        pairs.append({"image": f"{i}.png", **pair})
        text_pairs.append(pair)
    (source / "data/llava.json").write_text(json.dumps(llava))
    (source / "data/pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in pairs))
    questions = [{"audio": f"{i}.wav", "question": "which", "answer": "low"} for i in range(12)]
    (source / "data/questions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in questions))
    (source / "data/text_pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in text_pairs))
    return source


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(kind: str | Stage, out: str, data: list[str] | None = None, **options: Any) -> Path:
        name = kind if isinstance(kind, str) else kind.name
        model, files, _ = ROWS.get(name, ("native", [], set()))
        revise = options.pop("revise", planning.choose)
        job = check(
            kind,
            [str(source / "data" / name) for name in data or files],
            tmp_path / out,
            checkpoint=source / options.pop("model", model),
            report=options.pop("report", lambda _: None),
            options=TrainOptions(precision="fp32"),
            finetuning=FinetuneOptions(**options),
        )
        with run_folder(job):
            run_plan(revise(prepare(job)), greedy_answers)
        return tmp_path / out

    return run


def as_requested(plan: FinetunePlan) -> FinetunePlan:
    return plan


def weights(out: Path) -> dict[str, torch.Tensor]:
    return load_file(out / "trained.safetensors")


def same_bits(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("kind", few(ROWS, {"both", "text", "preferences"}.__contains__))
def test_a_kind_equals_its_stage_in_a_file(
    kind: str, source: Path, run: Callable[..., Path], tmp_path: Path
) -> None:
    """Byte-equal weights; and the default length by the rows."""
    named = run(kind, "named")
    model, _, modalities = ROWS[kind]
    choices = json.loads((named / planning.CHOICES_FILE).read_text())
    length = {name: choices[name] for name in ("steps", "batch_tokens")}
    stage = for_rows(STAGES[kind], modalities, ADAPTERS[model])
    file = run(stage, "file", revise=planning.report_only, **length)
    assert same_bits(weights(named), weights(file))
    manifest = json.loads((named / "manifest.json").read_text())
    assert manifest["budget"]["steps"] == manifest["steps"] == length["steps"] > 1
    assert all(before == after for before, after in manifest["frozen"].values())


def test_pairs_of_text_train_an_adapter_that_is_added(run: Callable[..., Path]) -> None:
    out = run("preferences", "run", ["text_pairs.jsonl"], model="mini", steps=2)
    assert all(".lora.text." in name for name in weights(out))
    assert (out / "model/text-lora/adapter_model.safetensors").exists()


USES = {
    "vision": ("vision", None, 100, "chat", "vision"),
    "speech": ("speech", None, 50, "transcribe", "speech"),
    "speech with questions": ("speech", ["questions.jsonl"], 50, "chat", "speech"),
    "text": ("text", None, 50, "chat", "text"),
    "pairs of text": ("preferences", ["text_pairs.jsonl"], 500, "chat", "text"),
    "own stage": (MEDICAL, ["pictures.jsonl"], 100, "chat", "medical"),
}
"""Fine-tune -> kind or stage, its rows, a factor on its learning rates with which it learns an answer, the command that
is printed after it, and the adapter that it uses."""


@pytest.mark.parametrize("use", few(USES, "text".__eq__))
def test_the_printed_command_answers_with_the_trained_weights(
    use: str, source: Path, run: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kind, files, factor, verb, adapter = USES[use]
    messages: list[str] = []
    options = {"steps": 60, "batch_tokens": 300, "lr_factor": factor, "revise": as_requested}
    out = run(kind, "run", files, report=messages.append, **options)
    printed = next(line for line in map(str, messages) if "use it: " in line)
    question, image, audio = "which colour is it", source / "data/1.png", source / "data/1.wav"
    command = shlex.split(printed.partition("use it: polyphi ")[2].replace("QUESTION", question))
    assert command[0] == verb
    file = str(audio if use.startswith("speech") else image)
    command = [file if word == "FILE" else word for word in command]
    if verb == "chat":
        command += [] if question in command else [question]
        command += ["--max-tokens", "8"]
    capsys.readouterr()
    cli.main(command)
    answer = capsys.readouterr().out.strip()

    def expected(model: Path, adapter: str) -> str:
        phi = polyphi.load(model)
        if verb == "transcribe":
            return phi.transcribe(audio, adapter=adapter).text
        media = {"audios": [audio]} if "--audio" in command else {}
        media |= {"images": [image]} if "--image" in command else {}
        return phi.generate(question, **media, adapter=adapter, max_tokens=8).text.strip()

    assert answer == expected(out / "model", adapter)
    assert answer != expected(out / "model", "none"), "without the adapter"
    if adapter in ADAPTERS["native"]:
        assert answer != expected(source / "native", adapter), "before the training"


def test_a_thin_picture_is_a_bad_row(
    source: Path, tmp_path: Path, run: Callable[..., Path]
) -> None:
    Picture.new("RGB", (6, 200)).save(source / "data/thin.png")
    row = {"image": "thin.png", "question": "which colour is it", "answer": "red"}
    rows = [json.dumps({**row, "image": f"{i}.png"}) for i in range(3)]
    (source / "data/thin.jsonl").write_text("\n".join([*rows, json.dumps(row)]))
    with pytest.raises(ValueError, match=r"thin\.jsonl, line 4: .*6 x 200"):
        run("vision", "strict", ["thin.jsonl"], steps=1, revise=as_requested)
    out = run("vision", "run", ["thin.jsonl"], steps=1, revise=as_requested, skip_bad=True)
    manifest = json.loads((out / "data/rows/train/manifest.json").read_text())
    assert (manifest["rows"], manifest["left_out"]) == (3, 1)


def test_a_run_is_an_adapter_of_its_base(
    source: Path, run: Callable[..., Path], run_command: Callable[..., tuple[int, str, str]]
) -> None:
    """Its folder or its model's, as `--lora`, where it trained one adapter and nothing else."""
    out, base = run("text", "run", steps=2, lr_factor=50, revise=as_requested), str(source / "mini")
    messages = [Message.user("say red")]
    expected = polyphi.load(out / "model").logits(messages, adapter="text")[1]
    for folder in (out, out / "model", out / "model/text-lora"):
        phi = polyphi.load(base, adapters={"mine": folder})
        logits = phi.logits(messages, adapter="mine")[1]
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    chat = ("chat", base, "--lora", f"mine={out}", "say red", "--max-tokens", "2")
    code, _, error = run_command(*chat)
    assert code == 0, error
    manifest = json.loads((out / "manifest.json").read_text())
    for globs in (["decoder.*.lora.text.*", "vision.projector.*"], ["decoder.*.lora.*"]):
        manifest["learning_rates"] = dict.fromkeys(globs, 1e-5)
        (out / "manifest.json").write_text(json.dumps(manifest))
        code, _, error = run_command(*chat)
        assert code == 2 and globs[-1] in error and str(out / "model") in error


def test_pairs_are_evaluated(run: Callable[..., Path], source: Path) -> None:
    """At the start the reference is the model itself; training is the same without evaluations."""
    rows = [str(source / "data/pairs.jsonl")]
    options = {"steps": 2, "batch_tokens": 400, "lr_factor": 2000}
    out = run("preferences", "run", eval_data=rows, eval_every=1, **options)
    first, *_, last = read_metrics(out / EVALUATIONS)
    assert first["margin"] == pytest.approx(0, abs=1e-4) and last["margin"] > 0.01
    assert last["loss"] < first["loss"] and last["accuracy"] > 0.5
    assert trajectory(out) == trajectory(run("preferences", "plain", **options))


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_gets_more_steps(finished: bool, run: Callable[..., Path]) -> None:
    """From the step on the learning rate is that of the new length; the steps before stay; the change is reported."""
    options = {"batch_tokens": 100, "lr_factor": 100}
    if not finished:
        stops = Fails(2, lambda: os.kill(os.getpid(), signal.SIGINT))
        stage = replace(for_rows(STAGES["text"], (), ()), objective=stops)
        with pytest.raises(KeyboardInterrupt):
            run(stage, "run", steps=3, **options)
    out = run("text", "run", steps=3, **options)
    before = trajectory(out)
    model = load_file(out / "model/text-lora/adapter_model.safetensors")
    messages: list[str] = []
    grown = run("text", "run", steps=5, report=lambda m: messages.append(str(m)), **options)
    assert len(trajectory(grown)) == 5 and trajectory(grown)[:3] == before
    manifest = json.loads((grown / "manifest.json").read_text())
    assert manifest["budget"]["steps"] == 5 and manifest["schedule_changes"] == [[3, 3]]
    assert any("5 steps instead of 3" in message for message in messages)
    assert not same_bits(model, load_file(out / "model/text-lora/adapter_model.safetensors"))
    lrs = [record["lr"] for record in read_metrics(grown / "metrics.jsonl")]
    schedule = STAGES["text"].schedule
    assert lrs[3] / lrs[0] == pytest.approx(schedule.factor(3, 5) / schedule.factor(0, 3))
    with pytest.raises(ValueError, match="'steps': 5"):
        run("text", "run", steps=4, **options)


def test_the_model_of_a_finished_run_stays_until_its_further_steps_are_done(
    run: Callable[..., Path],
) -> None:
    options = {"batch_tokens": 100, "lr_factor": 100}
    stage = for_rows(STAGES["text"], (), ())
    out = run(stage, "run", steps=2, **options)
    model = load_file(out / "model/text-lora/adapter_model.safetensors")
    stops = Fails(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(replace(stage, objective=stops), "run", steps=4, **options)
    assert not (out / "model").exists()
    assert same_bits(model, load_file(out / "model-before/text-lora/adapter_model.safetensors"))
    run(stage, "run", steps=4, **options)
    assert (out / "model").exists() and not (out / "model-before").exists()


def test_a_finished_run_without_its_checkpoint_names_its_model(run: Callable[..., Path]) -> None:
    out = run("text", "run", steps=1)
    for file in sorted((out / "checkpoints").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (out / "checkpoints").rmdir()
    with pytest.raises(ValueError, match=r"--model .*run/model"):
        run("text", "run", steps=2)
    assert (out / "model").exists() and (out / "manifest.json").exists()


def test_a_kill_before_the_first_checkpoint_is_reported(run: Callable[..., Path]) -> None:
    def crash() -> None:
        raise RuntimeError("killed")

    stage = replace(for_rows(STAGES["text"], (), ()), objective=Fails(1, crash))
    with pytest.raises(RuntimeError, match="killed"):
        run(stage, "run", steps=2)
    messages: list[str] = []
    out = run("text", "run", steps=2, report=lambda message: messages.append(str(message)))
    assert any("before its first checkpoint: starts from step 0" in m for m in messages)
    assert trajectory(out) == trajectory(run("text", "straight", steps=2))


LLAVA = "vision", "native", "llava.json"
REFUSED = {
    "a model without vision": ("vision", "mini", "llava.json", [], "polyphi finetune text"),
    "rows without images": ("vision", "native", "clips.jsonl", [], "polyphi finetune speech"),
    "images for text": ("text", "native", "llava.json", [], "polyphi finetune vision"),
    "no pairs": ("preferences", "native", "llava.json", [], "rejected"),
    "two lengths": (*LLAVA, ["--steps", "2", "--epochs", "1"], "or --epochs"),
    "no rows to evaluate": (*LLAVA, ["--eval-data", "no.jsonl"], "no.jsonl"),
    "an unknown tracker": (*LLAVA, ["--track", "paper"], "tracker 'paper'"),
}
"""What is refused -> kind, model, file of rows, further options, and what the error names."""


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_command_is_one_line_and_leaves_no_files(
    name: str, source: Path, tmp_path: Path, refused: Refused
) -> None:
    kind, model, file, options, message = REFUSED[name]
    command = ["finetune", kind, "--model", str(source / model), "--out", str(tmp_path / "a/b")]
    assert message in refused(*command, "--data", str(source / "data" / file), *options)
    assert not list(tmp_path.iterdir())


def test_what_does_not_fit_is_refused_with_what_would(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "free_memory", lambda device: 1000)
    monkeypatch.setattr(planning, "memory_in_use", lambda device: 0)
    with pytest.raises(ValueError, match=r"0\.0 GB .*--devices 1x"):
        run("text", "run", steps=1)
    assert not (tmp_path / "run").exists()


def test_packs_are_smaller_where_memory_is_short(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The choice is recorded, and used again when there is more memory."""
    monkeypatch.setattr(planning, "memory_in_use", lambda device: 0)
    monkeypatch.setattr(planning.Estimate, "fits", True)
    monkeypatch.setattr(planning, "fitting", lambda load, on, *_: replace(on, micro_tokens=512))
    out = run("text", "run", steps=1)
    assert json.loads((out / planning.CHOICES_FILE).read_text())["micro_tokens"] == 512


def test_a_run_is_no_longer_than_the_time_by_default(
    run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its steps are smaller, and the reason is printed before the first one; a named length isn't changed."""
    monkeypatch.setattr(planning, "MAX_DEFAULT_SECONDS", 1e-9)
    messages: list[str] = []
    out = run("vision", "run", report=lambda message: messages.append(str(message)))
    choices = json.loads((out / planning.CHOICES_FILE).read_text())
    longer = json.loads((run("vision", "named", epochs=3) / planning.CHOICES_FILE).read_text())
    assert choices["steps"] == 1 < longer["steps"]
    assert any("epochs, the most that" in message for message in messages)


def test_tokens_of_a_step() -> None:
    """A hundredth of three epochs, or of what the time holds; at least eight rows, at most the stage's."""
    rows = {"rows": RowTokens([100] * 10, 1000)}
    assert planning.default_batch(rows, 16_384) == 3000
    assert planning.default_batch(rows, 16_384, run_tokens=150_000) == 1500
    assert planning.default_batch(rows, 16_384, run_tokens=10) == 800
    assert planning.default_batch(rows, 2000) == 2000
    assert planning.default_batch({"rows": RowTokens([100, 2500], 2)}, 16_384) == 10_400


def test_epochs() -> None:
    rows = {"rows": RowTokens([10, 20, 30, 0], 4)}
    assert (
        epoch_steps(rows, 30) == 2 and steps_of(1, rows, 30) == 2 and steps_of(2.2, rows, 30) == 5
    )
    assert epoch_steps(rows, 1000) == pytest.approx(0.06) and steps_of(1, rows, 1000) == 1
    sampled = RowTokens([10, 30], 6)  # each stands for three rows
    assert sampled.total == 120 and list(sampled) == [10] * 3 + [30] * 3
    assert sampled.index(sampled.longest) == 3
    with pytest.raises(ValueError, match="context"):
        steps_of(1, {"rows": RowTokens([0], 1)}, 30)


def test_an_epoch_draws_each_row(run: Callable[..., Path]) -> None:
    out = run("vision", "run", epochs=2, batch_tokens=100)
    counters = json.loads((out / "manifest.json").read_text())["counters"]
    assert 24 <= counters["samples"] <= 24 + 4, "twice twelve rows; the last step is filled"
