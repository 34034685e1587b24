"""MBPP's prompts; MBPP+'s inputs have types that JSON lacks."""

from pathlib import Path

from polyphi_eval.benchmarks.text import evalplus, mbpp
from polyphi_eval.sources import Data


def test_prompts_start_with_three_solved_problems(tmp_path: Path) -> None:
    mbpp.benchmark.write_fixtures(tmp_path)
    samples = list(mbpp.load(Data(tmp_path)))
    assert {s.meta["set"] for s in samples} == {"sanitized", "full"}
    text = samples[3].prompt[0].text
    assert text.count("[BEGIN]") == 4 and text.count("[DONE]") == 3 and text.endswith("[BEGIN]\n")
    assert mbpp.benchmark.params(samples[3]).stop == ("[DONE]",)


def test_inputs_become_tuples_sets_and_complex_numbers() -> None:
    shapes = evalplus.SHAPES
    assert shapes[2]([[3, 4], [5]]) == [(3, 4), (5,)]
    assert shapes[63]([[[5, 6]]]) == [[(5, 6)]]
    assert shapes[75]([[[6, 24]], 6]) == [[(6, 24)], 6]
    assert shapes[106]([[5], [9, 10]]) == [[5], (9, 10)]
    assert shapes[115]([[[1], []]]) == [[{1}, {}]]
    assert shapes[124](["0", "1j"]) == [0.0, 1j]
    assert shapes[250]([[10, 8], 4]) == [(10, 8), 4]
    assert shapes[259]([[[1, 3]], [[6, 7]]]) == [((1, 3),), ((6, 7),)]
    assert shapes[278]([[1, [2, 3]]]) == [(1, (2, 3))]
    assert shapes[722]([{"a": [1, 2]}, 3]) == [{"a": (1, 2)}, 3]
    assert shapes[252](["3+4j"]) == [3 + 4j]
    assert shapes[580]([[1, [2]]]) == ((1, (2,)),)
