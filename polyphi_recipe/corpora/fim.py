"""Fill in the middle: code with a hole whose content is the answer. Most rows are one-line functions from templates
(test: other operands and names), a quarter are functions of the standard library without one line (test: other
modules)."""

from collections.abc import Iterator
from functools import partial
from random import Random

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.dedup.dedup import EXACT, deduplicate
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.raw.real_text import fill, functions, in_split, origin

HOLE = "___"
_NAMES = ["a", "b", "n", "x", "y", "word", "items", "left", "right", "total", "key", "value"]
# (name, body with {x} and {y}, the part that is cut out)
_TEMPLATES = [
    ("add", "return {x} + {y}", "{x} + {y}"),
    ("subtract", "return {x} - {y}", "{x} - {y}"),
    ("multiply", "return {x} * {y}", "{x} * {y}"),
    ("larger", "return max({x}, {y})", "max({x}, {y})"),
    ("smaller", "return min({x}, {y})", "min({x}, {y})"),
    ("pair", "return ({x}, {y})", "({x}, {y})"),
    ("is_equal", "return {x} == {y}", "{x} == {y}"),
    ("is_larger", "return {x} > {y}", "{x} > {y}"),
    ("first_of", "{y} = {x}[0]\n    return {y}", "{x}[0]"),
    ("length_of", "{y} = len({x})\n    return {y}", "len({x})"),
    ("sorted_of", "{y} = sorted({x})\n    return {y}", "sorted({x})"),
    ("reverse_of", "{y} = {x}[::-1]\n    return {y}", "{x}[::-1]"),
]
_ONE_ARGUMENT = ("first_of", "length_of", "sorted_of", "reverse_of")


def build(work: Work) -> Iterator[tuple[str, Sample]]:
    def make(split: str, rng: Random) -> Iterator[Sample]:
        stdlib_cuts = _cuts(split, Random(rng.random()))
        codes: set[str] = set()
        for i in range(1_000_000):
            cut = next(stdlib_cuts, None) if i % 4 == 3 else None
            code, hole, method, name = cut or _templated(split, rng)
            if split != "train" and code in codes:
                continue
            codes.add(code)
            meta = {
                "task": "fim" if method == "template" else "fim_stdlib",
                "language": "python",
                "function": name,
            }
            messages = (Message.user(f"What belongs at {HOLE}?\n{code}"), Message.assistant(hole))
            source = "polyphi" if method == "template" else "python-stdlib"
            yield Sample(f"fim-{split}-{i:06d}", messages, meta=meta, **origin(source))

    yield from fill(work, "fim", make)


def _templated(split: str, rng: Random) -> tuple[str, str, str, str]:
    while True:
        name, body, cut = rng.choice(_TEMPLATES)
        x, y = rng.sample(_NAMES, 2)
        if in_split(split, "fim", name, x, y):
            arguments = x if name in _ONE_ARGUMENT else f"{x}, {y}"
            hole = cut.format(x=x, y=y)
            code = f"def {name}({arguments}):\n    {body.format(x=x, y=y).replace(hole, HOLE)}"
            return code, hole, "template", name


def _cuts(split: str, rng: Random) -> Iterator[tuple[str, str, str, str]]:
    """Yield functions of at most ten lines with one short line of the body cut out."""
    for module, name, source, _ in functions(split, rng, 350):
        lines = source.splitlines()
        inner = [
            i
            for i, line in enumerate(lines)
            if i
            and 6 <= len(line.strip()) <= 40
            and not line.strip().startswith(('"', "'", "#", "r"))
        ]
        if inner and 3 <= len(lines) <= 10 and HOLE not in source:
            at = rng.choice(inner)
            hole = lines[at].strip()
            lines[at] = lines[at].replace(hole, HOLE)
            # Some functions exist in several modules, nearly the same.
            if in_split(split, "function", lines[0], percent=30):
                yield "\n".join(lines), hole, "stdlib", f"{module}.{name}"


# Only verbatim matches: other instances of a template aren't leaks.
corpus = Corpus(
    "fim",
    build,
    steps=against("fim", ways=("quoted",)),
    across=(partial(deduplicate, EXACT),),
    spare=0.3,
)
