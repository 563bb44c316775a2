"""What autograd keeps between forward and backward: counted, sent to the host, brought back.

Work is on storages: a storage that left has size 0, and tensors and views of it are as before once it is
back. Not moved: parameters and buffers, the batch and its targets (a microbatch's part is a view of the whole),
the stage's inputs (torch's receive buffers), its outputs (which may still be sent), and what microbatches share:
what two of them have saved at once, and what was there before the first forward (masks, tables of positions).
"""

import collections
import contextlib
import gc
import weakref

import torch
from torch.multiprocessing.reductions import StorageWeakRef


class OutOfMemory(RuntimeError):
    """A rank holds more than its limit."""

    def __init__(self, pair, held, limit):
        super().__init__(f"stage {pair[0]}, microbatch {pair[1]}: autograd holds {held} bytes, beside what is static "
                         f"the limit leaves {limit}")
        self.over_bytes = held - limit


class HostMemory(RuntimeError):
    """The host has no memory left that copies can go to; the device may have."""

    def __init__(self, size, error):
        super().__init__(f"no {size} bytes of host memory can be pinned: offload less, or give the process more "
                         f"(`ulimit -l`, a container's limit): {error}")


def host_buffer(size, pinned):
    """Host memory for copies."""
    try:
        return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
    except RuntimeError as e:
        if not pinned or not any(words in str(e).lower() for words in ("out of memory", "alloc")):
            raise
        # CUDA's own words could be about the device.
        raise HostMemory(size, e) from None


class _Entry:
    """One storage."""

    __slots__ = ("storage", "bytes", "references", "owners", "kept", "inside", "host", "arrived")

    def __init__(self, storage):
        self.storage = storage
        self.bytes = storage.nbytes()
        self.references = 0
        self.owners = set()
        self.kept = False  # does not move
        self.inside = True  # on the device
        self.host = None
        self.arrived = None  # CUDA: when the reload is over


class _Saved:
    """What autograd holds in a tensor's stead; its end tells that the graph let go."""

    __slots__ = ("tensor", "version", "entry", "ledger", "__weakref__")

    def __init__(self, tensor, entry, ledger):
        self.tensor, self.entry, self.ledger = tensor, entry, ledger
        self.version = tensor._version
        entry.references += 1

    def drop(self):
        """Lets go of the tensor, once."""
        if self.tensor is not None:
            self.tensor = None
            self.entry.references -= 1
            if self.entry.references == 0:
                self.ledger.release(self.entry)

    def __del__(self):
        self.drop()


def storages(tensors):
    """What tells the storages of tensors from others, as long as they live."""
    return {t.untyped_storage()._cdata for t in tensors if isinstance(t, torch.Tensor) and t.layout == torch.strided}


def existing(kind):
    """The storages of all tensors that Python holds on this kind of device, with weak references: while one is
    held, no new storage has the old one's identity."""
    found = {}
    for thing in gc.get_objects():
        # Not isinstance: that asks the object, and some answer with work or an error.
        if not issubclass(type(thing), torch.Tensor):
            continue
        try:
            if thing.device.type == kind and thing.layout == torch.strided:
                storage = thing.untyped_storage()
                found[storage._cdata] = StorageWeakRef(storage)
        except (RuntimeError, NotImplementedError):  # tensors without a storage
            continue
    return found


