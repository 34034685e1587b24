"""The pages of results, from synthetic rows: complete, accessible and escaped."""

import re
from html import unescape
from html.parser import HTMLParser
from typing import Any

import pytest

from polyphi_eval.benchmark import benchmarks
from polyphi_eval.report import figures, tables
from polyphi_eval.report.card import of_benchmarks
from polyphi_eval.report.paper import STATUSES
from polyphi_eval.report.paper import tables as report
from polyphi_eval.score import Measured, rows_of

VOID = {"meta", "link", "br", "img", "path", "rect", "circle"}


class Wellformed(HTMLParser):
    """Checks that tags are closed in order; collects external addresses, ids, and images without a label."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.external: list[str] = []
        self.unlabelled = 0
        self.ids: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        attributes = dict(attrs)
        self.ids += [attributes["id"]] if "id" in attributes else []
        for name in ("src", "href", "srcset", "action", "data"):
            address = attributes.get(name)
            if address and not address.startswith(("#", "data:")) and tag != "a":
                self.external.append(address)
        assert tag not in ("script", "iframe", "object")
        self.unlabelled += tag == "svg" and not attributes.get("aria-label")
        self.open += [] if tag in VOID else [tag]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    handle_startendtag = handle_starttag  # type: ignore[assignment]


def row(table: str, label: str, score: float | None, metric: str = "accuracy", **more: Any) -> Any:
    low, high = (score - 0.02, score + 0.02) if score is not None else (None, None)
    measured = Measured(
        table,
        label,
        more.pop("benchmark", label.split(maxsplit=1)[0].lower()),
        metric,
        more.pop("n", 100),
        score,  # type: ignore[arg-type]
        low,  # type: ignore[arg-type]
        high,  # type: ignore[arg-type]
        more.pop("status", "reproduced setting"),
    )
    return measured.as_dict() | {"limit": None} | more


ROWS = [
    row("Table 1", "ChartQA (test)", 0.8, lenient=0.83, benchmark="chartqa"),
    row("", "ChartQA, questions by people", 0.7, benchmark="chartqa"),
    row("Table 1", "DocVQA (test)", 0.9, status="server-scored", cut=4, errors=2),
    row("Table 2", "ShareGPT4o_AI2D", 0.7, status="substitute data", limit=50),
    row("Table 4", "OpenASR AMI", 0.1169, "wer", rtfx=31.4),
    row("Table 4", "OpenASR Tedlium", 0.05, "wer"),
    row("Table 6", "MT-Bench turn-1", 7.0, "mean", judge="gpt-4-0613"),
    row("Table 6", "MT-Bench turn-2", 6.0, "mean", judge="gpt-4-0613"),
    row("Table 6", "MT-Bench turn-1", 8.0, "mean", judge="other", status="judge differs", unread=3),
    row("Table 6", "AMI overall", None, "mean", judge="other", n=0, unread=7),
    row("Table 9", "MATH-500", 0.9, column="Phi-4-Mini (reasoning trained) 3.8B"),
    row("Table 12", "VPRR (lower better)", 0.3, column="Phi-4-Multimodal"),
    row("Table 7", "TruthfulQA MC2", 0.5, status="metric differs"),
    row("Table 7", "BoolQ", 0.5, status="part of the data", copy="4 of 3,270 rows"),
    row("", "Capitals", 0.5, benchmark="capitals"),
]
RESULTS = {
    "model": "a <b>model</b>",
    "date": "2026-11-26",
    "parameters": 5_600_000_000,
    "rows": ROWS,
    "skipped": {
        "blink": {"title": "BLINK", "rows": [["Table 1", "BLINK"]], "why": ["x.parquet <missing>"]}
    },
    "agreement": {"mt": {"a / b: points": {"n": 80.0, "equal": 0.5, "difference": -0.25}}},
}


@pytest.fixture(scope="module")
def page() -> str:
    return tables.page(RESULTS)


def cells(page: str, label: str) -> list[str]:
    """The cells of the first line of a label, as text."""
    lines = re.findall(r"(?s)<tr class=\"[a-z]*\">\s*<th scope=\"row\">(.*?)</tr>", page)
    line = next(line for line in lines if line.startswith(label))
    return [re.sub("<[^>]+>", " ", cell).strip() for cell in re.split("</th>|</td>", line)]


@pytest.mark.parametrize("make", [tables.page, figures.page])
def test_pages_are_whole_and_ask_nothing_of_others(make: Any) -> None:
    page = Wellformed(make(RESULTS))
    assert not page.external and not page.unlabelled
    assert len(set(page.ids)) == len(page.ids)
    assert "<b>model</b>" not in make(RESULTS)
    assert "http" not in re.sub(r"<title>.*?</title>", "", make(RESULTS))


@pytest.mark.parametrize("make", [tables.page, figures.page])
def test_pages_are_for_phones_and_for_the_dark(make: Any) -> None:
    page = make(RESULTS)
    assert "width=device-width" in page and "prefers-color-scheme: dark" in page


def test_colours_can_be_read_in_both_modes(page: str) -> None:
    light, dark = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", block))
        for block in re.findall(r"(?s):root \{(.*?)\}", page)
    )

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    def contrast(a: str, b: str) -> float:
        low, high = sorted((luminance(a), luminance(b)))
        return (high + 0.05) / (low + 0.05)

    for mode in (light, dark):
        for ink in ("ink", "soft", "faint", "good", "poor", "phi", "ours"):
            assert contrast(mode[ink], mode["card"]) >= 4.5, ink
        assert contrast(mode["soft"], mode["other-bg"]) >= 4.5
        for kind in ("good", "poor"):
            assert contrast(mode[kind], mode[f"{kind}-bg"]) >= 4.5
        for line in ("m1", "m2", "m3", "m4"):
            assert contrast(mode[line], mode["card"]) >= 3


def test_tables_have_all_rows_and_columns(page: str) -> None:
    for name in ("Table 1", "Table 4", "Table 6"):
        part = page.split(f"<h2>{name} ")[1].split("</table>", maxsplit=1)[0]
        for label in report()[name].labels:
            assert label in part.replace("&amp;", "&")
        for column in report()[name].columns:
            assert column in part or column == report()[name].phi
    assert cells(page, "OpenASR AMI")[1:] == [
        "11.69", "11.69", "+0.00", "9.69 to 13.69", "100", "reproduced setting",
        "13.90", "15.95", "56.10", "15.24", "21.58", "57.76", "",
    ]  # fmt: skip


def test_numbers_are_in_the_reports_unit_and_place(page: str) -> None:
    assert cells(page, "ChartQA (test)")[1:4] == ["80.0", "81.4", "-1.4"]
    assert cells(page, "MATH-500")[1:4] == ["90.0", "90.4", "-0.4"]
    assert cells(page, "VPRR (lower better)")[1:4] == ["30.0", "26.4", "+3.6"]
    assert cells(page, "MT-Bench AVG")[1:4] == ["6.50", "7.05", "-0.55"]
    assert cells(page, "SQQA MT-Bench 1-10")[1] == "6.50"


def test_remarks_are_below_a_row(page: str) -> None:
    assert "lenient score 83.0" in cells(page, "ChartQA (test)")[0]
    assert "4 answers cut" in cells(page, "DocVQA (test)")[0]
    assert "2 not answered" in cells(page, "DocVQA (test)")[0]
    assert "RTFx 31.4" in cells(page, "OpenASR AMI")[0]
    assert "at most 50 a row" in cells(page, "ShareGPT4o_AI2D")[5]
    assert "judge: gpt-4-0613" in cells(page, "MT-Bench turn-1")[0]
    assert "7 without points" in cells(page, "AMI overall")[0]
    assert cells(page, "AMI overall")[1:4] == ["–", "6.29", "–"]


def test_rows_without_a_number_have_a_reason(page: str) -> None:
    assert cells(page, "Golden3 overall")[6] == "private"
    assert cells(page, "BLINK")[6] == "left out"
    assert cells(page, "MMMU (val)")[6] == "not measured"
    assert cells(page, "Average")[6] == "rows are missing"
    assert "x.parquet &lt;missing&gt;" in page
    assert "rank correlation" in page and "-0.25" in page


def test_statuses_are_explained_where_they_are_used(page: str) -> None:
    assert all(text in unescape(page) for text in STATUSES.values())
    alone = tables.page({"model": "m", "date": "d", "rows": ROWS[:1]})
    assert STATUSES["judge differs"] not in unescape(alone)


def test_numbers_outside_the_report_stand_with_their_benchmark(page: str) -> None:
    first = page.split("<h2>Table 1 ")[1].split("</table>", maxsplit=1)[0]
    assert first.index("ChartQA (test)") < first.index("ChartQA, questions by people")
    assert first.index("ChartQA, questions by people") < first.index("DocVQA (test)")
    other = page.split("<h2>Other benchmarks")[1].split("</table>", maxsplit=1)[0]
    assert "Capitals" in other


def test_differences_are_coloured_only_where_they_can_be_told_apart() -> None:
    def colour(**more: Any) -> str:
        measured = row("Table 4", "OpenASR AMI", 0.1, "wer", **more)
        matches = re.findall(
            r'<span class="(\w*)">-1.69', tables.page({**RESULTS, "rows": [measured]})
        )
        return str(matches[0])

    assert colour() == ""  # the interval reaches from 8 to 12
    assert colour(low=0.099, high=0.101) == "good"  # fewer errors
    assert colour(low=0.099, high=0.101, status="substitute data") == "faint"


def test_markdown_has_our_rows_and_averages() -> None:
    text = tables.markdown(ROWS)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in lines}) == 1
    assert (
        "| ChartQA (test) | 80.0 | 81.4 | -1.4 | 78.0 to 82.0 | 100 | reproduced setting; " in text
    )
    assert "MT-Bench AVG" in text and "BLINK" not in text
    broken = tables.markdown([row("", "a | b\nc", 0.5, benchmark="x")])
    assert "a / b c" in broken


# Figures ------------------------------------------------------------------------------------------


def test_a_row_with_another_metric_says_what_it_measures() -> None:
    """The report's row is MC2, a share of probability; ours the letter of MC1's true choice."""
    truthfulqa = next(b for b in benchmarks() if b.name == "truthfulqa")
    line = {"meta": {"form": "mc1"}, "value": 1.0, "parts": {}, "extracted": "A", "error": None}
    line |= {"cut": False, "sound_seconds": 0.0, "seconds": 0.0}
    (measured,) = rows_of(truthfulqa, [line])
    assert measured.status == "metric differs" and measured.label == "TruthfulQA MC2"
    content = {**RESULTS, "rows": [measured.as_dict()]}
    text = tables.markdown(content["rows"])
    assert "| TruthfulQA MC2 (ours: MC1, by letter) |" in text and "metric differs" in text
    assert "TruthfulQA MC2 (ours: MC1, by letter)" in unescape(tables.page(content))
    assert not of_benchmarks(content)["results"]  # no such number is pushed to the Hub


def test_figures_say_in_words_what_they_show() -> None:
    page = figures.page(RESULTS)
    words = re.findall(r'aria-label="([^"]+)"', page)
    assert any("OCRBench" in w and "Phi-4-Multimodal 5.6B 84.4" in w for w in words)
    assert any("MT-Bench" in w and "a &lt;b&gt;model&lt;/b&gt; 6.50" in w for w in words)


def test_bars_are_in_order_and_to_scale() -> None:
    own = figures.own_scores(RESULTS)
    lengths = [bar.length for bar in figures.bars("Table 3", "ASR WER OpenASR", own).drawing]
    assert len(lengths) == 6 and lengths == sorted(lengths) and lengths[-1] == figures.LENGTH
    assert lengths[0] == pytest.approx(figures.LENGTH * 6.14 / 20.7)
    drawing = figures.bars("Table 3", "SQQA MT-Bench 1-10", own).drawing
    (ours,) = [bar for bar in drawing if bar.css == "ours"]
    low, high = ours.interval
    assert low <= ours.length <= high
    assert not any(bar.interval for bar in drawing if bar is not ours)
    page = figures.page(RESULTS)
    assert 'class="whisker"' in page and 'class="bar ours"' in page


def test_bars_of_other_data_are_marked() -> None:
    own = figures.own_scores(RESULTS)
    marked = {
        label: [bar.name for bar in figures.bars(table, label, own).drawing if " *" in bar.name]
        for table, label in (("Table 2", "ShareGPT4o_AI2D"), ("Table 6", "MT-Bench turn-1"))
    }
    assert marked == {"ShareGPT4o_AI2D": ["a <b>model</b> *"], "MT-Bench turn-1": []}
    assert "* marks scores" in figures.page(RESULTS)


def test_the_size_of_a_model_is_in_its_name() -> None:
    assert figures.billions("Phi-4-Mini (reasoning trained) 3.8B") == 3.8
    assert figures.billions("WhisperV3 1.5B") == 1.5
    assert figures.billions("GPT-4o 2024-11-20") is None


def test_our_model_is_drawn_where_its_size_is_known() -> None:
    rows = [row("Table 2", label, 0.7, benchmark="b") for label in report()["Table 2"].labels[:4]]
    results = {**RESULTS, "rows": rows}
    assert "dot ours" in figures.page(results)
    assert "dot ours" not in figures.page({**results, "parameters": None})
    assert 'class="shape ours"' in figures.page(results)


def test_figures_of_the_report_alone() -> None:
    page = figures.page({"model": "nothing", "date": "", "rows": []})
    Wellformed(page)
    assert "bar ours" not in page and "bar phi" in page
