"""Runs in the sandbox as a standalone program (programs.py sends this file): the code under test in one process, its
tests in another.

    tests' process                                 code's process
    reads the code from stdin, starts the other -> closes stdin, stdout and stderr, runs the code
    reads the tests, runs them                     (started before the tests were read, so it doesn't have them)
    a call of the code's functions              -> returns plain data
    prints the verdict

Only numbers, strings and containers of them return through the pipe, and are rebuilt in the tests' process, so that an
object that is equal to everything has no effect there. Changes of `assert`, `builtins`, open files or the code's
process (an exit with code 0, say) don't change a verdict; the tests' process can't be read or traced (it isn't
dumpable), and if the code kills it, the code fails.

**Limits**: "unittest" tests run in the code's process, because they patch it (BigCodeBench); they are read after the
code was loaded, and their result includes a random token that it can't know then, but functions that the tests call can
search for it. Without namespaces (`weak`) no second process may be started, and everything runs in one.
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
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import Any

MESSAGE_BYTES = 64 << 20
"""Maximum size of a message from the code's process."""
CALL_SECONDS = 1.0
"""CPU time of a call, and of running the code as a module."""
MIN_SECONDS, REFERENCE_FACTOR = 1.0, 4.0
"""EvalPlus' time limit for each input: at least these seconds, or this multiple of the reference's time."""
_NOT_DUMPABLE = 4
ITEMS = 1_000_000
"""Most items of an iterator that are read."""
RELATIVE = 1e-7
"""NumPy's and EvalPlus' relative tolerance of numbers, in addition to a problem's absolute one."""


# ------------------------------------------------------------------------------ values


def pack(value: Any, add: Callable[[Any], int] | None = None) -> Any:
    """Return a value as JSON; objects that aren't plain data are stored by `add`, which returns their numbers."""
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value if type(value) is not str else str(value)
    if isinstance(value, float):
        return float(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    if isinstance(value, bytes | bytearray):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, list):
        return ["list", *(pack(item, add) for item in value)]
    if isinstance(value, tuple):
        return ["tuple", *(pack(item, add) for item in value)]
    if isinstance(value, Mapping):
        return ["dict", *([pack(k, add), pack(v, add)] for k, v in value.items())]
    if isinstance(value, set | frozenset | type({}.keys())):
        return ["set", *(pack(item, add) for item in value)]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if isinstance(value, Decimal):
        return ["decimal", str(value)]
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return pack(value.item(), add)
    if hasattr(type(value), "__next__"):
        return ["iterator", *(pack(item, add) for item in islice(value, ITEMS))]
    if isinstance(value, Remote):
        return ["reference", value._number]
    if add is None:
        raise TypeError(
            f"expected plain data for code in another process, found {type(value).__name__}"
        )
    return ["reference", add(value)]


def unpack(packed: Any, get: Callable[[int], Any]) -> Any:
    """Return a packed value; `get` returns the object of a number."""
    if not isinstance(packed, list):
        return packed
    tag, *items = packed
    if tag == "complex":
        return complex(*items)
    if tag == "bytes":
        return bytes.fromhex(items[0])
    if tag == "range":
        return range(*items)
    if tag == "decimal":
        return Decimal(items[0])
    if tag == "reference":
        return get(items[0])
    if tag == "dict":
        return {unpack(k, get): unpack(v, get) for k, v in items}
    values = [unpack(item, get) for item in items]
    constructors: dict[str, Callable[[list[Any]], Any]] = {
        "list": list,
        "tuple": tuple,
        "set": set,
        "iterator": iter,
    }
    return constructors[tag](values)


def outputs_equal(
    output: Any, expected: Any, tests: Mapping[str, Any], inputs: Sequence[Any]
) -> bool:
    """EvalPlus' comparison: equal, or by the problem's rule, or as numbers within a tolerance."""
    rule, tolerance = tests.get("rule"), float(tests.get("tolerance") or 0)
    if rule == "any":
        return True
    if rule == "set":
        return set(output) == set(expected)
    if rule == "something":
        return (output if isinstance(output, bool) else output is not None) == (
            expected is not None
        )
    if rule == "root":  # of the polynomial with the input as coefficients
        value = sum(c * math.pow(output, n) for n, c in enumerate(inputs[0]))
        return abs(value) <= tolerance
    if output == expected or (rule == "zero" and output == 0):
        return True
    if rule == "height" and abs(output - _pyramid(*inputs)) <= tolerance:
        return True
    if rule == "digits" and output == _digits(*inputs):
        return True
    if not tolerance and _floats(expected):
        tolerance = 1e-6
    return (
        bool(tolerance) and type(output) is type(expected) and _close(output, expected, tolerance)
    )


