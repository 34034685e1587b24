"""The report page's sections as HTML, each drawn from the report (`page.collect`) alone.

>>> html = render(report, media)          # media: SHA-256 -> bytes, for the samples
"""

import base64
import html
import string
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polyphi.eval.report import heldout as tables
from polyphi.eval.report import tables as beside
from polyphi.recipe.report import drawing

Report = Mapping[str, Any]
SEEN = ("samples", "tokens", "crops", "frames")
CHECKED = (
    "SHA-256 of every frozen tensor before and after its stage, and of the fp32 logits of fixed text prompts before "
    "and after each stage that adds a modality."
)


def text(value: object) -> str:
    """Any value, safe inside HTML."""
    return html.escape(str(value))


def count(n: float | None) -> str:
    """A count as people say it: 3.8B, 440M, 12.3k."""
    if n is None:
        return "–"
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:g}"


def time(seconds: float | None) -> str:
    if not seconds:
        return "–"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def memory(n: float | None) -> str:
    return f"{n / 1e9:.1f} GB" if n else "–"


def losses(stage: Report) -> str:
    return f"{stage['loss_first']:.3g} → {stage['loss_last']:.3g}" if stage["curve"] else "–"


def speed(stage: Report) -> str:
    """What a stage learned from in a second."""
    units = {"tokens": "tokens/s", "samples": "samples/s", "crops": "crops/s"}
    shown = [
        f"{count(round(stage['speed'][k]))} {u}" for k, u in units.items() if k in stage["speed"]
    ]
    if heard := stage["speed"].get("audio_seconds"):
        shown.append(f"{heard:.0f} s of audio/s")
    return ", ".join(shown) or "–"


def waste(stage: Report) -> str:
    """Padding: of attention's rows, and of the crops' patches."""
    padded, blank = stage["waste"]["padding"], stage["waste"]["blank"]
    if padded is None:
        return "–"
    return f"{padded:.1%}" + (f", patches {blank:.1%}" if blank else "")


def same(equal: bool, yes: str, no: str) -> str:
    return f'<span class="chip same">{yes}</span>' if equal else f'<span class="chip">{no}</span>'


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], classes: Iterable[str] = ()) -> str:
    """A table in a card. A head that starts with ">" is right-aligned, with its column; cells are HTML. `classes`
    gives each row's CSS class."""
    kinds = [' class="n"' if h.startswith(">") else "" for h in heads]
    top = "".join(f"<th{k}>{h.removeprefix('>')}</th>" for h, k in zip(heads, kinds, strict=True))
    body, names = [], iter(classes)
    for row in rows:
        cells = "".join(f"<td{k}>{c}</td>" for c, k in zip(row, kinds, strict=True))
        name = next(names, "")
        body.append(f'<tr class="{name}">{cells}</tr>' if name else f"<tr>{cells}</tr>")
    head = f"<thead><tr>{top}</tr></thead>" if any(heads) else ""
    return f'<div class="card scroll"><table>{head}<tbody>{"".join(body)}</tbody></table></div>'


def section(title: str, about: str, content: str) -> str:
    return f'<h2>{title}</h2><p class="about">{about}</p>{content}'


def render(report: Report, media: Mapping[str, bytes]) -> str:
    """The page as HTML: no script, no request to anywhere, light and dark."""
    sections = [
        ("examples", "Examples", examples(report, media)),
        ("core", "Core", core(report)),
        ("beyond", "Beyond the core", beyond(report)),
        ("samples", "More samples", gallery(report, media)),
        ("stages", "Stages", graph(report)),
        ("losses", "Losses", curves(report)),
        ("learned", "Who learned", learned(report)),
        ("frozen", "Frozen", frozen(report)),
        ("claims", "Claims", claims(report)),
        ("benchmarks", "Benchmarks", benchmarks(report)),
        ("size", "Size", parts(report)),
        ("data", "Data", data(report)),
        ("again", "Again", again(report)),
    ]
    sections = [s for s in sections if s[2]]
    links = "".join(f'<a href="#{name}">{title}</a>' for name, title, _ in sections)
    body = "".join(f'<section id="{name}">{content}</section>' for name, _, content in sections)
    foot = (
        "Every number of this page stands in <code>report.json</code>; scores can be computed again from "
        "<code>eval/*.jsonl</code> with <code>polyphi eval score</code>."
    )
    page = f"{top(report)}<nav><div>{links}</div></nav><main>{body}<footer>{foot}</footer></main>"
    template = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    return string.Template(template).substitute(size=text(report["size"]), body=page)


