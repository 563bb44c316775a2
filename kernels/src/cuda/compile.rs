//! CUDA C to machine code through NVRTC, which is looked for at run time and needs no GPU.

use super::sources::Source;
use cudarc::nvrtc::{Ptx, result, sys};
use std::ffi::{CStr, CString, c_char};
use std::fmt;

/// What to compile for, e.g. `sm_90`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Architecture {
    /// Of the compute capability.
    pub major: u32,
    /// Of the compute capability.
    pub minor: u32,
    /// Whether instructions that only this architecture has may be used (`sm_90a`): the code then runs on
    /// no later one.
    pub specific: bool,
}

impl Architecture {
    /// Code for this compute capability, without instructions that later ones lack.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor, specific: false }
    }
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sm_{}{}{}", self.major, self.minor, if self.specific { "a" } else { "" })
    }
}

/// Why there is no machine code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// No NVRTC on this machine.
    #[error(
        "no NVRTC: the library libnvrtc cannot be loaded; it comes with the CUDA toolkit, or from PyPI with `pip \
         install --target DIR nvidia-cuda-nvrtc` and DIR/nvidia/cu13/lib in LD_LIBRARY_PATH"
    )]
    NoLibrary,
    /// NVRTC does not accept the program.
    #[error("the kernels `{source_name}` do not compile for {architecture}:\n{log}")]
    Rejected {
        /// Name of the source.
        source_name: &'static str,
        /// What it was compiled for.
        architecture: Architecture,
        /// NVRTC's messages with their lines.
        log: String,
    },
    /// NVRTC fails otherwise.
    #[error("NVRTC fails to {step} the kernels `{source_name}` for {architecture}: {error}")]
    Failed {
        /// Name of the source.
        source_name: &'static str,
        /// What it was compiled for.
        architecture: Architecture,
        /// What was being done.
        step: &'static str,
        /// NVRTC's name for the error.
        error: String,
    },
}

/// A compiled source.
#[derive(Debug, Clone)]
pub struct Compiled {
    /// Machine code (cubin) for the architecture and later ones of the same major number.
    pub cubin: Vec<u8>,
    /// The virtual assembly it was made from.
    pub ptx: String,
    /// What NVRTC remarked, e.g. warnings.
    pub log: String,
}

impl Compiled {
    /// As a driver loads it: the machine code.
    pub fn image(&self) -> Ptx {
        Ptx::from_binary(self.cubin.clone())
    }
}

/// Whether NVRTC can be loaded on this machine: this program would not have started without it.
#[cfg(feature = "cuda")]
pub fn nvrtc_is_present() -> bool {
    true
}

/// Whether NVRTC can be loaded on this machine.
#[cfg(not(feature = "cuda"))]
pub fn nvrtc_is_present() -> bool {
    // SAFETY: loads and unloads libnvrtc by name; its initialisers are NVIDIA's own and the system's
    // search path says which file it is, as for any program that uses NVRTC.
    unsafe { sys::is_culib_present() }
}

/// Compiles a source for an architecture.
///
/// # Errors
/// [`CompileError`]: no NVRTC, a program that it rejects with its log, an architecture that it does not know.
pub fn compile(source: Source, architecture: Architecture) -> Result<Compiled, CompileError> {
    if !nvrtc_is_present() {
        return Err(CompileError::NoLibrary);
    }
    let failed = |step, error: String| CompileError::Failed { source_name: source.name, architecture, step, error };
    let text = CString::new(source.program()).map_err(|e| failed("read", e.to_string()))?;
    let name = CString::new(format!("{}.cu", source.name)).map_err(|e| failed("read", e.to_string()))?;
    let program = Program(result::create_program(&text, Some(&name)).map_err(|e| failed("read", e.to_string()))?);
    // Closures cannot be marked as device code without an extension of the language.
    let options = [
        format!("--gpu-architecture={architecture}"),
        "--std=c++17".into(),
        "--device-as-default-execution-space".into(),
    ];
    // SAFETY: the program was created above and is destroyed when it is dropped.
    let outcome = unsafe { result::compile_program(program.0, &options) };
    // SAFETY: as above.
    let log = text_of(&unsafe { result::get_program_log(program.0) }.map_err(|e| failed("compile", e.to_string()))?);
    match outcome {
        Ok(()) => {}
        Err(result::NvrtcError(sys::nvrtcResult::NVRTC_ERROR_COMPILATION)) => {
            return Err(CompileError::Rejected { source_name: source.name, architecture, log });
        }
        Err(error) => return Err(failed("compile", format!("{error}: {log}"))),
    }
    // SAFETY: as above.
    let ptx = text_of(&unsafe { result::get_ptx(program.0) }.map_err(|e| failed("assemble", e.to_string()))?);
    let cubin = program.cubin().map_err(|e| failed("assemble", e.to_string()))?;
    Ok(Compiled { cubin, ptx, log })
}

/// What NVRTC wrote up to its terminating zero.
fn text_of(raw: &[c_char]) -> String {
    let bytes: Vec<u8> = raw.iter().map(|&c| c as u8).collect();
    match CStr::from_bytes_until_nul(&bytes) {
        Ok(text) => text.to_string_lossy().trim_end().to_owned(),
        Err(_) => String::from_utf8_lossy(&bytes).into_owned(),
    }
}

/// Destroyed when dropped.
struct Program(sys::nvrtcProgram);

impl Program {
    fn cubin(&self) -> Result<Vec<u8>, result::NvrtcError> {
        let mut size = 0usize;
        // SAFETY: the program lives until `self` is dropped, and `size` is a valid place for the answer.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut size) }.result()?;
        let mut cubin = vec![0u8; size];
        // SAFETY: as above; `cubin` has the size that NVRTC asked for.
        unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) }.result()?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: created by `create_program`, and nobody uses it after. An error leaves nothing to do.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
