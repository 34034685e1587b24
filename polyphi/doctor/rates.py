"""Rates of this CPU, measured in a few seconds: matrix products, reading memory, and decoding one token.

>>> measure(torch.bfloat16)
Rates(memory=2.1e10, products={"fp32": 4.0e11, ...}, decoding={"bf16": 2.0e10, "int8": 1.9e10, "int4": 1.1e10})

Decoding one token at batch size 1 reads every weight once. Its rate is measured on random weights with the shapes of
the published decoder's layers, through the layers' own code: our kernels, or torch's operators without them. The
weights together exceed the last cache, as a model's do. Each rate is a median; other work on the machine lowers it.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import torch
from torch import Tensor

import polyphi.kernels as kernels
from polyphi.devices import cpu
from polyphi.devices.memory import free_memory
from polyphi.model.config import DecoderConfig
from polyphi.prepared.linear import product
from polyphi.quantization.integer_weights import EightBit, FourBit

SECONDS = 0.5
"""Time of one measurement; a slow machine takes a single turn."""
MIN_TURNS, MAX_TURNS = 5, 500
SMALLEST, LARGEST = 256 << 20, 1 << 30
"""Bounds of the bytes of all weights of a measurement."""
ROWS, WIDTH = 128, 2048
"""Tokens, inputs and outputs of the matrix products: 1.07 GFLOP."""
FORMS: Mapping[str, type[EightBit] | type[FourBit]] = {"int8": EightBit, "int4": FourBit}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Rates:
    """Rates of this CPU. `memory`: bytes read per second. `products`: operations per second of products of 128 tokens,
    by the format of the weight. `decoding`: bytes of weights per second with one token. `working_set`: bytes of the
    weights that were read. `cpu_share`: the share of the time in which the threads ran; less than 1 where others took
    their CPUs."""

    memory: float
    products: dict[str, float]
    decoding: dict[str, float]
    working_set: int
    cpu_share: float


@torch.no_grad()
def measure(dtype: torch.dtype) -> Rates:
    """The rates of this process's threads; `dtype`: that of weights that aren't quantized."""
    name = next(name for name, value in DTYPES.items() if value == dtype)
    weights = random_bytes(working_set())
    start, used = time.perf_counter(), time.process_time()
    memory = _rate(_reads(weights.view(torch.int64)))
    products = {form: _rate(_products(form, weights)) for form in (*DTYPES, *FORMS)}
    decoding = {form: _rate(_layers(form, weights)) for form in (name, *FORMS)}
    elapsed = (time.perf_counter() - start) * torch.get_num_threads()
    return Rates(memory, products, decoding, weights.nbytes, (time.process_time() - used) / elapsed)


def seconds(run: Callable[[], object]) -> float:
    """The duration of a call in seconds."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def working_set() -> int:
    """Bytes of the weights: twice the last cache, within bounds and a quarter of the available memory."""
    most = min(LARGEST, free_memory(torch.device("cpu")) // 4)
    return min(most, max(SMALLEST, 2 * cpu.last_level_cache())) // 4096 * 4096


def random_bytes(count: int) -> Tensor:
    """Bytes from 60 to 63, uint8: as bfloat16 and float32 they are numbers between 0.01 and 1, as 4 and 8 bits they are
    weights, so that all formats can use the same memory."""
    block = torch.randint(60, 64, (min(count, 1 << 22),), dtype=torch.uint8)
    return block.repeat(-(-count // len(block)))[:count]


Turns = Iterator[tuple[int, Callable[[], object]]]
"""Amounts of bytes or operations, and the calls that take that many."""


def _rate(turns: Turns) -> float:
    """The median rate of turns, the first one of which is a warm-up, unless it is the only one in time."""
    rates: list[float] = []
    end = time.perf_counter() + SECONDS
    for count, run in turns:
        rates.append(count / seconds(run))
        if len(rates) > MAX_TURNS or (time.perf_counter() > end and len(rates) > MIN_TURNS):
            break
        if time.perf_counter() > end + SECONDS:  # a slow machine
            break
    return statistics.median(rates[1:] or rates)


def _reads(memory: Tensor) -> Turns:
    while True:
        yield memory.nbytes, memory.sum


def _products(form: str, weights: Tensor) -> Turns:
    shape = (WIDTH, WIDTH)
    run = partial(_multiplier(form, shape, weights), torch.ones(ROWS, WIDTH, dtype=_dtype(form)))
    while True:
        yield 2 * ROWS * WIDTH * WIDTH, run


def _layers(form: str, memory: Tensor) -> Turns:
    """Turns of one layer each; a weight is read again only after all others."""
    shapes = layer_shapes()
    x = {inputs: torch.ones(1, inputs, dtype=_dtype(form)) for _, inputs in shapes}
    # Without our kernels weights in 8 and 4 bits are copied: one layer, which bounds memory and time.
    most = None if form in DTYPES or kernels.missing() is None else len(shapes)
    matrices: list[tuple[int, Callable[[], object]]] = []
    for outputs, inputs in islice(cycle(shapes), most):
        count = weight_bytes(form, (outputs, inputs))
        if count > len(memory):
            break
        multiply = _multiplier(form, (outputs, inputs), memory)
        matrices.append((count, partial(multiply, x[inputs])))
        memory = memory[count:]
    layers = [matrices[n : n + len(shapes)] for n in range(0, len(matrices), len(shapes))]
    if len(layers) > 1 and len(layers[-1]) < len(shapes):
        layers.pop()
    for layer in cycle(layers):
        yield sum(count for count, _ in layer), partial(_run, [run for _, run in layer])


def _run(calls: Sequence[Callable[[], object]]) -> None:
    for call in calls:
        call()


def layer_shapes(config: DecoderConfig | None = None) -> list[tuple[int, int]]:
    """[outputs inputs] of the linears of the published decoder's layer."""
    c = config or DecoderConfig()
    queries, keys = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
    return [
        (queries + 2 * keys, c.hidden_size),
        (c.hidden_size, queries),
        (2 * c.intermediate_size, c.hidden_size),
        (c.hidden_size, c.intermediate_size),
    ]


def weight_bytes(form: str, shape: tuple[int, int]) -> int:
    """Bytes of a weight without its scales per output."""
    if form in DTYPES:
        return math.prod(shape) * DTYPES[form].itemsize
    return FORMS[form].layout(shape)[f"q{FORMS[form].bits}"][1][0]


def _multiplier(form: str, shape: tuple[int, int], memory: Tensor) -> Callable[[Tensor], Tensor]:
    """The function that multiplies tokens by a weight at the start of `memory`."""
    packed = memory[: weight_bytes(form, shape)]
    if form in DTYPES:
        weight = packed.view(DTYPES[form]).view(shape)
        return lambda x: product(x, weight)
    quantized = FORMS[form]
    pieces = {f"q{quantized.bits}": packed, "row": torch.full(shape[:1], 1e-3)}
    return quantized.stored(pieces, shape, memory.device)


def _dtype(form: str) -> torch.dtype:
    """The dtype of the tokens that a weight is multiplied by."""
    return DTYPES.get(form, torch.bfloat16)
