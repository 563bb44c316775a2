"""A newer schedule file, from its appearance to the step that is the first to run it.

No step waits for it: files are read, schedules checked and lowered in a thread beside the steps, and what ranks tell
each other between two steps is a few numbers (`flags`), but for the texts and the verdict on them, once each.

    rank 0 sees another file ─ reads it ─ all ranks get the texts ─ each prepares ─ all ready: taken up or left
"""

import os
from concurrent.futures import ThreadPoolExecutor

import torch

from .agree import agree, from_first


class Newer:
    """`prepare(texts)` gives what is taken up and a fingerprint that has to be the same on all ranks."""

    def __init__(self, path, problem_path, first, prepare):
        self.path, self.problem_path, self.first, self.prepare = path, problem_path, first, prepare
        self.seen = self._signature()
        self.pool = None
        self.reading = self.preparing = None

    def _signature(self):
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def texts(self):
        """Of the schedule and its problem."""
        return self.path.read_text("utf-8"), self.problem_path.read_text("utf-8")

    def _start(self, act, *args):
        if self.pool is None:
            self.pool = ThreadPoolExecutor(1, thread_name_prefix="optpipe-newer-schedule")
        return self.pool.submit(act, *args)

    def _look(self):
        signature = self._signature()
        if signature not in (None, self.seen):
            self.seen = signature
            self.reading = self._start(self.texts)

    def flags(self):
        """Whether this rank has texts for the others, and whether it is still at work on those that it got."""
        if self.first and self.reading is None and self.preparing is None:
            self._look()
        offered = self.preparing is None and self.reading is not None and self.reading.done()
        return [int(offered), int(self.preparing is not None and not self.preparing.done())]

    def after(self, group, offered, waiting):
        """The flags of all ranks, the largest of each, are known. What is to be taken up, if anything; a
        `Disagreement` says on every rank why a file is not."""
        if self.preparing is not None:
            if waiting:
                return None
            ready, self.preparing = self.preparing, None
            return agree(group, "newer schedule", ready.result)
        if offered:
            found = None
            if self.first:
                found, self.reading = self.reading.exception() or self.reading.result(), None
            found = from_first(group, found, torch.device("cpu"))
            self.preparing = self._start(self._prepare, found)
        return None

    def _prepare(self, found):
        if isinstance(found, Exception):
            raise found
        return self.prepare(found)
