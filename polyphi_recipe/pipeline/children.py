"""Processes that datatrove starts end with this one, also where it is killed. Small: its manager of queues imports
nothing else."""

import os
import signal
import threading

import multiprocess
import multiprocess.util


def _end_with_parent(_: object) -> None:
    """Let this new process be killed when the process that requested it ends. That isn't always the one that forked it,
    and children keep the latter from ending."""
    parent = multiprocess.parent_process()

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True, name="end with parent").start()


multiprocess.util.register_after_fork(multiprocess, _end_with_parent)
