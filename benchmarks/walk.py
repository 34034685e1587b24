"""Follows a training stage and a chat request through the code, and counts how often a reader changes files.

python benchmarks/walk.py                        # both, of the polyphi that this Python imports
python benchmarks/walk.py --parts train --list   # the files in order
PYTHONPATH=OTHER_CHECKOUT python benchmarks/walk.py --json

Both run with a random model of the micro size, as a user runs them:

- `train`: `polyphi train examples/finetune_vision.py` on a dozen images, interrupted after two steps and resumed, so
  that a checkpoint is written and read: stage file, data, row, batch, step, checkpoint, manifest, export. `one step` of
  it lies between the ends of the optimizer's first and second step.
- `chat`: `polyphi serve`, and one streamed request of `/v1/chat/completions`, from the socket to its last event; the
  server has answered another one before. Functions that the idle server calls as often are left out.

All threads are followed (`sys.setprofile`), child processes are not. Counted are functions of polyphi, polyphi_eval and
polyphi_recipe, without comprehensions and without what runs while a module is imported:

- `calls`: how often a function was entered. A generator or coroutine is entered once, however often it continues.
- `functions`, `files`: distinct ones.
- `pairs`: distinct pairs of a file and another one that it calls: the file of the nearest caller of ours.
- `re-entries`: a reader opens each function once, when it is first entered. In that order, thread by thread (the
  threads of a pool are one), consecutive functions of one file are one visit. A file with n visits in a thread has
  n - 1 re-entries there.

Each repeat is a separate process; the table has medians, and `--list` the visits of the first repeat.
"""

import argparse
import http.client
import inspect
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from dis import opmap
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import polyphi

ROOT = Path(polyphi.__file__).parents[1]
FOLDERS = tuple(f"{ROOT / name}{os.sep}" for name in ("polyphi", "polyphi_eval", "polyphi_recipe"))
PARTS = ("train", "chat")
FUNCTION = inspect.CO_OPTIMIZED
"""The flag of a function's code, which modules and class bodies lack."""
SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>")
STEPS = 4
ROWS = 12
TOKENS = 6
WINDOW = 1.5
"""Seconds in which a request and its clean-up end; as long, the idle server is recorded."""


@dataclass(frozen=True)
class Call:
    """A function was entered, by the nearest caller of ours (empty if a thread or a library calls it)."""

    thread: str
    file: str
    function: str
    caller: str


@dataclass(frozen=True)
class Visit:
    """Functions of one file that are first entered one after another."""

    thread: str
    file: str
    functions: tuple[str, ...]


@dataclass(frozen=True)
class Walk:
    """The numbers of the table, for some calls."""

    calls: int
    functions: int
    files: int
    pairs: int
    reentries: int


def visits(calls: Iterable[Call]) -> list[Visit]:
    """The visits of all threads: threads by their first call, a thread's visits in order."""
    threads: dict[str, dict[tuple[str, str], None]] = {}
    opened = set()
    for call in calls:
        function = (call.file, call.function)
        if function not in opened:
            opened.add(function)
            threads.setdefault(call.thread, {})[function] = None
    return [
        Visit(thread, file, tuple(name for _, name in group))
        for thread, functions in threads.items()
        for file, group in groupby(functions, key=lambda function: function[0])
    ]


def reentries(visited: Iterable[Visit]) -> Counter[str]:
    """How often each file is entered again."""
    by_thread = Counter((visit.thread, visit.file) for visit in visited)
    result: Counter[str] = Counter()
    for (_, file), count in by_thread.items():
        result[file] += count - 1
    return result


def measure(calls: Sequence[Call]) -> Walk:
    return Walk(
        calls=len(calls),
        functions=len({(call.file, call.function) for call in calls}),
        files=len({call.file for call in calls}),
        pairs=len({(c.caller, c.file) for c in calls if c.caller and c.caller != c.file}),
        reentries=reentries(visits(calls)).total(),
    )


# ------------------------------------------------------------------------------ recording


