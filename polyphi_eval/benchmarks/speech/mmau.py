"""MMAU (report, Table 6): questions with options about speech, sound and music; answers must have the option's words.

The report's numbers are of the test split (9,000), whose answers only its authors have: a run on its files writes
`mmau.submission.json` for their server. Here test-mini (1,000) is scored. The report used the questions of January
2025; about a quarter of them were revised in May 2025 (the repository's history has the earlier file, 7468292).
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi.types.parts import Text
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, TableRow
from polyphi_eval.scorers import references
from polyphi_eval.sources import BenchmarkSource, Data, audio_of
from polyphi_eval.text.normalization import normalize

TASKS = ("music", "sound", "speech")
SOURCE = BenchmarkSource(
    "MMAU",
    ("mmau-test-mini.json", "test-mini-audios/*"),
    "https://github.com/Sakshi113/MMAU (the questions; its page links to the recordings, test-mini-audios and "
    "test-audios)",
    fields=("id", "audio_id", "question", "choices", "answer", "task"),
    rows=1000,
    hub=False,
    licence="Apache-2.0",
)
INSTRUCTION = "Answer with the words of one of these options."


def load(data: Data) -> Iterator[Sample]:
    """test-mini, and the test split if the data have its files."""
    root = data.folder(SOURCE)
    for name in ("mmau-test-mini.json", "mmau-test.json"):
        hidden = name == "mmau-test.json"
        if hidden and not (root / name).exists():
            continue
        for row in data.rows(SOURCE, name):
            options = [str(choice) for choice in row["choices"]]
            text = "\n".join([row["question"], *(f"- {o}" for o in options), INSTRUCTION])
            yield SOURCE.sample(
                f"mmau-{row['id']}",
                Message.user(audio_of(row["audio_id"].removeprefix("./"), root), Text(text)),
                "" if hidden else str(row["answer"]),
                {
                    "hidden": hidden,
                    "task": row["task"],
                    "options": options,
                    **({"row": row} if hidden else {}),
                },
            )


def string_match(answer: str, sample: Sample) -> Score:
    """Whether the answer has all words of the right option and none that only a wrong one has (MMAU's own rule, which
    can't distinguish options with the same words in another order). Lenient: the right option is the only one that the
    answer has as a phrase."""
    words, reference, options = _words(answer), references(sample)[0], sample.meta["options"]
    strict = float(_matches(reference, words, options))
    text, plain = f" {normalize(answer)} ", {option: f" {normalize(option)} " for option in options}
    present = [o for o in options if plain[o] in text]
    longest = [o for o in present if not any(plain[o] in plain[p] and o != p for p in present)]
    accepted = ", ".join(o for o in options if _matches(o, words, options))
    return Score(strict, accepted, {LENIENT: max(strict, float(longest == [reference]))})


def _matches(option: str, words: set[str], options: Sequence[str]) -> bool:
    own = _words(option)
    others = set[str]().union(*(_words(o) - own for o in options))
    return bool(words) and own <= words and not words & others


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def submission_row(sample: Sample, answer: str) -> dict[str, Any]:
    """A row for MMAU's server, with the answer under both field names that the server has used."""
    return {**sample.meta["row"], "model_prediction": answer, "model_output": answer}


benchmark = Benchmark(
    name="mmau",
    title="MMAU",
    modality="speech",
    rows=tuple(TableRow("Table 6", f"MMAU {t}", {"hidden": False, "task": t}) for t in TASKS),
    sources=(SOURCE,),
    load=load,
    scorer=string_match,
    submission=submission_row,
    max_tokens=128,
    status="server-scored",
    note="ours: test-mini; the report's: the test split, scored by its authors' server",
)
