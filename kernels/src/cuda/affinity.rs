//! Where a device sits in the machine, as Linux tells, and running beside it.
//!
//! Host memory far from a device's PCIe root is slower to reach from it. A thread that runs on the
//! processors near a device allocates pinned memory near it, too.

use std::fs;
use std::path::{Path, PathBuf};

/// Where Linux describes PCI devices.
const DEVICES: &str = "/sys/bus/pci/devices";

/// The folder of a device under `root`, by the bus id that the driver or NVML gives. NVML writes the domain
/// with eight digits, Linux with four.
fn folder(root: &Path, bus_id: &str) -> PathBuf {
    let lower = bus_id.to_ascii_lowercase();
    let name = match lower.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 && domain[..domain.len() - 4].bytes().all(|b| b == b'0') => {
            format!("{}:{rest}", &domain[domain.len() - 4..])
        }
        _ => lower,
    };
    root.join(name)
}

fn read(root: &Path, bus_id: &str, file: &str) -> Result<String, String> {
    let path = folder(root, bus_id).join(file);
    let text = fs::read_to_string(&path).map_err(|e| format!("cannot read {}: {e}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// The NUMA node of a device.
///
/// # Errors
/// In words: the system does not tell, or knows of no nodes.
pub fn numa_node(bus_id: &str) -> Result<u32, String> {
    parse_node(&read(Path::new(DEVICES), bus_id, "numa_node")?)
}

fn parse_node(text: &str) -> Result<u32, String> {
    match text.parse::<i64>() {
        Ok(-1) => Err("the system assigns it to no NUMA node".to_owned()),
        Ok(node) => u32::try_from(node).map_err(|_| format!("the system calls its NUMA node {node}")),
        Err(_) => Err(format!("the system calls its NUMA node {text:?}")),
    }
}

/// The processors near a device as Linux lists them, e.g. `0-15,32-47`.
///
/// # Errors
/// In words: the system does not tell.
pub fn near_processors(bus_id: &str) -> Result<String, String> {
    let list = read(Path::new(DEVICES), bus_id, "local_cpulist")?;
    if list.is_empty() { Err("the system lists no processors near it".to_owned()) } else { Ok(list) }
}

/// The numbers of a list like `0-3,8`.
///
/// # Errors
/// In words: not such a list.
pub fn parse_processors(list: &str) -> Result<Vec<usize>, String> {
    let wrong = || format!("expected a list of processors like 0-3,8, found {list:?}");
    let mut numbers = Vec::new();
    for part in list.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let number = |text: &str| text.trim().parse::<u16>().map_err(|_| wrong());
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(wrong());
        }
        numbers.extend((first..=last).map(usize::from));
    }
    Ok(numbers)
}

/// Keeps the calling thread on some processors until dropped.
#[derive(Debug)]
pub struct Affinity {
    #[cfg(target_os = "linux")]
    before: rustix::thread::CpuSet,
}

impl Affinity {
    /// Moves the calling thread to those of the listed processors that it may use.
    ///
    /// # Errors
    /// In words: no such processors, or not allowed.
    #[cfg(target_os = "linux")]
    pub fn near(list: &str) -> Result<Affinity, String> {
        use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
        let before =
            sched_getaffinity(None).map_err(|e| format!("the system does not tell the thread's processors: {e}"))?;
        let mut set = CpuSet::new();
        for cpu in parse_processors(list)?.into_iter().filter(|&cpu| cpu < CpuSet::MAX_CPU && before.is_set(cpu)) {
            set.set(cpu);
        }
        if set.count() == 0 {
            return Err(format!("this process may use none of the processors near the device ({list})"));
        }
        sched_setaffinity(None, &set).map_err(|e| format!("the thread cannot move to the processors {list}: {e}"))?;
        Ok(Affinity { before })
    }

    /// Moves the calling thread to those of the listed processors that it may use.
    ///
    /// # Errors
    /// Always: this is known how to do on Linux only.
    #[cfg(not(target_os = "linux"))]
    pub fn near(_list: &str) -> Result<Affinity, String> {
        Err("threads are tied to processors on Linux only".to_owned())
    }
}

#[cfg(target_os = "linux")]
impl Drop for Affinity {
    fn drop(&mut self) {
        // The set was this thread's own a moment ago. Where the system has taken processors away since, it
        // has moved the thread itself.
        let _ = rustix::thread::sched_setaffinity(None, &self.before);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn lists_of_processors_are_read() {
        assert_eq!(parse_processors("0-3,8,10-11\n").unwrap(), [0, 1, 2, 3, 8, 10, 11]);
        assert_eq!(parse_processors("").unwrap(), [] as [usize; 0]);
        for wrong in ["a", "3-1", "1-", "-1", "0-99999999"] {
            assert!(parse_processors(wrong).unwrap_err().contains(wrong), "{wrong}");
        }
    }

    #[test]
    fn a_node_of_minus_one_is_no_node() {
        assert_eq!(parse_node("1"), Ok(1));
        assert!(parse_node("-1").unwrap_err().contains("no NUMA node"));
        assert!(parse_node("-7").unwrap_err().contains("-7"));
        assert!(parse_node("x").unwrap_err().contains('x'));
    }

    #[test]
    fn the_system_is_asked_by_any_spelling_of_the_bus_id() {
        let root = tempfile::tempdir().unwrap();
        let device = root.path().join("0000:3b:00.0");
        fs::create_dir(&device).unwrap();
        fs::write(device.join("numa_node"), "1\n").unwrap();
        for spelling in ["0000:3B:00.0", "00000000:3b:00.0", "0000:3b:00.0"] {
            assert_eq!(read(root.path(), spelling, "numa_node").unwrap(), "1", "{spelling}");
        }
        assert!(read(root.path(), "0000:3c:00.0", "numa_node").unwrap_err().contains("0000:3c:00.0"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_thread_moves_and_returns() {
        use rustix::thread::sched_getaffinity;
        // On a thread of its own: the others keep their processors.
        std::thread::spawn(|| {
            let before = sched_getaffinity(None).unwrap();
            let first = (0..1024).find(|&cpu| before.is_set(cpu)).unwrap();
            let moved = Affinity::near(&format!("{first}")).unwrap();
            assert_eq!(sched_getaffinity(None).unwrap().count(), 1);
            drop(moved);
            assert_eq!(sched_getaffinity(None).unwrap(), before);
            assert!(Affinity::near("1023").unwrap_err().contains("1023"));
        })
        .join()
        .unwrap();
    }
}
