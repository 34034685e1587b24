"""InterGPS (report, Table 1): 601 questions of Geometry3K about a diagram, with four options."""

from collections.abc import Iterator
from pathlib import Path

from polyphi.data.shards import Sample
from polyphi.eval import drawn, vqa
from polyphi.eval.benchmark import Benchmark, Row
from polyphi.eval.sources import Data, Source, picture, read_rows
from polyphi.messages import Message

FOLDER = "data/geometry3k/test"
SOURCE = Source(
    "InterGPS",
    (f"{FOLDER}/*/data.json", f"{FOLDER}/*/img_diagram.png"),
    f"github.com/lupantech/InterGPS (its README says where Geometry3K is); unpack test.zip to {FOLDER}",
    fields=("problem_text", "choices", "answer"),
    rows=601,
    hub=False,
    single=True,
)


def load(data: Data) -> Iterator[Sample]:
    for path in data.files(SOURCE, SOURCE.files[0]):
        (row,) = read_rows(path, single=True)
        image = picture("img_diagram.png", path.parent)
        prompt = vqa.ask(vqa.lettered(row["problem_text"], row["choices"]), [image], vqa.CHOOSE)
        yield Sample(
            f"intergps-{path.parent.name}",
            (prompt, Message.assistant(row["answer"])),
            SOURCE.name,
            "MIT",
            {"options": [str(choice) for choice in row["choices"]]},
        )


def mini(root: Path) -> None:
    import json

    asked = [
        ("Find the perimeter of the triangle.", (3, 4, 5), ["7", "9", "12", "15"], "C"),
        ("Find the length of the longest side.", (6, 8, 7), ["8", "6", "7", "21"], "A"),
        ("Find x.", ("x", 5, 5), ["1", "5", "10", "15"], "B"),
    ]
    for number, (text, sides, held, answer) in enumerate(asked, 2401):
        folder = root / SOURCE.name / FOLDER / str(number)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "img_diagram.png").write_bytes(drawn.triangle(*map(str, sides)))
        row = {"id": number, "problem_text": text, "choices": held, "answer": answer}
        (folder / "data.json").write_text(json.dumps(row))


benchmark = Benchmark(
    name="intergps",
    title="InterGPS",
    modality="vision",
    rows=(Row("Table 1", "InterGPS (test)"),),
    sources=(SOURCE,),
    load=load,
    mini=mini,
    scorer=vqa.letter,
)
