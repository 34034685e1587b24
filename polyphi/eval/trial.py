"""Runs in the sandbox, as a program of its own (programs.py sends this file and values.py there): code under test in
one process, its tests in another.

    tests' process                                 code's process
    reads the code from stdin, starts the other -> closes stdin, stdout and stderr, runs the code
    reads the tests, runs them                     (has no tests: they were read after it had begun)
    a call of the code's functions              -> answers with plain data
    prints the verdict

Numbers, strings and containers of them alone come back through the pipe, and are made anew on the tests' side, so that
an object that is equal to everything is equal to nothing there. What the code does to `assert`, to `builtins`, to
files that it finds open or to its own process (leaving it with exit code 0 among others) changes no verdict; memory of
the tests' process can't be read or traced (it isn't dumpable), and killing it fails the code.

**What remains possible**: tests of the kind "unittest" run in the code's own process, because they replace parts of it
(BigCodeBench); they are read after the code was loaded and their result carries a word that it can't have known then,
but functions that the tests call can look for it. Without namespaces (`weak`) no second process may be started, and
everything runs in one.
"""

import builtins
import importlib
import io
import json
import math
import os
import resource
import sys
import time
import types
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout, suppress
from typing import Any

from polyphi.eval.values import Kept, alike, pack, printed_alike, unpack

MESSAGE_BYTES = 64 << 20
"""The longest answer of the code's process that is read."""
CALL_SECONDS = 1.0
"""Processor time of a call, and of running the code as a module."""
FASTEST, SLOWER = 1.0, 4.0
"""EvalPlus' seconds for each input, at least, and how many times the reference's own time."""
_NOT_DUMPABLE = 4


# ------------------------------------------------------------------------------ messages


class Pipe:
    """Messages of JSON, each after its length."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = reading, writing

    def send(self, message: Any) -> None:
        data = json.dumps(message).encode()
        data = len(data).to_bytes(8, "big") + data
        while data:
            data = data[os.write(self.writing, data) :]

    def receive(self) -> Any:
        size = int.from_bytes(self._read(8), "big")
        if size > MESSAGE_BYTES:
            raise EOFError("too long an answer")
        return json.loads(self._read(size))

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            piece = os.read(self.reading, min(1 << 20, size - len(data)))
            if not piece:
                raise EOFError("the code ended its process")
            data += piece
        return bytes(data)


# ------------------------------------------------------------------------------ the code's side


class Code:
    """The code under test, and whatever it made that isn't plain."""

    def __init__(self, text: str, before: str = "") -> None:
        self.text, self.before = text, before
        self.kept: list[Any] = []
        self.names: dict[str, Any] = {}

    def handle(self, message: Any) -> Any:
        """What is asked of it, answered: ["ok", value] or ["error", kind, text]."""
        what, *rest = message
        try:
            return ["ok", getattr(self, f"do_{what}")(*rest)]
        except BaseException as error:
            return ["error", type(error).__name__, str(error)[:500]]

    def _keep(self, value: Any) -> int:
        self.kept.append(value)
        return len(self.kept) - 1

    def _limit(self, seconds: float) -> None:
        """Seconds of processor time from now on, after which this process ends."""
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        soft = math.ceil(time.process_time() + seconds)
        if most != resource.RLIM_INFINITY:
            soft = min(soft, most)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, most))

    def _pack(self, value: Any) -> Any:
        return pack(value, self._keep)

    def do_load(self, seconds: float) -> Any:
        """Run the code as a module; its names, those of modules with the module's own."""
        self._limit(seconds)
        module = types.ModuleType("solution")
        sys.modules["solution"] = module
        if self.before:
            exec(compile(self.before, "before.py", "exec"), module.__dict__)
        exec(compile(self.text, "solution.py", "exec"), module.__dict__)
        self.names = module.__dict__
        return {
            name: value.__name__ if isinstance(value, types.ModuleType) else None
            for name, value in self.names.items()
            if not name.startswith("__")
        }

    def do_name(self, name: str) -> Any:
        return self._pack(self.names[name])

    def do_call(self, number: int, args: Any, named: Any, seconds: float) -> Any:
        self._limit(seconds)
        arguments = unpack(args, self.kept.__getitem__)
        return self._pack(self.kept[number](*arguments, **unpack(named, self.kept.__getitem__)))

    def do_get(self, number: int, name: str) -> Any:
        return self._pack(getattr(self.kept[number], name))

    def do_set(self, number: int, name: str, value: Any) -> None:
        setattr(self.kept[number], name, unpack(value, self.kept.__getitem__))

    def do_unittest(self, tests: str, word: str, seconds: float) -> Any:
        """BigCodeBench: tests in the same module, which may replace parts of it."""
        import unittest

        result, loader = unittest.TestResult(), unittest.TestLoader()
        module = sys.modules["solution"]
        self._limit(seconds)
        exec(compile(tests, "tests.py", "exec"), module.__dict__)
        loader.loadTestsFromTestCase(module.__dict__["TestCases"]).run(result)
        failed = len(result.failures) + len(result.errors)
        return [word, result.testsRun, failed, len(result.skipped)]

    def do_program(self, stdin: str, seconds: float) -> Any:
        """Run the code as a program in a process of its own; what it printed."""
        with open("in.txt", "wb") as file:
            file.write(stdin.encode(errors="replace"))
        try:
            process = os.fork()
        except PermissionError:
            return self._printed(None)
        if not process:
            self._printed(1)
        deadline = time.monotonic() + seconds
        while True:
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                with suppress(ProcessLookupError):
                    os.kill(process, 9)
                os.waitpid(process, 0)
                raise TimeoutError(f"not ready after {seconds:.0f} s")
            time.sleep(0.002)
        if os.waitstatus_to_exitcode(status):
            raise RuntimeError(f"ended with {os.waitstatus_to_exitcode(status)}")
        with open("out.txt", "rb") as file:
            return file.read().decode(errors="replace")

    def _printed(self, out: int | None) -> str:
        """In the process that it may take with it (`out` is its stdout), or, where there is none, in this one."""
        stdin = os.open("in.txt", os.O_RDONLY)
        os.dup2(stdin, 0)
        stdout = os.dup(1) if out is None else -1
        os.dup2(os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
        sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8", "replace")
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "replace")
        failed = False
        try:
            names = {"__name__": "__main__", "__builtins__": builtins}
            if self.before:
                exec(compile(self.before, "before.py", "exec"), names)
            exec(compile(self.text, "solution.py", "exec"), names)
        except SystemExit:
            pass
        except BaseException:
            failed = True
        with suppress(BaseException):
            sys.stdout.flush()
        if out is not None:
            os._exit(int(failed))
        os.dup2(stdout, 1)
        sys.stdout = sys.__stdout__
        if failed:
            raise RuntimeError("it ended with an error")
        with open("out.txt", "rb") as file:
            return file.read().decode(errors="replace")


