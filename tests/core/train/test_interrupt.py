"""Ctrl-C: once, twice, and where Python ignores it."""

import os
import signal
import subprocess
import sys

DROPPED = """
import os, signal, sys, weakref
from polyphi.train.interrupt import Interruptible, record_interrupts

class Thing: pass

record_interrupts()
thing = Thing()
reference = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
del thing
with Interruptible() as interrupted:
    print(interrupted())
"""


def test_one_that_python_ignores_takes_effect_at_the_next_step() -> None:
    process = subprocess.run(
        [sys.executable, "-c", DROPPED], capture_output=True, text=True, check=True
    )
    assert "Exception ignored" in process.stderr
    assert process.stdout == "True\n"


def test_the_first_is_recorded_and_the_second_stops() -> None:
    code = """
import os, signal
from polyphi.train.interrupt import Interruptible
with Interruptible() as interrupted:
    print(interrupted())
    os.kill(os.getpid(), signal.SIGINT)
    print(interrupted())
    os.kill(os.getpid(), signal.SIGINT)
    print("never")
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert process.stdout == "False\nTrue\n"
    assert process.returncode in (-signal.SIGINT, 130) and os.name == "posix"
