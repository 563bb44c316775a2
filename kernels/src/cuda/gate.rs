//! Holding devices back until all their work is queued: a kernel that waits for a word in host memory.
//!
//! Without it the first copies of a row would be timed while the host still queues the later ones. The
//! kernel is PTX text that the driver itself translates, so that no compiler is needed, and it gives up
//! after a while, so that nothing can hang.

use std::ffi::{CStr, CString, c_void};
use std::ptr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};

/// The kernel goes on after this long in any case.
pub(super) const PATIENCE: Duration = Duration::from_secs(2);

const KERNEL: &CStr = c"
.version 6.0
.target sm_50
.address_size 64

.visible .entry optpipe_gate(.param .u64 flag, .param .u64 limit_ns)
{
    .reg .pred %p<3>;
    .reg .b32 %r<2>;
    .reg .b64 %rd<7>;
    ld.param.u64 %rd1, [flag];
    ld.param.u64 %rd2, [limit_ns];
    cvta.to.global.u64 %rd6, %rd1;
    mov.u64 %rd3, %globaltimer;
WAIT:
    ld.volatile.global.u32 %r1, [%rd6];
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra DONE;
    mov.u64 %rd4, %globaltimer;
    sub.u64 %rd5, %rd4, %rd3;
    setp.lt.u64 %p2, %rd5, %rd2;
    @%p2 bra WAIT;
DONE:
    ret;
}
";

/// The word that opens the gates of all devices at once.
#[derive(Debug)]
pub(super) struct Flag {
    word: *mut u32,
    closed_at: Instant,
    // The word belongs to this context, although all devices see it.
    context: Arc<CudaContext>,
}

impl Flag {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Flag, DriverError> {
        context.bind_to_thread()?;
        let flags = sys::CU_MEMHOSTALLOC_PORTABLE | sys::CU_MEMHOSTALLOC_DEVICEMAP;
        // SAFETY: the memory is used as one u32, which any bytes are, and freed in `drop`.
        let word = unsafe { result::malloc_host(size_of::<u32>(), flags) }?.cast::<u32>();
        let flag = Flag { word, closed_at: Instant::now(), context: Arc::clone(context) };
        flag.open();
        Ok(flag)
    }

    pub(super) fn close(&mut self) {
        self.closed_at = Instant::now();
        // SAFETY: `word` is valid until `drop`; devices read it meanwhile, hence volatile.
        unsafe { ptr::write_volatile(self.word, 0) };
    }

    /// Lets all devices go on. Says whether they really waited until now.
    pub(super) fn open(&self) -> bool {
        // SAFETY: as in `close`.
        unsafe { ptr::write_volatile(self.word, 1) };
        self.closed_at.elapsed() < PATIENCE / 2
    }
}

impl Drop for Flag {
    fn drop(&mut self) {
        self.open();
        self.context.record_err(self.context.bind_to_thread().and_then(|()| {
            // SAFETY: comes from `malloc_host` and is freed once. Freeing waits for the devices.
            unsafe { result::free_host(self.word.cast::<c_void>()) }
        }));
    }
}

/// A device's gate.
#[derive(Debug)]
pub(super) struct Gate {
    stream: Arc<CudaStream>,
    passed: CudaEvent,
    function: sys::CUfunction,
    module: sys::CUmodule,
}

impl Gate {
    pub(super) fn new(context: &Arc<CudaContext>) -> Result<Gate, DriverError> {
        let stream = context.new_stream()?;
        let passed = context.new_event(None)?;
        context.bind_to_thread()?;
        // SAFETY: the text ends with a zero byte, as a C string does.
        let module = unsafe { result::module::load_data(KERNEL.as_ptr().cast::<c_void>()) }?;
        // SAFETY: `module` was just loaded.
        let function =
            unsafe { result::module::get_function(module, CString::from(c"optpipe_gate")) }.inspect_err(|_| {
                // SAFETY: nothing of the module is in use.
                context.record_err(unsafe { result::module::unload(module) });
            })?;
        Ok(Gate { stream, passed, function, module })
    }

    /// Makes the device wait for `flag`; streams wait through [`hold`](Gate::hold).
    pub(super) fn shut(&self, flag: &Flag) -> Result<(), DriverError> {
        self.stream.context().bind_to_thread()?;
        let mut device_word: sys::CUdeviceptr = 0;
        // SAFETY: the flag's memory is mapped for devices; one address is written.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&raw mut device_word, flag.word.cast::<c_void>(), 0) }.result()?;
        let mut limit = PATIENCE.as_nanos() as u64;
        let mut arguments = [(&raw mut device_word).cast::<c_void>(), (&raw mut limit).cast::<c_void>()];
        // SAFETY: the kernel takes two 8-byte values, in this order, and only reads one word that lives
        // longer than the stream's work: `Flag::drop` waits for it.
        unsafe {
            result::launch_kernel(self.function, (1, 1, 1), (1, 1, 1), 0, self.stream.cu_stream(), &mut arguments)
        }?;
        self.passed.record(&self.stream)
    }

    /// Makes a stream of the same device wait until the gate is passed.
    pub(super) fn hold(&self, stream: &CudaStream) -> Result<(), DriverError> {
        stream.wait(&self.passed)
    }

    /// Waits until the gate's stream has nothing to do.
    pub(super) fn synchronise(&self) -> Result<(), DriverError> {
        self.stream.synchronize()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread().and_then(|()| self.stream.synchronize()).and_then(|()| {
            // SAFETY: loaded in `new`, unloaded once, and its kernel no longer runs.
            unsafe { result::module::unload(self.module) }
        }));
    }
}
