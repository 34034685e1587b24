"""Checks of arguments by their annotations: a wrong type, or a name that doesn't exist, is a ValueError of one line.

>>> @checked
... def repeat(text: str, times: int = 1) -> str:
...     return text * times
>>> repeat("ab", times="2")
Traceback (most recent call last):
ValueError: times: expected a whole number, found '2' (str)

`checked` is for functions and methods, `checked_fields` for dataclasses. Types that aren't known here (tensors with
shapes, protocols) aren't checked: the function that reads such a value has a more precise message.
"""

import difflib
import inspect
import types
import typing
from abc import ABCMeta
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial, wraps
from itertools import cycle
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

ADVICE: dict[str, str] = {
    **dict.fromkeys(
        ("max_new_tokens", "max_completion_tokens", "max_length", "n_predict", "num_predict"),
        "write max_tokens=",
    ),
    "do_sample": "write temperature= (0, the default, is greedy)",
    "temp": "write temperature=",
    "num_beams": "there is no beam search; n= samples several answers",
    **dict.fromkeys(("num_return_sequences", "best_of", "n_probs"), "write n="),
    "repeat_penalty": "write repetition_penalty=",
    **dict.fromkeys(("stop_strings", "stop_sequences", "stop_words"), "write stop="),
    **dict.fromkeys(("eos_token_id", "stop_tokens"), "write stop_token_ids="),
    **dict.fromkeys(("stream", "streamer"), "call phi.stream(...), whose deltas have .text"),
    **dict.fromkeys(("sampling_params", "generation_config", "params"), "write sampling="),
    **dict.fromkeys(
        ("json_schema", "guided_json", "schema", "response_model", "structured_outputs"),
        "write response_format=",
    ),
    "functions": "write tools=",
    "tool_choice": "with tools= the model chooses; response_format= determines the form of an answer",
    **dict.fromkeys(("image", "img", "pictures"), "write images=[...]"),
    **dict.fromkeys(("audio", "sounds", "speech"), "write audios=[...]"),
    **dict.fromkeys(
        ("prompt", "prompts", "text", "inputs", "input_ids"), "it is the first argument"
    ),
    **dict.fromkeys(("lora", "lora_request"), "write adapter=, and load it with adapters="),
    "torch_dtype": "write dtype=",
    **dict.fromkeys(("device_map", "n_gpu_layers"), 'write device="cuda" or device="cpu"'),
    "load_in_4bit": 'write quant="int4"',
    "load_in_8bit": 'write quant="int8"',
    **dict.fromkeys(("quantization", "quantization_config"), 'write quant="int4" or quant="int8"'),
    "trust_remote_code": "polyphi runs no code of checkpoints; leave it out",
    "attn_implementation": "attention is chosen by the device; leave it out",
    "revision": "write it behind the hub id: owner/name@revision",
    **dict.fromkeys(("token", "use_auth_token"), "set the environment variable HF_TOKEN"),
    **dict.fromkeys(
        ("n_ctx", "max_model_len", "gpu_memory_utilization"),
        "write cache_gb=, the memory of the KV cache; the context is the model's",
    ),
    "tensor_parallel_size": "a model runs on one device; leave it out",
    **dict.fromkeys(("rate", "sampling_rate", "sr"), "write sample_rate="),
    "language": "the model recognizes the language; to= translates",
    **dict.fromkeys(("task", "target_language", "tgt_lang"), 'write to="de" to translate'),
    **dict.fromkeys(("return_timestamps", "word_timestamps"), 'write words="estimated"'),
}
"""Arguments that users of transformers, vLLM, llama.cpp and OpenAI's client try -> how they are written here."""

Check = Callable[[Any], str | None]
"""Returns None for a fitting value, otherwise the place inside the value that doesn't fit: "" or such as "[2]"."""


