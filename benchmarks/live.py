"""Live transcription of a served model: how long text takes after the words, and whether each transcript is that of its
piece alone. By the openai client, and in Chromium with a microphone that plays a recording.

python benchmarks/live.py runs/nano                     # needs espeak-ng
python benchmarks/live.py runs/nano --page              # also chromium and chromium-driver
python benchmarks/live.py http://127.0.0.1:8000 --sentences 20

Audio is sent at the speed of speech. A word counts as shown when a delta (or the transcript) has brought the text to as
many words as were spoken up to it; sentences whose transcript has another number of words are left out of these times.
Words are synthesized one by one, so that their ends are known. One JSON object is printed for each way.
"""

import argparse
import base64
import io
import json
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from openai import OpenAI
from out_of_distribution import opened, served

RATE = 24000
BLOCK = 0.05  # s of an append
GAP = 1.2  # s between sentences
SENTENCES = (
    "What is seven plus nine",
    "How many crosses are there",
    "Which colour is there more of red or green",
    "Are there more blue than orange squares",
    "What is the colour of the triangle",
    "Is fifteen larger than eleven",
    "On which side is the heart",
    "What digits do you see",
)
APPEND = "input_audio_buffer.append"
TRANSCRIPTION = "conversation.item.input_audio_transcription"
KEEP_MESSAGES = """
window.sent = [];
window.received = [];
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (data) {
  window.sent.push({ ...JSON.parse(data), at: performance.now() / 1000 });
  if (window.sent.length === 1)
    this.addEventListener("message", ({ data }) => {
      window.received.push({ ...JSON.parse(data), at: performance.now() / 1000 });
    });
  return send.call(this, data);
};
"""


@dataclass
class Talk:
    """Audio, and the time of the end of each word of each sentence."""

    samples: np.ndarray
    word_ends: list[list[float]] = field(default_factory=list)


def spoken(text: str) -> np.ndarray:
    command = ["espeak-ng", "--stdout", "-s", "150", text]
    data = subprocess.run(command, check=True, capture_output=True).stdout
    wave, rate = soundfile.read(io.BytesIO(data), dtype="float32")
    loud = np.flatnonzero(np.abs(wave) > 0.01)
    return np.asarray(soxr.resample(wave[loud[0] : loud[-1]], rate, RATE))


def talk(sentences: list[str]) -> Talk:
    parts, ends, at = [np.zeros(RATE, np.float32)], [], 1.0
    for sentence in sentences:
        times = []
        for word in sentence.split():
            wave = spoken(word)
            at += len(wave) / RATE
            times.append(at)
            parts += [wave, np.zeros(round(0.06 * RATE), np.float32)]
            at += 0.06
        parts.append(np.zeros(round(GAP * RATE), np.float32))
        at += GAP
        ends.append(times)
    samples = np.round(32767 * np.clip(np.concatenate(parts), -1, 1)).astype("<i2")
    return Talk(samples, ends)


def wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def by_client(client: OpenAI, audio: Talk) -> tuple[list[dict[str, Any]], float]:
    """(the server's events with the times of their arrival, the time at which the audio began)."""
    events: list[dict[str, Any]] = []
    with client.realtime.connect(
        model=client.models.list().data[0].id, extra_query={"intent": "transcription"}
    ) as connection:
        assert connection.recv().type == "session.created"

        def receive() -> None:
            while sum(e["type"] == f"{TRANSCRIPTION}.completed" for e in events) < len(
                audio.word_ends
            ):
                event = json.loads(connection.recv_bytes())
                events.append({**event, "at": time.monotonic()})

        receiver = threading.Thread(target=receive, daemon=True)
        receiver.start()
        began = time.monotonic()
        step = round(BLOCK * RATE)
        for start in range(0, len(audio.samples), step):
            end = min(len(audio.samples), start + step)
            time.sleep(max(0.0, began + end / RATE - time.monotonic()))
            data = base64.b64encode(audio.samples[start:end].tobytes()).decode()
            connection.input_audio_buffer.append(audio=data)
        receiver.join(120)
    return events, began


