"""IFEval's checks of instructions, and their prerequisites."""

import hashlib
from pathlib import Path
from typing import Any

from polyphi.data.shards import Sample
from polyphi.types.messages import Message
from polyphi_eval.benchmark import LENIENT
from polyphi_eval.benchmarks.text import ifeval
from polyphi_eval.sources import Data

MODEL = {
    "abbrev_types.txt": "92a3e070f43d9b4c5534758ca40ad7343b04e7e29bfe0c2eb658a39445a4f779",
    "collocations.tab": "8e2da1225e4dd2cc9dba261ee231ccb134859e21b46006e7f472c5ee269af0cf",
    "ortho_context.tab": "4bbcca25ed3d3f06c02402abf8419b9f033b8adc06e7b482eca4e45f81a5dc4c",
    "sent_starters.txt": "f3f8535483e1dba487241b764945168123bca3209a9645e59acd1225dc76edac",
}


def score(answer: str, *instructions: tuple[str, dict[str, Any]]) -> tuple[float, float]:
    document = {
        "key": 1,
        "prompt": "?",
        "instruction_id_list": [name for name, _ in instructions],
        "kwargs": [settings for _, settings in instructions],
    }
    meta = {"task": "ifeval", "document": document}
    sample = Sample("i", (Message.assistant(""),), "here", "CC0-1.0", meta)
    (result,) = ifeval.score_many([([answer], sample)])
    return result.value, result.parts[LENIENT]


GERMAN = ("language:response_language", {"language": "de"})


def test_language_detection_is_deterministic() -> None:
    assert len({score("Otto Anna", GERMAN) for _ in range(8)}) == 1


def test_the_sentence_model_is_the_published_one() -> None:
    folder = ifeval.NLTK_DATA / "tokenizers/punkt_tab/english"
    hashes = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}
    assert hashes == MODEL


def test_public_rows_have_no_reference(tmp_path: Path) -> None:
    path = tmp_path / "google/IFEval/ifeval_input_data.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(
        '{"key": 1, "prompt": "Use no commas.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]}\n'
        '{"key": 2, "prompt": "Be loud.", "instruction_id_list": ["change_case:english_capital"], "kwargs": [{}]}\n'
    )
    first, _ = ifeval.load(Data(tmp_path))
    assert (first.prompt[0].text, first.answer) == ("Use no commas.", "")
    assert ifeval.benchmark.params(first).max_tokens == 1280
