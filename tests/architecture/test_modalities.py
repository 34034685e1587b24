"""The packages that serve and train every modality ask it, and never its name: no branch mentions a picture or a clip.

Files that are about one modality by their task are listed with the reason.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

POLYPHI = Path(__file__).parents[2] / "polyphi"
RECIPE = Path(__file__).parents[2] / "polyphi_recipe"
FOLDERS = [
    *(POLYPHI / name for name in ("engine", "decoding", "train", "data", "quantization")),
    *(
        POLYPHI / "serve" / "answer" / f"{name}.py"
        for name in ("generation", "prepare", "server", "jobs")
    ),
    POLYPHI / "serve" / "openai" / "streams.py",
    POLYPHI / "types" / "batch.py",
    POLYPHI / "types" / "modality.py",
    POLYPHI / "types" / "inputs" / "encoder.py",
    POLYPHI / "prepared" / "prepare.py",
    RECIPE / "stages" / "lineage.py",
]
WORDS = re.compile(
    r"image|audio|video|vision|speech|picture|clip|crop|mel|frame|siglip|conformer", re.IGNORECASE
)
ALLOWED = {
    "polyphi/data/coco.py": "annotations of images",
    "polyphi/data/folders.py": "folders of images and audio as others lay them out",
    "polyphi/data/formats.py": "formats of others have columns of images and audio, and their endings",
    "polyphi/data/manifests.py": "manifests of speech data",
    "polyphi/data/preferences.py": "a row's limit on crops is passed on",
    "polyphi/data/shards.py": "a video is refused: its frames are images",
    "polyphi/data/source_report.py": "columns of others have images and audio, and rows are shown with their sizes",
    "polyphi/data/webdataset.py": "names of members in tars of others",
    "polyphi/engine/rows.py": "images= and audios= of prompts of ids are public arguments",
    "polyphi/types/modality.py": "names that a user's modality can't have",
    "polyphi/prepared/prepare.py": "the table of the report's modules and those that replace them",
    "polyphi/quantization/int8_encoder.py": "kernels for the blocks of the report's two encoders",
    "polyphi/quantization/quantize.py": "GELU is fused into an MLP of the report's encoder",
    "polyphi/serve/answer/prepare.py": "a video becomes its frames before it enters the path",
    "polyphi/train/aed.py": "the objective that trains a speech encoder (report 2.2.2)",
    "polyphi/train/alignment.py": "the loss of annotated images and clips [ours]",
    "polyphi/train/contrastive.py": "the objective that trains an image encoder (report 2.2.1)",
    "polyphi/train/epochs.py": "the objective's limit on crops",
    "polyphi/train/loss.py": "the objective's limit on crops (report 2.2.1)",
    "polyphi/train/preference.py": "the objective's limit on crops",
    "polyphi/train/report/page.py": "the page shows the length of a clip",
    "polyphi_recipe/stages/lineage.py": "the report's stages by name",
}
"""File -> why it may name a modality."""
IGNORED = {"clip_norm", "clip_gradients", "FrameType", "frame"}
"""Gradients are clipped, and a signal handler gets a stack frame."""


def mentions(path: Path) -> Iterator[str]:
    """Names and short strings of a file's code with one of the words; texts for people aren't branches."""
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Name(id=name) | ast.Attribute(attr=name) | ast.arg(arg=name):
                text = name
            case ast.Constant(value=str(name)) if " " not in name:
                text = name
            case ast.alias(name=name) | ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                text = name
            case _:
                continue
        parts = re.split(r"[._]|(?<=[a-z])(?=[A-Z])", text)
        if text not in IGNORED and any(WORDS.fullmatch(part.removesuffix("s")) for part in parts):
            yield text


def files() -> Iterator[Path]:
    for place in FOLDERS:
        yield from [place] if place.is_file() else sorted(place.rglob("*.py"))


def test_no_branch_on_a_modality() -> None:
    present = {
        path.relative_to(POLYPHI.parent).as_posix(): sorted(set(mentions(path))) for path in files()
    }
    assert {path: words for path, words in present.items() if words and path not in ALLOWED} == {}


def test_every_exception_is_needed() -> None:
    present = {p.relative_to(POLYPHI.parent).as_posix(): set(mentions(p)) for p in files()}
    assert all(present[path] for path in ALLOWED)
