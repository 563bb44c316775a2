//! The copy engine: one thread a channel, which carries out the copies of that channel one after
//! another, in the order in which they were submitted.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use candle_core::{DType, DeviceLocation, Tensor};

use crate::arena::HostTensor;
use crate::backend::Backend;
use crate::budget::BudgetError;

/// Why a copy did not happen.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// A number format that is not copied.
    #[error("tensors of {} are not copied between device and host", .0.as_str())]
    Dtype(DType),
    /// A tensor of another backend.
    #[error("the tensor is on {0:?}, not on a device of this backend")]
    NotOnDevice(DeviceLocation),
    /// No such channel.
    #[error("channel {0} has no copy thread")]
    NoChannel(usize),
    /// The device's memory was not to be had.
    #[error(transparent)]
    Budget(#[from] BudgetError),
    /// What candle reports.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
    /// What was to be copied will not come: whoever makes it has given up.
    #[error("given up: {0}")]
    Aborted(String),
    /// The copy thread could not be started.
    #[error("cannot start a copy thread: {0}")]
    Thread(std::io::Error),
    /// The copy's own code panicked.
    #[error("a copy panicked: {0}")]
    Panicked(String),
}

/// A copy that has happened.
#[derive(Debug)]
pub struct Copied<T> {
    /// What came of it.
    pub value: T,
    /// When the copy began: all it needs was there.
    pub start: Instant,
    /// When it ended.
    pub end: Instant,
}

/// A copy that was submitted.
#[derive(Debug)]
#[must_use = "whether the copy worked shows only here"]
pub struct Pending<T> {
    receiver: Receiver<Result<Copied<T>, CopyError>>,
}

impl<T> Pending<T> {
    /// Waits until the copy has happened.
    ///
    /// # Errors
    /// What preparing or copying returned.
    pub fn wait(self) -> Result<Copied<T>, CopyError> {
        self.receiver.recv().unwrap_or_else(|_| Err(stopped()))
    }

    /// Waits at most this long; the copy goes on when the time is over.
    ///
    /// # Errors
    /// Inside: what preparing or copying returned. Outside: this very copy, not done yet.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Result<Copied<T>, CopyError>, Pending<T>> {
        match self.receiver.recv_timeout(timeout) {
            Ok(result) => Ok(result),
            Err(mpsc::RecvTimeoutError::Timeout) => Err(self),
            Err(mpsc::RecvTimeoutError::Disconnected) => Ok(Err(stopped())),
        }
    }
}

fn stopped() -> CopyError {
    CopyError::Aborted("the copy thread has stopped".to_owned())
}

type Job = Box<dyn FnOnce(&dyn Backend) + Send>;

#[derive(Debug)]
struct Channel {
    /// `None` once the engine is being dropped.
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

/// Copy threads, one a channel. Devices whose copies share a channel share its thread, and so take
/// turns. Dropping the engine waits for all that was submitted.
#[derive(Debug)]
pub struct CopyEngine {
    channels: BTreeMap<usize, Channel>,
}

impl CopyEngine {
    /// An engine for these channels, numbered as in a problem file; a number that comes twice counts
    /// once.
    ///
    /// # Errors
    /// [`CopyError::Thread`].
    pub fn new(backend: &Arc<dyn Backend>, channels: &[usize]) -> Result<Self, CopyError> {
        let mut engine = CopyEngine { channels: BTreeMap::new() };
        for &number in channels {
            if engine.channels.contains_key(&number) {
                continue;
            }
            let (jobs, received) = mpsc::channel::<Job>();
            let backend = Arc::clone(backend);
            let thread = std::thread::Builder::new()
                .name(format!("copy-{number}"))
                .spawn(move || {
                    for job in received {
                        job(&*backend);
                    }
                })
                .map_err(CopyError::Thread)?;
            engine.channels.insert(number, Channel { jobs: Some(jobs), thread: Some(thread) });
        }
        Ok(engine)
    }

    /// Submits a copy. When its turn comes, the channel's thread runs `prepare`, which may block until
    /// all is there that the copy needs (the tensors of a forward; memory for a reload), and then
    /// `copy`, whose time is taken. What `copy` drops (device tensors, reservations) is gone when the
    /// copy ends.
    ///
    /// # Errors
    /// [`CopyError::NoChannel`]; what the two return comes from [`Pending::wait`].
    pub fn submit<I, T, P, C>(&self, channel: usize, prepare: P, copy: C) -> Result<Pending<T>, CopyError>
    where
        T: Send + 'static,
        P: FnOnce() -> Result<I, CopyError> + Send + 'static,
        C: FnOnce(I, &dyn Backend) -> Result<T, CopyError> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        let job: Job = Box::new(move |backend| {
            let run = || {
                let input = prepare()?;
                let start = Instant::now();
                let value = copy(input, backend)?;
                Ok(Copied { value, start, end: Instant::now() })
            };
            // What a panic leaves behind is dropped with the closures: nothing of it is seen again.
            let result = catch_unwind(AssertUnwindSafe(run))
                .unwrap_or_else(|panic| Err(CopyError::Panicked(panic_text(&*panic))));
            // Nobody may be waiting any more: an aborted run drops what is pending.
            let _ = sender.send(result);
        });
        let jobs = self.channels.get(&channel).and_then(|c| c.jobs.as_ref()).ok_or(CopyError::NoChannel(channel))?;
        jobs.send(job).map_err(|_| stopped())?;
        Ok(Pending { receiver })
    }

    /// Copies to the host the tensors that `tensors` returns, and drops them: their memory is free
    /// when the copy ends, unless others share it.
    ///
    /// # Errors
    /// As [`CopyEngine::submit`].
    pub fn offload<P>(&self, channel: usize, tensors: P) -> Result<Pending<Vec<HostTensor>>, CopyError>
    where
        P: FnOnce() -> Result<Vec<Tensor>, CopyError> + Send + 'static,
    {
        self.submit(channel, tensors, |tensors, backend| tensors.iter().map(|t| backend.offload(t)).collect())
    }

    /// Copies back to device `index` the tensors that `tensors` returns; their host buffers return to
    /// the pool.
    ///
    /// # Errors
    /// As [`CopyEngine::submit`].
    pub fn reload<P>(&self, channel: usize, index: usize, tensors: P) -> Result<Pending<Vec<Tensor>>, CopyError>
    where
        P: FnOnce() -> Result<Vec<HostTensor>, CopyError> + Send + 'static,
    {
        self.submit(channel, tensors, move |tensors, backend| {
            tensors.iter().map(|t| backend.reload(t, index)).collect()
        })
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

impl Drop for CopyEngine {
    fn drop(&mut self) {
        for channel in self.channels.values_mut() {
            channel.jobs = None;
        }
        for channel in self.channels.values_mut() {
            if let Some(thread) = channel.thread.take() {
                // A job's panic is caught and reported by the job; the loop itself has nothing to fail.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
#[path = "copy_tests.rs"]
mod tests;
