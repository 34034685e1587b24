"""Speculative decoding (polyphi/engine/speculate.py): draft tokens accepted on real tasks, the cost of a step of more
tokens, and the speed of answers.

    python benchmarks/speculation.py cost [--kinds int4 int8 bf16] [--layers 8]
    python benchmarks/speculation.py tasks runs/nano [--rows 12] [--kind bf16]
    python benchmarks/speculation.py requests FOLDER [--kind int8]
    python benchmarks/speculation.py texts runs/nano --ranks o200k_base.tiktoken [--rows 6] [--kind int4] [--layers 6]

- cost: the time of a decode step of one sequence by its tokens, at the published width with random weights. Two depths
  are measured, and 32 layers extrapolated from the layers between them.
- tasks: a finished run's model answers its own held-out samples one by one, with and without draft tokens. The prompts
  are cached from a turn before, so that times are of decoding.
- requests: a language model answers eight requests that repeat their prompt more or less; likewise, and how often the
  token after a match is the next one, by the length of the match, beside the rate from which the engine starts.
- texts: a model of the published width, random weights and few layers is forced to give the right answers of real
  tasks (each step's forward, head and sampling are run, then replaced by the right token): pages transcribed, text and
  code rewritten, from this checkout and Python's library, and samples of a run's tasks. Tokens are the published ones.

Tables are in Markdown. "drafted" counts draft tokens that were run, "accepted" is the share of them that was accepted;
"tokens per step" is the mean number of tokens per forward of an answer, without its first token, which prefill gives.
Speed is with draft tokens over without, medians of turns that alternate.
"""

import argparse
import inspect
import random
import re
import statistics
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType

import torch
from engine import random_model
from sidebyside import console

import polyphi
from polyphi.api import Phi
from polyphi.checkpoints.processor import make_processor
from polyphi.data.shards import Shards
from polyphi.engine.cache import BLOCK, BlockPool, BlockTable, Memory, StepCache
from polyphi.engine.engine import DRAFT_TOKENS, Engine
from polyphi.engine.prompt_lookup import ACCEPTANCE, PromptLookup, _length_class
from polyphi.engine.results import accept
from polyphi.engine.runner import PartOutput
from polyphi.engine.scheduler import StepPart
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.processing.processor import Processor
from polyphi.processing.published_vocabulary import from_ranks
from polyphi.quantization.quantize import SCHEMES, quantize
from polyphi.runtime.rendering import table as markdown_table
from polyphi.types.batch import row
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi.types.sampling import SamplingParams
from polyphi_eval.baselines import select
from polyphi_eval.heldout import find

LAYERS = 32
TOKENS = (1, 2, 4, 8, 12, 16)
CONTEXT = 256
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
"""Tasks of a run that are reported as one row."""
STORY = (
    "The old lighthouse stood on a small island off the northern coast. Every evening the keeper climbed its ninety "
    "steps, cleaned the lamp and lit it before the sun went down. In winter the boats could not reach the island for "
    "weeks, and he lived on bread, dried fish and the letters that he had already read."
)
SUM = "def add(numbers):\n    x = 0\n    for n in numbers:\n        x += n\n    return x"
REQUESTS = {
    "text repeated": f"Repeat this text word for word: {STORY}",
    "text corrected": f"Correct the spelling and return the text: {STORY.replace('keeper', 'keper')}",
    "code rewritten": f"Rename x to total and return only the code:\n{SUM}",
    "code documented": f"Add a docstring to this function:\n{SUM}",
    "text summarized": f"Summarize in one sentence: {STORY}",
    "question": f"{STORY}\n\nHow did the keeper live in winter?",
    "story": "Write a short story about a fox and a river.",
    "list": "List ten capitals of Europe with their countries.",
}
REQUEST_TOKENS = 96
LENGTHS = ("1", "2 to 3", "4 to 7", "8")
"""Lengths of matches, as `ACCEPTANCE` has them."""
REPLAYED = ("speech translated by chain of thought", "summaries", "reasoning", "tool calls")


