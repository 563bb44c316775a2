//! `hardware.yaml`: what a calibration measured on the devices of a job.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::file::{self, Check, Invalid};
use crate::profile::Sample;

pub mod details;

use details::Details;

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
    /// What a calibration of GPUs says beyond that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<Box<Details>>,
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

impl Hardware {
    /// What sending bytes from one device to another takes, ns: over the link between the two where it was
    /// measured, else over `send`.
    pub fn send_ns(&self, from: usize, to: usize, bytes: u64) -> u64 {
        let Some(details) = &self.details else { return self.send.copy_ns(bytes) };
        let next = (from + 1) % self.devices.len().max(1);
        if let Some(send) = details.links.get(from).filter(|_| to == next).and_then(|links| links.send.as_ref()) {
            return send.copy_ns(bytes);
        }
        let pair = details.pairs.iter().find(|pair| (pair.from, pair.to) == (from, to));
        match pair.and_then(|pair| pair.send_bytes_per_second) {
            Some(bytes_per_second) => Link { bytes_per_second, ..self.send.clone() }.copy_ns(bytes),
            None => self.send.copy_ns(bytes),
        }
    }

    /// How much longer an offload and a reload of a device take while it computes, as factors of 1 and more: where it
    /// was not measured on this device, those of the first one; 1 where on none.
    pub fn copies_beside_compute(&self, device: usize) -> [f64; 2] {
        let measured = self.details.as_ref().map_or(&[][..], |details| &details.interference);
        let own = measured.iter().find(|x| x.device == device).or(measured.first());
        // A factor below 1 is noise, one that is no number is none.
        let factor = |x: f64| if x.is_finite() { x.clamp(1.0, 100.0) } else { 1.0 };
        own.map_or([1.0; 2], |x| [x.offload_beside_product, x.reload_beside_product].map(factor))
    }

    /// The same machine with so many devices: the first ones, or, where there are fewer, all of them in turn,
    /// those on one another sharing its channels and its memory.
    #[must_use]
    pub fn placed(mut self, devices: usize) -> Hardware {
        let found = self.devices.len();
        if devices == found || found == 0 {
            return self;
        }
        let on: Vec<usize> = (0..devices).map(|device| device % found).collect();
        let sharers = |place: usize| on.iter().filter(|&&other| other == place).count().max(1) as u64;
        self.devices = on
            .iter()
            .map(|&place| {
                let device = &self.devices[place];
                Device { memory_bytes: device.memory_bytes / sharers(place), ..device.clone() }
            })
            .collect();
        self.offload_channel = on.iter().map(|&place| self.offload_channel[place]).collect();
        self.reload_channel = on.iter().map(|&place| self.reload_channel[place]).collect();
        if let Some(details) = self.details.as_mut() {
            details.repeat(found, devices);
        }
        self
    }
}

impl Hardware {
    /// So many devices, those beyond the ones that are there like them in turn, on links of their own: as many
    /// machines of this kind as it takes. Devices of the CPU backend are threads of one machine, which share its
    /// memory: there are no more of them than there are.
    #[must_use]
    pub fn repeated(mut self, devices: usize) -> Hardware {
        let found = self.devices.len();
        if self.backend == "cpu" {
            return self;
        }
        if devices <= found || found == 0 {
            return self.placed(devices);
        }
        let channels = |list: &[usize]| list.iter().max().map_or(0, |most| most + 1);
        let (offload, reload) = (self.offload_channel.clone(), self.reload_channel.clone());
        let of_machine = channels(&[offload.as_slice(), &reload].concat());
        let repeat = |list: &[usize]| {
            (0..devices).map(|device| list[device % found] + device / found * of_machine).collect::<Vec<_>>()
        };
        (self.offload_channel, self.reload_channel) = (repeat(&offload), repeat(&reload));
        self.devices = (0..devices).map(|device| self.devices[device % found].clone()).collect();
        if let Some(details) = self.details.as_mut() {
            details.repeat(found, devices);
        }
        self
    }
}

/// Copies and calibrations take less than 104 days, sizes are below 8 PiB: sums stay far from the end of
/// 64 bits.
const MOST: u64 = 1 << 53;

/// The backends' names.
pub(crate) const BACKENDS: [&str; 2] = ["cpu", "cuda"];

