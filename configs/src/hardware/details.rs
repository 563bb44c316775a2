//! What a calibration of NVIDIA devices says beyond the links that a plan cannot do without: the devices as
//! they describe themselves, each device's own links, every pair, what copies and computing cost one
//! another, how each test went, and what it all means in words.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Link;
use crate::file::Invalid;
use crate::profile::Sample;

/// Beyond the links of a pipeline.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Details {
    /// What all devices have in common: versions.
    pub software: Software,
    /// One entry a device, as it describes itself.
    pub devices: Vec<Gpu>,
    /// One entry a device: its own links. Empty where only those of device 0 were measured.
    pub links: Vec<DeviceLinks>,
    /// Every device with every other one, the sender first.
    pub pairs: Vec<Pair>,
    /// One entry a device on which it was measured.
    pub interference: Vec<Interference>,
    /// Every test with how it went.
    pub tests: Vec<Test>,
    /// What the numbers mean, in sentences.
    pub verdicts: Vec<String>,
}

impl Details {
    /// What was measured of `found` devices, for so many: those beyond are like the ones that are there in turn.
    pub(super) fn repeat(&mut self, found: usize, devices: usize) {
        if self.links.len() == found {
            self.links = (0..devices).map(|device| self.links[device % found].clone()).collect();
        }
        let measured = |place: usize| self.interference.iter().find(move |x| x.device == place);
        self.interference = (0..devices)
            .filter_map(|device| Some(Interference { device, ..measured(device % found)?.clone() }))
            .collect();
    }
}

/// Versions; what cannot be told is absent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Software {
    /// The NVIDIA kernel driver, e.g. `580.65.06`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// The highest CUDA version that this driver supports, e.g. `13.0`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cuda: Option<String>,
    /// NVML.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvml: Option<String>,
}

/// An NVIDIA device. What could not be read is absent, and `unknown` says why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Gpu {
    /// CUDA's number of the device in this process.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Its place on the PCI bus, e.g. `0000:3b:00.0`.
    pub bus_id: String,
    /// Its name for ever, e.g. `GPU-8f2a...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uuid: Option<String>,
    /// Its memory, bytes.
    pub memory_bytes: u64,
    /// Compute capability, e.g. `9.0`.
    pub compute_capability: String,
    /// Streaming multiprocessors.
    pub multiprocessors: usize,
    /// Engines that copy while the device computes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub copy_engines: Option<u32>,
    /// Clock of the multiprocessors when it was described, MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub graphics_clock_mhz: Option<u32>,
    /// Their highest clock, MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_graphics_clock_mhz: Option<u32>,
    /// Clock of the memory when it was described, MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_clock_mhz: Option<u32>,
    /// Its highest clock, MHz.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_memory_clock_mhz: Option<u32>,
    /// Why clocks were lower than they could be, in words; empty where they were not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_reasons: Option<Vec<String>>,
    /// Temperature, degrees Celsius.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub temperature_celsius: Option<u32>,
    /// The power limit in force, W.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power_limit_watts: Option<f64>,
    /// PCIe generation: under load where it was measured, else when described (a link at rest is slower).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_generation: Option<u32>,
    /// PCIe lanes in use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcie_width: Option<u32>,
    /// The best PCIe generation that device and slot can have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_pcie_generation: Option<u32>,
    /// The most PCIe lanes that device and slot can have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub best_pcie_width: Option<u32>,
    /// NUMA node of the host that the device is attached to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_node: Option<u32>,
    /// The host's processors near it, e.g. `0-15,32-47`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processors: Option<String>,
    /// NVLinks that carry data.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlinks_active: Option<u32>,
    /// NVLinks that there are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlinks: Option<u32>,
    /// NVLink version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvlink_version: Option<u32>,
    /// Why fields are absent, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unknown: BTreeMap<String, String>,
}

