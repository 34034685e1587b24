"""A dry run: two steps of any stage at its full size, on one core, without memory for the tensors.

The model's tensors are fake: they have a shape, a dtype and a device, but no values. Everything else is real: the
stage's objective, the backward pass, the sum of gradients over a (fake) process group, clipping, AdamW, and optionally
shards. The bytes of the tensors are counted while they exist.
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

from polyphi.data.packing import Pack
from polyphi.model.multimodal import PhiModel
from polyphi.planning.cost import StageModel
from polyphi.planning.vocabulary import VocabularyOnly
from polyphi.prepared.prepare import prepare
from polyphi.runtime import distributed
from polyphi.train import parallel
from polyphi.train.freeze import check_gradients, freeze, named
from polyphi.train.optimizer import make_optimizer, set_lr
from polyphi.train.preference import References
from polyphi.train.stage_loss import StageLoss
from polyphi.types.batch import Batch

CPU = torch.device("cpu")


class Meter(TorchDispatchMode):
    """Counts the bytes of all storages, fake or real, that are created while it is active, until they are freed. `live`
    is the current number, `peak` the maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._sizes: dict[int, int] = {}
        self._created = 0
        self._numbers: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage (of a sharded one, the local part), unless it is counted already."""
        storage = parallel.local(tensor).untyped_storage()
        size = storage.nbytes()
        # Only small tensors have sizes that depend on values.
        if storage not in self._numbers and isinstance(size, int):
            self._created += 1
            number = self._numbers[storage] = self._created
            self._count(number, size)
            weakref.finalize(storage, self._count, number, 0)

    def recount(self) -> None:
        """Count all storages again: FSDP frees a gathered layer by resizing its storage to 0."""
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


class ReadableFakes(FakeTensorMode):
    """Fake tensors whose values can be read: each is 1, and no two tensors are equal. Checks of values (is the loss
    finite, is there a gradient) then have the results of a normal step. Indices, masks and whatever is computed from a
    batch's real tensors alone stay real, so that a shape that depends on their values is known."""

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True, shape_env=ShapeEnv(), static_shapes=True)

    def dispatch(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            dtype = args[0].dtype
            return 1.0 if dtype.is_floating_point else dtype == torch.bool or 1
        if func is torch.ops.aten.equal.default:
            return False
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fake = any(isinstance(leaf, FakeTensor) for leaf in inputs)
        if func is torch.ops.aten.arange.default or (inputs and not fake):
            return func(*args, **(kwargs or {}))
        return super().dispatch(func, types, args, kwargs)


@contextlib.contextmanager
def fake_group(world: int, rank: int = 0) -> Iterator[None]:
    """A context in which this process has the rank `rank` in a fake group of `world`: sums over all processes are its
    own values."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch_distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world)
    try:
        yield
    finally:
        distributed.groups.cache_clear()
        torch_distributed.destroy_process_group()


@dataclass(frozen=True)
class DryRunResult:
    """Result of a dry run: optimiser groups (glob, parameters in this process, peak learning rate, weight decay),
    number of steps, bytes that stay between steps (weights and optimiser), and the maximum at one time."""

    groups: list[tuple[str, int, float, float]]
    steps: int
    permanent: int
    peak: int


def dry_run(
    target: StageModel,
    packs: Sequence[Batch],
    *,
    world: int = 8,
    shard: int = 1,
    context: int = 1,
    steps: int = 2,
) -> DryRunResult:
    """Take `steps` steps of a stage, each with all `packs`, as the last process of `world`; with `shard` equal to
    `world` the decoder's layers are sharded over all; `context` processes share each pack. Raises ValueError for shards
    where adapters are trainable, and RuntimeError where a glob of `trainable` gets no gradient or a frozen tensor gets
    one."""
    if shard not in (1, world):
        raise ValueError(
            f"expected shard=1 or shard={world}, the number of processes, found {shard}"
        )
    stage, fakes, meter = target.stage, ReadableFakes(), Meter()
    with fake_group(world, world - 1), fakes:
        model = prepare(PhiModel(target.config)).train()
        head = stage.objective.build(model, VocabularyOnly(target.config.decoder.vocab_size))
        parameters = freeze(stage, model, head)
        reference = reference_of(target, model)
    with fake_group(world, world - 1):
        if shard > 1:
            parallel.shard(model, "bf16", shard)
            parameters = named(model, head)
        for part in (model, head):
            if isinstance(part, nn.Module):
                for tensor in (*part.parameters(), *part.buffers()):
                    meter.add(tensor)
        context_model = parallel.context_parallel(model, context)
        loss = StageLoss(stage.objective, context_model, head, reference, "bf16")
        optimizer = make_optimizer(stage, parameters, target.budget)
        trainable = [p for p in parameters.values() if p.requires_grad]
        # FSDP allocates buffers, so the fake mode must be active. Otherwise tensors computed from weights are fake
        # anyway, and index tensors (cu_seqlens, slots, lengths) can be real.
        with fakes if shard > 1 else contextlib.nullcontext(), meter:
            for number in range(steps):
                record = loss.accumulate([Pack(batch) for batch in packs])
                parallel.sum_gradients(trainable)
                if number == 0:
                    check_gradients(stage, parameters, CPU)
                parallel.clip_gradients(trainable, 1 / max(1, record["count"]), stage.clip_norm)
                set_lr(optimizer, stage.schedule.factor(number, target.budget.steps))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            meter.recount()
    optimizer_groups = [
        (
            group["glob"],
            sum(parallel.local(p).numel() for p in group["params"]),
            group["peak"],
            group.get("weight_decay", 0.0),  # Muon has none
        )
        for group in optimizer.param_groups
    ]
    return DryRunResult(optimizer_groups, steps, meter.live, meter.peak)


def reference_of(target: StageModel, model: PhiModel) -> Any:
    """The reference of the stage's objective; precomputed log-probabilities are zeros."""
    reference = target.stage.objective.begin(model)
    if isinstance(reference, References):
        return lambda batch: torch.zeros(batch.sequences)
    return reference
