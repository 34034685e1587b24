"""Sources in the formats that people have: detection, rows, damaged files, anywhere."""

import datetime
import gzip
import io
import json
import runpy
import tarfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import fsspec
import pyarrow as pa
import pytest
import soundfile

from polyphi.data import row_files, sources, user_data
from polyphi.data.formats import RowOrigin, sample
from polyphi.data.row_counts import estimated_rows
from polyphi.data.sample import Sample
from polyphi.types.parts import Audio, Image, Text

REHEARSAL = Path(__file__).parents[3] / "examples/rehearsal/make.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sources of the rehearsal, with tones as speech."""
    pytest.importorskip("warcio")
    make = runpy.run_path(str(REHEARSAL))
    folder = tmp_path_factory.mktemp("sources")

    def clip(text: str, language: str) -> bytes:
        out = io.BytesIO()
        soundfile.write(out, [0.1, -0.1] * (800 * len(text)), 16_000, format="WAV")
        return out.getvalue()

    make["pictures"](folder)
    make["speech"](folder, clip)
    make["texts"](folder)
    return folder


def samples(path: Path | str, **options: object) -> list[Sample]:
    return list(user_data.read(str(path), **options))  # type: ignore[arg-type]


def parts(sample: Sample) -> list[str]:
    return [type(part).__name__ for message in sample.messages for part in message.parts]


FOUND = {
    "llava/captions.json": ("rows", 40, ["Image", "Text", "Text"]),
    "tars/{00000..00001}.tar": ("webdataset", 80, ["Image", "Text"]),
    "folder": ("imagefolder", 30, ["Image", "Text"]),
    "classes": ("classes", 40, ["Image", "Text", "Text"]),
    "dataset": ("datasets", 40, ["Image", "Text", "Text"]),
    "nemo/manifest.jsonl": ("nemo", 24, ["Audio", "Text", "Text"]),
    "lhotse/cuts.jsonl": ("lhotse", 12, ["Audio", "Text", "Text"]),
    "commonvoice/train.tsv": ("commonvoice", 16, ["Audio", "Text", "Text"]),
    "fleurs/de_de/train.tsv": ("fleurs", 12, ["Audio", "Text", "Text"]),
    "covost/covost_v2.de_en.train.tsv": ("covost", 8, ["Audio", "Text", "Text"]),
    "chat/sharegpt.jsonl": ("rows", 40, ["Text", "Text"]),
    "chat/alpaca.json": ("rows", 9, ["Text", "Text"]),
    "pages/*.txt": ("text", 4, ["Text"]),
    "crawl.warc.gz": ("warc", 6, ["Text"]),
    "paper.pdf": ("pdf", 1, ["Text"]),
}


@pytest.mark.parametrize("path", FOUND)
def test_a_format_is_detected_and_read(path: str, root: Path) -> None:
    format, count, kinds = FOUND[path]
    files_ = sources.find(str(root / path))
    assert {file.format for file in files_} == {format}
    read = samples(root / path)
    assert len(read) == count and parts(read[-1]) == kinds
    assert sum(map(estimated_rows, files_)) == count


