"""An hour of speech in one request: what it takes, and how long a short request beside it waits.

    python benchmarks/long_audio.py MODEL [--minutes 60] [--only chat transcribe server]

The recording is that of longform.py. `polyphi chat --audio` runs as a command, and `Phi.transcribe` in a process; a
server receives the clip in a chat (`input_audio`, as FLAC) and as a file to transcribe, while another client sends
short texts one after the other. All work with a copy of MODEL whose context is 131,072 tokens. A model that wasn't
trained on such a length repeats itself, and `polyphi transcribe` would transcribe it again in halves: answers have at
most 64 tokens, and that of a transcription by the server is sampled once, at a temperature at which it soon ends.
Memory is the peak of the process (Linux: `VmHWM`).
"""

import argparse
import base64
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import soundfile
from longform import RATE, record
from server_process import server

CONTEXT = 131_072
TRANSCRIBE = "Transcribe the audio clip into text."
IN_PYTHON = """
import sys, polyphi
model, seconds, file = sys.argv[1:]
phi = polyphi.load(model)
phi.max_audio_seconds = float(seconds)
phi.transcribe(file, sampling=polyphi.SamplingParams(max_tokens=64))
"""


def adapted(model: Path, folder: Path) -> Path:
    """A copy of the model with a context of `CONTEXT` tokens."""
    copy = folder / "model"
    shutil.copytree(model, copy)
    config = json.loads((model / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def timed(*arguments: str) -> str:
    """Seconds and peak memory of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # the largest child so far
    return f"{seconds:,.1f} s, {peak / 1e3:,.0f} MB"


def peak_bytes(process: int) -> int:
    """The peak memory of a process."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def seconds_of_texts(client: httpx2.Client, until: Callable[[], bool]) -> list[float]:
    """The time of each of several short requests, one after the other; prints when the longest began."""
    times, began = list[float](), list[float]()
    while not until():
        start = time.perf_counter()
        began.append(start)
        message = {"role": "user", "content": f"Say {len(times)}."}
        body = {"messages": [message], "max_tokens": 8, "ignore_eos": True}
        client.post("/v1/chat/completions", json=body).raise_for_status()
        times.append(time.perf_counter() - start)
        time.sleep(0.2)
    longest = began[int(np.argmax(times))] - began[0]
    print(f"  the longest began {longest:,.1f} s after the first")
    return times


def summary(times: Sequence[float]) -> str:
    """Median, 95th percentile and maximum."""
    median, high = np.percentile(times, [50, 95])
    return (
        f"{len(times)} texts: median {median:.3f} s, 95 % {high:.3f} s, longest {max(times):.3f} s"
    )


def serve(model: Path, flac: Path, minutes: float) -> None:
    """Print the times of both requests to a server, and of short texts alone and beside them."""
    clip = base64.b64encode(flac.read_bytes()).decode()
    audio = {"type": "input_audio", "input_audio": {"data": clip, "format": "flac"}}
    content = [audio, {"type": "text", "text": TRANSCRIBE}]
    chat = {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 64,
        "ignore_eos": True,
    }
    requests: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {"json": chat},
        "/v1/audio/transcriptions": {
            "files": {"file": flac.read_bytes()},
            "data": {"temperature": "2"},
        },
    }
    options = ["--max-audio-seconds", str(60 * minutes)]
    with server(str(model), options) as (process, url, _):
        connect: dict[str, Any] = {"base_url": url, "timeout": 3600, "trust_env": False}
        with httpx2.Client(**connect) as client, httpx2.Client(**connect) as other:
            end = time.monotonic() + 20
            print("alone:", summary(seconds_of_texts(other, lambda: time.monotonic() > end)))
            print(f"memory before: {peak_bytes(process.pid) / 1e6:,.0f} MB")
            for route, body in requests.items():
                done, times = threading.Event(), list[float]()
                beside = threading.Thread(
                    target=lambda t=times, d=done: t.extend(seconds_of_texts(other, d.is_set))
                )
                beside.start()
                start = time.perf_counter()
                answer = client.post(route, **body)
                seconds = time.perf_counter() - start
                done.set()
                beside.join()
                answer.raise_for_status()
                peak = peak_bytes(process.pid) / 1e6
                print(f"{route}: {seconds:,.1f} s, {peak:,.0f} MB, {answer.json()['usage']}")
                print("  beside it:", summary(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--only", nargs="*", default=("chat", "transcribe", "server"))
    args = parser.parse_args()
    os.environ.setdefault("COLUMNS", "200")
    with tempfile.TemporaryDirectory() as name:
        model, wav = adapted(args.model, Path(name)), Path(name) / "long.wav"
        record(wav, args.minutes)
        seconds = str(60 * args.minutes)
        if "chat" in args.only:
            options = ("--max-audio-seconds", seconds, "--max-tokens", "64", "--audio", str(wav))
            print("chat:", timed("-m", "polyphi.cli", "chat", str(model), TRANSCRIBE, *options))
        if "transcribe" in args.only:
            print("transcribe:", timed("-c", IN_PYTHON, str(model), seconds, str(wav)))
        if "server" in args.only:
            flac = wav.with_suffix(".flac")
            with soundfile.SoundFile(flac, "w", RATE, 1, "PCM_16") as file:
                for block in soundfile.blocks(wav, 1 << 20, dtype="int16"):
                    file.write(block)
            serve(model, flac, args.minutes)


if __name__ == "__main__":
    main()
