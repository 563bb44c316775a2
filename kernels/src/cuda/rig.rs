//! NVIDIA devices as a [`Rig`]: pinned memory, the copy engines, a stream for each kind of work, times from
//! the devices' own events.

use std::collections::HashSet;
use std::ffi::c_int;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};

use super::affinity::Affinity;
use super::describe::Machine;
use super::gate::{Flag, Gate};
use super::memory::{OnDevice, Pinned, first_difference, host_room};
use super::nvml::Library;
use super::product::Product;
use crate::rig::{Lane, Lap, PcieLink, Rig, RigError, Route, Work};

/// Work queued on one stream, at most: the driver's queues are finite, and a full one would block the host
/// while the gate is shut.
const MOST_QUEUED: usize = 512;

/// Bytes copied while the link is looked at.
const BUSY_BYTES: usize = 4 << 30;

/// All devices of a [`Machine`], opened for measuring. For one thread.
#[derive(Debug)]
pub struct CudaRig {
    // Before the flag, which devices read until they are dropped.
    devices: Vec<Opened>,
    flag: Flag,
    elapsed_ms: Elapsed,
    library: Library,
    peers: HashSet<(usize, usize)>,
    began: Instant,
}

#[derive(Debug)]
struct Opened {
    context: Arc<CudaContext>,
    bus_id: String,
    processors: Result<String, String>,
    gate: Gate,
    /// One a kind of work: offload, reload, send, product.
    queues: [Queue; 4],
    buffers: Option<Buffers>,
    product: Option<Product>,
}

#[derive(Debug)]
struct Queue {
    stream: Arc<CudaStream>,
    start: CudaEvent,
    end: CudaEvent,
}

/// What copies of a device go from and to.
#[derive(Debug)]
struct Buffers {
    bytes: usize,
    device_source: OnDevice,
    device_target: OnDevice,
    host_source: Pinned,
    host_target: Pinned,
}

impl Queue {
    fn new(context: &Arc<CudaContext>) -> Result<Queue, DriverError> {
        let timing = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        Ok(Queue { stream: context.new_stream()?, start: context.new_event(timing)?, end: context.new_event(timing)? })
    }
}

fn driver(what: impl Into<String>) -> impl FnOnce(DriverError) -> RigError {
    let what = what.into();
    move |e| RigError::Driver { what, message: e.to_string() }
}

impl CudaRig {
    /// Opens all devices of a machine that was described.
    ///
    /// # Errors
    /// What the driver reports: a device in exclusive use, say.
    pub fn open(machine: &Machine) -> Result<CudaRig, RigError> {
        let began = Instant::now();
        let mut devices = Vec::with_capacity(machine.devices.len());
        for (ordinal, described) in machine.devices.iter().enumerate() {
            let name = format!("opening device {ordinal} ({})", described.device.name);
            devices.push(Opened::new(ordinal, &described.bus_id, &described.processors).map_err(driver(name))?);
        }
        let first = devices.first().ok_or_else(|| RigError::Unusable("anything: there are no devices".to_owned()))?;
        let flag = Flag::new(&first.context).map_err(driver("memory that devices wait on"))?;
        let elapsed_ms = Elapsed::load()?;
        let rig = CudaRig { devices, flag, elapsed_ms, library: Library::load(), peers: HashSet::new(), began };
        // The first launch loads the kernel, which could wait for a gate that is shut.
        for device in &rig.devices {
            let passed = device.gate.shut(&rig.flag).and_then(|()| device.gate.synchronise());
            passed.map_err(driver("the kernel that devices wait in"))?;
        }
        Ok(rig)
    }

    fn buffers(&self, device: usize, bytes: usize) -> Result<&Buffers, RigError> {
        self.devices[device].buffers.as_ref().filter(|buffers| buffers.bytes >= bytes).ok_or_else(|| {
            RigError::Unusable(format!("copies of {bytes} bytes: device {device} has no buffers for them"))
        })
    }

    fn queue(&self, work: Work) -> &Queue {
        let kind = match work {
            Work::Offload { .. } => 0,
            Work::Reload { .. } => 1,
            Work::Send { .. } => 2,
            Work::Product { .. } => 3,
        };
        &self.devices[work.device()].queues[kind]
    }

