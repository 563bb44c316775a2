//! Where devices idle, and why.

use optpipe_solver::problem::Problem;
use schemars::JsonSchema;
use serde::Serialize;

use super::waits::{Cause, Waits};
use crate::export::bars::Bars;

/// The time of a step in which one device does not compute, ns, by what it waits for. The parts add up to
/// all of it.
///
/// A device that waits for its neighbour is not asked what the neighbour waits for: that is the neighbour's
/// own idle time, where it has any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct Idle {
    /// Before its first op. A device that computes nothing warms up all the time.
    pub warm_up_ns: i64,
    /// For an activation or a gradient of another stage.
    pub neighbour_ns: i64,
    /// For activations on their way back from the host, or in the queue for the channel.
    pub reload_ns: i64,
    /// For memory to be freed, by a backward or an offload: for a forward, or for a reload to begin.
    pub memory_ns: i64,
    /// For nothing that the problem knows of: the next op could have started earlier. None in a schedule that
    /// starts every op when it is ready; when measured, the time that is lost between ops.
    pub unforced_ns: i64,
    /// After its last op.
    pub drain_ns: i64,
}

impl Idle {
    /// The parts with their names, in the order in which they are shown.
    pub fn parts(&self) -> [(&'static str, i64); 6] {
        [
            ("warm-up", self.warm_up_ns),
            ("waiting for neighbour", self.neighbour_ns),
            ("waiting for reload", self.reload_ns),
            ("waiting for memory", self.memory_ns),
            ("not forced", self.unforced_ns),
            ("drain", self.drain_ns),
        ]
    }

    /// All of it, ns.
    pub fn total_ns(&self) -> i64 {
        self.parts().iter().map(|(_, ns)| ns).sum()
    }
}

/// The idle time of each device. `waits` are those of `bars`.
///
/// The parts of a device add up to the makespan less the time in which one or more of its ops compute;
/// measured ops may overlap by the clocks' resolution, those of a legal schedule never do.
pub fn idle(problem: &Problem, bars: &Bars, waits: &Waits) -> Vec<Idle> {
    (0..problem.devices).map(|device| of_device(bars, waits, device)).collect()
}

fn of_device(bars: &Bars, waits: &Waits, device: usize) -> Idle {
    let mut idle = Idle::default();
    let mut until: Option<i64> = None;
    for (bar, wait) in bars.devices[device].iter().zip(&waits.devices[device]).filter(|(bar, _)| bar.kind.is_compute())
    {
        let Some(from) = until else {
            idle.warm_up_ns = bar.start;
            until = Some(bar.end);
            continue;
        };
        until = Some(from.max(bar.end));
        if bar.start <= from {
            continue;
        }
        let ready = wait.ready_ns.clamp(from, bar.start);
        idle.unforced_ns += bar.start - ready;
        let waited = ready - from;
        match (wait.cause, wait.on) {
            (Cause::Data, _) => idle.neighbour_ns += waited,
            (Cause::Memory, _) => idle.memory_ns += waited,
            (Cause::Reload, Some(reload)) => {
                // Until it began the reload itself may have waited for memory.
                let began = bars.devices[reload.device][reload.index].start.clamp(from, ready);
                let for_memory = if waits.at(reload).cause == Cause::Memory { began - from } else { 0 };
                idle.memory_ns += for_memory;
                idle.reload_ns += waited - for_memory;
            }
            // What stands before it on the queue ended when the idling began, at the latest.
            (Cause::Nothing | Cause::Queue | Cause::Reload, _) => idle.unforced_ns += waited,
        }
    }
    match until {
        Some(until) => idle.drain_ns = bars.makespan - until,
        None => idle.warm_up_ns = bars.makespan,
    }
    idle
}
