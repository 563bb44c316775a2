//! How much the channels between devices and host carry.

use std::collections::BTreeMap;

use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::OpKind;
use schemars::JsonSchema;
use serde::Serialize;

use crate::export::bars::Bars;

/// What one channel carries in a step.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ChannelLoad {
    /// Its number in the problem.
    pub channel: usize,
    /// Devices whose offloads it carries.
    pub offloads_of: Vec<usize>,
    /// Devices whose reloads it carries.
    pub reloads_of: Vec<usize>,
    /// Copies a step.
    pub copies: usize,
    /// Their bytes.
    pub bytes: i64,
    /// Time that it copies, ns.
    pub busy_ns: i64,
}

/// Every channel of the problem in the order of their numbers, idle ones too.
pub fn channel_loads(problem: &Problem, bars: &Bars) -> Vec<ChannelLoad> {
    let mut loads: BTreeMap<usize, ChannelLoad> = BTreeMap::new();
    for device in 0..problem.devices {
        let (out, back) = (problem.offload_channel[device], problem.reload_channel[device]);
        loads.entry(out).or_default().offloads_of.push(device);
        loads.entry(back).or_default().reloads_of.push(device);
    }
    for (device, bars) in bars.devices.iter().enumerate() {
        for bar in bars.iter().filter(|bar| !bar.kind.is_compute()) {
            let of = if bar.kind == OpKind::O { &problem.offload_channel } else { &problem.reload_channel };
            let load = loads.entry(of[device]).or_default();
            load.copies += 1;
            load.bytes += problem.bytes.offloadable[bar.stage];
            load.busy_ns += bar.end - bar.start;
        }
    }
    loads.into_iter().map(|(channel, load)| ChannelLoad { channel, ..load }).collect()
}
