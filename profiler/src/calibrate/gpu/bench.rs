//! What is measured of each device, of each pair, and of copies beside products.

use optpipe_configs::hardware::Link;
use optpipe_configs::hardware::details::{DeviceLinks, Interference, Pair, Test, TestStatus};
use optpipe_kernels::rig::{RigError, Work};

use super::GpuOptions;
use super::channels::{self, Direction};
use super::describe::{self, Described};
use super::meter::{self, Meter};
use crate::calibrate::{CalibrateError, Result};
use crate::timing::Timing;

/// Weights by which work shares the time: device 0, and each other one.
const ALONE: [f64; 2] = [4.0, 1.0];
const DUPLEX: [f64; 2] = [3.0, 1.0];
const BESIDE: [f64; 2] = [2.0, 0.7];
const PAIR: f64 = 0.1;
const PRODUCT: f64 = 0.15;
/// Points of one device's interference.
const PRODUCT_POINTS: f64 = 7.0;

fn weight(of: [f64; 2], device: usize) -> f64 {
    of[usize::from(device > 0)]
}

pub(super) fn all_weights(devices: usize) -> f64 {
    let sum = |of: [f64; 2]| (0..devices).map(|device| weight(of, device)).sum::<f64>();
    let beside = if devices > 1 { 3.0 } else { 1.0 };
    let pairs = (devices * devices.saturating_sub(1)) as f64;
    2.0 * sum(ALONE)
        + 2.0 * sum(DUPLEX)
        + beside * sum(BESIDE)
        + 3.0 * PAIR * pairs
        + PRODUCT * PRODUCT_POINTS * devices as f64
}

/// The links of a device that nothing else disturbs.
pub(super) struct Alone {
    offload: Link,
    reload: Link,
    offload_duplex: Link,
    reload_duplex: Link,
}

impl Alone {
    pub(super) fn is_half_duplex(&self) -> bool {
        let kept = |both: &Link, alone: &Link| both.bytes_per_second / alone.bytes_per_second;
        channels::is_half_duplex(kept(&self.offload_duplex, &self.offload), kept(&self.reload_duplex, &self.reload))
    }
}

pub(super) struct Bench {
    pub(super) described: Described,
    pub(super) devices: usize,
    /// Of each device.
    pub(super) sizes: Vec<Vec<usize>>,
}

impl Bench {
    /// The sizes for which a device has memory, the largest of which is reserved.
    pub(super) fn reserve(&self, meter: &mut Meter<'_>, device: usize) -> Result<Vec<usize>> {
        let most = if device > 0 && self.devices > 4 { meter.options.others_largest } else { usize::MAX };
        let mut sizes: Vec<usize> = meter.options.sizes.iter().copied().filter(|&s| s <= most).collect();
        let mut short: Option<RigError> = None;
        while let Some(&largest) = sizes.last() {
            match meter.rig.reserve(device, largest) {
                Ok(()) => break,
                Err(error @ RigError::Memory { .. }) => {
                    sizes.pop();
                    short = Some(error);
                }
                Err(error) => return Err(CalibrateError::Rig { work: Work::Offload { device }, error }),
            }
        }
        let Some(error) = short else { return Ok(sizes) };
        let Some(&largest) = sizes.last() else {
            return Err(CalibrateError::Rig { work: Work::Offload { device }, error });
        };
        meter.tests.push(Test {
            name: format!("copies of device {device} above {} KiB", largest >> 10),
            status: TestStatus::Skipped,
            reason: Some(error.to_string()),
            bytes_per_second: None,
            spread: None,
        });
        Ok(sizes)
    }

    /// The error of a test, which a plan cannot do without.
    pub(super) fn required(&self, meter: &Meter<'_>, name: &str) -> CalibrateError {
        let test = meter.tests.iter().rev().find(|test| test.name == name);
        let reason = test.and_then(|test| test.reason.clone());
        CalibrateError::Required { what: name.to_owned(), reason: reason.unwrap_or_else(|| "not measured".to_owned()) }
    }

