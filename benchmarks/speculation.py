"""What guesses (polyphi/engine/speculate.py) spare: how many come true on real tasks, what a step of more tokens costs,
and how much sooner answers are there.

    python benchmarks/speculation.py cost [--kinds int4 int8 bf16] [--layers 8]
    python benchmarks/speculation.py tasks runs/nano [--rows 12] [--kind bf16]
    python benchmarks/speculation.py texts runs/nano --ranks o200k_base.tiktoken [--rows 6] [--kind int4] [--layers 6]

- cost: the time of a decode step of one sequence by its tokens, at the published width with random weights. Two depths
  are measured, and 32 layers told from the layers between them.
- tasks: a finished run's model answers its own held-out samples, one at a time, with and without guesses. Its prompts
  are remembered from a turn before, so that times are of decoding.
- texts: a model of the published width, random weights and few layers is made to give the right answers of real tasks
  (each step's forward, head and choice are run, then the right token is taken): pages read off and text and code
  rewritten, out of this checkout and Python's library, and samples of a run's tasks. Tokens are the published ones.

Tables are in Markdown. "guessed" counts guesses that were run, "right" those that were kept, of those that were run;
"tokens per step" is what an answer's forwards gave on average, without its first token, which prefill gives. Speed is
with guesses over without, medians of turns that alternate.
"""

import argparse
import inspect
import random
import re
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import torch
from engine import random_model
from sidebyside import console

import polyphi
from polyphi.api import make_processor
from polyphi.batch import row
from polyphi.data.shards import Shards
from polyphi.engine.cache import BLOCK, BlockPool, BlockTable, Memory, StepCache
from polyphi.engine.engine import DRAFT, Engine
from polyphi.engine.results import accept
from polyphi.engine.runner import PartOutput
from polyphi.engine.scheduler import StepPart
from polyphi.eval.baselines import select
from polyphi.eval.heldout import find
from polyphi.messages import Message, SamplingParams, Text
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.processing.tokenizer import Tokenizer
from polyphi.quantization.quantize import SCHEMES, quantize

LAYERS = 32
TOKENS = (1, 2, 4, 8, 12, 16)
HELD = 256
"""Tokens of the sequence before a step."""
WORKS = {
    "pages and words read off": ("ocr", "read_page", "read_word", "table", "slide", "stamp"),
    "speech translated by chain of thought": ("ast_cot",),
    "speech written down": ("asr_digits", "asr_numbers", "asr_open", "asr_questions"),
    "summaries": ("summary_title", "speech_summary", "video_summary"),
    "reasoning": ("cot_arithmetic", "cot_story"),
    "tool calls": ("tool_call",),
    "text copied and sorted": ("copy", "sort"),
    "code filled in": ("fim_stdlib",),
    "requests and refusals": ("pictured_requests", "spoken_requests", "refusal", "overrefusal"),
}
"""Tasks of a run that are told together."""
REPLAYED = ("speech translated by chain of thought", "summaries", "reasoning", "tool calls")


@dataclass
class Told:
    """What was counted of some answers, and the seconds that they took in each turn."""

    answers: int = 0
    tokens: int = 0
    steps: int = 0
    """In which a token was drawn, but each answer's first."""
    guessed: int = 0
    right: int = 0
    changed: int = 0
    """Answers that guesses made another, by rounding."""
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    @property
    def speed(self) -> float:
        without, with_ = (statistics.median(self.seconds[g]) for g in (False, True))
        return without / with_


class Counting(Engine):
    """An engine for one sequence at a time that counts. `right`, where it isn't None, is the answer that it is made to
    give."""

    def __init__(self, model: PhiModel, processor: Processor) -> None:
        super().__init__(model, processor, max_num_seqs=1)
        self.right: Sequence[int] | None = None
        self.told: Told | None = None
        self.core.accept = self._accept

    def _accept(
        self, part: StepPart, output: PartOutput, finite: Sequence[bool], best: Sequence[int]
    ) -> None:
        request = part.request
        before = len(request.tokens)
        if self.right is not None and output.logits is not None:
            best = list(self.right[before : before + len(output.logits)])
        accept(part, output, finite, best)
        drawn = len(request.tokens) - before + (request.finish_reason == "stop")
        if self.told is not None and request.prefilled and before:
            self.told.steps += 1
            self.told.tokens += drawn
            self.told.guessed += len(part.draft_tokens)
            self.told.right += drawn - 1