class Recorder:
    """The calls of all threads that start after it, and of this one."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        sys.setprofile(self._event)
        threading.setprofile(self._event)

    def stop(self) -> None:
        sys.setprofile(None)
        threading.setprofile(None)

    def _event(self, frame: FrameType, event: str, _: object) -> None:
        if event != "call" or not is_counted(frame.f_code) or continues(frame):
            return
        caller, above = "", frame.f_back
        while above is not None:
            code = above.f_code
            if code.co_filename.startswith(FOLDERS):
                if not code.co_flags & FUNCTION:  # a module that is imported
                    return
                caller = caller or relative(code)
            above = above.f_back
        code = frame.f_code
        # The threads of a pool have numbers.
        thread = re.sub(r"[_-]?\d+( \(.*\))?$", "", threading.current_thread().name)
        self.calls.append(
            Call(thread, relative(code), f"{code.co_qualname}:{code.co_firstlineno}", caller)
        )


def is_counted(code: CodeType) -> bool:
    return (
        code.co_filename.startswith(FOLDERS)
        and bool(code.co_flags & FUNCTION)
        and code.co_name not in COMPREHENSIONS
    )


def continues(frame: FrameType) -> bool:
    """Whether a generator or coroutine continues: a function starts at the instruction RESUME with the argument 0."""
    code, index = frame.f_code, frame.f_lasti
    if not code.co_flags & SUSPENDS:
        return False
    return tuple(code.co_code[index : index + 2]) != (opmap["RESUME"], 0)


def relative(code: CodeType) -> str:
    return code.co_filename.removeprefix(f"{ROOT}{os.sep}")


def command(*arguments: str) -> None:
    """Run `polyphi` in this process; its exit codes are ignored, as those of an interrupted run."""
    from polyphi.cli import main

    sys.argv = ["polyphi", *arguments]
    with suppress(SystemExit):
        main()


def save(folder: Path, calls: Mapping[str, Sequence[Call]]) -> None:
    rows = {
        name: [list(asdict(call).values()) for call in of_name] for name, of_name in calls.items()
    }
    (folder / "calls.json").write_text(json.dumps(rows))


def record_train(folder: Path, model: Path) -> None:
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ends: list[int] = []

    def end_of_step(*_: Any) -> None:
        ends.append(len(recorder.calls))
        if len(ends) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    register_optimizer_step_post_hook(end_of_step)
    out = folder / "train"
    train = (
        *("train", str(ROOT / "examples" / "finetune_vision.py")),
        *("--model", str(model), "--data", str(write_rows(folder)), "--out", str(out)),
        *("--steps", str(STEPS), "--batch-tokens", "400", "--precision", "fp32"),
    )
    recorder = Recorder()
    for _ in range(2):
        command(*train)
    recorder.stop()
    if len(ends) != STEPS or not (out / "manifest.json").exists():
        raise RuntimeError(f"expected {STEPS} steps and a manifest, found {len(ends)} steps")
    step = recorder.calls[ends[0] : ends[1]]
    save(folder, {"train": recorder.calls, "train, one step": step})


def record_chat(folder: Path, model: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    recorder = Recorder()

    def client() -> None:
        try:
            wait_until_ready(port)
            ask(port, "one two three")
            time.sleep(WINDOW)
            idle = len(recorder.calls)
            time.sleep(WINDOW)
            start, end = len(recorder.calls), time.monotonic() + WINDOW
            ask(port, "what is this ?")
            time.sleep(max(0.0, end - time.monotonic()))
            request = without_periodic(recorder.calls[start:], recorder.calls[idle:start])
            save(folder, {"chat": request})
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)  # the server has nothing to finish

    threading.Thread(target=client, daemon=True).start()
    command("serve", str(model), "--port", str(port), "--device", "cpu")


def without_periodic(request: Sequence[Call], idle: Sequence[Call]) -> list[Call]:
    """The calls of a request, without functions that the idle server calls as often, or once less, in the same time."""
    function = attrgetter("file", "function")
    counts, idle_counts = Counter(map(function, request)), Counter(map(function, idle))
    periodic = {f for f, count in idle_counts.items() if counts[f] <= count + 1}
    return [call for call in request if function(call) not in periodic]


def wait_until_ready(port: int) -> None:
    limit = time.monotonic() + 300
    while time.monotonic() < limit:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        try:
            connection.request("GET", "/ready")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.2)
    raise TimeoutError("the server didn't load within 300 s")


def ask(port: int, prompt: str) -> None:
    """One streamed chat request, read to its end."""
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": TOKENS,
        "temperature": 0,
        "stream": True,
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    response = connection.getresponse()
    text = response.read().decode()
    connection.close()
    if response.status != 200 or "[DONE]" not in text:
        raise RuntimeError(f"expected a stream that ends with [DONE], found {text[-500:]!r}")


# ------------------------------------------------------------------------------ model and data


def write_model(folder: Path) -> None:
    """A random model of the micro size with all modalities, and a tokenizer of a few words."""
    from polyphi.checkpoints.write import save_checkpoint
    from polyphi.model.multimodal import PhiModel
    from polyphi.planning import sizes
    from polyphi.processing.tokenizer import Tokenizer
    from polyphi_recipe.stages import lineage

    tokenizer = Tokenizer.train(["what is this ? one two three"] * 4, 512)
    tokenizer.save(folder.parent / "tokenizer")
    stages = lineage.after("joint_1_vision_speech")
    model = PhiModel(lineage.configuration(stages, sizes.MICRO.model, tokenizer))
    model.initialise(0)
    save_checkpoint(model, folder, files=sorted((folder.parent / "tokenizer").iterdir()))


def write_rows(folder: Path) -> Path:
    """Images with a question and an answer, as examples/finetune_vision.py reads them."""
    from PIL import Image

    lines = []
    for i in range(ROWS):
        Image.new("RGB", (60 + i, 50), (20 * i, 100, 50)).save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "question": "what is this ?", "answer": "one two"})
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


# ------------------------------------------------------------------------------ report


def run(part: str, model: Path) -> dict[str, list[Call]]:
    """The calls of a part, recorded in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, __file__, "--record", part, folder, "--model", str(model)]
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        path = Path(folder) / "calls.json"
        if not path.exists():
            raise RuntimeError(f"{part} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
        return {
            name: [Call(*call) for call in calls]
            for name, calls in json.loads(path.read_text()).items()
        }


def median(walks: Sequence[Walk]) -> Walk:
    rows = [asdict(walk) for walk in walks]
    return Walk(**{name: round(statistics.median(r[name] for r in rows)) for name in rows[0]})


def show(walks: dict[str, Walk], visited: dict[str, list[Visit]], listed: bool, top: int) -> None:
    """Print the tables, and with `listed` all visits."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=140)
    table = Table("", "calls", "functions", "files", "pairs", "re-entries", title=str(ROOT))
    for name, walk in walks.items():
        table.add_row(name, *(f"{value:,}" for value in asdict(walk).values()))
    console.print(table)
    for name, sequence in visited.items():
        most = [entry for entry in reentries(sequence).most_common(top) if entry[1]]
        table = Table("file", "re-entries", "at", title=f"{name}: the files entered again most")
        for file, count in most:
            table.add_row(file, str(count), ", ".join(entrances(sequence, file)))
        console.print(table)
        if listed:
            console.print(f"{name}: all visits", highlight=False)
            for i, visit in enumerate(sequence, 1):
                names = ", ".join(map(short, visit.functions))
                line = f"{i:4} {visit.thread}  {visit.file}  {names}"
                console.print(line, highlight=False, markup=False, soft_wrap=True)


def entrances(sequence: Iterable[Visit], file: str) -> list[str]:
    """The function at which each visit of a file after a thread's first one begins."""
    result, seen = [], set()
    for visit in sequence:
        if visit.file == file:
            if visit.thread in seen:
                result.append(short(visit.functions[0]))
            seen.add(visit.thread)
    return result


def short(function: str) -> str:
    return function.rpartition(":")[0].replace(".<locals>", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each part")
    parser.add_argument(
        "--model", type=Path, help="folder of a model of all modalities, called `model`"
    )
    parser.add_argument("--top", type=int, default=12, help="files in the tables of re-entries")
    parser.add_argument("--list", action="store_true", help="print all visits")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument("--record", nargs=2, help=argparse.SUPPRESS)  # of the child process
    args = parser.parse_args()
    if args.record:
        part, folder = args.record[0], Path(args.record[1])
        {"train": record_train, "chat": record_chat}[part](folder, args.model.resolve())
        sys.exit()
    with tempfile.TemporaryDirectory() as temporary:
        model = args.model or Path(temporary) / "model"
        if args.model is None:
            write_model(model)
        runs = {part: [run(part, model) for _ in range(args.repeats)] for part in args.parts}
    walks = {
        name: median([measure(repeat[name]) for repeat in repeats])
        for repeats in runs.values()
        for name in repeats[0]
    }
    visited = {
        name: visits(calls) for repeats in runs.values() for name, calls in repeats[0].items()
    }
    if args.json:
        rows = [
            {"work": name, **asdict(walk), "visits": [[v.thread, v.file] for v in visited[name]]}
            for name, walk in walks.items()
        ]
        print(json.dumps(rows))
    else:
        show(walks, visited, args.list, args.top)
