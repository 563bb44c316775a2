//! Launches of kernels: what runs, on which grid, with which arguments.
//!
//! A [`Launch`] is data, made by a function of [`super::ops`] that has checked formats and lengths. [`Kernels`]
//! puts it on a stream; the tests hand it to an emulator.

use super::compile::{Architecture, CompileError, compile};
use super::sources::Source;
use cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
use cudarc::driver::{
    CudaContext, CudaFunction, CudaModule, CudaStream, DevicePtr, DevicePtrMut, DeviceRepr, DriverError, LaunchConfig,
    PushKernelArg, SyncOnDrop,
};
use half::bf16;
use std::collections::HashMap;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};

/// Dynamic shared memory that a kernel may use without asking for it, bytes.
const SHARED_UNASKED: u32 = 48 << 10;

/// A number format of device memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floating point.
    F32,
    /// bfloat16.
    Bf16,
    /// 32-bit unsigned integers.
    U32,
}

impl Format {
    /// Of a number.
    pub const fn bytes(self) -> usize {
        match self {
            Format::F32 | Format::U32 => 4,
            Format::Bf16 => 2,
        }
    }

    /// As in the names of kernels.
    pub const fn suffix(self) -> &'static str {
        match self {
            Format::F32 => "f32",
            Format::Bf16 => "bf16",
            Format::U32 => "u32",
        }
    }
}

/// Numbers that kernels work on.
pub trait Element: DeviceRepr {
    /// Their format.
    const FORMAT: Format;
}
impl Element for f32 {
    const FORMAT: Format = Format::F32;
}
impl Element for bf16 {
    const FORMAT: Format = Format::Bf16;
}
impl Element for u32 {
    const FORMAT: Format = Format::U32;
}

/// Why a launch is not made or does not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LaunchError {
    /// An operand of another length than the shape says.
    #[error("{kernel}: `{operand}` has {found} elements, expected {expected}")]
    Length {
        /// The kernel.
        kernel: &'static str,
        /// Which operand.
        operand: &'static str,
        /// By the shape.
        expected: usize,
        /// Of the operand.
        found: usize,
    },
    /// An operand in another format than the kernel takes.
    #[error("{kernel}: `{operand}` is in {}, expected {expected}", found.suffix())]
    Format {
        /// The kernel.
        kernel: &'static str,
        /// Which operand.
        operand: &'static str,
        /// What it takes.
        expected: &'static str,
        /// Of the operand.
        found: Format,
    },
    /// A shape that the kernel does not take.
    #[error("{kernel}: {problem}")]
    Shape {
        /// The kernel.
        kernel: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// No machine code.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// No source has a kernel of this name.
    #[error("there is no kernel `{0}`")]
    Unknown(String),
    /// A stream of one device, kernels of another.
    #[error("the stream belongs to device {stream}, the kernels to device {kernels}")]
    Device {
        /// The stream's.
        stream: usize,
        /// The kernels'.
        kernels: usize,
    },
    /// The driver refuses.
    #[error("the NVIDIA driver refuses to {step} the kernel `{kernel}`: {error}")]
    Driver {
        /// The kernel.
        kernel: String,
        /// What was being done.
        step: &'static str,
        /// The driver's words.
        error: String,
    },
}

/// Device memory that a kernel reads.
#[derive(Debug)]
pub struct Input<'a> {
    address: u64,
    length: usize,
    format: Format,
    /// Tells other streams, when dropped, that the memory has been read.
    _read: Option<SyncOnDrop<'a>>,
}

impl<'a> Input<'a> {
    /// Elements to be read on a stream.
    pub fn new<T: Element>(memory: &'a impl DevicePtr<T>, stream: &'a CudaStream) -> Self {
        let (address, read) = memory.device_ptr(stream);
        Self { address, length: memory.len(), format: T::FORMAT, _read: Some(read) }
    }

    /// Elements at an address.
    ///
    /// # Safety
    /// The memory there must be readable by the kernels that get it, until they are through.
    pub unsafe fn at(address: u64, length: usize, format: Format) -> Self {
        Self { address, length, format, _read: None }
    }

    /// Their format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Where they are.
    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

/// Device memory that a kernel writes, or reads and writes.
#[derive(Debug)]
pub struct Output<'a> {
    address: u64,
    length: usize,
    format: Format,
    /// Tells other streams, when dropped, that the memory has been written.
    _written: Option<SyncOnDrop<'a>>,
}

impl<'a> Output<'a> {
    /// Elements to be written on a stream.
    pub fn new<T: Element>(memory: &'a mut impl DevicePtrMut<T>, stream: &'a CudaStream) -> Self {
        let length = memory.len();
        let (address, written) = memory.device_ptr_mut(stream);
        Self { address, length, format: T::FORMAT, _written: Some(written) }
    }

