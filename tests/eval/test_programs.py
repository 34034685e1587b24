"""Programs of answers are found as EvalPlus finds them, and their verdicts can't be forged."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from polyphi_eval import programs
from polyphi_eval.fixtures.write import write
from polyphi_eval.programs import Trial, Verdict, extract_program, longest_program, run_trials
from polyphi_eval.services import sandbox
from polyphi_eval.sources import read_rows
from polyphi_eval.trial import outputs_equal, pack, printed_equal, unpack

isolated = pytest.mark.skipif(
    sandbox.unavailable() is not None, reason=f"no namespaces: {sandbox.unavailable()}"
)
VERDICT = '{\\"results\\": {\\"passed\\": true}, \\"why\\": \\"\\"}'
FORGERIES = {
    "leaves with success": "import os\nos._exit(0)",
    "leaves as it loads": "raise SystemExit(0)",
    "leaves in the call": "import os\ndef f(x): os._exit(0)",
    "stops all by an exception": "def f(x): raise SystemExit(0)",
    "prints the verdict": f'print("{VERDICT}")\ndef f(x): print("{VERDICT}")',
    "writes the verdict to every file that is open": (
        f'import os\nfor n in range(256):\n    try: os.write(n, b"{VERDICT}\\n")\n    except OSError: pass\n'
        "os._exit(0)"
    ),
    "answers for itself": (
        'import json, os\ndata = json.dumps(["ok", {"f": None}]).encode() + b"\\n"\nfor n in range(3, 64):\n'
        "    try: os.write(n, 9 * data)\n    except OSError: pass\nos._exit(0)"
    ),
    "is equal to everything": (
        "class Any:\n    def __eq__(self, other): return True\n    def __bool__(self): return True\n"
        "    def __hash__(self): return 3\ndef f(x): return Any()"
    ),
    "is a number that is equal to everything": (
        "class Any(int):\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
        "def f(x): return Any(7)"
    ),
    "changes what assert raises": "import builtins\nbuiltins.AssertionError = None\ndef f(x): return 7",
    "changes builtins": (
        "import builtins\nbuiltins.isinstance = lambda *a: True\nbuiltins.all = lambda *a: True\n"
        "builtins.exec = lambda *a: None\ndef f(x): return 7"
    ),
    "kills its tests": "import os\nos.kill(os.getppid(), 9)",
    "kills all": "import os\nos.kill(-1, 9)",
    "sends every signal to every process": (
        "import os\nfor p in (1, os.getppid(), 0):\n    for n in (1, 2, 3, 6, 15, 10, 12, 9):\n"
        "        try: os.kill(p, n)\n        except OSError: pass\ndef f(x): return 7"
    ),
    "looks for its tests": (
        "import gc, os, sys\n"
        "seen = [o for o in gc.get_objects() if isinstance(o, (dict, str, bytes)) and 'SEC' + 'RET' in str(o)]\n"
        "for n in range(256):\n    try: seen.append(b'SEC' + b'RET' in os.pread(n, 1 << 20, 0) or None)\n"
        "    except OSError: pass\n"
        "def f(x): return 2 if any(seen) else 7"
    ),
    "reads its tests' memory": (
        "import ctypes, os\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "traced = libc.ptrace(16, os.getppid(), 0, 0)\n"
        "def f(x): return 2 if traced == 0 else 7"
    ),
}


def asserts(code: str, tests: str = "assert f(1) == 2  # SECRET", **more: Any) -> Trial:
    return Trial(code, {"kind": "asserts", "tests": tests, **more})


@isolated
def test_right_code_passes_and_wrong_code_fails() -> None:
    verdicts = run_trials(
        [
            asserts("def f(x): return x + 1"),
            asserts("def f(x): return x"),
            asserts("def g(x): return 2"),
            asserts("def f(x) return 2"),
            asserts(""),
        ]
    )
    assert [v.passed for v in verdicts] == [True, False, False, False, False]
    assert verdicts[1].why.startswith("AssertionError") and verdicts[3].why == "no program"


@isolated
@pytest.mark.parametrize("kind", FORGERIES)
def test_no_verdict_is_forged(kind: str) -> None:
    (verdict,) = run_trials([asserts(FORGERIES[kind])])
    assert not verdict.passed, verdict


@pytest.mark.long
@isolated
def test_hostile_code_is_stopped() -> None:
    began = time.monotonic()
    verdicts = run_trials(
        [
            asserts("while True: pass"),
            asserts("def f(x):\n    while True: pass"),
            asserts("import os\nwhile True: os.fork()"),
            asserts("def f(x): return [0] * 10**11"),
            asserts("def f(x): return 'x' * 10**9"),
            asserts(
                "import socket\nsocket.create_connection(('127.0.0.1', 80), 1)\ndef f(x): return 2"
            ),
            asserts("open('/etc/polyphi', 'w')\ndef f(x): return 2"),
            asserts("while True:\n    print('x' * 10**6)"),
        ]
    )
    assert not any(v.passed for v in verdicts)
    assert time.monotonic() - began < 1200


@isolated
def test_plain_data_and_classes_pass_between_processes() -> None:
    code = (
        "import math\nclass Pair:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
        "def total(pairs): return sum(p.a + p.b for p in pairs)\n"
        "def every(n): return (i for i in range(n))\n"
        "def kinds(): return {'a': (1, 2.5, None, {3}, b'x', 1j, [True])}\n"
        "def big(): return 10**5000\ndef bad(): raise KeyError('k')\n"
    )
    tests = (
        "p = Pair(1, 2)\np.b = 5\nassert p.a == 1 and total([p, Pair(3, 4)]) == 13\n"
        "assert list(every(3)) == [0, 1, 2]\n"
        "assert kinds() == {'a': (1, 2.5, None, {3}, b'x', 1j, [True])}\n"
        "assert big() == 10**5000 and math.pi > 3\n"
        "try: bad()\nexcept KeyError: pass\nelse: assert False\n"
    )
    (verdict,) = run_trials([asserts(code, tests)])
    assert verdict == Verdict({"passed": True})


@isolated
def test_outputs_are_those_of_the_reference() -> None:
    tests = {
        "kind": "outputs",
        "reference": "def f(x): return x / 3",
        "entry": "f",
        "tolerance": 0.01,
        "inputs": {"base": [pack([3])], "plus": [pack([1]), pack([0])]},
    }
    codes = [
        "def f(x): return round(x / 3, 3)",
        "def f(x): return x // 3",
        "def f(x): return 3 // x",
        "def f(x): return 1.0",
    ]
    verdicts = run_trials([Trial(code, tests) for code in codes])
    assert [v.results for v in verdicts] == [
        {"base": True, "plus": True},
        {"base": True, "plus": False},
        {"base": True, "plus": False},
        {"base": True, "plus": False},
    ]


@isolated
def test_programs_are_judged_by_what_they_print() -> None:
    cases = [{"input": "1 2\n", "output": "3\n"}, {"input": "5 5", "output": "10.0"}]
    tests = {"kind": "cases", "cases": cases, "entry": None, "seconds": 6.0}
    codes = [
        "print(sum(map(int, input().split())))",
        "import sys\nprint(sum(map(int, sys.stdin.read().split())))\nsys.exit()",
        "print(sum(map(int, open(0).read().split())))",
        "print(3)",
        "print(3)\nprint(10)",
        "import os\nos._exit(0)",
        "raise ValueError",
    ]
    verdicts = run_trials([Trial(code, tests) for code in codes])
    assert [v.passed for v in verdicts] == [True, True, True, False, False, False, False]


@isolated
def test_unit_tests_in_the_codes_process_must_all_run() -> None:
    tests = "import unittest\nclass TestCases(unittest.TestCase):\n    def test_a(self): self.assertEqual(f(1), 2)\n"
    settings = {"kind": "unittest", "tests": tests, "count": 1, "seconds": 5.0}
    codes = [
        "def f(x): return 2",
        "def f(x): return 3",
        "import os\ndef f(x): os._exit(0)",
        "raise SystemExit",
        "import unittest\ndef f(x): raise unittest.SkipTest",
        "class TestCases: pass\ndef f(x): return 3",
    ]
    assert [v.passed for v in run_trials([Trial(c, settings) for c in codes])] == [True] + [
        False
    ] * 5


def test_no_output_ends_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without namespaces a program can print in place of its tests."""
    output = "x" * 9, "[" * 200_000, "[]", '{"results": 3, "why": 3}', "9" * 9999, '"\\ud800"', ""
    for text in output:
        result = sandbox.SandboxResult(text, "", 0, "ok", 0.1, False)
        monkeypatch.setattr(sandbox, "run", lambda *a, result=result, **k: result)
        assert not programs._run(asserts("def f(x): return 2")).passed


