"""Charts with exact answers: bars, lying bars, pies and lines; the highest, a bar's value, the whole table.

Held out for the test split: fonts; every chart's numbers are drawn anew.
"""

from collections.abc import Iterator

from datatrove.pipeline.base import PipelineStep

from polyphi.corpora.image_qa import chart as bars
from polyphi.corpora.image_qa import pick_values
from polyphi.curate import charts
from polyphi.curate.corpus import Corpus, Work
from polyphi.curate.decontaminate import held_out
from polyphi.curate.images import SIDE
from polyphi.curate.lexicon import COLOURS
from polyphi.curate.scenes import Made, Scene, asked, samples
from polyphi.data.shards import Sample

LETTERS = "ABCDEFG"


def labelled(scene: Scene) -> Made:
    """The value of a bar named by the letter below it, or before it where bars lie."""
    labels = scene.rng.sample(LETTERS, scene.rng.choice((3, 4)))
    value = scene.answer(range(1, charts.LARGEST + 1))
    values = [value]
    while len(values) < len(labels):
        values.append(
            scene.rng.choice([v for v in range(1, charts.LARGEST + 1) if v not in values])
        )
    order = scene.rng.sample(range(len(labels)), len(labels))
    draw = scene.rng.choice((charts.columns, charts.columns, charts.rows))
    drawn = draw(scene, [labels[i] for i in order], [values[i] for i in order], scene.size())
    return asked(drawn.picture, f"What is the value of {labels[0]}?", drawn.value(labels[0]))


def table(scene: Scene) -> Made:
    """Every bar's label and value."""
    letters = scene.rng.random() < 0.4
    labels = scene.rng.sample(LETTERS if letters else list(COLOURS), scene.rng.choice((2, 3)))
    draw = scene.rng.choice((charts.columns, charts.columns, charts.rows))
    drawn = draw(scene, labels, pick_values(scene, len(labels)), scene.size())
    return asked(
        drawn.picture, scene.rng.choice(("Read the chart.", "List the values.")), drawn.table()
    )


def slices(scene: Scene) -> Made:
    """The largest or the smallest slice of a pie."""
    largest = scene.answer((True, False))
    label = scene.answer(list(COLOURS), every=2)
    others = scene.rng.sample([c for c in COLOURS if c != label], scene.rng.choice((2, 3)))
    values = [scene.rng.randint(3, 5) for _ in others]
    values.insert(0, max(values) + scene.rng.randint(2, 4) if largest else 1)
    order = scene.rng.sample(range(len(values)), len(values))
    drawn = charts.pie(scene, [[label, *others][i] for i in order], [values[i] for i in order])
    return asked(drawn.picture, f"Which slice is {'largest' if largest else 'smallest'}?", label)


def trend(scene: Scene) -> Made:
    """Whether a line goes up or down."""
    answer = scene.answer(("up", "down"))
    count = scene.rng.choice((3, 4, 5))
    values = sorted(scene.rng.sample(range(1, charts.LARGEST + 1), count), reverse=answer == "down")
    drawn = charts.line(scene, values, (SIDE, SIDE))
    return asked(drawn.picture, "Does the line go up or down?", answer)


MAKERS = {
    "chart_bars": (35, bars),
    "chart_value": (20, labelled),
    "chart_pie": (15, slices),
    "chart_line": (8, trend),
    "chart_table": (22, table),
}
"""Task -> (share of the training set, maker)."""


def plots(work: Work) -> Iterator[tuple[str, Sample]]:
    return samples("charts", work, MAKERS, tests=("chart_value", "chart_pie", "chart_line"))


def steps(work: Work) -> list[PipelineStep]:
    """Whole pictures: a drawing that is a part of another one isn't a leak."""
    return [*held_out(work, "charts", ways=("same bytes", "whole picture"))]


corpus = Corpus("charts", build=plots, steps=steps)