    /// Elements at an address.
    ///
    /// # Safety
    /// The memory there must be writable by the kernels that get it, and used by nobody else until they are
    /// through.
    pub unsafe fn at(address: u64, length: usize, format: Format) -> Self {
        Self { address, length, format, _written: None }
    }

    /// Their format.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Where they are.
    pub(super) fn address(&self) -> u64 {
        self.address
    }
}

/// An argument of a kernel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Argument {
    /// An address; 0 for none.
    Pointer(u64),
    /// `int`
    I32(i32),
    /// `unsigned long long`
    U64(u64),
    /// `float`
    F32(f32),
}

/// A kernel with its grid and arguments. Lives no longer than the operands it was made from.
#[derive(Debug, Clone)]
pub struct Launch<'a> {
    kernel: String,
    config: LaunchConfig,
    arguments: Vec<Argument>,
    operands: PhantomData<&'a ()>,
}

impl Launch<'_> {
    /// Name of the kernel.
    pub fn kernel(&self) -> &str {
        &self.kernel
    }

    /// Grid, block and shared memory.
    pub fn config(&self) -> LaunchConfig {
        self.config
    }

    /// The arguments in their order.
    pub fn arguments(&self) -> &[Argument] {
        &self.arguments
    }
}

/// Makes a [`Launch`] and checks its operands on the way.
pub(super) struct Builder<'a> {
    name: &'static str,
    arguments: Vec<Argument>,
    operands: PhantomData<&'a ()>,
}

impl<'a> Builder<'a> {
    pub(super) fn new(name: &'static str) -> Self {
        Self { name, arguments: Vec::new(), operands: PhantomData }
    }

    /// Of the kernel, without its format.
    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    fn operand(
        mut self,
        operand: &'static str,
        (address, length, format): (u64, usize, Format),
        expected: (usize, Format),
    ) -> Result<Self, LaunchError> {
        if format != expected.1 {
            let expected = expected.1.suffix();
            return Err(LaunchError::Format { kernel: self.name, operand, expected, found: format });
        }
        if length != expected.0 {
            return Err(LaunchError::Length { kernel: self.name, operand, expected: expected.0, found: length });
        }
        self.arguments.push(Argument::Pointer(address));
        Ok(self)
    }

    /// The next argument: memory to read, of so many elements in a format.
    pub(super) fn input(
        self,
        operand: &'static str,
        input: &'a Input<'_>,
        length: usize,
        format: Format,
    ) -> Result<Self, LaunchError> {
        self.operand(operand, (input.address, input.length, input.format), (length, format))
    }

    /// The next argument: memory to read, or none.
    pub(super) fn optional_input(
        self,
        operand: &'static str,
        input: Option<&'a Input<'_>>,
        length: usize,
        format: Format,
    ) -> Result<Self, LaunchError> {
        match input {
            Some(input) => self.input(operand, input, length, format),
            None => Ok(self.argument(Argument::Pointer(0))),
        }
    }

    /// The next argument: memory to write.
    pub(super) fn output(
        self,
        operand: &'static str,
        output: &'a mut Output<'_>,
        length: usize,
        format: Format,
    ) -> Result<Self, LaunchError> {
        self.operand(operand, (output.address, output.length, output.format), (length, format))
    }

    /// The next argument: memory to write, or none.
    pub(super) fn optional_output(
        self,
        operand: &'static str,
        output: Option<&'a mut Output<'_>>,
        length: usize,
        format: Format,
    ) -> Result<Self, LaunchError> {
        match output {
            Some(output) => self.output(operand, output, length, format),
            None => Ok(self.argument(Argument::Pointer(0))),
        }
    }

    pub(super) fn argument(mut self, argument: Argument) -> Self {
        self.arguments.push(argument);
        self
    }

    /// The next argument: a size, which the kernel takes as `int`.
    pub(super) fn size(self, what: &str, size: usize) -> Result<Self, LaunchError> {
        match i32::try_from(size) {
            Ok(size) => Ok(self.argument(Argument::I32(size))),
            Err(_) => Err(self.shape(format!("{size} {what} are more than a kernel counts"))),
        }
    }

    /// An error about the shape.
    pub(super) fn shape(&self, problem: String) -> LaunchError {
        LaunchError::Shape { kernel: self.name, problem }
    }

