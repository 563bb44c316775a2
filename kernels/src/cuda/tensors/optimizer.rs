//! Gradients summed, and optimizer steps, in place.

use candle_core::cuda_backend::CudaStorageSlice;
use candle_core::{CudaStorage, DType, Layout, Result, Tensor, bail};
use cudarc::driver::{CudaSlice, CudaViewMut};

use super::{Place, View, held, window};
use crate::cuda::launch::Output;
use crate::cuda::ops::optimizer::{Accumulate, AdamW, AdamWStep, Sgd};

/// `sum += x` or, to `replace` it, `sum = x`: `sum` in f32, `x` in f32 or bf16, both contiguous.
///
/// # Errors
/// Other formats or lengths; what the driver reports.
pub fn accumulate(sum: (&mut CudaStorage, &Layout), x: (&CudaStorage, &Layout), replace: bool) -> Result<()> {
    let place = Place::of(&x.0.device)?;
    let (start, end) = window(sum.1)?;
    let mut to: CudaViewMut<'_, f32> = sum.0.as_cuda_slice_mut::<f32>()?.slice_mut(start..end);
    let (from, until) = window(x.1)?;
    let x = View::of(x.0, from, until)?;
    let (gradient, count) = (x.input(&place), end - start);
    let mut sum = Output::new(&mut to, &place.stream);
    place.run(Accumulate { sum: &mut sum, gradient: &gradient, count, replace }.launch())
}

/// f32 numbers that an optimizer keeps beside a parameter, on its device.
#[derive(Debug)]
pub struct OptimizerStates {
    master: Option<CudaSlice<f32>>,
    moments: Option<[CudaSlice<f32>; 2]>,
}

/// What an update goes by.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// Stochastic gradient descent at this learning rate.
    Sgd(f32),
    /// AdamW.
    AdamW(AdamWStep),
}

impl OptimizerStates {
    /// Of a parameter that fills its storage: master weights if it is narrower than f32, moments of 0 if asked
    /// for.
    ///
    /// # Errors
    /// Too little memory, and what else candle and the driver report.
    pub fn new(parameter: &Tensor, moments: bool) -> Result<Self> {
        let place = Place::of(parameter.device().as_cuda_device()?)?;
        let count = parameter.elem_count();
        let refused = candle_core::Error::wrap;
        let master = if parameter.dtype() == DType::F32 {
            None
        } else {
            let wide = parameter.flatten_all()?.to_dtype(DType::F32)?;
            let storage = held(&wide)?;
            let View::F32(view) = storage.view()? else { bail!("master weights are in f32") };
            Some(place.stream.clone_dtod(&view).map_err(refused)?)
        };
        let zeros = || place.stream.alloc_zeros::<f32>(count).map_err(refused);
        let moments = if moments { Some([zeros()?, zeros()?]) } else { None };
        Ok(OptimizerStates { master, moments })
    }

    /// How many numbers they are.
    pub fn numbers(&self) -> usize {
        let moments = self.moments.iter().flatten();
        self.master.iter().chain(moments).map(CudaSlice::len).sum()
    }

    /// Updates the weights in place by a gradient in f32.
    ///
    /// # Errors
    /// Other formats or lengths; what the driver reports.
    pub fn update(
        &mut self,
        weights: (&mut CudaStorage, &Layout),
        gradient: (&CudaStorage, &Layout),
        step: Step,
    ) -> Result<()> {
        let place = Place::of(&gradient.0.device)?;
        let (start, end) = window(weights.1)?;
        let (from, until) = window(gradient.1)?;
        let gradient = View::of(gradient.0, from, until)?;
        let (gradient, count) = (gradient.input(&place), end - start);
        let mut view;
        let mut narrow;
        let mut weights = match &mut weights.0.slice {
            CudaStorageSlice::F32(slice) => {
                view = slice.slice_mut(start..end);
                Output::new(&mut view, &place.stream)
            }
            CudaStorageSlice::BF16(slice) => {
                narrow = slice.slice_mut(start..end);
                Output::new(&mut narrow, &place.stream)
            }
            _ => bail!("weights in f32 or bf16 were expected"),
        };
        let mut master = self.master.as_mut().map(|master| Output::new(master, &place.stream));
        let mut moments =
            self.moments.as_mut().map(|moments| moments.each_mut().map(|x| Output::new(x, &place.stream)));
        let (master, moments) = (master.as_mut(), moments.as_mut());
        let (weights, gradient) = (&mut weights, &gradient);
        place.run(match (step, moments) {
            (Step::Sgd(learning_rate), _) => Sgd { weights, master, gradient, count, learning_rate }.launch(),
            (Step::AdamW(step), Some([first, second])) => {
                AdamW { weights, master, first, second, gradient, count, step }.launch()
            }
            (Step::AdamW(_), None) => bail!("AdamW needs moments"),
        })
    }
}
