"""BigCodeBench (report, Table 8): 1,140 tasks that use 139 libraries, given as a function's start or in words.

Problems that need only the standard library are judged by this Python; the others by an environment with the
benchmark's pinned packages, which needs Python 3.10 (or set POLYPHI_BIGCODEBENCH_PYTHON to the interpreter of an
existing environment, such as the one in the benchmark's image). Scores are "calibrated", as in EvalPlus' successor: the
task's imports are put in front of every answer.

Tests replace parts of the code's process and so run in it (trial.py says what that means).
"""

import ast
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from polyphi.data.sample import Sample
from polyphi.types.messages import Message
from polyphi_eval import programs
from polyphi_eval.benchmark import Benchmark, Score, TableRow
from polyphi_eval.environments import Environment
from polyphi_eval.services import sandbox
from polyphi_eval.sources import BenchmarkSource, Data

SOURCE = BenchmarkSource(
    "bigcode/bigcodebench",
    ("data/v0.1.3-*.parquet",),
    "the Hub",
    fields=("task_id", "complete_prompt", "instruct_prompt", "canonical_solution", "test", "libs"),
    rows=1140,
    licence="Apache-2.0",
)
PYTHON = "POLYPHI_BIGCODEBENCH_PYTHON"
# The benchmark's requirements-eval.txt at commit 158327f, without duplicates and its typo "selenium==4.15.".
PINS = """
beautifulsoup4==4.8.2 blake3==0.4.1 chardet==5.2.0 cryptography==38.0.0 datetime==5.5 Django==4.2.7
dnspython==2.6.1 docxtpl==0.11.5 Faker==20.1.0 flask_login==0.6.3 flask_restful==0.3.10 flask_wtf==1.2.1
Flask-Mail==0.9.1 flask==3.0.3 folium==0.16.0 gensim==4.3.2 geopandas==0.13.2 geopy==2.4.1 holidays==0.29
keras==2.11.0 Levenshtein==0.25.0 librosa==0.10.1 lxml==4.9.3 matplotlib==3.7.0 mechanize==0.4.9
natsort==7.1.1 networkx==2.6.3 nltk==3.8 numba==0.55.0 numpy==1.21.2 opencv-python-headless==4.9.0.80
openpyxl==3.1.2 pandas==2.0.3 Pillow==10.3.0 prettytable==3.10.0 psutil==5.9.5 pycryptodome==3.14.1
pyfakefs==5.4.1 pyquery==1.4.3 pytesseract==0.3.10 pytest==8.2.0 python_http_client==3.3.7
python-dateutil==2.9.0 python-docx==1.1.0 python-Levenshtein-wheels pytz==2023.3.post1 PyYAML==6.0.1
requests_mock==1.11.0 requests==2.31.0 rsa==4.9 scikit-image==0.18.0 scikit-learn==1.3.1 scipy==1.7.2
seaborn==0.13.2 selenium==4.15.0 sendgrid==6.11.0 shapely==2.0.4 soundfile==0.12.1 statsmodels==0.14.0
sympy==1.12 tensorflow==2.11.1 textblob==0.18.0 texttable==1.7.0 Werkzeug==3.0.1 wikipedia==1.4.0
wordcloud==1.9.3 wordninja==2.0.0 WTForms==3.1.2 xlrd==2.0.1 xlwt==1.3.0 xmltodict==0.13.0
"""
ENVIRONMENT = Environment("bigcodebench", tuple(PINS.split()), interpreter="python3.10")
LIMITS = sandbox.Limits(
    seconds=240.0,
    cpu_seconds=240,
    memory_bytes=8 << 30,
    file_bytes=256 << 20,
    disk_bytes=512 << 20,
    processes=64,
    open_files=256,
)
SECONDS, STDLIB_SECONDS = 60.0, 1.0
"""Processor time for imports (such as TensorFlow) and tests; the same for tasks that need only the standard library."""
VARIANTS = ("complete", "instruct")


def load(data: Data) -> Iterator[Sample]:
    for row in data.rows(SOURCE):
        for variant in VARIANTS:
            prompt = row[f"{variant}_prompt"].strip()
            prompt = f"```\n{prompt}\n```\n" if variant == "complete" else f"{prompt}\n"
            yield SOURCE.sample(
                f"{row['task_id']}-{variant}",
                Message.user(f"{programs.ASK}\n{prompt}"),
                programs.fenced(row["complete_prompt"] + row["canonical_solution"]),
                {
                    "kind": variant,
                    "entry": row["entry_point"],
                    "prompt": row["complete_prompt"],
                    "code_prompt": row["code_prompt"],
                    "tests": row["test"],
                    "libraries": _libraries(row),
                },
            )


def _libraries(row: Mapping[str, Any]) -> list[str]:
    return sorted(map(str, ast.literal_eval(row["libs"]) if row["libs"] else ()))


@cache
def _python() -> Path:
    path = os.environ.get(PYTHON)
    return Path(path) if path else ENVIRONMENT.python()


def _third_party(libraries: Sequence[str]) -> bool:
    return not set(libraries) <= sys.stdlib_module_names


def trial(code: str, sample: Sample) -> programs.Trial:
    meta = sample.meta
    third_party = _third_party(meta["libraries"])
    tests = {
        "kind": "unittest",
        "tests": meta["tests"],
        "count": sum(
            node.name.startswith("test")
            for node in ast.walk(programs.parse(meta["tests"]) or ast.Module([], []))
            if isinstance(node, ast.FunctionDef)
        ),
        "seconds": SECONDS if third_party else STDLIB_SECONDS,
    }
    python = _python() if third_party else None
    return programs.Trial(code, tests, f"{meta['code_prompt']}\n    pass\n", LIMITS, python)


def score_many(pairs: Sequence[tuple[Sequence[str], Sample]]) -> list[Score]:
    return programs.scores(pairs, trial, programs.strict_program, programs.lenient_programs)


def unable(data: Data) -> str | None:
    if os.environ.get(PYTHON) or ENVIRONMENT.unavailable() is None:
        return programs.unavailable()
    third_party = any(_third_party(_libraries(row)) for row in data.rows(SOURCE, columns=["libs"]))
    return programs.unavailable() or (
        f"{ENVIRONMENT.unavailable()}, and {PYTHON} is unset" if third_party else None
    )


benchmark = Benchmark(
    name="bigcodebench",
    title="BigCodeBench",
    modality="text",
    rows=(
        TableRow("Table 8", "BigCodeBench Completion", {"kind": "complete"}),
        TableRow("Table 8", "BigCodeBench Instruct", {"kind": "instruct"}),
    ),
    sources=(SOURCE,),
    load=load,
    score_many=score_many,
    max_tokens=1280,
    unavailable=unable,
)
