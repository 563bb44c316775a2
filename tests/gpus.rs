//! GPU commands from end to end, on a stand-in for NVIDIA's driver that works on the host: every call of the
//! program into the driver is made, in its order and with its arguments, only the device is not real.

use std::path::Path;
use std::process::Output;

use crate::support::{data, optpipe, stderr, stdout};
use optpipe_configs::file;
use optpipe_configs::hardware::Hardware;
use optpipe_configs::hardware::details::TestStatus;

/// Builds the stand-in as `libcuda.so` in a folder.
fn build(folder: &Path) {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
    let built = std::process::Command::new(&compiler)
        .args(["-O2", "-shared", "-fPIC", "-o"])
        .arg(folder.join("libcuda.so.1"))
        .arg(data("driver.c"))
        .output()
        .expect("a C compiler, which building OptPipe needs, too");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    std::fs::copy(folder.join("libcuda.so.1"), folder.join("libcuda.so")).expect("copied");
}

/// Runs a command with so many devices.
fn run(folder: &Path, devices: usize, damages: bool, arguments: &[&str]) -> Output {
    let mut command = optpipe();
    command.env("LD_LIBRARY_PATH", folder).env("STAND_IN_DEVICES", devices.to_string());
    if damages {
        command.env("STAND_IN_DAMAGES", "1");
    }
    command.current_dir(folder).args(arguments).output().expect("runs")
}

const QUICK: [&str; 5] = ["--time-limit", "2s", "--largest", "1MiB", "--quiet"];

#[test]
fn gpus_are_described_and_calibrated_through_the_driver_alone() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let folder = folder.path();
    build(folder);

    let devices = run(folder, 2, false, &["devices"]);
    let text = stdout(&devices);
    assert!(devices.status.success(), "{}", stderr(&devices));
    for words in [
        "device 1: Stand-in 1, 16.0 GiB, compute capability 9.0, 132 multiprocessors, PCI bus ffff:02:00.0",
        "for CUDA up to 12.2",
        "3 copy engines",
        "not known: ",
        "peer access",
    ] {
        assert!(text.contains(words), "expected {words:?} in: {text}");
    }
    let value: serde_json::Value =
        serde_json::from_slice(&run(folder, 2, false, &["devices", "--json"]).stdout).expect("stdout is JSON");
    assert_eq!(
        (value["cuda"][0]["bus_id"].as_str(), value["pairs"][0]["peer_access"].as_bool()),
        (Some("ffff:01:00.0"), Some(true))
    );

    let mut arguments = vec!["calibrate", "--backend", "cuda", "-o", "hardware.yaml"];
    arguments.extend(QUICK);
    let calibrated = run(folder, 2, false, &arguments);
    let text = stdout(&calibrated);
    assert!(calibrated.status.success(), "{}", stderr(&calibrated));
    assert!(text.contains("tests passed") && text.contains("- device 0: offloads run at "), "{text}");
    let hardware: Hardware = file::read_checked(&folder.join("hardware.yaml")).expect("a file that is read back");
    assert_eq!((hardware.backend.as_str(), hardware.clock.as_str()), ("cuda", "cuda events"));
    assert!(hardware.offload.points.iter().all(|point| point.time.median_ns > 0 && point.time.count >= 5));
    let details = hardware.details.expect("details of GPUs");
    assert_eq!((details.links.len(), details.pairs.len()), (2, 2));
    assert_eq!(details.pairs[0].route.as_deref(), Some("peer"));
    assert!(details.tests.iter().all(|test| test.status != TestStatus::Failed), "{:?}", details.tests);
}

#[test]
fn more_devices_than_gpus_take_turns() {
    let folder = tempfile::tempdir().expect("temporary folder");
    build(folder.path());
    let mut arguments = vec!["calibrate", "--backend", "cuda", "--devices", "3", "-o", "hardware.yaml"];
    arguments.extend(QUICK);
    let calibrated = run(folder.path(), 1, false, &arguments);
    assert!(calibrated.status.success(), "{}", stderr(&calibrated));
    let hardware: Hardware = file::read_checked(&folder.path().join("hardware.yaml")).expect("reads");
    let memory: Vec<u64> = hardware.devices.iter().map(|device| device.memory_bytes).collect();
    assert_eq!(memory, [(1 << 34) / 3; 3]);
    assert!(hardware.offload_channel.iter().all(|channel| *channel == hardware.offload_channel[0]));
}

#[test]
fn data_that_arrive_damaged_are_a_failure_with_a_name() {
    let folder = tempfile::tempdir().expect("temporary folder");
    build(folder.path());
    let mut arguments = vec!["calibrate", "--backend", "cuda", "-o", "hardware.yaml"];
    arguments.extend(QUICK);
    let calibrated = run(folder.path(), 1, true, &arguments);
    assert_eq!(calibrated.status.code(), Some(1));
    let text = stderr(&calibrated);
    assert!(
        text.contains("reload of device 0: the data of copies of 4 KiB arrived damaged, first at byte 2048"),
        "{text}"
    );
    let hardware: Hardware = file::read_checked(&folder.path().join("hardware.yaml")).expect("written all the same");
    let details = hardware.details.expect("details of GPUs");
    assert!(details.verdicts.iter().any(|verdict| verdict.contains("damaged")), "{:?}", details.verdicts);
}

#[test]
fn a_driver_without_devices_is_said_so() {
    let folder = tempfile::tempdir().expect("temporary folder");
    build(folder.path());
    let calibrated = run(folder.path(), 0, false, &["calibrate", "--backend", "cuda", "--quiet"]);
    assert_eq!(calibrated.status.code(), Some(1));
    assert!(stderr(&calibrated).contains("finds no devices"), "{}", stderr(&calibrated));
}
