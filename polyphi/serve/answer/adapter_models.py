"""The adapters that requests select by name, and their loading and unloading while the server runs (lora.py).

>>> key = adapters.select(body.model, body.adapter)      # for the engine; ApiError for an unknown model or adapter
>>> await adapters.load("medical", "medical-lora")       # a folder below `--adapter-folder`
>>> await adapters.unload("medical")                     # waits for the requests with it

A name stands for a key of the engine (engine/adapters.py): a request keeps the adapter that its name stood for when it
arrived, also if another one is loaded under that name meanwhile. All methods but `select` belong to the event loop.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from polyphi.devices.memory import free_memory, ran_out
from polyphi.engine.added_adapters import FILES, InvalidAdapter
from polyphi.engine.engine import Engine
from polyphi.runtime.heap import give_back
from polyphi.serve.admission.settings import MIB, Settings
from polyphi.serve.answer.metrics import ServerMetrics
from polyphi.serve.http.addresses import is_loopback
from polyphi.serve.http.errors import ApiError
from polyphi.text.quantity import quantity
from polyphi.types.routing import normalize_adapter

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,63}")
KNOWN_NAMES = re.compile(
    r"(gpt|chatgpt|o[1-9]|codex|whisper|text-embedding|claude)-[\w.:-]{1,80}|o[1-9]"
)
"""Models of OpenAI and Anthropic, whose names are the defaults of many clients."""
RESERVED = ("auto", "none")
"""Values of the field `adapter` that are no names."""
MAX_REASON = 600
"""Characters of an error about a folder's files, which name tensors and entries."""


