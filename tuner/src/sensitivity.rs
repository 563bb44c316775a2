//! What more memory or a faster link to the host would be worth: found by solving, with what the bounds
//! say it can be at most.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use optpipe_solver::check::check;
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;
use optpipe_solver::simulate::simulate;
use optpipe_solver::solve::{SolveOptions, solve};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::progress::Progress;
use crate::text;

pub mod file;
pub mod front;

/// What is added to a device's memory: 1 GiB.
pub const MEMORY: u64 = 1 << 30;
/// By how much the bandwidth to and from the host grows.
pub const BANDWIDTH: f64 = 0.1;
/// Up to so many devices are looked at one by one.
const MOST_DEVICES: usize = 8;

/// Something that a problem could have more of.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", tag = "what")]
pub enum Change {
    /// More memory on every device.
    Memory {
        /// How much more.
        bytes: u64,
    },
    /// More memory on one device.
    DeviceMemory {
        /// Which.
        device: usize,
        /// How much more.
        bytes: u64,
    },
    /// Faster offloads and reloads everywhere.
    HostBandwidth {
        /// By this share.
        share: f64,
    },
}

/// What a change would be worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Worth {
    /// The change.
    #[serde(flatten)]
    pub change: Change,
    /// The best makespan found with it, ns.
    pub makespan_ns: i64,
    /// No schedule with it is shorter, ns.
    pub bound_ns: i64,
    /// By what share of today's makespan the best found is shorter.
    pub gain: f64,
    /// By what share any schedule can be shorter at most.
    pub gain_at_most: f64,
}

/// What the changes are measured against, and what they are worth.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Sensitivity {
    /// The best makespan known without a change, ns: that of the schedule, or better, where looking at a
    /// change came upon one that needs no change.
    pub makespan_ns: i64,
    /// Time limit of each solve, ns.
    pub time_limit_ns: u64,
    /// One entry a change.
    pub changes: Vec<Worth>,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Change::Memory { bytes } => write!(f, "+{} on every device", text::bytes(*bytes)),
            Change::DeviceMemory { device, bytes } => write!(f, "+{} on device {device}", text::bytes(*bytes)),
            Change::HostBandwidth { share } => write!(f, "+{:.0} % host bandwidth", 100.0 * share),
        }
    }
}

impl std::fmt::Display for Worth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (gain, most) = (text::percent(self.gain), text::percent(self.gain_at_most));
        if self.makespan_ns <= self.bound_ns {
            write!(f, "{}: gain {gain} (proven: no schedule is shorter with it)", self.change)
        } else {
            write!(f, "{}: gain {gain} (bound says at most {most})", self.change)
        }
    }
}

impl Change {
    /// The changes that are looked at: memory everywhere, bandwidth, and, where there are two to eight
    /// devices, the memory of each.
    pub fn all(problem: &Problem) -> Vec<Change> {
        let mut changes = vec![Change::Memory { bytes: MEMORY }, Change::HostBandwidth { share: BANDWIDTH }];
        if (2..=MOST_DEVICES).contains(&problem.devices) {
            changes.extend((0..problem.devices).map(|device| Change::DeviceMemory { device, bytes: MEMORY }));
        }
        changes
    }

    /// The problem with the change.
    fn applied(self, problem: &Problem) -> Problem {
        let mut changed = problem.clone();
        // Capacities stay below what a problem may have; that much is never needed.
        let more = |capacity: &mut i64, bytes: u64| {
            *capacity = capacity.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX)).min(1 << 56);
        };
        match self {
            Change::Memory { bytes } => changed.bytes.capacity.iter_mut().for_each(|capacity| more(capacity, bytes)),
            Change::DeviceMemory { device, bytes } => more(&mut changed.bytes.capacity[device], bytes),
            Change::HostBandwidth { share } => {
                let t = &mut changed.time_ns;
                // Rounded up: never more than the share.
                let faster = |time: &mut i64| *time = (*time as f64 / (1.0 + share)).ceil() as i64;
                t.offload.iter_mut().chain(&mut t.reload).for_each(faster);
            }
        }
        changed
    }
}