@dataclass
class Counts:
    """Counts of some answers, and the seconds that they took in each turn."""

    answers: int = 0
    tokens: int = 0
    steps: int = 0
    """Steps that sampled a token, without each answer's first."""
    drafted: int = 0
    right: int = 0
    changed: int = 0
    """Answers that draft tokens changed, by rounding."""
    seconds: dict[bool, list[float]] = field(default_factory=lambda: {False: [], True: []})

    @property
    def speed(self) -> float:
        without, with_ = (statistics.median(self.seconds[g]) for g in (False, True))
        return without / with_


class Counting(Engine):
    """An engine for one sequence at a time that counts tokens and steps. `right`, unless it is None, is the answer that
    it is forced to give."""

    def __init__(self, model: PhiModel, processor: Processor) -> None:
        super().__init__(model, processor, max_num_seqs=1)
        self.right: Sequence[int] | None = None
        self.counts: Counts | None = None
        self.accept = self._accept

    def _accept(
        self, part: StepPart, output: PartOutput, finite: Sequence[bool], best: Sequence[int]
    ) -> None:
        request = part.request
        before = len(request.tokens)
        if self.right is not None and output.logits is not None:
            best = list(self.right[before : before + len(output.logits)])
        accept(part, output, finite, best)
        drawn = len(request.tokens) - before + (request.finish_reason == "stop")
        if self.counts is not None and request.prefilled and before:
            self.counts.steps += 1
            self.counts.tokens += drawn
            self.counts.drafted += len(part.draft_tokens)
            self.counts.right += drawn - 1


def compare(
    engine: Counting,
    prompts: Sequence[tuple[Sequence[Message], int, Sequence[int] | None]],
    turns: int,
) -> Counts:
    """Generate answers, the model's own or the given ones, with and without draft tokens, and count."""
    counts = Counts(answers=len(prompts))
    answers: dict[bool, list[tuple[int, ...]]] = {}
    for turn in range(-1, turns):
        for speculative in (False, True):
            engine.counts = counts if speculative and turn == turns - 1 else None
            outputs, took = [], 0.0
            for messages, most, right in prompts:
                draft = DRAFT_TOKENS if speculative else 0
                sampling = SamplingParams(max_tokens=most, draft=draft)
                if turn < 0 and speculative:
                    continue  # prompts are cached by now
                engine.right = right
                began = time.perf_counter()
                outputs.append(engine.generate(messages, sampling=sampling).tokens)
                took += time.perf_counter() - began
            if turn >= 0:
                counts.seconds[speculative].append(took)
                answers[speculative] = outputs
    counts.changed = sum(a != b for a, b in zip(answers[False], answers[True], strict=True))
    return counts


def table(results: Mapping[str, Counts]) -> str:
    titles = ("task", "answers", "tokens", "drafted", "accepted", "tokens per step", "speed")
    rows = [
        (
            *(name, t.answers, t.tokens, t.drafted),
            f"{t.right / t.drafted:.0%}" if t.drafted else "-",
            *(f"{t.tokens / max(t.steps, 1):.2f}", f"{t.speed:.2f}", t.changed),
        )
        for name, t in results.items()
    ]
    return markdown_table((*titles, "answers changed"), rows)


# ------------------------------------------------------------------------------ cost


def published(layers: int) -> ModelConfig:
    """The language model alone, cut to so many layers; every answer is as long as it may be."""
    c = ModelConfig()
    decoder = replace(c.decoder, num_hidden_layers=layers, eos_token_ids=())
    return replace(c, decoder=decoder, vision=None, audio=None, adapters={})


