//! What measurements of GPUs mean, in sentences.

use optpipe_configs::hardware::details::{Details, DeviceLinks, Gpu, Interference, TestStatus};

use super::channels::is_shared;

/// Copies that reach less than this part of what the PCIe link carries are worth a look: nvbandwidth and
/// the like reach 80 to 90 %.
const POOR: f64 = 0.7;

/// What one lane of a PCIe generation carries, bytes a second: transfers a second less the encoding (8b/10b
/// up to generation 2, 128b/130b up to 5, 242/256 flits from 6 on; PCI Express Base Specification).
fn lane(generation: u32) -> Option<f64> {
    Some(match generation {
        1 => 2.5e9 * 0.8 / 8.0,
        2 => 5e9 * 0.8 / 8.0,
        3 => 8e9 * 128.0 / 130.0 / 8.0,
        4 => 16e9 * 128.0 / 130.0 / 8.0,
        5 => 32e9 * 128.0 / 130.0 / 8.0,
        6 => 64e9 * 242.0 / 256.0 / 8.0,
        _ => return None,
    })
}

/// What a PCIe link carries one way, bytes a second; `None` for a generation that is not known.
pub(super) fn pcie_bandwidth(generation: u32, width: u32) -> Option<f64> {
    Some(lane(generation)? * f64::from(width))
}

/// Whether a link runs as well as it can.
pub(super) fn link(gpu: &Gpu) -> Option<String> {
    let now = (gpu.pcie_generation?, gpu.pcie_width?);
    let best = (gpu.best_pcie_generation?, gpu.best_pcie_width?);
    let device = gpu.ordinal;
    if now.0 >= best.0 && now.1 >= best.1 {
        return Some(format!(
            "device {device}: PCIe runs at gen {} x{}, the best that device and slot allow",
            now.0, now.1
        ));
    }
    let slower = pcie_bandwidth(best.0, best.1).zip(pcie_bandwidth(now.0, now.1)).map(|(best, now)| best / now);
    let slower =
        slower.map_or_else(String::new, |factor| format!(": copies take {factor:.1} times as long as they could"));
    Some(format!(
        "device {device}: PCIe runs at gen {} x{}, the slot allows gen {} x{}{slower}",
        now.0, now.1, best.0, best.1
    ))
}

/// Whether a link has fewer lanes than it can have; its generation is not looked at.
pub(super) fn width(gpu: &Gpu) -> Option<String> {
    let (now, best) = (gpu.pcie_width?, gpu.best_pcie_width?);
    (now < best).then(|| format!("device {}: PCIe runs at x{now}, the slot allows x{best}", gpu.ordinal))
}

/// What copies reach of what the link carries, and what both directions leave one another.
pub(super) fn copies(gpu: &Gpu, links: &DeviceLinks) -> Vec<String> {
    let device = gpu.ordinal;
    let gigabytes = |rate: f64| format!("{:.1} GB/s", rate / 1e9);
    let mut lines = Vec::new();
    let carried = gpu.pcie_generation.zip(gpu.pcie_width).and_then(|(g, w)| Some((pcie_bandwidth(g, w)?, g, w)));
    for (what, rate) in [("offloads", links.offload.bytes_per_second), ("reloads", links.reload.bytes_per_second)] {
        let Some((carried, generation, width)) = carried else { continue };
        let part = rate / carried;
        if part > 1.05 {
            lines.push(format!(
                "device {device}: {what} run at {}, more than PCIe gen {generation} x{width} carries: the device has \
                 another link to the host",
                gigabytes(rate)
            ));
        } else if part < POOR {
            lines.push(format!(
                "device {device}: {what} run at {}, {:.0} % of what PCIe gen {generation} x{width} carries: look at \
                 the host's memory, its IOMMU, or a virtual machine between",
                gigabytes(rate),
                100.0 * part
            ));
        }
    }
    let kept = |both: f64, alone: f64| 100.0 * both / alone;
    lines.push(format!(
        "device {device}: offloads run at {}, reloads at {}; at once offloads keep {:.0} % and reloads {:.0} %",
        gigabytes(links.offload.bytes_per_second),
        gigabytes(links.reload.bytes_per_second),
        kept(links.offload_duplex.bytes_per_second, links.offload.bytes_per_second),
        kept(links.reload_duplex.bytes_per_second, links.reload.bytes_per_second),
    ));
    lines
}

/// Whether two devices share a link to the host: what the topology says against what was measured.
/// `expected` is absent where the topology is not known; `offload` and `reload` are what both move at once
/// over what they move alone.
pub(super) fn sharing(
    one: usize,
    other: usize,
    ancestor: Option<&str>,
    expected: Option<bool>,
    offload: Option<f64>,
    reload: Option<f64>,
) -> Option<String> {
    let measured: Vec<String> = [("offloads", offload), ("reloads", reload)]
        .into_iter()
        .filter_map(|(what, share)| {
            Some(format!("{what} at once move {:.0} % of what they move alone", 100.0 * share?))
        })
        .collect();
    if measured.is_empty() {
        return None;
    }
    let numbers = measured.join(", ");
    let shared = [offload, reload].into_iter().flatten().any(is_shared);
    let under = ancestor.unwrap_or("something unknown");
    Some(match (expected, shared) {
        (Some(true), true) => format!("devices {one} and {other} share a link ({under}), confirmed: {numbers}"),
        (Some(true), false) => {
            format!("devices {one} and {other} have {under} in common, yet share no link that limits them: {numbers}")
        }
        (_, true) => {
            format!("devices {one} and {other} slow one another although they have only {under} in common: {numbers}")
        }
        // The rule, and no news.
        (_, false) => return None,
    })
}