/// The check of the field `backend` that files of measurements share.
///
/// # Errors
/// A name that is none.
pub fn check_backend(backend: &str) -> Result<(), Invalid> {
    if BACKENDS.contains(&backend) {
        return Ok(());
    }
    Err(Invalid::new("backend", format!("expected {}, found {backend:?}", BACKENDS.join(" or "))))
}

impl Check for Hardware {
    fn check(&self) -> Result<(), Invalid> {
        file::check_version(self.version)?;
        check_backend(&self.backend)?;
        if self.devices.is_empty() {
            return Err(Invalid::new("devices", "expected at least one device, found an empty list"));
        }
        for (i, device) in self.devices.iter().enumerate() {
            if device.memory_bytes == 0 || device.memory_bytes > MOST {
                return Err(Invalid::new(
                    format!("devices[{i}].memory_bytes"),
                    format!("expected 1 to {MOST}, found {}", device.memory_bytes),
                ));
            }
        }
        let links = [
            ("offload", Some(&self.offload)),
            ("reload", Some(&self.reload)),
            ("offload_duplex", Some(&self.offload_duplex)),
            ("reload_duplex", Some(&self.reload_duplex)),
            ("offload_neighbour", self.offload_neighbour.as_ref()),
            ("reload_neighbour", self.reload_neighbour.as_ref()),
            ("send", Some(&self.send)),
        ];
        for (name, link) in links {
            if let Some(link) = link {
                link.check(name)?;
            }
        }
        for (field, channels) in [("offload_channel", &self.offload_channel), ("reload_channel", &self.reload_channel)]
        {
            if channels.len() != self.devices.len() {
                return Err(Invalid::new(
                    field,
                    format!("expected {} channels, one a device, found {}", self.devices.len(), channels.len()),
                ));
            }
        }
        if let Some(details) = &self.details {
            details.check(self.devices.len())?;
        }
        Ok(())
    }
}

