"""lm-eval's tasks in our runner: prompts, and the parsing of answers."""

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polyphi.data.shards import Sample
from polyphi_eval import lm_tasks
from polyphi_eval.benchmark import LENIENT, Benchmark, Score, suite
from polyphi_eval.sources import Data

ARC_C, BBH, GPQA, GSM8K, HELLASWAG, MGSM, MMLU, MMLU_PRO, TRUTHFULQA = suite(
    *("arc_c", "bbh", "gpqa", "gsm8k", "hellaswag", "mgsm", "mmlu", "mmlu_pro", "truthfulqa")
)
ARC_PROMPT = """\
Question:
Which is a gas (8)?
Options:
A. water
B. sand
C. ice
D. steam
Answer: D

Question:
Which is frozen water (9)?
Options:
A. ice
B. steam
C. water
D. sand
Answer: A

Question:
Which is made of grains (10)?
Options:
A. steam
B. water
C. sand
D. ice
Answer:"""


def loaded(benchmark: Benchmark, root: Path) -> list[Sample]:
    benchmark.write_fixtures(root)
    return list(benchmark.load(Data(root)))


def score(benchmark: Benchmark, sample: Sample, answer: str) -> Score:
    assert benchmark.score_many
    return benchmark.score_many([([answer], sample)])[0]


def test_the_prompt_of_letters_is_the_one_of_the_phi_3_report(tmp_path: Path) -> None:
    first, *_ = loaded(ARC_C, tmp_path)
    (message,) = first.prompt
    assert message.role == "user"
    assert message.text.endswith(ARC_PROMPT)
    assert message.text.count("Question:") == 11
    params = ARC_C.params(first)
    assert (params.max_tokens, params.temperature, params.stop) == (16, 0, ())


def test_examples_are_the_first_ones_and_stay_the_same(tmp_path: Path) -> None:
    texts = [s.prompt[0].text for s in loaded(ARC_C, tmp_path)]
    assert len({text.rpartition("\n\n")[0] for text in texts}) == 1
    subjects = {s.meta["subject"]: s.prompt[0].text for s in loaded(MMLU, tmp_path)}
    assert "+ 7" not in subjects["elementary_mathematics"]
    assert "+ 3" not in subjects["high_school_mathematics"]


def test_hellaswag_is_cleaned(tmp_path: Path) -> None:
    text = loaded(HELLASWAG, tmp_path)[0].prompt[0].text
    context = "Question:\nWriting: Day 5. Somebody thinks of a letter. Then the person\n"
    assert context + "Options:\nA. fetches a broom.\n" in text


def test_too_few_examples_raise_an_error(tmp_path: Path) -> None:
    row = {"goal": "?", "sol1": "a", "sol2": "b", "label": 0}
    with pytest.raises(ValueError, match="piqa: expected 5 examples, found 2"):
        splits = {"train": [row] * 2, "validation": [row]}
        list(
            lm_tasks.samples(
                lm_tasks.letter_task("polyphi_piqa"), splits, "piqa", "here", "CC0-1.0"
            )
        )


def test_mmlu_pro_asks_without_examples_and_lets_answers_be_long(tmp_path: Path) -> None:
    sample = loaded(MMLU_PRO, tmp_path)[0]
    text = sample.prompt[0].text
    assert text.count("Question:") == 1 and text.endswith("Answer: Let's think step by step.")
    assert (
        "about computer science" in text and 'finish your answer with "the answer is (X)"' in text
    )
    params = MMLU_PRO.params(sample)
    assert (params.max_tokens, params.stop) == (2048, ())


def test_worked_examples_precede_the_question_and_nothing_stops_an_answer(tmp_path: Path) -> None:
    sample = loaded(GSM8K, tmp_path)[0]
    assert sample.prompt[0].text.count("Q: ") == 9
    assert GSM8K.params(sample).stop == BBH.params(loaded(BBH, tmp_path)[0]).stop == ()


