//! Launches on the host: a source is compiled by the C++ compiler with `emulate.h` before it.

use cudarc::driver::LaunchConfig;
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
    // SAFETY: whoever made operands of addresses has seen to it that they are valid.
    let outcome = unsafe { launch_on(source, launch.kernel(), launch.config(), launch.arguments()) };
    outcome.unwrap_or_else(|error| panic!("{}: {error}", launch.kernel()));
}

/// Runs a kernel of a source; what the emulator objects to.
///
/// # Safety
/// The arguments must be those of the kernel, and their addresses valid.
unsafe fn launch_on(source: Source, kernel: &str, config: LaunchConfig, arguments: &[Argument]) -> Result<(), String> {
    let name = format!("launch_{kernel}");
    // SAFETY: the library was made by `build`, with a function of this type for each kernel.
    let function = unsafe { library(source).get::<LaunchFunction>(name.as_bytes()) }.unwrap();
    let mut cells: Vec<u64> = arguments
        .iter()
        .map(|argument| match *argument {
            Argument::Pointer(value) | Argument::U64(value) => value,
            // Little endian: the number is at the cell's address.
            Argument::I32(value) => u64::from(value.cast_unsigned()),
            Argument::F32(value) => u64::from(value.to_bits()),
        })
        .collect();
    let mut pointers: Vec<*mut c_void> = cells.iter_mut().map(|cell| std::ptr::from_mut(cell).cast()).collect();
    let (grid, block) = (<[u32; 3]>::from(config.grid_dim), <[u32; 3]>::from(config.block_dim));
    // SAFETY: the pointers are valid, and the caller says that the addresses are.
    let error = unsafe {
        function(grid.as_ptr(), block.as_ptr(), config.shared_mem_bytes, pointers.as_mut_ptr(), pointers.len())
    };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: a text of the emulator, valid until this thread's next launch.
    Err(unsafe { CStr::from_ptr(error) }.to_string_lossy().into_owned())
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

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Source = Source {
        name: "emulator",
        text: r#"
            // Each warp's lanes backwards, through shared memory of two kinds and a barrier.
            extern "C" __global__ void reverse(const int *in, int *out) {
                __shared__ int fixed[64];
                DYNAMIC_SHARED(int, dynamic);
                const int at = blockIdx.x * 64 + threadIdx.y * 32 + threadIdx.x, own = at % 64;
                fixed[own] = __shfl_sync(0xffffffffu, in[at], 31 - (int)threadIdx.x);
                __syncthreads();
                dynamic[63 - own] = fixed[own];
                __syncthreads();
                out[at] = dynamic[63 - (own ^ 32)];
            }
            extern "C" __global__ void half_warps(int *out) {
                const bool upper = threadIdx.x >= 16;
                int sum = threadIdx.x;
                if (upper) {
                    for (int i = 8; i > 0; i /= 2) sum += __shfl_xor_sync(0xffff0000u, sum, i);
                } else {
                    for (int i = 4; i > 0; i /= 2) sum += __shfl_down_sync(0x0000ffffu, sum, i, 8);
                }
                out[threadIdx.x] = sum;
            }
            extern "C" __global__ void missed_barrier() {
                if (threadIdx.x < 40) __syncthreads();
            }
            extern "C" __global__ void missed_lane() {
                if (threadIdx.x != 7) __syncwarp();
            }
            extern "C" __global__ void different_operations() {
                if (threadIdx.x < 16) __syncwarp(); else __shfl_xor_sync(0xffffffffu, 1, 1);
            }
            extern "C" __global__ void race(int upper, int *out) {
                __shared__ int shared[64];
                shared[threadIdx.x] = 0;
                __syncthreads();
                shared[threadIdx.x] = 1;
                // No barrier.
                out[blockIdx.x * 64 + threadIdx.x] = shared[upper ? 63 : 0];
            }
            extern "C" __global__ void overwritten(int *out) {
                __shared__ int shared;
                for (int i = 0; i < 2; ++i) {
                    // No barrier between a round's reads and the next one's write.
                    if (threadIdx.x == 0) shared = i;
                    __syncthreads();
                    out[blockIdx.x * 128 + i * 64 + threadIdx.x] = __shfl_sync(0xffffffffu, shared, 3);
                }
            }
            extern "C" __global__ void unwritten(unsigned *out) {
                DYNAMIC_SHARED(unsigned, dynamic);
                out[0] = dynamic[0];
            }
        "#,
        kernels: &[
            "reverse",
            "half_warps",
            "missed_barrier",
            "missed_lane",
            "different_operations",
            "race",
            "overwritten",
            "unwritten",
        ],
    };

    fn launch(kernel: &str, blocks: u32, block: (u32, u32), arguments: &[Argument]) -> Result<(), String> {
        let config = LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (block.0, block.1, 1), shared_mem_bytes: 256 };
        // SAFETY: the tests below give the kernels what they take.
        unsafe { launch_on(SOURCE, kernel, config, arguments) }
    }

    fn pointer<T>(values: &mut [T]) -> Argument {
        Argument::Pointer(values.as_mut_ptr() as u64)
    }

    #[test]
    fn warps_exchange_and_blocks_meet() {
        let mut input: Vec<i32> = (0..192).collect();
        let mut output = vec![0i32; 192];
        launch("reverse", 3, (32, 2), &[pointer(&mut input), pointer(&mut output)]).unwrap();
        // Lanes are reversed, and then the two warps of a block exchanged.
        let expected: Vec<i32> = (0..192).map(|i| (i ^ 32) ^ 31).collect();
        assert_eq!(output, expected);

        let mut sums = vec![0i32; 32];
        launch("half_warps", 1, (32, 1), &[pointer(&mut sums)]).unwrap();
        assert_eq!((sums[0], sums[8]), ((0..8).sum(), (8..16).sum()));
        assert!(sums[16..].iter().all(|&sum| sum == (16..32).sum::<i32>()));
    }

    #[test]
    fn what_the_hardware_leaves_undefined_is_an_error() {
        let error = |kernel| launch(kernel, 2, (64, 1), &[]).unwrap_err();
        assert_eq!(error("missed_barrier"), "a barrier that some threads never reach (block 0, 0, 0)");
        assert_eq!(error("missed_lane"), "threads wait for others that never come (block 0, 0, 0)");
        assert_eq!(error("different_operations"), "lanes of a warp meet different operations or masks (block 0, 0, 0)");
        // Numbers are read before they are written, from before as from after oneself.
        for upper in [0, 1] {
            let mut read = vec![1i32; 128];
            launch("race", 2, (64, 1), &[Argument::I32(upper), pointer(&mut read)]).unwrap();
            assert!(read.contains(&0), "{upper}");
        }
        // As are numbers that are written before all have read the ones before them.
        let mut read = vec![9i32; 256];
        launch("overwritten", 2, (64, 1), &[pointer(&mut read)]).unwrap();
        assert!(read[..64].contains(&1) || read[128..192].contains(&1));
        // After an error the next launch is as any other.
        let mut word = vec![0u32];
        launch("unwritten", 1, (1, 1), &[pointer(&mut word)]).unwrap();
        assert_eq!(word, [u32::MAX]);
        assert!(launch("unwritten", 1, (1, 1), &[]).unwrap_err().contains("number of arguments"));
        assert!(launch("missed_lane", 1, (2000, 1), &[]).unwrap_err().contains("1 to 1024 threads"));
    }
}
