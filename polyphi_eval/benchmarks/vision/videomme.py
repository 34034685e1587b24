"""Video-MME (report, Table 1): three questions about each of 900 videos, up to an hour long, without subtitles.

The model sees 16 frames, evenly over the whole video from its first to its last, as 16 images. The report says no more
than "uniform time coverage" (4.1.1). A `Video` of a message gives other frames: those in the middle of 16 equal parts.
"""

import io
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image as PILImage

from polyphi.data.sample import Sample
from polyphi.runtime.installation import pip_install
from polyphi.types.parts import Image
from polyphi_eval import vqa
from polyphi_eval.benchmark import Benchmark, TableRow
from polyphi_eval.sources import BenchmarkSource, Data, Missing

FRAMES = 16
SOURCE = BenchmarkSource(
    "lmms-lab/Video-MME",
    ("videomme/test-*.parquet", "data/*.mp4"),
    "the Hub; unpack its videos_chunked_*.zip there, which have data/*.mp4",
    fields=("videoID", "duration", "question_id", "question", "options", "answer"),
    rows=2700,
    licence="for research only",
)


def load(data: Data) -> Iterator[Sample]:
    folder = data.folder(SOURCE)
    for row in data.rows(SOURCE, SOURCE.files[0]):
        path = folder / "data" / f"{row['videoID']}.mp4"
        if not path.is_file():
            raise Missing(f"{path} is missing; {SOURCE.name} comes from {SOURCE.where}")
        options = [re.sub(r"^[A-D][.):]\s*", "", option) for option in row["options"]]
        images = [Image(frame) for frame in frames(path)]
        yield SOURCE.sample(
            f"videomme-{row['question_id']}",
            vqa.ask(vqa.with_options(row["question"], options), images, vqa.CHOOSE),
            row["answer"],
            {"duration": row["duration"], "options": options},
        )


@lru_cache(maxsize=1)  # a video's questions are adjacent
def frames(path: Path, count: int = FRAMES) -> list[bytes]:
    """`count` of a video's N frames as JPEG, those at linspace(0, N - 1, count). Needs PyAV (extra `video`)."""
    av = _av()
    jpegs: dict[int, bytes] = {}
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            all_times = sorted(p.pts for p in container.demux(stream) if p.pts is not None)
            times = [all_times[i] for i in np.linspace(0, len(all_times) - 1, count).astype(int)]
            for time in sorted(set(times)):
                container.seek(time, stream=stream)  # to the key frame before it
                following = (f for f in container.decode(stream) if f.pts is not None)
                jpegs[time] = _jpeg(next(f for f in following if f.pts >= time).to_image())
    except (av.FFmpegError, IndexError, StopIteration) as error:
        raise ValueError(f"{path}: expected a video that can be decoded ({error})") from None
    return [jpegs[time] for time in times]


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise ValueError(f"reading videos needs PyAV ({error}); {pip_install('video')}") from None
    return av


def _jpeg(image: PILImage) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


benchmark = Benchmark(
    name="videomme",
    title="Video-MME",
    modality="vision",
    rows=(
        TableRow("Table 1", "VideoMME-16Frame"),
        *(
            TableRow("", f"Video-MME, {duration} videos", {"duration": duration})
            for duration in ("short", "medium", "long")
        ),
    ),
    sources=(SOURCE,),
    load=load,
    scorer=vqa.letter,
    note="frames from the first to the last one; videos of messages are sampled in the middle of 16 equal parts",
)