/// Solves the problem with each change, from a schedule that is legal without one, and says what it gains
/// over that schedule. Where a solve finds a better schedule that does not need its change, gains count
/// from that one: a gain is never what longer solving would have found anyway.
///
/// # Errors
/// Infeasible, where the problem itself is.
pub fn sensitivity(
    problem: &Problem,
    schedule: &Schedule,
    options: &SolveOptions,
    time_limit: Duration,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<Sensitivity> {
    let mut best = schedule.clone();
    let mut solved = Vec::new();
    let changes = Change::all(problem);
    for (done, &change) in changes.iter().enumerate() {
        if cancel.load(Ordering::SeqCst) {
            break;
        }
        let left = time_limit.saturating_mul(u32::try_from(changes.len() - done).unwrap_or(u32::MAX));
        progress.phase_within(&format!("what it would be worth: {change}"), left);
        let changed = change.applied(problem);
        let options = SolveOptions { time_limit, start: on(&changed, problem, &best), ..options.clone() };
        let solution = solve(&changed, &options, &mut |_| {}, cancel)?;
        if let Some(without) = on(problem, &changed, &solution.schedule).filter(|x| x.makespan_ns < best.makespan_ns) {
            best = without;
        }
        solved.push((change, changed, solution));
    }
    let today = best.makespan_ns.max(1) as f64;
    let changes = solved.into_iter().map(|(change, changed, solution)| {
        let start = on(&changed, problem, &best).map_or(i64::MAX, |start| start.makespan_ns);
        let makespan_ns = solution.makespan_ns.min(start).min(best.makespan_ns);
        Worth {
            change,
            makespan_ns,
            bound_ns: solution.bound_ns,
            gain: 1.0 - makespan_ns as f64 / today,
            gain_at_most: (1.0 - solution.bound_ns as f64 / today).max(0.0),
        }
    });
    Ok(Sensitivity {
        makespan_ns: best.makespan_ns,
        time_limit_ns: u64::try_from(time_limit.as_nanos()).unwrap_or(u64::MAX),
        changes: changes.collect(),
    })
}

/// The order of one problem's schedule on the other; `None` where it is not legal there.
fn on(problem: &Problem, from: &Problem, schedule: &Schedule) -> Option<Schedule> {
    let simulated = simulate(problem, &Order::of(from, schedule)).ok()?.schedule;
    check(problem, &simulated).is_legal().then_some(simulated)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use optpipe_solver::problem::{Sizes, Times};

    use super::*;

    /// One device, three microbatches, memory for one and a half: the second has to wait, or be offloaded.
    fn tight(capacity: i64, copy: i64) -> Problem {
        Problem {
            devices: 2,
            placement: vec![0, 1],
            microbatches: 4,
            split_backward: true,
            time_ns: Times {
                forward: vec![100, 100],
                backward_input: vec![100, 100],
                backward_weight: vec![100, 100],
                send_forward: vec![0],
                send_backward: vec![0],
                offload: vec![copy, copy],
                reload: vec![copy, copy],
            },
            bytes: Sizes {
                activation: vec![8 << 30; 2],
                weight_context: vec![4 << 30; 2],
                offloadable: vec![8 << 30; 2],
                r#static: vec![0, 0],
                capacity: vec![capacity, capacity],
            },
            offload_channel: vec![0, 1],
            reload_channel: vec![2, 3],
        }
    }

    fn worth(problem: &Problem) -> Sensitivity {
        let (options, never) = (SolveOptions::default(), AtomicBool::new(false));
        let limit = Duration::from_millis(500);
        let first =
            solve(problem, &SolveOptions { time_limit: limit, ..options.clone() }, &mut |_| {}, &never).unwrap();
        let found = sensitivity(problem, &first.schedule, &options, limit, &Progress::new(true), &never).unwrap();
        assert_eq!(found.changes.len(), 4);
        for change in &found.changes {
            assert!(change.gain >= 0.0 && change.gain <= change.gain_at_most + 1e-12, "{change:?}");
            assert!(change.bound_ns <= change.makespan_ns && change.makespan_ns <= found.makespan_ns);
        }
        found
    }

    #[test]
    fn what_is_plenty_is_worth_nothing_and_what_lacks_is_worth_something() {
        // All four fit: neither memory nor bandwidth can help.
        assert!(worth(&tight(32 << 30, 1000)).changes.iter().all(|change| change.gain == 0.0));
        // A byte short of two microbatches a device, and copies that are too slow to help.
        let short = worth(&tight((16 << 30) - 1, 100_000));
        let gain = |of: Change| short.changes.iter().find(|change| change.change == of).unwrap().gain;
        assert!(gain(Change::Memory { bytes: MEMORY }) > 0.05, "{short:?}");
        assert_eq!(gain(Change::HostBandwidth { share: BANDWIDTH }), 0.0, "{short:?}");
    }

    #[test]
    fn more_memory_is_never_slower_and_our_own_limit_is_a_point_of_the_front() {
        let problem = tight((16 << 30) - 1, 150);
        let (options, never) = (SolveOptions::default(), AtomicBool::new(false));
        let limit = Duration::from_millis(50);
        let solution =
            solve(&problem, &SolveOptions { time_limit: limit, ..options.clone() }, &mut |_| {}, &never).unwrap();
        let progress = Progress::new(true);
        let front = front::memory_time(&problem, &solution.schedule, &options, limit, &progress, &never).unwrap();
        assert!(front.ours.windows(2).all(|p| p[0].memory < p[1].memory && p[0].makespan_ns >= p[1].makespan_ns));
        assert!(front.ours.iter().all(|point| point.bound_ns <= point.makespan_ns));
        let own = front.ours.iter().find(|point| point.memory == 1.0).unwrap();
        assert!(own.makespan_ns <= solution.makespan_ns);
        // Everything that the solver has is at least as good as list scheduling, and nothing beats the bounds.
        assert!(front.auto.len() >= 3 && front.auto.iter().any(|point| point.memory == 1.0), "{front:?}");
        let ways = [&front.auto, &front.pipe_offload, &front.textbook_offload];
        assert!(ways.iter().all(|way| !way.is_empty()), "{front:?}");
        for point in ways.into_iter().flatten() {
            let ours = front.ours.iter().find(|ours| ours.memory == point.memory).unwrap();
            assert!(ours.bound_ns <= point.makespan_ns, "{point:?} {ours:?}");
        }
        let ours = |memory: f64| front.ours.iter().find(|ours| ours.memory == memory).unwrap().makespan_ns;
        assert!(front.auto.iter().all(|point| point.makespan_ns <= ours(point.memory)), "{front:?}");
        // A file of a version that knew only of list scheduling is still read.
        let mut older = serde_json::to_value(&front).unwrap();
        for name in ["auto", "pipe_offload", "textbook_offload"] {
            older.as_object_mut().unwrap().remove(name).unwrap();
        }
        let older: front::MemoryTime = serde_json::from_value(older).unwrap();
        assert!(older.ours == front.ours && older.auto.is_empty());
        // Where a textbook schedule fits, we are at least as good.
        assert!(front.methods.iter().any(|method| method.method == "1f1b"));
        let most = front.ours.last().unwrap();
        for method in front.methods.iter().filter(|method| method.memory <= most.memory) {
            assert!(most.makespan_ns <= method.makespan_ns, "{method:?} {most:?}");
        }
    }
}
