"""Our kernels against other engines, on the same random weights at the published size:

- decode: one sequence, and eight at once, behind prompts of 256 tokens
- prefill: 256 and 2,048 tokens
- first token: a picture (1280x720, JPEG) and a clip (30 s, WAV) on the model of 5.6 G parameters, from their bytes
- products: the matrix products of one layer against torch's kernels (matrix_products.py), separately

    polyphi bench inference --setup            environments for the peers, in .venv/.peers, once
    polyphi bench inference [--json] [--layers 8] [--only decode] [--parts language media products]

Peers, each in its own environment and process (peers/): llama.cpp, OpenVINO GenAI, onnxruntime-genai, and transformers,
which is the only one that runs the multimodal model. It computes in the precision in which it is fastest on this
machine, bfloat16 or float32 (`sidebyside.fastest_precision`); the run prints which, and the peer's name has it. The
choice is for prompts and media: one token at a time may take a little less time in bfloat16 than in float32 on a CPU
without bfloat16 instructions. All have the same threads and take turns with ours, an idle one computes nothing; medians
are reported. Before that the run checks that all compute the same logits, within the error of their bits. The
checkpoints and the files that peers convert them to are stored in the cache (`POLYPHI_CACHE`), about 60 GB at full
size. Sides that don't fit into memory at once take turns with ours in groups. Where transformers computes in float32
and its weights don't fit with ours (15 GB of the language model, 22 GB of the whole one), the decoder is cut to 8
layers of full width, the encoders stay whole, and its name says so. `--layers` overrides this: `--layers 8` cuts the
encoders too, `--layers 8 --whole-encoders` the decoder alone.

A CPU with AVX2 alone is emulated as engine.py says; peers' processes inherit the environment, but llama.cpp and
OpenVINO ignore these variables and use every instruction that the CPU has.

Limits are measured in the same run, between turns: for decode the rate of reading memory (bytes of weights that a step
of ours needs), for prefill that of int8 products, for a first token both kinds of products: the encoders' in bfloat16
or float32, what is faster (in int8 where they are in 8 bits), the decoder's in int8. A row's peer is the best one;
`prefill` and `first token` report the worse of their two lengths or media.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import engine
import matrix_products
import numpy as np
import psutil
import soundfile
import torch
from PIL import Image as Picture
from rich.console import Console
from rich.table import Table
from sidebyside import (
    ENVIRONMENTS,
    Row,
    Transformers,
    choose_transformers,
    console,
    install,
    product_limit,
    read_rate,
    show,
)

from polyphi.checkpoints.gguf_export import write_gguf
from polyphi.checkpoints.read import load_checkpoint
from polyphi.checkpoints.write import save_checkpoint
from polyphi.devices.memory import free_memory
from polyphi.model.config import ModelConfig
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.matrix_products import matrix_products as products_of
from polyphi.runtime.files import cache_folder

HERE = Path(__file__).parent
SCHEMES = ("int4", "int8", "int4-all", "int8-all")
"""Ours. Encoders and adapters, which words alone don't need, are in 8 bits too in the last two."""
PARTS = ("language", "media", "products")
OURS = "polyphi"
BUFFERS = 2e9
"""Bytes of contexts and buffers in addition to the weights."""


@dataclass(frozen=True)
class Peer:
    """An engine with a quantization format: its script and environment (peers/), the name of its file in the cache, and
    the bits of memory per weight."""

    engine: str
    scheme: str
    format: str
    script: str
    environment: str
    file: str
    bits: float

    @property
    def name(self) -> str:
        return f"{self.engine} {self.format}"


