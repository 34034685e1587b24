"""The program of the decoder's processes: FFmpeg (PyAV), Pillow, libsndfile or PDFium on one file of an untrusted
sender. isolated.py starts it.

    stdin: the file, opened for reading         job: as JSON          stdout: messages

Each message is a line of JSON; with "bytes": n, n bytes follow. An audio job sends {"rate", "channels", "samples"},
blocks of interleaved float32 samples, and {"end": true}; an image job {"width", "height"}, blocks of RGB rows, and
{"end": true}; a video job each frame as {"width", "height", "bytes"} with its RGB rows, and {"end": true};
a document job {"pages"}, of each page from the "first" on its image as of a frame, if the job has a "box", and its text
in UTF-8 with {"cpu_seconds"} so far, and {"end": true}, after a page that ends later than its "turn_seconds" of CPU
time. {"error": NAME, "found": n} ends a job that can't be done.

Before the first byte of the file is read, the process gives up what it doesn't need (`seal`): memory and CPU time are
limited, and the kernel refuses all system calls except those for reading, writing, memory and time. It can't open a
file or a socket, start a process, or send a signal.

It runs in one of two ways. With a job in argv it decodes a container, a video or a PDF, and imports no package but PyAV
or pypdfium2. With the job "fork" it imports all decoders and forks a process for each job that it receives
(polyphi/runtime/fork_server.py).
"""

import codecs
import ctypes
import errno
import io
import json
import os
import sys
import time
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from runpy import run_path
from typing import Any

CHUNK_BYTES = 1 << 18  # bytes of samples or rows in a message
MAX_STREAMS = 64  # of a container
CODECS = (
    *("aac", "alac", "amrnb", "amrwb", "libopencore_amrnb", "libopencore_amrwb", "flac", "mp3"),
    *("mp3float", "opus", "libopus", "vorbis", "libvorbis", "pcm_f32le", "pcm_s16be", "pcm_s16le"),
    *("pcm_s24le", "av1", "libdav1d", "h263", "h264", "hevc", "libvpx", "libvpx-vp9", "mjpeg"),
    *("mpeg1video", "mpeg2video", "mpeg4", "msmpeg4", "prores", "theora", "vp8", "vp9"),
)
"""Names of FFmpeg's decoders that may be used."""

# Of `clone`, by glibc and musl: a thread of this process and nothing else.
_THREAD_FLAGS = 0x3D0F00, 0x7D0F00
_FILE_CALLS = "fstat", "lseek", "pread64"
# polyphi isn't a package here.
_filters = run_path(str(Path(__file__).parents[1] / "runtime" / "syscall_filter.py"))
_seal, _COMPUTE_CALLS = _filters["seal"], _filters["COMPUTE_CALLS"]
_Argument = _filters["Argument"]


class FileRejected(Exception):
    """A file that isn't decoded: the error's name, the value that exceeds a limit, and the message of a `MediaError`
    with its reason."""

    def __init__(
        self, error: str, value: float | None = None, *, message: str = "", reason: str = ""
    ) -> None:
        super().__init__(error)
        self.fields = {"error": error, "found": value, "message": message, "reason": reason}


def main() -> None:
    job = json.loads(sys.argv[1])
    sys.path += job["packages"]
    if job["task"] == "fork":
        _fork()
    else:
        if job["task"] in ("audio", "video"):
            _import_ffmpeg()
        if job["task"] == "document":
            _import_pdfium()
        _run(job)


def _import_ffmpeg() -> None:
    import av

    for module in walk_packages(av.__path__, "av."):
        # PyAV imports some of them late, when no file can be opened any more.
        if module.name not in ("av.__main__", "av.datasets"):
            import_module(module.name)


def _import_pdfium() -> None:
    import pypdfium2  # noqa: F401

    codecs.lookup("utf-16-le")  # Python opens its file at the first use


def _fork() -> None:
    """Import all decoders, then fork a process for each job."""
    from PIL import AvifImagePlugin, Image

    from polyphi.media import file_types, media
    from polyphi.runtime.fork_server import fork_on_request

    for import_library in (_import_ffmpeg, _import_pdfium):
        with suppress(ImportError):
            import_library()
    Image.init()  # all formats: some import those of others late
    for file_type in file_types.IMAGE_FORMATS:
        media.missing_image_decoder(file_type)
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # a process can't start any
    fork_on_request(_run_forked)


