//! The problem: one training step of a pipeline-parallel model, as times, bytes and channels.

use optpipe_configs::file::{Check, Invalid};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An instance (`problem.yaml`). Times are integer nanoseconds, sizes integer bytes, indices start
/// at 0. Invariants are checked on reading ([`Check`]); code that builds one calls `check` itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Problem {
    /// Devices, P. Each has one compute queue and one memory.
    pub devices: usize,
    /// The device of each stage; its length is the number of stages, S.
    pub placement: Vec<usize>,
    /// Microbatches, M.
    pub microbatches: usize,
    /// Whether W may start later than the end of its B.
    pub split_backward: bool,
    /// Times.
    pub time_ns: Times,
    /// Sizes.
    pub bytes: Sizes,
    /// The channel of each device's offloads.
    pub offload_channel: Vec<usize>,
    /// The channel of each device's reloads.
    pub reload_channel: Vec<usize>,
}

/// Times of a [`Problem`], ns; one entry a stage, `send_*` one entry a boundary between stages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Times {
    /// F.
    pub forward: Vec<i64>,
    /// B.
    pub backward_input: Vec<i64>,
    /// W.
    pub backward_weight: Vec<i64>,
    /// From stage s to s+1; counts for nothing where both are on one device.
    pub send_forward: Vec<i64>,
    /// From stage s+1 to s; counts for nothing where both are on one device.
    pub send_backward: Vec<i64>,
    /// O.
    pub offload: Vec<i64>,
    /// R.
    pub reload: Vec<i64>,
}

/// Sizes of a [`Problem`], bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sizes {
    /// Allocated at the start of F, a stage.
    pub activation: Vec<i64>,
    /// The part of it freed at the end of W instead of B.
    pub weight_context: Vec<i64>,
    /// The part of it that O frees and R allocates again.
    pub offloadable: Vec<i64>,
    /// Held all the time, a device.
    pub r#static: Vec<i64>,
    /// The limit, a device.
    pub capacity: Vec<i64>,
}

/// Why no schedule can exist: a device cannot hold even one microbatch at a time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "device {device} lacks {missing_bytes} bytes: one microbatch at a time, everything offloaded at once, needs {needed_bytes}, the capacity is {capacity}"
)]
pub struct Infeasible {
    /// The device that lacks the most.
    pub device: usize,
    /// What one microbatch at a time needs there, `static` included.
    pub needed_bytes: i64,
    /// What there is.
    pub capacity: i64,
    /// The difference.
    pub missing_bytes: i64,
}

impl Problem {
    /// Stages, S.
    pub fn stages(&self) -> usize {
        self.placement.len()
    }

    /// Stages of a device, ascending.
    pub fn stages_of(&self, device: usize) -> impl Iterator<Item = usize> + '_ {
        (0..self.stages()).filter(move |&s| self.placement[s] == device)
    }

    /// Delay from F(s) to F(s+1): 0 on one device.
    pub fn hop_forward(&self, stage: usize) -> i64 {
        if self.placement[stage] == self.placement[stage + 1] { 0 } else { self.time_ns.send_forward[stage] }
    }

    /// Delay from B(s+1) (W(s+1) with a fused backward) to B(s): 0 on one device.
    pub fn hop_backward(&self, stage: usize) -> i64 {
        if self.placement[stage] == self.placement[stage + 1] { 0 } else { self.time_ns.send_backward[stage] }
    }

    /// Ok if and only if a legal schedule exists: one microbatch at a time, everything offloaded at
    /// once, fits on every device.
    pub fn feasible(&self) -> Result<(), Infeasible> {
        let mut worst: Option<Infeasible> = None;
        for device in 0..self.devices {
            let mut held = self.bytes.r#static[device];
            let mut needed = held;
            for s in self.stages_of(device) {
                needed = needed.max(held + self.bytes.activation[s]);
                held += self.bytes.activation[s] - self.bytes.offloadable[s];
            }
            let capacity = self.bytes.capacity[device];
            let missing_bytes = needed.max(held) - capacity;
            if missing_bytes > 0 && worst.as_ref().is_none_or(|w| w.missing_bytes < missing_bytes) {
                worst = Some(Infeasible { device, needed_bytes: needed.max(held), capacity, missing_bytes });
            }
        }
        worst.map_or(Ok(()), Err)
    }

    /// Shortest time in which all ops could run one after another: an upper bound on the optimum of
    /// every feasible instance, and, being checked, proof that no sum of times overflows.
    pub fn serial_ns(&self) -> i64 {
        let t = &self.time_ns;
        let per_stage: i64 = [&t.forward, &t.backward_input, &t.backward_weight, &t.offload, &t.reload]
            .iter()
            .flat_map(|x| x.iter())
            .sum();
        let hops: i64 = t.send_forward.iter().chain(&t.send_backward).sum();
        (per_stage + hops) * self.microbatches as i64
    }
}

