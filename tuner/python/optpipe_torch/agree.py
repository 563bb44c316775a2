"""Checks that all ranks pass together or fail together."""

import torch.distributed as dist


class Disagreement(RuntimeError):
    """What is wrong, in the same words on every rank."""


def agree(group, what, act):
    """Runs `act` on every rank; it returns a result and a fingerprint that has to be the same everywhere.

    Every rank reaches the exchange, whatever `act` raised: none is left waiting, and all raise one error.
    """
    result, fingerprint, error = None, None, None
    try:
        result, fingerprint = act()
    except Exception as e:
        error = f"{type(e).__name__}: {e}"
    found = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, (fingerprint, error), group=group)
    failed = [f"rank {rank}: {error}" for rank, (_, error) in enumerate(found) if error is not None]
    if failed:
        raise Disagreement(f"{what}: {failed[0]}" + (f" (and {len(failed) - 1} more ranks)" if failed[1:] else ""))
    first = found[0][0]
    for rank, (other, _) in enumerate(found):
        if other != first:
            apart = [key for key in first if other.get(key) != first[key]]
            said = "; ".join(f"{key}: {first[key]} on rank 0, {other.get(key)} on rank {rank}" for key in apart)
            raise Disagreement(f"{what}: ranks disagree: {said}")
    return result


def from_first(group, value, device):
    """The first rank's object, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=dist.get_global_rank(group, 0), group=group, device=device)
    return box[0]
