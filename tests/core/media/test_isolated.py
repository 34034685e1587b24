"""The decoder's process: the samples and frames that FFmpeg decodes, and what it is refused."""

import errno
import io
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import psutil
import pytest

from polyphi.media import isolated, isolated_child
from polyphi.media.file_types import sniff
from polyphi.media.isolated import DecoderError, DecoderProcess
from polyphi.media.media import AudioStream, MediaError, audio_size, decode_audio
from polyphi.processing.video import decode_video
from tests.fixtures.audio import encoded, tone
from tests.fixtures.images import film
from tests.fixtures.processes import Children
from tests.fixtures.variants import few

FORMATS = {
    "M4A": ("ipod", "aac", 44_100, "stereo"),
    "MP4": ("mp4", "aac", 48_000, "mono"),
    "ALAC": ("ipod", "alac", 44_100, "stereo"),
    "QuickTime": ("mov", "pcm_s16le", 22_050, "mono"),
    "AAC": ("adts", "aac", 16_000, "mono"),
    "WebM": ("webm", "libopus", 48_000, "stereo"),
    "Matroska": ("matroska", "pcm_s16le", 16_000, "mono"),
}


@pytest.mark.parametrize("name", few(FORMATS, 3))
def test_decoded_audio_is_the_original(name: str) -> None:
    """Encoders add silence before the sound: AAC one or two frames of 1,024 samples, which MP4's edit list removes and
    ADTS can't express, Opus 312 at 48 kHz, which WebM's header removes."""
    format, codec, rate, layout = FORMATS[name]
    original = tone(rate, 300, 2300)
    data = encoded(format, codec, rate, layout, original)
    wave, decoded_rate = decode_audio(data)
    assert decoded_rate == rate and wave.dtype == np.float32
    delay = int(np.argmax(np.correlate(wave, original[2000:6000]))) - 2000
    assert 0 <= delay <= (2048 if name == "AAC" else 0)
    assert len(original) - 16 <= len(wave) <= len(original) + delay + 2048
    same = min(len(original), len(wave) - delay)
    difference = wave[delay : delay + same] - original[:same]
    assert np.square(difference).mean() < 1e-2 * np.square(original).mean()
    samples, size_rate = audio_size(data)
    assert size_rate == rate and samples == len(wave)


@pytest.mark.parametrize("format", ["amr", "3gp"])
def test_telephone_speech_is_decoded(format: str) -> None:
    """A codec of speech keeps no waveform; the pitch stays."""
    if "libopencore_amrnb" not in av.codecs_available:
        pytest.skip("PyAV has no libopencore_amrnb here")
    data = encoded(format, "libopencore_amrnb", 8_000)
    assert sniff(data) == ("AMR" if format == "amr" else "MP4")
    wave, rate = decode_audio(data)
    assert rate == 8_000 and abs(len(wave) - 8_000) <= 320
    assert abs(np.abs(np.fft.rfft(wave[:8_000])).argmax() * rate / len(wave[:8_000]) - 440) < 4


@pytest.mark.parametrize("name", few(["M4A", "AAC", "WebM"], 1))
def test_a_stream_is_read_again_and_from_a_path(name: str, tmp_path: Path) -> None:
    format, codec, rate, layout = FORMATS[name]
    data = encoded(format, codec, rate, layout)
    (tmp_path / "memo").write_bytes(data)
    wave, _ = decode_audio(data)
    stream = AudioStream(tmp_path / "memo")
    for _ in range(2):
        np.testing.assert_array_equal(np.concatenate(list(stream)), wave)


def test_a_video_has_sound_of_another_length() -> None:
    """The header's duration is that of the longest stream; the packets of the sound are counted."""
    out, rate = io.BytesIO(), 16_000
    with av.open(out, "w", format="matroska") as container:
        picture = container.add_stream("mpeg4", rate=8)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        grey = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
        for _ in range(40):
            container.mux(picture.encode(grey))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.int16), "s16", "mono")
        frame.sample_rate = rate
        container.mux([*sound.encode(frame), *sound.encode(None), *picture.encode(None)])
    assert audio_size(out.getvalue()) == (rate, rate)