def compare(
    engine: Counting,
    asked: Sequence[tuple[Sequence[Message], int, Sequence[int] | None]],
    turns: int,
) -> Told:
    """Answers of at most so many tokens, the model's own or those given, with and without guesses."""
    told = Told(answers=len(asked))
    answers: dict[bool, list[tuple[int, ...]]] = {}
    for turn in range(-1, turns):
        for guesses in (False, True):
            engine.told = told if guesses and turn == turns - 1 else None
            given, took = [], 0.0
            for messages, most, right in asked:
                draft = DRAFT if guesses else 0
                sampling = SamplingParams(max_tokens=most, draft=draft)
                if turn < 0 and guesses:
                    continue  # prompts are remembered by now
                engine.right = right
                began = time.perf_counter()
                given.append(engine.generate(messages, sampling=sampling).tokens)
                took += time.perf_counter() - began
            if turn >= 0:
                told.seconds[guesses].append(took)
                answers[guesses] = given
    told.changed = sum(a != b for a, b in zip(answers[False], answers[True], strict=True))
    return told


def table(found: Mapping[str, Told]) -> str:
    lines = [
        "| task | answers | tokens | guessed | right | tokens per step | speed | answers changed |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, t in found.items():
        right = f"{t.right / t.guessed:.0%}" if t.guessed else "-"
        lines.append(
            f"| {name} | {t.answers} | {t.tokens} | {t.guessed} | {right} | "
            f"{t.tokens / max(t.steps, 1):.2f} | {t.speed:.2f} | {t.changed} |"
        )
    return "\n".join(lines)


# ------------------------------------------------------------------------------ cost


def published(layers: int) -> ModelConfig:
    """The language model alone, cut to so many layers; every answer is as long as it may be."""
    c = ModelConfig()
    decoder = replace(c.decoder, num_hidden_layers=layers, eos_token_ids=())
    return replace(c, decoder=decoder, vision=None, audio=None, adapters={})


def stepper(kind: str, layers: int) -> Callable[[int], object]:
    """Runs a step of so many tokens behind `HELD` others."""
    config, blocks = published(layers), -(-(HELD + max(TOKENS)) // BLOCK)
    model = quantize(random_model(config), kind)
    memory = Memory(config.decoder, blocks, torch.bfloat16, torch.device("cpu"))
    held = BlockTable(BlockPool(blocks))
    held.grow(HELD + max(TOKENS))

    def step(tokens: int) -> object:
        held.length = HELD
        batch = row(list(range(tokens)))
        batch = replace(batch, positions=batch.positions + HELD, seq_lens=(HELD + tokens,))
        hidden = model(batch, StepCache(memory, [held], [tokens]))
        return model.logits(hidden).float().argmax(-1)

    return step


def cost(kinds: Sequence[str], layers: int, turns: int) -> str:
    lines = [
        f"| tokens of a step | {' | '.join(map(str, TOKENS))} |",
        f"|{'---|' * (len(TOKENS) + 1)}",
    ]
    few = 2
    for kind in kinds:
        steps = {depth: stepper(kind, depth) for depth in (few, layers)}
        took: dict[tuple[int, int], list[float]] = {}
        for turn in range(turns + 1):
            for depth, step in steps.items():
                for tokens in TOKENS:
                    began = time.perf_counter()
                    step(tokens)
                    if turn:
                        took.setdefault((depth, tokens), []).append(time.perf_counter() - began)
        medians = {key: statistics.median(times) for key, times in took.items()}
        whole = []
        for tokens in TOKENS:
            layer = (medians[layers, tokens] - medians[few, tokens]) / (layers - few)
            whole.append(medians[few, tokens] + (LAYERS - few) * layer)
        cells = [f"{seconds * 1e3:.0f} ms ({seconds / whole[0]:.2f})" for seconds in whole]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
        del steps
    return "\n".join(lines)


# ------------------------------------------------------------------------------ tasks of a run


def samples(run: Path, rows: int) -> Iterator[tuple[str, str, list]]:
    """(work, model's folder, its (sample, most tokens) pairs)."""
    tasks = {task.name: task for task in find()}
    for work, names in WORKS.items():
        there = [tasks[n] for n in names if (run / "data" / tasks[n].corpus / "test").exists()]
        found = [
            (sample, task.max_tokens)
            for task in there
            for sample in select(task, Shards(run / "data" / task.corpus / "test"), rows, seed=1)
        ]
        if found:
            folder = "reasoning" if there[0].corpus.startswith("reasoning") else "model"
            yield work, folder, found


def tasks(run: Path, rows: int, kind: str, turns: int) -> str:
    engines: dict[str, Counting] = {}
    found = {}
    for work, folder, pairs in samples(run, rows):
        if folder not in engines:
            precision = {"dtype": kind} if kind == "float32" else {"quant": kind}
            phi = polyphi.load(run / folder, **precision)
            engines[folder] = Counting(phi.model, phi.processor)
        asked = [(sample.prompt, most, None) for sample, most in pairs]
        found[work] = compare(engines[folder], asked, turns)
        console.print(f"{work}: {found[work].speed:.2f}", highlight=False)
    return table(found)


# ------------------------------------------------------------------------------ texts


Pair = tuple[list[Message], str]


def pages(rows: int, rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """Pages of the documentation read off, and corrected where a few letters were swapped."""
    folder = Path(__file__).parents[1] / "docs"
    text = [p for f in sorted(folder.glob("*.md")) for p in re.split(r"\n\n+", f.read_text())]
    text = [p for p in text if 400 < len(p) < 1200]
    rng.shuffle(text)
    read = [([Message.user("Read the page.")], p) for p in text[:rows]]
    corrected = []
    for right in text[rows : 2 * rows]:
        words = right.split(" ")
        for i in rng.sample(range(len(words)), max(1, len(words) // 25)):
            words[i] = words[i][1:2] + words[i][:1] + words[i][2:]
        corrected.append(([Message.user("Correct the spelling:\n" + " ".join(words))], right))
    return read, corrected


def code(rows: int, modules: Sequence[ModuleType]) -> list[Pair]:
    """Functions of Python's library in which an argument gets another name."""
    found = []
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            source = textwrap.dedent(inspect.getsource(function))
            arguments = [a for a in inspect.signature(function).parameters if len(a) > 2]
            if function.__module__ == module.__name__ and 500 < len(source) < 1500 and arguments:
                old = arguments[0]
                new = re.sub(rf"\b{old}\b", f"the_{old}", source)
                ask = f"Rename `{old}` of `{name}` to `the_{old}`:\n```python\n{source}```"
                found.append(([Message.user(ask)], f"```python\n{new}```"))
    return found[:rows]


def texts(run: Path, ranks: Path, rows: int, kind: str, layers: int, turns: int) -> str:
    import calendar
    import statistics as numbers

    tokenizer = Tokenizer.from_ranks(ranks)
    config = published(layers)
    engine = Counting(quantize(random_model(config), kind), make_processor(config, tokenizer))
    read, corrected = pages(rows, random.Random(0))
    works: dict[str, list[Pair]] = {
        "documentation read off": read,
        "text corrected": corrected,
        "code rewritten": code(rows, (calendar, textwrap, numbers)),
    }
    for work, _, pairs in samples(run, rows):
        if work in REPLAYED:
            works[work] = [(without_media(s.prompt), s.answer) for s, _ in pairs]
    found = {}
    for work, said in works.items():
        asked = []
        for messages, answer in said:
            right = tokenizer.encode(answer)
            asked.append((messages, len(right), right))
        found[work] = compare(engine, asked, turns)
        console.print(f"{work}: {found[work].speed:.2f}", highlight=False)
    return table(found)


def without_media(messages: Sequence[Message]) -> list[Message]:
    """Nothing can be guessed from pictures and clips, and a random model sees none."""
    return [replace(m, parts=tuple(p for p in m.parts if isinstance(p, Text))) for m in messages]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("part", choices=("cost", "tasks", "texts"))
    parser.add_argument("run", type=Path, nargs="?", help="folder of a finished run")
    parser.add_argument("--rows", type=int, default=12, help="of each task")
    parser.add_argument("--kind", default="bf16", choices=("float32", *SCHEMES))
    parser.add_argument("--kinds", nargs="+", default=["int4", "int8"], choices=SCHEMES)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ranks", type=Path, help="file of o200k_base ranks")
    given = parser.parse_args(arguments)
    if given.part != "cost" and given.run is None:
        parser.error(f"{given.part} asks a finished run's tasks: give its folder")
    if given.part == "texts" and given.ranks is None:
        parser.error("texts are counted in the published tokens: give --ranks o200k_base.tiktoken")
    with torch.inference_mode():
        if given.part == "cost":
            print(cost(given.kinds, given.layers, given.turns))
        elif given.part == "tasks":
            print(tasks(given.run, given.rows, given.kind, given.turns))
        else:
            options = (given.rows, given.kind, given.layers, given.turns)
            print(texts(given.run, given.ranks, *options))


if __name__ == "__main__":
    main()
