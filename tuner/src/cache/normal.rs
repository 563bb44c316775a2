//! The normal form of a problem: what does not change its schedules is taken out.
//!
//! Times are divided by their greatest common divisor and so are bytes; memory is what `static` leaves,
//! at most what all activations together take; channels are numbered in the order in which devices name
//! them; sends within a device are 0. A schedule of one problem, its times multiplied, is a schedule of
//! every problem with the same normal form.
//!
//! Where the period is the objective, times stay as they are: the least makespan is a sum of times and so
//! a multiple of what divides them all, the least period is the mean over a cycle of devices and need not
//! be one, so that a problem with all times doubled may have a period of less than twice.

use optpipe_solver::objective::Objective;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;

/// A problem in normal form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Normal {
    /// The problem; its `static` is 0.
    pub problem: Problem,
    /// What its times are multiplied with to get the original ones, ns; 1 for the period.
    pub unit_ns: i64,
}

/// Greatest common divisor; 0 is divided by everything.
fn gcd(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

impl Normal {
    /// The normal form, for an objective, of a problem that has passed its checks and is feasible.
    pub fn of(problem: &Problem, objective: Objective) -> Normal {
        let mut p = problem.clone();
        for s in 0..p.stages() - 1 {
            if p.placement[s] == p.placement[s + 1] {
                (p.time_ns.send_forward[s], p.time_ns.send_backward[s]) = (0, 0);
            }
        }
        let t = &mut p.time_ns;
        let times = [
            &mut t.forward,
            &mut t.backward_input,
            &mut t.backward_weight,
            &mut t.send_forward,
            &mut t.send_backward,
            &mut t.offload,
            &mut t.reload,
        ];
        let unit_ns = match objective {
            Objective::Makespan => divide(times).max(1),
            Objective::Period => 1,
        };

        for d in 0..p.devices {
            let all: i64 = p.stages_of(d).map(|s| p.bytes.activation[s]).sum::<i64>() * p.microbatches as i64;
            p.bytes.capacity[d] = (p.bytes.capacity[d] - p.bytes.r#static[d]).min(all);
            p.bytes.r#static[d] = 0;
        }
        let b = &mut p.bytes;
        let unit = divide([&mut b.activation, &mut b.weight_context, &mut b.offloadable]).max(1);
        // What is held is a multiple of the unit: the rest of the capacity is of no use.
        b.capacity.iter_mut().for_each(|capacity| *capacity /= unit);

        let mut names: Vec<usize> = Vec::new();
        for channel in p.offload_channel.iter_mut().chain(&mut p.reload_channel) {
            let known = names.iter().position(|name| name == channel);
            *channel = known.unwrap_or_else(|| {
                names.push(*channel);
                names.len() - 1
            });
        }
        Normal { problem: p, unit_ns }
    }

    /// What problems must share for the order of one to be an order of the other.
    pub fn shape(&self) -> u64 {
        let p = &self.problem;
        let shape = format!(
            "{:?}",
            (p.devices, &p.placement, p.microbatches, p.split_backward, &p.offload_channel, &p.reload_channel)
        );
        fingerprint(&[shape.as_bytes()])
    }

    /// Whether a problem in normal form shares all that [`shape`](Normal::shape) is made of.
    pub fn has_shape_of(&self, other: &Problem) -> bool {
        let p = &self.problem;
        p.devices == other.devices
            && p.placement == other.placement
            && p.microbatches == other.microbatches
            && p.split_backward == other.split_backward
            && p.offload_channel == other.offload_channel
            && p.reload_channel == other.reload_channel
    }

    /// A schedule of the normal form as one of the original problem; `None` where times overflow.
    pub fn restored(&self, schedule: &Schedule) -> Option<Schedule> {
        scaled(schedule, |time| time.checked_mul(self.unit_ns))
    }

    /// A schedule of the original problem as one of the normal form; `None` if its times are no multiples
    /// of the unit, as those of the solver always are.
    pub fn reduced(&self, schedule: &Schedule) -> Option<Schedule> {
        scaled(schedule, |time| (time % self.unit_ns == 0).then(|| time / self.unit_ns))
    }

    /// The largest relative difference between two problems' times, both scaled to the same total of
    /// compute, counting what takes a share of a thousandth or more of a stage's; `None` where they have
    /// different numbers of stages.
    pub fn distance(&self, other: &Problem) -> Option<f64> {
        let (a, b) = (&self.problem.time_ns, &other.time_ns);
        let total = |p: &Problem| {
            let t = &p.time_ns;
            t.forward.iter().chain(&t.backward_input).chain(&t.backward_weight).map(|&x| x as f64).sum::<f64>().max(1.0)
        };
        let (whole_a, whole_b) = (total(&self.problem), total(other));
        let least = 0.001 / self.problem.stages() as f64;
        let pairs = [
            (&a.forward, &b.forward),
            (&a.backward_input, &b.backward_input),
            (&a.backward_weight, &b.backward_weight),
            (&a.send_forward, &b.send_forward),
            (&a.send_backward, &b.send_backward),
            (&a.offload, &b.offload),
            (&a.reload, &b.reload),
        ];
        let mut largest = 0.0_f64;
        for (x, y) in pairs {
            if x.len() != y.len() {
                return None;
            }
            for (&x, &y) in x.iter().zip(y) {
                let (x, y) = (x as f64 / whole_a, y as f64 / whole_b);
                largest = largest.max((x - y).abs() / x.max(y).max(least));
            }
        }
        Some(largest)
    }
}

/// Divides all by their common divisor and returns it.
fn divide<const N: usize>(lists: [&mut Vec<i64>; N]) -> i64 {
    let divisor = lists.iter().flat_map(|list| list.iter()).copied().fold(0, gcd);
    if divisor > 1 {
        for list in lists {
            list.iter_mut().for_each(|x| *x /= divisor);
        }
    }
    divisor
}

fn scaled(schedule: &Schedule, time: impl Fn(i64) -> Option<i64>) -> Option<Schedule> {
    let mut scaled = schedule.clone();
    scaled.makespan_ns = time(scaled.makespan_ns)?;
    for op in scaled.ops.iter_mut().flatten() {
        op.start_ns = time(op.start_ns)?;
    }
    Some(scaled)
}

/// FNV-1a with 64 bits: the same on every machine and in every release. (Entries are compared in full, so
/// that two problems under one fingerprint do no harm.)
pub fn fingerprint(parts: &[&[u8]]) -> u64 {
    let byte = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    parts.iter().fold(0xcbf2_9ce4_8422_2325, |hash, part| {
        // A byte that no text has keeps parts apart.
        byte(part.iter().fold(hash, |hash, &x| byte(hash, x)), 0xff)
    })
}