class Ledger:
    """The saved storages of a rank's stages. `shared` are tensors that several microbatches use."""

    def __init__(self, device, shared=()):
        self.device, self.shared = torch.device(device), list(shared)
        self.held = self.peak = self.offloaded = 0
        self.limit = None  # for `held`
        self.entries = {}
        self.saved = {}  # pair -> what autograd still holds
        self.outside = set()  # storages of parameters, buffers and the batch
        self.lasting = None  # storages that were there before the first forward
        self.host = _Host(self.device)
        # Per pair: bytes after F and after B, and what can move.
        self.activation, self.weight_context, self.offloadable = {}, {}, {}

    def begin_step(self, modules, batch=()):
        """Forgets the step before; parameters may have moved, the batch is another one."""
        for pair in list(self.saved):  # of a step that broke off
            self.after_backward(pair)
        self.outside = storages([*(t for m in modules for t in (*m.parameters(), *m.buffers())), *batch, *self.shared])
        self.peak, self.offloaded = self.held, 0

    def before_forward(self):
        """The first forward is about to begin: what is there by now no microbatch has made for itself."""
        if self.lasting is None:
            self.lasting = existing(self.device.type)

    @contextlib.contextmanager
    def saving(self, pair):
        """Counts what autograd saves for this stage and microbatch."""
        alive = self.saved.setdefault(pair, weakref.WeakSet())

        def pack(tensor):
            if tensor.layout != torch.strided or tensor.device.type != self.device.type:
                return tensor
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self.outside or key in (self.lasting or ()):
                return tensor
            if storage.nbytes() == 0:
                if tensor.numel() > 0:
                    raise RuntimeError(f"stage {pair[0]}, microbatch {pair[1]}: a tensor of {tuple(tensor.shape)} has "
                                       "left for the host with another microbatch: where microbatches share one, "
                                       "register it as a buffer or name it in shared=")
                return tensor
            entry = self.entries.get(key)
            if entry is None:
                entry = self.entries[key] = _Entry(storage)
                self.held += entry.bytes
            entry.owners.add(pair)
            saved = _Saved(tensor, entry, self)
            alive.add(saved)
            return saved

        def unpack(saved):
            if not isinstance(saved, _Saved):
                return saved
            if saved.tensor is None:
                raise RuntimeError(f"stage {pair[0]}, microbatch {pair[1]}: a second backward, the first has freed "
                                   "what it needs")
            if not saved.entry.inside:
                raise RuntimeError(f"stage {pair[0]}, microbatch {pair[1]}: backward needs an activation that is on "
                                   "the host: the schedule reloads it too late")
            # With hooks autograd leaves this check to them.
            if saved.tensor._version != saved.version:
                raise RuntimeError(f"stage {pair[0]}, microbatch {pair[1]}: a tensor of {tuple(saved.tensor.shape)} "
                                   "that backward needs has been modified by an inplace operation: it is at version "
                                   f"{saved.tensor._version}, version {saved.version} was saved")
            return saved.tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            yield

    def keep(self, inputs, outputs):
        """These tensors do not move; inputs are not counted either: torch holds them anyway."""
        for tensors, counted in ((inputs, False), (outputs, True)):
            for tensor in tensors:
                entry = self.entries.get(tensor.untyped_storage()._cdata)
                if entry is not None and not entry.kept:
                    entry.kept = True
                    if not counted:
                        self.held -= entry.bytes
                        entry.bytes = 0

    def _of(self, pair):
        return [entry for entry in self.entries.values() if pair in entry.owners]

    def after_forward(self, pair):
        own = self._of(pair)
        self.activation[pair] = sum(entry.bytes for entry in own)
        self.offloadable[pair] = sum(entry.bytes for entry in own if not entry.kept and len(entry.owners) == 1)
        self._grown(pair)

    def _grown(self, pair):
        self.peak = max(self.peak, self.held)
        if self.limit is not None and self.held > self.limit:
            raise OutOfMemory(pair, self.held, self.limit)

    def after_backward_input(self, pair):
        self.weight_context[pair] = sum(entry.bytes for entry in self._of(pair) if entry.inside)

    def after_backward(self, pair):
        """Nothing needs this pair any more. torch keeps the graphs of split backwards until its garbage is
        collected, and the loss's until the step ends: memory would not follow the schedule."""
        for saved in list(self.saved.pop(pair, ())):
            saved.drop()

    def release(self, entry):
        """The graph let go of a storage."""
        if self.entries.get(entry.storage._cdata) is entry:
            del self.entries[entry.storage._cdata]
        if entry.inside:
            self.held -= entry.bytes
        if entry.host is not None:
            self.host.give(entry.host, entry.arrived)
            entry.host = None

    def start_offload(self, pair):
        """Begins the copies to the host."""
        self.host.begin_out()
        for entry in self._of(pair):
            if not entry.kept and len(entry.owners) == 1 and entry.inside:
                entry.host = self.host.take(entry.bytes)
                self.host.out(entry.storage, entry.host)
        return self.host.end_out(pair)

    def end_offload(self, pair):
        """Waits for the copies (compute does, not the host) and frees what was copied."""
        self.host.wait_out(pair)
        for entry in self._of(pair):
            if entry.host is not None and entry.inside:
                entry.storage.resize_(0)
                entry.inside = False
                self.held -= entry.bytes
                self.offloaded += entry.bytes

    def reload(self, pair):
        """Allocates again and begins the copies back."""
        own = [entry for entry in self._of(pair) if not entry.inside]
        for entry in own:
            entry.storage.resize_(entry.bytes)
            entry.inside = True
            self.held += entry.bytes
        self._grown(pair)
        span = self.host.back([(entry.host, entry.storage) for entry in own], pair)
        for entry in own:
            entry.arrived = span[1] if self.host.cuda else None
            self.host.give(entry.host, entry.arrived)
            entry.host = None
        return span

    def await_reload(self, pair):
        """Before a backward: compute waits for what comes back."""
        self.host.wait_back(pair)


