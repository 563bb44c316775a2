//! `hardware.yaml`: what a calibration measured on the devices of a job.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::profile::Sample;

/// The devices of a pipeline and the links between them and the host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// Format version: 1.
    pub version: u32,
    /// `cpu` or `cuda`.
    pub backend: String,
    /// The clock behind every time in this file, e.g. `monotonic`.
    pub clock: String,
    /// One entry a device.
    pub devices: Vec<Device>,
    /// Device to host copies of device 0, alone.
    pub offload: Link,
    /// Host to device copies of device 0, alone.
    pub reload: Link,
    /// Device to host while the same device reloads.
    pub offload_duplex: Link,
    /// Host to device while the same device offloads.
    pub reload_duplex: Link,
    /// Device to host while the neighbouring device offloads too. Absent with one device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload_neighbour: Option<Link>,
    /// Host to device while the neighbouring device reloads too. Absent with one device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_neighbour: Option<Link>,
    /// Device to device: what sending an activation or a gradient to the next stage takes.
    pub send: Link,
    /// Channel of each device's offloads, numbered as in a problem file.
    pub offload_channel: Vec<usize>,
    /// Channel of each device's reloads.
    pub reload_channel: Vec<usize>,
    /// Wall time the calibration took, ns.
    pub cost_ns: u64,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// What the device calls itself.
    pub name: String,
    /// Its memory, bytes. On the CPU backend all devices share this.
    pub memory_bytes: u64,
    /// CPU cores, or streaming multiprocessors.
    pub cores: usize,
}

/// A copy takes `latency_ns + bytes / bytes_per_second`, fitted to the points.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Fitted latency, ns, at least 0.
    pub latency_ns: f64,
    /// Fitted bandwidth, bytes a second.
    pub bytes_per_second: f64,
    /// Median over the points of |fitted - measured| / measured.
    pub residual: f64,
    /// The measurements.
    pub points: Vec<CopyPoint>,
}

/// Copies of one size.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CopyPoint {
    /// Bytes a copy.
    pub bytes: u64,
    /// Its time.
    pub time: Sample,
}

impl Link {
    /// Time of one copy, ns, rounded up. Nothing takes no time.
    pub fn copy_ns(&self, bytes: u64) -> u64 {
        if bytes == 0 {
            return 0;
        }
        (self.latency_ns + bytes as f64 / self.bytes_per_second * 1e9).ceil() as u64
    }
}
