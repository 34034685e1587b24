"""Ctrl-C: once, twice, and where Python drops it."""

import os
import signal
import subprocess
import sys

DROPPED = """
import os, signal, sys, weakref
from polyphi.train.interrupt import Interruptible, remember

class Thing: pass

remember()
thing = Thing()
kept = weakref.ref(thing, lambda _: os.kill(os.getpid(), signal.SIGINT))
del thing
with Interruptible() as asked:
    print(asked())
"""


def test_one_that_python_drops_counts_at_the_next_step() -> None:
    done = subprocess.run(
        [sys.executable, "-c", DROPPED], capture_output=True, text=True, check=True
    )
    assert "Exception ignored" in done.stderr
    assert done.stdout == "True\n"


def test_one_asks_and_a_second_stops() -> None:
    code = """
import os, signal
from polyphi.train.interrupt import Interruptible
with Interruptible() as asked:
    print(asked())
    os.kill(os.getpid(), signal.SIGINT)
    print(asked())
    os.kill(os.getpid(), signal.SIGINT)
    print("never")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "False\nTrue\n"
    assert done.returncode in (-signal.SIGINT, 130) and os.name == "posix"