impl Link {
    fn check(&self, name: &str) -> Result<(), Invalid> {
        let number = |field: &str, value: f64, ok: bool, expected: &str| {
            if ok {
                return Ok(());
            }
            Err(Invalid::new(format!("{name}.{field}"), format!("expected {expected}, found {value}")))
        };
        let (latency, bandwidth) = (self.latency_ns, self.bytes_per_second);
        let most = MOST as f64;
        number("latency_ns", latency, (0.0..=most).contains(&latency), "0 or more nanoseconds")?;
        // One byte a second: MOST bytes would still take a finite time of less than 2^53 seconds.
        let plausible = bandwidth.is_finite() && bandwidth >= 1.0;
        number("bytes_per_second", bandwidth, plausible, "at least 1 byte a second")?;
        number("residual", self.residual, self.residual >= 0.0, "0 or more")?;
        for (i, point) in self.points.iter().enumerate() {
            point.time.check(&format!("{name}.points[{i}].time"))?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(crate) mod tests {
    use super::*;

    /// Hardware with the same link everywhere: 1 us and 1 GB/s.
    pub(crate) fn hardware(backend: &str, memory: &[u64]) -> Hardware {
        let link = Link { latency_ns: 1000.0, bytes_per_second: 1e9, residual: 0.01, points: Vec::new() };
        let device = |&memory_bytes| Device { name: "a device".to_owned(), memory_bytes, cores: 1 };
        Hardware {
            version: 1,
            backend: backend.to_owned(),
            clock: "monotonic".to_owned(),
            devices: memory.iter().map(device).collect(),
            offload: link.clone(),
            reload: link.clone(),
            offload_duplex: link.clone(),
            reload_duplex: link.clone(),
            offload_neighbour: None,
            reload_neighbour: None,
            send: link,
            offload_channel: (0..memory.len()).collect(),
            reload_channel: (memory.len()..2 * memory.len()).collect(),
            cost_ns: 1,
            details: None,
        }
    }

    #[test]
    fn a_copy_takes_latency_and_transfer() {
        let link = hardware("cpu", &[1]).offload;
        assert_eq!([0, 1, 1_000_000].map(|bytes| link.copy_ns(bytes)), [0, 1001, 1_001_000]);
    }

    #[test]
    fn devices_on_one_another_share_its_memory_and_channels() {
        let placed = hardware("cuda", &[300, 200]).placed(3);
        placed.check().unwrap();
        let memory: Vec<u64> = placed.devices.iter().map(|device| device.memory_bytes).collect();
        assert_eq!(memory, [150, 200, 150]);
        assert_eq!((placed.offload_channel, placed.reload_channel), (vec![0, 1, 0], vec![2, 3, 2]));
        let fewer = hardware("cuda", &[300, 200]).placed(1);
        assert_eq!((fewer.devices.len(), fewer.devices[0].memory_bytes), (1, 300));
        fewer.check().unwrap();
    }

    #[test]
    fn details_are_checked_and_may_be_absent() {
        use super::details::DeviceLinks;
        let mut hardware = hardware("cuda", &[1 << 30, 1 << 30]);
        let link = hardware.offload.clone();
        let links = DeviceLinks {
            offload: link.clone(),
            reload: link.clone(),
            offload_duplex: link.clone(),
            reload_duplex: link,
            offload_neighbour: None,
            reload_neighbour: None,
            neighbour: None,
            send: None,
        };
        hardware.details = Some(Box::new(Details { links: vec![links.clone()], ..Details::default() }));
        assert_eq!(hardware.check().unwrap_err().field, "details.links");
        // Sends go over the link that was measured.
        let mut fast = hardware.clone();
        let send = Link { bytes_per_second: 1e11, ..links.offload.clone() };
        let pair = details::Pair { from: 1, to: 0, send_bytes_per_second: Some(1e10), ..details::Pair::default() };
        let sender = DeviceLinks { send: Some(send), ..links.clone() };
        fast.details =
            Some(Box::new(Details { links: vec![sender, links.clone()], pairs: vec![pair], ..Details::default() }));
        assert_eq!([fast.send_ns(0, 1, 100_000), fast.send_ns(1, 0, 100_000)], [2_000, 11_000]);
        assert_eq!(fast.send_ns(1, 1, 100_000), 101_000);
        let mut slow = links.clone();
        slow.reload_duplex.bytes_per_second = 0.0;
        hardware.details = Some(Box::new(Details { links: vec![links, slow], ..Details::default() }));
        assert_eq!(hardware.check().unwrap_err().field, "details.links[1].reload_duplex.bytes_per_second");
        let text = serde_yaml::to_string(&hardware).unwrap();
        assert_eq!(serde_yaml::from_str::<Hardware>(&text).unwrap(), hardware);
        hardware.details = None;
        assert!(!serde_yaml::to_string(&hardware).unwrap().contains("details"));
    }

    #[test]
    fn copies_are_slower_beside_compute_as_measured() {
        let mut hardware = hardware("cuda", &[1 << 30, 1 << 30]);
        assert_eq!(hardware.copies_beside_compute(0), [1.0; 2]);
        let of = |device, out, back| details::Interference {
            device,
            product: String::new(),
            product_time: Sample { median_ns: 1, mad_ns: 0, p05_ns: 1, p95_ns: 1, count: 1, stable: true },
            product_beside_offload: 1.1,
            product_beside_reload: 1.1,
            product_beside_both: 1.2,
            offload_beside_product: out,
            reload_beside_product: back,
        };
        let interference = vec![of(0, 1.5, 0.9), of(1, f64::NAN, 1.25)];
        hardware.details = Some(Box::new(Details { interference, ..Details::default() }));
        assert_eq!([0, 1, 2].map(|d| hardware.copies_beside_compute(d)), [[1.5, 1.0], [1.0, 1.25], [1.5, 1.0]]);
    }

    #[test]
    fn impossible_numbers_are_refused_by_name() {
        let refusal = |change: fn(&mut Hardware)| {
            let mut hardware = hardware("cpu", &[1 << 30, 1 << 30]);
            hardware.check().unwrap();
            change(&mut hardware);
            hardware.check().unwrap_err().field
        };
        assert_eq!(refusal(|h| h.version = 0), "version");
        assert_eq!(refusal(|h| h.backend = "tpu".to_owned()), "backend");
        assert_eq!(refusal(|h| h.devices.clear()), "devices");
        assert_eq!(refusal(|h| h.devices[1].memory_bytes = 0), "devices[1].memory_bytes");
        assert_eq!(refusal(|h| h.reload.bytes_per_second = 0.0), "reload.bytes_per_second");
        assert_eq!(refusal(|h| h.send.latency_ns = f64::NAN), "send.latency_ns");
        assert_eq!(refusal(|h| h.reload_channel = vec![0]), "reload_channel");
    }
}
