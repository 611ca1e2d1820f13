"""Signals that have taken effect when the call returns."""

import os
import signal


def freeze(pid: int) -> None:
    """Stop a child of this process, as SIGSTOP does, and wait until none of its threads runs any more.

    A thread stops only when it is scheduled next; on a busy machine an answer or two may come before.
    """
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED)