def serve(code: Code, pipe: Pipe) -> None:
    """The code's process: nothing of its parent's is open here but the pipe."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    others = {pipe.reading, pipe.writing, 0, 1, 2}
    for descriptor in set(range(256)) - others:
        with suppress(OSError):
            os.close(descriptor)
    while True:
        pipe.send(code.handle(pipe.receive()))


# ------------------------------------------------------------------------------ the tests' side


class Other:
    """The code, seen from the tests. Where no process may be started (`weak`), it is in this one."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self.seconds = CALL_SECONDS
        self._pipe: Pipe | None = None
        there, back = os.pipe(), os.pipe()
        try:
            process = os.fork()
        except PermissionError:
            return
        if not process:
            os.close(there[1])
            os.close(back[0])
            try:
                serve(code, Pipe(there[0], back[1]))
            finally:
                os._exit(1)
        os.close(there[0])
        os.close(back[1])
        self._pipe = Pipe(back[0], there[1])

    def ask(self, *message: Any) -> Any:
        """The plain answer. Raises what the code raised, where Python has such an exception."""
        if self._pipe:
            self._pipe.send(message)
            reply = self._pipe.receive()
        else:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                reply = self._code.handle(json.loads(json.dumps(message)))
        if reply[0] == "ok":
            return reply[1]
        kind = getattr(builtins, str(reply[1]), None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            error = kind.__new__(kind)
            error.args = (str(reply[2]),)
            raise error
        raise RuntimeError(f"{reply[1]}: {reply[2]}")

    def load(self) -> dict[str, Any]:
        """Names of the code as the tests may use them."""
        names: dict[str, Any] = {}
        for name, module in self.ask("load", self.seconds).items():
            if module is None:
                with suppress(Exception):
                    names[str(name)] = self.value(self.ask("name", name))
            elif str(module).partition(".")[0] in sys.stdlib_module_names:
                with suppress(ImportError):
                    names[str(name)] = importlib.import_module(str(module))
        return names

    def value(self, packed: Any) -> Any:
        return unpack(packed, lambda number: Remote(self, number))


class Remote(Kept):
    """Something of the code's that isn't plain: a function, a class, an object. It is equal to itself alone."""

    def __init__(self, other: Other, number: int) -> None:
        object.__setattr__(self, "_other", other)
        object.__setattr__(self, "_number", int(number))

    _other: Other

    def __call__(self, *args: Any, **named: Any) -> Any:
        other = self._other
        return other.value(other.ask("call", self._number, pack(args), pack(named), other.seconds))

    def __getattr__(self, name: str) -> Any:
        return self._other.value(self._other.ask("get", self._number, name))

    def __setattr__(self, name: str, value: Any) -> None:
        self._other.ask("set", self._number, name, pack(value))


def asserts(other: Other, tests: Mapping[str, Any]) -> dict[str, bool]:
    """HumanEval's and MBPP's: a program of asserts. `before` is the problem's own part of it, `entry` the function that
    its `check` is given."""
    space: dict[str, Any] = {"__name__": "tests"}
    exec(compile(tests.get("before", ""), "before.py", "exec"), space)
    own = set(space)
    names = other.load()
    space |= {name: value for name, value in names.items() if name not in own}
    entry = tests.get("entry")
    if entry:
        space[entry] = space["candidate"] = names[entry]
    exec(compile(tests["tests"], "tests.py", "exec"), space)
    if "check" in space and entry:
        space["check"](names[entry])
    return {"passed": True}


def outputs(other: Other, tests: Mapping[str, Any]) -> dict[str, bool]:
    """EvalPlus': outputs as those of the reference solution, for each group of inputs."""
    space: dict[str, Any] = {"__name__": "reference"}
    exec(compile(tests["reference"], "reference.py", "exec"), space)
    entry = tests["entry"]
    candidate = other.load()[entry]
    results = {}
    for group, inputs in tests["inputs"].items():
        right = True
        for packed in inputs:
            began = time.process_time()
            expected = space[entry](*unpack(packed, _nothing))
            other.seconds = max(FASTEST, SLOWER * (time.process_time() - began))
            try:
                output = candidate(*unpack(packed, _nothing))
                right = alike(output, expected, tests, unpack(packed, _nothing))
            except Exception:
                right = False
            if not right:
                break
        results[group] = right
    return results


def _nothing(number: int) -> Any:
    raise ValueError("inputs are plain")


def cases(other: Other, tests: Mapping[str, Any]) -> dict[str, bool]:
    """LiveCodeBench's: what is printed for what is read, or, with `entry`, what a method gives for JSON arguments."""
    entry = tests.get("entry")
    method = None
    if entry:
        names = other.load()
        method = getattr(names["Solution"](), entry) if "Solution" in names else names[entry]
    for case in tests["cases"]:
        if method is None:
            printed = other.ask("program", case["input"], tests["seconds"])
            if not printed_alike(str(printed), case["output"]):
                return {"passed": False}
            continue
        output = method(*(json.loads(line) for line in case["input"].split("\n")))
        output = list(output) if isinstance(output, tuple) else output
        if output != json.loads(case["output"]):
            return {"passed": False}
    return {"passed": True}


def unit_tests(other: Other, tests: Mapping[str, Any]) -> dict[str, bool]:
    """BigCodeBench's, in the code's own process."""
    other.ask("load", tests["seconds"])
    word = os.urandom(16).hex()
    echo, ran, failed, skipped = other.ask("unittest", tests["tests"], word, tests["seconds"])
    return {"passed": echo == word and ran >= tests["count"] and not failed and ran > skipped}


KINDS = {"asserts": asserts, "outputs": outputs, "cases": cases, "unittest": unit_tests}


def _read(size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = os.read(0, size - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def main() -> None:
    with suppress(PermissionError):  # `weak` forbids it
        import ctypes

        ctypes.CDLL(None).prctl(_NOT_DUMPABLE, *(ctypes.c_ulong(0),) * 4)
    sys.set_int_max_str_digits(0)
    head = bytearray()
    while not head.endswith(b"\n"):
        head += _read(1)
    code = json.loads(_read(int(head)))
    other = Other(Code(code["text"], code.get("before", "")))
    tests = bytearray()
    while piece := _read(1 << 20):
        tests += piece
    settings = json.loads(tests)
    try:
        results, why = KINDS[settings["kind"]](other, settings), ""
    except BaseException as error:
        results, why = {}, f"{type(error).__name__}: {error}"[:300]
    os.write(1, json.dumps({"found": results, "why": why}).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
