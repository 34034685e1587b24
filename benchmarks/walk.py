"""Follows requests and a fine-tune through the code, and counts how often a reader changes files.

python benchmarks/walk.py                           # all parts, of the polyphi that this Python imports
python benchmarks/walk.py --parts finetune --list   # the files in order
PYTHONPATH=OTHER_CHECKOUT python benchmarks/walk.py --json

All parts run with a random model of the micro size, as a user runs them:

- `chat`: `polyphi serve`, and one streamed request of `/v1/chat/completions`, from the socket to its last event.
- `image`: the same with a photo in the request, as a data URL.
- `transcription`: the same server, and an audio file that is sent to `/v1/audio/transcriptions`.
- `generate`: `phi.generate` of a photo in this process; `polyphi.load` isn't counted.
- `finetune`: the whole of `polyphi finetune vision` on a dozen images: stage file, data, row, batch, step, checkpoint,
  manifest, export. `one training step` of it lies between the ends of the optimizer's first and second step.
- `resume`: the whole of the same fine-tune, interrupted after two steps and resumed, so that a checkpoint is also read.

The server, or `phi`, has answered another request of the same form before. Functions that the idle server calls as
often are left out.

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
import base64
import http.client
import inspect
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import wave
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dis import opmap
from functools import partial
from itertools import groupby
from operator import attrgetter, itemgetter
from pathlib import Path
from statistics import median
from types import CodeType, FrameType
from typing import Any, NamedTuple

import polyphi

ROOT = Path(polyphi.__file__).parents[1]
FOLDERS = tuple(f"{ROOT / name}{os.sep}" for name in ("polyphi", "polyphi_eval", "polyphi_recipe"))
FUNCTION = inspect.CO_OPTIMIZED
"""The flag of a function's code, which modules and class bodies lack."""
SUSPENDS = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
CALLS = "calls.json"
"""The file of a child process with the calls of its parts."""
STEPS = 4
ROWS = 12
TOP = 12
"""Files in the tables of re-entries."""
CLEAN_UP = 2.5
"""Seconds in which the server ends what it still does after a response."""
PROMPTS = ("one two three", "what is this ?")
"""Of the request before, and of the recorded one."""


class Call(NamedTuple):
    """A function was entered, by the nearest caller of ours (empty if a thread or a library calls it)."""

    thread: str
    file: str
    function: str
    caller: str


class Visit(NamedTuple):
    """Functions of one file that are first entered one after another."""

    thread: str
    file: str
    functions: tuple[str, ...]


Walk = dict[str, int]
"""The numbers of the table by column, for some calls."""


def visits(calls: Iterable[Call]) -> list[Visit]:
    """The visits of all threads: threads by their first call, a thread's visits in order."""
    threads: dict[tuple[str, str], str] = {}
    for call in calls:
        threads.setdefault((call.file, call.function), call.thread)
    result = []
    for thread in dict.fromkeys(threads.values()):
        functions = [function for function, first in threads.items() if first == thread]
        for file, group in groupby(functions, itemgetter(0)):
            result.append(Visit(thread, file, tuple(name for _, name in group)))
    return result


def reentries(visited: Iterable[Visit]) -> list[Visit]:
    """The visits of a file after a thread's first one."""
    result, seen = [], set()
    for visit in visited:
        if (visit.thread, visit.file) in seen:
            result.append(visit)
        seen.add((visit.thread, visit.file))
    return result


def measure(calls: Sequence[Call]) -> Walk:
    return {
        "calls": len(calls),
        "functions": len({(call.file, call.function) for call in calls}),
        "files": len({call.file for call in calls}),
        "pairs": len({(c.caller, c.file) for c in calls if c.caller and c.caller != c.file}),
        "reentries": len(reentries(visits(calls))),
    }


# ------------------------------------------------------------------------------ recording


