//! A rig with known links, on which calibrating takes no time.

use std::collections::HashMap;
use std::time::Duration;

use optpipe_kernels::cuda::topology::Ancestor;
use optpipe_kernels::rig::{Lane, Lap, PcieLink, Rig, RigError, Route, Work};

use super::describe::{Described, Relation};
use optpipe_configs::hardware::details::{Gpu, Software};

/// Devices that are all alike but for what the fields say.
#[derive(Debug, Clone)]
pub(super) struct Simulated {
    pub(super) devices: usize,
    pub(super) latency_ns: f64,
    /// Bytes a ns, device to host and back.
    pub(super) offload: f64,
    pub(super) reload: f64,
    /// What each direction keeps while the other runs.
    pub(super) duplex: (f64, f64),
    /// Group of each device: devices of one group share an uplink as fast as one device's link.
    pub(super) switch: Vec<usize>,
    /// Bytes a ns between two devices that have peer access, and through the host.
    pub(super) peer: f64,
    pub(super) through_host: f64,
    pub(super) has_peers: bool,
    /// One product, ns; `None` where there is no library for them.
    pub(super) product_ns: Option<f64>,
    /// Slowdown of products by one copy beside them, and of copies by products.
    pub(super) product_beside: f64,
    pub(super) copy_beside: f64,
    /// Bytes that a device can reserve.
    pub(super) memory: usize,
    /// Copies of this kind arrive damaged from this size on.
    pub(super) damages: Option<(Work, usize)>,
    /// This work cannot be done.
    pub(super) broken: Option<Work>,
    /// Every other lap takes this much longer.
    pub(super) jitter: f64,
    /// The host is too slow for one race in so many.
    pub(super) stalls: Option<usize>,
    pub(super) link: PcieLink,
    // What happened.
    pub(super) clock_ns: f64,
    pub(super) races: Vec<(Lane, Vec<Lane>, bool)>,
    pub(super) reserved: HashMap<usize, usize>,
    scrubbed: HashMap<Work, usize>,
    written: HashMap<Work, usize>,
}

impl Simulated {
    /// Private full-duplex links of 25 and 24 bytes a ns, products that copies slow by 2 %.
    pub(super) fn new(devices: usize) -> Simulated {
        Simulated {
            devices,
            latency_ns: 1500.0,
            offload: 25.0,
            reload: 24.0,
            duplex: (0.96, 0.5),
            switch: (0..devices).collect(),
            peer: 100.0,
            through_host: 11.0,
            has_peers: true,
            product_ns: Some(200_000.0),
            product_beside: 1.02,
            copy_beside: 1.05,
            memory: usize::MAX,
            damages: None,
            broken: None,
            jitter: 0.0,
            stalls: None,
            link: PcieLink { generation: Ok(4), width: Ok(16) },
            clock_ns: 0.0,
            races: Vec::new(),
            reserved: HashMap::new(),
            scrubbed: HashMap::new(),
            written: HashMap::new(),
        }
    }

    /// How it describes itself: a switch is known where devices share one.
    pub(super) fn described(&self) -> Described {
        let gpu = |ordinal| Gpu {
            ordinal,
            name: "simulated".to_owned(),
            memory_bytes: 1 << 34,
            multiprocessors: 4,
            pcie_generation: Some(1),
            pcie_width: Some(16),
            best_pcie_generation: Some(5),
            best_pcie_width: Some(16),
            ..Gpu::default()
        };
        let pairs = (0..self.devices).flat_map(|one| (one + 1..self.devices).map(move |other| (one, other)));
        let ancestor = |one: usize, other: usize| {
            if self.switch[one] == self.switch[other] { Ancestor::Switch } else { Ancestor::HostBridge }
        };
        Described {
            software: Software::default(),
            gpus: (0..self.devices).map(gpu).collect(),
            relations: pairs
                .map(|(one, other)| Relation {
                    one,
                    other,
                    ancestor: Ok(ancestor(one, other)),
                    peer_access: Ok(self.has_peers),
                })
                .collect(),
        }
    }

