//! Launches on the host: a source is compiled by the C++ compiler with `emulate.h` before it.

use optpipe_kernels::cuda::launch::{Argument, Launch};
use optpipe_kernels::cuda::sources::Source;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::{LazyLock, Mutex, OnceLock};

const HEADER: &str = include_str!("../emulate/emulate.h");

/// `launch_NAME(grid, block, shared bytes, arguments, number of arguments)`: null, or what went wrong.
type LaunchFunction = unsafe extern "C" fn(*const u32, *const u32, u32, *mut *mut c_void, usize) -> *const c_char;

/// Runs a launch whose operands are addresses of this process.
#[track_caller]
pub(crate) fn run(launch: &Launch<'_>) {
    let source = Source::of(launch.kernel()).unwrap();
    let name = format!("launch_{}", launch.kernel());
    // SAFETY: the library was made by `build`, with a function of this type for each kernel.
    let function = unsafe { library(source).get::<LaunchFunction>(name.as_bytes()) }.unwrap();
    let mut cells: Vec<u64> = launch
        .arguments()
        .iter()
        .map(|argument| match *argument {
            Argument::Pointer(value) | Argument::U64(value) => value,
            // Little endian: the number is at the cell's address.
            Argument::I32(value) => u64::from(value.cast_unsigned()),
            Argument::F32(value) => u64::from(value.to_bits()),
        })
        .collect();
    let mut pointers: Vec<*mut c_void> = cells.iter_mut().map(|cell| std::ptr::from_mut(cell).cast()).collect();
    let config = launch.config();
    let (grid, block) = (<[u32; 3]>::from(config.grid_dim), <[u32; 3]>::from(config.block_dim));
    // SAFETY: the pointers are valid; so are the operands, as whoever made them of addresses has seen to.
    let error = unsafe {
        function(grid.as_ptr(), block.as_ptr(), config.shared_mem_bytes, pointers.as_mut_ptr(), pointers.len())
    };
    if !error.is_null() {
        // SAFETY: a text of the emulator, valid until this thread's next launch.
        panic!("{}: {}", launch.kernel(), unsafe { CStr::from_ptr(error) }.to_string_lossy());
    }
}

/// The compiled source, built when first asked for.
fn library(source: Source) -> &'static libloading::Library {
    type Libraries = Mutex<HashMap<&'static str, &'static OnceLock<libloading::Library>>>;
    static LIBRARIES: LazyLock<Libraries> = LazyLock::new(Libraries::default);
    let cell = *LIBRARIES.lock().unwrap().entry(source.name).or_insert_with(|| Box::leak(Box::default()));
    cell.get_or_init(|| build(source))
}

fn build(source: Source) -> libloading::Library {
    let mut program = format!("#line 1 \"emulate.h\"\n{HEADER}\n{}\n", source.program());
    for kernel in source.kernels {
        writeln!(
            program,
            "extern \"C\" const char *launch_{kernel}(const unsigned *grid, const unsigned *block, unsigned shared, \
             void **arguments, size_t count) {{ return emulate::launch({kernel}, grid, block, shared, arguments, \
             count); }}"
        )
        .unwrap();
    }
    let folder = tempfile::Builder::new().prefix("emulated").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    compile(folder.path(), source.name, &program);
    // SAFETY: the library's initialisers are those of its C++ runtime.
    unsafe { libloading::Library::new(folder.path().join(format!("{}.so", source.name))) }.unwrap()
}

fn compile(folder: &Path, name: &str, program: &str) {
    let (text, library) = (folder.join(format!("{name}.cpp")), folder.join(format!("{name}.so")));
    std::fs::write(&text, program).unwrap();
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| "c++".into());
    let output = Command::new(&compiler)
        .args(["-O2", "-std=c++17", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-Wall", "-Wno-unknown-pragmas", "-o"])
        .args([&library, &text])
        .output()
        .unwrap_or_else(|error| panic!("cannot run the C++ compiler {}: {error}", compiler.display()));
    assert!(output.status.success(), "{name} does not compile:\n{}", String::from_utf8_lossy(&output.stderr));
}