    pub(super) fn alone(&mut self, meter: &mut Meter<'_>) -> Result<Vec<Alone>> {
        let mut all = Vec::new();
        for device in 0..self.devices {
            let (out, back) = (Work::Offload { device }, Work::Reload { device });
            let sizes = self.sizes[device].clone();
            let sweep = |meter: &mut Meter<'_>, timed, beside: &[Work], of| match meter.sweep(
                timed,
                beside,
                &sizes,
                weight(of, device),
            )? {
                Some(link) => Ok(link),
                None => Err(self.required(meter, &meter::name(timed, beside))),
            };
            meter.wake(out, sizes[sizes.len() - 1].min(meter.options.pair_bytes), meter.options.wake)?;
            let offload = sweep(meter, out, &[], ALONE)?;
            let reload = sweep(meter, back, &[], ALONE)?;
            let busy = meter.rig.busy_link(device);
            let offload_duplex = sweep(meter, out, &[back], DUPLEX)?;
            let reload_duplex = sweep(meter, back, &[out], DUPLEX)?;
            // What there was no time for is not asked for again.
            let measured = offload.points.len().min(reload.points.len());
            self.sizes[device].truncate(measured);
            all.push(Alone { offload, reload, offload_duplex, reload_duplex });
            describe::set_pcie(&mut self.described.gpus[device], &busy);
        }
        Ok(all)
    }

    /// What copies of any two devices leave one another.
    pub(super) fn pairs(&self, meter: &mut Meter<'_>, alone: &[Alone]) -> Result<(Direction, Direction, Vec<Pair>)> {
        let rates = |link: fn(&Alone) -> &Link| alone.iter().map(|a| link(a).bytes_per_second).collect::<Vec<f64>>();
        let nothing = vec![vec![None; self.devices]; self.devices];
        let mut out = Direction { alone: rates(|a| &a.offload), shares: nothing.clone() };
        let mut back = Direction { alone: rates(|a| &a.reload), shares: nothing };
        let mut pairs = Vec::new();
        for from in 0..self.devices {
            for to in (0..self.devices).filter(|&to| to != from) {
                let bytes = self.pair_bytes(meter, from, to);
                let offload = |device| Work::Offload { device };
                let reload = |device| Work::Reload { device };
                // Of copies that are mostly latency two fit into the time of one, on one link too: they tell nothing.
                let tells = |link: &Link| bytes as f64 / link.bytes_per_second * 1e9 >= link.latency_ns;
                let (one, other) = (&alone[from], &alone[to]);
                out.shares[from][to] = share(meter, offload(from), offload(to), bytes)?
                    .filter(|_| tells(&one.offload) && tells(&other.offload));
                back.shares[from][to] = share(meter, reload(from), reload(to), bytes)?
                    .filter(|_| tells(&one.reload) && tells(&other.reload));
                let relation = self.described.relation(from, to);
                pairs.push(Pair {
                    from,
                    to,
                    common_ancestor: relation.and_then(|r| r.ancestor.as_ref().ok()).map(ToString::to_string),
                    common_ancestor_unknown: relation.and_then(|r| r.ancestor.as_ref().err()).cloned(),
                    offload_share: out.shares[from][to],
                    reload_share: back.shares[from][to],
                    ..Pair::default()
                });
            }
        }
        Ok((out, back, pairs))
    }

    /// The largest size that was measured on both and that is neither too large nor too slow for many points.
    fn pair_bytes(&self, meter: &Meter<'_>, one: usize, other: usize) -> usize {
        let most = meter.options.pair_time.as_nanos() as f64;
        let quick = |work, size| meter.alone_ns(work, size).is_some_and(|ns| ns <= most);
        let fits = |&&size: &&usize| {
            size <= meter.options.pair_bytes
                && self.sizes[other].contains(&size)
                && quick(Work::Offload { device: one }, size)
                && quick(Work::Reload { device: one }, size)
        };
        self.sizes[one].iter().rev().find(fits).copied().unwrap_or(self.sizes[one][0])
    }

    /// A device's links beside the worst neighbour, and to the next device.
    pub(super) fn beside(
        &self,
        meter: &mut Meter<'_>,
        device: usize,
        alone: Alone,
        offloads: (&[usize], &Direction),
        reloads: (&[usize], &Direction),
    ) -> Result<DeviceLinks> {
        let share = weight(BESIDE, device);
        let next = (device + 1) % self.devices;
        let neighbour = channels::neighbour(device, offloads.0, &offloads.1.shares);
        let (mut offload_neighbour, mut reload_neighbour) = (None, None);
        if let Some(other) = neighbour {
            let sizes = self.common_sizes(device, other, meter.options);
            let (own, theirs) = (Work::Offload { device }, Work::Offload { device: other });
            offload_neighbour = meter.sweep(own, &[theirs], &sizes, share)?;
        } else if self.devices > 1 {
            meter.forgo(share);
        }
        if let Some(other) = channels::neighbour(device, reloads.0, &reloads.1.shares) {
            let sizes = self.common_sizes(device, other, meter.options);
            let (own, theirs) = (Work::Reload { device }, Work::Reload { device: other });
            reload_neighbour = meter.sweep(own, &[theirs], &sizes, share)?;
        } else if self.devices > 1 {
            meter.forgo(share);
        }
        let send = self.send(meter, device, next, share)?;
        Ok(DeviceLinks {
            offload: alone.offload,
            reload: alone.reload,
            offload_duplex: alone.offload_duplex,
            reload_duplex: alone.reload_duplex,
            offload_neighbour,
            reload_neighbour,
            neighbour,
            send,
        })
    }

    fn common_sizes(&self, one: usize, other: usize, options: &GpuOptions) -> Vec<usize> {
        let both = |&size: &usize| size <= options.beside_largest && self.sizes[other].contains(&size);
        let sizes: Vec<usize> = self.sizes[one].iter().copied().filter(both).collect();
        if sizes.is_empty() { vec![self.sizes[one][0]] } else { sizes }
    }

    fn send(&self, meter: &mut Meter<'_>, from: usize, to: usize, share: f64) -> Result<Option<Link>> {
        let work = Work::Send { from, to };
        if let Err(error) = meter.rig.route(from, to) {
            meter.tests.push(meter::failed(work.to_string(), &error));
            meter.forgo(share);
            return Ok(None);
        }
        let sizes = self.common_sizes(from, to, meter.options);
        meter.sweep(work, &[], &sizes, share)
    }

    /// What every two devices send one another, at one size.
    pub(super) fn send_rates(&self, meter: &mut Meter<'_>, pairs: &mut [Pair]) -> Result<()> {
        for pair in pairs {
            let work = Work::Send { from: pair.from, to: pair.to };
            match meter.rig.route(pair.from, pair.to) {
                Ok(route) => pair.route = Some(route.to_string()),
                Err(error) => {
                    meter.tests.push(meter::failed(work.to_string(), &error));
                    meter.forgo(PAIR);
                    continue;
                }
            }
            let bytes = self.pair_bytes(meter, pair.from, pair.to);
            let timing = meter.single(work, &[], bytes, PAIR)?;
            pair.send_bytes_per_second = timing.map(|t| bytes as f64 / t.sample.median_ns.max(1) as f64 * 1e9);
        }
        Ok(())
    }

    /// What copies and matrix products of one device cost one another.
    pub(super) fn interference(&self, meter: &mut Meter<'_>, device: usize) -> Result<Option<Interference>> {
        let product = Work::Product { device };
        let words = match meter.rig.product(device) {
            Ok(words) => words,
            Err(error) => {
                meter.tests.push(meter::failed(format!("{product} beside copies"), &error));
                meter.forgo(PRODUCT * PRODUCT_POINTS);
                return Ok(None);
            }
        };
        let (out, back) = (Work::Offload { device }, Work::Reload { device });
        let bytes = self.pair_bytes(meter, device, device);
        let ns = |timing: &Timing| timing.sample.median_ns.max(1) as f64;
        if let Err(CalibrateError::Rig { error, .. }) = meter.wake(product, bytes, meter.options.wake) {
            meter.tests.push(meter::failed(format!("{product} beside copies"), &error));
            meter.forgo(PRODUCT * PRODUCT_POINTS);
            return Ok(None);
        }
        let mut time = |timed, beside: &[Work]| meter.single(timed, beside, bytes, PRODUCT);
        // Products alone before and after: devices get warm, and their clocks fall.
        let Some(before) = time(product, &[])? else { return Ok(None) };
        let beside = (time(product, &[out])?, time(product, &[back])?, time(product, &[out, back])?);
        let Some(after) = time(product, &[])? else { return Ok(None) };
        let copies = (time(out, &[product])?, time(back, &[product])?);
        let alone = f64::midpoint(ns(&before), ns(&after));
        let (Some(with_offload), Some(with_reload), Some(with_both)) = beside else { return Ok(None) };
        let (Some(offload), Some(reload)) = copies else { return Ok(None) };
        let (Some(offload_alone), Some(reload_alone)) = (meter.alone_ns(out, bytes), meter.alone_ns(back, bytes))
        else {
            return Ok(None);
        };
        Ok(Some(Interference {
            device,
            product: words,
            product_time: before.sample.clone(),
            product_beside_offload: ns(&with_offload) / alone,
            product_beside_reload: ns(&with_reload) / alone,
            product_beside_both: ns(&with_both) / alone,
            offload_beside_product: ns(&offload) / offload_alone,
            reload_beside_product: ns(&reload) / reload_alone,
        }))
    }
}

/// What is left of the bandwidth of `timed` beside `beside`, between 0 and 1 and a little more.
fn share(meter: &mut Meter<'_>, timed: Work, beside: Work, bytes: usize) -> Result<Option<f64>> {
    let timing = meter.single(timed, &[beside], bytes, PAIR)?;
    let alone = meter.alone_ns(timed, bytes);
    Ok(timing.zip(alone).map(|(timing, alone)| alone / timing.sample.median_ns.max(1) as f64))
}
