"""Fine-tuning a published checkpoint: resumable, siblings, precision, layouts, and error messages."""

import json
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from queue import Queue
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import polyphi
from polyphi import Image, Message, cli
from polyphi.checkpoints.headers import files_beside, read_config, read_layout
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.devices import precision
from polyphi.finetuning.run import finetune
from polyphi.finetuning.stages import load_stage
from polyphi.model.config import AdapterConfig
from polyphi.runtime.files import locked
from polyphi.train.loss import NextToken
from polyphi.train.options import FinetuneOptions, TrainOptions
from polyphi.train.stage import Mix, Schedule, Stage
from tests.core.train.small import Fails, trajectory
from tests.fixtures import published
from tests.fixtures.command_line import Refused, RunCommand
from tests.fixtures.processes import completed
from tests.fixtures.variants import few

SIBLING = Stage(
    name="sibling",
    start={},
    adapters={"medical": AdapterConfig(rank=3, alpha=6.0, dropout=0.2)},
    trainable={"decoder.*.lora.medical.*": 1e-2, "audio.projector.speech.*": 1e-2},
    data=Mix({"pictures": 1, "clips": 1}, adapter={"pictures": "medical"}),
    objective=NextToken(),
    schedule=Schedule(decay="constant"),
    context=200,
    batch_tokens=100,
    steps=3,
)
TEXT = replace(
    SIBLING,
    trainable={"decoder.*.lora.medical.*": 1e-2},
    data=Mix({"words": 1}, adapter={"words": "medical"}),
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in float32 and bfloat16, and data."""
    source = tmp_path_factory.mktemp("published")
    published.write(source / "original", "original", torch.float32)
    published.write(source / "native", "native")
    published.write(source / "mini", "mini", torch.float32)
    published.write_data(source / "data")
    return source


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Callable[..., Path]:
    def run(
        stage: Stage = SIBLING, out: str = "run", model: str = "original", **options: Any
    ) -> Path:
        data = [f"{n}={source / 'data' / n}.jsonl" for n in stage.data.weights]
        names = {field.name for field in fields(TrainOptions)} & set(options)
        train = TrainOptions(**{name: options.pop(name) for name in names})
        checkpoint = options.pop("checkpoint", source / model)
        report = options.pop("report", lambda _: None)
        finetune(
            stage,
            data,
            tmp_path / out,
            checkpoint=checkpoint,
            finetuning=FinetuneOptions(**options),
            options=train,
            report=report,
        )
        return tmp_path / out

    return run


def state(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder).state_dict()


QUICK = (("original", "bf16", None), ("native", "fp32", "int8"), ("native", "bf16", "int4"))


@pytest.mark.parametrize(
    ("model", "precision", "base"),
    few(
        product(("original", "native"), ("bf16", "fp32"), (None, "int8", "int4")),
        QUICK.__contains__,
    ),
)
def test_what_rests_comes_out_as_it_went_in(
    model: str, precision: str, base: str | None, run: Callable[..., Path], source: Path
) -> None:
    out = run(model=model, precision=precision, base=base)
    before, after = state(source / model), state(out / "model")
    learned = {n for n in after if ".medical." in n or n.startswith("audio.projector.speech.")}
    assert set(load_file(out / "trained.safetensors")) == learned
    assert set(after) - set(before) == {n for n in learned if ".medical." in n}
    assert all(torch.equal(before[n], after[n]) for n in before if n not in learned)
    assert all(not torch.equal(before[n], after[n]) for n in learned & set(before))
    assert {t.dtype for t in after.values()} == {t.dtype for t in before.values()}
    assert read_layout(out / "model") == "native", "the original one has no room for it"
    adapter = SIBLING.adapters["medical"]
    assert read_config(out / "model").adapters["medical"] == adapter
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["parents"][str(source / model)] > 50 and manifest.get("base") == base
    quantized = {name.rpartition(".")[2] for name in manifest["frozen"]} & {
        "q4",
        "q8",
        "r4",
        "r6",
        "r8",
    }
    # Encoders have one scale per output; q, k and v of the tests' width don't fit 4 bits.
    expected = {None: set(), "int8": {"q8", "r8"}, "int4": {"q8", "r4", "r6", "r8"}}
    assert quantized == expected[base]


@pytest.mark.parametrize("precision", few(("bf16", "fp32"), 1))
def test_a_checkpoint_of_two_dtypes_computes_and_is_exported_in_that_of_its_decoder(
    precision: str, run: Callable[..., Path], source: Path, tmp_path: Path
) -> None:
    mixed = load_checkpoint(source / "native")
    for name, parameter in mixed.named_parameters():
        if ".lora." in name or name.startswith("vision."):
            parameter.data = parameter.data.float()
    files = files_beside(source / "native", "native")
    save_checkpoint(mixed, tmp_path / "mixed", files=files)
    phi = polyphi.load(tmp_path / "mixed")
    assert phi.generate("which colour is it", images=[source / "data/0.png"], max_tokens=2).tokens
    out = run(checkpoint=tmp_path / "mixed", precision=precision)
    before, after = state(source / "native"), state(out / "model")
    assert {t.dtype for t in after.values()} == {torch.bfloat16}
    assert all(torch.equal(before[n], after[n]) for n in before if n.startswith("decoder."))


@pytest.mark.parametrize(
    ("model", "glob"),
    few(
        [
            ("native", g)
            for g in ("vision.*", "decoder.*", "audio.encoder.*", "audio.projector.vision.*")
        ],
        2,
    ),
)
def test_any_part_of_a_bfloat16_checkpoint_learns(
    model: str, glob: str, run: Callable[..., Path], tmp_path: Path, source: Path
) -> None:
    both = {"image": "0.png", "audio": "0.wav", "answer": "red"}
    (source / "data/both.jsonl").write_text(f"{json.dumps(both)}\n" * 8)
    mix = Mix({"both": 1} if "vision" in glob else {"clips": 1})
    out = run(replace(SIBLING, trainable={glob: 1e-2}, adapters={}, data=mix, steps=2), model=model)
    before, after = state(source / model), state(out / "model")
    assert any(not torch.equal(before[n], after[n]) for n in before)


@pytest.mark.parametrize(("free", "chosen"), [(1 << 40, "fp32"), (1000, "bf16")])
def test_float32_is_chosen_only_where_the_weights_fit(
    free: int, chosen: str, run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(precision.VARIABLE, raising=False)
    monkeypatch.setattr(precision, "missing", lambda dtype: "this CPU is old")
    monkeypatch.setattr("polyphi.finetuning.prepare.free_memory", lambda device: free)
    messages: list[str] = []
    out = run(TEXT, precision="auto", report=messages.append)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["precision"] == chosen and "this CPU is old" in manifest["precision_reason"]
    assert sum("this CPU is old" in str(line) for line in messages) == 1


@pytest.mark.parametrize("base", few(["int4", None], 1))
def test_an_interrupted_run_equals_one_that_was_never_stopped(
    base: str | None, run: Callable[..., Path]
) -> None:
    straight = run(base=base)
    stops = Fails(1, lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(replace(SIBLING, objective=stops), out="half", base=base)
    with pytest.raises(ValueError, match="base"):
        run(out="half", base="int8")
    half = run(out="half", base=base)
    assert len(trajectory(half)) == 3 and trajectory(half) == trajectory(straight)
    one, two = (load_file(f / "trained.safetensors") for f in (straight, half))
    assert one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
    one, two = state(straight / "model"), state(half / "model")
    assert all(torch.equal(one[n], two[n]) for n in one)


def test_a_second_run_in_the_same_folder_waits_for_the_first(
    run: Callable[..., Path], tmp_path: Path
) -> None:
    messages: Queue[str] = Queue()
    thread = Thread(target=lambda: run(TEXT, report=lambda m: messages.put(str(m))))
    with locked(tmp_path / "run/.lock"):
        thread.start()
        assert f"process {os.getpid()} on" in messages.get(timeout=60)
        assert not (tmp_path / "run/data").exists()
    thread.join()
    assert (tmp_path / "run/model").exists()


def test_a_finished_run_is_only_exported_again(run: Callable[..., Path]) -> None:
    out = run()
    before = state(out / "model")
    for file in sorted((out / "model").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (out / "model").rmdir()
    written = (out / "manifest.json").stat().st_mtime_ns
    run()
    assert (out / "manifest.json").stat().st_mtime_ns == written
    assert all(torch.equal(before[n], t) for n, t in state(out / "model").items())
    with pytest.raises(ValueError, match="adapters"):
        run(replace(SIBLING, adapters={"medical": AdapterConfig(3, 7.0, 0.2)}))


def test_an_adapter_may_start_as_a_copy(run: Callable[..., Path], source: Path) -> None:
    """With a learning rate of 0 it stays equal to the original."""
    stage = replace(
        SIBLING, adapters={"medical": "vision"}, trainable={"decoder.*.lora.medical.*": 0.0}
    )
    out = run(stage, precision="fp32")
    phi = polyphi.load(out / "model")
    messages = [Message.user(Image(source / "data/1.png"), "which colour is it")]
    one, two = (phi.logits(messages, adapter=a)[1] for a in ("vision", "medical"))
    assert torch.equal(one, two)


def test_phi_4_mini_with_an_adapter_beside_it(run: Callable[..., Path], tmp_path: Path) -> None:
    out = run(TEXT, model="mini")
    assert read_layout(out / "model") == "mini"
    assert (out / "model/medical-lora/adapter_config.json").exists()
    command = ["export", str(out / "model"), "--layout", "mini", "--merge", "medical"]
    cli.main([*command, "--out", str(tmp_path / "merged")])
    one, two = polyphi.load(out / "model"), polyphi.load(tmp_path / "merged")
    assert not two.config.adapters
    messages = [Message.user("say red")]
    expected = one.logits(messages, adapter="medical")[1]
    assert not torch.equal(one.logits(messages)[1], expected)
    torch.testing.assert_close(two.logits(messages)[1], expected, atol=1e-5, rtol=0)


def test_merging_on_the_command_line(
    run: Callable[..., Path], source: Path, tmp_path: Path, refused: Refused
) -> None:
    """In float32 within 1e-5 on logits of scale 10: the same sums in another order."""
    out = run(precision="fp32")
    model = str(out / "model")
    no = ("--out", str(tmp_path / "no"))
    assert "--merge medical" in refused("export", model, "--layout", "original", *no)
    assert "'medicine'" in refused("export", model, "--merge", "medicine", *no)
    merged = tmp_path / "merged"
    command = ["export", model, "--layout", "original", "--merge", "medical", "--out", str(merged)]
    cli.main(command)
    one, two = polyphi.load(model), polyphi.load(merged)
    assert set(two.config.adapters) == {"vision", "speech"}
    messages = [Message.user(Image(source / "data/1.png"), "which colour is it")]
    for before, after in (("medical", None), ("vision", "vision"), ("speech", "speech")):
        expected, actual = (
            one.logits(messages, adapter=before)[1],
            two.logits(messages, adapter=after)[1],
        )
        torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)


def test_an_adapter_is_chosen_by_name(
    run: Callable[..., Path], source: Path, run_command: RunCommand, refused: Refused
) -> None:
    model, picture = str(run() / "model"), str(source / "data/1.png")
    chat = ("chat", model, "colour?", "--image", picture)
    code, _, error = run_command(*chat, "--adapter", "medical", "--max-tokens", "2")
    assert (code, error) == (0, "")
    for words in (chat, ("transcribe", model, str(source / "data/1.wav"))):
        error = refused(*words, "--adapter", "medicine")
        assert "'medicine'" in error and "'medical', 'speech', 'vision'" in error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"trainable": {"decoder.*.lora.medicla.*": 1e-3}},
            "matches no parameter; the nearest name is",
        ),
        ({"trainable": {}}, "expected `trainable`"),
        ({"start": {"vision.*": "x"}}, "expected one checkpoint in `start`"),
        ({"start": {}}, "no checkpoint in `start`; give --model"),
        ({"start": {"*": "no/where/here"}}, "expected a checkpoint folder or a hub id"),
        ({"data": Mix({"clips": 1, "films": 1})}, "no data for films"),
        (
            {"data": Mix({"pictures": 1, "clips": 1})},
            "trains the adapter 'medical', but no corpus",
        ),
        (
            {"data": Mix({"pictures": 1}, adapter={"pictures": "medicine"})},
            "adapter 'medicine' .*: vision, speech, medical",
        ),
        ({"copy": {"audio.projector.vision.*": "audio.projector.speech.*"}}, "adapters={NEW: OLD}"),
        ({"adapters": {"vision": AdapterConfig(2, 4.0)}}, "expected a new name"),
        ({"adapters": {"a.b": AdapterConfig(2, 4.0)}}, "expected a new name"),
        ({"adapters": {"none": AdapterConfig(2, 4.0)}}, "expected a new name"),
        ({"adapters": {"medical": "sight"}}, "copy of 'sight'; this model has: vision, speech"),
    ],
)
def test_mistakes_raise_errors_before_anything_is_written(
    change: dict[str, Any], message: str, source: Path, tmp_path: Path
) -> None:
    stage = replace(SIBLING, **change)
    model = None if "start" in change else source / "original"
    names = [n for n in stage.data.weights if n != "films"]
    data = [f"{n}={source / 'data' / n}.jsonl" for n in names]
    with pytest.raises(ValueError, match=message):
        finetune(stage, data, tmp_path / "run", checkpoint=model, report=lambda _: None)
    assert not (tmp_path / "run").exists()


def test_data_that_could_be_any_corpus(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 corpora; .*--data pictures="):
        finetune(SIBLING, ["x.jsonl"], tmp_path, checkpoint=source / "original")


def test_columns_of_one_corpus(run: Callable[..., Path], source: Path, tmp_path: Path) -> None:
    renamed = (source / "data/clips.jsonl").read_text().replace("answer", "sentence")
    (source / "data/renamed.jsonl").write_text(renamed)
    data = [f"pictures={source / 'data/pictures.jsonl'}", f"clips={source / 'data/renamed.jsonl'}"]
    names = {"clips.answer": "sentence"}
    options = {"checkpoint": source / "original", "report": lambda _: None}
    renaming = FinetuneOptions(columns=names, steps=1)
    finetune(SIBLING, data, tmp_path / "run", finetuning=renaming, **options)
    with pytest.raises(ValueError, match=r"clip\.answer=sentence: clip "):
        wrong = FinetuneOptions(columns={"clip.answer": "sentence"})
        finetune(SIBLING, data, tmp_path / "other", finetuning=wrong, **options)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1", "found no stage"),
        ("stage = 3", "found a int"),
        ("stage = (", "SyntaxError"),
        ("import nothing_there", "ModuleNotFoundError"),
    ],
)
def test_a_file_without_a_stage(text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=says):
        load_stage(tmp_path / "mine.py")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nowhere.py"], "expected a Python file, found no file"),
        (["a.py", "b.py"], "a.py: expected a Python file"),
        (["speech_2_post", "--data", "x.jsonl"], "a stage of your own, in a .py file"),
        (["mine.py", "--columns", "answer"], "--columns: expected OURS=YOURS"),
    ],
)
def test_a_wrong_command_is_one_line(
    arguments: list[str], says: str, tmp_path: Path, refused: Refused
) -> None:
    assert says in refused("train", *arguments, "--out", str(tmp_path / "run"))


@pytest.mark.long
def test_a_sharded_run_is_exported(source: Path, tmp_path: Path) -> None:
    """With a language model in two parts the export has whole tensors, of the step with the lowest loss."""
    (tmp_path / "words.py").write_text(
        "from polyphi.train.loss import NextToken\n"
        "from polyphi.train.stage import Mix, Stage\n"
        'stage = Stage(name="words", start={}, trainable={"decoder.layers.*.weight": 1e-3}, data=Mix({"words": 1}),\n'
        "    objective=NextToken(), batch_tokens=200, steps=3)\n"
    )
    words, out = str(source / "data/words.jsonl"), tmp_path / "run"
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
    verb = ("-m", "polyphi.cli", "train", str(tmp_path / "words.py"), "--fsdp", "2")
    rows = ("--model", str(source / "mini"), "--data", words, "--eval-data", words)
    options = ("--patience", "1", "--precision", "fp32", "--out", str(out))
    result = completed(*torchrun, *verb, *rows, *options, OMP_NUM_THREADS="1")
    assert result.returncode == 0, result.stdout
    before, after, trained = (
        state(source / "mini"),
        state(out / "model"),
        out / "trained.safetensors",
    )
    changed = {n for n in after if not torch.equal(before[n], after[n])}
    assert changed and changed <= set(load_file(trained))
    assert all(torch.equal(after[n], tensor) for n, tensor in load_file(trained).items())