@pytest.mark.parametrize(
    ("format", "codec"),
    few([("mp4", "libx264"), ("webm", "libvpx"), ("mp4", "mpeg4"), ("webm", "libvpx-vp9")], 2),
)
@pytest.mark.parametrize("frames", few([5, 1, 40], 1))
def test_frames_are_those_of_pyav_in_this_process(format: str, codec: str, frames: int) -> None:
    data, count = film(40, format, codec), 40
    with av.open(io.BytesIO(data)) as container:
        every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(every) == count
    middles = [count * (2 * i + 1) // (2 * frames) for i in range(frames)]
    decoded = decode_video(data, frames=frames)
    assert len(decoded) == frames
    for image, middle in zip(decoded, middles, strict=True):
        assert any(np.array_equal(image, every[i]) for i in (middle - 1, middle) if i >= 0)


# Bounds


def test_hours_in_few_bytes_end_at_the_limit() -> None:
    """Ten hours of silent AAC: each frame repeats."""
    minute = encoded("adts", "aac", 16_000, wave=np.zeros(960_000, np.float32))
    data = minute * 600
    assert len(data) < 32 << 20
    with pytest.raises(MediaError, match=r"may last 100 s") as error:
        decode_audio(data, max_seconds=100)
    assert error.value.reason == "size"


def test_large_frames_are_refused_before_they_are_decoded() -> None:
    """Of VP8, whose size in the stream may differ from the container's."""
    key_frame = b"\x9d\x01\x2a"  # its size follows
    data = film(4, "webm", "libvpx")
    start = data.index(key_frame) + 3
    data = data[:start] + (16_383).to_bytes(2, "little") * 2 + data[start + 4 :]
    with pytest.raises(MediaError):
        decode_video(data)


def test_containers_have_few_streams() -> None:
    """Further ones are ignored (Matroska), or the file is refused (MP4)."""

    def many(format: str) -> bytes:
        out, count = io.BytesIO(), isolated_child.MAX_STREAMS + 1
        with av.open(out, "w", format=format) as container:
            streams = [
                container.add_stream("pcm_s16le", rate=16_000, layout="mono") for _ in range(count)
            ]
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), "s16", "mono")
            frame.sample_rate = 16_000
            for stream in streams:
                container.mux([*stream.encode(frame), *stream.encode(None)])
        return out.getvalue()

    assert len(decode_audio(many("matroska"))[0]) == 1600
    with pytest.raises(MediaError):
        decode_audio(many("mov"))


def test_streams_of_other_types_are_ignored() -> None:
    """An attachment and subtitles beside the sound."""
    out = io.BytesIO()
    with av.open(out, "w", format="matroska") as container:
        sound = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        container.add_attachment("font.ttf", "application/x-truetype-font", bytes(10_000))
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), "s16", "mono")
        frame.sample_rate = 16_000
        container.mux([*sound.encode(frame), *sound.encode(None)])
    assert len(decode_audio(out.getvalue())[0]) == 1600
    with pytest.raises(MediaError, match="only sound"):
        decode_video(out.getvalue())


@pytest.mark.parametrize(
    "head", [b"\xff\xf1P", b"#!AMR\n", b"\x1aE\xdf\xa3", b"\0\0\0\x20ftypM4A "]
)
@pytest.mark.parametrize("rest", [bytes(100), b"\xff" * 100, b""])
def test_a_header_alone_is_damaged(head: bytes, rest: bytes) -> None:
    with pytest.raises(MediaError) as error:
        decode_audio(head + rest)
    assert error.value.reason == "content"


