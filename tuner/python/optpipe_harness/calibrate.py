"""Copies between devices and host as optpipe_torch makes them, alone and against each other, and sends."""

import os
import platform
import threading
import time

import torch
import torch.distributed as dist
from optpipe_torch.saved import host_buffer

SIZES = [(64 << 10) << (2 * power) for power in range(6)]  # to 64 MiB
WARMUP, LEAST, MOST, SECONDS = 2, 7, 61, 0.08
# Small copies take turns with so many bytes, that caches do not flatter them.
ROTATION = 32 << 20


class Copies:
    """Copies of one size in one direction."""

    def __init__(self, rank, size, out):
        self.rank, self.out, self.turn = rank, out, 0
        count = max(1, ROTATION // size)
        self.host = host_buffer(count * size, rank.cuda).view(count, size).fill_(1)
        self.device = torch.ones(count, size, dtype=torch.uint8, device=rank.device)
        self.stream = torch.cuda.Stream(rank.device) if rank.cuda else None

    def once(self):
        """One copy, ns."""
        self.turn = (self.turn + 1) % len(self.host)
        host, device = self.host[self.turn], self.device[self.turn]
        target, source = (host, device) if self.out else (device, host)
        if not self.rank.cuda:
            start = time.perf_counter_ns()
            target.copy_(source)
            return time.perf_counter_ns() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.stream(self.stream):
            start.record()
            target.copy_(source, non_blocking=True)
            end.record()
        end.synchronize()
        return round(start.elapsed_time(end) * 1e6)


def enough(samples, began):
    return len(samples) >= WARMUP + LEAST and (
        len(samples) >= WARMUP + MOST or time.monotonic() - began >= SECONDS)


def contend(copies):
    """Samples of copies that run at the same time on threads of their own, until all have enough."""
    samples, satisfied, failed = [[] for _ in copies], [False] * len(copies), []
    start = threading.Barrier(len(copies))

    def repeat(index):
        try:
            copies[index].once()
            start.wait()
            began = time.monotonic()
            while not all(satisfied) and not failed:
                ns = copies[index].once()
                if not satisfied[index]:
                    samples[index].append(ns)
                    satisfied[index] = enough(samples[index], began)
        except BaseException as e:
            failed.append(e)
            start.abort()

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(len(copies))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise next((e for e in failed if not isinstance(e, threading.BrokenBarrierError)), failed[0])
    return [sample[WARMUP:] for sample in samples]


def links(rank, directions, who):
    """Points of each direction: (bytes, samples). Ranks not in `who` wait."""
    points = [[] for _ in directions]
    for size in SIZES:
        rank.barrier()
        if rank.rank in who:
            for row, samples in zip(points, contend([Copies(rank, size, out) for out in directions])):
                row.append(dict(bytes=size, samples_ns=samples))
    rank.barrier()
    return points


def beside(rank, out):
    """Points of the first rank while the second copies in the same direction: it goes on until the first is done."""
    points = []
    done = torch.zeros(1)
    for size in SIZES:
        rank.barrier()
        if rank.rank == 0:
            [samples] = contend([Copies(rank, size, out)])
            points.append(dict(bytes=size, samples_ns=samples))
            dist.send(done, 1, group=rank.group)
        elif rank.rank == 1:
            copies, arrived = Copies(rank, size, out), dist.irecv(done, 0, group=rank.group)
            waiting = threading.Thread(target=arrived.wait)
            waiting.start()
            while waiting.is_alive():
                copies.once()
            waiting.join()
    rank.barrier()
    return points


def sends(rank):
    """Half of what a tensor takes from the first rank to the second and back."""
    points = []
    for size in SIZES[::2]:
        rank.barrier()
        if rank.rank > 1:
            continue
        tensor, samples = torch.ones(size // 4, device=rank.device), []
        for _ in range(WARMUP + LEAST):
            start = time.perf_counter_ns()
            if rank.rank == 0:
                dist.send(tensor, 1)
                dist.recv(tensor, 1)
            else:
                dist.recv(tensor, 0)
                dist.send(tensor, 0)
            rank.synchronize()
            samples.append((time.perf_counter_ns() - start) // 2)
        points.append(dict(bytes=size, samples_ns=samples[WARMUP:]))
    rank.barrier()
    return points


def device(rank):
    """What this rank's device is."""
    if rank.cuda:
        found = torch.cuda.get_device_properties(rank.device)
        return dict(name=found.name, memory_bytes=found.total_memory, cores=found.multi_processor_count)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    name = platform.processor() or platform.machine()
    return dict(name=f"{name}, {rank.hosts[rank.rank]}", memory_bytes=memory, cores=torch.get_num_threads())


def calibrate(rank, request):
    """Every situation that hardware.yaml has; the first rank's copies stand for all."""
    say = rank.control.progress
    say("calibrating: offload")
    [offload] = links(rank, [True], {0})
    say("calibrating: reload")
    [reload] = links(rank, [False], {0})
    say("calibrating: offload and reload at once")
    offload_duplex, reload_duplex = links(rank, [True, False], {0})
    neighbours = {}
    if rank.ranks > 1 and rank.hosts[0] == rank.hosts[1]:
        say("calibrating: beside a neighbour")
        neighbours = dict(offload_neighbour=beside(rank, True), reload_neighbour=beside(rank, False))
    send = []
    if rank.ranks > 1:
        say("calibrating: send")
        send = sends(rank)
    return dict(devices=rank.gather(device(rank)), clock="cuda events" if rank.cuda else "perf_counter",
                offload=offload, reload=reload, offload_duplex=offload_duplex, reload_duplex=reload_duplex,
                send=send, **neighbours)