    fn enqueue(&self, work: Work, bytes: usize) -> Result<(), RigError> {
        let stream = self.queue(work).stream.cu_stream();
        let opened = &self.devices[work.device()];
        if let Work::Product { device } = work {
            let product = opened.product.as_ref();
            return product
                .ok_or_else(|| RigError::Unusable(format!("products of device {device}: not made ready")))?
                .queue();
        }
        let own = self.buffers(work.device(), bytes)?;
        let target = if let Work::Send { to, .. } = work { self.buffers(to, bytes)? } else { own };
        opened.context.bind_to_thread().map_err(driver(work.to_string()))?;
        // SAFETY: all four buffers have `bytes` bytes at least, as `buffers` has seen to, and live until
        // `release` or `drop`, which wait for the devices; host memory is not looked at before `race` has
        // waited for its copies. Contexts are those the memory belongs to.
        let queued = unsafe {
            match work {
                Work::Offload { .. } => {
                    sys::cuMemcpyDtoHAsync_v2(own.host_target.start(), own.device_source.start(), bytes, stream)
                        .result()
                }
                Work::Reload { .. } => {
                    sys::cuMemcpyHtoDAsync_v2(own.device_target.start(), own.host_source.start(), bytes, stream)
                        .result()
                }
                Work::Send { from, to } if from == to => {
                    result::memcpy_dtod_async(own.device_target.start(), own.device_source.start(), bytes, stream)
                }
                Work::Send { to, .. } => result::memcpy_peer_async(
                    self.devices[to].context.cu_ctx(),
                    target.device_target.start(),
                    opened.context.cu_ctx(),
                    own.device_source.start(),
                    bytes,
                    stream,
                ),
                Work::Product { .. } => Ok(()),
            }
        };
        queued.map_err(driver(work.to_string()))
    }

    /// Queues all lanes behind the gates; the first one is timed.
    fn queue_all(&self, lanes: &[Lane]) -> Result<(), RigError> {
        for (index, lane) in lanes.iter().enumerate() {
            let queue = self.queue(lane.work);
            let failed = || driver(lane.work.to_string());
            self.devices[lane.work.device()].gate.hold(&queue.stream).map_err(failed())?;
            // Beside others the first piece is not timed: theirs may start a little later.
            if index == 0 && lanes.len() > 1 {
                self.enqueue(lane.work, lane.bytes)?;
            }
            queue.start.record(&queue.stream).map_err(failed())?;
            for _ in 0..lane.repeats {
                self.enqueue(lane.work, lane.bytes)?;
            }
            queue.end.record(&queue.stream).map_err(failed())?;
        }
        Ok(())
    }

    fn is_staged(&self, work: Work) -> bool {
        matches!(work, Work::Send { from, to } if from != to && !self.peers.contains(&(from, to)))
    }

    /// Waits for all lanes, the timed one first.
    fn finish(&self, lanes: &[Lane]) -> Result<Lap, RigError> {
        let timed = self.queue(lanes[0].work);
        let failed = |lane: &Lane| driver(lane.work.to_string());
        timed.end.synchronize().map_err(failed(&lanes[0]))?;
        let mut covered = true;
        for lane in &lanes[1..] {
            covered &= !self.queue(lane.work).end.try_is_complete().map_err(failed(lane))?;
        }
        for lane in &lanes[1..] {
            self.queue(lane.work).end.synchronize().map_err(failed(lane))?;
        }
        let ms = self.elapsed_ms.between(&timed.start, &timed.end).map_err(failed(&lanes[0]))?;
        Ok(Lap { ns: (f64::from(ms) * 1e6).round() as u64, covered })
    }
}

impl Opened {
    fn new(ordinal: usize, bus_id: &str, processors: &Result<String, String>) -> Result<Opened, DriverError> {
        let context = CudaContext::new(ordinal)?;
        let queue = || Queue::new(&context);
        let queues = [queue()?, queue()?, queue()?, queue()?];
        let gate = Gate::new(&context)?;
        Ok(Opened {
            context: Arc::clone(&context),
            bus_id: bus_id.to_owned(),
            processors: processors.clone(),
            gate,
            queues,
            buffers: None,
            product: None,
        })
    }

    /// Keeps the thread on the processors near the device, where they are known and allowed.
    fn near(&self) -> Option<Affinity> {
        self.processors.as_ref().ok().and_then(|list| Affinity::near(list).ok())
    }

