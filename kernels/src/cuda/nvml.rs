//! What NVML, NVIDIA's management library, tells of devices. What it does not tell is the reason why, and
//! never a failure of the rest.

use nvml_wrapper::bitmasks::device::ThrottleReasons;
use nvml_wrapper::enum_wrappers::device::{Clock, TemperatureSensor};
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::topology::Ancestor;
use crate::rig::PcieLink;

/// A value, or why it is not known.
pub type Reading<T> = Result<T, String>;

/// The most NVLinks that any device has (Blackwell: 18).
const MOST_NVLINKS: u32 = 18;

/// NVLinks of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NvLinks {
    /// How many carry data.
    pub active: u32,
    /// How many there are.
    pub total: u32,
    /// NVLink version of the first; `None` where NVML does not say.
    pub version: Option<u32>,
}

/// The library, or why it is not there.
#[derive(Debug)]
pub struct Library(Result<Nvml, String>);

impl Library {
    /// Loads it.
    pub fn load() -> Library {
        Library(Nvml::init().map_err(|e| match e {
            NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => {
                "the library libnvidia-ml, a part of the NVIDIA driver, cannot be loaded".to_owned()
            }
            other => why(&other),
        }))
    }

    fn nvml(&self) -> Reading<&Nvml> {
        self.0.as_ref().map_err(Clone::clone)
    }

    /// Version of the kernel driver, e.g. `580.65.06`.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn driver_version(&self) -> Reading<String> {
        self.nvml()?.sys_driver_version().map_err(|e| why(&e))
    }

    /// Version of NVML itself.
    ///
    /// # Errors
    /// Why it is not known.
    pub fn version(&self) -> Reading<String> {
        self.nvml()?.sys_nvml_version().map_err(|e| why(&e))
    }

    /// The device at a place on the PCI bus. Orders differ: CUDA's may put the fastest first, and
    /// CUDA_VISIBLE_DEVICES hides and reorders, while NVML counts all devices by their bus ids.
    fn device(&self, bus_id: &str) -> Reading<Device<'_>> {
        self.nvml()?.device_by_pci_bus_id(bus_id).map_err(|e| why(&e))
    }

    fn ask<T>(&self, bus_id: &str, question: impl FnOnce(&Device<'_>) -> Result<T, NvmlError>) -> Reading<T> {
        question(&self.device(bus_id)?).map_err(|e| why(&e))
    }

    /// All that is asked of one device.
    pub fn sheet(&self, bus_id: &str) -> Sheet {
        Sheet {
            uuid: self.ask(bus_id, |d| d.uuid()),
            graphics_clock_mhz: self.ask(bus_id, |d| d.clock_info(Clock::Graphics)),
            memory_clock_mhz: self.ask(bus_id, |d| d.clock_info(Clock::Memory)),
            best_graphics_clock_mhz: self.ask(bus_id, |d| d.max_clock_info(Clock::Graphics)),
            best_memory_clock_mhz: self.ask(bus_id, |d| d.max_clock_info(Clock::Memory)),
            throttle_reasons: self.ask(bus_id, |d| d.current_throttle_reasons()).map(throttle_words),
            temperature_celsius: self.ask(bus_id, |d| d.temperature(TemperatureSensor::Gpu)),
            power_limit_milliwatts: self.ask(bus_id, |d| d.enforced_power_limit()),
            pcie: self.pcie(bus_id),
            best_pcie: PcieLink {
                generation: self.ask(bus_id, |d| d.max_pcie_link_gen()),
                width: self.ask(bus_id, |d| d.max_pcie_link_width()),
            },
            nvlinks: self.nvlinks(bus_id),
        }
    }

    /// What holds for a device's clocks at this moment: two or three calls, some tens of microseconds each.
    pub fn conditions(&self, bus_id: &str) -> Conditions {
        Conditions {
            graphics_clock_mhz: self.ask(bus_id, |d| d.clock_info(Clock::Graphics)),
            memory_clock_mhz: self.ask(bus_id, |d| d.clock_info(Clock::Memory)),
            temperature_celsius: self.ask(bus_id, |d| d.temperature(TemperatureSensor::Gpu)),
            slowed_by: self
                .ask(bus_id, |d| d.current_throttle_reasons())
                .map(|reasons| throttle_words(reasons - STEADY)),
        }
    }

    /// A device's PCIe link at this moment.
    pub fn pcie(&self, bus_id: &str) -> PcieLink {
        PcieLink {
            generation: self.ask(bus_id, |d| d.current_pcie_link_gen()),
            width: self.ask(bus_id, |d| d.current_pcie_link_width()),
        }
    }

    fn nvlinks(&self, bus_id: &str) -> Reading<NvLinks> {
        let device = self.device(bus_id)?;
        let states: Vec<bool> =
            (0..MOST_NVLINKS).map_while(|link| device.link_wrapper_for(link).is_active().ok()).collect();
        if states.is_empty() {
            return device
                .link_wrapper_for(0)
                .is_active()
                .map(|_| NvLinks { active: 0, total: 0, version: None })
                .map_err(|e| match e {
                    NvmlError::NotSupported | NvmlError::InvalidArg => "the device has no NVLink".to_owned(),
                    other => why(&other),
                });
        }
        Ok(NvLinks {
            active: states.iter().filter(|active| **active).count() as u32,
            total: states.len() as u32,
            version: device.link_wrapper_for(0).version().ok(),
        })
    }

    /// The nearest thing that two devices have in common.
    ///
    /// # Errors
    /// Why it is not known.
    #[cfg(target_os = "linux")]
    pub fn common_ancestor(&self, bus_id: &str, other: &str) -> Reading<Ancestor> {
        let other = self.device(other)?;
        self.ask(bus_id, |d| d.topology_common_ancestor(other)).map(Ancestor::from)
    }

    /// The nearest thing that two devices have in common.
    ///
    /// # Errors
    /// Always: NVML tells it on Linux only.
    #[cfg(not(target_os = "linux"))]
    pub fn common_ancestor(&self, _bus_id: &str, _other: &str) -> Reading<Ancestor> {
        Err("NVML tells it on Linux only".to_owned())
    }
}

