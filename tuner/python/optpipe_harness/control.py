"""How the tuner and the ranks talk: files in one folder, each written whole or not at all.

| file | from | what |
| --- | --- | --- |
| `request-N.json`, `reply-N.json` | tuner, rank 0 | what to do, what came of it |
| `progress.json` | rank 0 | what is going on: a sign of life |
| `alive` | tuner | changes as long as it lives: ranks end when it stays the same |
| `stop` | tuner | ranks end; with `dump` in it they first write to their logs where they are |
| `rank-R.json`, `rank-R.log`, `rank-R.failed.json`, `rank-R.stopped` | rank R | its process, what it said, why it failed, that it saw `stop` |
"""

import faulthandler
import json
import os
import socket
import sys
import threading
import time
import traceback

VERSION = 1
# As long as the tuner may be silent before it counts as gone.
ORPHANED_SECONDS = 30
POLL_SECONDS = 0.02
# A rank whose peer is gone waits so long for torchrun to end it: the peer's end is the news.
PEER_SECONDS = 20
# Of a device whose memory is full, by those who allocate past torch's allocator, too.
OUT_OF_MEMORY = ("DefaultCPUAllocator", "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED",
                 "CUDNN_STATUS_ALLOC_FAILED")


class Refused(Exception):
    """What was asked for cannot be done here: the user's to change."""


class Control:
    """One rank's end."""

    def __init__(self, folder, rank):
        self.folder, self.rank = folder, rank
        self.said = 0
        self.request = None
        self._write(f"rank-{rank}.json", dict(version=VERSION, pid=os.getpid(), host=socket.gethostname()))

    def _write(self, name, value):
        path = self.folder / name
        partial = path.with_name(f".{name}.{self.rank}.partial")
        partial.write_text(json.dumps(value), "utf-8")
        os.replace(partial, path)

    def watch(self):
        """Ends this process when the tuner says so or is gone."""
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        last, since = None, time.monotonic()
        while True:
            try:
                how = (self.folder / "stop").read_text("utf-8")
            except OSError:
                how = None
            if how is not None:
                if "dump" in how:
                    print("stopped by the tuner; where every thread is:", file=sys.stderr, flush=True)
                    faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                self._write(f"rank-{self.rank}.stopped", dict(version=VERSION))
                os._exit(3)
            try:
                now = (self.folder / "alive").read_text("utf-8")
            except OSError:
                now = last
            if now != last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > ORPHANED_SECONDS:
                print("the tuner is gone", file=sys.stderr, flush=True)
                os._exit(3)
            time.sleep(0.1)

    def guard(self, act):
        """Runs `act`; the exit code. What it raises is written down for the tuner."""
        try:
            act()
            return 0
        except BaseException as e:  # also what ends a process: the tuner has to hear of it
            traceback.print_exc()
            sys.stderr.flush()
            # torch wraps what a stage raises.
            while e.__cause__ is not None:
                e = e.__cause__
            kind, over = classify(e)
            self._write(f"rank-{self.rank}.failed.json", dict(
                version=VERSION, rank=self.rank, kind=kind, time_ns=time.time_ns(), over_bytes=over,
                message=f"{e}" if kind == "refused" else f"{type(e).__name__}: {e}"))
            if kind == "peer":
                time.sleep(PEER_SECONDS)
            return 1

    def next_request(self, number):
        """The text of a request, once it is there."""
        path = self.folder / f"request-{number}.json"
        while not path.exists():
            time.sleep(POLL_SECONDS)
        return path.read_text("utf-8")

    def progress(self, text):
        """Something gets done: every rank's log has it, and rank 0 tells the tuner."""
        print(text, flush=True)
        if self.rank == 0:
            self.said += 1
            self._write("progress.json", dict(version=VERSION, number=self.said, text=text))

    def reply(self, number, value):
        """Rank 0 answers a request."""
        if self.rank == 0:
            self._write(f"reply-{number}.json", dict(version=VERSION, **value))


def classify(error):
    """What kind of failure it is, and by how many bytes memory was too small where that is known."""
    names = {cls.__name__ for cls in type(error).__mro__}
    text = str(error)
    if "OutOfMemory" in names:  # of optpipe_torch: the tracked limit
        return "out_of_memory", error.over_bytes
    if "HostMemory" in names:  # of optpipe_torch: less on the device would not help
        return "error", None
    if "OutOfMemoryError" in names or isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        return "out_of_memory", None
    if "NCCL" in text and "out of memory" in text:
        return "out_of_memory", None
    if "Refused" in names or "Disagreement" in names:
        return "refused", None
    if names & {"DistNetworkError", "DistBackendError"} or "Connection closed by peer" in text or \
            "Connection reset by peer" in text or "gloo" in text.lower() or "NCCL" in text:
        return "peer", None
    return "error", None
