//! What both pictures are drawn from: every op of a schedule or of a measurement with start and end.

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{OpKind, Schedule};

use super::ExportError;
use crate::measured::Measured;

/// One op with its times, ns from the earliest start of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bar {
    /// Start, ns.
    pub start: i64,
    /// End, ns; never before the start.
    pub end: i64,
    /// What the op does.
    pub kind: OpKind,
    /// Its stage.
    pub stage: usize,
    /// Its microbatch.
    pub microbatch: usize,
}

impl Bar {
    /// `F s1 m3`: the op as the pictures name it.
    pub fn name(&self) -> String {
        format!("{} s{} m{}", self.kind.letter(), self.stage, self.microbatch)
    }
}

/// All ops of one run, predicted or measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bars {
    /// For each device its ops in order of start (then end); the earliest start of all is 0.
    pub devices: Vec<Vec<Bar>>,
    /// Latest end, ns.
    pub makespan: i64,
    /// Times no farther apart than this are one instant, ns: 0 of a schedule; of a measurement a 2000th of the
    /// step, about a pixel: an op's end is noted a little after what it frees is free.
    pub grain: i64,
}

/// A measurement's makespan over its [`Bars::grain`].
const GRAINS: i64 = 2000;

impl Bars {
    /// The ops of a schedule, each as long as the problem says.
    pub fn predicted(problem: &Problem, schedule: &Schedule) -> Result<Bars, ExportError> {
        let what = "schedule";
        if schedule.ops.len() != problem.devices {
            return Err(ExportError::Devices { what, expected: problem.devices, found: schedule.ops.len() });
        }
        let mut bars = Builder::new(problem, what);
        for (device, ops) in schedule.ops.iter().enumerate() {
            for op in ops {
                let bar = Bar { start: op.start_ns, end: 0, kind: op.op, stage: op.stage, microbatch: op.microbatch };
                bars.check(device, &bar)?;
                let end = op.start_ns.checked_add(problem.duration(op.op, op.stage));
                bars.push(device, bar, end)?;
            }
        }
        bars.finish()
    }

    /// The ops of a measurement's median step.
    pub fn measured(problem: &Problem, measured: &Measured) -> Result<Bars, ExportError> {
        let what = "measurement";
        if measured.peak_bytes.len() != problem.devices {
            return Err(ExportError::Devices { what, expected: problem.devices, found: measured.peak_bytes.len() });
        }
        let mut bars = Builder::new(problem, what);
        for op in &measured.ops {
            let start = i64::try_from(op.start_ns).unwrap_or(i64::MAX);
            let bar = Bar { start, end: 0, kind: op.op, stage: op.stage, microbatch: op.microbatch };
            bars.check(op.device, &bar)?;
            bars.push(op.device, bar, i64::try_from(op.end_ns).ok())?;
        }
        let bars = bars.finish()?;
        Ok(Bars { grain: bars.makespan / GRAINS, ..bars })
    }

    /// Time that a device computes, ns.
    pub fn busy(&self, device: usize) -> i64 {
        self.devices[device].iter().filter(|bar| bar.kind.is_compute()).map(|bar| bar.end - bar.start).sum()
    }

    /// `1 - total compute / (devices x makespan)`; 0 where nothing takes time.
    pub fn bubble(&self) -> f64 {
        let room = self.devices.len() as f64 * self.makespan as f64;
        let busy: f64 = (0..self.devices.len()).map(|device| self.busy(device) as f64).sum();
        if room > 0.0 { 1.0 - busy / room } else { 0.0 }
    }

    /// Ops, copies included.
    pub fn len(&self) -> usize {
        self.devices.iter().map(Vec::len).sum()
    }

    /// Whether there is no op.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

struct Builder<'a> {
    problem: &'a Problem,
    what: &'static str,
    devices: Vec<Vec<Bar>>,
}

impl<'a> Builder<'a> {
    fn new(problem: &'a Problem, what: &'static str) -> Self {
        Builder { problem, what, devices: vec![Vec::new(); problem.devices] }
    }

    fn check(&self, device: usize, bar: &Bar) -> Result<(), ExportError> {
        let &Bar { kind: op, stage, microbatch, .. } = bar;
        if self.problem.placement.get(stage) == Some(&device) && microbatch < self.problem.microbatches {
            return Ok(());
        }
        Err(ExportError::NoSuchOp { what: self.what, op, stage, microbatch, device })
    }

    fn push(&mut self, device: usize, bar: Bar, end: Option<i64>) -> Result<(), ExportError> {
        let &Bar { kind: op, stage, microbatch, start, .. } = &bar;
        // Times of more than 2^61 ns (73 years) either way would overflow in differences.
        let sane = |t: i64| t.unsigned_abs() < 1 << 61;
        match end {
            Some(end) if end >= start && sane(start) && sane(end) => {
                self.devices[device].push(Bar { end, ..bar });
                Ok(())
            }
            _ => Err(ExportError::Times { what: self.what, op, stage, microbatch }),
        }
    }

    fn finish(mut self) -> Result<Bars, ExportError> {
        let origin = self.devices.iter().flatten().map(|bar| bar.start).min().unwrap_or(0);
        for bar in self.devices.iter_mut().flatten() {
            bar.start -= origin;
            bar.end -= origin;
        }
        for bars in &mut self.devices {
            bars.sort_unstable();
        }
        let makespan = self.devices.iter().flatten().map(|bar| bar.end).max().unwrap_or(0);
        Ok(Bars { devices: self.devices, makespan, grain: 0 })
    }
}