    fn new_buffers(&self, device: usize, bytes: usize) -> Result<Buffers, RigError> {
        let pinned = 2 * bytes;
        if let Some(room) = host_room().filter(|&room| room < pinned as u64) {
            return Err(RigError::Memory {
                what: "pinned host memory".to_owned(),
                bytes: pinned,
                message: format!("half of the memory available is {room} bytes"),
            });
        }
        let missing = |what: &'static str| {
            move |e: DriverError| RigError::Memory { what: what.to_owned(), bytes, message: e.to_string() }
        };
        // Pinned memory lies where the thread runs that asks for it.
        let _near = self.near();
        let mut host_source = Pinned::new(&self.context, bytes).map_err(missing("pinned host memory"))?;
        host_source.fill(device as u64 + 1);
        let host_target = Pinned::new(&self.context, bytes).map_err(missing("pinned host memory"))?;
        let device_source = OnDevice::new(&self.context, bytes).map_err(missing("device memory"))?;
        let device_target = OnDevice::new(&self.context, bytes).map_err(missing("device memory"))?;
        device_source.write(host_source.bytes()).map_err(driver("filling device memory"))?;
        device_target.scrub(bytes).map_err(driver("filling device memory"))?;
        Ok(Buffers { bytes, device_source, device_target, host_source, host_target })
    }
}

impl Rig for CudaRig {
    fn devices(&self) -> usize {
        self.devices.len()
    }

    fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    fn reserve(&mut self, device: usize, bytes: usize) -> Result<(), RigError> {
        let opened = &mut self.devices[device];
        if opened.buffers.as_ref().is_some_and(|buffers| buffers.bytes >= bytes) {
            return Ok(());
        }
        opened.buffers = None;
        opened.buffers = Some(opened.new_buffers(device, bytes)?);
        Ok(())
    }

    fn release(&mut self, device: usize) {
        self.devices[device].buffers = None;
        self.devices[device].product = None;
    }

    fn route(&mut self, from: usize, to: usize) -> Result<Route, RigError> {
        if from == to {
            return Ok(Route::Within);
        }
        if self.peers.contains(&(from, to)) {
            return Ok(Route::Peer);
        }
        let (source, target) = (&self.devices[from].context, &self.devices[to].context);
        let what = || driver(format!("peer access from device {from} to device {to}"));
        let mut can: c_int = 0;
        // SAFETY: both devices come from the driver, which writes one number.
        unsafe { sys::cuDeviceCanAccessPeer(&raw mut can, source.cu_device(), target.cu_device()) }
            .result()
            .map_err(what())?;
        if can == 0 {
            return Ok(Route::ThroughHost);
        }
        source.bind_to_thread().map_err(what())?;
        // SAFETY: the other context lives as long as this rig.
        match unsafe { sys::cuCtxEnablePeerAccess(target.cu_ctx(), 0) } {
            sys::CUresult::CUDA_SUCCESS | sys::CUresult::CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED => {
                self.peers.insert((from, to));
                Ok(Route::Peer)
            }
            // NVLink switches allow for a number of peers only.
            sys::CUresult::CUDA_ERROR_TOO_MANY_PEERS => Ok(Route::ThroughHost),
            other => Err(what()(DriverError(other))),
        }
    }

    fn product(&mut self, device: usize) -> Result<String, RigError> {
        let opened = &mut self.devices[device];
        let product = match opened.product.take() {
            Some(product) => product,
            None => Product::new(&opened.context, &opened.queues[3].stream)?,
        };
        Ok(opened.product.insert(product).words())
    }

    fn race(&mut self, timed: Lane, beside: &[Lane]) -> Result<Lap, RigError> {
        let lanes: Vec<Lane> = std::iter::once(timed).chain(beside.iter().copied()).collect();
        let mut works = HashSet::new();
        for lane in &lanes {
            if lane.repeats == 0 || lane.repeats > MOST_QUEUED || !works.insert((lane.work.device(), lane.work)) {
                return Err(RigError::Unusable(format!("{} times {}, twice or not at all", lane.repeats, lane.work)));
            }
        }
        let devices: HashSet<usize> = lanes.iter().map(|lane| lane.work.device()).collect();
        // Copies that the driver stages in host memory need the host while they run: they cannot all be
        // queued before they start.
        let gated = !lanes.iter().any(|lane| self.is_staged(lane.work));
        if gated {
            self.flag.close();
        }
        // Queueing from far away takes longer; where the thread cannot move, the time shows it.
        let _near = self.devices[timed.work.device()].near();
        let shut = devices.iter().try_for_each(|&d| self.devices[d].gate.shut(&self.flag));
        let queued = shut.map_err(driver("the kernel that devices wait in")).and_then(|()| self.queue_all(&lanes));
        // Whatever happened, nothing may stay behind the gate.
        let in_time = self.flag.open() || !gated;
        let finished = queued.and_then(|()| self.finish(&lanes));
        if finished.is_err() {
            for &device in &devices {
                let context = &self.devices[device].context;
                context.record_err(context.synchronize());
            }
        }
        let lap = finished?;
        if in_time { Ok(lap) } else { Err(RigError::Stalled(timed.work)) }
    }