def top(report: Report) -> str:
    heading = f"polyphi <small>{text(report['size'])}</small>"
    return (
        f'<header class="top"><h1>{heading}</h1><p class="lede">{text(intro(report))}</p></header>'
    )


def intro(report: Report) -> str:
    """What the model of the run is, in a sentence or two."""
    sentences = (
        "A language model is trained, then frozen; it learns to see and to hear through encoders, projectors and a "
        "mixture of LoRAs."
    )
    if report["parts"]:
        whole = report["parts"][-1]
        sentences += f" {count(whole['parameters'])} parameters; the report's model has {count(whole['report'])}."
    return sentences


def headline(report: Report) -> list[tuple[str, str]]:
    """The run in a line: numbers, each with what it counts."""
    s = report["summary"]
    numbers = [(f"{s['stages_done']} of {s['stages']}", "stages")]
    if s["frozen_checks"]:
        proof = f"{s['frozen_checks_equal']} of {s['frozen_checks']}"
        numbers.append((proof, "frozen checks bit-identical"))
    if s["tasks"]:
        numbers.append((f"{s['core_beats']} of {s['core']}", "core tasks beat their baselines"))
    if s["seconds"]:
        numbers.append((time(s["seconds"]), f"on {report['environment']['cores']} cores"))
    if report["precision"]:
        numbers.append((report["precision"]["precision"], "training"))
    return numbers


ABOUT_EXAMPLES = "Held-out samples of core tasks, drawn at random before any answer was looked at. ✓ right, ✗ wrong."


def examples(report: Report, media: Mapping[str, bytes]) -> str:
    """The page's first screen: samples to look at and to play, and the headline numbers."""
    cards = "".join(sample(e, media) for e in report["examples"])
    numbers = "".join(f"<span><b>{text(n)}</b> {text(of)}</span>" for n, of in headline(report))
    line = f'<p class="headline">{numbers}</p>'
    if not cards:
        return line
    return section(
        "What it can do", ABOUT_EXAMPLES, f'<div class="gallery first">{cards}</div>{line}'
    )


def graph(report: Report) -> str:
    drawn = f'<div class="card"><div class="scroll">{drawing.graph(report["stages"])}</div>{drawing.legend()}</div>'
    about = (
        "An arrow leads from the stage that a stage starts from. Squares are the parts of its model: filled ones "
        "learned, hollow ones were there and stayed as they were."
    )
    return section("From text to every modality", about, drawn)


ABOUT_CORE = (
    "Scans, stamps, templates and speakers that no stage has seen. Each score stands beside the best of its baselines: "
    "the best constant answer; the same model asked without the picture or clip; and with pictures or clips swapped "
    "among the questions. A task beats them when the 95 % interval of its lead over the best one (paired bootstrap) "
    "lies above zero. Goals are this project's, not the report's."
)
ABOUT_BEYOND = "Mostly for larger sizes than this one."
OPEN_ROWS = 10
"""Most rows beyond the core that stand on the page unfolded."""
MARKS = (
    ("majority answer", "majority"),
    ("without picture or clip", "without"),
    ("shuffled", "shuffled"),
    ("goal", "goal"),
)


def core(report: Report) -> str:
    """The core's rows, by modality."""
    rows = [r for r in report["tasks"] if r["core"]]
    if not rows:
        return ""
    key = '<div class="key"><span><i class="dot"></i>this model, with its 95 % interval</span>'
    key += "".join(f'<span><i class="tick {css}"></i>{label}</span>' for label, css in MARKS)
    key += "<span>error rates ↓: further left is better</span></div>"
    return section("The core", ABOUT_CORE, key + results(rows))


def beyond(report: Report) -> str:
    """All other rows; more than OPEN_ROWS are folded."""
    rows = [r for r in report["tasks"] if not r["core"]]
    if not rows:
        return ""
    content = results(rows)
    if len(rows) > OPEN_ROWS:
        content = f"<details><summary>{len(rows)} rows</summary>{content}</details>"
    return section("Beyond the core", ABOUT_BEYOND, content)


def results(rows: Sequence[Report]) -> str:
    """A table for each modality."""
    heads = ["task", ">score", "0 to 100 %", ">n", "best baseline", ">lead over it", "", ""]
    blocks = []
    for modality, title in tables.MODALITIES.items():
        if own := [r for r in rows if r["modality"] == modality]:
            note = f"{sum(r['verdict'] == 'beats' for r in own)} of {len(own)} beat their best baseline"
            if aims := [tables.reached(r) for r in own if r["goal"] is not None]:
                note += f", {sum(aims)} of {len(aims)} reach their goal"
            heading = f"<h3>{title} <em>{note}</em></h3>"
            content = table(heads, map(task_row, own))
            blocks.append(f'<div class="results {modality}">{heading}{content}</div>')
    return "".join(blocks)


