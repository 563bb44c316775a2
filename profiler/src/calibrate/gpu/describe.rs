//! Devices as they describe themselves, in the words of the file.

use optpipe_configs::hardware::details::{Gpu, Software};
use optpipe_kernels::cuda::CudaError;
use optpipe_kernels::cuda::describe::{self as kernels, Description, Machine};
use optpipe_kernels::cuda::topology::Ancestor;
use optpipe_kernels::rig::PcieLink;

/// The NVIDIA devices of a machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Described {
    /// Versions.
    pub software: Software,
    /// The devices, in CUDA's order.
    pub gpus: Vec<Gpu>,
    /// Every two of them.
    pub relations: Vec<Relation>,
}

/// Two devices.
#[derive(Debug, Clone, PartialEq)]
pub struct Relation {
    /// The one with the lower number.
    pub one: usize,
    /// The other.
    pub other: usize,
    /// The nearest thing that both have in common, or why it is not known.
    pub ancestor: Result<Ancestor, String>,
    /// Whether each can read and write the other's memory, or why it is not known.
    pub peer_access: Result<bool, String>,
}

impl Described {
    pub(super) fn relation(&self, one: usize, other: usize) -> Option<&Relation> {
        let wanted = (one.min(other), one.max(other));
        self.relations.iter().find(|relation| (relation.one, relation.other) == wanted)
    }
}

/// Describes the devices of this machine, and gives what a rig is opened with.
///
/// # Errors
/// [`CudaError`]: no driver, or no devices.
pub fn describe() -> Result<(Machine, Described), CudaError> {
    let machine = kernels::describe()?;
    let described = Described::from(&machine);
    Ok((machine, described))
}

impl From<&Machine> for Described {
    fn from(machine: &Machine) -> Self {
        Described {
            software: Software {
                driver: machine.driver.clone().ok(),
                cuda: machine.cuda.clone().ok(),
                nvml: machine.nvml.clone().ok(),
            },
            gpus: machine.devices.iter().enumerate().map(|(ordinal, device)| gpu(ordinal, device)).collect(),
            relations: machine
                .pairs
                .iter()
                .map(|pair| Relation {
                    one: pair.from,
                    other: pair.to,
                    ancestor: pair.ancestor.clone(),
                    peer_access: pair.peer_access.clone(),
                })
                .collect(),
        }
    }
}

fn gpu(ordinal: usize, described: &Description) -> Gpu {
    let (device, sheet) = (&described.device, &described.sheet);
    let (major, minor) = device.compute_capability;
    let mut gpu = Gpu {
        ordinal,
        name: device.name.clone(),
        bus_id: described.bus_id.clone(),
        memory_bytes: device.memory_bytes,
        compute_capability: format!("{major}.{minor}"),
        multiprocessors: device.multiprocessors,
        ..Gpu::default()
    };
    let unknown = &mut gpu.unknown;
    gpu.copy_engines = known("copy_engines", described.copy_engines.clone(), unknown);
    gpu.uuid = known("uuid", sheet.uuid.clone(), unknown);
    gpu.graphics_clock_mhz = known("graphics_clock_mhz", sheet.graphics_clock_mhz.clone(), unknown);
    gpu.memory_clock_mhz = known("memory_clock_mhz", sheet.memory_clock_mhz.clone(), unknown);
    gpu.best_graphics_clock_mhz = known("best_graphics_clock_mhz", sheet.best_graphics_clock_mhz.clone(), unknown);
    gpu.best_memory_clock_mhz = known("best_memory_clock_mhz", sheet.best_memory_clock_mhz.clone(), unknown);
    gpu.throttle_reasons = known("throttle_reasons", sheet.throttle_reasons.clone(), unknown)
        .map(|reasons| reasons.into_iter().map(str::to_owned).collect());
    gpu.temperature_celsius = known("temperature_celsius", sheet.temperature_celsius.clone(), unknown);
    gpu.power_limit_watts = known("power_limit_watts", sheet.power_limit_milliwatts.clone(), unknown)
        .map(|milliwatts| f64::from(milliwatts) / 1000.0);
    gpu.best_pcie_generation = known("best_pcie_generation", sheet.best_pcie.generation.clone(), unknown);
    gpu.best_pcie_width = known("best_pcie_width", sheet.best_pcie.width.clone(), unknown);
    gpu.numa_node = known("numa_node", described.numa_node.clone(), unknown);
    gpu.processors = known("processors", described.processors.clone(), unknown);
    if let Some(links) = known("nvlinks", sheet.nvlinks.clone(), unknown) {
        (gpu.nvlinks, gpu.nvlinks_active, gpu.nvlink_version) = (Some(links.total), Some(links.active), links.version);
    }
    set_pcie(&mut gpu, &sheet.pcie);
    gpu
}

