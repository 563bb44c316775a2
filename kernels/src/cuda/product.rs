//! Matrix products through cuBLAS, as a trainer does them: what copies are timed beside.

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublas::result as cublas;
use cudarc::cublas::result::CublasError;
use cudarc::cublas::sys as cublas_sys;
use cudarc::driver::{CudaContext, CudaStream};

use super::memory::{OnDevice, Pinned};
use crate::rig::RigError;

/// Rows and columns of each factor: large enough to fill the largest devices, small enough that one takes
/// a few milliseconds on old ones.
const ORDER: usize = 4096;

/// Names under which cuBLAS is looked for, as cudarc does when it is first used.
const NAMES: [&str; 4] = ["libcublas.so", "libcublas.so.13", "libcublas.so.12", "libcublas.so.11"];

/// Factors, product and the library's handle.
#[derive(Debug)]
pub(super) struct Product {
    handle: cublas_sys::cublasHandle_t,
    stream: Arc<CudaStream>,
    number: cublas_sys::cudaDataType,
    a: OnDevice,
    b: OnDevice,
    c: OnDevice,
}

impl Product {
    pub(super) fn new(context: &Arc<CudaContext>, stream: &Arc<CudaStream>) -> Result<Product, RigError> {
        if !present() {
            return Err(RigError::Missing(
                "the library libcublas cannot be loaded: install it (CUDA toolkit, or the PyPI wheel nvidia-cublas) \
                 and put its folder on LD_LIBRARY_PATH"
                    .to_owned(),
            ));
        }
        let driver = |e: cudarc::driver::DriverError| RigError::Driver {
            what: "matrix products".to_owned(),
            message: e.to_string(),
        };
        let (major, _) = context.compute_capability().map_err(driver)?;
        let bytes = 2 * ORDER * ORDER;
        let matrix = || OnDevice::new(context, bytes).map_err(driver);
        let (a, b, c) = (matrix()?, matrix()?, matrix()?);
        // Random factors: products of zeros need less power and run at higher clocks.
        let mut numbers = Pinned::new(context, bytes).map_err(driver)?;
        for (seed, factor) in [(1, &a), (2, &b)] {
            numbers.fill(seed);
            factor.write(&tamed(numbers.bytes())).map_err(driver)?;
        }
        context.bind_to_thread().map_err(driver)?;
        let handle = cublas::create_handle().map_err(|e| failed(&e))?;
        let product = Product {
            handle,
            stream: Arc::clone(stream),
            // Tensor cores for bfloat16 came with compute capability 8.0.
            number: if major >= 8 {
                cublas_sys::cudaDataType::CUDA_R_16BF
            } else {
                cublas_sys::cudaDataType::CUDA_R_16F
            },
            a,
            b,
            c,
        };
        // SAFETY: the handle was just made, and `product` keeps the stream alive.
        unsafe { cublas::set_stream(handle, stream.cu_stream().cast()) }.map_err(|e| failed(&e))?;
        // The first one loads the library's kernels, which would wait for a gate that is shut.
        product.queue()?;
        stream.synchronize().map_err(driver)?;
        Ok(product)
    }

    /// What each is, in words.
    pub(super) fn words(&self) -> String {
        let number = if self.number == cublas_sys::cudaDataType::CUDA_R_16BF { "bf16" } else { "f16" };
        format!("{ORDER} x {ORDER} x {ORDER} in {number} through cuBLAS")
    }

    /// Queues one.
    pub(super) fn queue(&self) -> Result<(), RigError> {
        let n = ORDER as i32;
        let (one, zero) = (1.0_f32, 0.0_f32);
        self.stream
            .context()
            .bind_to_thread()
            .map_err(|e| RigError::Driver { what: "matrix products".to_owned(), message: e.to_string() })?;
        // SAFETY: the three matrices have ORDER x ORDER numbers of two bytes, the two scalars are f32 as the
        // compute type asks for and are read before the call returns, as the handle's pointers are host
        // pointers by default.
        unsafe {
            cublas::gemm_ex(
                self.handle,
                cublas_sys::cublasOperation_t::CUBLAS_OP_N,
                cublas_sys::cublasOperation_t::CUBLAS_OP_N,
                n,
                n,
                n,
                (&raw const one).cast::<c_void>(),
                self.a.start() as *const c_void,
                self.number,
                n,
                self.b.start() as *const c_void,
                self.number,
                n,
                (&raw const zero).cast::<c_void>(),
                self.c.start() as *mut c_void,
                self.number,
                n,
                cublas_sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
                cublas_sys::cublasGemmAlgo_t::CUBLAS_GEMM_DEFAULT,
            )
        }
        .map_err(|e| failed(&e))
    }
}

impl Drop for Product {
    fn drop(&mut self) {
        let context = self.stream.context();
        context.record_err(context.bind_to_thread().and_then(|()| self.stream.synchronize()));
        // SAFETY: made in `new`, destroyed once, and its stream has nothing left to do. Nothing can be done
        // about a failure here.
        let _ = unsafe { cublas::destroy_handle(self.handle) };
    }
}

fn failed(error: &CublasError) -> RigError {
    RigError::Missing(format!("libcublas reports {:?}", error.0))
}

fn present() -> bool {
    NAMES.iter().any(|name| {
        // SAFETY: loads and unloads cuBLAS by name; its initialisers are NVIDIA's own and the system's search
        // path says which file it is, as for any program that uses it.
        unsafe { libloading::Library::new(*name) }.is_ok()
    })
}

/// Random bytes as 16-bit numbers of either sign and of like size: from 2^-7 to 2^-3 where they are read as
/// bf16, from 1 to 1.5 as f16.
fn tamed(random: &[u8]) -> Vec<u8> {
    let word = |pair: &[u8]| {
        let bits = u16::from_le_bytes([pair[0], *pair.get(1).unwrap_or(&0)]);
        ((bits & 0x81ff) | 0x3c00).to_le_bytes()
    };
    random.chunks(2).flat_map(word).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_finite_and_of_like_size_in_both_formats() {
        let random: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        for pair in tamed(&random).chunks(2) {
            let bits = u16::from_le_bytes([pair[0], pair[1]]);
            let bf16 = half::bf16::from_bits(bits).to_f32().abs();
            assert!((2f32.powi(-7)..2f32.powi(-3)).contains(&bf16), "{bits:#x}: {bf16}");
            let f16 = half::f16::from_bits(bits).to_f32().abs();
            assert!((1.0..1.5).contains(&f16), "{bits:#x}: {f16}");
        }
    }
}