STAND_INS = (
    "The benchmarks of the report's tables that need no judge, asked and scored as on their public data, on stand-ins "
    "that were made here. They show that the way is open, not what the model can do: "
    "such scores are not to be compared with the report's."
)


def benchmarks(report: Report) -> str:
    """The report's rows on stand-ins, and the page that has them beside its columns."""
    rows = [
        [
            f'{text(label)}<span class="sub">{text(held.name)}</span>',
            f'<b class="score">{beside.as_text(row, row["score"], beside.decimals(row))}</b>',
            str(row["n"]),
            text(row["benchmark"] or "average"),
        ]
        for held, lines in beside.laid_out(report["benchmarks"]["rows"])
        for label, row in lines
        if row and row["table"]
    ]
    if not rows:
        return ""
    about = f'{STAND_INS} <a href="benchmarks/report.html">Beside the report&rsquo;s columns</a>.'
    half = (len(rows) + 1) // 2
    heads = ["row of the report", ">score", ">n", "benchmark"]
    shown = "".join(table(heads, part) for part in (rows[:half], rows[half:]) if part)
    return section("The report&rsquo;s benchmarks", about, f'<div class="two">{shown}</div>')


def task_row(r: Report) -> list[str]:
    metric = r["metric"]
    unit = 100 if metric == "bleu" else 1
    title = text(r["title"])
    if r["note"]:
        title += f'<span class="sub">{text(r["note"])}</span>'
    if r["languages"]:
        scores = ", ".join(
            f"{k} {tables.number(metric, v['score'])} (n {v['n']:.0f})"
            for k, v in r["languages"].items()
        )
        title += f"<details><summary>{len(r['languages'])} languages</summary><span>{text(scores)}</span></details>"
    score = f'<b class="score">{tables.number(metric, r["score"])}</b>'
    if metric != "accuracy":
        score += f" <small>{tables.METRICS[metric]}</small>"
    score += f'<span class="sub">{tables.interval(metric, r["low"], r["high"])}</span>'
    marks = [(k.removesuffix("_clip"), m["score"] / unit) for k, m in r["baselines"].items()]
    goal = ""
    if aim := tables.goal(r):
        marks.append(("goal", r["goal"] / unit))
        goal = same(tables.reached(r), f"goal {aim[0]}", f"goal {aim[0]}")
        goal += f'<span class="sub">{aim[1]}</span>'
    plot = drawing.plot(r["low"] / unit, r["score"] / unit, r["high"] / unit, marks)
    baseline = lead = "–"
    if r["best"]:
        value, name = tables.best(r)
        baseline = f'{value}<span class="sub">{name}</span>'
        if (answer := r["baselines"][r["best"]]["answer"]) is not None:
            baseline = f'<span title="always: {text(answer)}">{baseline}</span>'
        lead = '{}<span class="sub">{}</span>'.format(*tables.lead(r))
    verdict = same(r["verdict"] == "beats", "beats", "doesn’t")
    return [title, score, plot, str(r["n"]), baseline, lead, verdict, goal]


def gallery(report: Report, media: Mapping[str, bytes]) -> str:
    blocks = []
    for modality, title in tables.MODALITIES.items():
        if entries := [e for e in report["gallery"] if e["modality"] == modality]:
            cards = "".join(sample(e, media) for e in entries)
            blocks.append(
                f'<div class="{modality}"><h3>{title}</h3><div class="gallery">{cards}</div></div>'
            )
    about = (
        "Of all tasks, drawn in the same way. Pictures are scanned digits or our own renderings; each sample names its "
        "source and licence."
    )
    return section("More samples", about, "".join(blocks)) if blocks else ""


def sample(e: Report, media: Mapping[str, bytes]) -> str:
    pictures, clips = [], []
    for m in e["media"]:
        uri = f"data:{m['mime']};base64,{base64.b64encode(media[m['sha256']]).decode()}"
        if m["kind"] == "image":
            pictures.append(f'<img alt="" src="{uri}">')
        else:
            clips.append(f'<audio controls preload="none" src="{uri}"></audio>')
    right, answer, reference = e["value"] >= 1, e["answer"].strip(), e["reference"].strip()
    shown = [
        f'<div class="shot">{"".join(pictures)}</div>' if pictures else "",
        *clips,
        '<div class="body">',
    ]
    if e["question"]:
        shown.append(f'<div class="q">{text(e["question"])}</div>')
    shown.append(
        f'<div class="a {"right" if right else "wrong"}">{"✓" if right else "✗"} {text(answer or "(nothing)")}</div>'
    )
    if not right or answer != reference:
        shown.append(f'<div class="r">expected: {text(reference)}</div>')
    origin = " · ".join(text(e[k]) for k in ("title", "source", "licence"))
    return f'<div class="card sample">{"".join(shown)}<div class="lic">{origin}</div></div></div>'