class AdapterModels:
    """The adapters of a server, each of which is also a model for requests."""

    def __init__(self, engine: Engine, settings: Settings, metrics: ServerMetrics) -> None:
        adapters = engine.model.config.adapters
        self._engine, self._settings, self._metrics = engine, settings, metrics
        self._keys = {name: name for name in adapters}
        self._permanent = frozenset(adapters) - set(settings.adapters)
        self._base_names = (settings.name, *settings.aliases)
        own = settings.known_names
        self._answers_known_names = is_loopback(settings.host) if own is None else own
        if ambiguous := set(settings.aliases) & {settings.name, *adapters, ""}:
            raise ValueError(
                f"--alias {ambiguous.pop()!r}: expected a name that neither the model nor one of its adapters has"
            )
        self._users: Counter[str] = Counter()
        self._unused: dict[str, asyncio.Event] = {}
        self._bytes: dict[str, int] = {}
        """Size of the file of each adapter that was loaded and not removed yet."""
        self._loading = asyncio.Lock()
        self._removals: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(2, "adapters")

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names of the adapters."""
        return iter(list(self._keys))

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _is_base(self, model: str) -> bool:
        """Whether a name is the model's, and none of an adapter."""
        if model in self._base_names:
            return True
        is_known = self._answers_known_names and KNOWN_NAMES.fullmatch(model) is not None
        return is_known and model not in self._keys

    def model_name(self, model: str | None) -> str:
        """The name of the model that answers a request for `model`."""
        is_own = model in self._base_names or model in self._keys
        return model if model and is_own else self._settings.name

    def select(self, model: str | None, adapter: str | None) -> str | None:
        """The adapter of a request, from its `model` or its `adapter` field: its key, "auto" or None. Raises ApiError
        for an unknown model or adapter."""
        keys = self._keys
        if not model or self._is_base(model):
            adapter = normalize_adapter(adapter)
            if adapter in ("auto", None):
                return adapter
            if adapter not in keys:
                expected = ", ".join(["'auto'", "'none'", "null", *map(repr, keys)])
                raise ApiError(
                    400, f"adapter: expected {expected}, found {adapter!r:.80}", param="adapter"
                )
            return keys[adapter]
        if model not in keys:
            expected = ", ".join([*self._base_names, *keys])
            hint = (
                "; polyphi serve --known-names answers it" if KNOWN_NAMES.fullmatch(model) else ""
            )
            raise ApiError(
                404,
                f"unknown model {model!r:.80}; expected one of {expected}{hint}",
                param="model",
                code="model_not_found",
            )
        if adapter not in ("auto", model):
            raise ApiError(
                400,
                f"model selects the adapter {model!r}, adapter selects {adapter!r:.80}; leave one of them out",
                param="adapter",
            )
        return keys[model]

    def use(self, key: str | None) -> None:
        """Count a request that uses an adapter until `release`; it isn't removed before."""
        if key is not None:
            self._users[key] += 1

    def release(self, key: str | None) -> None:
        if key is None:
            return
        self._users[key] -= 1
        if not self._users[key]:
            del self._users[key]
            if key in self._unused:
                self._unused[key].set()

    async def load(self, name: str, path: str, *, in_place: bool = False) -> None:
        """Load the adapter in a folder under a name. `in_place`: replaces the one with this name for new requests.
        Raises ApiError for a folder that isn't allowed or has no adapter for this model, and for other names."""
        root = self._root
        self._check_name(name, in_place)
        async with self._loading:  # one after another: each takes the memory of its file twice
            self._check_name(name, in_place)
            loop = asyncio.get_running_loop()
            key, size = await loop.run_in_executor(self._threads, self._load, name, root, path)
            self._bytes[key] = size
            replaced, self._keys[name] = self._keys.get(name), key
        if replaced is not None:
            removal = asyncio.create_task(self._remove(replaced))
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)

    async def unload(self, name: str) -> None:
        """Refuse new requests with an adapter at once, and remove it when those under way have ended. Raises ApiError
        for an unknown one and for those of the checkpoint."""
        _ = self._root
        if name in self._permanent:
            raise ApiError(
                400,
                f"the adapter {name!r} belongs to the model and can't be unloaded",
                param="lora_name",
            )
        key = self._keys.pop(name, None)
        if key is None:
            raise ApiError(
                404,
                f"there is no adapter {name!r:.80}",
                param="lora_name",
                code="adapter_not_found",
            )
        await self._remove(key)
        if name not in self._keys:
            self._metrics.adapter_unloaded(name)

    @property
    def _root(self) -> Path:
        if self._settings.adapter_folder is None:
            raise ApiError(
                404,
                "this server loads no adapters while it runs; start it with --adapter-folder",
                code="not_found",
            )
        return self._settings.adapter_folder

    def _check_name(self, name: str, in_place: bool) -> None:
        if not NAME.fullmatch(name) or name in RESERVED:
            raise ApiError(
                400,
                "lora_name: expected a letter, then up to 63 letters, digits, _ and -; not auto or none; found "
                f"{name!r:.80}",
                param="lora_name",
            )
        if name in self._base_names or name in self._permanent:
            raise ApiError(
                400,
                f"lora_name: {name!r} is a name of the model or of one of its own adapters",
                param="lora_name",
            )
        if name in self._keys and not in_place:
            raise ApiError(
                400,
                f"the adapter {name!r} is loaded already; set load_inplace to true to replace it",
                param="lora_name",
                code="adapter_loaded",
            )

    def _load(self, name: str, root: Path, path: str) -> tuple[str, int]:
        """Read an adapter and add it to the engine, in a thread: its key, and the size of its file."""
        folder = folder_below(root, path)
        weights = folder / FILES[1]
        size = weights.stat().st_size if weights.is_file() else 0
        self._check_memory(size)
        try:
            key = self._engine.adapters.load(name, folder)
        except InvalidAdapter as error:
            reason = error.reason
            reason = reason if len(reason) <= MAX_REASON else f"{reason[:MAX_REASON]}..."
            raise ApiError(400, f"lora_path: {reason}", param="lora_path") from None
        except (MemoryError, RuntimeError) as error:
            if not ran_out(error):
                raise
            raise _no_memory() from None
        give_back()
        return key, size

    def _check_memory(self, size: int) -> None:
        """Raises ApiError if an adapter with a file of this size would exceed the limits or the memory."""
        most, in_use = self._settings.max_adapter_bytes, sum(self._bytes.values())
        if len(self._bytes) >= self._settings.max_adapters or in_use + size > most:
            raise ApiError(
                400,
                f"the server has {quantity(len(self._bytes), 'adapter')} of {in_use / MIB:,.0f} MiB, and this one has "
                f"{size / MIB:,.0f} MiB; expected at most {self._settings.max_adapters} of {most / MIB:,.0f} MiB "
                "together: unload others first",
                param="lora_path",
                code="too_many_adapters",
            )
        decoder = self._engine.model.decoder
        # The file has at least two bytes a weight; it is read beside the weights of the model.
        needed = size * decoder.norm.weight.element_size() // 2
        needed += size if decoder.device.type == "cpu" else 0
        if needed > free_memory(decoder.device):
            raise _no_memory()

    async def _remove(self, key: str) -> None:
        if self._users[key]:
            await self._unused.setdefault(key, asyncio.Event()).wait()
        self._unused.pop(key, None)
        loop = asyncio.get_running_loop()
        removed = await loop.run_in_executor(self._threads, self._engine.adapters.remove, key)
        await asyncio.wrap_future(removed)
        self._bytes.pop(key, None)
        await loop.run_in_executor(self._threads, give_back)


def folder_below(root: Path, path: str) -> Path:
    """The folder of an adapter: a path relative to `root` or absolute, in which links are followed. Raises ApiError 403
    if the folder or one of its files lies outside `root`, and 404 if there is no such folder."""
    missing = ApiError(
        404,
        "lora_path: expected a folder below the adapter folder of this server",
        param="lora_path",
        code="adapter_not_found",
    )
    try:
        root = root.resolve(strict=True)
        folder = (root / path).resolve()
        files = [(folder / name).resolve() for name in FILES]
        if not all(one.is_relative_to(root) for one in (folder, *files)):
            raise ApiError(
                403,
                "lora_path: the folder, or a file in it, is outside the adapter folder of this server",
                param="lora_path",
                code="path_not_allowed",
            )
        if not folder.is_dir():
            raise missing
    except (OSError, ValueError, RuntimeError):  # a NUL, a name that is too long, links in a circle
        raise missing from None
    return folder


def _no_memory() -> ApiError:
    message = "there is not enough memory for this adapter; unload others first"
    return ApiError(503, message, code="out_of_memory", headers={"Retry-After": "5"})
