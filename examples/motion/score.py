"""Exact answers on held-out rows, by task: the modality, its adapter off, digits in its place, the commonest answer.

python examples/motion/score.py motion runs/motion/model runs/digits/model
"""

import json
import sys
from collections import Counter
from pathlib import Path

import polyphi
from polyphi.types.messages import Message
from polyphi.types.parts import Item
from polyphi.types.sampling import SamplingParams

FILE = Path(__file__).with_name("motion.py")


def answers(phi: polyphi.Phi, prompts: list[Message], adapter: str) -> list[str]:
    """The greedy answers to prompts."""
    sampling = SamplingParams(max_tokens=8)
    conversations = [[prompt] for prompt in prompts]
    completions = phi.generate_many(conversations, sampling=sampling, adapter=adapter)
    return [completion.text.strip() for completion in completions]


def main(data: Path, model: str, digits: str) -> None:
    """Print the table."""
    series, texts = (
        [json.loads(line) for line in (data / f"{name}.jsonl").read_text().splitlines()]
        for name in ("test", "digits_test")
    )
    tasks = [row["id"].partition("/")[0] for row in series]
    labels = [row["answer"] for row in series]
    phi = polyphi.load(model, modalities=[FILE])
    items = [Message.user(Item("motion", data / row["motion"]), row["question"]) for row in series]
    read_text = [Message.user(row["question"]) for row in texts]
    commonest = {
        task: Counter(a for a, t in zip(labels, tasks, strict=True) if t == task).most_common(1)[0][
            0
        ]
        for task in tasks
    }
    columns = {
        "motion": answers(phi, items, "auto"),
        "adapter off": answers(phi, items, "none"),
        "digits": answers(polyphi.load(digits), read_text, "digits"),
        "commonest": [commonest[task] for task in tasks],
    }
    print(f"{'task':10} {'rows':>5}  " + "  ".join(f"{name:>11}" for name in columns))
    for task in [*sorted(set(tasks)), "all"]:
        rows = [i for i, t in enumerate(tasks) if task in (t, "all")]
        right = [100 * sum(c[i] == labels[i] for i in rows) / len(rows) for c in columns.values()]
        print(f"{task:10} {len(rows):5}  " + "  ".join(f"{share:10.1f}%" for share in right))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