def test_nothing_is_run_where_code_cannot_be_isolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "unavailable", lambda: "unshare: Operation not permitted")
    monkeypatch.setattr(sandbox, "run", lambda *a, **k: pytest.fail("it ran"))
    monkeypatch.delenv(programs.UNPROTECTED, raising=False)
    with pytest.raises(ValueError, match=r"can't isolate that .unshare: Operation not permitted"):
        run_trials([asserts("def f(x): return 2")])
    assert programs.unavailable() is not None


def test_without_a_second_process_all_runs_in_one(tmp_path: Path) -> None:
    """The program runs as in the sandbox without namespaces, with its audit hook."""
    cases = {"kind": "cases", "cases": [{"input": "2", "output": "4"}], "entry": None, "seconds": 6}
    trials = [
        (asserts("def f(x):\n    print(x)\n    return x + 1"), True),
        (asserts("def f(x): return x"), False),
        (asserts("import socket\nsocket.socket()\ndef f(x): return 2"), False),
        (Trial("print(2 * int(input()))", cases), True),
        (Trial("print(2)", cases), False),
    ]
    (tmp_path / "main.py").write_text(programs.sandboxed_program())
    for each, passes in trials:
        process = subprocess.run(
            [sys.executable, "-c", sandbox._GUARD],
            input=each.stdin(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        verdict = json.loads(process.stdout)
        assert verdict["results"].get("passed", False) is passes, (each.code, verdict)


def test_the_program_of_an_answer_is_its_longest_run_of_python() -> None:
    helper = 'def helper(x):\n    """\n    ```\n    not the end\n    ```\n    """\n    return x'
    code = f"import re\n\n{helper}\n\ndef f(x):\n    return helper(x)"
    answer = f"Sure! Here it is:\n\n```python\n{code}\n\nprint(f(1))\n```\n\nIt calls `helper`."
    assert longest_program(answer).strip() == f"{code}\n\nprint(f(1))"
    assert extract_program(answer, "f").split("\n")[0] == "import re"
    assert "print" not in extract_program(answer, "f") and "def helper" in extract_program(
        answer, "f"
    )
    assert (
        extract_program("def f(x):\n    return 1\n\ndef g(x):\n    return 2", "f")
        == "def f(x):\n    return 1"
    )
    assert extract_program("", "f") == "" and extract_program("no code", "f") == "no code"


def test_an_answer_without_end_is_read_quickly() -> None:
    began = time.process_time()
    for text in ("x " * 200_000, "[{(" * 100_000, "x = 1\n" * 40_000, "(\n" * 900, '"""\n' * 901):
        extract_program(text, "f")
        programs.blocks(text)
    assert time.process_time() - began < 600  # quadratic time would be hours


def test_lenient_programs_include_the_prompt() -> None:
    from polyphi.data.shards import Sample
    from polyphi.types.messages import Message

    prompt = 'import math\n\ndef f(x):\n    """Root."""\n'
    sample = Sample("s", (Message.assistant(""),), "", "", {"entry": "f", "prompt": prompt})
    body, *_ = programs.lenient_programs("```python\nreturn math.sqrt(x)\n```", sample)
    assert body.startswith(prompt.rstrip()) and body.endswith("    return math.sqrt(x)")
    first, *_ = programs.lenient_programs(
        "```python\ndef f(x):\n    return math.sqrt(x)\n```", sample
    )
    assert first.startswith("import math")


def test_values_are_packed_and_unpacked() -> None:
    values = [
        None,
        True,
        7,
        2.5,
        "é\ud800",
        [1, (2,)],
        {"a": {1}, (1, 2): b"x"},
        1j,
        range(3),
        float("inf"),
    ]
    assert unpack(json.loads(json.dumps(pack(values))), lambda n: None) == values
    with pytest.raises(TypeError, match="found object"):
        pack(object())


def test_comparisons_are_evalpluses() -> None:
    assert outputs_equal(1.0000001, 1.0, {"tolerance": 0}, []) and not outputs_equal(
        1.1, 1.0, {"tolerance": 0}, []
    )
    assert outputs_equal([1.0, 2.0], [1.0, 2.0000001], {}, []) and not outputs_equal(
        (1.0,), [1.1], {}, []
    )
    assert outputs_equal([2, 1, 1], [1, 2], {"rule": "set"}, []) and not outputs_equal(
        [2], [1], {"rule": "set"}, []
    )
    assert outputs_equal(True, "match", {"rule": "something"}, []) and not outputs_equal(
        None, "m", {"rule": "something"}, []
    )
    assert outputs_equal(-0.5, 0, {"rule": "root", "tolerance": 1e-4}, [[1, 2]])
    assert printed_equal("1.0 2\n", "1 2") and not printed_equal("1\n2", "1 2")


def test_the_fixtures_problems_have_the_results_that_they_say(tmp_path: Path) -> None:
    for name in ("humaneval", "livecodebench", "livebench_code"):
        write(name, tmp_path)
    (path,) = tmp_path.glob("openai/**/*.parquet")
    for row in read_rows(path):
        space: dict[str, Any] = {}
        exec(row["prompt"] + row["canonical_solution"] + "\n" + row["test"], space)
        space["check"](space[row["entry_point"]])
    for path in [*tmp_path.glob("livecodebench/**/test4.jsonl"), *tmp_path.rglob("*.parquet")]:
        for row in read_rows(path):
            compile(row.get("solution", "").strip("`").removeprefix("python"), "", "exec")
