"""A dry run: two steps of any stage at its full size, on one core, without the memory.

    polyphi plan vision_2_joint --dry-run

The model's tensors are fake: they have a shape, a type and a device, and no numbers. Everything else is real: the
stage's objective, the backward pass, the sum of gradients over a (pretended) group of processes, clipping, AdamW, and
shards, should they be asked for. What the tensors would take is counted as they come and go.
"""

import contextlib
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as torch_distributed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from polyphi.batch import Batch, pack
from polyphi.data.packing import Pack
from polyphi.model.multimodal import PhiModel
from polyphi.planning.cost import Subject, imagined
from polyphi.planning.vocabulary import VocabularyOnly
from polyphi.runtime import distributed
from polyphi.train import parallel
from polyphi.train.freeze import check_gradients, freeze, named
from polyphi.train.optim import optimiser, set_lr
from polyphi.train.reference import References
from polyphi.train.trainer import StageLoss

CPU = torch.device("cpu")


class Meter(TorchDispatchMode):
    """Counts the bytes of all storages that are made while it is on, fake or real, until they are freed. `live` are
    there now, `peak` is the most that were."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._ever = 0
        self._numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage (of a shard, the part that is here), unless it is counted."""
        storage = parallel.local(tensor).untyped_storage()
        size = storage.nbytes()
        # A size that hangs on numbers is that of a handful of them.
        if storage not in self._numbers and isinstance(size, int):
            self._ever += 1
            number = self._numbers[storage] = self._ever
            self._count(number, size)
            weakref.finalize(storage, self._count, number, 0)

    def recount(self) -> None:
        """Look at all storages again: shards free a gathered layer by taking its storage's bytes away."""
        for storage, number in self._numbers.items():
            self._count(number, storage.nbytes())

    def _count(self, number: int, size: int) -> None:
        self.live += size - self._sizes.pop(number, 0)
        self.peak = max(self.peak, self.live)
        if size:
            self._sizes[number] = size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fsdp":
            self.recount()
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.add(leaf)
        return out


class Fakes(FakeTensorMode):
    """Fake tensors of which numbers may be read: each is 1, and no two tensors are equal. What hangs on them (is the
    loss finite, has anyone a gradient) goes the way of a step in which all is well."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            dtype = args[0].dtype
            return 1.0 if dtype.is_floating_point else dtype == torch.bool or 1
        if func is torch.ops.aten.equal.default:
            return False
        return super().dispatch(func, types, args, kwargs)


@contextlib.contextmanager
def pretended(world: int, rank: int = 0) -> Iterator[None]:
    """Meanwhile this is process `rank` of `world`, the others only pretended: sums over all are what this one
    brings."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch_distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        distributed.groups.cache_clear()
        torch_distributed.destroy_process_group()


@dataclass(frozen=True)
class Rehearsal:
    """What came of it: per optimiser group (glob, parameters in this process, peak rate, weight decay), steps done,
    bytes that stay between steps (weights and optimiser) and the most at one time."""

    groups: list[tuple[str, int, float, float]]
    steps: int
    standing: int
    peak: int


def rehearse(
    it: Subject,
    packs: Sequence[Batch],
    *,
    world: int = 8,
    shard: int = 1,
    context: int = 1,
    steps: int = 2,
) -> Rehearsal:
    """Take `steps` steps of a stage, each with all `packs`, as the last process of `world`; with `shard` equal to
    `world` the decoder's layers are cut over all; `context` processes share each pack. Raises ValueError where the
    stage's adapters learn and layers are to be cut, and RuntimeError where a glob of `learn` gets no gradient or
    something frozen gets one."""
    if shard not in (1, world):
        raise ValueError(f"layers are cut over all {world} processes or none, found shard={shard}")
    stage, fakes, meter = it.stage, Fakes(), Meter()
    with pretended(world, world - 1), fakes:
        model = PhiModel(it.config).train()
        head = stage.objective.build(model, VocabularyOnly(it.config.decoder.vocab_size))
        parameters = freeze(stage, model, head)
        reference = reference_of(it, model)
    with pretended(world, world - 1):
        if shard > 1:
            parallel.shard(model, "bf16", shard)
            parameters = named(model, head)
        for part in (model, head):
            if isinstance(part, nn.Module):
                for tensor in (*part.parameters(), *part.buffers()):
                    meter.add(tensor)
        context_model = parallel.context_parallel(model, context)
        loss = StageLoss(stage.objective, context_model, head, reference, "bf16")
        optimizer = optimiser(stage, parameters, it.budget)
        learned = [p for p in parameters.values() if p.requires_grad]
        # A shard's buffers are made from nothing, so the fakes must be on. Elsewhere what comes from the weights is
        # fake by itself, and what only says where things lie (bounds, slots, lengths) may stay real.
        with fakes if shard > 1 else contextlib.nullcontext(), meter:
            for number in range(steps):
                record = loss.accumulate([Pack(batch) for batch in packs])
                parallel.sum_gradients(learned)
                if number == 0:
                    check_gradients(stage, parameters, CPU)
                parallel.clip_gradients(learned, 1 / max(1, record["count"]), stage.clip_norm)
                set_lr(optimizer, stage.schedule.factor(number, it.budget.steps))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            meter.recount()
    made = [
        (
            group["glob"],
            sum(parallel.local(p).numel() for p in group["params"]),
            group["peak"],
            group["weight_decay"],
        )
        for group in optimizer.param_groups
    ]
    return Rehearsal(made, steps, meter.live, meter.peak)


def reference_of(it: Subject, model: PhiModel) -> Any:
    """The reference of the stage's objective; precomputed log-probabilities are zeros."""
    begun = it.stage.objective.begin(model)
    if isinstance(begun, References):
        return lambda batch: torch.zeros(batch.sequences)
    return begun


def told(it: Subject, shard: int = 1, context: int = 1) -> str:
    """A dry run in words, with packs as they come: one sample of each corpus of the mix, twice a step."""
    batch = pack([row for corpus in it.stage.data.weights for row in imagined(it, corpus)])
    world = max(8, shard, context)
    came = rehearse(it, [batch, batch], world=world, shard=shard, context=context)
    lines = [
        f"{it.stage.name}: {came.steps} steps as the last process of {world}, packs of {len(batch):,} tokens"
    ]
    lines += [
        f"  {glob}: {size:,} parameters, peak rate {rate:.1e}, weight decay {decay:g}"
        for glob, size, rate, decay in came.groups
    ]
    gigabytes = f"{came.standing / 1e9:.1f} GB between steps, {came.peak / 1e9:.1f} GB at the most"
    return "\n".join([*lines, f"  counted: {gigabytes}"])