def _run_forked(payload: bytes, descriptors: list[int]) -> None:
    from polyphi.runtime.children import die_with_parent

    die_with_parent()
    for number, descriptor in enumerate(descriptors):  # the file and the pipe
        os.dup2(descriptor, number)
        os.close(descriptor)
    _run(json.loads(payload))


def _run(job: dict[str, Any]) -> None:
    with suppress(OSError):
        os.nice(5)  # steps of the engine come first
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write("1000")  # without memory, the kernel ends this process and no other
    sealed = seal(job["memory_bytes"], job["cpu_seconds"], threads=job.get("threads", False))
    if job["task"] == "probe":
        _send({"sealed": sealed, "isolated": sealed and _is_isolated(job["memory_bytes"])})
        return
    tasks = {
        "audio": audio,
        "video": video,
        "sound": sound,
        "image": image,
        "document": document,
    }
    with suppress(BrokenPipeError):  # the parent has closed the pipe
        try:
            tasks[job["task"]](job)
            _send({"end": True})
        except BrokenPipeError:
            raise
        except FileRejected as error:
            _send(error.fields)
        except MemoryError:  # also FFmpeg's
            _send({"error": "memory"})
        except Exception:  # FFmpeg's errors, and any of PyAV about values that it doesn't expect
            _send({"error": "damaged"})


# ------------------------------------------------------------------------------ isolation


def seal(memory_bytes: int, cpu_seconds: int, *, threads: bool = False) -> bool:
    """Set the limits of this process, with `memory_bytes` more than it has now, and filter its system calls. Returns
    whether the filter is in place: only on Linux, on x86-64 and AArch64. With `threads` it may start threads, to which
    limits and filter apply too: libde265 decodes HEIC in one."""
    calls: dict[str, tuple[Any, ...]] = dict.fromkeys((*_COMPUTE_CALLS, *_FILE_CALLS), ())
    if threads:
        calls |= {"clone": (_Argument(0, _THREAD_FLAGS),), "rseq": (), "set_robust_list": ()}
    # glibc calls `clone` where `clone3`, whose flags a filter can't read, doesn't exist.
    refused = errno.ENOSYS if threads else errno.EPERM
    return bool(_seal(calls, memory_bytes=memory_bytes, cpu_seconds=cpu_seconds, refused=refused))


def _is_isolated(memory_bytes: int) -> bool:
    """Whether the kernel refuses to open a file and to start a process, and gives no more memory than allowed."""
    for attempt in (lambda: os.open("/", os.O_RDONLY), os.fork, lambda: os.kill(os.getpid(), 0)):
        try:
            attempt()
            return False
        except OSError:
            pass
    try:
        bytes(2 * memory_bytes)
        return False
    except MemoryError:
        return True


# ------------------------------------------------------------------------------ decoding


def _send(message: dict[str, Any], data: bytes | bytearray = b"") -> None:
    if data:
        message["bytes"] = len(data)
    parts = json.dumps(message).encode() + b"\n", data
    for part in parts:
        view = memoryview(part)
        while view:
            view = view[os.write(1, view) :]


def _file() -> io.FileIO:
    """The file, from its beginning."""
    file = io.FileIO(0, closefd=False)
    file.seek(0)
    return file


def _open(job: dict[str, Any]) -> Any:
    """Open the audio or video file of a job with PyAV. With a fixed format FFmpeg tries no other: some formats open
    files and addresses named in the bytes."""
    import av

    options = {
        "codec_whitelist": ",".join(CODECS),
        "format_whitelist": job["format"],
        "protocol_whitelist": "none",
        "max_streams": str(MAX_STREAMS),
        "max_pixels": str(job.get("max_pixels", 1)),
        "threads": "1",
    }
    return av.open(_file(), "r", format=job["format"], options=options, metadata_errors="ignore")


def _decoder(stream: Any) -> Any:
    """The codec context of a stream that may be decoded."""
    context = stream.codec_context
    if context is None or context.codec.name not in CODECS:
        raise FileRejected("codec")
    context.thread_count = 1
    return context


