"""Items of a user's modality -> `ItemInput`, by the modality's own reader, which is the operator's code.

The reader runs in a thread for at most the modality's `seconds`. A thread can't be stopped: while `MAX_STUCK` readers
haven't returned, further items are refused.
"""

import threading
import weakref
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from polyphi.media.media import MediaError
from polyphi.processing.reader import Placeholder, Reader, positions
from polyphi.runtime.steps import Steps
from polyphi.types.inputs.item import ItemInput, ItemLayout
from polyphi.types.modality import Cost, Modality
from polyphi.types.parts import Item

MAX_STUCK = 4
"""Calls of a reader that may be beyond their time."""
MAX_BYTES_OF_BYTE = 64
"""Bytes of values that reading may return for each byte that a file may have."""


class ItemReader(Reader):
    """Reads the items of a user's modality."""

    def __init__(self, modality: Modality) -> None:
        self.modality = modality.name
        self._modality = modality
        self._stuck = 0
        self._values: dict[int, tuple[Float[Tensor, "n ..."], Cost]] = {}
        """Values and costs of the items that have been read, as long as they exist: the server counts an item before it
        reads it."""

    def placeholder(self, part: Item, number: int, max_crops: int | None) -> Placeholder:
        values, cost = self._read(part)
        return Placeholder(part, number, cost.tokens, values)

    def tokens(self, part: Item, max_crops: int | None) -> int:
        return self._read(part)[1].tokens

    def size(self, part: Item, max_crops: int | None) -> tuple[int, int]:
        return self._read(part)[0].nbytes, 0

    def inputs(
        self, items: Sequence[Placeholder], slots: Sequence[int], modalities: Collection[str]
    ) -> Steps[ItemInput]:
        yield from ()
        shapes = {tuple(item.content.shape[1:]) for item in items}
        if len(shapes) > 1:
            raise MediaError(
                f"{self.modality}: expected steps of one shape in a conversation, found {sorted(shapes)}"
            )
        layouts = [ItemLayout(self.modality, len(item.content), item.tokens) for item in items]
        values = torch.cat([item.content for item in items])
        return ItemInput(layouts=tuple(layouts), slots=positions(slots), values=values)

    def _read(self, part: Item) -> tuple[Float[Tensor, "n ..."], Cost]:
        """Return an item's values and cost. Raises MediaError."""
        if id(part) not in self._values:
            self._values[id(part)] = self._checked(self._call(self._content(part)))
            weakref.finalize(part, self._values.pop, id(part), None)
        return self._values[id(part)]

    def _content(self, part: Item) -> Path | bytes:
        """Return the source for the reader. Raises MediaError where it is too large, or no file."""
        source, most = part.source, self._modality.max_bytes
        if not isinstance(source, bytes):
            source = Path(source)
            if not source.is_file():
                raise MediaError(f"{source}: expected a file, found nothing there")
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        if size > most:
            raise MediaError(
                f"{self.modality}: expected at most {most:,} bytes, found {size:,}", "size"
            )
        return source

    def _call(self, source: Path | bytes) -> Any:
        """Return what the modality's reader returns. Raises MediaError where it fails or takes too long."""
        if self._stuck >= MAX_STUCK:
            raise MediaError(
                f"{self._stuck} calls of the reader of {self.modality} haven't returned; the server must be started "
                "again",
                "decoder",
            )
        results: list[Any] = []
        errors: list[BaseException] = []

        def work() -> None:
            try:
                results.append(self._modality.read(source))
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=work, daemon=True, name=f"read {self.modality}")
        thread.start()
        thread.join(self._modality.seconds)
        if thread.is_alive():
            self._stuck += 1
            threading.Thread(target=self._await, args=(thread,), daemon=True).start()
            raise MediaError(
                f"the reader of {self.modality} took more than {self._modality.seconds:g} s",
                "decoder",
            )
        if errors:
            (error,) = errors
            text = str(error)
            if not isinstance(error, ValueError):
                text = f"its reader failed ({type(error).__name__}: {text})"
            raise MediaError(
                f"{self.modality}: {text}", public=f"{self.modality}: its reader can't read this"
            ) from error
        return results[0]

    def _await(self, thread: threading.Thread) -> None:
        thread.join()
        self._stuck -= 1

    def _checked(self, values: Any) -> tuple[Float[Tensor, "n ..."], Cost]:
        """Return values and their cost. Raises MediaError where they aren't what the modality promises."""
        if isinstance(values, np.ndarray):
            values = torch.from_numpy(values)
        if not isinstance(values, Tensor) or not values.is_floating_point() or not values.ndim:
            shape = (
                f" of {values.dtype}, shape {list(values.shape)}"
                if isinstance(values, Tensor)
                else ""
            )
            raise MediaError(
                f"{self.modality}: expected a float tensor [n ...] from its reader, found a "
                f"{type(values).__name__}{shape}"
            )
        if not values.numel():
            raise MediaError(f"{self.modality}: expected at least one step, found none")
        if values.nbytes > (most := MAX_BYTES_OF_BYTE * self._modality.max_bytes):
            raise MediaError(
                f"{self.modality}: expected at most {most:,} bytes from its reader, found {values.nbytes:,}",
                "size",
            )
        if not values.isfinite().all():
            raise MediaError(f"{self.modality}: expected finite values, found NaN or infinity")
        values = values.detach().to("cpu", torch.float32)
        try:
            cost = self._modality.cost(values)
        except Exception as error:  # the user's code can raise any exception
            public = f"{self.modality}: its cost can't be computed"
            raise MediaError(f"{public} ({error!r})", public=public) from error
        tokens = cost.tokens if isinstance(cost, Cost) else None
        if not isinstance(tokens, int) or tokens < 1:
            raise MediaError(
                f"{self.modality}: expected a Cost of at least one token, found {cost!r:.80}"
            )
        return values, cost
