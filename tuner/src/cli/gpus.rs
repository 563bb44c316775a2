//! GPUs and what was measured of them, as text.

use std::collections::BTreeMap;

use optpipe_configs::hardware::details::{Details, Gpu, TestStatus};
use optpipe_profiler::calibrate::gpu::Relation;

use crate::{table, text};

/// One device, on lines.
pub(super) fn description(gpu: &Gpu) -> Vec<String> {
    let mut lines = vec![format!(
        "backend cuda: device {}: {}, {}, compute capability {}, {} multiprocessors, PCI bus {}",
        gpu.ordinal,
        gpu.name,
        text::bytes(gpu.memory_bytes),
        gpu.compute_capability,
        gpu.multiprocessors,
        gpu.bus_id
    )];
    let mut line = |name: &str, parts: Vec<Option<String>>| {
        let known: Vec<String> = parts.into_iter().flatten().collect();
        if !known.is_empty() {
            lines.push(format!("  {name}: {}", known.join(", ")));
        }
    };
    let clock = |now: Option<u32>, best: Option<u32>, what: &str| match (now, best) {
        (Some(now), Some(best)) => Some(format!("{what} {now} of {best} MHz")),
        (Some(now), None) => Some(format!("{what} {now} MHz")),
        (None, Some(best)) => Some(format!("{what} up to {best} MHz")),
        (None, None) => None,
    };
    let throttled = gpu.throttle_reasons.as_ref().map(|reasons| match reasons.as_slice() {
        [] => "nothing holds them back".to_owned(),
        some => format!("held back: {}", some.join("; ")),
    });
    line(
        "clocks",
        vec![
            clock(gpu.graphics_clock_mhz, gpu.best_graphics_clock_mhz, "multiprocessors"),
            clock(gpu.memory_clock_mhz, gpu.best_memory_clock_mhz, "memory"),
            throttled,
        ],
    );
    line(
        "power and heat",
        vec![
            gpu.power_limit_watts.map(|watts| format!("limit {watts:.0} W")),
            gpu.temperature_celsius.map(|degrees| format!("{degrees} °C")),
        ],
    );
    let pcie = |generation: Option<u32>, width: Option<u32>, what: &str| match (generation, width) {
        (Some(generation), Some(width)) => Some(format!("{what} gen {generation} x{width}")),
        _ => None,
    };
    line(
        "PCIe",
        vec![
            pcie(gpu.pcie_generation, gpu.pcie_width, "now"),
            pcie(gpu.best_pcie_generation, gpu.best_pcie_width, "at best"),
            gpu.copy_engines.map(|engines| format!("{engines} copy engines")),
        ],
    );
    line(
        "host",
        vec![
            gpu.numa_node.map(|node| format!("NUMA node {node}")),
            gpu.processors.as_ref().map(|list| format!("processors {list}")),
        ],
    );
    let nvlinks = gpu.nvlinks_active.zip(gpu.nvlinks).map(|(active, all)| format!("{active} of {all} active"));
    line("NVLink", vec![nvlinks, gpu.nvlink_version.map(|version| format!("version {version}"))]);
    // One reason often holds for many.
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (field, why) in &gpu.unknown {
        reasons.entry(why).or_default().push(field);
    }
    for (why, fields) in reasons {
        lines.push(format!("  not known: {}: {why}", fields.join(", ")));
    }
    lines
}

/// How any two devices are connected.
pub(super) fn relations(relations: &[Relation]) -> Option<String> {
    if relations.is_empty() {
        return None;
    }
    let rows = relations.iter().map(|relation| {
        let unknown = |why: &String| format!("not known: {why}");
        let peers =
            relation.peer_access.as_ref().map_or_else(unknown, |yes| if *yes { "yes" } else { "no" }.to_owned());
        vec![
            format!("{} and {}", relation.one, relation.other),
            relation.ancestor.as_ref().map_or_else(unknown, ToString::to_string),
            peers,
        ]
    });
    Some(table::table(["devices", "nearest in common", "peer access"], rows.collect()).to_string())
}

/// What a calibration says beyond its links: each device, each pair, products, tests, verdicts.
pub(super) fn measured(details: &Details) -> Vec<String> {
    let mut lines = Vec::new();
    if details.links.len() > 1 {
        let rows = details.links.iter().enumerate().map(|(device, links)| {
            let rate = |link: Option<&optpipe_configs::hardware::Link>| {
                link.map_or_else(|| "-".to_owned(), |link| text::rate(link.bytes_per_second))
            };
            vec![
                device.to_string(),
                rate(Some(&links.offload)),
                rate(Some(&links.reload)),
                rate(Some(&links.offload_duplex)),
                rate(Some(&links.reload_duplex)),
                rate(links.offload_neighbour.as_ref()),
                rate(links.reload_neighbour.as_ref()),
                rate(links.send.as_ref()),
            ]
        });
        let heading = [
            "device",
            "offload",
            "reload",
            "offload, reloading too",
            "reload, offloading too",
            "offload, neighbour too",
            "reload, neighbour too",
            "to the next",
        ];
        lines.push(table::table(heading, rows.collect()).to_string());
    }
    if !details.pairs.is_empty() {
        let share = |share: Option<f64>| share.map_or_else(|| "-".to_owned(), text::percent);
        let rows = details.pairs.iter().map(|pair| {
            vec![
                format!("{} to {}", pair.from, pair.to),
                pair.common_ancestor.clone().unwrap_or_else(|| "not known".to_owned()),
                pair.route.clone().unwrap_or_else(|| "-".to_owned()),
                pair.send_bytes_per_second.map_or_else(|| "-".to_owned(), text::rate),
                share(pair.offload_share),
                share(pair.reload_share),
            ]
        });
        let heading = ["devices", "nearest in common", "route", "bandwidth", "offload left", "reload left"];
        lines.push(table::table(heading, rows.collect()).to_string());
    }
    let passed = details.tests.iter().filter(|test| test.status == TestStatus::Passed).count();
    lines.push(format!("{passed} of {} tests passed", details.tests.len()));
    lines.extend(details.verdicts.iter().map(|verdict| format!("- {verdict}")));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_described_with_what_is_known_of_it() {
        let mut gpu = Gpu {
            ordinal: 1,
            name: "NVIDIA H200".to_owned(),
            bus_id: "0000:3b:00.0".to_owned(),
            memory_bytes: 1 << 37,
            compute_capability: "9.0".to_owned(),
            multiprocessors: 132,
            graphics_clock_mhz: Some(345),
            best_graphics_clock_mhz: Some(1980),
            throttle_reasons: Some(vec!["nothing runs on the device".to_owned()]),
            pcie_generation: Some(1),
            pcie_width: Some(16),
            nvlinks: Some(18),
            nvlinks_active: Some(17),
            ..Gpu::default()
        };
        gpu.unknown.insert("numa_node".to_owned(), "the system assigns it to no NUMA node".to_owned());
        let all = description(&gpu).join("\n");
        assert_eq!(
            all,
            "backend cuda: device 1: NVIDIA H200, 128 GiB, compute capability 9.0, 132 multiprocessors, PCI bus \
             0000:3b:00.0\n  clocks: multiprocessors 345 of 1980 MHz, held back: nothing runs on the device\n  PCIe: now \
             gen 1 x16\n  NVLink: 17 of 18 active\n  not known: numa_node: the system assigns it to no NUMA node"
        );
    }
}