def _floats(value: Any) -> bool:
    if isinstance(value, list | tuple) and value:
        return all(isinstance(item, float) for item in value)
    return isinstance(value, float)


def _close(output: Any, expected: Any, tolerance: float) -> bool:
    if isinstance(expected, list | tuple):
        return (
            isinstance(output, list | tuple)
            and len(output) == len(expected)
            and all(_close(g, w, tolerance) for g, w in zip(output, expected, strict=True))
        )
    if output == expected:
        return True
    return abs(output - expected) <= tolerance + RELATIVE * abs(expected)


def _pyramid(base: float, height: float) -> int:
    """Surface of a square pyramid with vertical height (an accepted interpretation of MBPP 581)."""
    return round(base**2 + 2 * base * math.sqrt((base / 2) ** 2 + height**2))


def _digits(a: int, b: int) -> int:
    """Sum of the differences of two numbers' digits (an accepted interpretation of MBPP 558)."""
    x, y = str(a), str(b)
    width = max(len(x), len(y))
    return sum(abs(int(p) - int(q)) for p, q in zip(x.zfill(width), y.zfill(width), strict=True))


def printed_equal(output: str, expected: str) -> bool:
    """Whether all lines are equal, except for outer space, or have equal decimal numbers."""
    lines = [[line.strip() for line in text.strip().split("\n")] for text in (output, expected)]
    if len(lines[0]) != len(lines[1]):
        return False
    for ours, theirs in zip(*lines, strict=True):
        if ours == theirs:
            continue
        try:
            if [Decimal(w) for w in ours.split()] != [Decimal(w) for w in theirs.split()]:
                return False
        except InvalidOperation:
            return False
    return True


# ------------------------------------------------------------------------------ messages


