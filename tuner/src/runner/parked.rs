//! What one microbatch leaves at one stage between its ops, on the device or on the host.

use candle_core::{DType, Device, Shape, Tensor};
use optpipe_kernels::arena::HostTensors;
use optpipe_kernels::backend::Backend;
use optpipe_kernels::budget::Reservation;
use optpipe_kernels::copy::CopyError;
use optpipe_profiler::layer::{Saved, WeightContext, storage_id};

use super::stage::tensor_bytes;

/// What one op copied to the host.
struct OnHost {
    copy: HostTensors,
    /// For each of its tensors the saved ones that share it: layer of the stage, position among its saved tensors,
    /// shape there.
    places: Vec<Vec<(usize, usize, Shape)>>,
}

/// The tensors of one stage and microbatch. Its ops run one after another, so that whoever looks at it
/// is alone with it.
#[derive(Default)]
pub(super) struct Parked {
    /// From F to B, by layer; those on the host are empty tensors here.
    pub(super) saved: Vec<Saved>,
    /// From B to W, by layer.
    pub(super) context: Vec<WeightContext>,
    host: Option<OnHost>,
    /// What the problem says is held on the device.
    pub(super) reservation: Option<Reservation>,
    /// What the tensors do hold there.
    pub(super) bytes: u64,
}

impl Parked {
    /// What a forward leaves.
    pub(super) fn new(saved: Vec<Saved>, bytes: u64, reservation: Option<Reservation>) -> Parked {
        Parked { saved, context: Vec::new(), host: None, reservation, bytes }
    }

    /// Copies what may go to the host and drops it here; returns the bytes that this frees.
    ///
    /// Storage that several saved tensors share goes once, and only if all of them may.
    pub(super) fn offload(&mut self, backend: &dyn Backend) -> std::result::Result<u64, CopyError> {
        let mut tensors: Vec<(usize, usize, usize, bool)> = Vec::new();
        for (layer, saved) in self.saved.iter().enumerate() {
            for (k, tensor) in saved.0.iter().enumerate() {
                tensors.push((storage_id(&tensor.tensor), layer, k, tensor.offloadable));
            }
        }
        tensors.sort_unstable();
        let gone = Tensor::zeros(0, DType::U8, &Device::Cpu)?;
        let (mut going, mut places, mut freed) = (Vec::new(), Vec::new(), 0);
        for group in tensors.chunk_by(|a, b| a.0 == b.0) {
            let (_, layer, k, _) = group[0];
            let bytes = tensor_bytes(&self.saved[layer].0[k].tensor);
            if bytes == 0 || !group.iter().all(|member| member.3) {
                continue;
            }
            going.push(self.saved[layer].0[k].tensor.clone());
            let leave = |&(_, layer, k, _): &(usize, usize, usize, bool)| {
                let tensor = std::mem::replace(&mut self.saved[layer].0[k].tensor, gone.clone());
                (layer, k, tensor.shape().clone())
            };
            places.push(group.iter().map(leave).collect());
            freed += bytes;
        }
        // All at once: between two copies that are asked for one by one, the link would rest.
        self.host = Some(OnHost { copy: backend.offload(&going)?, places });
        self.bytes -= freed;
        Ok(freed)
    }

    /// Bytes on the host.
    pub(super) fn host_bytes(&self) -> u64 {
        self.host.as_ref().map_or(0, |x| x.copy.bytes())
    }

    /// Copies back what is on the host; the host's memory is free afterwards.
    pub(super) fn reload(&mut self, backend: &dyn Backend, device: usize) -> std::result::Result<(), CopyError> {
        let Some(OnHost { copy, places }) = self.host.take() else { return Ok(()) };
        let back = backend.reload(&copy, device)?;
        self.bytes += copy.bytes();
        for (tensor, places) in back.into_iter().zip(places) {
            for (layer, k, shape) in places {
                self.saved[layer].0[k].tensor = tensor.reshape(shape)?;
            }
        }
        Ok(())
    }
}