def describe(value: Any) -> str:
    """A value for an error: short values as they are, with their type, otherwise the type."""
    if value is None or isinstance(value, bool):
        return repr(value)
    if isinstance(value, str | int | float):
        return f"{value!r:.60} ({type(value).__name__})"
    if (shape := getattr(value, "shape", None)) is not None:
        return f"{type(value).__name__} of shape {list(shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{type(value).__name__} {value!r:.60}"


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function with its arguments checked by their annotations. Raises ValueError for a value of another type, and
    for a keyword that doesn't exist, with the right one where `ADVICE` or a similar name has it."""
    *_, owner, name = ("", *function.__qualname__.split("."))
    return _checked(function, owner if name == "__init__" else name)


@typing.overload
def checked_fields(cls: type[T], /) -> type[T]: ...
@typing.overload
def checked_fields(*, accepts: type) -> Callable[[type[T]], type[T]]: ...
def checked_fields(
    cls: type[T] | None = None, /, *, accepts: type | None = None
) -> type[T] | Callable[[type[T]], type[T]]:
    """The dataclass with the arguments of its constructor checked as by `checked`. `accepts`: a `TypedDict` of the
    types that it accepts, where these are more than it stores."""

    def decorated(cls: type[T]) -> type[T]:
        setattr(cls, "__init__", _checked(cls.__init__, cls.__name__, accepts))  # noqa: B010
        return cls

    return decorated if cls is None else decorated(cls)