def curves(report: Report) -> str:
    boxes = []
    for s in report["stages"]:
        if s["curve"]:
            end = f"{s['curve'][-1][0] + 1} steps" + (
                f", {time(s['seconds'])}" if s["seconds"] else ""
            )
            boxes.append(
                f'<div class="card curvebox {s["name"].partition("_")[0]}"><b>{text(s["name"])}</b>'
                f'{drawing.curve(s["curve"])}<div class="sub"><span>{losses(s)}</span><span>{end}</span></div>'
                f'<div class="sub"><span>{speed(s)}</span></div>'
                f'<div class="sub"><span>padding {waste(s)}</span></div></div>'
            )
    about = (
        "On the training stream, in the unit of the stage's objective; each panel has its own scale. Below: what it "
        "learned from in a second, and the share of what was computed that is padding (packs themselves have none)."
    )
    return (
        section("Loss of every stage", about, f'<div class="curves">{"".join(boxes)}</div>')
        if boxes
        else ""
    )


def learned(report: Report) -> str:
    rows = []
    for s in report["stages"]:
        for i, entry in enumerate(s["learned"]):
            rate, name = entry.get("rate"), ""
            if i == 0:
                seen = [f"{count(s['counters'][k])} {k}" for k in SEEN if s["counters"].get(k)]
                name = f'<b>{text(s["name"])}</b><span class="sub">{", ".join(seen)}</span>'
            rows.append(
                [
                    name,
                    f"<code>{text(entry['module'])}</code>",
                    count(entry.get("parameters")),
                    "–" if rate is None else f"{rate:.2g}",
                    text(", ".join(entry.get("from") or s["parents"]) or "fresh"),
                ]
            )
    heads = ["stage", "parameters", ">how many", ">peak rate", "started from"]
    about = (
        "What a stage doesn't name is frozen. Below its name: what it read, crops that reached the vision encoder and "
        "10 ms frames that reached the audio encoder among it."
    )
    return section("Who learned", about, table(heads, rows))


def frozen(report: Report) -> str:
    checks = {e["stage"]: e for e in report["freeze"]}
    rows = []
    for s in report["stages"]:
        check = checks.get(s["name"])
        tensors = logits = "–"
        if s["frozen_tensors"]:
            chip = same(not s["frozen_changed"], "unchanged", f"{len(s['frozen_changed'])} changed")
            tensors = f'{s["frozen_tensors"]} {chip}<span class="sub mono">{(s["frozen_sha256"] or "")[:16]}</span>'
        if check:
            before, after = check["logits_sha256_before"], check["logits_sha256_after"]
            chip = same(before == after, "bit-identical", "differ")
            logits = f'{chip}<span class="sub mono">{text(before[:16])} → {text(after[:16])}</span>'
        if s["frozen_tensors"] or check:
            rows.append([f"<b>{text(s['name'])}</b>", tensors, logits])
    heads = ["stage", "frozen tensors, before = after", "text logits, before → after"]
    return section("Frozen is frozen", CHECKED, table(heads, rows)) if rows else ""


def claims(report: Report) -> str:
    blocks = []
    heads = ["effect", "", ">found", ">95 % interval", ">claimed above", ">smallest seen", ""]
    for found in report["claims"]:
        rows = []
        for shown in found["effects"]:
            plot = drawing.effect(shown["low"], shown["value"], shown["high"], shown["above"])
            value, *more = effect(shown)
            rows.append(
                [text(shown["what"]), plot, f"<b>{value}</b>", *more, verdict(shown["verdict"])]
            )
        seeds = f"{found['identity']['seeds']} seeds, {time(found['seconds'])}"
        blocks.append(
            f"<h3>{found['name']} {text(found['title'])} {verdict(found['verdict'])}</h3>"
            f'<p class="about"><b>{text(found["says"])}</b> (report {text(found["where"])})<br>'
            f"{text(found['experiment'])}; {seeds}.</p>{table(heads, rows)}"
        )
    shown = f'<div class="claims">{"".join(blocks)}</div>'
    return section("The report’s claims", CLAIMED, shown) if blocks else ""