/// The links of one device; those of device 0 stand at the top of the file, too.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeviceLinks {
    /// Device to host, alone.
    pub offload: Link,
    /// Host to device, alone.
    pub reload: Link,
    /// Device to host while the device reloads.
    pub offload_duplex: Link,
    /// Host to device while the device offloads.
    pub reload_duplex: Link,
    /// Device to host while `neighbour` offloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload_neighbour: Option<Link>,
    /// Host to device while `neighbour` reloads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reload_neighbour: Option<Link>,
    /// Which device offloaded beside it: the one that disturbs it most without sharing its channel.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbour: Option<usize>,
    /// To the next device (of the last device to the first).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send: Option<Link>,
}

/// Two devices. Shares are of what the sender does alone, 1 where the other one costs it nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Pair {
    /// The device that sends, and whose copies are timed.
    pub from: usize,
    /// The device that receives, and that copies beside it.
    pub to: usize,
    /// The nearest thing that both have in common, e.g. `one PCIe switch`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_ancestor: Option<String>,
    /// Why that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub common_ancestor_unknown: Option<String>,
    /// How bytes get from one to the other: `peer` or `through the host`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Bandwidth from one to the other, bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub send_bytes_per_second: Option<f64>,
    /// What is left of the offload bandwidth of `from` while `to` offloads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offload_share: Option<f64>,
    /// What is left of the reload bandwidth of `from` while `to` reloads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reload_share: Option<f64>,
}

/// What copies and computing cost one another on one device. Slowdowns are times beside over times alone:
/// 1.05 is 5 % slower.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Interference {
    /// The device.
    pub device: usize,
    /// What was computed, e.g. `4096 x 4096 x 4096 in bf16 through cuBLAS`.
    pub product: String,
    /// One product alone.
    pub product_time: Sample,
    /// Slowdown of products beside offloads.
    pub product_beside_offload: f64,
    /// Slowdown of products beside reloads.
    pub product_beside_reload: f64,
    /// Slowdown of products beside both.
    pub product_beside_both: f64,
    /// Slowdown of offloads beside products.
    pub offload_beside_product: f64,
    /// Slowdown of reloads beside products.
    pub reload_beside_product: f64,
}

/// How a test went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TestStatus {
    /// Measured, the times settled, the data arrived intact.
    Passed,
    /// Measured, but the times did not settle: `reason` says how.
    Unstable,
    /// Not measured, or measured on data that did not arrive intact: `reason` says which.
    Failed,
    /// This machine lacks what it needs: `reason` says what.
    Skipped,
}

impl TestStatus {
    /// As it stands in the file.
    pub fn name(self) -> &'static str {
        match self {
            TestStatus::Passed => "passed",
            TestStatus::Unstable => "unstable",
            TestStatus::Failed => "failed",
            TestStatus::Skipped => "skipped",
        }
    }
}

/// One test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Test {
    /// What was tested, e.g. `offload of device 0 beside reload of device 0`.
    pub name: String,
    /// How it went.
    pub status: TestStatus,
    /// Why it did not pass.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Bandwidth of the largest copies, bytes a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<f64>,
    /// Spread of their times: median absolute deviation over median.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spread: Option<f64>,
}

impl Details {
    /// Checks what a plan reads, for a pipeline of so many devices.
    pub(super) fn check(&self, devices: usize) -> Result<(), Invalid> {
        if !self.links.is_empty() && self.links.len() != devices {
            return Err(Invalid::new(
                "details.links",
                format!("expected none or {devices}, one a device, found {}", self.links.len()),
            ));
        }
        for (i, links) in self.links.iter().enumerate() {
            for (name, link) in links.named() {
                link.check(&format!("details.links[{i}].{name}"))?;
            }
        }
        Ok(())
    }
}

impl DeviceLinks {
    /// All links with their names in the file.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &Link)> {
        [
            ("offload", Some(&self.offload)),
            ("reload", Some(&self.reload)),
            ("offload_duplex", Some(&self.offload_duplex)),
            ("reload_duplex", Some(&self.reload_duplex)),
            ("offload_neighbour", self.offload_neighbour.as_ref()),
            ("reload_neighbour", self.reload_neighbour.as_ref()),
            ("send", self.send.as_ref()),
        ]
        .into_iter()
        .filter_map(|(name, link)| Some((name, link?)))
    }
}