class _Host:
    """Host memory and the copies: on CUDA pinned, on a stream of their own each way; else plain."""

    def __init__(self, device):
        self.device = device
        self.cuda = device.type == "cuda"
        self.pool = {}  # bytes -> (buffer, event after which it is free), the first given first
        self.leaving, self.coming = {}, {}
        if self.cuda:
            self.streams = torch.cuda.Stream(device), torch.cuda.Stream(device)
        self.started = None

    def take(self, size):
        """A buffer that nothing is read from any more, so that no copy waits for another: of those given back the
        one that is so for longest, or a new one."""
        buffers = self.pool.setdefault(size, collections.deque())
        for i, (buffer, free) in enumerate(buffers):
            if free is None or free.query():
                del buffers[i]
                return buffer
        try:
            return host_buffer(size, self.cuda)
        except HostMemory:
            if not buffers:
                raise
            # Slower than to have one more, but there is none.
            buffer, free = buffers.popleft()
            self.streams[0].wait_event(free)
            return buffer

    def give(self, buffer, free):
        self.pool.setdefault(buffer.numel(), collections.deque()).append((buffer, free))

    def _bytes(self, storage):
        return torch.empty(0, dtype=torch.uint8, device=self.device).set_(storage)

    def _event(self, stream):
        event = torch.cuda.Event(enable_timing=True)
        event.record(stream)
        return event

    def begin_out(self):
        if self.cuda:
            self.streams[0].wait_stream(torch.cuda.current_stream(self.device))
            self.started = self._event(self.streams[0])

    def out(self, storage, buffer):
        if self.cuda:
            with torch.cuda.stream(self.streams[0]):
                buffer.copy_(self._bytes(storage), non_blocking=True)
        else:
            buffer.copy_(self._bytes(storage))

    def end_out(self, pair):
        """Start and end of the copies, as CUDA events."""
        if not self.cuda:
            return None
        self.leaving[pair] = self._event(self.streams[0])
        return self.started, self.leaving[pair]

    def wait_out(self, pair):
        if self.cuda:
            torch.cuda.current_stream(self.device).wait_event(self.leaving.pop(pair))

    def back(self, copies, pair):
        if not self.cuda:
            for buffer, storage in copies:
                self._bytes(storage).copy_(buffer)
            return None
        # What was in that memory before may still be in use by compute that was queued before; what is queued after
        # runs beside the copies.
        self.streams[1].wait_stream(torch.cuda.current_stream(self.device))
        started = self._event(self.streams[1])
        with torch.cuda.stream(self.streams[1]):
            for buffer, storage in copies:
                self._bytes(storage).copy_(buffer, non_blocking=True)
        self.coming[pair] = self._event(self.streams[1])
        return started, self.coming[pair]

    def wait_back(self, pair):
        event = self.coming.pop(pair, None)
        if event is not None:
            torch.cuda.current_stream(self.device).wait_event(event)
