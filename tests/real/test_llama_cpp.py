"""A real language model in llama.cpp: a GGUF in float32 that polyphi writes has the same ids and answers there."""

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from polyphi.api import Phi
from polyphi.checkpoints.gguf_export import write_gguf
from polyphi.checkpoints.read import load_checkpoint
from polyphi.types.messages import Message
from polyphi.types.sampling import SamplingParams
from tests.real.prompts import CONVERSATIONS, PROMPTS

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv/.peers/llama/bin/python"
TOKENS = 64
NEAR = 1e-3
"""Where the two best logits are nearer than this, float32 sums in other orders may choose either."""


@pytest.fixture(scope="module")
def llama_cpp(folder: Path, phi: Phi, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What llama.cpp makes of the requests: (ids or answers by name, logits of answers)."""
    if not PYTHON.exists():
        pytest.skip("llama.cpp isn't installed: `make .venv/.llama`")
    work = tmp_path_factory.mktemp("llama_cpp")
    write_gguf(load_checkpoint(folder), work / "phi.gguf", folder)
    requests = [
        *({"name": f"ids {n}", "kind": "tokenization", "text": t} for n, t in enumerate(PROMPTS)),
        *(
            {"name": f"conversation {n}", "kind": "conversation", "text": json.dumps(c)}
            for n, c in enumerate(CONVERSATIONS)
        ),
        *(
            {"name": f"answer {n}", "kind": "text", "adapter": "", "ids": phi.tokenize(messages)}
            for n, messages in enumerate(prompts())
        ),
    ]
    text = json.dumps({"requests": requests, "max_tokens": TOKENS})
    (work / "requests.json").write_text(text)
    script = ROOT / "tests/release/exports_llama.py"
    done = subprocess.run(
        [PYTHON, script, "gguf", work], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    return report["answers"], np.load(report["logits"])


def prompts() -> list[list[Message]]:
    plain = [[Message.user(text)] for text in PROMPTS]
    return plain + [[Message.system("Answer briefly."), *messages] for messages in plain]


def test_ids(phi: Phi, llama_cpp: Any) -> None:
    for number, text in enumerate(PROMPTS):
        assert phi.tokenizer.encode(text) == llama_cpp[0][f"ids {number}"]
    for number, conversation in enumerate(CONVERSATIONS):
        messages = [Message(m["role"], m["content"]) for m in conversation]
        assert phi.tokenize(messages) == llama_cpp[0][f"conversation {number}"]


def test_greedy_answers(phi: Phi, llama_cpp: Any) -> None:
    """Equal up to a token where the two best logits nearly tie; the end of an answer counts as a token."""
    greedy = SamplingParams(max_tokens=TOKENS, temperature=0)
    answers = phi.generate_many(prompts(), sampling=greedy)
    for number, answer in enumerate(answers):
        theirs = llama_cpp[0][f"answer {number}"]
        logits = llama_cpp[1][f"answer {number}"]
        ours = [token for token in answer.tokens if token not in phi.tokenizer.eos_ids]
        at = next(
            (n for n, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
            min(len(ours), len(theirs)),
        )
        if at == len(ours) == len(theirs):
            continue
        best = np.sort(logits[at])
        assert best[-1] - best[-2] < NEAR, (number, at)