LLAMA, GENAI, ONNX = "llama.cpp", "OpenVINO GenAI", "onnxruntime-genai"
ENGINES = (LLAMA, GENAI, ONNX)
PEERS = (
    Peer(LLAMA, "int4", "Q4_0", "llama.py", "llama", "Q4_0.gguf", 5.5),
    Peer(LLAMA, "int4", "Q4_0-pure", "llama.py", "llama", "Q4_0-pure.gguf", 4.5),
    Peer(LLAMA, "int4", "Q4_K_M", "llama.py", "llama", "Q4_K_M.gguf", 5.5),
    Peer(LLAMA, "int8", "Q8_0", "llama.py", "llama", "Q8_0.gguf", 8.5),
    Peer(GENAI, "int4", "int4", "genai.py", "openvino", "openvino-int4", 7),
    Peer(GENAI, "int8", "int8", "genai.py", "openvino", "openvino-int8", 10),
    Peer(ONNX, "int4", "int4", "ort.py", "onnxruntime", "onnxruntime-int4", 6),
)
ERROR = {"int4": 1.2, "int8": 0.3}
"""The largest relative error of logits: random weights magnify rounding errors with every layer."""


@dataclass(frozen=True)
class Work:
    """A row: the command of a turn, and how many of `unit` it makes."""

    name: str
    command: str
    amount: float
    unit: str = "tok/s"


LANGUAGE = (
    Work("decode", "decode 1 16", 16),
    Work("decode 8 sequences", "decode 8 8", 64),
    Work("prefill 256", "prefill 256", 256),
    Work("prefill 2048", "prefill 2048", 2048),
)
MEDIA = (
    Work("first token picture", "first picture {picture}", 1, "per s"),
    Work("first token clip", "first clip {clip}", 1, "per s"),
)
WORST = {"prefill": ("prefill 256", "prefill 2048"), "first token": tuple(w.name for w in MEDIA)}


# ------------------------------------------------------------------------------ sides


