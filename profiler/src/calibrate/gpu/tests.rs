#![allow(clippy::unwrap_used)]

use std::sync::atomic::{AtomicBool, Ordering};

use optpipe_configs::file::Check;
use optpipe_configs::hardware::Link;
use optpipe_configs::hardware::details::{Test, TestStatus};
use optpipe_kernels::rig::Lane;
use proptest::prelude::*;

use super::simulated::Simulated;
use super::*;

fn run(rig: &mut Simulated) -> Result<Hardware> {
    calibrate(rig.described(), rig, &GpuOptions::default(), &mut |_| {}, &AtomicBool::new(false))
}

fn details(hardware: &Hardware) -> &Details {
    hardware.details.as_ref().unwrap()
}

fn close(found: f64, expected: f64, part: f64) -> bool {
    (found / expected - 1.0).abs() < part
}

fn is_link(link: &Link, latency_ns: f64, bytes_per_ns: f64) -> bool {
    close(link.bytes_per_second, bytes_per_ns * 1e9, 0.01) && (link.latency_ns - latency_ns).abs() < 50.0
}

#[test]
fn every_link_is_found_again() {
    let mut rig = Simulated::new(2);
    let hardware = run(&mut rig).unwrap();
    hardware.check().unwrap();
    assert!(is_link(&hardware.offload, 1500.0, 25.0), "{:?}", hardware.offload);
    assert!(is_link(&hardware.reload, 1500.0, 24.0));
    assert!(is_link(&hardware.offload_duplex, 1500.0, 25.0 * 0.96));
    assert!(is_link(&hardware.reload_duplex, 1500.0, 24.0 * 0.5));
    assert!(is_link(hardware.offload_neighbour.as_ref().unwrap(), 1500.0, 25.0));
    assert!(is_link(&hardware.send, 1500.0, 100.0));
    assert_eq!((hardware.offload_channel.clone(), hardware.reload_channel.clone()), (vec![0, 1], vec![2, 3]));
    assert_eq!((hardware.backend.as_str(), hardware.devices.len(), hardware.devices[0].cores), ("cuda", 2, 4));
    let sizes: Vec<u64> = hardware.offload.points.iter().map(|p| p.bytes).collect();
    assert_eq!((sizes[0], sizes[sizes.len() - 1], sizes.len()), (4 << 10, 512 << 20, 10));
    let details = details(&hardware);
    assert_eq!((details.links.len(), details.pairs.len(), details.interference.len()), (2, 2, 2));
    assert!(details.tests.iter().all(|test| test.status == TestStatus::Passed), "{:?}", details.tests);
    assert_eq!(details.pairs[0].route.as_deref(), Some("peer"));
    assert!(close(details.pairs[1].send_bytes_per_second.unwrap(), 100e9, 0.02));
    // The link under load, not the one at rest.
    assert!(
        details.verdicts.iter().any(|v| v.contains("gen 4 x16, the slot allows gen 5 x16")),
        "{:?}",
        details.verdicts
    );
    assert!(rig.reserved.is_empty());
}

#[test]
fn a_point_is_measured_as_nvbandwidth_does() {
    let mut rig = Simulated::new(1);
    run(&mut rig).unwrap();
    let largest: Vec<Lane> = rig
        .races
        .iter()
        .filter(|(timed, beside, _)| timed.bytes == 512 << 20 && beside.is_empty())
        .map(|(timed, ..)| *timed)
        .collect();
    let offloads: Vec<usize> =
        largest.iter().filter(|l| l.work == Work::Offload { device: 0 }).map(|l| l.repeats).collect();
    let warmup = offloads.iter().position(|&copies| copies == 4).unwrap();
    let samples = &offloads[warmup + 1..];
    assert!(samples.len() >= 5 && samples.iter().all(|&copies| copies == 16), "{offloads:?}");
}

#[test]
fn what_runs_beside_lasts_as_long_as_what_is_timed() {
    let mut rig = Simulated::new(2);
    // One direction is much faster than the other, so that the first guess is wrong.
    (rig.offload, rig.reload, rig.duplex) = (25.0, 3.0, (0.5, 0.9));
    let hardware = run(&mut rig).unwrap();
    assert!(details(&hardware).tests.iter().all(|test| test.status == TestStatus::Passed));
    assert!(is_link(&hardware.reload_duplex, 1500.0, 2.7));
    assert!(rig.races.iter().any(|(.., covered)| !covered), "the test tests nothing");
}