CLAIMED = (
    "Each is tested at this run's size, which isn't the report's. A claim holds where the 95 % interval (paired "
    "bootstrap over items and seeds) lies above what is claimed, doesn't where it lies below, and is undecided "
    "between. The last number is how far from it a true effect had to be for this experiment to see it in four of "
    "five cases."
)


def effect(shown: Report) -> tuple[str, str, str, str]:
    """An effect's value, its interval, what the claim says that it exceeds, and the smallest one to be seen."""
    unit = f" {shown['unit']}".rstrip()
    value, low, high, above, smallest = (
        f"{shown[key]:.3g}" for key in ("value", "low", "high", "above", "smallest")
    )
    return value + unit, f"{low} to {high}", above, smallest


def verdict(found: str) -> str:
    kind = {"holds": "yes", "doesn't": "no"}.get(found, "unsure")
    return f'<span class="chip {kind}">{text(found)}</span>'


def parts(report: Report) -> str:
    rows = []
    for p in report["parts"]:
        ratio = (
            f"{p['report'] / p['parameters']:,.0f} ×" if p["report"] and p["parameters"] else "–"
        )
        rows.append([text(p["part"]), count(p["parameters"]), count(p["report"]), ratio])
    about = (
        "The same architecture and recipe at a size that trains here; scores of this size are not comparable with the "
        "report's."
    )
    return (
        section(
            "How small it is", about, table(["part", ">here", ">the report", ">larger by"], rows)
        )
        if rows
        else ""
    )


def data(report: Report) -> str:
    corpora, sources = report["data"]["corpora"], report["data"]["sources"]
    if not corpora:
        return ""
    rows = [
        [
            f'{text(name)}<span class="sub">{text(_dropped(splits.get("train", {})))}</span>',
            *(f"{splits.get(split, {}).get('rows', 0):,}" for split in ("train", "test")),
            f'<span class="mono">{next(iter(splits.values()))["sha256"][:12]}</span>',
        ]
        for name, splits in corpora.items()
    ]
    first = table(["corpus", ">train", ">held out", "manifest"], rows)
    rows = [
        [
            f'{text(name)}<span class="sub">{text(x["what"] or "")}</span>',
            f"{x['rows']:,}",
            text(x["licence"]),
            text(x["origin"]),
        ]
        for name, x in sorted(sources.items(), key=lambda kv: -kv[1]["rows"])
    ]
    second = table(["source", ">rows", "licence", "origin"], rows)
    about = "Held-out rows differ from training rows by stamp, scan, template or speaker, not by chance alone. "
    about += "Below a corpus's name: training samples that its steps dropped."
    return section("Data", about, f'<div class="two">{first}{second}</div>')


def _dropped(split: Report) -> str:
    """What the steps of a split dropped: "dropped: 33 Language, 5 Duplicates"; else nothing."""
    steps = [f"{n:,} {step.split('-')[0]}" for step, n in split.get("dropped", {}).items()]
    return f"dropped: {', '.join(steps)}" if steps else ""


def precision(report: Report) -> str:
    """The precision of training, and why: "fp32: this CPU has no bfloat16 instructions"."""
    choice = report["precision"]
    return f"{choice['precision']}: {choice['reason']}" if choice else "–"


def again(report: Report) -> str:
    env = report["environment"]
    facts = {
        "command": f"<code>polyphi reproduce {text(report['size'])} --out DIR --seed {text(report['seed'])}</code>",
        "processor": text(f"{env['cpu']}, {env['cores']} cores, torch threads: {env['threads']}"),
        "precision of training": text(precision(report)),
        "accelerator": text(env.get("cuda") or "none"),
        "system": text(f"{env['system']}, Python {env['python']}"),
        "packages": text(", ".join(f"{k} {v}" for k, v in env["versions"].items())),
        "memory, all processes": memory(report["summary"]["peak_bytes"]),
    }
    left = table(["", ""], facts.items())
    seconds = {k: v for k, v in report["timings"].get("seconds", {}).items() if k != "total"}
    longest = max(seconds.values(), default=0) or 1
    bars = [
        [text(k), time(v), f'<i class="bar" style="width:{100 * v / longest:.1f}%"></i>']
        for k, v in seconds.items()
    ]
    right = (
        table(["step", ">time", ""], bars, [k.partition("_")[0] for k in seconds]) if bars else ""
    )
    about = (
        "Same seed, same corpora, same order of samples; another processor may round differently."
    )
    return section("Run it again", about, f'<div class="two times">{left}{right}</div>')