def test_rows_are_estimated_beside_unreadable_ones_and_times(tmp_path: Path) -> None:
    """Both were a TypeError, which ended an import."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(20):
            member = tarfile.TarInfo(f"{n}.json")
            data = b'{"text": "page"}' if n else b"{"
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    table = pa.table({"text": ["page"] * 20, "date": [datetime.datetime(2026, 1, 1)] * 20})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file,
        pa.ipc.new_stream(file, table.schema) as stream,
    ):
        stream.write_table(table)
    for name in ("a.tar", "a.arrow"):
        (source,) = sources.find(str(tmp_path / name))
        assert 5 < estimated_rows(source) < 80


def test_columns_and_a_question_of_a_source(root: Path) -> None:
    columns = {"image": "picture", "answer": "words"}
    first = samples(root / "csv/captions.csv", columns=columns)[0]
    assert (
        isinstance(first.messages[0].parts[0], Image)
        and first.answer == "a red circle with the number 400"
    )


def test_manifests_name_languages_and_segments(root: Path) -> None:
    nemo = samples(root / "nemo/manifest.jsonl")
    assert nemo[0].meta["language"] == "en"
    (clip,) = [p for p in nemo[0].messages[0].parts if isinstance(p, Audio)]
    assert isinstance(clip.source, bytes)
    assert soundfile.info(io.BytesIO(clip.source)).duration == 0.5  # cut
    german = samples(root / "covost/covost_v2.de_en.train.tsv")[0]
    assert german.meta["spoken"] == "de" and german.meta["language"] == "en"
    assert german.messages[0].text == "Translate the audio to English."
    assert samples(root / "fleurs/de_de/train.tsv")[0].meta["language"] == "de"


def test_nemo_manifests_may_end_in_json(root: Path, tmp_path: Path) -> None:
    """NeMo's own scripts write JSON lines into a .json."""
    (tmp_path / "audio").symlink_to(root / "nemo/audio")
    (tmp_path / "train.json").write_bytes((root / "nemo/manifest.jsonl").read_bytes())
    assert [f.format for f in sources.find(str(tmp_path / "train.json"))] == ["nemo"]
    with pytest.raises(ValueError, match=r"audio/0\.wav; --allowed-media-path"):
        samples(tmp_path / "train.json")
    allowed = (str(root / "nemo"),)
    assert len(samples(tmp_path / "train.json", allowed_media_path=allowed)) == 24


def test_a_format_can_be_named(root: Path, tmp_path: Path) -> None:
    (tmp_path / "b.txt").write_bytes((root / "chat/sharegpt.jsonl").read_bytes())
    assert sources.find(str(tmp_path / "b.txt"), "rows")[0].format == "rows"
    with pytest.raises(ValueError, match="nemo"):
        sources.find(str(tmp_path / "missing.jsonl"), "nemo")