def stepper(precision: str, layers: int) -> Callable[[int], object]:
    """A function that runs a step of some tokens after `CONTEXT` others."""
    config, blocks = published(layers), -(-(CONTEXT + max(TOKENS)) // BLOCK)
    model = quantize(random_model(config), precision)
    memory = Memory(config.decoder, blocks, torch.bfloat16, torch.device("cpu"))
    block_table = BlockTable(BlockPool(blocks))
    block_table.grow(CONTEXT + max(TOKENS))

    def step(tokens: int) -> object:
        block_table.length = CONTEXT
        batch = row(list(range(tokens)))
        batch = replace(batch, positions=batch.positions + CONTEXT, seq_lens=(CONTEXT + tokens,))
        hidden = model(batch, StepCache(memory, [block_table], [tokens]))
        return model.logits(hidden).float().argmax(-1)

    return step


def cost(kinds: Sequence[str], layers: int, turns: int) -> str:
    rows, few = [], 2
    for precision in kinds:
        steps = {depth: stepper(precision, depth) for depth in (few, layers)}
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
        rows.append([precision, *cells])
        del steps
    return markdown_table(["tokens of a step", *map(str, TOKENS)], rows)


# ------------------------------------------------------------------------------ tasks of a run


def samples(run: Path, rows: int) -> Iterator[tuple[str, str, list]]:
    """(work, model's folder, its (sample, most tokens) pairs)."""
    tasks = {task.name: task for task in find()}
    for work, names in WORKS.items():
        there = [tasks[n] for n in names if (run / "data" / tasks[n].corpus / "test").exists()]
        results = [
            (sample, task.max_tokens)
            for task in there
            for sample in select(task, Shards(run / "data" / task.corpus / "test"), rows, seed=1)
        ]
        if results:
            folder = "reasoning" if there[0].corpus.startswith("reasoning") else "model"
            yield work, folder, results


def loaded(folder: Path, precision: str) -> Phi:
    if precision == "float32":
        return polyphi.load(folder, dtype=precision)
    return polyphi.load(folder, quant=precision)


def tasks(run: Path, rows: int, precision: str, turns: int) -> str:
    engines: dict[str, Counting] = {}
    results = {}
    for work, folder, pairs in samples(run, rows):
        if folder not in engines:
            phi = loaded(run / folder, precision)
            engines[folder] = Counting(phi.model, phi.processor)
        prompts = [(sample.prompt, most, None) for sample, most in pairs]
        results[work] = compare(engines[folder], prompts, turns)
        console.print(f"{work}: {results[work].speed:.2f}", highlight=False)
    return table(results)


# ------------------------------------------------------------------------------ requests


def requests(folder: Path, precision: str, turns: int) -> str:
    phi = loaded(folder, precision)
    engine, results = Counting(phi.model, phi.processor), {}
    right, every = Counter[str](), Counter[str]()
    for work, text in REQUESTS.items():
        messages = [Message.user(text)]
        results[work] = compare(engine, [(messages, REQUEST_TOKENS, None)], turns)
        sampling = SamplingParams(max_tokens=REQUEST_TOKENS, draft=0)
        answer = engine.generate(messages, sampling=sampling).tokens
        for length, is_right in matches(phi.tokenize(text), answer):
            every[length] += 1
            right[length] += is_right
    rows = [
        (
            length,
            f"{right[length]} of {every[length]}",
            f"{right[length] / every[length]:.2f}",
            rate,
        )
        for length, rate in zip(LENGTHS, ACCEPTANCE, strict=True)
        if every[length]
    ]
    titles = ("tokens of a match", "right", "share", "rate at the start")
    return f"{table(results)}\n\n{markdown_table(titles, rows)}"


def matches(prompt: Sequence[int], answer: Sequence[int]) -> Iterator[tuple[str, bool]]:
    """For each token of an answer that had a match: its length, and whether the token after it was right."""
    lookup = PromptLookup(prompt)
    for token in answer:
        if lookup._match is not None:
            length, at = lookup._match
            yield LENGTHS[_length_class(length)], lookup._tokens[at + 1] == token
        lookup.add(token)


# ------------------------------------------------------------------------------ texts


Pair = tuple[list[Message], str]


def pages(rows: int, rng: random.Random) -> tuple[list[Pair], list[Pair]]:
    """Pages of the documentation to transcribe, and pages with a few swapped characters to correct."""
    folder = Path(__file__).parents[1] / "docs"
    text = [p for f in sorted(folder.glob("*.md")) for p in re.split(r"\n\n+", f.read_text())]
    text = [p for p in text if 400 < len(p) < 1200]
    rng.shuffle(text)
    read = [([Message.user("Read the page.")], p) for p in text[:rows]]
    corrected = []
    for right in text[rows : 2 * rows]:
        words = right.split(" ")
        longer = [i for i, word in enumerate(words) if len(set(word[:2])) > 1]
        for i in rng.sample(longer, max(1, len(longer) // 25)):
            words[i] = words[i][1:2] + words[i][:1] + words[i][2:]
        corrected.append(([Message.user("Correct the spelling:\n" + " ".join(words))], right))
    return read, corrected


def code(rows: int, modules: Sequence[ModuleType]) -> list[Pair]:
    """Functions of Python's library in which an argument gets another name."""
    results = []
    for module in modules:
        for name, function in inspect.getmembers(module, inspect.isfunction):
            source = textwrap.dedent(inspect.getsource(function))
            arguments = [a for a in inspect.signature(function).parameters if len(a) > 2]
            if function.__module__ == module.__name__ and 500 < len(source) < 1500 and arguments:
                old = arguments[0]
                new = re.sub(rf"\b{old}\b", f"the_{old}", source)
                ask = f"Rename `{old}` of `{name}` to `the_{old}`:\n```python\n{source}```"
                results.append(([Message.user(ask)], f"```python\n{new}```"))
    return results[:rows]


def texts(run: Path, ranks: Path, rows: int, precision: str, layers: int, turns: int) -> str:
    import calendar
    import statistics as numbers

    tokenizer = from_ranks(ranks)
    config = published(layers)
    engine = Counting(quantize(random_model(config), precision), make_processor(config, tokenizer))
    read, corrected = pages(rows, random.Random(0))
    works: dict[str, list[Pair]] = {
        "documentation read off": read,
        "text corrected": corrected,
        "code rewritten": code(rows, (calendar, textwrap, numbers)),
    }
    for work, _, pairs in samples(run, rows):
        if work in REPLAYED:
            works[work] = [(without_media(s.prompt), s.answer) for s, _ in pairs]
    results = {}
    for work, pairs in works.items():
        prompts = []
        for messages, answer in pairs:
            right = tokenizer.encode(answer)
            prompts.append((messages, len(right), right))
        results[work] = compare(engine, prompts, turns)
        console.print(f"{work}: {results[work].speed:.2f}", highlight=False)
    return table(results)


def without_media(messages: Sequence[Message]) -> list[Message]:
    """Images and audio provide no draft tokens, and a random model doesn't use them."""
    return [replace(m, parts=tuple(p for p in m.parts if isinstance(p, Text))) for m in messages]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("part", choices=("cost", "tasks", "requests", "texts"))
    parser.add_argument(
        "run", type=Path, nargs="?", help="folder of a finished run, or of a checkpoint"
    )
    parser.add_argument("--rows", type=int, default=12, help="of each task")
    parser.add_argument("--kind", default="bf16", choices=("float32", *SCHEMES))
    parser.add_argument("--kinds", nargs="+", default=["int4", "int8"], choices=SCHEMES)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ranks", type=Path, help="file of o200k_base ranks")
    args = parser.parse_args(arguments)
    if args.part != "cost" and args.run is None:
        parser.error(
            f"{args.part} needs the folder of a finished run, or for requests of a checkpoint"
        )
    if args.part == "texts" and args.ranks is None:
        parser.error("texts are counted in the published tokens: give --ranks o200k_base.tiktoken")
    with torch.inference_mode():
        if args.part == "cost":
            print(cost(args.kinds, args.layers, args.turns))
        elif args.part == "tasks":
            print(tasks(args.run, args.rows, args.kind, args.turns))
        elif args.part == "requests":
            print(requests(args.run, args.kind, args.turns))
        else:
            options = (args.rows, args.kind, args.layers, args.turns)
            print(texts(args.run, args.ranks, *options))


if __name__ == "__main__":
    main()