/// What copies and computing cost one another.
pub(super) fn interference(found: &Interference) -> String {
    let slower = |factor: f64| {
        let percent = 100.0 * (factor - 1.0);
        if percent.abs() < 0.5 { "no slower".to_owned() } else { format!("{percent:.0} % slower") }
    };
    format!(
        "device {}: matrix products run {} beside copies both ways ({} beside offloads, {} beside reloads); beside \
         products offloads run {}, reloads {}",
        found.device,
        slower(found.product_beside_both),
        slower(found.product_beside_offload),
        slower(found.product_beside_reload),
        slower(found.offload_beside_product),
        slower(found.reload_beside_product),
    )
}

/// Clocks that were held back for a reason that costs speed.
pub(super) fn throttled(gpu: &Gpu) -> Option<String> {
    let reasons: Vec<&str> = gpu.throttle_reasons.as_ref()?.iter().map(String::as_str).collect();
    // A device without work has low clocks, and that is as it should be.
    let costly: Vec<&str> = reasons.into_iter().filter(|reason| *reason != "nothing runs on the device").collect();
    (!costly.is_empty()).then(|| format!("device {}: clocks are held back: {}", gpu.ordinal, costly.join("; ")))
}

/// Tests that did not pass.
pub(super) fn tests(details: &Details) -> Vec<String> {
    let of = |status: TestStatus| details.tests.iter().filter(move |test| test.status == status);
    let mut lines: Vec<String> = [TestStatus::Failed, TestStatus::Skipped]
        .into_iter()
        .flat_map(of)
        .map(|test| format!("{}: {}: {}", test.name, test.status.name(), test.reason.as_deref().unwrap_or("no reason")))
        .collect();
    let unstable = of(TestStatus::Unstable).count();
    if unstable > 0 {
        let all = details.tests.len();
        lines.push(format!(
            "{unstable} of {all} tests did not settle: is something else using the devices or the host?"
        ));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(now: (u32, u32), best: (u32, u32)) -> Gpu {
        Gpu {
            pcie_generation: Some(now.0),
            pcie_width: Some(now.1),
            best_pcie_generation: Some(best.0),
            best_pcie_width: Some(best.1),
            ..Gpu::default()
        }
    }

    #[test]
    fn a_link_below_its_best_is_said_so() {
        let line = link(&gpu((3, 8), (5, 16))).unwrap_or_default();
        assert!(line.contains("PCIe runs at gen 3 x8, the slot allows gen 5 x16"), "{line}");
        assert!(line.contains("8.0 times"), "{line}");
        let line = link(&gpu((5, 16), (5, 16))).unwrap_or_default();
        assert!(line.contains("gen 5 x16, the best"), "{line}");
        assert_eq!(link(&Gpu::default()), None);
        assert_eq!(width(&gpu((1, 8), (5, 16))), Some("device 0: PCIe runs at x8, the slot allows x16".to_owned()));
        assert_eq!(width(&gpu((1, 16), (5, 16))), None);
    }

    #[test]
    fn pcie_carries_what_its_specification_says() {
        let gigabytes = |generation, width| pcie_bandwidth(generation, width).map(|b| (b / 1e7).round() / 100.0);
        assert_eq!(gigabytes(1, 1), Some(0.25));
        assert_eq!(gigabytes(3, 16), Some(15.75));
        assert_eq!(gigabytes(4, 16), Some(31.51));
        assert_eq!(gigabytes(5, 16), Some(63.02));
        assert_eq!(gigabytes(9, 16), None);
    }

    #[test]
    fn sharing_is_confirmed_refuted_or_discovered() {
        let say = |expected, offload| sharing(0, 1, Some("one PCIe switch"), expected, Some(offload), Some(0.98));
        assert!(say(Some(true), 0.51).unwrap_or_default().contains("confirmed: offloads at once move 51 %"));
        assert!(say(Some(true), 0.97).unwrap_or_default().contains("share no link"));
        assert!(say(Some(false), 0.6).unwrap_or_default().contains("slow one another although"));
        assert!(say(None, 0.6).unwrap_or_default().contains("slow one another although"));
        assert_eq!(say(Some(false), 0.97), None);
        assert_eq!(sharing(0, 1, None, Some(true), None, None), None);
    }

    #[test]
    fn idle_clocks_are_no_news_and_power_limits_are() {
        let with = |reasons: &[&str]| Gpu {
            throttle_reasons: Some(reasons.iter().map(|&r| r.to_owned()).collect()),
            ..Gpu::default()
        };
        assert_eq!(throttled(&with(&["nothing runs on the device"])), None);
        let line = throttled(&with(&["nothing runs on the device", "the power limit is reached"])).unwrap_or_default();
        assert!(line.ends_with("held back: the power limit is reached"), "{line}");
    }
}
