"""A user's modality: nothing that was there changes, and mistakes in its file are one line each."""

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from polyphi.engine.engine import Engine
from polyphi.engine.scores import logits_many
from polyphi.types.batch import Batch, pack
from polyphi.types.messages import Message
from polyphi.types.modality import Cost, Modality, load_modality
from polyphi.types.parts import Image, Item
from polyphi.types.routing import route
from polyphi.types.sampling import SamplingParams
from tests.fixtures.items import FILE, add_motion, csv, motion, series


def logits(engine: Engine, batch: Batch) -> list[Tensor]:
    """The logits of each row of a pack."""
    with torch.no_grad():
        hidden = engine.model(batch)
        sizes = [b - a for a, b in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)]
        return list(engine.model.logits(hidden).split(sizes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_that_was_there_changes(
    engine: Engine, conversations: list[list[Message]], dtype: torch.dtype
) -> None:
    """Text, image, audio and both: the same logits to the bit, alone and in a pack. (The pack has a text of as many
    tokens where the series will be: sums of packs of other sizes may be added up in another order.)"""
    engine.model.to(dtype)
    rows = [engine.processor.row(c, generation_prompt=True) for c in conversations]
    question = [Message.user(series(60), "What is it?")]
    before = [logits(engine, pack([row]))[0] for row in rows]
    add_motion(engine.model, engine.processor)
    moved = engine.processor.row(question, generation_prompt=True)
    placeholder = engine.processor.tokenizer.placeholders["motion"]
    assert moved.adapters == ("motion",) and (moved.ids == placeholder).sum() == 8
    text = replace(moved, inputs={}, adapters=(None,))
    mixed = logits(engine, pack([*rows[:2], text, *rows[2:]]))
    beside = logits(engine, pack([*rows[:2], moved, *rows[2:]]))
    again = [engine.processor.row(c, generation_prompt=True) for c in conversations]
    for row, new, expected in zip(rows, again, before, strict=True):
        assert new.ids.equal(row.ids) and new.adapters == row.adapters
        assert torch.equal(logits(engine, pack([new]))[0], expected)
    for number, (one, other) in enumerate(zip(mixed, beside, strict=True)):
        assert torch.equal(one, other) == (number != 2)


def test_one_by_one_and_together(engine: Engine) -> None:
    """Items of other lengths in the same call of the encoder change none. Sums of padded rows are added up in another
    order: differences of a few units in the last place, 2e-6 of logits around 1."""
    add_motion(engine.model, engine.processor)
    prompts = [[Message.user(series(n, n), "What?")] for n in (3, 60, 17)]
    alone = [engine.rows.row(p) for p in prompts]
    parts = [logits(engine, row)[0] for row in alone]
    torch.testing.assert_close(logits(engine, pack(alone)), parts, atol=1e-4, rtol=1e-4)
    two = [[Message.user(series(8), series(20), "Which?")], prompts[0]]
    assert [len(one) for one in logits_many(engine, [engine.rows.row(p) for p in two])] == [
        len(engine.rows.row(p)) for p in two
    ]
    completion = engine.generate(two[0])
    assert completion.input_tokens == {"motion": 1 + 3} and completion.adapter == "motion"
    assert engine.processor.count(two[0]).inputs == {"motion": 4}


def test_equal_items_are_encoded_once(engine: Engine) -> None:
    add_motion(engine.model, engine.processor)
    for _ in range(2):
        engine.generate([Message.user(series(30), "What?")])
    assert engine.encoders.calls == 1 and engine.encoders.hits
    engine.generate([Message.user(series(30, seed=5), "What?")])
    assert engine.encoders.calls == 2


def test_an_encoder_may_work_in_slices(engine: Engine) -> None:
    """A generator of pieces of work gives the answer of the forward, and other requests are answered in between."""
    plain = motion().encoder
    yields: list[int] = []

    class InSlices(plain):  # type: ignore[misc, valid-type]
        def slices(self, inputs):
            for layer in range(3):
                yields.append(layer)
                yield
            return self(inputs)

    add_motion(engine.model, engine.processor, encoder=InSlices)
    question = [Message.user(series(30), "What?")]
    sliced = engine.encode(engine.rows.row(question))
    assert yields == [0, 1, 2]
    engine.model.motion.encoder.__class__ = plain
    engine.encoders.clear()
    assert torch.equal(engine.encode(engine.rows.row(question)), sliced) and len(yields) == 3


def test_combinations_are_explicit(engine: Engine, conversations: list[list[Message]]) -> None:
    add_motion(engine.model, engine.processor, beside=(("image",),))
    (image,) = [p for p in conversations[1][0].parts if isinstance(p, Image)]
    row = engine.rows.row([Message.user(series(), image)])
    assert row.adapters == ("motion",) and row.inputs.keys() == {"image", "motion"}
    with pytest.raises(ValueError, match="audio with motion"):
        engine.rows.row([Message.user(series(), *conversations[2][0].parts)])
    named = engine.rows.row([Message.user(series(), "a")], adapter="vision")
    assert named.adapters == ("vision",)
    assert route(["image", "audio"]) == "vision" and route([]) is None


def test_dicts_name_the_modality(tmp_path: Path) -> None:
    import base64

    (tmp_path / "walk.csv").write_bytes(csv())
    path = {"type": "motion", "motion": {"path": "walk.csv"}}
    data = {"type": "motion", "motion": {"data": base64.b64encode(csv()).decode()}}
    message = Message.parse({"role": "user", "content": [path, data]}, tmp_path)
    assert message.parts == (Item("motion", tmp_path / "walk.csv"), Item("motion", csv()))
    with pytest.raises(ValueError, match="'motion'"):
        Message.parse({"role": "user", "content": [{"type": "motion", "motion": {"url": "a"}}]})


def test_a_modality_of_a_file_travels_to_other_processes() -> None:
    modality = load_modality(FILE)
    assert load_modality(str(FILE)) is modality
    assert pickle.loads(pickle.dumps(modality)) is modality


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "expected a Python file, found no file"),
        ("x = 1", r"expected `modality = Modality\(...\)`, found no modality"),
        ("modality = 3", "found a int"),
        ("modality = ", "could not be run: SyntaxError"),
        ("import nowhere", "could not be run: ModuleNotFoundError: No module named 'nowhere'"),
        ("\0", "could not be run"),
    ],
)
def test_files_without_a_modality(tmp_path: Path, text: str | None, says: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ValueError, match=says) as error:
        load_modality(file)
    assert "mine.py" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"name": "image"}, "found 'image'"),
        ({"name": "two words"}, "found 'two words'"),
        ({"placeholder": ""}, "expected a text as placeholder"),
        ({"config": dict}, "expected a dataclass as config"),
        ({"read": None}, "read: .* found None"),
    ],
)
def test_wrong_fields(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        motion(**changes)


def test_two_of_one_name_or_placeholder(engine: Engine) -> None:
    add_motion(engine.model, engine.processor)
    with pytest.raises(ValueError, match="'motion'"):
        add_motion(engine.model, engine.processor)
    for name in ("keys", "embed"):  # of the model's containers and the model
        with pytest.raises(ValueError, match=f"'{name}'"):
            add_motion(engine.model, engine.processor, name=name, placeholder="<|x|>")
    with pytest.raises(ValueError, match=r"steps: .*<\|motion\|>"):
        add_motion(engine.model, engine.processor, name="steps")
    with pytest.raises(ValueError, match=r"<\|end\|>"):
        add_motion(engine.model, engine.processor, name="steps", placeholder="<|end|>")
    add_motion(engine.model, engine.processor, name="steps", placeholder="<|steps|>")
    ids = engine.processor.tokenizer.placeholders
    assert len(set(ids.values())) == 4
    with pytest.raises(ValueError, match=r"all \d+ ids"):
        for n in range(999):
            add_motion(engine.model, engine.processor, name=f"m{n}", placeholder=f"<|{n}|>")


class Broken(nn.Module):
    """An encoder whose output is that of a function of the inputs."""

    def __init__(self, output: Callable) -> None:
        super().__init__()
        self.output = output

    def forward(self, inputs) -> Tensor:
        return self.output(inputs)


def _raise(_: object) -> Tensor:
    raise KeyError("/home/someone/secret")


@pytest.mark.parametrize(
    ("output", "says"),
    [
        (_raise, "the encoder of motion failed: KeyError$"),
        (lambda inputs: torch.zeros(sum(inputs.tokens), 7), "failed: RuntimeError"),
        (lambda inputs: torch.zeros(1 + sum(inputs.tokens), 96), r"expected tokens of shape \[3, "),
        (lambda inputs: "no tensor", "the encoder of motion failed"),
    ],
)
def test_a_failing_encoder_ends_its_request_alone(
    engine: Engine, conversations: list[list[Message]], output: Callable, says: str
) -> None:
    short = SamplingParams(max_tokens=8)
    expected = [engine.generate(c, sampling=short) for c in conversations]
    add_motion(engine.model, engine.processor, encoder=lambda config: Broken(output))
    requests = [engine.submit(c, sampling=short) for c in conversations]
    bad = [engine.submit([Message.user(series(20, seed), "a")]) for seed in range(2)]
    for request, answer in zip(requests, expected, strict=True):
        while not request.finish_reason:
            engine.step()
        assert request.completion().text == answer.text
    for request in bad:
        while not request.finish_reason:
            engine.step()
        assert request.finish_reason == "error"
        with pytest.raises(RuntimeError, match=says):
            raise request.error


def test_an_output_that_is_not_finite_ends_its_request(engine: Engine) -> None:
    def nan(inputs) -> Tensor:
        return torch.full((sum(inputs.tokens), 96), torch.nan)

    add_motion(engine.model, engine.processor, encoder=lambda config: Broken(nan))
    with pytest.raises(RuntimeError, match="finite"):
        engine.generate([Message.user(series(), "a")])
    assert engine.generate([Message.user("fox")]).tokens


def test_costs_are_whole_numbers() -> None:
    assert motion().cost(torch.zeros(9, 6)) == Cost(2, motion().cost(torch.zeros(16, 6)).flops)
    assert isinstance(motion(), Modality)