#[test]
fn a_single_device_has_no_neighbour_and_sends_within_itself() {
    let hardware = run(&mut Simulated::new(1)).unwrap();
    hardware.check().unwrap();
    assert_eq!((hardware.offload_channel.clone(), hardware.reload_channel.clone()), (vec![0], vec![1]));
    assert!(hardware.offload_neighbour.is_none() && details(&hardware).pairs.is_empty());
    assert!(hardware.send.bytes_per_second > 100e9);
}

#[test]
fn devices_behind_a_switch_share_a_channel_and_the_topology_is_confirmed() {
    let mut rig = Simulated::new(4);
    rig.switch = vec![0, 0, 1, 1];
    let hardware = run(&mut rig).unwrap();
    assert_eq!(hardware.offload_channel, [0, 0, 1, 1]);
    assert_eq!(hardware.reload_channel, [2, 2, 3, 3]);
    let details = details(&hardware);
    // The channel tells of the device behind the same switch; the neighbour is one behind the other.
    assert_eq!(details.links[0].neighbour, Some(2));
    assert!(is_link(hardware.offload_neighbour.as_ref().unwrap(), 1500.0, 25.0));
    let pair = details.pairs.iter().find(|p| (p.from, p.to) == (0, 1)).unwrap();
    assert!(close(pair.offload_share.unwrap(), 0.5, 0.02), "{pair:?}");
    assert_eq!(pair.common_ancestor.as_deref(), Some("one PCIe switch"));
    let confirmed = details.verdicts.iter().filter(|v| v.contains("confirmed")).count();
    assert_eq!(confirmed, 2, "{:?}", details.verdicts);
}

