"""What a laboratory would bring, in small: sources in many formats, a language model and a vision tower.

    python examples/rehearsal/make.py runs/rehearsal          # sources/, models/ and lab.toml in that folder
    polyphi reproduce runs/rehearsal/lab.toml --out runs/rehearsal/run
    polyphi chat runs/rehearsal/run "Describe it." --image runs/rehearsal/sources/folder/200.png

`make rehearsal` does all three. Pictures are drawn, speech is synthesized (or tones, where no engine is installed): the
models that come out know nothing, but every reader, filter, part and stage has been used.
"""

import csv
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import soundfile
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file

from polyphi.checkpoints.write import save_checkpoint
from polyphi.model.config import ModelConfig
from polyphi.model.initialise import initialise
from polyphi.model.multimodal import PhiModel
from polyphi.model.siglip import SiglipEncoder
from polyphi.processing.tokenizer import Tokenizer
from polyphi.types.transcript import LANGUAGES
from polyphi_eval.services.speech_synthesis import TTSPool, Voice, unavailable
from polyphi_recipe.stages import sizes

HERE = Path(__file__).parent
COLOURS = ("red", "green", "blue", "yellow", "black", "orange", "purple", "brown")
SHAPES = ("circle", "square")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
GERMAN = ("eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun", "zehn")
RATE = 16_000
Clip = Callable[[str, str], bytes]