/// One device, as NVML describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sheet {
    /// Its name for ever, e.g. `GPU-8f2a...`.
    pub uuid: Reading<String>,
    /// Clock of the multiprocessors now, MHz.
    pub graphics_clock_mhz: Reading<u32>,
    /// Clock of the memory now, MHz.
    pub memory_clock_mhz: Reading<u32>,
    /// The highest clock of the multiprocessors, MHz.
    pub best_graphics_clock_mhz: Reading<u32>,
    /// The highest clock of the memory, MHz.
    pub best_memory_clock_mhz: Reading<u32>,
    /// Why clocks are lower than they could be, in words; empty where they are not.
    pub throttle_reasons: Reading<Vec<&'static str>>,
    /// Temperature, degrees Celsius.
    pub temperature_celsius: Reading<u32>,
    /// The power limit in force, mW.
    pub power_limit_milliwatts: Reading<u32>,
    /// The PCIe link now. At rest it runs slower than under load.
    pub pcie: PcieLink,
    /// The best PCIe link that device and slot can have.
    pub best_pcie: PcieLink,
    /// Its NVLinks.
    pub nvlinks: Reading<NvLinks>,
}

/// A device's clocks at one moment, and what slows them.
#[derive(Debug, Clone, PartialEq)]
pub struct Conditions {
    /// Clock of the multiprocessors, MHz.
    pub graphics_clock_mhz: Reading<u32>,
    /// Clock of the memory, MHz.
    pub memory_clock_mhz: Reading<u32>,
    /// Temperature, degrees Celsius.
    pub temperature_celsius: Reading<u32>,
    /// What takes speed away now and not at other times, in words; empty where nothing does. Clocks that are
    /// set, and a device at rest, are no such thing.
    pub slowed_by: Reading<Vec<&'static str>>,
}

/// Reasons for lower clocks that hold for every measurement alike.
const STEADY: ThrottleReasons = ThrottleReasons::GPU_IDLE
    .union(ThrottleReasons::APPLICATIONS_CLOCKS_SETTING)
    .union(ThrottleReasons::DISPLAY_CLOCK_SETTING);

/// Why clocks are lower than they could be, in words.
pub fn throttle_words(reasons: ThrottleReasons) -> Vec<&'static str> {
    let words = [
        (ThrottleReasons::GPU_IDLE, "nothing runs on the device"),
        (ThrottleReasons::APPLICATIONS_CLOCKS_SETTING, "clocks are set by the user"),
        (ThrottleReasons::SW_POWER_CAP, "the power limit is reached"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown: heat or power"),
        (ThrottleReasons::SYNC_BOOST, "another device of its sync boost group is slower"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "the device or its memory is too hot"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "hardware slowdown: the device is too hot"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "hardware slowdown: the power supply brakes"),
        (ThrottleReasons::DISPLAY_CLOCK_SETTING, "clocks are set for a display"),
    ];
    words.into_iter().filter(|(reason, _)| reasons.contains(*reason)).map(|(_, words)| words).collect()
}

/// NVML's errors as a user can act on them.
fn why(error: &NvmlError) -> String {
    match error {
        NvmlError::NotSupported => "the device does not tell".to_owned(),
        NvmlError::NoPermission => "this user may not ask; an administrator may".to_owned(),
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            "the installed NVIDIA driver is too old to tell".to_owned()
        }
        NvmlError::LibRmVersionMismatch => {
            "the NVIDIA driver was updated and runs in its old version: restart the machine".to_owned()
        }
        NvmlError::NotFound => "NVML does not know the device".to_owned(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_words() {
        let all = throttle_words(ThrottleReasons::all());
        let mut distinct = all.clone();
        distinct.sort_unstable();
        distinct.dedup();
        assert_eq!((all.len(), distinct.len()), (9, 9));
        assert!(throttle_words(ThrottleReasons::NONE).is_empty());
        let two = throttle_words(ThrottleReasons::SW_POWER_CAP | ThrottleReasons::GPU_IDLE);
        assert_eq!(two, ["nothing runs on the device", "the power limit is reached"]);
        let slowing = throttle_words(ThrottleReasons::all() - STEADY);
        assert_eq!(slowing.len(), 6);
        assert!(!slowing.contains(&"clocks are set by the user"));
    }

    #[test]
    fn without_the_library_each_value_is_its_reason() {
        let library = Library(Err("no library".to_owned()));
        let sheet = library.sheet("0000:01:00.0");
        assert_eq!(sheet.uuid, Err("no library".to_owned()));
        assert_eq!(sheet.throttle_reasons, Err("no library".to_owned()));
        assert_eq!(sheet.best_pcie.width, Err("no library".to_owned()));
        assert_eq!(sheet.nvlinks, Err("no library".to_owned()));
        assert_eq!(library.driver_version(), Err("no library".to_owned()));
        assert_eq!(library.conditions("0000:01:00.0").slowed_by, Err("no library".to_owned()));
        assert!(library.common_ancestor("0000:01:00.0", "0000:02:00.0").is_err());
    }

    #[test]
    fn errors_say_what_to_do() {
        assert!(why(&NvmlError::NoPermission).contains("administrator"));
        assert!(why(&NvmlError::LibRmVersionMismatch).contains("restart"));
        assert!(why(&NvmlError::FailedToLoadSymbol("nvmlX".to_owned())).contains("too old"));
    }
}