def _checked(function: Callable[P, R], name: str, accepts: type | None = None) -> Callable[P, R]:
    parameters = list(inspect.signature(function).parameters.values())
    positional = [
        p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    more = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    types: dict[str, _Type] = {}
    open_ended = False

    def read_annotations() -> None:
        """Read the annotations. This happens at the first call, since they may name what is defined further below."""
        nonlocal open_ended
        hints = typing.get_type_hints(accepts or function, include_extras=True)
        for p in parameters:
            hint = hints.get(p.name, Any)
            if p.kind is p.VAR_KEYWORD:
                options = typing.get_args(hint)  # of Unpack[...]
                open_ended = not options
                for key, value in typing.get_type_hints(options[0]).items() if options else ():
                    types[key] = _type(value)
            else:
                types[p.name] = _type(hint)

    def examine(argument: str, place: str, value: Any) -> None:
        check, phrase, _ = types[argument]
        if (inner := check(value)) is not None:
            wrong = _at(value, inner)
            expected = phrase if not inner else f"{phrase} (wrong at {place}{inner})"
            is_alone = phrase.startswith("a list") and (
                isinstance(value, str | bytes) or not isinstance(value, Iterable | type(None))
            )
            advice = "; write [...] around it" if is_alone else ""
            raise ValueError(f"{place}: expected {expected}, found {describe(wrong)}{advice}")

    @wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> R:
        if not types:
            read_annotations()
        for argument, value in zip(positional, args, strict=False):
            examine(argument, argument, value)
        for number, value in enumerate(args[len(positional) :] if more else ()):
            examine(str(more), f"{more}[{number}]", value)
        for argument, value in options.items():
            if argument in types:
                examine(argument, argument, value)
            elif not open_ended:
                known = [key for key in types if key not in ("self", "cls")]
                raise ValueError(_no_argument(name, argument, known))
        return function(*args, **options)

    return call


def _no_argument(name: str, argument: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(argument, known, 1)
    advice = ADVICE.get(argument) or (f"write {near[0]}=" if near else f"it has {', '.join(known)}")
    return f"{name} has no argument {argument}=: {advice}"


def _at(value: Any, path: str) -> Any:
    """The value inside another one at a path such as "[2][0]"."""
    for key in path.strip("[]").split("][") if path else ():
        value = value[int(key)] if isinstance(value, Sequence) else value[key]
    return value


class _Type(NamedTuple):
    """The check of an annotation and its words for errors: "a text", or of several "texts"."""

    check: Check
    one: str
    several: str


def _type(hint: Any) -> _Type:
    """The type of an annotation. `Annotated[type, one, several]` has its own words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in _GENERIC:
        return _GENERIC[origin](inner)
    if origin is None and hint in _PLAIN:
        return _PLAIN[hint]
    name = getattr(hint, "__name__", str(hint))
    article = "an" if name[:1] in "AEIOU" else "a"
    known = isinstance(hint, type) and origin is None and _is_plain(hint)
    return _Type(_instance(hint) if known else _accept, f"{article} {name}", f"{name}s")


def _is_plain(hint: type) -> bool:
    """Whether `isinstance` tells what a class means as an annotation: not for types with shapes."""
    if getattr(hint, "_is_protocol", False):
        return getattr(hint, "_is_runtime_protocol", False)
    return hint is not object and type(hint) in (type, ABCMeta)


def _accept(value: Any) -> None:
    return None


def _instance(cls: type, *, but: Any = ()) -> Check:
    return lambda value: None if isinstance(value, cls) and not isinstance(value, but) else ""


def _union(inner: Sequence[Any]) -> _Type:
    members = [_type(one) for one in inner]

    def check(value: Any) -> str | None:
        places = list[str]()
        for member in members:
            if (place := member.check(value)) is None:
                return None
            places.append(place)
        return max(places, key=len)  # where a list fits but for one item, that item

    return _Type(check, _joined(m.one for m in members), _joined(m.several for m in members))


def _literal(inner: Sequence[Any]) -> _Type:
    words = _joined(str(one) for one in inner)
    return _Type(lambda value: None if value in inner else "", words, words)


def _items(container: type, inner: Sequence[Any]) -> _Type:
    """The type of a pair, a list or what is iterated; of the last, items are only checked in a list."""
    is_pair = container is tuple and inner[-1:] != (...,)
    items = [_type(one) for one in inner if one is not ...]

    def check(value: Any) -> str | None:
        if isinstance(value, str | bytes | Mapping) or not isinstance(value, container):
            return ""
        if not isinstance(value, Sequence):
            return None
        if is_pair and len(value) != len(items):
            return ""
        places = (item.check(one) for item, one in zip(cycle(items), value, strict=False))
        return next((f"[{n}]{place}" for n, place in enumerate(places) if place is not None), None)

    if is_pair:
        words = " and ".join(item.one for item in items)
        return _Type(check, f"a pair of {words}", f"pairs of {words}")
    words = "" if inner[0] is Any else f" of {items[0].several}"
    return _Type(check, f"a list{words}", f"lists{words}")


def _mapping(inner: Sequence[Any]) -> _Type:
    entries = [_type(one) for one in inner]

    def check(value: Any) -> str | None:
        if not isinstance(value, Mapping):
            return ""
        fits = all(
            entry.check(part) is None
            for pair in value.items()
            for entry, part in zip(entries, pair, strict=False)
        )
        return None if fits else ""

    names = " and ".join(_type(one).several for one in inner if one is not Any)
    words = f" of {names}" if names else ""
    return _Type(check, f"a dict{words}", f"dicts{words}")


def _joined(words: Iterable[str]) -> str:
    words = list(dict.fromkeys(words))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


_NONE = _Type(_instance(types.NoneType), "None", "None")
_FUNCTION = _Type(lambda value: None if callable(value) else "", "a function", "functions")
_PLAIN: dict[Any, _Type] = {
    str: _Type(_instance(str), "a text", "texts"),
    int: _Type(_instance(Integral, but=bool), "a whole number", "whole numbers"),
    float: _Type(_instance(Real, but=bool), "a number", "numbers"),
    bool: _Type(_instance(bool), "True or False", "True or False"),
    bytes: _Type(_instance(bytes), "bytes", "bytes"),
    Path: _Type(_instance(Path), "a path", "paths"),
    Any: _Type(_accept, "anything", "anything"),
    None: _NONE,
    types.NoneType: _NONE,
    Callable: _FUNCTION,
}
"""Annotations without arguments, which have other words or checks than their class."""
_GENERIC: dict[Any, Callable[[Sequence[Any]], _Type]] = {
    Annotated: lambda inner: _type(inner[0])._replace(one=inner[1], several=inner[2]),
    **dict.fromkeys((typing.Union, types.UnionType), _union),
    Literal: _literal,
    Callable: lambda inner: _FUNCTION,
    tuple: partial(_items, tuple),
    **dict.fromkeys((Sequence, list), partial(_items, Sequence)),
    Iterable: partial(_items, Iterable),
    **dict.fromkeys((Mapping, dict), _mapping),
}
"""Origin of an annotation -> the type of its arguments."""
