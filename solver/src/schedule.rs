//! The schedule: every op with its start, and its file.

use std::fmt::{self, Write as _};

use optpipe_configs::file::{Check, Invalid, check_version};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::problem::Problem;

/// What an op does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum OpKind {
    /// Forward.
    F,
    /// Gradient with respect to the stage's input (backward_input).
    B,
    /// Gradient with respect to the stage's weights (backward_weight).
    W,
    /// Offload: copy of the saved activations, device to host.
    O,
    /// Reload: copy of the same bytes, host to device.
    R,
}

impl OpKind {
    /// Whether the op runs on a device's compute queue rather than on a channel.
    pub fn is_compute(self) -> bool {
        matches!(self, OpKind::F | OpKind::B | OpKind::W)
    }

    /// The letter of the file format.
    pub fn letter(self) -> char {
        match self {
            OpKind::F => 'F',
            OpKind::B => 'B',
            OpKind::W => 'W',
            OpKind::O => 'O',
            OpKind::R => 'R',
        }
    }
}

/// One op of an instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Op {
    /// What it does.
    pub kind: OpKind,
    /// Its stage.
    pub stage: usize,
    /// Its microbatch.
    pub microbatch: usize,
}

impl fmt::Display for Op {
    /// As in `F(2,5)`: stage 2, microbatch 5.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}({},{})", self.kind.letter(), self.stage, self.microbatch)
    }
}

impl Problem {
    /// How long an op of this kind takes at a stage, ns.
    pub fn duration(&self, kind: OpKind, stage: usize) -> i64 {
        let t = &self.time_ns;
        match kind {
            OpKind::F => t.forward[stage],
            OpKind::B => t.backward_input[stage],
            OpKind::W => t.backward_weight[stage],
            OpKind::O => t.offload[stage],
            OpKind::R => t.reload[stage],
        }
    }
}

/// An op with its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ScheduledOp {
    /// What it does.
    pub op: OpKind,
    /// Its stage.
    pub stage: usize,
    /// Its microbatch.
    pub microbatch: usize,
    /// Its start; any offset, times count from the earliest.
    pub start_ns: i64,
}

/// A schedule: one list a device, in order of start, copies under the device of their stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Schedule {
    /// Latest end less earliest start.
    pub makespan_ns: i64,
    /// One list a device.
    pub ops: Vec<Vec<ScheduledOp>>,
}

/// `schedule.yaml`: a schedule with what a trainer needs beside it. Only `makespan_ns` and `ops` are
/// needed to read one.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct ScheduleFile {
    /// Format version: 1.
    #[serde(default = "one")]
    pub version: u32,
    /// What made the schedule.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// No legal schedule is shorter than this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_ns: Option<i64>,
    /// The model, as its config.json or preset was named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Transformer blocks of each stage; the embedding is on the first stage, the head on the last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layer_split: Option<Vec<usize>>,
    /// The device of each stage.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<Vec<usize>>,
    /// Microbatches a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub microbatches: Option<usize>,
    /// The schedule itself.
    #[serde(flatten)]
    pub schedule: Schedule,
}

fn one() -> u32 {
    1
}

impl<'de> Deserialize<'de> for ScheduleFile {
    /// Field by field: a flattened field would be read through a buffer, which is slow and forgets where
    /// in the file an error is.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Flat {
            #[serde(default = "one")]
            version: u32,
            method: Option<String>,
            bound_ns: Option<i64>,
            model: Option<String>,
            layer_split: Option<Vec<usize>>,
            placement: Option<Vec<usize>>,
            microbatches: Option<usize>,
            makespan_ns: i64,
            ops: Vec<Vec<ScheduledOp>>,
        }
        let Flat { version, method, bound_ns, model, layer_split, placement, microbatches, makespan_ns, ops } =
            Flat::deserialize(deserializer)?;
        let schedule = Schedule { makespan_ns, ops };
        Ok(ScheduleFile { version, method, bound_ns, model, layer_split, placement, microbatches, schedule })
    }
}

impl Check for ScheduleFile {
    /// Only what needs no problem: that is the checker's business.
    fn check(&self) -> Result<(), Invalid> {
        check_version(self.version)?;
        // Differences and sums with a problem's times stay far from the end of 64 bits: 2^60 ns are 36 years.
        const MOST: u64 = 1 << 60;
        let time = |field: &dyn Fn() -> String, ns: i64| match ns.unsigned_abs() > MOST {
            true => Err(Invalid::new(field(), format!("expected at most {MOST} either way, found {ns}"))),
            false => Ok(()),
        };
        time(&|| "makespan_ns".to_owned(), self.schedule.makespan_ns)?;
        time(&|| "bound_ns".to_owned(), self.bound_ns.unwrap_or(0))?;
        for (device, list) in self.schedule.ops.iter().enumerate() {
            for (i, op) in list.iter().enumerate() {
                time(&|| format!("ops[{device}][{i}].start_ns"), op.start_ns)?;
            }
        }
        Ok(())
    }
}

impl ScheduleFile {
    /// A file that holds the schedule alone.
    pub fn new(schedule: Schedule) -> Self {
        ScheduleFile {
            version: 1,
            method: None,
            bound_ns: None,
            model: None,
            layer_split: None,
            placement: None,
            microbatches: None,
            schedule,
        }
    }

    /// The file's text: the keys in order, then one op a line, which readers can parse fast.
    pub fn to_yaml(&self) -> Result<String, serde_yaml::Error> {
        let mut head = self.clone();
        let ops = std::mem::take(&mut head.schedule.ops);
        let mut text = serde_yaml::to_string(&head)?.replace("ops: []\n", "ops:\n");
        for list in &ops {
            if list.is_empty() {
                text.push_str("  - []\n");
            }
            for (i, op) in list.iter().enumerate() {
                let lead = if i == 0 { "  - - " } else { "    - " };
                let ScheduledOp { op: kind, stage, microbatch, start_ns } = op;
                let letter = kind.letter();
                let _ = writeln!(
                    text,
                    "{lead}{{op: {letter}, stage: {stage}, microbatch: {microbatch}, start_ns: {start_ns}}}"
                );
            }
        }
        Ok(text)
    }
}
