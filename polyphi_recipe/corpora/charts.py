"""Charts with exact answers: vertical and horizontal bars, pies and lines; the highest, a value, all values. Tables: a
cell, the highest of a column, all cells. Slides: their title, points and chart.

Fonts are held out for the test split; the numbers of each image are random.
"""

import math
from collections.abc import Iterator

from polyphi.data.shards import Sample
from polyphi_recipe.corpora.image_qa import chart as bars
from polyphi_recipe.corpora.image_qa import pick_values
from polyphi_recipe.dedup.decontaminate import against
from polyphi_recipe.pipeline.corpus import Corpus, Work
from polyphi_recipe.synthetic import charts, slides, tables
from polyphi_recipe.synthetic.images import SIDE
from polyphi_recipe.synthetic.scenes import Scene, SceneSample, fresh, image_question, samples
from polyphi_recipe.text.lexicon import COLOURS, NOUNS

LETTERS = "ABCDEFG"
ROW_NAMES = tuple(noun for noun in NOUNS if len(noun) <= 5)
"""Names of table rows, short because rows are small."""
MOST_TIMES = 3
"""[ours] Factor of a table's rows and of its columns in large images, at most."""
POINT_NOUNS = tuple(noun for noun in NOUNS if len(noun) <= 6)
ORDINALS = ("first", "second", "third", "last")


def labelled(scene: Scene) -> SceneSample:
    """Return a question for the value of a bar that has a letter as its label."""
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
    question = f"What is the value of {labels[0]}?"
    return image_question(drawn.image, question, drawn.value(labels[0]), layout="chart")


def table(scene: Scene) -> SceneSample:
    """Return a question for all labels and values of a bar chart."""
    letters = scene.rng.random() < 0.4
    labels = scene.rng.sample(LETTERS if letters else list(COLOURS), scene.rng.choice((2, 3)))
    draw = scene.rng.choice((charts.columns, charts.columns, charts.rows))
    drawn = draw(scene, labels, pick_values(scene, len(labels)), scene.size())
    return image_question(
        drawn.image, scene.rng.choice(("Read the chart.", "List the values.")), drawn.table()
    )


def slices(scene: Scene) -> SceneSample:
    """Return a question for the largest or the smallest slice of a pie."""
    largest = scene.answer((True, False))
    label = scene.answer(list(COLOURS), every=2)
    others = scene.rng.sample([c for c in COLOURS if c != label], scene.rng.choice((2, 3)))
    values = [scene.rng.randint(3, 5) for _ in others]
    values.insert(0, max(values) + scene.rng.randint(2, 4) if largest else 1)
    order = scene.rng.sample(range(len(values)), len(values))
    drawn = charts.pie(scene, [[label, *others][i] for i in order], [values[i] for i in order])
    question = f"Which slice is {'largest' if largest else 'smallest'}?"
    return image_question(drawn.image, question, label, layout="chart")


def trend(scene: Scene) -> SceneSample:
    """Return a question whether a line goes up or down."""
    answer = scene.answer(("up", "down"))
    count = scene.rng.choice((3, 4, 5))
    values = sorted(scene.rng.sample(range(1, charts.LARGEST + 1), count), reverse=answer == "down")
    drawn = charts.line(scene, values, (SIDE, SIDE))
    return image_question(drawn.image, "Does the line go up or down?", answer, layout="chart")


def _table(scene: Scene, largest: int) -> tables.DrawnTable:
    """Draw a table of two or three columns and two to four rows, in large images up to `MOST_TIMES` as many; the
    numbers of a column are different."""
    crops = int(scene.crops())
    times = scene.rng.randint(1, min(MOST_TIMES, math.isqrt(crops))) if crops > 1 else 1
    columns = LETTERS[: times * scene.rng.choice((2, 2, 3))]
    rows = scene.rng.sample(ROW_NAMES, min(largest, times * scene.rng.choice((2, 3, 4))))
    numbers = [scene.rng.sample(range(1, largest + 1), len(rows)) for _ in columns]
    wide, high = (max(times * SIDE, side) for side in scene.size())
    return tables.draw(scene, columns, rows, list(zip(*numbers, strict=True)), (wide, high))


def cell(scene: Scene) -> SceneSample:
    """Return a question for a cell of a table, or for the row with the highest number of a column."""
    form, drawn = scene.answer(("value", "highest")), _table(scene, largest=20)
    column = scene.rng.choice(drawn.columns)
    if form == "highest":
        question = f"Which row has the highest {column}?"
        return image_question(
            drawn.image, question, drawn.highest(column), form=form, layout="table"
        )
    row = scene.rng.choice(drawn.rows)
    question = f"What is the {column} of {row}?"
    return image_question(drawn.image, question, drawn.cell(row, column), form=form, layout="table")


def read_table(scene: Scene) -> SceneSample:
    """Return a question for the text of a whole table."""
    drawn = _table(scene, largest=9)
    return image_question(drawn.image, "Read the table.", drawn.text(), layout="table")


def slide(scene: Scene) -> SceneSample:
    """Return a question for the title of a slide, one of its points, their number, or a value of its chart."""
    form = scene.answer(("title", "point", "count", "chart"))
    count = scene.answer((2, 3, 4), every=4)
    points = [
        f"{scene.rng.choice(list(COLOURS))} {noun}" for noun in scene.rng.sample(POINT_NOUNS, count)
    ]
    title = scene.rng.choice(list(NOUNS)).capitalize()
    labels = LETTERS[: scene.rng.choice((2, 3))]
    plot = None
    if form == "chart" or scene.rng.random() < 0.15:
        values = pick_values(scene, len(labels))
        size = (SIDE - 4, SIDE - 30)
        plot = charts.columns(scene.part(size, (2 * SIDE, SIDE)), labels, values, size)
    drawn = slides.draw(scene, title, points, plot.image if plot else None)
    question: str
    answer: object
    if form == "title":
        question, answer = "What is the title?", drawn.title
    elif form == "count":
        question, answer = "How many points are there?", len(drawn.points)
    elif form == "point":
        ordinal = scene.rng.choice((*ORDINALS[: count - 1], ORDINALS[-1]))
        question = f"What is the {ordinal} point?"
        answer = drawn.points[-1 if ordinal == "last" else ORDINALS.index(ordinal)]
    else:
        assert plot is not None
        label = scene.rng.choice(labels)
        question, answer = f"What is the value of {label}?", plot.value(label)
    return image_question(drawn.image, question, answer, form=form, layout="slide")


MAKERS = {
    "chart_bars": (35, bars),
    "chart_value": (20, labelled),
    "chart_pie": (15, slices),
    "chart_line": (8, trend),
    "chart_table": (22, table),
    "table_cell": (4, cell),
    "table_text": (2, read_table),
    "slide": (4, slide),
}
"""Task -> (share of the training set, maker)."""


def plots(work: Work) -> Iterator[tuple[str, Sample]]:
    tests = ("chart_value", "chart_pie", "chart_line", "table_cell", "slide")
    return samples("charts", work, MAKERS, tests=tests)


# Whole images: a drawing that is a part of another one isn't a leak.
corpus = Corpus(
    "charts",
    build=plots,
    steps=against("charts", ways=("same bytes", "whole picture")),
    fresh=lambda work: fresh("charts", work, MAKERS),
)