    /// On blocks in one dimension, of so many threads and bytes of dynamic shared memory.
    pub(super) fn on(
        self,
        format: Format,
        blocks: usize,
        threads: u32,
        shared: u32,
    ) -> Result<Launch<'a>, LaunchError> {
        self.on_grid(format, (blocks, 1), threads, shared)
    }

    /// On blocks in two dimensions, the second of at most 65535.
    pub(super) fn on_grid(
        self,
        format: Format,
        blocks: (usize, usize),
        threads: u32,
        shared: u32,
    ) -> Result<Launch<'a>, LaunchError> {
        self.on_blocks(format, blocks, (threads, 1), shared)
    }

    /// On a block a row; where a row is for one warp, on a block for several rows, along y.
    pub(super) fn on_rows(self, format: Format, rows: usize, threads: u32) -> Result<Launch<'a>, LaunchError> {
        let together = if threads == 32 { 8 } else { 1 };
        self.on_blocks(format, (rows.div_ceil(together as usize), 1), (threads, together), 0)
    }

    fn on_blocks(
        self,
        format: Format,
        blocks: (usize, usize),
        (x, y): (u32, u32),
        shared: u32,
    ) -> Result<Launch<'a>, LaunchError> {
        let along = i32::try_from(blocks.0).ok().filter(|&x| x > 0);
        let across = u16::try_from(blocks.1).ok().filter(|&y| y > 0);
        let (Some(along), Some(across)) = (along, across) else {
            return Err(self.shape(format!("{} x {} blocks are no grid", blocks.0, blocks.1)));
        };
        let config = LaunchConfig {
            grid_dim: (along.unsigned_abs(), across.into(), 1),
            block_dim: (x, y, 1),
            shared_mem_bytes: shared,
        };
        let kernel = format!("{}_{}", self.name, format.suffix());
        Ok(Launch { kernel, config, arguments: self.arguments, operands: PhantomData })
    }
}

/// The kernels of a device, each compiled when it is first launched.
#[derive(Debug)]
pub struct Kernels {
    context: Arc<CudaContext>,
    architecture: Architecture,
    loaded: Mutex<Loaded>,
}

#[derive(Debug, Default)]
struct Loaded {
    modules: HashMap<&'static str, Arc<CudaModule>>,
    functions: HashMap<String, CudaFunction>,
}

impl Kernels {
    /// For the device of a context.
    ///
    /// # Errors
    /// A driver that does not tell the compute capability.
    pub fn new(context: Arc<CudaContext>) -> Result<Self, LaunchError> {
        let (major, minor) = context.compute_capability().map_err(refused("ask", "the device's architecture"))?;
        let architecture = Architecture::new(major.unsigned_abs(), minor.unsigned_abs());
        Ok(Self { context, architecture, loaded: Mutex::default() })
    }

    /// Compiles and loads a file of kernels, so that the first launch need not.
    ///
    /// # Errors
    /// No NVRTC, or a driver that does not load the machine code.
    pub fn prepare(&self, source: Source) -> Result<(), LaunchError> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if loaded.modules.contains_key(source.name) {
            return Ok(());
        }
        let image = compile(source, self.architecture)?.image();
        let module = self.context.load_module(image).map_err(refused("load", source.name))?;
        for &kernel in source.kernels {
            let function = module.load_function(kernel).map_err(refused("load", kernel))?;
            loaded.functions.insert(kernel.to_owned(), function);
        }
        loaded.modules.insert(source.name, module);
        Ok(())
    }

    fn function(&self, kernel: &str) -> Result<CudaFunction, LaunchError> {
        let source = Source::of(kernel).ok_or_else(|| LaunchError::Unknown(kernel.to_owned()))?;
        self.prepare(source)?;
        let loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        loaded.functions.get(kernel).cloned().ok_or_else(|| LaunchError::Unknown(kernel.to_owned()))
    }

    /// Puts a launch on a stream of this device; returns before it has run.
    ///
    /// # Errors
    /// No NVRTC for a kernel that is launched for the first time; what the driver refuses.
    pub fn run(&self, stream: &CudaStream, launch: &Launch<'_>) -> Result<(), LaunchError> {
        if stream.context().cu_ctx() != self.context.cu_ctx() {
            return Err(LaunchError::Device { stream: stream.context().ordinal(), kernels: self.context.ordinal() });
        }
        let function = self.function(&launch.kernel)?;
        let refused_it = |step, error| refused(step, &launch.kernel)(error);
        let shared = launch.config.shared_mem_bytes;
        if shared > SHARED_UNASKED {
            function
                .set_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared.cast_signed())
                .map_err(|error| refused_it("give shared memory to", error))?;
        }
        let mut arguments = stream.launch_builder(&function);
        for argument in &launch.arguments {
            match argument {
                Argument::Pointer(value) | Argument::U64(value) => arguments.arg(value),
                Argument::I32(value) => arguments.arg(value),
                Argument::F32(value) => arguments.arg(value),
            };
        }
        // SAFETY: the launch was made by a function of `ops`, which gives the kernel the arguments it takes and
        // has checked their lengths; the operands live as long as the launch.
        unsafe { arguments.launch(launch.config) }.map_err(|error| refused_it("launch", error))?;
        Ok(())
    }
}

fn refused(step: &'static str, kernel: &str) -> impl FnOnce(DriverError) -> LaunchError {
    move |error| LaunchError::Driver { kernel: kernel.to_owned(), step, error: error.to_string() }
}