class Pipe:
    """JSON messages, a line each, through two file descriptors."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading, self.writing = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")

    def send(self, message: Any) -> None:
        self.writing.write(json.dumps(message).encode() + b"\n")
        self.writing.flush()

    def receive(self) -> Any:
        line = self.reading.readline(MESSAGE_BYTES)
        if not line:
            raise EOFError("the code ended its process")
        if not line.endswith(b"\n"):
            raise EOFError(
                f"expected a message of at most {MESSAGE_BYTES} bytes, found a longer one"
            )
        return json.loads(line)


# ------------------------------------------------------------------------------ the code's side


class Code:
    """The code under test, and its objects that aren't plain data."""

    def __init__(self, text: str, before: str = "") -> None:
        self.text, self.before = text, before
        self.objects: list[Any] = []
        self.names: dict[str, Any] = {}

    def handle(self, message: Any) -> Any:
        """Run a request [method, *arguments]; return ["ok", value] or ["error", type, text]."""
        method, *arguments = message
        try:
            return ["ok", getattr(self, f"do_{method}")(*arguments)]
        except BaseException as error:
            return ["error", type(error).__name__, str(error)[:500]]

    def _add(self, value: Any) -> int:
        self.objects.append(value)
        return len(self.objects) - 1

    def _limit(self, seconds: float) -> None:
        """End this process after further `seconds` of CPU time."""
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        soft = math.ceil(time.process_time() + seconds)
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))

    def _pack(self, value: Any) -> Any:
        return pack(value, self._add)

    def _unpack(self, value: Any) -> Any:
        return unpack(value, self.objects.__getitem__)

    def do_load(self, seconds: float) -> Any:
        """Run the code as a module; return its names, with the full name of those that are modules."""
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

    def do_call(self, number: int, args: Any, kwargs: Any, seconds: float) -> Any:
        self._limit(seconds)
        arguments = self._unpack(args)
        return self._pack(self.objects[number](*arguments, **self._unpack(kwargs)))

    def do_get(self, number: int, name: str) -> Any:
        return self._pack(getattr(self.objects[number], name))

    def do_set(self, number: int, name: str, value: Any) -> None:
        setattr(self.objects[number], name, self._unpack(value))

    def do_unittest(self, tests: str, token: str, seconds: float) -> Any:
        """Run BigCodeBench's tests in the code's module, which they may patch."""
        import unittest

        result, loader = unittest.TestResult(), unittest.TestLoader()
        module = sys.modules["solution"]
        self._limit(seconds)
        exec(compile(tests, "tests.py", "exec"), module.__dict__)
        loader.loadTestsFromTestCase(module.__dict__["TestCases"]).run(result)
        failed = len(result.failures) + len(result.errors)
        return [token, result.testsRun, failed, len(result.skipped)]

    def do_program(self, stdin: str, seconds: float) -> Any:
        """Run the code as a program, in a new process if one may be started; return its output."""
        with open("in.txt", "wb") as file:
            file.write(stdin.encode(errors="replace"))
        try:
            process = os.fork()
        except PermissionError:
            stdout = os.dup(1)
            failed = self._run()
            os.dup2(stdout, 1)
            sys.stdout = sys.__stdout__
        else:
            if not process:
                os._exit(self._run())
            deadline = time.monotonic() + seconds
            while not (ended := os.waitpid(process, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    os.kill(process, 9)
                    os.waitpid(process, 0)
                    raise TimeoutError(
                        f"expected it to end within {seconds:.0f} s, found it running"
                    )
                time.sleep(0.002)
            failed = bool(ended[1])
        if failed:
            raise RuntimeError("the program failed: expected exit code 0")
        with open("out.txt", "rb") as file:
            return file.read().decode(errors="replace")

    def _run(self) -> bool:
        """Run the code with in.txt as stdin and out.txt as stdout; return whether it raised an exception."""
        failed = False
        try:
            os.dup2(os.open("in.txt", os.O_RDONLY), 0)
            os.dup2(os.open("out.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 1)
            sys.stdin = io.TextIOWrapper(io.FileIO(0, closefd=False), "utf-8", "replace")
            sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), "utf-8", "replace")
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
        return failed


def serve(code: Code, pipe: Pipe) -> None:
    """Serve requests in the code's process, with all file descriptors of the parent closed but the pipe's."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    open_descriptors = {pipe.reading.fileno(), pipe.writing.fileno(), 0, 1, 2}
    for descriptor in set(range(256)) - open_descriptors:
        with suppress(OSError):
            os.close(descriptor)
    while True:
        pipe.send(code.handle(pipe.receive()))


# ------------------------------------------------------------------------------ the tests' side


class Proxy:
    """The code, for its tests: in a child process, or in this one if no process may be started (`weak`)."""

    def __init__(self, code: Code) -> None:
        self._code = code
        self.seconds = CALL_SECONDS
        self._pipe: Pipe | None = None
        requests, replies = os.pipe(), os.pipe()
        try:
            process = os.fork()
        except PermissionError:
            return
        if not process:
            os.close(requests[1])
            os.close(replies[0])
            try:
                serve(code, Pipe(requests[0], replies[1]))
            finally:
                os._exit(1)
        os.close(requests[0])
        os.close(replies[1])
        self._pipe = Pipe(replies[0], requests[1])

    def request(self, *message: Any) -> Any:
        """Send a request and return its result. Raises the code's exception, as RuntimeError if it isn't built in."""
        if self._pipe:
            self._pipe.send(message)
            reply = self._pipe.receive()
        else:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                reply = self._code.handle(json.loads(json.dumps(message)))
        if reply[0] == "ok":
            return reply[1]
        error_type = getattr(builtins, str(reply[1]), None)
        if isinstance(error_type, type) and issubclass(error_type, Exception):
            error = error_type.__new__(error_type)
            error.args = (str(reply[2]),)
            raise error
        raise RuntimeError(f"{reply[1]}: {reply[2]}")

    def load(self) -> dict[str, Any]:
        """Run the code and return its names for the tests."""
        names: dict[str, Any] = {}
        for name, module in self.request("load", self.seconds).items():
            if module is None:
                with suppress(Exception):
                    names[str(name)] = self.value(self.request("name", name))
            elif str(module).partition(".")[0] in sys.stdlib_module_names:
                with suppress(ImportError):
                    names[str(name)] = importlib.import_module(str(module))
        return names

    def value(self, packed: Any) -> Any:
        return unpack(packed, lambda number: Remote(self, number))


class Remote:
    """An object of the code that isn't plain data (a function, a class, an instance), by its number. It is equal only
    to itself."""

    def __init__(self, proxy: Proxy, number: int) -> None:
        object.__setattr__(self, "_proxy", proxy)
        object.__setattr__(self, "_number", int(number))

    _proxy: Proxy
    _number: int

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        proxy = self._proxy
        packed = pack(args), pack(kwargs)
        return proxy.value(proxy.request("call", self._number, *packed, proxy.seconds))

    def __getattr__(self, name: str) -> Any:
        return self._proxy.value(self._proxy.request("get", self._number, name))

    def __setattr__(self, name: str, value: Any) -> None:
        self._proxy.request("set", self._number, name, pack(value))


def asserts(proxy: Proxy, tests: Mapping[str, Any]) -> dict[str, bool]:
    """Run HumanEval's or MBPP's asserts. `before` is the problem's code, `entry` the function to pass to `check`."""
    space: dict[str, Any] = {"__name__": "tests"}
    exec(compile(tests.get("before", ""), "before.py", "exec"), space)
    own = set(space)
    names = proxy.load()
    space |= {name: value for name, value in names.items() if name not in own}
    entry = tests.get("entry")
    if entry:
        space[entry] = space["candidate"] = names[entry]
    exec(compile(tests["tests"], "tests.py", "exec"), space)
    if "check" in space and entry:
        space["check"](names[entry])
    return {"passed": True}


def outputs(proxy: Proxy, tests: Mapping[str, Any]) -> dict[str, bool]:
    """Run EvalPlus' tests: compare outputs with those of the reference solution, for each group of inputs."""
    space: dict[str, Any] = {"__name__": "reference"}
    exec(compile(tests["reference"], "reference.py", "exec"), space)
    entry = tests["entry"]
    candidate = proxy.load()[entry]
    results = {}
    for group, inputs in tests["inputs"].items():
        right = True
        for packed in inputs:
            began = time.process_time()
            expected = space[entry](*unpack(packed, _no_object))
            seconds = time.process_time() - began
            proxy.seconds = max(MIN_SECONDS, REFERENCE_FACTOR * seconds)
            try:
                output = candidate(*unpack(packed, _no_object))
                right = outputs_equal(output, expected, tests, unpack(packed, _no_object))
            except Exception:
                right = False
            if not right:
                break
        results[group] = right
    return results


def _no_object(number: int) -> Any:
    raise ValueError(f"expected inputs of plain data, found object {number}")


def cases(proxy: Proxy, tests: Mapping[str, Any]) -> dict[str, bool]:
    """Run LiveCodeBench's tests: compare stdout for stdin, or, with `entry`, a method's results for JSON arguments."""
    entry = tests.get("entry")
    method = None
    if entry:
        names = proxy.load()
        method = getattr(names["Solution"](), entry) if "Solution" in names else names[entry]
    for case in tests["cases"]:
        if method is None:
            stdout = proxy.request("program", case["input"], tests["seconds"])
            if not printed_equal(str(stdout), case["output"]):
                return {"passed": False}
            continue
        output = method(*(json.loads(line) for line in case["input"].split("\n")))
        output = list(output) if isinstance(output, tuple) else output
        if output != json.loads(case["output"]):
            return {"passed": False}
    return {"passed": True}


def unit_tests(proxy: Proxy, tests: Mapping[str, Any]) -> dict[str, bool]:
    """Run BigCodeBench's unit tests in the code's process."""
    proxy.request("load", tests["seconds"])
    token = os.urandom(16).hex()
    echo, ran, failed, skipped = proxy.request("unittest", tests["tests"], token, tests["seconds"])
    return {"passed": echo == token and ran >= tests["count"] and not failed and ran > skipped}


RUNNERS = {"asserts": asserts, "outputs": outputs, "cases": cases, "unittest": unit_tests}


def _read(size: int) -> bytes:
    """Read exactly so many bytes of stdin, so that none of the tests are in memory when the code's process starts."""
    data = b""
    while chunk := os.read(0, size - len(data)):
        data += chunk
    return data


def main() -> None:
    with suppress(PermissionError):  # forbidden in `weak` mode
        import ctypes

        ctypes.CDLL(None).prctl(_NOT_DUMPABLE, *(ctypes.c_ulong(0),) * 4)
    sys.set_int_max_str_digits(0)
    head = b""
    while not head.endswith(b"\n"):
        head += os.read(0, 1)
    code = json.loads(_read(int(head)))
    proxy = Proxy(Code(code["text"], code.get("before", "")))
    settings = json.loads(b"".join(iter(lambda: os.read(0, 1 << 20), b"")))
    try:
        results, why = RUNNERS[settings["kind"]](proxy, settings), ""
    except BaseException as error:
        results, why = {}, f"{type(error).__name__}: {error}"[:300]
    os.write(1, json.dumps({"results": results, "why": why}).encode() + b"\n")
    os._exit(0)


if __name__ == "__main__":
    main()
