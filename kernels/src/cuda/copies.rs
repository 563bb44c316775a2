//! Copies of candle's tensors: to the host, back, and from one device to another.

use candle_core::op::BackpropOp;
use candle_core::{CudaStorage, DType, Shape, Storage, Tensor};
use cudarc::driver::sys::{self, CUresult};
use cudarc::driver::{
    CudaSlice, CudaStream, CudaView, DevicePtr, DevicePtrMut, DeviceSlice, DriverError, SyncOnDrop, result,
};
use half::bf16;

use super::backend::Place;
use super::tensors::Number;
use crate::arena::HostTensors;
use crate::copy::CopyError;

fn refused(error: DriverError) -> CopyError {
    CopyError::Driver(error.to_string())
}

/// Calls a function for the numbers of a format.
macro_rules! by_format {
    ($dtype:expr, $function:ident($($argument:expr),*)) => {
        match $dtype {
            DType::U8 => $function::<u8>($($argument),*),
            DType::U32 => $function::<u32>($($argument),*),
            DType::I64 => $function::<i64>($($argument),*),
            DType::BF16 => $function::<bf16>($($argument),*),
            DType::F32 => $function::<f32>($($argument),*),
            DType::F64 => $function::<f64>($($argument),*),
            other => Err(CopyError::Dtype(other)),
        }
    };
}

/// Copies tensors of a device to the host and waits for all of them together.
pub(super) fn out(place: &Place, tensors: &[Tensor]) -> Result<HostTensors, CopyError> {
    let stray = tensors.iter().find(|tensor| !tensor.device().same_device(&place.device));
    if let Some(stray) = stray {
        return Err(CopyError::NotOnDevice(stray.device().location()));
    }
    // What is no rows becomes rows in memory that has to live until it is copied.
    let rows = tensors.iter().map(Tensor::contiguous).collect::<candle_core::Result<Vec<_>>>()?;
    let mut host = HostTensors::like(&rows, &place.host)?;
    let queued = rows.iter().enumerate().try_for_each(|(index, tensor)| {
        let to = host.values_mut(index);
        by_format!(tensor.dtype(), queue_out(place, tensor, to))
    });
    // Whatever happened: nobody else may get host memory that copies still write to.
    let done = place.offload.synchronize().map_err(refused);
    queued.and(done).map(|()| host)
}

fn queue_out<T: Number>(place: &Place, tensor: &Tensor, to: &mut [u8]) -> Result<(), CopyError> {
    with_view(tensor, |from: &CudaView<'_, T>| {
        wait_until_written(from, &place.offload).map_err(refused)?;
        place.offload.memcpy_dtoh(from, T::of_bytes_mut(to)).map_err(refused)
    })
}

/// Copies tensors from the host into new memory of a device and waits for all of them together.
pub(super) fn back(place: &Place, host: &HostTensors) -> Result<Vec<Tensor>, CopyError> {
    let mut arriving: Vec<CudaSlice<u8>> = Vec::new();
    let queued = host.parts().try_for_each(|(_, values)| {
        arriving.push(queue_back(place, values)?);
        Ok(())
    });
    // Whatever happened: nobody else may get host memory that copies still read.
    let done = place.reload.synchronize().map_err(refused);
    queued.and(done)?;
    let finish = |(slice, (part, values)): (CudaSlice<u8>, (&crate::arena::Part, &[u8]))| {
        by_format!(part.dtype, handed_over(place, slice, values.len(), &part.shape))
    };
    arriving.into_iter().zip(host.parts()).map(finish).collect()
}

fn queue_back(place: &Place, values: &[u8]) -> Result<CudaSlice<u8>, CopyError> {
    // SAFETY: every byte that is used is written by the copy below, on the same stream.
    let ask = || unsafe { place.reload.alloc::<u8>(values.len().max(1)) };
    let mut slice = match ask() {
        // Memory that the compute stream is still to free is not offered to other streams.
        Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
            place.candle.cuda_stream().synchronize().map_err(refused)?;
            ask().map_err(refused)?
        }
        other => other.map_err(refused)?,
    };
    if !values.is_empty() {
        place.reload.memcpy_htod(values, &mut slice).map_err(refused)?;
    }
    Ok(slice)
}