    fn scrub(&mut self, work: Work, bytes: usize) -> Result<(), RigError> {
        let target = if let Work::Send { to, .. } = work { to } else { work.device() };
        self.buffers(target, bytes)?;
        let Some(buffers) = self.devices[target].buffers.as_mut() else { return Ok(()) };
        match work {
            Work::Offload { .. } => buffers.host_target.scrub(bytes),
            Work::Reload { .. } | Work::Send { .. } => {
                buffers.device_target.scrub(bytes).map_err(driver("overwriting device memory"))?;
            }
            Work::Product { .. } => {}
        }
        Ok(())
    }

    fn verify(&mut self, work: Work, bytes: usize) -> Result<Option<usize>, RigError> {
        let target = match work {
            Work::Product { .. } => return Ok(None),
            Work::Send { to, .. } => to,
            Work::Offload { device } | Work::Reload { device } => device,
        };
        self.buffers(target, bytes)?;
        if let Some(buffers) = self.devices[target].buffers.as_mut()
            && !matches!(work, Work::Offload { .. })
        {
            buffers.host_target.scrub(bytes);
            buffers.device_target.read(&mut buffers.host_target, bytes).map_err(driver("reading device memory"))?;
        }
        let found = &self.buffers(target, bytes)?.host_target.bytes()[..bytes];
        let expected = &self.buffers(work.device(), bytes)?.host_source.bytes()[..bytes];
        Ok(first_difference(expected, found))
    }

    fn busy_link(&mut self, device: usize) -> PcieLink {
        let bus_id = self.devices[device].bus_id.clone();
        let failed = |e: RigError| PcieLink { generation: Err(e.to_string()), width: Err(e.to_string()) };
        let Some(bytes) = self.devices[device].buffers.as_ref().map(|buffers| buffers.bytes) else {
            return self.library.pcie(&bus_id);
        };
        // A tenth of a second of copies or so, during which NVML is asked: it answers in milliseconds.
        let work = Work::Reload { device };
        for _ in 0..(BUSY_BYTES / bytes).clamp(1, MOST_QUEUED) {
            if let Err(e) = self.enqueue(work, bytes) {
                return failed(e);
            }
        }
        let link = self.library.pcie(&bus_id);
        match self.queue(work).stream.synchronize() {
            Ok(()) => link,
            Err(e) => failed(driver(work.to_string())(e)),
        }
    }
}

/// The time between two events. Asked of the driver by its first name: cudarc calls a newer one, which
/// drivers of before CUDA 12.8 lack, and panics without it.
#[derive(Debug)]
struct Elapsed {
    function: unsafe extern "C" fn(*mut f32, sys::CUevent, sys::CUevent) -> sys::CUresult,
    // The function lies in it.
    _library: libloading::Library,
}

impl Elapsed {
    fn load() -> Result<Elapsed, RigError> {
        let names = if cfg!(windows) { &["nvcuda.dll"][..] } else { &["libcuda.so.1", "libcuda.so"] };
        // SAFETY: the driver's library is loaded already; this counts one more user of it.
        let found = names.iter().find_map(|name| unsafe { libloading::Library::new(*name) }.ok());
        let missing = |message: String| RigError::Driver { what: "the time between events".to_owned(), message };
        let library = found.ok_or_else(|| missing("that its library cannot be loaded again".to_owned()))?;
        // SAFETY: the type is that of cuEventElapsedTime in NVIDIA's cuda.h.
        let function = *unsafe { library.get(b"cuEventElapsedTime\0") }.map_err(|e| missing(e.to_string()))?;
        Ok(Elapsed { function, _library: library })
    }

    fn between(&self, start: &CudaEvent, end: &CudaEvent) -> Result<f32, DriverError> {
        start.context().bind_to_thread()?;
        let mut ms = 0.0;
        // SAFETY: both events are alive, were recorded with timing on streams of one context, and have
        // happened; one number is written.
        unsafe { (self.function)(&raw mut ms, start.cu_event(), end.cu_event()) }.result()?;
        Ok(ms)
    }
}