def by_page(url: str, audio: Talk) -> tuple[list[dict[str, Any]], float, np.ndarray]:
    """(events, the time at which the audio began, the samples that the page sent)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "speech.wav"
        tail = np.zeros(30 * RATE, "<i2")
        file.write_bytes(wav(np.concatenate([audio.samples, tail])))
        with opened(url, file) as page:
            page.driver.execute_cdp_cmd(
                "Page.addScriptToEvaluateOnNewDocument", {"source": KEEP_MESSAGES}
            )
            page.driver.get(url)
            page.until(lambda: page.all("body.ready"), "the page")
            page.all("#tab-live")[0].click()
            page.all("#live-start")[0].click()
            time.sleep(len(audio.samples) / RATE + 4)
            page.all("#live-stop")[0].click()
            page.until(page.all("#live-start")[0].is_displayed, "the end")
            sent = page.driver.execute_script("return window.sent")
            events = page.driver.execute_script("return window.received")
    chunks = [message for message in sent if message["type"] == APPEND]
    samples = np.frombuffer(b"".join(base64.b64decode(m["audio"]) for m in chunks), "<i2")
    lag = offset(samples, audio.samples)
    first = len(base64.b64decode(chunks[0]["audio"])) / 2 / RATE
    return events, chunks[0]["at"] - first + lag, samples


def offset(samples: np.ndarray, original: np.ndarray) -> float:
    """Seconds by which the original begins after the start of a recording of it, by their envelopes."""
    step = RATE // 100
    envelopes = [
        np.abs(wave[: len(wave) // step * step].astype(float)).reshape(-1, step).mean(axis=1)
        for wave in (samples, original)
    ]
    a, b = (envelope - envelope.mean() for envelope in envelopes)
    return float(np.correlate(a, b, "full").argmax() - (len(b) - 1)) / 100


def report(
    way: str,
    client: OpenAI,
    events: list[dict[str, Any]],
    began: float,
    samples: np.ndarray,
    audio: Talk,
) -> dict[str, Any]:
    """The measurements of a session that sent `samples`."""
    lag = offset(samples, audio.samples)
    starts = [e for e in events if e["type"] == "input_audio_buffer.speech_started"]
    ends = {e["item_id"]: e for e in events if e["type"] == "input_audio_buffer.speech_stopped"}
    words: list[float] = []
    finals, equal, revised, counted = list[float](), 0, 0, 0
    for start in starts:
        item = start["item_id"]
        if item not in ends:
            continue
        own = [e for e in events if e.get("item_id") == item]
        final = next(e for e in own if e["type"] == f"{TRANSCRIPTION}.completed")
        deltas = [e for e in own if e["type"] == f"{TRANSCRIPTION}.delta"]
        piece = samples[
            start["audio_start_ms"] * RATE // 1000 : ends[item]["audio_end_ms"] * RATE // 1000
        ]
        alone = client.audio.transcriptions.create(
            model=client.models.list().data[0].id, file=("piece.wav", wav(piece))
        )
        equal += alone.text == final["transcript"]
        revised += not final["transcript"].startswith("".join(e["delta"] for e in deltas))
        finals.append(final["at"] - ends[item]["at"])
        middle = (start["audio_start_ms"] + ends[item]["audio_end_ms"]) / 2000
        times = min(audio.word_ends, key=lambda one: abs((one[0] + one[-1]) / 2 + lag - middle))
        if len(final["transcript"].split()) != len(times):
            continue
        counted += 1
        text, reached = "", 0
        for event in (*deltas, final):
            text = text + event["delta"] if "delta" in event else event["transcript"]
            while reached < min(len(text.split()), len(times)):
                words.append(event["at"] - began - times[reached])
                reached += 1
    return {
        "way": way,
        "items": len(finals),
        "equal to the piece alone": equal,
        "revised": revised,
        "items with all words": counted,
        "words": len(words),
        "word to text, median s": round(statistics.median(words), 3) if words else None,
        "word to text, 90 %": round(float(np.quantile(words, 0.9)), 3) if words else None,
        "end of item to transcript, median s": round(statistics.median(finals), 3),
    }


@contextmanager
def address(model: str) -> Iterator[str]:
    if model.startswith("http"):
        yield model.rstrip("/") + "/"
        return
    with served(Path(model)) as url:
        yield url


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("model", help="a run, a checkpoint folder, or the address of a server")
    options.add_argument("--sentences", type=int, default=len(SENTENCES))
    options.add_argument("--page", action="store_true", help="also in Chromium")
    args = options.parse_args()
    audio = talk([SENTENCES[n % len(SENTENCES)] for n in range(args.sentences)])
    with ExitStack() as stack:
        url = stack.enter_context(address(args.model))
        client = OpenAI(base_url=f"{url}v1", api_key="none", max_retries=0)
        events, began = by_client(client, audio)
        results = [report("openai client", client, events, began, audio.samples, audio)]
        print(json.dumps(results[0]), flush=True)
        if args.page:
            events, began, samples = by_page(url, audio)
            print(
                json.dumps(report("page", client, events, began, samples, audio)),
                flush=True,
            )


if __name__ == "__main__":
    main()
