"""Ctrl-C is answered within seconds, also while a compiler holds the main thread."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import threading
import time

MESSAGE = "\ninterrupted: compiled programs are kept in the cache; run the command again to go on"
STATUS = 130
# Python handles Ctrl-C between two bytecode instructions, and a compiler may run for minutes in one.
GRACE_SECONDS = 2.0


def answer_interrupts() -> None:
    """Ends this process and its workers `GRACE_SECONDS` after Ctrl-C, if it has not ended by then.

    Call it in the main thread.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, writer), daemon=True).start()


def kill_workers() -> None:
    """Ends the processes that this one has started to compile."""
    for child in multiprocessing.active_children():
        child.kill()


def _watch(reader: socket.socket, writer: socket.socket) -> None:
    """Waits for the byte that the C handler of SIGINT writes; `writer` must live as long."""
    while reader.recv(1) != bytes([signal.SIGINT]):
        pass
    time.sleep(GRACE_SECONDS)
    del writer
    print(MESSAGE, file=sys.stderr, flush=True)
    kill_workers()
    os._exit(STATUS)