/// Notes the PCIe link as it is at this moment.
pub(super) fn set_pcie(gpu: &mut Gpu, link: &PcieLink) {
    for name in ["pcie_generation", "pcie_width"] {
        gpu.unknown.remove(name);
    }
    gpu.pcie_generation = known("pcie_generation", link.generation.clone(), &mut gpu.unknown);
    gpu.pcie_width = known("pcie_width", link.width.clone(), &mut gpu.unknown);
}

/// The value, or its absence with the reason.
fn known<T>(
    field: &str,
    reading: Result<T, String>,
    unknown: &mut std::collections::BTreeMap<String, String>,
) -> Option<T> {
    reading.map_err(|why| unknown.insert(field.to_owned(), why)).ok()
}

#[cfg(test)]
mod tests {
    use optpipe_kernels::cuda::CudaDevice;
    use optpipe_kernels::cuda::nvml::{NvLinks, Sheet};

    use super::*;

    fn machine() -> Machine {
        let no = |why: &str| why.to_owned();
        let sheet = Sheet {
            uuid: Ok("GPU-1".to_owned()),
            graphics_clock_mhz: Ok(345),
            memory_clock_mhz: Err(no("the device does not tell")),
            best_graphics_clock_mhz: Ok(1980),
            best_memory_clock_mhz: Ok(2619),
            throttle_reasons: Ok(vec!["nothing runs on the device"]),
            temperature_celsius: Ok(31),
            power_limit_milliwatts: Ok(700_500),
            pcie: PcieLink { generation: Ok(1), width: Err(no("this user may not ask")) },
            best_pcie: PcieLink { generation: Ok(5), width: Ok(16) },
            nvlinks: Ok(NvLinks { active: 17, total: 18, version: Some(4) }),
        };
        let device = CudaDevice {
            name: "NVIDIA H200".to_owned(),
            memory_bytes: 143_771 << 20,
            compute_capability: (9, 0),
            multiprocessors: 132,
            driver_version: Some("580.65.06".to_owned()),
        };
        Machine {
            driver: Ok("580.65.06".to_owned()),
            cuda: Ok("13.0".to_owned()),
            nvml: Err(no("no library")),
            devices: vec![Description {
                device,
                bus_id: "0000:3b:00.0".to_owned(),
                copy_engines: Ok(3),
                sheet,
                numa_node: Err(no("the system assigns it to no NUMA node")),
                processors: Ok("0-15".to_owned()),
            }],
            pairs: Vec::new(),
        }
    }

    #[test]
    fn what_is_not_known_is_absent_with_its_reason() {
        let described = Described::from(&machine());
        let gpu = &described.gpus[0];
        assert_eq!((gpu.compute_capability.as_str(), gpu.power_limit_watts), ("9.0", Some(700.5)));
        assert_eq!((gpu.nvlinks_active, gpu.nvlinks, gpu.nvlink_version), (Some(17), Some(18), Some(4)));
        assert_eq!((gpu.pcie_generation, gpu.pcie_width, gpu.best_pcie_width), (Some(1), None, Some(16)));
        let unknown: Vec<&str> = gpu.unknown.keys().map(String::as_str).collect();
        assert_eq!(unknown, ["memory_clock_mhz", "numa_node", "pcie_width"]);
        assert_eq!(described.software.nvml, None);
    }

    #[test]
    fn a_link_under_load_replaces_the_one_at_rest() {
        let mut gpu = Described::from(&machine()).gpus.remove(0);
        set_pcie(&mut gpu, &PcieLink { generation: Ok(5), width: Ok(16) });
        assert_eq!((gpu.pcie_generation, gpu.pcie_width), (Some(5), Some(16)));
        assert!(!gpu.unknown.contains_key("pcie_width"));
    }
}
