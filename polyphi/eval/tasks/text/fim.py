"""Code with a hole in the middle: one-line functions by template. It must be filled right to the character."""

from polyphi.data.shards import Sample
from polyphi.eval.task import Score, Task


def verbatim(answer: str, sample: Sample) -> Score:
    """Equal but for white space: operators and brackets, which text scorers leave out, are the point of code."""
    found, wanted = ("".join(text.split()) for text in (answer, sample.answer))
    return Score(float(found == wanted), answer.strip())


task = Task(
    name="fim",
    title="Filling a hole in code",
    modality="text",
    corpus="fim",
    scorer=verbatim,
    only={"task": "fim"},
    max_tokens=24,
    note="unseen operands and names",
)