@contextmanager
def recording() -> Iterator[list[Call]]:
    """The calls of this thread, and of all that start from now on."""
    calls: list[Call] = []

    def event(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event != "call" or not is_counted(code) or continues(frame):
            return
        caller, above = "", frame.f_back
        while above is not None:
            if above.f_code.co_filename.startswith(FOLDERS):
                if not above.f_code.co_flags & FUNCTION:  # a module that is imported
                    return
                caller = caller or relative(above.f_code)
            above = above.f_back
        # The threads of a pool have numbers.
        thread = re.sub(r"[_-]?\d+( \(.*\))?$", "", threading.current_thread().name)
        function = f"{code.co_qualname}:{code.co_firstlineno}"
        calls.append(Call(thread, relative(code), function, caller))

    sys.setprofile(event)
    threading.setprofile(event)
    try:
        yield calls
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


def is_counted(code: CodeType) -> bool:
    return (
        code.co_filename.startswith(FOLDERS)
        and bool(code.co_flags & FUNCTION)
        and not code.co_name.endswith(("comp>", "genexpr>"))
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

    with suppress(SystemExit):
        main(list(arguments))


def save(folder: Path, recorded: dict[str, list[Call]]) -> None:
    (folder / CALLS).write_text(json.dumps(recorded))


def record_finetune(folder: Path, model: Path, *, resume: bool) -> None:
    """Record a fine-tune; with `resume` its first run is interrupted after two steps, and a second one resumes it."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    ends: list[int] = []

    def end_of_step(*_: Any) -> None:
        ends.append(len(calls))
        if resume and len(ends) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    register_optimizer_step_post_hook(end_of_step)
    out = folder / "finetune"
    finetune = (
        *("finetune", "vision"),
        *("--model", str(model), "--data", str(write_rows(folder)), "--out", str(out)),
        *("--steps", str(STEPS), "--batch-tokens", "400", "--precision", "fp32"),
    )
    with recording() as calls:
        for _ in range(2 if resume else 1):
            command(*finetune)
    if len(ends) != STEPS or not (out / "manifest.json").exists():
        raise RuntimeError(f"expected {STEPS} steps and a manifest, found {len(ends)} steps")
    if resume:
        save(folder, {"whole fine-tune, resumed": calls})
    else:
        save(folder, {"whole fine-tune": calls, "one training step": calls[ends[0] : ends[1]]})


def record_generate(folder: Path, model: Path) -> None:
    with recording() as calls:  # from the start, for the threads of the engine
        phi = polyphi.load(model, device="cpu")
        phi.generate(PROMPTS[0], images=[photo(0)], max_tokens=6)
        start = len(calls)
        phi.generate(PROMPTS[1], images=[photo(1)], max_tokens=6)
    save(folder, {"phi.generate of an image": calls[start:]})


def record_request(
    folder: Path, model: Path, *, name: str, request: Callable[[int, int], None]
) -> None:
    """Record a request to a server in this process. `request` has a port and the number of the request as arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def client() -> None:
        try:
            wait_until_ready(port)
            request(port, 0)
            time.sleep(CLEAN_UP)
            start, started_at = len(calls), time.monotonic()
            request(port, 1)
            time.sleep(CLEAN_UP)
            end, seconds = len(calls), time.monotonic() - started_at
            time.sleep(seconds + 1)  # so that what the server does every second isn't rarer here
            save(folder, {name: without_periodic(calls[start:end], calls[end:])})
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)  # the server has nothing to finish

    with recording() as calls:
        threading.Thread(target=client, daemon=True).start()
        command("serve", str(model), "--port", str(port), "--device", "cpu")


def without_periodic(request: Sequence[Call], idle: Sequence[Call]) -> list[Call]:
    """The calls of a request, without functions that the idle server calls as often, or once less, in a second more."""
    function = attrgetter("file", "function")
    counts, idle_counts = Counter(map(function, request)), Counter(map(function, idle))
    periodic = {f for f, count in idle_counts.items() if counts[f] <= count + 1}
    return [call for call in request if function(call) not in periodic]


def wait_until_ready(port: int) -> None:
    limit = time.monotonic() + 300
    while time.monotonic() < limit:
        with suppress(OSError):
            if send(port, "GET", "/ready")[0] == 200:
                return
        time.sleep(0.2)
    raise TimeoutError("the server didn't load within 300 s")


def chat(port: int, number: int, *, image: bool = False) -> None:
    """One streamed chat request, read to its end."""
    content: Any = PROMPTS[number]
    if image:
        url = f"data:image/jpeg;base64,{base64.b64encode(photo(number)).decode()}"
        text = {"type": "text", "text": content}
        content = [{"type": "image_url", "image_url": {"url": url}}, text]
    body = {
        "model": "model",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 6,
        "temperature": 0,
        "stream": True,
    }
    status, events = send(port, "POST", "/v1/chat/completions", json.dumps(body).encode())
    if status != 200 or "[DONE]" not in events:
        raise RuntimeError(f"expected a stream that ends with [DONE], found {events[-500:]!r}")


def transcribe(port: int, number: int) -> None:
    """One upload of an audio file, and its transcript."""
    field = 'Content-Disposition: form-data; name="file"; filename="audio.wav"'
    body = b"--end\r\n%b\r\n\r\n%b\r\n--end--\r\n" % (field.encode(), audio(number))
    form = "multipart/form-data; boundary=end"
    status, text = send(port, "POST", "/v1/audio/transcriptions", body, form)
    if status != 200 or "text" not in json.loads(text):
        raise RuntimeError(f"expected a transcript, found {text[-500:]!r}")


def send(
    port: int,
    method: str,
    path: str,
    body: bytes | None = None,
    content_type: str = "application/json",
) -> tuple[int, str]:
    """Send a request to the server; return the status and the body of the response."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=300)) as connection:
        connection.request(method, path, body, {"Content-Type": content_type})
        response = connection.getresponse()
        return response.status, response.read().decode()


# ------------------------------------------------------------------------------ model and data


def write_model(folder: Path) -> None:
    """A random model of the micro size with all modalities, and a tokenizer of a few words."""
    from polyphi.checkpoints.write import save_checkpoint
    from polyphi.model.multimodal import PhiModel
    from polyphi.processing.tokenizer import Tokenizer
    from polyphi_recipe.stages import sizes
    from polyphi_recipe.stages.lineage import BUILT_IN

    tokenizer = Tokenizer.train(["what is this ? one two three"] * 4, 512)
    tokenizer.save(folder.parent / "tokenizer")
    stages = BUILT_IN.after("joint_1_vision_speech")
    model = PhiModel(BUILT_IN.configuration(stages, sizes.MICRO.model, tokenizer))
    model.initialise(0)
    save_checkpoint(model, folder, files=sorted((folder.parent / "tokenizer").iterdir()))


def photo(number: int) -> bytes:
    """A JPEG file; each number has another color."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (320, 240), (100 * number, 100, 50)).save(file, "JPEG")
    return file.getvalue()


def audio(number: int) -> bytes:
    """A WAV file of two seconds at 16 kHz; each number has another pitch. A sawtooth has the harmonics of a vowel: the
    server decodes only what sounds like speech."""
    pitch = 120 + 30 * number
    samples = array("h", (i * pitch % 16_000 - 8_000 for i in range(2 * 16_000)))
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setparams((1, 2, 16_000, 0, "NONE", "not compressed"))
        wav.writeframes(samples.tobytes())
    return file.getvalue()


def write_rows(folder: Path) -> Path:
    """Images with a question and an answer, as `polyphi finetune vision` reads them."""
    from PIL import Image

    lines = []
    for i in range(ROWS):
        Image.new("RGB", (60 + i, 50), (20 * i, 100, 50)).save(folder / f"{i}.png")
        lines.append({"image": f"{i}.png", "question": "what is this ?", "answer": "one two"})
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


# ------------------------------------------------------------------------------ report

RECORD: dict[str, Callable[[Path, Path], None]] = {
    "chat": partial(record_request, name="text chat over HTTP", request=chat),
    "image": partial(
        record_request, name="image chat over HTTP", request=partial(chat, image=True)
    ),
    "transcription": partial(
        record_request, name="audio transcription over HTTP", request=transcribe
    ),
    "generate": record_generate,
    "finetune": partial(record_finetune, resume=False),
    "resume": partial(record_finetune, resume=True),
}


def run(part: str, model: Path) -> dict[str, list[Call]]:
    """The calls of a part, recorded in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = [sys.executable, __file__, "--record", part, folder, str(model)]
        result = subprocess.run(arguments, capture_output=True, text=True, check=False)
        path = Path(folder) / CALLS
        if not path.exists():
            raise RuntimeError(f"{part} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")
        recorded = json.loads(path.read_text())
    return {name: [Call(*call) for call in calls] for name, calls in recorded.items()}


def show(walks: dict[str, Walk], visited: dict[str, list[Visit]], listed: bool) -> None:
    """Print the tables, and with `listed` all visits."""
    from rich.console import Console
    from rich.table import Table

    console = Console(width=140)
    table = Table("", "calls", "functions", "files", "pairs", "re-entries", title=str(ROOT))
    for name, walk in walks.items():
        table.add_row(name, *(f"{value:,}" for value in walk.values()))
    console.print(table)
    for name, sequence in visited.items():
        again = reentries(sequence)
        table = Table("file", "re-entries", "at", title=f"{name}: the files entered again most")
        for file, count in Counter(visit.file for visit in again).most_common(TOP):
            at = (short(visit.functions[0]) for visit in again if visit.file == file)
            table.add_row(file, str(count), ", ".join(at))
        console.print(table)
        for i, visit in enumerate(sequence if listed else (), 1):
            print(f"{i:4} {visit.thread}  {visit.file}  {', '.join(map(short, visit.functions))}")


def short(function: str) -> str:
    return function.rpartition(":")[0].replace(".<locals>", "")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=RECORD, default=RECORD)
    parser.add_argument("--repeats", type=int, default=1, help="runs of each part")
    parser.add_argument("--list", action="store_true", help="print all visits")
    parser.add_argument("--json", action="store_true", help="print JSON in place of tables")
    parser.add_argument("--record", nargs=3, help=argparse.SUPPRESS)  # of the child process
    args = parser.parse_args()
    if args.record:
        part, *folders = args.record
        RECORD[part](*map(Path, folders))
        sys.exit()
    walks, visited = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        write_model(model)
        for part in args.parts:
            repeats = [run(part, model) for _ in range(args.repeats)]
            for name, calls in repeats[0].items():
                numbers = [measure(repeat[name]) for repeat in repeats]
                walks[name] = {k: round(median(n[k] for n in numbers)) for k in numbers[0]}
                visited[name] = visits(calls)
    if args.json:
        rows = [
            {"work": name, **walk, "visits": [visit[:2] for visit in visited[name]]}
            for name, walk in walks.items()
        ]
        print(json.dumps(rows))
    else:
        show(walks, visited, args.list)
