"""`Batch`: the model's input. Packed tokens without a batch axis; training and serving run the same forward over it.

Legend of tensor shapes, everywhere in polyphi:
T packed tokens · S sequences · D width · H heads · K kv heads · V vocabulary · N crops · P patches · F frames ·
M mel bins · R rank · C crop side in pixels · G patches along a crop's side · Q supervised positions · W global views

An example of a pack (two sequences, `.` not supervised)::

    ids        user  17  23  asst  44  end | user  99  asst  51  end
    positions     0   1   2     3   4    5 |    0   1     2   3    4
    labels        .   .   .    44 end    . |    .   .    51 end    .
    cu_seqlens     (0, 6, 11)

`labels[t]` is the id that position t must predict: already shifted, so that a row's last token can't leak into the
next row. A row (one sample, tokenized) is a `Batch` of one sequence; `pack` joins rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from jaxtyping import Int
from torch import Tensor

from polyphi.types.inputs.encoder import Inputs, tensors

IGNORE = -100
Kind = TypeVar("Kind", bound=Inputs)


@dataclass(frozen=True)
class Batch:
    """Packed sequences and what they have beside tokens.

    `cu_seqlens` (host, S + 1 numbers from 0 to T) delimits sequences; `seq_lens` (host, S) counts each sequence's
    tokens up to and including this batch, cached ones too: it decides the LongRoPE table of that sequence. `adapters`
    (host, S) names each sequence's LoRA or None. `inputs` are those of the encoders, by the name of their modality.
    `lost` counts tokens that were cut off at the context. `keys` (host, S or none) identify sequences for an objective.
    """

    ids: Int[Tensor, " T"]
    positions: Int[Tensor, " T"]
    cu_seqlens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    adapters: tuple[str | None, ...]
    labels: Int[Tensor, " T"] | None = None
    supervised: Int[Tensor, " Q"] | None = None
    inputs: Mapping[str, Inputs] = field(default_factory=dict)
    lost: int = 0
    keys: tuple[str, ...] = ()

    @property
    def sequences(self) -> int:
        return len(self.cu_seqlens) - 1

    def __len__(self) -> int:
        return self.cu_seqlens[-1]

    def of(self, kind: type[Kind]) -> Kind | None:
        """The inputs of a modality, None where the batch has none."""
        inputs = self.inputs.get(kind.NAME)
        assert inputs is None or isinstance(inputs, kind)
        return inputs

    def with_inputs(self, *inputs: Inputs) -> "Batch":
        """A copy of the batch in which these inputs replace those of their modalities."""
        return replace(self, inputs={**self.inputs, **{one.modality: one for one in inputs}})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        every = [tensors(self), *(inputs.tensors for inputs in self.inputs.values())]
        return sum(t.numel() * t.element_size() for each in every for t in each.values())

    def without_values(self) -> "Batch":
        """A copy of the batch without the values of its inputs, for sequences whose inputs are already encoded."""
        return replace(
            self, inputs={n: inputs.without_values() for n, inputs in self.inputs.items()}
        )

    def to(self, device: torch.device | str) -> "Batch":
        return replace(
            self,
            inputs={name: inputs.to(device) for name, inputs in self.inputs.items()},
            **{n: t.to(device, non_blocking=True) for n, t in tensors(self).items()},  # type: ignore[arg-type]
        )


def row(
    ids: Sequence[int],
    *inputs: Inputs,
    supervise: Sequence[bool] | None = None,
    adapter: str | None = None,
    lost: int = 0,
) -> Batch:
    """A sample as a `Batch` of one sequence. `supervise[t]`: token t is supervised, as the label of position t - 1
    (token 0 can't be)."""
    tokens = torch.tensor(ids, dtype=torch.long)
    labels = supervised = None
    if supervise is not None:
        labels = torch.full_like(tokens, IGNORE)
        mask = torch.tensor(supervise, dtype=torch.bool)[1:]
        labels[:-1][mask] = tokens[1:][mask]
        supervised = (labels != IGNORE).nonzero().flatten()
    return Batch(
        ids=tokens,
        positions=torch.arange(len(tokens)),
        cu_seqlens=(0, len(tokens)),
        seq_lens=(len(tokens),),
        adapters=(adapter,),
        labels=labels,
        supervised=supervised,
        inputs={one.modality: one for one in inputs},
        lost=lost,
    )


def pack(rows: Sequence[Batch]) -> Batch:
    """Several batches joined into one, sequences and inputs in order. The forward of a pack equals that of its separate
    rows."""
    if not rows:
        raise ValueError("cannot pack zero rows")
    starts = [0]
    for r in rows:
        starts.append(starts[-1] + len(r))

    def join(name: str) -> Inputs:
        pairs = [
            (r.inputs[name], start)
            for r, start in zip(rows, starts, strict=False)
            if name in r.inputs
        ]
        return type(pairs[0][0]).join(*zip(*pairs, strict=True))

    labelled = [r.labels is not None for r in rows]
    assert all(labelled) or not any(labelled), "a pack mixes rows with and without labels"
    supervised = [
        r.supervised + start
        for r, start in zip(rows, starts, strict=False)
        if r.supervised is not None
    ]
    return Batch(
        ids=torch.cat([r.ids for r in rows]),
        positions=torch.cat([r.positions for r in rows]),
        cu_seqlens=(
            0,
            *(start + b for r, start in zip(rows, starts, strict=False) for b in r.cu_seqlens[1:]),
        ),
        seq_lens=tuple(t for r in rows for t in r.seq_lens),
        adapters=tuple(a for r in rows for a in r.adapters),
        labels=torch.cat([r.labels for r in rows if r.labels is not None])
        if all(labelled)
        else None,
        supervised=torch.cat(supervised) if supervised else None,
        inputs={name: join(name) for name in dict.fromkeys(n for r in rows for n in r.inputs)},
        lost=sum(r.lost for r in rows),
        keys=tuple(k for r in rows for k in r.keys),
    )