def test_other_codecs_are_not_opened() -> None:
    with pytest.raises(MediaError, match="encoding") as error:
        decode_audio(encoded("mov", "adpcm_ima_qt", 44_100))
    assert error.value.reason == "content"


# Isolation


def test_playlists_open_nothing(tmp_path: Path) -> None:
    """Even where such a format reaches FFmpeg, which `sniff` prevents: no file is opened and nothing is connected."""
    (tmp_path / "secret.aac").write_bytes(encoded("adts", "aac", 16_000))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.3)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/a.aac"
        lists = {
            "concat": f"ffconcat version 1.0\nfile {tmp_path}/secret.aac\n",
            "hls": f"#EXTM3U\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n",
            "dash": f"<MPD><BaseURL>{address}</BaseURL></MPD>",
            "sdp": "v=0\nm=audio 5004 RTP/AVP 0\nc=IN IP4 127.0.0.1\n",
        }
        for format, text in lists.items():
            assert sniff(text.encode()) == "text"
            with pytest.raises(DecoderError):
                list(isolated.audio_blocks(io.BytesIO(text.encode()), format, max_seconds=10))
        with pytest.raises(TimeoutError):
            listener.accept()


def test_the_kernel_refuses_what_the_decoder_does_not_need() -> None:
    assert isolated.unavailable() is None, "the tests need Linux on x86-64 or AArch64"


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], DecoderProcess]:
    """Runs other code in place of isolated_child.py, which it may use."""

    def start(code: str, **options: int) -> DecoderProcess:
        program = tmp_path / "child.py"
        folder = str(Path(isolated_child.__file__).parent)
        program.write_text(
            "import json, os, sys, time\n"
            f"sys.path.append({folder!r})\n"
            "from isolated_child import _send, seal\n"
            "job = json.loads(sys.argv[1])\n" + code
        )
        monkeypatch.setattr(isolated, "CHILD", program)
        return DecoderProcess(io.BytesIO(b"file"), {}, **options)

    return start


SEAL = "seal(job['memory_bytes'], job['cpu_seconds'])\n"


def test_the_child_inherits_nothing(child: Callable[..., DecoderProcess]) -> None:
    reading, writing = os.pipe()
    os.set_inheritable(writing, True)
    report = "_send({'files': os.listdir('/proc/self/fd'), 'environment': dict(os.environ), 'path': sys.path})"
    with child(report) as process:
        message, _ = next(iter(process))
    os.close(reading)
    os.close(writing)
    assert sorted(message["files"]) == ["0", "1", "2", "3"]  # 3 is the list itself
    assert set(message["environment"]) <= {"LC_CTYPE"}  # set by Python


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("os.abort()", "crashed"),
        (SEAL + "os.abort()", "crashed"),
        ("os.kill(os.getpid(), 11)", "crashed"),
        ("os.kill(os.getpid(), 9)", "crashed"),
        ("sys.exit(3)", "crashed"),
        ("pass", "crashed"),
        (SEAL + "while True: pass", "time"),
        ("time.sleep(600)", "time"),
        (SEAL + "bytes(1 << 40)", "crashed"),
        ("_send({'error': 'memory'})", "memory"),
        ("_send({'rate': 8000}, b'12345678'); os.abort()", "crashed"),
        ("os.write(1, b'no json\\n')", "crashed"),
        ("os.write(1, b'[1]\\n')", "crashed"),
        ("os.write(1, b'[' * 4000 + b'\\n')", "crashed"),
        ("os.write(1, b'{' * 100_000)", "crashed"),
        ("_send({'bytes': 10 ** 15})", "crashed"),
        ("_send({'bytes': -1})", "crashed"),
        ("_send({'bytes': 100})", "crashed"),
    ],
)
def test_a_failed_child_is_one_error(
    child: Callable[..., DecoderProcess], code: str, error: str, children: Children
) -> None:
    with pytest.raises(DecoderError) as caught, child(code, cpu_seconds=1) as process:
        list(process)
    assert caught.value.error == error
    assert not children()


