//! What measuring copies needs of a machine: timed work on devices, alone and beside other work.
//!
//! The procedure that decides what is measured how often stands behind this trait, so that it can be
//! tested on a machine with known latencies and bandwidths; [`crate::cuda::rig`] is the real one.

use std::fmt;
use std::time::Duration;

/// Work that a device can be kept busy with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Work {
    /// A copy from the device's memory to pinned memory of the host.
    Offload {
        /// The device.
        device: usize,
    },
    /// A copy from pinned memory of the host to the device's memory.
    Reload {
        /// The device.
        device: usize,
    },
    /// A copy from the memory of one device to that of another, or within one where both are the same.
    Send {
        /// The device that has the bytes.
        from: usize,
        /// The device that gets them.
        to: usize,
    },
    /// A matrix product of the size that [`Rig::product`] tells.
    Product {
        /// The device.
        device: usize,
    },
}

impl Work {
    /// The device whose queue the work waits in.
    pub fn device(self) -> usize {
        match self {
            Work::Offload { device } | Work::Reload { device } | Work::Product { device } => device,
            Work::Send { from, .. } => from,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Work::Offload { device } => write!(f, "offload of device {device}"),
            Work::Reload { device } => write!(f, "reload of device {device}"),
            Work::Send { from, to } if from == to => write!(f, "copy within device {from}"),
            Work::Send { from, to } => write!(f, "send from device {from} to device {to}"),
            Work::Product { device } => write!(f, "matrix product of device {device}"),
        }
    }
}

/// Equal pieces of work, one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lane {
    /// The work.
    pub work: Work,
    /// Bytes of each copy; of no meaning for a product.
    pub bytes: usize,
    /// How often.
    pub repeats: usize,
}

/// What a timed lane took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lap {
    /// From the start of the first piece to the end of the last, ns.
    pub ns: u64,
    /// Whether all that was to run beside it still ran when it ended. Where not, the time is that of
    /// work which was disturbed for a part of it only.
    pub covered: bool,
}

/// The way that bytes take between two devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Route {
    /// One device writes to the memory of the other.
    Peer,
    /// The driver stages the bytes in host memory.
    ThroughHost,
    /// Both are the same device.
    Within,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Route::Peer => "peer",
            Route::ThroughHost => "through the host",
            Route::Within => "within the device",
        })
    }
}

/// A device's PCIe link as it is; what cannot be read is the reason why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PcieLink {
    /// Generation.
    pub generation: Result<u32, String>,
    /// Lanes.
    pub width: Result<u32, String>,
}

/// Why work cannot be timed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RigError {
    /// Memory that is not there.
    #[error("{what}: {bytes} bytes cannot be had: {message}")]
    Memory {
        /// Whose memory, of which kind.
        what: String,
        /// How much.
        bytes: usize,
        /// The driver's word.
        message: String,
    },
    /// Something that this machine lacks: the work cannot be timed here, other work can.
    #[error("{0}")]
    Missing(String),
    /// The driver fails.
    #[error("{what}: the NVIDIA driver reports {message}")]
    Driver {
        /// What was asked of it.
        what: String,
        /// Its word.
        message: String,
    },
    /// The host was too slow to queue the work before the device began it.
    #[error("{0}: the host took too long to queue the work, so that its own speed would be measured")]
    Stalled(Work),
    /// Work that cannot be asked for.
    #[error("cannot time {0}")]
    Unusable(String),
}

/// Devices on which work can be timed.
pub trait Rig {
    /// How many.
    fn devices(&self) -> usize;

    /// Time since the rig was set up began: the clock of time limits.
    fn elapsed(&self) -> Duration;

    /// Sees to it that copies of up to `bytes` of this device can be timed.
    ///
    /// # Errors
    /// [`RigError::Memory`] where there is not as much.
    fn reserve(&mut self, device: usize, bytes: usize) -> Result<(), RigError>;

    /// Gives the memory of a device's copies back.
    fn release(&mut self, device: usize);

    /// The way between two devices, made usable: peer access is switched on where there is any.
    ///
    /// # Errors
    /// What the driver reports.
    fn route(&mut self, from: usize, to: usize) -> Result<Route, RigError>;

    /// Makes a device ready for matrix products and says which ones it will do.
    ///
    /// # Errors
    /// [`RigError::Missing`] where there is nothing that does them.
    fn product(&mut self, device: usize) -> Result<String, RigError>;

    /// Times a lane while others are busy beside it. All is queued before anything starts, so that
    /// what the host takes to queue it stays out of the time.
    ///
    /// # Errors
    /// [`RigError`].
    fn race(&mut self, timed: Lane, beside: &[Lane]) -> Result<Lap, RigError>;

    /// Overwrites the first `bytes` of where a copy goes to, so that [`verify`](Rig::verify) has a meaning.
    ///
    /// # Errors
    /// What the driver reports.
    fn scrub(&mut self, work: Work, bytes: usize) -> Result<(), RigError>;

    /// Compares the first `bytes` of where a copy went to with where it came from: the offset of the
    /// first byte that differs, if any.
    ///
    /// # Errors
    /// What the driver reports.
    fn verify(&mut self, work: Work, bytes: usize) -> Result<Option<usize>, RigError>;

    /// A device's PCIe link while it copies; one at rest runs slower to save power.
    fn busy_link(&mut self, device: usize) -> PcieLink;
}