impl Check for Problem {
    fn check(&self) -> Result<(), Invalid> {
        let stages = self.placement.len();
        let at_least_one = |field: &str, n: usize| {
            if n >= 1 { Ok(()) } else { Err(Invalid::new(field, "expected at least 1, found 0")) }
        };
        at_least_one("devices", self.devices)?;
        at_least_one("microbatches", self.microbatches)?;
        if stages == 0 {
            return Err(Invalid::new("placement", "expected the device of each stage, found an empty list"));
        }
        if let Some(s) = self.placement.iter().position(|&d| d >= self.devices) {
            return Err(Invalid::new(
                format!("placement[{s}]"),
                format!("expected a device below {}, found {}", self.devices, self.placement[s]),
            ));
        }
        // Sums over all ops stay far from i64::MAX: 2^62 ns are 146 years, 2^62 bytes 4 EiB.
        const MOST: i128 = 1 << 62;
        let ops = (stages as i128) * (self.microbatches as i128);
        if ops > 1_000_000 {
            return Err(Invalid::new(
                "microbatches",
                format!("expected at most a million stage-microbatch pairs, found {ops}"),
            ));
        }
        let (t, b) = (&self.time_ns, &self.bytes);
        let lists: [(&str, &[i64], usize, &str); 12] = [
            ("time_ns.forward", &t.forward, stages, "stage"),
            ("time_ns.backward_input", &t.backward_input, stages, "stage"),
            ("time_ns.backward_weight", &t.backward_weight, stages, "stage"),
            ("time_ns.send_forward", &t.send_forward, stages - 1, "boundary between stages"),
            ("time_ns.send_backward", &t.send_backward, stages - 1, "boundary between stages"),
            ("time_ns.offload", &t.offload, stages, "stage"),
            ("time_ns.reload", &t.reload, stages, "stage"),
            ("bytes.activation", &b.activation, stages, "stage"),
            ("bytes.weight_context", &b.weight_context, stages, "stage"),
            ("bytes.offloadable", &b.offloadable, stages, "stage"),
            ("bytes.static", &b.r#static, self.devices, "device"),
            ("bytes.capacity", &b.capacity, self.devices, "device"),
        ];
        for (field, values, length, per) in lists {
            if values.len() != length {
                return Err(Invalid::new(
                    field,
                    format!("expected {length} values, one a {per}, found {}", values.len()),
                ));
            }
            if let Some(i) = values.iter().position(|&x| x < 0) {
                return Err(Invalid::new(format!("{field}[{i}]"), format!("expected at least 0, found {}", values[i])));
            }
            let total: i128 = values.iter().map(|&x| i128::from(x)).sum::<i128>() * self.microbatches as i128;
            if total > MOST / 16 {
                return Err(Invalid::new(field, "values too large: their sum over all microbatches exceeds 2^58"));
            }
        }
        for s in 0..stages {
            for (name, part) in [("weight_context", b.weight_context[s]), ("offloadable", b.offloadable[s])] {
                if part > b.activation[s] {
                    return Err(Invalid::new(
                        format!("bytes.{name}[{s}]"),
                        format!("expected at most bytes.activation[{s}] = {}, found {part}", b.activation[s]),
                    ));
                }
            }
        }
        for (field, channels) in [("offload_channel", &self.offload_channel), ("reload_channel", &self.reload_channel)]
        {
            if channels.len() != self.devices {
                return Err(Invalid::new(
                    field,
                    format!("expected {} values, one a device, found {}", self.devices, channels.len()),
                ));
            }
        }
        Ok(())
    }
}