ATTEMPTS = """
import socket, threading
errors = []
def work():
    for attempt in (
        lambda: open('/etc/passwd'),
        lambda: open('/proc/self/mem', 'wb'),
        os.fork,
        lambda: os.execv('/bin/sh', ['sh']),
        lambda: os.kill(os.getppid(), 9),
        socket.socket,
        lambda: os.mkdir('/tmp/a'),
        lambda: os.setuid(0),
        lambda: os.dup(0),
        os.pipe,
        lambda: os.chdir('/tmp'),
    ):
        try:
            attempt()
            errors.append(0)
        except OSError as error:
            errors.append(error.errno)
seal(job['memory_bytes'], job['cpu_seconds'], threads={threads})
if {threads}:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
_send({'errors': errors})
_send({'end': True})
"""


@pytest.mark.parametrize("threads", [False, True])
def test_a_sealed_child_can_do_nothing_else(
    child: Callable[..., DecoderProcess], threads: bool
) -> None:
    """Nor in a thread, as the one that decodes HEIC."""
    with child(ATTEMPTS.replace("{threads}", str(threads))) as process:
        ((message, _),) = list(process)
    refused = {errno.EPERM, errno.ENOSYS} if threads else {errno.EPERM}
    assert len(message["errors"]) == 11 and set(message["errors"]) <= refused


def test_time_counts_while_output_is_awaited(child: Callable[..., DecoderProcess]) -> None:
    """While the caller is busy the child waits, and that is no fault of the file."""
    code = "for _ in range(40): _send({}, bytes(100_000))\n_send({'end': True})"
    with child(code, cpu_seconds=1) as process:
        messages = iter(process)
        next(messages)
        time.sleep(3.5)  # more than WAIT times a CPU second
        assert len(list(messages)) == 39


def test_waiting_ends_when_the_result_is_not_needed(child: Callable[..., DecoderProcess]) -> None:
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    with (
        pytest.raises(DecoderError, match="stopped"),
        child("time.sleep(600)", stop=stop.is_set) as process,
    ):
        list(process)


def test_an_abandoned_stream_leaves_no_process(children: Children) -> None:
    data = encoded("adts", "aac", 16_000, wave=np.zeros(960_000, np.float32)) * 5
    blocks = iter(AudioStream(data))
    next(blocks)
    assert len(children()) == 1
    del blocks
    assert not children()


def test_a_child_whose_parent_died_ends(tmp_path: Path) -> None:
    """It can't write any more."""
    data = encoded("adts", "aac", 16_000, wave=np.zeros(960_000, np.float32)) * 20
    (tmp_path / "long.aac").write_bytes(data)
    code = (
        "import os, sys, psutil\nfrom polyphi.media.media import AudioStream\n"
        f"next(iter(AudioStream({str(tmp_path / 'long.aac')!r})))\n"
        "blocks = iter(AudioStream(sys.argv[1])); next(blocks)\n"
        "print(psutil.Process().children()[0].pid, flush=True)\nos.kill(os.getpid(), 9)"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "long.aac")]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=Path.cwd())
    assert done.returncode == -9, done.stderr
    pid, deadline = int(done.stdout), time.monotonic() + 20
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_memory_is_limited() -> None:
    """FFmpeg asks for more than the process may have, and says so."""
    job = {
        "task": "video",
        "format": "mov",
        "frames": 4,
        "max_pixels": 1 << 24,
        "max_video_pixels": 1 << 26,
        "max_seconds": 100,
    }
    data = io.BytesIO(film(4, size=(2048, 1536)))
    with DecoderProcess(data, job, memory_bytes=192 << 20, max_bytes=1 << 24) as process:
        assert len(list(process)) == 4
    with (
        pytest.raises(DecoderError, match="memory"),
        DecoderProcess(data, job, memory_bytes=16 << 20, max_bytes=1 << 24) as process,
    ):
        list(process)