def picture(number: int, side: int = 96) -> tuple[bytes, str]:
    """(a PNG, its caption); no two numbers below 10,000 have the same picture."""
    colour, shape = COLOURS[number % 8], SHAPES[number // 8 % 2]
    image = Image.new("RGB", (side + number % 5, side), "white")
    corner = (8 + number % 23, 8 + number // 23 % 19)
    box = (*corner, corner[0] + 40 + number % 7, corner[1] + 40 + number % 11)
    draw = ImageDraw.Draw(image)
    draw.ellipse(box, colour) if shape == "circle" else draw.rectangle(box, colour)
    draw.text((4, side - 14), f"{number:04d}", "black")
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue(), f"a {colour} {shape} with the number {number}"


def clips() -> Clip:
    """A function from a text and its language to a WAV: read aloud, or a tone for each word without an engine."""
    engine = "" if unavailable("espeak-ng") else "espeak-ng"
    pool = TTSPool() if engine else None

    def clip(text: str, language: str) -> bytes:
        if pool is not None:
            wave, rate = pool.speak(text, Voice(engine, language))
        else:
            pitches = [200 + 40 * (sum(map(ord, word)) % 50) for word in text.split()]
            time = np.arange(int(0.3 * RATE)) / RATE
            wave, rate = np.concatenate([0.3 * np.sin(2 * np.pi * p * time) for p in pitches]), RATE
        out = io.BytesIO()
        soundfile.write(out, wave, rate, format="WAV", subtype="PCM_16")
        return out.getvalue()

    return clip


def write(path: Path, data: bytes | str) -> Path:
    """Write a file with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def lines(rows: Iterable[Any]) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def tar(path: Path, members: Mapping[str, bytes | str]) -> None:
    """Write a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            content = data if isinstance(data, bytes) else data.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


# ------------------------------------------------------------------------------ pictures


def pictures(root: Path) -> None:
    """LLaVA's JSON, WebDataset tars, a folder with metadata, class folders, CSV, a folder of `datasets`."""
    rows = []
    for n in range(40):
        image, caption = picture(n)
        write(root / f"llava/images/{n}.png", image)
        turns = [
            {"from": "human", "value": "<image>\nDescribe it."},
            {"from": "gpt", "value": caption},
        ]
        rows.append({"id": f"{n}", "image": f"images/{n}.png", "conversations": turns})
    write(root / "llava/captions.json", json.dumps(rows))
    for shard in range(2):
        members: dict[str, bytes | str] = {}
        for n in range(100 + 40 * shard, 140 + 40 * shard):
            image, caption = picture(n)
            members |= {f"{n:05d}.png": image, f"{n:05d}.txt": caption}
        tar(root / f"tars/{shard:05d}.tar", members)
    rows = []
    for n in range(200, 230):
        image, caption = picture(n)
        write(root / f"folder/{n}.png", image)
        rows.append({"file_name": f"{n}.png", "text": caption})
    write(root / "folder/metadata.jsonl", lines(rows))
    for n in range(300, 340):
        image, caption = picture(n)
        write(root / f"classes/{caption.split()[1]}_{caption.split()[2]}/{n}.png", image)
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(("picture", "words"))
    for n in range(400, 430):
        image, caption = picture(n)
        write(root / f"csv/{n}.png", image)
        table.writerow((f"{n}.png", caption))
    write(root / "csv/captions.csv", out.getvalue())
    columns: dict[str, list[Any]] = {"image": [], "question": [], "answer": []}
    for n in range(500, 540):
        image, caption = picture(n)
        columns["image"].append({"bytes": image, "path": None})
        columns["question"].append("Which number is in the picture?")
        columns["answer"].append(caption.split()[-1])
    arrow = pa.table(columns)
    (root / "dataset").mkdir(parents=True, exist_ok=True)
    path = root / "dataset/data-00000-of-00001.arrow"
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, arrow.schema) as writer:
        writer.write_table(arrow)


# ------------------------------------------------------------------------------ speech


def speech(root: Path, clip: Clip) -> None:
    """NeMo's manifest with segments, Lhotse's cuts, Common Voice, FLEURS, CoVoST."""
    phrases = [f"{a} {b} {c}" for a in NUMBERS[:5] for b in NUMBERS[5:] for c in NUMBERS[:3]]
    rows: list[dict[str, Any]] = []
    for n, phrase in enumerate(phrases[:24]):
        write(root / f"nemo/audio/{n}.wav", clip(phrase, "en"))
        rows.append(
            {"audio_filepath": f"audio/{n}.wav", "text": phrase, "duration": 1.0, "lang": "en"}
        )
    rows[0] |= {"offset": 0.0, "duration": 0.5}
    write(root / "nemo/manifest.jsonl", lines(rows))
    rows = []
    for n, phrase in enumerate(phrases[24:36]):
        file = write(root / f"lhotse/{n}.wav", clip(phrase, "en"))
        seconds = soundfile.info(file).duration
        recording = {
            "id": f"{n}",
            "sources": [{"type": "file", "channels": [0], "source": f"{n}.wav"}],
            "sampling_rate": RATE,
            "duration": seconds,
        }
        supervision = {
            "id": f"{n}",
            "recording_id": f"{n}",
            "start": 0,
            "duration": seconds,
            "text": phrase,
            "language": "English",
        }
        rows.append({"id": f"cut-{n}", "start": 0, "duration": seconds, "channel": 0, "recording": recording,
                     "supervisions": [supervision], "type": "MonoCut"})  # fmt: skip
    write(root / "lhotse/cuts.jsonl", lines(rows))
    german = [f"{a} {b}" for a in GERMAN[:6] for b in GERMAN[4:]]
    table = ["client_id\tpath\tsentence\tup_votes\tdown_votes\tlocale"]
    for n, phrase in enumerate(german[:16]):
        write(root / f"commonvoice/clips/{n}.wav", clip(phrase, "de"))
        table.append(f"speaker{n}\t{n}.wav\t{phrase}\t2\t0\tde")
    write(root / "commonvoice/train.tsv", "\n".join(table) + "\n")
    table = []
    for n, phrase in enumerate(german[16:28]):
        data = clip(phrase, "de")
        write(root / f"fleurs/de_de/audio/train/{n}.wav", data)
        table.append(
            f"{n}\t{n}.wav\t{phrase}\t{phrase}\t{' '.join(phrase)}\t{len(data) // 2}\tMALE"
        )
    write(root / "fleurs/de_de/train.tsv", "\n".join(table) + "\n")
    table = ["path\tsentence\ttranslation\tclient_id"]
    for n, phrase in enumerate(german[28:]):
        words = [NUMBERS[GERMAN.index(word)] for word in phrase.split()]
        write(root / f"covost/clips/{n}.wav", clip(phrase, "de"))
        table.append(f"{n}.wav\t{phrase}\t{' '.join(words)}\tspeaker{n}")
    write(root / "covost/covost_v2.de_en.train.tsv", "\n".join(table) + "\n")


# ------------------------------------------------------------------------------ text


def texts(root: Path) -> None:
    """ShareGPT, Alpaca, plain text, web pages, a WARC archive, a PDF."""
    from warcio.statusandheaders import StatusAndHeaders
    from warcio.warcwriter import WARCWriter

    def page(n: int) -> str:
        topics = ("rivers", "bridges", "clocks", "trees", "letters", "ships", "roads", "lamps")
        topic = topics[n % 8]
        sentences = [
            f"In the year {1800 + 7 * n} people of the town wrote about their {topic}, and number {n + k} was the "
            f"oldest. It had {k + 2} parts, which were made by the {NUMBERS[(n + k) % 10]} workers of that street."
            for k in range(8)
        ]
        return "\n".join(sentences)

    rows: list[dict[str, Any]] = [
        {"conversations": [{"from": "human", "value": f"What is {a} plus {b}?"},
                           {"from": "gpt", "value": f"It is {a + b}."}]}
        for a in range(8) for b in range(5)
    ]  # fmt: skip
    write(root / "chat/sharegpt.jsonl", lines(rows))
    rows = [
        {
            "instruction": "Name the number after this one.",
            "input": NUMBERS[n],
            "output": NUMBERS[n + 1],
        }
        for n in range(9)
    ]
    write(root / "chat/alpaca.json", json.dumps(rows))
    for n in range(4):
        write(root / f"pages/{n}.txt", page(n))
    for n in range(4, 8):
        paragraphs = "".join(f"<p>{line}</p>" for line in page(n).splitlines())
        write(
            root / f"pages/{n}.html",
            f"<html><body><article><h1>Page {n}</h1>{paragraphs}</article></body></html>",
        )
    path = root / "crawl.warc.gz"
    with path.open("wb") as file:
        writer = WARCWriter(file, gzip=True)
        for n in range(8, 14):
            paragraphs = "".join(f"<p>{line}</p>" for line in page(n).splitlines())
            body = f"<html><body><article><h1>Page {n}</h1>{paragraphs}</article></body></html>".encode()
            headers = StatusAndHeaders(
                "200 OK", [("Content-Type", "text/html")], protocol="HTTP/1.1"
            )
            writer.write_record(
                writer.create_warc_record(
                    f"https://example.org/{n}",
                    "response",
                    payload=io.BytesIO(body),
                    http_headers=headers,
                )
            )
    write(root / "paper.pdf", pdf(page(14).splitlines()))


def pdf(text: Iterable[str]) -> bytes:
    """A PDF of one page with a text layer."""
    operators = " ".join(f"({line.replace('(', '').replace(')', '')}) Tj T*" for line in text)
    stream = f"BT /F1 6 Tf 8 TL 20 780 Td {operators} ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 595 842] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    data, offsets = b"%PDF-1.4\n", []
    for number, content in enumerate(objects, 1):
        offsets.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    end = b"xref\n0 6\n0000000000 65535 f \n%strailer\n<< /Size 6 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n"
    return data + end % (table, len(data))


# ------------------------------------------------------------------------------ models


def models(root: Path) -> None:
    """A tiny language model in the layout of Phi-4-mini, and a tiny SigLIP as transformers stores it, of random
    weights, with the dtypes of the published ones: bfloat16 and float32."""
    words = [
        *COLOURS,
        *SHAPES,
        *NUMBERS,
        *GERMAN,
        "What is plus? It is. Describe it. Transcribe the audio clip into text.",
    ]
    tokenizer = Tokenizer.train([" ".join([*words, *LANGUAGES.values()])] * 8, 512)
    tokenizer.save(root / "tokenizer")
    size = sizes.MICRO.model
    end = tokenizer.control("<|endoftext|>")
    decoder = replace(
        size.decoder,
        vocab_size=tokenizer.vocab_size,
        bos_token_id=end,
        pad_token_id=end,
        eos_token_ids=tuple(tokenizer.eos_ids),
    )
    model = PhiModel(ModelConfig(decoder, None, None, {}))
    model.initialise(7)
    files = sorted((root / "tokenizer").iterdir())
    save_checkpoint(model, root / "tiny-phi", "mini", dtype=torch.bfloat16, files=files)
    assert size.vision is not None
    vision = replace(
        size.vision, crop_size=28
    )  # other positions than the recipe's crops of 56 pixels
    tower = SiglipEncoder(vision)
    initialise(tower, decoder, 8)
    names = {
        "patch_embedding": "embeddings.",
        "position_embedding": "embeddings.",
        "layers": "encoder.",
    }
    tensors = {
        f"vision_model.{names.get(name.split('.')[0], '')}{name}": tensor.contiguous()
        for name, tensor in tower.state_dict().items()
    }
    (root / "tiny-siglip").mkdir(parents=True, exist_ok=True)
    save_file(tensors, root / "tiny-siglip/model.safetensors", {"format": "pt"})
    config = {
        "model_type": "siglip",
        "vision_config": {
            "model_type": "siglip_vision_model",
            "hidden_act": "gelu_pytorch_tanh",
            "image_size": vision.crop_size,
            **{
                name: getattr(vision, name)
                for name in ("hidden_size", "intermediate_size", "num_hidden_layers")
            },
            "num_attention_heads": vision.num_attention_heads,
            "patch_size": vision.patch_size,
            "layer_norm_eps": vision.layer_norm_eps,
        },
    }
    write(root / "tiny-siglip/config.json", json.dumps(config))


def main(folder: Path) -> None:
    """Write everything, unless it is there."""
    if not (folder / "lab.toml").exists():
        shutil.rmtree(folder / "sources", ignore_errors=True)
        pictures(folder / "sources")
        speech(folder / "sources", clips())
        texts(folder / "sources")
        models(folder / "models")
        for name in ("lab.toml", "more_text.py"):
            shutil.copy(HERE / name, folder / name)
    print(
        f"sources and models in {folder}; next: polyphi reproduce {folder / 'lab.toml'} --out {folder / 'run'}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
