"""The title of a slide, one of its points, how many there are, the value of a bar on it."""

from polyphi.eval.scorers import exact
from polyphi.eval.task import Task

task = Task(
    name="slide",
    title="Slides",
    modality="vision",
    corpus="charts",
    scorer=exact,
    only={"layout": "slide"},
    max_tokens=16,
    note="unseen fonts, new words",
)