/// Memory that has arrived, as a tensor of the compute stream, which will free it: the stream of reloads would
/// have to wait for what computes with it first.
fn handed_over<T: Number>(
    place: &Place,
    slice: CudaSlice<u8>,
    bytes: usize,
    shape: &Shape,
) -> Result<Tensor, CopyError> {
    let stream = place.candle.cuda_stream();
    // Its events cannot be made in a context that has failed.
    stream.context().bind_to_thread().map_err(refused)?;
    let address = slice.leak();
    // SAFETY: the address was just given up, and holds as many numbers, all written: the host has waited.
    let slice = unsafe { stream.upgrade_device_ptr::<T>(address, bytes / size_of::<T>()) };
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, place.candle.clone()));
    Ok(Tensor::from_storage(storage, shape.clone(), BackpropOp::none(), false))
}

/// A copy of a tensor on another device. Waits for it: the caller may drop the tensor, whose memory is freed in
/// the order of another GPU's stream, which knows nothing of copies that this one makes.
pub(super) fn across(source: &Place, target: &Place, tensor: &Tensor) -> candle_core::Result<Tensor> {
    let rows = tensor.contiguous()?;
    let sent = by_format!(rows.dtype(), send(source, target, &rows));
    let done = target.candle.cuda_stream().synchronize().map_err(refused);
    sent.and_then(|sent| done.map(|()| sent)).map_err(|e| match e {
        CopyError::Tensor(e) => e,
        other => candle_core::Error::wrap(other),
    })
}

fn send<T: Number>(source: &Place, target: &Place, tensor: &Tensor) -> Result<Tensor, CopyError> {
    let stream = target.candle.cuda_stream();
    let (here, there) = (source.context(), target.context());
    let slice = with_view(tensor, |from: &CudaView<'_, T>| {
        // SAFETY: every number is written by the copy below, on the same stream.
        let mut to = unsafe { stream.alloc::<T>(from.len().max(1)) }.map_err(refused)?;
        let from_address = wait_until_written(from, &stream).map_err(refused)?;
        let (to_address, written) = to.device_ptr_mut(&stream);
        let bytes = from.num_bytes();
        // SAFETY: both addresses are valid for as many bytes: the tensor outlives the copy, which the caller waits
        // for, and so does `to`.
        let queued = unsafe {
            if here == there {
                result::memcpy_dtod_async(to_address, from_address, bytes, stream.cu_stream())
            } else {
                let (to_context, from_context) = (there.cu_ctx(), here.cu_ctx());
                result::memcpy_peer_async(to_context, to_address, from_context, from_address, bytes, stream.cu_stream())
            }
        };
        drop(written);
        queued.map_err(refused).map(|()| to)
    })?;
    let storage = Storage::Cuda(CudaStorage::wrap_cuda_slice(slice, target.candle.clone()));
    Ok(Tensor::from_storage(storage, tensor.shape().clone(), BackpropOp::none(), false))
}

/// What a contiguous tensor shows of its memory.
fn with_view<T: Number, R>(
    tensor: &Tensor,
    what: impl FnOnce(&CudaView<'_, T>) -> Result<R, CopyError>,
) -> Result<R, CopyError> {
    let (storage, layout) = tensor.storage_and_layout();
    let Storage::Cuda(storage) = &*storage else { return Err(CopyError::NotOnDevice(tensor.device().location())) };
    let Some((start, end)) = layout.contiguous_offsets() else {
        return Err(candle_core::Error::msg("a contiguous tensor was expected").into());
    };
    what(&storage.as_cuda_slice::<T>()?.slice(start..end))
}

/// Makes a stream, which may be another GPU's, wait until memory has been written; returns its address. Nothing
/// else that is queued on the stream that wrote it is waited for.
///
/// candle gives its kernels what they write as something that they read, so that cudarc's event of writes alone does
/// not tell: the event of reads has to have come, too.
fn wait_until_written<T>(memory: &CudaView<'_, T>, stream: &CudaStream) -> Result<sys::CUdeviceptr, DriverError> {
    let (address, guard) = memory.device_ptr(stream);
    if let SyncOnDrop::Record(Some((read, _))) = &guard {
        stream.wait(read)?;
    }
    // Dropped, it would note a read on a stream of another context, which is an error.
    std::mem::forget(guard);
    Ok(address)
}