def image(job: dict[str, Any]) -> None:
    """Send the size of an image, and unless the job has "header" its RGB rows, a few at a time."""
    from polyphi.media import media

    with _file() as file:
        data = file.read()
    limits = {"max_bytes": len(data), "max_pixels": job["max_pixels"]}
    try:
        if job["header"]:
            width, height = media.image_size(data, **limits)
            _send({"width": width, "height": height})
            return
        picture = media.decode_image(data, **limits)
    except media.MediaError as error:
        # Its name for the file is that of bytes.
        message = str(error).partition(": ")[2]
        raise FileRejected("media", message=message, reason=error.reason) from None
    width, height = picture.size
    _send({"width": width, "height": height})
    step = max(1, CHUNK_BYTES // (3 * width))  # rows
    for top in range(
        0, height, step
    ):  # a copy of the whole image would take longer than sending it
        _send({}, picture.crop((0, top, width, min(height, top + step))).tobytes())


def sound(job: dict[str, Any]) -> None:
    """Send the header of a file that libsndfile reads, and unless the job has "header" its samples."""
    from soundfile import SoundFile

    from polyphi.media.media import sound_blocks

    with io.BufferedReader(_file()) as file, SoundFile(file) as source:
        _send({"rate": source.samplerate, "channels": source.channels, "samples": source.frames})
        if not job["header"]:
            for block in sound_blocks(source):
                _send({}, block.tobytes())


def audio(job: dict[str, Any]) -> None:
    """Send the header of a container's first audio stream, and unless the job has "header" its samples."""
    with _open(job) as container:
        if not container.streams.audio:
            raise FileRejected("no_audio")
        stream = container.streams.audio[0]
        context = _decoder(stream)
        # A damaged file may change them later.
        rate, channels, layout = context.sample_rate, context.channels, context.layout
        if not (rate and channels):
            raise FileRejected("damaged")
        header = {"rate": rate, "channels": channels}
        if job["header"]:
            _send({**header, "samples": _length(container, stream, rate)})
            return
        _send(header)
        buffer = bytearray()
        for block in _samples(container.decode(stream), layout, rate):
            buffer += memoryview(block.planes[0])[: 4 * block.samples * channels]
            if len(buffer) >= CHUNK_BYTES:
                _send({}, buffer)
                buffer = bytearray()
        if buffer:
            _send({}, buffer)


def _length(container: Any, stream: Any, rate: int) -> int | None:
    """The number of samples of an audio stream by the container's header; of its packets where the header doesn't have
    it, or only that of another stream. None if unknown."""
    if stream.duration:  # MP4
        return round(stream.duration * stream.time_base * rate)
    # Of formats without a header, FFmpeg estimates the duration from the bit rate.
    has_header = container.format.name.startswith("matroska")
    if container.duration and has_header and len(container.streams) == 1:
        return round(container.duration * rate / 1_000_000)
    ticks = sum(packet.duration or 0 for packet in container.demux(stream))
    return round(ticks * stream.time_base * rate) or None


def _samples(frames: Iterator[Any], layout: Any, rate: int) -> Iterator[Any]:
    """Yield the frames as interleaved float32 samples of this layout and rate, which damaged and chained files
    change."""
    import av

    resampler, current = None, None
    for frame in frames:
        properties = frame.format.name, frame.layout.name, frame.sample_rate
        if resampler is None or properties != current:
            if resampler is not None:
                yield from filter(None, resampler.resample(None))
            resampler, current = av.AudioResampler("flt", layout, rate), properties
        yield from resampler.resample(frame)
    if resampler is not None:
        yield from filter(None, resampler.resample(None))


def video(job: dict[str, Any]) -> None:
    """Send the selected frames of a container's first video stream. Packets are read once for their times, then
    selected frames are decoded."""
    with _open(job) as container:
        if not container.streams.video:
            raise FileRejected("no_video")
        stream = container.streams.video[0]
        _check_frame(_decoder(stream), job)
        packets = [
            (
                p.dts if p.pts is None else p.pts,
                p.is_keyframe,
                p.duration or 0,
            )  # AVI may lack the one
            for p in container.demux(stream)
            if (p.pts is not None or p.dts is not None) and not p.is_discard
        ]
        if not packets:
            raise FileRejected("empty")
        times = sorted(pts for pts, _, _ in packets)
        keys = sorted(pts for pts, key, _ in packets if key)
        start, end = times[0], max(pts + duration for pts, _, duration in packets)
        if (seconds := float((end - start) * stream.time_base)) > job["max_seconds"]:
            raise FileRejected("seconds", seconds)
        count = job["frames"]
        middles = [start + (end - start) * (2 * i + 1) / (2 * count) for i in range(count)]
        selected = sorted({times[bisect_right(times, middle) - 1] for middle in middles})
        decoder, last, sent = None, start - 1, 0
        for pts in selected:
            # Decode from the last key frame before it, unless decoding is past that already.
            key_index = bisect_right(keys, pts) - 1
            if decoder is None or (key_index >= 0 and keys[key_index] > last):
                container.seek(keys[key_index] if key_index >= 0 else start, stream=stream)
                decoder = container.decode(stream)
            for frame in decoder:
                _check_frame(frame, job)
                if (pixels := frame.width * frame.height * len(selected)) > job["max_video_pixels"]:
                    raise FileRejected("video_pixels", pixels)
                last = frame.pts if frame.pts is not None else last
                if frame.pts is not None and frame.pts >= pts:
                    _send({"width": frame.width, "height": frame.height}, _rgb(frame))
                    sent += 1
                    break
        if sent < 0.75 * len(selected):  # a few may be missing: some packets are never shown
            raise FileRejected("empty" if not sent else "damaged")


def _check_frame(of: Any, job: dict[str, Any]) -> None:
    if (pixels := of.width * of.height) > job["max_pixels"]:
        raise FileRejected("pixels", pixels)


def _rgb(frame: Any) -> bytes:
    """The rows of a frame in RGB, without padding."""
    try:
        frame = frame.reformat(format="rgb24", threads=1)
    except TypeError:  # an older PyAV, which starts no threads
        frame = frame.reformat(format="rgb24")
    rows, row, stride = memoryview(frame.planes[0]), 3 * frame.width, frame.planes[0].line_size
    return b"".join(rows[y * stride : y * stride + row] for y in range(frame.height))


def document(job: dict[str, Any]) -> None:
    """Send pages of a PDF: the number of all, then of each one its image, if they fit into a "box" (short, long side in
    pixels), and its text. Nothing in the file is run: this PDFium has no JavaScript, and forms aren't filled."""
    from pypdfium2 import PdfDocument, PdfiumError, raw

    with _file() as file:
        data = file.read()
    try:
        pdf = PdfDocument(data)
    except PdfiumError as error:
        locked = error.err_code in (raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY)
        raise FileRejected("password" if locked else "damaged") from None
    if (pages := len(pdf)) > job["max_pages"]:
        raise FileRejected("pages", pages)
    _send({"pages": pages})
    characters = job["characters"]
    for number in range(job["first"], pages):
        page = pdf[number]
        if job["box"]:
            width, height, rows = _rendered(page, *job["box"])
            _send({"width": width, "height": height}, rows)
        text = page.get_textpage()
        characters += text.count_chars()
        if characters > job["max_characters"]:
            raise FileRejected("characters", characters)
        layer = text.get_text_range().encode("utf-8", "replace")
        text.close()
        page.close()
        _send({"cpu_seconds": time.process_time()}, layer)
        if time.process_time() >= job["turn_seconds"]:
            return


def _rendered(page: Any, short: int, long: int) -> tuple[int, int, bytes]:
    """Width, height and the RGB rows of a page on white, as large as fits into a box of these sides."""
    from pypdfium2 import raw

    wide, high = page.get_size()
    if not (0 < wide < float("inf") and 0 < high < float("inf")):
        raise FileRejected("damaged")
    scale = min(short / min(wide, high), long / max(wide, high))
    width, height = (max(1, round(scale * side)) for side in (wide, high))
    buffer = (ctypes.c_ubyte * (3 * width * height))()
    bitmap = raw.FPDFBitmap_CreateEx(width, height, raw.FPDFBitmap_BGR, buffer, 3 * width)
    if not bitmap:
        raise MemoryError
    raw.FPDFBitmap_FillRect(bitmap, 0, 0, width, height, 0xFFFFFFFF)
    flags = raw.FPDF_ANNOT | raw.FPDF_REVERSE_BYTE_ORDER
    raw.FPDF_RenderPageBitmap(bitmap, page.raw, 0, 0, width, height, 0, flags)
    raw.FPDFBitmap_Destroy(bitmap)
    return width, height, bytes(buffer)


if __name__ == "__main__":
    main()
