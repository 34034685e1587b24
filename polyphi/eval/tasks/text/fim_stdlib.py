"""Code with a hole in the middle: a line cut out of Python's standard library, to be filled to the character."""

from polyphi.eval.task import Task
from polyphi.eval.tasks.text.fim import verbatim

task = Task(
    name="fim_stdlib",
    title="Filling a hole in library code",
    modality="text",
    corpus="fim",
    scorer=verbatim,
    only={"task": "fim_stdlib"},
    max_tokens=32,
    note="unseen modules; beyond a small model",
)