    /// The time of one piece beside others, ns.
    fn piece_ns(&self, lane: Lane, others: &[Work]) -> f64 {
        let sharing = |offload: bool, device: usize| {
            let same = |work: &&Work| match work {
                Work::Offload { device: d } => offload && self.switch[*d] == self.switch[device],
                Work::Reload { device: d } => !offload && self.switch[*d] == self.switch[device],
                _ => false,
            };
            1.0 + others.iter().filter(same).count() as f64
        };
        let beside = |work: Work| others.contains(&work);
        let computing = |device| if beside(Work::Product { device }) { self.copy_beside } else { 1.0 };
        let rate = match lane.work {
            Work::Offload { device } => {
                let kept = if beside(Work::Reload { device }) { self.duplex.0 } else { 1.0 };
                self.offload * kept / sharing(true, device) / computing(device)
            }
            Work::Reload { device } => {
                let kept = if beside(Work::Offload { device }) { self.duplex.1 } else { 1.0 };
                self.reload * kept / sharing(false, device) / computing(device)
            }
            Work::Send { from, to } if from == to => 1000.0,
            Work::Send { .. } if self.has_peers => self.peer,
            Work::Send { .. } => self.through_host,
            Work::Product { .. } => {
                let slower = self.product_beside.powi(others.len() as i32);
                return self.product_ns.unwrap_or(1.0) * slower;
            }
        };
        self.latency_ns + lane.bytes as f64 / rate
    }
}

impl Rig for Simulated {
    fn devices(&self) -> usize {
        self.devices
    }

    fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.clock_ns as u64)
    }

    fn reserve(&mut self, device: usize, bytes: usize) -> Result<(), RigError> {
        if bytes > self.memory {
            return Err(RigError::Memory { what: "host".to_owned(), bytes, message: "too little".to_owned() });
        }
        // A GiB takes a second.
        self.clock_ns += bytes as f64;
        self.reserved.insert(device, bytes);
        Ok(())
    }

    fn release(&mut self, device: usize) {
        self.reserved.remove(&device);
    }

    fn route(&mut self, from: usize, to: usize) -> Result<Route, RigError> {
        Ok(match () {
            () if from == to => Route::Within,
            () if self.has_peers => Route::Peer,
            () => Route::ThroughHost,
        })
    }

    fn product(&mut self, _device: usize) -> Result<String, RigError> {
        self.product_ns.map(|_| "made up".to_owned()).ok_or_else(|| RigError::Missing("no libcublas".to_owned()))
    }

    fn race(&mut self, timed: Lane, beside: &[Lane]) -> Result<Lap, RigError> {
        if self.broken == Some(timed.work) {
            return Err(RigError::Driver { what: timed.work.to_string(), message: "a fault".to_owned() });
        }
        let copies = std::iter::once(&timed).chain(beside).filter(|lane| !matches!(lane.work, Work::Product { .. }));
        for lane in copies {
            let reserved = self.reserved.get(&lane.work.device()).copied().unwrap_or(0);
            assert!(lane.bytes <= reserved, "{lane:?} with {reserved} bytes reserved");
        }
        let others: Vec<Work> = beside.iter().map(|lane| lane.work).collect();
        let slower = if self.races.len() % 2 == 1 { 1.0 + self.jitter } else { 1.0 };
        let ns = self.piece_ns(timed, &others) * timed.repeats as f64 * slower;
        // Others run until the timed lane has ended, its untimed first piece included.
        let until = ns * (timed.repeats + 1) as f64 / timed.repeats as f64;
        let lasts = |index: usize| {
            let mut around = others.clone();
            around[index] = timed.work;
            self.piece_ns(beside[index], &around) * beside[index].repeats as f64
        };
        let covered = (0..beside.len()).all(|index| lasts(index) > until);
        let longest = (0..beside.len()).map(lasts).fold(until, f64::max);
        self.clock_ns += longest + 20_000.0;
        self.races.push((timed, beside.to_vec(), covered));
        self.written.insert(timed.work, timed.bytes);
        if self.stalls.is_some_and(|every| self.races.len().is_multiple_of(every)) {
            return Err(RigError::Stalled(timed.work));
        }
        Ok(Lap { ns: ns.round() as u64, covered })
    }

    fn scrub(&mut self, work: Work, bytes: usize) -> Result<(), RigError> {
        self.clock_ns += bytes as f64 / 10.0;
        self.scrubbed.insert(work, bytes);
        self.written.remove(&work);
        Ok(())
    }

    fn verify(&mut self, work: Work, bytes: usize) -> Result<Option<usize>, RigError> {
        self.clock_ns += bytes as f64 / 10.0;
        assert_eq!(self.scrubbed.remove(&work), Some(bytes), "compared without having been overwritten");
        if self.written.get(&work) != Some(&bytes) {
            return Ok(Some(0));
        }
        Ok(self.damages.filter(|&(damaged, from)| damaged == work && bytes >= from).map(|_| 4096))
    }

    fn busy_link(&mut self, _device: usize) -> PcieLink {
        self.link.clone()
    }
}
