"""Adapters that are added to a running engine, and removed from it between two steps.

>>> key = engine.adapters.load("medical", folder)
>>> engine.generate(messages, adapter=key).adapter
'medical'
>>> engine.adapters.remove(key).result()         # waits for the requests with it

The model has an added adapter under a key that is used once, such as `medical@3`. So another adapter that is added
under the same name later never meets a request, a cached prefix or a CUDA graph of the first one.
"""

import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from itertools import count
from pathlib import Path

from polyphi.checkpoints.peft import CONFIG, FILE, PeftError, read_peft
from polyphi.engine.prefixes import Prefixes, digest
from polyphi.engine.request import ADAPTER_KEY_SEPARATOR, Request, adapter_name
from polyphi.engine.runner import Runner
from polyphi.model.adapters import insert_adapter, low_ranks, remove_adapter
from polyphi.model.config import AdapterConfig
from polyphi.model.lora import Factors
from polyphi.model.multimodal import PhiModel
from polyphi.prepared.prepare import prepare

InvalidAdapter = PeftError
"""A folder has no adapter for this model; `reason` is the message without the folder."""
FILES = (CONFIG, FILE)
"""The files of an adapter; the second one has its weights."""


class UnknownAdapter(ValueError):
    """A request names an adapter that the model doesn't have, or no longer has."""

    def __init__(self, key: str, available: Iterable[str]) -> None:
        names = sorted({adapter_name(one) for one in available})
        name = adapter_name(key)
        super().__init__(
            f"unknown adapter {name!r:.80}; expected 'auto', 'none' or one of {names}"
            if name not in names
            else f"the adapter {name!r:.80} was removed, and another one loaded under its name; send the request again"
        )


class Adapters:
    """The adapters of an engine. `turn` locks the engine between two steps; `requests` returns the unfinished ones;
    `settle` drops caches of old weights, if no request is unfinished."""

    def __init__(
        self,
        model: PhiModel,
        prefixes: Prefixes,
        runner: Runner,
        turn: Callable[[], AbstractContextManager[None]],
        requests: Callable[[], Iterable[Request]],
        settle: Callable[[], None],
    ) -> None:
        self._model, self._prefixes, self._runner = model, prefixes, runner
        self._turn, self._requests, self._settle = turn, requests, settle
        self._numbers = count(1)
        self._count_lock = threading.Lock()
        self._leaving: dict[str, Future[None]] = {}

    def load(self, name: str, folder: Path) -> str:
        """Add the adapter in a folder, as PEFT writes it; returns its key. Raises InvalidAdapter."""
        adapter = read_peft(folder, self._model.config)
        return self.add(name, adapter.config, adapter.factors)

    def add(self, name: str, config: AdapterConfig, factors: Mapping[str, Factors]) -> str:
        """Add an adapter; returns its key. On a CPU, steps go on while its weights are copied."""
        with self._count_lock:
            key = f"{name}{ADAPTER_KEY_SEPARATOR}{next(self._numbers)}"
        # A CUDA graph that is recorded meanwhile would fail: another thread must not allocate then.
        on_cuda = self._model.decoder.device.type == "cuda"
        with self._turn() if on_cuda else nullcontext():
            pairs = {k: prepare(pair) for k, pair in low_ranks(self._model, factors).items()}
            hashed = digest(pairs.items())
        with self._turn():
            self._settle()
            insert_adapter(self._model, key, config, pairs)
            self._prefixes.adapter_added(key, hashed)
        return key

    def remove(self, key: str) -> Future[None]:
        """Remove an adapter once no request uses it; the future is then done."""
        with self._turn():
            if key not in self._model.config.adapters:
                raise UnknownAdapter(key, self._model.config.adapters)
            if key not in self._leaving:
                self._leaving[key] = Future()
                self._leaving[key].set_running_or_notify_cancel()  # it can't be cancelled
            removed = self._leaving[key]
            self.remove_unused()
        return removed

    def remove_unused(self) -> None:
        """Remove the adapters whose last request has ended. The caller has the engine's lock."""
        if not self._leaving:
            return
        used = {adapter for request in self._requests() for adapter in _adapters(request)}
        for key in [key for key in self._leaving if key not in used]:
            self._settle()
            remove_adapter(self._model, key)
            self._prefixes.adapter_removed(key)
            self._runner.forget_adapter(key)
            self._leaving.pop(key).set_result(None)

    def check(self, key: str | None) -> None:
        """Raises UnknownAdapter for an adapter that the model doesn't have: it may have been removed since a row was
        prepared."""
        if key is not None and key not in self._model.config.adapters:
            raise UnknownAdapter(key, self._model.config.adapters)


def _adapters(request: Request) -> tuple[str | None, ...]:
    """The adapters of a request's row; none while it is in preparation, since it is checked afterwards."""
    row = request.row
    if not row.done() or row.cancelled() or row.exception() is not None:
        return ()
    return row.result().adapters
