"""The loop over requests, all ranks together."""

import datetime
import gc
import importlib.metadata
import importlib.util
import json
import os
import socket
from dataclasses import dataclass

import torch
import torch.distributed as dist
from optpipe_torch.agree import agree, from_first
from optpipe_torch.measure import clock_offset
from optpipe_torch.schedule import check_version

from .calibrate import calibrate
from .control import Control, Refused
from .profile import profile
from .run import run

COMMANDS = dict(calibrate=calibrate, profile=profile, run=run)


@dataclass
class Rank:
    """What commands work with."""

    control: Control
    rank: int
    ranks: int
    device: torch.device
    group: object  # gloo, for objects and barriers that may take long
    hosts: list  # of every rank
    offset_ns: int  # this rank's wall clock less the first rank's

    @property
    def cuda(self):
        return self.device.type == "cuda"

    def synchronize(self):
        """Waits until the device has done what it was given."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def barrier(self):
        """Waits for all ranks, their devices included."""
        self.synchronize()
        dist.barrier(self.group)

    def gather(self, value):
        """Every rank's object, on every rank."""
        found = [None] * self.ranks
        dist.all_gather_object(found, value, group=self.group)
        return found


def join(control, backend, timeout):
    """Joins the other ranks."""
    local, beside = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if backend == "cuda":
        count = torch.cuda.device_count()
        if not torch.cuda.is_available():
            raise Refused(f"torch {torch.__version__} finds no GPU on {socket.gethostname()} (in the job: backend: cuda)")
        if count < beside:
            raise Refused(f"{socket.gethostname()} has {count} GPUs for {beside} ranks: a rank takes one of its own")
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")
    # The tuner notices silence first and says which rank it is; this is for a tuner that cannot.
    limit = datetime.timedelta(seconds=timeout + 120)
    dist.init_process_group("nccl" if backend == "cuda" else "gloo", timeout=limit)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=7))
    agree(group, "torchrun", lambda: (check_version(), {"torch": torch.__version__}))
    hosts = [None] * ranks
    dist.all_gather_object(hosts, socket.gethostname(), group=group)
    # Ranks of one host share its clock: nothing estimated is better than that.
    offset = clock_offset(group)
    offset = 0 if hosts[rank] == hosts[0] else offset
    return Rank(control, rank, ranks, device, group, hosts, offset)


def serve(control, backend, timeout):
    """Answers requests until the tuner ends this process."""
    rank = join(control, backend, timeout)
    found = rank.gather(importlib.metadata.version("transformers") if importlib.util.find_spec("transformers") else None)
    control.reply(0, dict(torch=torch.__version__, transformers=None if None in found else found[0], hosts=rank.hosts))
    number = 0
    while True:
        number += 1
        text = control.next_request(number) if rank.rank == 0 else None
        request = json.loads(from_first(rank.group, text, torch.device("cpu")))
        result = COMMANDS[request["command"]](rank, request)
        gc.collect()
        if rank.cuda:
            torch.cuda.empty_cache()
        rank.barrier()
        control.reply(number, result)