class Process:
    """The process of a side."""

    def __init__(self, name: str, command: Sequence[object], threads: int) -> None:
        self.name = name
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
            "TRANSFORMERS_VERBOSITY": "error",
        }
        if command[0] != sys.executable:
            del environment["PYTHONPATH"]
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            list(map(str, command)),
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        self.facts = self.answer()
        """The object that it reported when it was ready."""

    def answer(self) -> dict[str, Any]:
        """Its next line. Raises RuntimeError if it ended instead."""
        assert self.process.stdout is not None
        if line := self.process.stdout.readline():
            return json.loads(line)
        code = self.process.wait()
        self.log.seek(0)
        why = (
            "killed, most likely because memory ran out"
            if code == -9
            else "\n".join(self.log.read().splitlines()[-5:])
        )
        raise RuntimeError(f"{self.name} ended with code {code}: {why}")

    def turn(self, command: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it ended: `answer` says how
            print(command, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.log.close()


def command(
    name: str,
    folder: Path,
    depth: str,
    threads: int,
    what: str,
    library: Transformers | None = None,
) -> list[object]:
    """The command that starts the side of that name."""
    scripts = HERE / "peers"
    if name in SCHEMES:
        return [sys.executable, scripts / "ours.py", folder / name, threads, what]
    if library is not None and name == library.name:
        script = scripts / "transformers_phi.py"
        return [sys.executable, script, threads, depth, what, library.precision]
    peer = next(p for p in PEERS if p.name == name)
    python = ENVIRONMENTS / peer.environment / "bin" / "python"
    return [python, scripts / peer.script, folder / "checkpoint", folder, peer.format, threads]


@contextmanager
def started(
    names: Sequence[str],
    folder: Path,
    depth: str,
    threads: int,
    what: str,
    library: Transformers,
) -> Iterator[dict[str, Process]]:
    """The sides by name, each ready."""
    sides: dict[str, Process] = {}
    try:
        for name in names:
            start = command(name, folder, depth, threads, what, library)
            sides[name] = Process(name, start, threads)
        yield sides
    finally:
        for side in sides.values():
            side.close()


def setup() -> None:
    """Environments of all peers."""
    for name in dict.fromkeys(peer.environment for peer in PEERS):
        install(name)


def checkpoint(config: ModelConfig, folder: Path, quant: str | None, layout: str) -> None:
    """Write a random model, in bfloat16 or quantized, unless it exists."""
    target = folder / (quant or "checkpoint")
    if target.exists():
        return
    console.print(f"making {target}", highlight=False)
    partial = target.with_suffix(".part")
    save_checkpoint(engine.random_model(config), partial, layout, files=[], quant=quant)
    _, tokenizer = engine.endless(engine.Size().config)
    tokenizer.save(partial)
    partial.rename(target)


def prepare(
    config: ModelConfig, folder: Path, threads: int, engines: Sequence[str], schemes: Sequence[str]
) -> list[Peer]:
    """Write the checkpoints and each peer's converted files; return the peers that can run."""
    for scheme in schemes:
        checkpoint(config, folder, scheme, "mini")
    checkpoint(config, folder, None, "mini")
    available = []
    for peer in (p for p in PEERS if p.engine in engines):
        if not (ENVIRONMENTS / peer.environment / "bin" / "python").exists():
            console.print(
                f"[yellow]{peer.name} is left out[/yellow]: it has no environment in {ENVIRONMENTS}; "
                "`polyphi bench inference --setup` makes one",
                highlight=False,
            )
            continue
        try:
            if not (folder / peer.file).exists():
                console.print(f"making {peer.file}", highlight=False)
                if peer.engine == LLAMA and not (gguf := folder / "bf16.gguf").exists():
                    whole = folder / "checkpoint"
                    write_gguf(load_checkpoint(whole), gguf, whole)
                start = command(peer.name, folder, "all", threads, "language")
                Process(peer.name, start, threads).close()
            available.append(peer)
        except (RuntimeError, ValueError) as error:
            console.print(f"[yellow]{peer.name} is left out[/yellow]: {error}", highlight=False)
    return available


# ------------------------------------------------------------------------------ limits


@dataclass(frozen=True)
class Limits:
    """Rates of this machine: bytes/s read, operations/s of products of bfloat16 weights (`product_limit`) and of int8
    ones."""

    read: float
    bf16: float
    int8: float


def measured() -> Limits:
    return Limits(read_rate(seconds=1.0), product_limit(0.5)[0], engine.int8_rate(seconds=0.5))


def parameters(config: ModelConfig) -> dict[str, int]:
    """Of the decoder's layers, the embedding (which is the head), and each encoder."""
    with torch.device("meta"):
        model = PhiModel(config)
    towers: dict[str, Any] = {"layers": model.decoder.layers, "head": model.decoder.embed_tokens}
    if model.vision is not None and model.audio is not None:
        towers |= {"picture": model.vision.encoder, "clip": model.audio.encoder}
    return {name: sum(p.numel() for p in tower.parameters()) for name, tower in towers.items()}


def least_seconds(
    work: Work,
    scheme: str,
    config: ModelConfig,
    read: int,
    turn: Mapping[str, float],
    rates: Limits,
) -> float:
    """The seconds that a turn takes at the machine's limit: `read` bytes of weights a step, or operations of products.
    The attention of encoders isn't counted."""
    if work.name.startswith("decode"):
        return int(work.command.split()[2]) * read / rates.read
    d, size = config.decoder, parameters(config)
    tokens = turn.get("tokens", work.amount)
    attention = 2 * tokens * d.hidden_size * d.num_hidden_layers  # half of a square, twice
    least = 2 * (tokens * (size["layers"] + attention / 2) + size["head"]) / rates.int8
    if "positions" in turn:
        encoders = rates.int8 if scheme.endswith("-all") else rates.bf16
        least += 2 * turn["positions"] * size[work.name.split()[-1]] / encoders
    return least


# ------------------------------------------------------------------------------ turns


@dataclass
class Measured:
    """One work in one scheme: each side's turns, and the machine's limits measured between them."""

    work: Work
    scheme: str
    turns: dict[str, list[dict[str, float]]]
    rates: list[Limits]
    read: int

    def median(self, side: str, key: str = "seconds") -> float:
        return statistics.median(turn[key] for turn in self.turns[side])

    def rate(self, side: str) -> float:
        return self.work.amount / self.median(side)

    @property
    def peers(self) -> list[str]:
        return [name for name in self.turns if name != self.scheme]

    def parts(self) -> list[str]:
        """For a first token: the parts of each side's seconds."""
        if self.work not in MEDIA:
            return []
        named = ("media", "encoders", "prefill")
        return [
            f"{self.work.name} {self.scheme}, {OURS if side == self.scheme else side}: "
            + ", ".join(f"{part} {self.median(side, part):.2f} s" for part in named)
            for side in self.turns
        ]

    def row(self, config: ModelConfig) -> Row:
        best = max(self.peers, key=self.rate)
        rates = Limits(
            *(statistics.median(getattr(r, f.name) for r in self.rates) for f in fields(Limits))
        )
        turn = self.turns[self.scheme][0]
        least = least_seconds(self.work, self.scheme, config, self.read, turn, rates)
        return Row(
            f"{self.work.name} {self.scheme}",
            self.rate(self.scheme),
            self.rate(best),
            best,
            self.work.unit,
            least / self.median(self.scheme),
        )


def media(folder: Path, seed: int) -> dict[str, Path]:
    """A new image and a new audio file."""
    random = np.random.default_rng(seed)
    paths = {"picture": folder / f"{seed}.jpg", "clip": folder / f"{seed}.wav"}
    coarse = Picture.fromarray(random.integers(0, 256, (45, 80, 3), dtype=np.uint8))
    coarse.resize((1280, 720)).save(paths["picture"])
    wave = 0.1 * random.standard_normal(30 * 16_000)
    soundfile.write(paths["clip"], wave, 16_000)
    return paths


def take_turns(
    works: Sequence[Work], sides: Mapping[str, Process], scheme: str, repeats: int
) -> list[Measured]:
    """Each work by all sides, one after another, `repeats` times after a turn that isn't timed."""
    results = []
    with tempfile.TemporaryDirectory() as name:
        for work in works:
            turns: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
            rates = []
            for repeat in range(repeats + 1):
                args = media(Path(name), repeat) if "{" in work.command else {}
                for side, process in sides.items():
                    turn = process.turn(work.command.format(**args))
                    if repeat:
                        turns[side].append(turn)
                if repeat:
                    rates.append(measured())
            result = Measured(work, scheme, turns, rates, sides[scheme].facts["bytes"])
            text = ", ".join(f"{side} {result.rate(side):.3g}" for side in sides)
            console.print(f"  {work.name}, {work.unit}: {text}", highlight=False)
            for parts in result.parts():
                console.print(f"  {parts}", highlight=False)
            results.append(result)
    return results


def same_work(sides: Mapping[str, Process], most: float, reference: str) -> None:
    """Check that all sides have the logits of `reference` (transformers) after 64 ids, within `most` of its norm."""
    result = {}
    with tempfile.TemporaryDirectory() as name:
        for side, process in sides.items():
            file = Path(name) / f"{len(result)}.npy"
            process.turn(f"logits {file} 64")
            result[side] = np.load(file)
    whole = result[reference]
    for side, logits in result.items():
        off = float(np.linalg.norm(logits - whole) / np.linalg.norm(whole))
        console.print(f"  {side}: logits are {off:.3f} off", highlight=False)
        if not off < most:
            raise RuntimeError(
                f"{side} computes something else: its logits differ from {reference}'s by {off:.3f} of their size, "
                f"expected less than {most}"
            )


def grouped(
    config: ModelConfig, scheme: str, peers: Sequence[Peer], library: Transformers, free: float
) -> list[list[str]]:
    """Peers at these bits and transformers, in groups that fit into memory with ours."""
    weights_ = sum(parameters(config)[part] for part in ("layers", "head"))
    bits_of = {library.name: 8.0 * library.dtype.itemsize} | {
        p.name: p.bits for p in peers if p.scheme == scheme
    }
    bits = {"int4": 4.5, "int8": 8.0}[scheme]
    head = 2 * parameters(config)["head"]
    budget = free - weights_ * bits / 8 - head - 2 * BUFFERS
    groups: list[list[str]] = []
    left = 0.0
    for name, each in bits_of.items():
        size = weights_ * each / 8 + BUFFERS / 2
        if not groups or size > left:
            groups.append([])
            left = budget
        groups[-1].append(name)
        left -= size
    return groups


def fitting(
    args: argparse.Namespace, config: ModelConfig, schemes: Sequence[str]
) -> tuple[str, Transformers]:
    """The depth of the model (`engine.Size.at`), and transformers: the decoder is cut if no number of layers is
    requested and transformers doesn't fit into memory in float32 with ours."""
    library: Transformers = args.library
    if args.layers is not None:
        return f"{args.layers}{engine.DECODER if args.whole_encoders else ''}", library
    if library.precision == "bf16" or not schemes:
        return "all", library
    size = parameters(config)
    count, encoders = engine.parameters(config), size.get("picture", 0) + size.get("clip", 0)
    in_8_bits = any(scheme.startswith("int8") for scheme in schemes)
    ours = count * (1.05 if in_8_bits else 0.6) + encoders  # which are in 8 bits or in bfloat16
    needed, free = count * library.dtype.itemsize + ours + BUFFERS, free_memory(torch.device("cpu"))
    if needed <= free:
        return "all", library
    console.print(
        f"{library.name} and ours at full size take {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
        f"{engine.CUT} layers of the decoder",
        highlight=False,
    )
    return f"{engine.CUT}{engine.DECODER}", replace(library, cut=f"{engine.CUT} layers")


def cached(what: str, depth: str) -> Path:
    """The folder of the checkpoints of a size."""
    folder = cache_folder() / "bench" / f"{what}-{'full' if depth == 'all' else depth}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def language(
    args: argparse.Namespace, works: Sequence[Work], threads: int
) -> tuple[list[Measured], ModelConfig]:
    schemes = [scheme for scheme in args.kinds if not scheme.endswith("-all")]
    depth, library = fitting(args, engine.language(engine.Size().config), schemes)
    depth = depth.removesuffix(engine.DECODER)
    config = engine.language(engine.Size().at(depth).config)
    folder = cached("language", depth)
    available = prepare(config, folder, threads, args.peers, schemes) if schemes else []
    results: dict[str, Measured] = {}
    for scheme in schemes:
        for names in grouped(config, scheme, available, library, psutil.virtual_memory().available):
            console.print(f"[bold]{scheme}[/bold], against {', '.join(names)}", highlight=False)
            with started([scheme, *names], folder, depth, threads, "language", library) as sides:
                if library.name in sides:
                    same_work(sides, ERROR[scheme], library.name)
                for result in take_turns(works, sides, scheme, args.repeats):
                    key = f"{result.work.name} {scheme}"
                    results[key] = joined(results[key], result) if key in results else result
    return list(results.values()), config


def joined(one: Measured, other: Measured) -> Measured:
    """The same work against other peers; turns of ours count in both."""
    ours = {one.scheme: one.turns[one.scheme] + other.turns[one.scheme]}
    return replace(one, turns=one.turns | other.turns | ours, rates=one.rates + other.rates)


def multimodal(
    args: argparse.Namespace, works: Sequence[Work], threads: int
) -> tuple[list[Measured], ModelConfig]:
    depth, library = fitting(args, engine.Size().config, args.kinds)
    config, _ = engine.endless(engine.Size().at(depth).config)
    folder, results = cached("multimodal", depth), []
    for scheme in args.kinds:
        checkpoint(config, folder, scheme, "native")
        console.print(f"[bold]{scheme}[/bold], media, against {library.name}", highlight=False)
        names = [scheme, library.name]
        with started(names, folder, depth, threads, "multimodal", library) as sides:
            results += take_turns(works, sides, scheme, args.repeats)
    return results, config


# ------------------------------------------------------------------------------ report


def worst(rows: Sequence[Row]) -> list[Row]:
    """For each name that stands for two rows, the one with the lower ratio, under that name."""
    by_name = {row.work: row for row in rows}
    worst_rows = []
    for scheme in SCHEMES:
        for name, parts in WORST.items():
            both = [by_name[f"{part} {scheme}"] for part in parts if f"{part} {scheme}" in by_name]
            if len(both) == len(parts):
                worst_rows.append(
                    replace(min(both, key=lambda row: row.ratio), work=f"{name} {scheme}")
                )
    return worst_rows


def print_rows(measured_: Sequence[Measured], rows: Sequence[Row], out: Console) -> None:
    """All sides of every row, and the parts of first tokens."""
    of = {peer.name: peer.engine for peer in PEERS}
    columns: dict[
        str, list[str]
    ] = {}  # sides of a column: llama.cpp has two ways with a head in int4
    for m in measured_:
        for name in m.peers:
            sides = columns.setdefault(of.get(name, name), [])
            if name not in sides:
                sides.append(name)
    table = Table("work", "unit", OURS, *columns, "ratio to the best", "of the limit", box=None)
    for m, row in zip(measured_, rows, strict=True):
        cells = [
            " / ".join(f"{m.rate(name):.3g}" for name in sides if name in m.turns)
            for sides in columns.values()
        ]
        ratio, share = f"{row.ratio:.2f} ({row.peer_name})", f"{row.limit_share:.0%}"
        table.add_row(row.work, row.unit, f"{row.ours:.3g}", *cells, ratio, share)
    out.print(table)
    for m in measured_:
        for line in m.parts():
            out.print(line, highlight=False)
    result = {f"{m.work.name} {m.scheme}": m for m in measured_}
    for scheme in SCHEMES:
        one, eight = result.get(f"decode {scheme}"), result.get(f"decode 8 sequences {scheme}")
        if one and eight:
            times = eight.rate(scheme) / one.rate(scheme)
            out.print(
                f"8 sequences decode {times:.2f} times one's tokens, {scheme}", highlight=False
            )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options of the command line. Exits where transformers or PEFT is missing."""
    parser = argparse.ArgumentParser(description="Our kernels against other engines.")
    parser.add_argument("--json", action="store_true", help="one JSON list of rows on stdout")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--layers", type=int, help="of every tower; all without")
    parser.add_argument(
        "--whole-encoders", action="store_true", help="--layers cuts the decoder alone"
    )
    parser.add_argument(
        "--peer-dtype",
        choices=("auto", "bf16", "fp32"),
        default="auto",
        help="precision of transformers; auto is the one that is faster on this machine",
    )
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--kinds", nargs="+", choices=SCHEMES, default=SCHEMES)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS[:2])
    known = [w.name for w in (*LANGUAGE, *MEDIA)]
    parser.add_argument("--only", nargs="+", choices=known, default=known, help="works")
    parser.add_argument("--peers", nargs="*", choices=ENGINES, default=ENGINES)
    parser.add_argument("--setup", action="store_true", help="only make the peers' environments")
    args = parser.parse_args(arguments)
    try:
        version("transformers"), version("peft")
    except PackageNotFoundError as error:
        parser.error(f"a peer needs {error.name}: pip install -r {HERE / 'peers/requirements.txt'}")
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse(arguments)
    if args.setup:
        setup()
        return
    threads = args.threads
    torch.set_num_threads(threads)
    args.library = choose_transformers(products_of(engine.Size().config), args.peer_dtype)
    if "products" in args.parts:
        show(matrix_products.compare(args.repeats, args.library), as_json=args.json)
    results: list[Measured] = []
    rows: list[Row] = []
    for part, all_works, run in (("language", LANGUAGE, language), ("media", MEDIA, multimodal)):
        works = [w for w in all_works if w.name in args.only]
        if part not in args.parts or not works:
            continue
        result, config = run(args, works, threads)
        results += result
        rows += [m.row(config) for m in result]
    if as_json := bool(rows and args.json):
        print(json.dumps([{**asdict(row), "ratio": row.ratio} for row in [*rows, *worst(rows)]]))
    if rows:
        print_rows(results, rows, Console(stderr=as_json, width=max(160, console.width)))


if __name__ == "__main__":
    main()
