"""Arguments of the public functions and classes: a wrong type or name is one line, for every argument."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import pytest

import polyphi
from polyphi import Image, Message, SamplingParams
from polyphi.runtime.arguments import ADVICE, checked
from polyphi.types.sampling import SamplingOptions
from tests.fixtures.published import write


class Options(TypedDict, total=False):
    size: int


@checked
def example(
    text: str,
    *more: int,
    share: float = 1.0,
    place: str | Path | None = None,
    mode: Literal["a", "b"] = "a",
    names: Sequence[str] = (),
    pair: tuple[str, int] = ("a", 1),
    table: Mapping[str, int] | None = None,
    call: Callable[[], Any] = dict,
    anything: Any = None,
    **options: Unpack[Options],
) -> None:
    """Has a parameter of each kind."""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"text": 3}, "text: expected a text, found 3 (int)"),
        ({"share": "1"}, "share: expected a number, found '1' (str)"),
        ({"share": True}, "share: expected a number, found True"),
        ({"place": 3}, "place: expected a text, a path or None, found 3 (int)"),
        ({"mode": "c"}, "mode: expected a or b, found 'c' (str)"),
        ({"names": "ab"}, "names: expected a list of texts, found 'ab' (str); write [...] around it"),
        ({"names": ["a", 3]}, "names: expected a list of texts (wrong at names[1]), found 3 (int)"),
        ({"pair": ("a", {})}, "pair: expected a pair of a text and a whole number (wrong at pair[1]), found dict {}"),
        ({"pair": ("a",)}, "pair: expected a pair of a text and a whole number, found tuple ('a',)"),
        ({"table": {"a": "b"}}, "table: expected a dict of texts and whole numbers or None, found dict {'a': 'b'}"),
        ({"call": 3}, "call: expected a function, found 3 (int)"),
        ({"size": 1.5}, "size: expected a whole number, found 1.5 (float)"),
        ({"siz": 1}, "example has no argument siz=: write size="),
        ({"max_new_tokens": 1}, "example has no argument max_new_tokens=: write max_tokens="),
    ],
)  # fmt: skip
def test_errors_name_argument_expectation_and_value(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError) as error:
        example(**{"text": "", **arguments})
    assert str(error.value) == message


def test_what_fits_passes() -> None:
    example("a", 1, 2, share=1, place=Path("a"), names=("a",), table={"a": 1}, anything=object())
    with pytest.raises(ValueError, match=r"more\[1\]"):
        example("a", 1, "b")
    with pytest.raises(TypeError, match="text"):
        example()


def test_options_are_the_fields_of_sampling_params() -> None:
    assert list(SamplingOptions.__annotations__) == list(SamplingParams.__dataclass_fields__)


def test_advice_names_real_arguments() -> None:
    """What the advice says to write is an argument of a public function."""
    known = {*SamplingParams.__dataclass_fields__}
    for function in callables().values():
        known |= set(inspect.signature(function).parameters)
    for guess, advice in ADVICE.items():
        for word in advice.split():
            assert "=" not in word or word.partition("=")[0].strip("(") in known, (guess, advice)
        assert guess not in SamplingParams.__dataclass_fields__


# ---- every public function and class, by argument ---------------------------------------------------------


def callables() -> dict[str, Callable[..., Any]]:
    """The public classes and functions, and the public methods of `Phi` and `Message`."""
    result = {name: getattr(polyphi, name) for name in polyphi.__all__}
    for owner in (polyphi.Phi, polyphi.Message):
        for name, member in vars(owner).items():
            if isinstance(member, classmethod):
                result[f"{owner.__name__}.{name}"] = getattr(owner, name)
            elif inspect.isfunction(member) and not name.startswith("_"):
                result[f"{owner.__name__}.{name}"] = member
    return result


def parameters() -> list[tuple[str, str]]:
    """(callable, argument) of all of them."""
    return [
        (name, parameter.name)
        for name, function in callables().items()
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name != "self" and parameter.kind is not parameter.VAR_KEYWORD
    ]


PROMPT = (None, 3, 2.5, object(), b"fox", [object()], [])
TEXT = (None, 3, b"a", ["a"])
NUMBER = ("3", object(), [1])
LIST = (3, object())
WRONG: dict[str, Sequence[Any]] = {
    **dict.fromkeys(("messages", "messages_or_ids"), PROMPT),
    **dict.fromkeys(("conversations", "prompts"), (3, "fox", [3], [None])),
    "pairs": (3, "fox", [("fox", 3)], ["fox"]),
    **dict.fromkeys(("images", "audios", "items"), ("a.png", 3, [3], [None])),
    **dict.fromkeys(
        ("text", "role", "modality", "name", "placeholder", "continuation", "media_type"), TEXT
    ),
    "ids": (None, "abc", 3, ["a"]),
    **dict.fromkeys(("source", "audio"), (None, 3, object())),
    **dict.fromkeys(("path_or_id", "folder"), (None, 3, [])),
    **dict.fromkeys(("sampling", "tools", "response_format"), (3, "greedy", object())),
    **dict.fromkeys(
        ("adapter", "to", "device", "dtype", "quant", "kv", "tokenizer"), (3, object())
    ),
    **dict.fromkeys(("detail", "projector", "words"), ("none", 3)),
    **dict.fromkeys(
        ("max_crops", "sample_rate", "frames", "last", "window", "max_seconds", "cache_gb"), NUMBER
    ),
    **dict.fromkeys(("max_num_seqs", "max_bytes", "seconds", "tokens", "flops"), NUMBER),
    **dict.fromkeys(("cot", "verify", "generation_prompt"), ("yes", 1)),
    **dict.fromkeys(("on_progress", "progress", "read", "cost", "encoder", "projector_"), (3,)),
    **dict.fromkeys(("part",), ("a.png", 3, None)),
    "parts": (None, 3, [None]),
    **dict.fromkeys(("adapters",), (3, ["a"], {"a": 3})),
    **dict.fromkeys(("modalities", "beside"), LIST),
    **dict.fromkeys(
        ("model", "processor", "config", "value", "root", "attachments", "file"), (3, "a")
    ),
}
"""Argument -> values of wrong types; arguments of one name mean the same in all functions."""
OF_ONE: dict[tuple[str, str], Sequence[Any]] = {
    ("Modality", "projector"): (3,),
    ("Modality", "adapter"): (3, None),
    ("Phi.embed", "projector"): ("image", 3),
    ("Message.parse", "root"): (3,),
    ("Modality", "file"): (3,),
    **{("SamplingParams", name): (object(),) for name in SamplingOptions.__annotations__},
    **{("Completion", name): (object(),) for name in polyphi.Completion.__dataclass_fields__},
    **{("Transcript", name): (object(),) for name in polyphi.Transcript.__dataclass_fields__},
    ("Transcript", "words"): (3,),
    ("Message.system", "tools"): (3, [3], {"name": "a"}),
    ("Message", "tools"): (3, [3]),
}
ALIASES = {
    "source": "audio",
    "value": "message",
    "messages_or_ids": "messages",
    "conversations": "messages",
    "prompts": "messages",
    "pairs": "messages",
}
"""What an error may call an argument instead: the one of `generate`, or that of an `Audio`."""


@pytest.fixture(scope="module")
def phi(tmp_path_factory: pytest.TempPathFactory) -> polyphi.Phi:
    folder = tmp_path_factory.mktemp("model")
    write(folder, "native")
    return polyphi.load(folder, device="cpu")


def valid(phi: polyphi.Phi) -> dict[str, dict[str, Any]]:
    """The arguments that each callable needs at least."""
    audio = ([0.0] * 1600, 16000)
    return {
        "Audio": {"source": audio},
        "Completion": {"text": ""},
        "Cost": {"tokens": 1},
        "Document": {"source": "a.pdf"},
        "Image": {"source": "a.png"},
        "Item": {"modality": "motion", "source": "a.csv"},
        "Message": {"role": "user", "parts": "fox"},
        "Modality": {
            "name": "motion",
            "placeholder": "<|motion|>",
            "config": polyphi.Cost,
            **dict.fromkeys(("read", "cost", "encoder", "projector"), print),
            "adapter": polyphi.types.modality.AdapterConfig(4, 8.0),
        },
        "Phi": {"model": phi.model, "processor": phi.processor},
        "Text": {"text": ""},
        "TokensPrompt": {"ids": [1]},
        "Transcript": {"text": ""},
        "Video": {"source": "a.mp4"},
        "load": {"path_or_id": phi.source},
        "parts": {"text": "fox"},
        "Phi.embed": {"part": Image("a.png")},
        "Phi.generate": {"messages": "fox"},
        "Phi.generate_many": {"conversations": ["fox"]},
        "Phi.stream": {"messages": "fox"},
        "Phi.count": {"messages": "fox"},
        "Phi.tokenize": {"messages": "fox"},
        "Phi.score": {"messages": "fox", "continuation": "a"},
        "Phi.score_many": {"pairs": [("fox", "a")]},
        "Phi.transcribe": {"audio": audio},
        "Phi.transcribe_many": {"audios": [audio]},
        "Phi.logits": {"messages_or_ids": "fox"},
        "Phi.logits_many": {"prompts": ["fox"]},
        "Phi.save": {"folder": "a"},
        "Message.system": {"text": ""},
        "Message.assistant": {"text": ""},
        "Message.parse": {"value": {"role": "user", "content": "fox"}},
    }


@pytest.mark.parametrize(("name", "argument"), parameters())
def test_wrong_types_are_one_line(phi: polyphi.Phi, name: str, argument: str) -> None:
    function = callables()[name]
    if name.startswith("Phi."):
        function = getattr(phi, name.removeprefix("Phi."))
    assert (name, argument) in OF_ONE or argument in WRONG, "add wrong values of a new argument"
    for value in OF_ONE.get((name, argument)) or WRONG[argument]:
        with pytest.raises(ValueError) as error:
            if (name, argument) == ("Message.user", "parts"):
                function(value)
            else:
                function(**{**valid(phi).get(name, {}), argument: value})
        message = str(error.value)
        assert "\n" not in message and "found" in message, (value, message)
        names = {argument, argument.removesuffix("s"), ALIASES.get(argument, argument)}
        assert any(one in message for one in names), (value, message)


@pytest.mark.parametrize("seconds", ["60", None, 0, 1e9])
def test_the_longest_audio_is_a_number_of_seconds(phi: polyphi.Phi, seconds: Any) -> None:
    with pytest.raises(ValueError, match="seconds"):
        phi.max_audio_seconds = seconds


def test_messages_of_wrong_parts_say_where() -> None:
    with pytest.raises(ValueError, match="'picture'"):
        Message.parse({"role": "user", "content": [{"type": "picture"}]})