#[test]
fn a_topology_that_copies_refute_does_not_make_channels() {
    let mut rig = Simulated::new(2);
    let mut described = rig.described();
    described.relations[0].ancestor = Ok(optpipe_kernels::cuda::topology::Ancestor::Switch);
    let hardware =
        calibrate(described, &mut rig, &GpuOptions::default(), &mut |_| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!(hardware.offload_channel, [0, 1]);
    assert!(details(&hardware).verdicts.iter().any(|v| v.contains("share no link")));
}

#[test]
fn a_half_duplex_link_is_one_channel() {
    let mut rig = Simulated::new(1);
    rig.duplex = (0.5, 0.5);
    let hardware = run(&mut rig).unwrap();
    assert_eq!((hardware.offload_channel, hardware.reload_channel), (vec![0], vec![0]));
}

#[test]
fn copies_and_products_slow_one_another_as_much_as_they_do() {
    let hardware = run(&mut Simulated::new(1)).unwrap();
    let found = &details(&hardware).interference[0];
    assert!(close(found.product_beside_offload, 1.02, 0.002), "{found:?}");
    assert!(close(found.product_beside_both, 1.02 * 1.02, 0.002), "{found:?}");
    assert!(close(found.offload_beside_product, 1.05, 0.005), "{found:?}");
    assert_eq!((found.product.as_str(), found.product_time.median_ns), ("made up", 200_000));
}

#[test]
fn without_a_library_for_products_their_tests_are_skipped_with_the_reason() {
    let mut rig = Simulated::new(2);
    rig.product_ns = None;
    let hardware = run(&mut rig).unwrap();
    let details = details(&hardware);
    assert!(details.interference.is_empty());
    let skipped: Vec<&Test> = details.tests.iter().filter(|t| t.status == TestStatus::Skipped).collect();
    assert_eq!(skipped.len(), 2);
    assert!(skipped[0].reason.as_ref().unwrap().contains("no libcublas"));
    assert!(details.verdicts.iter().any(|v| v.contains("skipped: no libcublas")));
}

#[test]
fn damaged_data_fails_the_test_of_its_copies_and_no_other() {
    let mut rig = Simulated::new(1);
    rig.damages = Some((Work::Reload { device: 0 }, 1 << 20));
    let hardware = run(&mut rig).unwrap();
    let failed: Vec<&Test> = details(&hardware).tests.iter().filter(|t| t.status == TestStatus::Failed).collect();
    assert_eq!(failed.len(), 1);
    assert_eq!(failed[0].name, "reload of device 0");
    assert!(failed[0].reason.as_ref().unwrap().contains("damaged, first at byte 4096"), "{failed:?}");
}

#[test]
fn times_that_differ_are_called_unstable() {
    let mut rig = Simulated::new(1);
    rig.jitter = 0.5;
    let hardware = run(&mut rig).unwrap();
    let tests = &details(&hardware).tests;
    assert!(tests.iter().filter(|t| t.status == TestStatus::Unstable).count() > tests.len() / 2, "{tests:?}");
    assert!(hardware.offload.points.iter().any(|p| !p.time.stable && p.time.mad_ns > 0));
    assert!(details(&hardware).verdicts.iter().any(|v| v.contains("did not settle")));
}

#[test]
fn a_host_that_is_slow_now_and_then_is_asked_again() {
    let mut rig = Simulated::new(1);
    rig.stalls = Some(7);
    let hardware = run(&mut rig).unwrap();
    assert!(is_link(&hardware.offload, 1500.0, 25.0));
    // One that always is cannot be measured on.
    rig.stalls = Some(1);
    assert!(run(&mut rig).unwrap_err().to_string().contains("took too long"));
}

#[test]
fn little_memory_means_smaller_copies_and_a_word_about_it() {
    let mut rig = Simulated::new(2);
    rig.memory = 20 << 20;
    let hardware = run(&mut rig).unwrap();
    assert_eq!(hardware.offload.points.last().unwrap().bytes, 16 << 20);
    assert!(is_link(&hardware.offload, 1500.0, 25.0));
    let skipped = details(&hardware).tests.iter().find(|t| t.status == TestStatus::Skipped).unwrap();
    assert!(skipped.name.contains("above 16384 KiB") && skipped.reason.as_ref().unwrap().contains("too little"));
    rig.memory = 100;
    assert!(run(&mut rig).unwrap_err().to_string().contains("too little"));
}

#[test]
fn what_a_plan_needs_must_be_there_and_what_it_does_not_may_fail() {
    let mut rig = Simulated::new(2);
    rig.broken = Some(Work::Reload { device: 1 });
    let error = run(&mut rig).unwrap_err().to_string();
    assert!(error.contains("reload of device 1") && error.contains("a fault"), "{error}");
    rig.broken = Some(Work::Send { from: 1, to: 0 });
    let hardware = run(&mut rig).unwrap();
    assert!(details(&hardware).links[1].send.is_none() && details(&hardware).links[0].send.is_some());
    assert!(details(&hardware).verdicts.iter().any(|v| v.contains("a fault")));
    rig.broken = Some(Work::Send { from: 0, to: 1 });
    let error = run(&mut rig).unwrap_err().to_string();
    assert!(error.contains("send from device 0 to device 1: ") && error.contains("a fault"), "{error}");
}

#[test]
fn eight_devices_on_slow_links_take_less_than_a_minute() {
    for (offload, reload) in [(50.0, 50.0), (12.0, 12.0), (3.0, 2.0)] {
        let mut rig = Simulated::new(8);
        (rig.offload, rig.reload, rig.switch) = (offload, reload, vec![0, 0, 1, 1, 2, 2, 3, 3]);
        (rig.has_peers, rig.product_ns) = (false, Some(3e6));
        let hardware = run(&mut rig).unwrap();
        let seconds = rig.elapsed().as_secs_f64();
        assert!(seconds < 60.0, "{seconds} s at {offload} GB/s");
        assert_eq!(hardware.offload_channel, [0, 0, 1, 1, 2, 2, 3, 3]);
        assert!(close(hardware.offload.bytes_per_second, offload * 1e9, 0.02), "{:?}", hardware.offload);
        assert_eq!(details(&hardware).pairs.len(), 56);
        assert_eq!(details(&hardware).pairs[0].route.as_deref(), Some("through the host"));
    }
}

#[test]
fn cancelling_ends_it() {
    let mut rig = Simulated::new(2);
    let cancel = AtomicBool::new(false);
    let mut heard = 0;
    let mut progress = |_: &str| {
        heard += 1;
        cancel.store(heard == 3, Ordering::Relaxed);
    };
    let result = calibrate(rig.described(), &mut rig, &GpuOptions::default(), &mut progress, &cancel);
    assert!(matches!(result, Err(CalibrateError::Cancelled)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the machine, the file is usable, and channels are equal exactly where links are.
    #[test]
    fn any_machine_gives_a_usable_file(
        switch in proptest::collection::vec(0_usize..3, 1..6),
        offload in 1.0..60.0_f64,
        reload in 1.0..60.0_f64,
        jitter in 0.0..0.1_f64,
        latency in 0.0..20_000.0_f64,
    ) {
        let mut rig = Simulated::new(switch.len());
        (rig.offload, rig.reload, rig.jitter, rig.latency_ns) = (offload, reload, jitter, latency);
        rig.switch.clone_from(&switch);
        let hardware = run(&mut rig).unwrap();
        prop_assert!(hardware.check().is_ok());
        for (one, &group) in switch.iter().enumerate() {
            for (other, &its) in switch.iter().enumerate() {
                let same = hardware.offload_channel[one] == hardware.offload_channel[other];
                prop_assert_eq!(same, group == its, "{} and {}", one, other);
            }
        }
    }
}