def test_files_anywhere(root: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name in ("manifest.jsonl", "audio/0.wav", "audio/1.wav"):
        memory.pipe(f"/nemo/{name}", (root / "nemo" / name).read_bytes())
    lines = memory.cat("/nemo/manifest.jsonl").splitlines(keepends=True)
    memory.pipe("/nemo/manifest.jsonl", b"".join(lines[:2]))
    assert sources.find("memory://nemo/*.jsonl")[0].format == "nemo"
    remote = samples("memory://nemo/manifest.jsonl")
    assert [s.messages for s in remote] == [
        s.messages for s in samples(root / "nemo/manifest.jsonl")[:2]
    ]
    outside = json.dumps({"audio_filepath": "../x.wav", "text": "a"})
    memory.pipe("/nemo/manifest.jsonl", outside.encode())
    with pytest.raises(ValueError, match="inside"):
        samples("memory://nemo/manifest.jsonl")
    with pytest.raises(ValueError, match="pattern"):
        sources.find("memory://elsewhere/*.jsonl")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other(path: Path) -> None:
    path.write_bytes(b"something else")


@pytest.mark.parametrize("damage", [cut, other])
@pytest.mark.parametrize(
    "path", ["tars/00000.tar", "dataset", "crawl.warc.gz", "llava/captions.json"]
)
def test_a_damaged_file_is_named(
    path: str, damage: Callable[[Path], None], root: Path, tmp_path: Path
) -> None:
    source = root / path
    source = next(source.glob("*.arrow")) if source.is_dir() else source
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    (tmp_path / "images").symlink_to(root / "llava/images")
    damage(copy)
    with pytest.raises(ValueError, match=source.name.replace(".", r"\.")):
        for file in sources.find(str(copy)):
            for _ in sources.rows(file):
                pass


def test_a_compressed_file_that_is_damaged_is_named(tmp_path: Path) -> None:
    packed = bytearray(gzip.compress(b'{"text": "a"}\n' * 9, 0))
    packed[10] = 7  # no type of a block
    (tmp_path / "a.jsonl.gz").write_bytes(packed)
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz"):
        list(sources.rows(sources.SourceFile(str(tmp_path / "a.jsonl.gz"), "rows", "")))


def tar(path: Path, members: dict[str, bytes]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def test_a_row_with_several_images_of_a_tar(root: Path, tmp_path: Path) -> None:
    image = (root / "llava/images/0.png").read_bytes()
    row = json.dumps({"question": "Which two?", "answer": "red"}).encode()
    tar(tmp_path / "a.tar", {"0.json": row, "0.a.png": image, "0.b.png": image})
    (one,) = samples(tmp_path / "a.tar")
    assert parts(one) == ["Image", "Image", "Text", "Text"]


def test_a_tar_that_was_cut_between_its_members(root: Path, tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {f"{n}.txt": b"x" * 600 for n in range(50)})
    whole = (tmp_path / "a.tar").read_bytes()
    for size in (20 * 1536, 20 * 1536 + 512, 20 * 1536 + 700, 20 * 1536 + 1200):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"a\.tar .*(cut off|unexpected end)"):
            list(sources.rows(*sources.find(str(tmp_path / "a.tar"))))


def test_a_member_that_cannot_be_read_is_one_bad_row(root: Path, tmp_path: Path) -> None:
    image = (root / "llava/images/0.png").read_bytes()
    members = {"0.png": image, "0.json": b"{", "1.png": image, "1.txt": b"\xff", "2.png": image}
    tar(tmp_path / "a.tar", {**members, "2.txt": b"a red circle"})
    [file] = sources.find(str(tmp_path / "a.tar"))
    first, second, third = (row for _, row in sources.rows(file))
    assert isinstance(first, ValueError) and "expected JSON" in str(first)
    assert isinstance(second, ValueError) and "expected UTF-8" in str(second)
    assert third["answer"] == "a red circle"


def test_a_row_of_a_tar_without_its_image_is_one_bad_row(root: Path, tmp_path: Path) -> None:
    image = (root / "llava/images/0.png").read_bytes()
    ask = json.dumps({"question": "What is it?", "answer": "a circle"}).encode()
    chat = json.dumps(
        {"messages": [{"role": r, "content": "Hi."} for r in ("user", "assistant")]}
    ).encode()
    members = {"0.txt": b"no image", "1.png": image, "1.txt": b"a circle", "2.txt": b"no image"}
    tar(tmp_path / "a.tar", {**members, "3.json": ask, "4.json": chat})
    [file] = sources.find(str(tmp_path / "a.tar"))
    read, bad = [], []
    for location, row in sources.rows(file):
        try:
            read.append(sample(row, location, RowOrigin(question="Describe the picture."))[0])
        except ValueError as error:
            bad.append(str(error))
    assert [one.answer for one in read] == ["a circle", "Hi."]
    assert ["image" in text for text in bad] == [True] * 3


def test_a_question_of_a_source_is_for_images_and_audio(root: Path) -> None:
    """Rows without one of their own; text alone would be a conversation about nothing."""
    image = (root / "llava/images/0.png").read_bytes()
    ask = partial(sample, location="row 1", origin=RowOrigin(question="Describe it."))
    assert ask({"image": image, "answer": "a circle"})[0].messages[0].text == "Describe it."
    assert ask({"question": "1+1?", "answer": "2"})[0].messages[0].text == "1+1?"
    for row in ({"answer": "a circle"}, {"answer": "a circle", "images": [], "question": ""}):
        with pytest.raises(ValueError, match="image"):
            ask(row)


@pytest.fixture(params=["local", "memory"])
def energon(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> str:
    """A data set of Energon: two tars of training and one of validation, with a field map."""
    image = (root / "llava/images/0.png").read_bytes()
    folder = tmp_path / "energon"
    for n in range(3):
        about = {"q": "What is it?", "a": [f"answer {n}", "another"]}
        tar(
            folder / f"shards/{n}.tar",
            {
                f"{n}{copy}{ending}": data
                for copy in ("", "x")
                for ending, data in (
                    (".png", image),
                    (".about.json", json.dumps(about).encode()),
                    (".seg.png", b""),
                )
            },
        )
    (folder / ".nv-meta").mkdir()
    (folder / ".nv-meta/dataset.yaml").write_text(
        "sample_type: {__module__: megatron.energon, __class__: VQASample}\n"
        "field_map: {image: 'jpg,png', context: 'about.json[q]', answers: 'about.json[a]'}\n"
    )
    (folder / ".nv-meta/split.yaml").write_text(
        "split_parts: {train: ['shards/{0..1}.tar'], val: [shards/2.tar]}\nexclude: [shards/1.tar/1]\n"
    )
    if request.param == "local":
        return str(folder)
    fsspec.filesystem("memory").put(f"{folder}/", "/energon/", recursive=True)
    return "memory://energon"


def test_a_data_set_of_energon(energon: str) -> None:
    both = samples(energon)
    assert [one.answer for one in both] == ["answer 0", "answer 0", "answer 1"]
    assert [
        part.text for one in both for part in one.prompt[-1].parts if isinstance(part, Text)
    ] == ["What is it?"] * 3
    assert parts(both[0]) == ["Image", "Text", "Text"]


def test_a_data_set_that_needs_code_of_energon(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"0.txt": b"x"})
    (tmp_path / ".nv-meta").mkdir()
    (tmp_path / ".nv-meta/dataset.yaml").write_text("sample_loader: sample_loader.py:sample_loader")
    with pytest.raises(ValueError, match="field_map"):
        samples(tmp_path)


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("split_parts:", "expected a list of tars as split_parts.train, found none"),
        ("split_parts: {val: [0.tar]}", "expected a list of tars"),
        ("split_parts: {train: ['(.tar']}", r"found no \(\.tar"),
        ("[]", "expected keys, found list"),
        ("{", "expected YAML"),
    ],
)
def test_mistakes_in_a_split_of_energon(split: str, message: str, tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", {"0.txt": b"x"})
    (tmp_path / ".nv-meta").mkdir()
    (tmp_path / ".nv-meta/split.yaml").write_text(split)
    with pytest.raises(ValueError, match=message):
        sources.find(str(tmp_path))


def test_a_row_of_a_tar_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyphi.data.webdataset.MAX_ROW", 1000)
    members = {"0.txt": b"x" * 60, "0.a.png": b"x" * 60, "1.txt": b"y" * 60}
    tar(tmp_path / "a.tar", members)
    [file] = sources.find(str(tmp_path / "a.tar"))
    (_, first), (_, second) = sources.rows(file)
    assert "expected at most 1,000 bytes in a row, found 1,156" in str(first)
    assert second["answer"] == "y" * 60


def test_remote_folders() -> None:
    row = json.dumps({"question": "1+1?", "answer": "2"})
    fsspec.filesystem("memory").pipe("/remote_folder/train.jsonl", row.encode())
    (one,) = samples("memory://remote_folder")
    assert one.answer == "2"


VALUES = [
    [],
    [1],
    [1, 2, 'a]b",', {"x": [1, {"y": '\\"]"}'}]}],
    ["é" * 5, None, True, 12345678901234567890],
]


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
@pytest.mark.parametrize("indent", [None, 2])
def test_lists_are_read_in_parts(
    chunk: int, indent: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "CHUNK_BYTES", chunk)
    file = tmp_path / "a.json"
    for value in VALUES:
        file.write_text(f"\ufeff {json.dumps(value, indent=indent)}\n")
        assert [row for _, row in row_files.rows(str(file))] == value


@pytest.mark.parametrize("text", ["[1,2", "[1 2]", "[1,]", "{}", "[1]x", "", "[1,2]]"])
def test_what_is_no_list_is_refused(text: str, tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"a\.json: expected"):
        list(row_files.rows(str(file)))


BAD_LINES = {
    "a.csv": ("question,answer\n1+1?,2\n2+2?\n3+3?,6\n", "line 3: expected 2 columns"),
    "a.jsonl": (
        '{"audio_filepath": "a.wav", "text": "a"}\nno JSON\n{"text": "b"}\n',
        "line 2: expected JSON",
    ),
    "train.tsv": ("path\tsentence\na.wav\tone\nb.wav\n", "line 3: expected 2 columns, found 1"),
}


@pytest.mark.parametrize("name", BAD_LINES)
def test_a_line_that_cannot_be_parsed_is_one_bad_row(name: str, tmp_path: Path) -> None:
    text, message = BAD_LINES[name]
    (tmp_path / name).write_text(text)
    for folder in (tmp_path, tmp_path / "clips"):
        folder.mkdir(exist_ok=True)
        soundfile.write(folder / "a.wav", [0.1] * 1600, 16_000)
    errors: list[str] = []
    read = samples(tmp_path / name, bad=errors.append)
    assert message in errors[0] and len(read) == {"a.csv": 2}.get(name, 1)