def test_gpqa_choices_have_the_same_order_in_every_run(tmp_path: Path) -> None:
    random.seed(1)
    before = random.getstate()
    first = loaded(GPQA, tmp_path)
    assert random.getstate() == before, "the global random state is unchanged"
    random.seed(2)
    assert loaded(GPQA, tmp_path) == first
    assert len({s.answer for s in first}) > 1


def test_the_true_choice_of_truthfulqa_is_not_always_the_first(tmp_path: Path) -> None:
    samples = loaded(TRUTHFULQA, tmp_path)
    for form in ("mc1", "two"):
        own = [s for s in samples if s.meta["form"] == form]
        assert len({s.answer for s in own}) > 1
        for sample in own:
            (line,) = [
                x
                for x in sample.prompt[0].text.rpartition("Question:")[2].splitlines()
                if x.startswith(f"{sample.answer}. ")
            ]
            assert line.partition(". ")[2] == sample.meta["document"]["mc1_targets"]["choices"][0]
            question = sample.meta["document"]["question"]
            assert sample.prompt[0].text.count(f"{question}\n") == 1, (
                "the question isn't among its own examples"
            )


def test_mgsm_asks_in_its_language(tmp_path: Path) -> None:
    german = next(s for s in loaded(MGSM, tmp_path) if s.meta["language"] == "de")
    assert german.prompt[0].text == (
        "Frage: Wie viel sind 3 Äpfel und 9 Äpfel?\nSchritt-für-Schritt-Antwort:"
    )


def test_a_filter_that_fails_costs_no_other_score(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered = lm_tasks._filter

    def fails(built: Any, documents: Any, answers: Any) -> Any:
        if "bad" in answers:
            raise IndexError
        return filtered(built, documents, answers)

    monkeypatch.setattr(lm_tasks, "_filter", fails)
    sample = loaded(ARC_C, tmp_path)[0]
    assert ARC_C.score_many
    scores = ARC_C.score_many([(["C"], sample), (["bad"], sample), (["C"], sample)])
    assert [s.value for s in scores] == [1, 0, 1]
    assert scores[1].parts == {"any-letter": 0, LENIENT: 0}


def test_an_error_for_every_answer_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lm_eval.api.task import ConfigurableTask

    def fails(*_: Any) -> Any:
        raise LookupError("no such data")

    sample = loaded(ARC_C, tmp_path)[0]
    monkeypatch.setattr(ConfigurableTask, "process_results", fails)
    with pytest.raises(LookupError, match="no such data"):
        score(ARC_C, sample, "C")


def test_long_answers_are_read_at_both_ends(tmp_path: Path) -> None:
    sample = loaded(GPQA, tmp_path)[0]
    assert score(GPQA, sample, f"{'thus ' * 100_000}{sample.answer}").value == 1
    sample = loaded(ARC_C, tmp_path)[0]
    assert score(ARC_C, sample, f"C{' or not' * 100_000}").value == 1


def test_our_files_are_tasks_to_lm_eval_alone() -> None:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=[lm_tasks.TASK_FOLDER], include_defaults=False)
    assert manager.all_groups == ["polyphi_m_mmlu", "polyphi_mmlu"]
    assert len(manager.all_subtasks) == len(list(lm_tasks.TASK_FOLDER.glob("polyphi_*.yaml"))) - 2
    for name in [*manager.all_groups, *manager.all_subtasks]:
        settings = lm_tasks._settings(name)["generation_kwargs"]
        assert settings["max_gen_toks"] == ARC_C.max_tokens and not settings["until"]
    for name in manager.all_groups:
        members = manager.task_index[name].cfg["task"]
        assert len({m["task"] for m in members}) == {"polyphi_mmlu": 57}.get(name, 9)
        assert all(m["task"] == f"{name}_{m['dataset_name']}" for m in members)


def test_lm_eval_is_imported_only_when_it_is_needed() -> None:
    code = """
import sys
from polyphi_eval.benchmark import benchmarks
assert "arc_c" in [b.name for b in benchmarks()]
heavy = {"lm_eval", "datasets", "nltk", "math_verify", "rouge_score"} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
