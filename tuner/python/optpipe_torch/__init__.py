"""Runs OptPipe's schedules on torch.distributed.pipelining, offloads and reloads included.

    schedule = OptPipeSchedule("schedule.yaml", stages, loss_fn)
    loss = schedule.step(inputs, target=targets)
    schedule.write_measured("measured.yaml")
"""

from .agree import Disagreement
from .files import ScheduleError
from .saved import OutOfMemory
from .schedule import OptPipeSchedule

__all__ = ["Disagreement", "OptPipeSchedule", "OutOfMemory", "ScheduleError"]
