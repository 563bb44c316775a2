//! The rotary position embedding (Su et al., RoFormer, 2021).

use super::ops::Angles;
use candle_core::{DType, Device, Result, Tensor, bail};
use optpipe_configs::model::RopeScaling;
use std::f64::consts::TAU;
use std::sync::{Mutex, PoisonError};

/// Angles by position, made once for the longest sequence seen.
#[derive(Debug)]
pub(crate) struct Rotary {
    frequencies: Vec<f64>,
    cache: Mutex<Option<(usize, Angles)>>,
}

impl Rotary {
    /// For heads of `width`, which must be even.
    pub(crate) fn new(width: usize, theta: f64, scaling: Option<RopeScaling>) -> Result<Self> {
        if !width.is_multiple_of(2) {
            bail!("a rotary embedding turns pairs: the width of a head is {width}, expected an even number");
        }
        let frequencies = (0..width / 2)
            .map(|i| theta.powf(-2.0 * i as f64 / width as f64))
            .map(|frequency| scaling.map_or(frequency, |scaling| stretched(frequency, scaling)))
            .collect();
        Ok(Self { frequencies, cache: Mutex::new(None) })
    }

    /// Of the positions `0..sequence`.
    pub(crate) fn angles(&self, sequence: usize, dtype: DType, device: &Device) -> Result<Angles> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((length, angles)) = &*cache
            && *length == sequence
            && angles.0.dtype() == dtype
            && angles.0.device().same_device(device)
        {
            return Ok(angles.clone());
        }
        let angles = (0..sequence).flat_map(|position| self.frequencies.iter().map(move |f| position as f64 * f));
        let (sin, cos): (Vec<f64>, Vec<f64>) = angles.map(f64::sin_cos).unzip();
        let table = |values| Tensor::from_vec(values, (sequence, self.frequencies.len()), device)?.to_dtype(dtype);
        let angles = (table(cos)?, table(sin)?);
        *cache = Some((sequence, angles.clone()));
        Ok(angles)
    }
}

/// A frequency stretched as in Llama 3.1; see [`RopeScaling`].
fn stretched(frequency: f64, scaling: RopeScaling) -> f64 {
    let turns = scaling.original_positions as f64 * frequency / TAU;
    if turns > scaling.high_frequency_factor {
        return frequency;
    }
    let slow = frequency / scaling.factor;
    if turns < scaling.low_frequency_factor {
        return slow;
    }
    let kept = (turns - scaling.low_frequency_factor) / (scaling.high_frequency_factor - scaling.low_frequency_factor);
    kept * frequency + (1.0 - kept) * slow
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn stretching_keeps_high_frequencies_and_divides_low_ones() {
        let scaling = RopeScaling {
            factor: 8.0,
            low_frequency_factor: 1.0,
            high_frequency_factor: 4.0,
            original_positions: 8192,
        };
        let plain = Rotary::new(128, 500_000.0, None).unwrap().frequencies;
        let stretched = Rotary::new(128, 500_000.0, Some(scaling)).unwrap().frequencies;
        // Values of transformers' `_compute_llama3_parameters` for Llama 3.1: the boundaries are at
        // wavelengths 2048 and 8192.
        let mut kinds = [0; 3];
        for (plain, stretched) in plain.iter().zip(&stretched) {
            let wavelength = TAU / plain;
            let expected = if wavelength < 2048.0 {
                kinds[0] += 1;
                *plain
            } else if wavelength > 8192.0 {
                kinds[1] += 1;
                plain / 8.0
            } else {
                kinds[2] += 1;
                let smooth = (8192.0 / wavelength - 1.0) / 3.0;
                (1.0 - smooth) * plain / 8.0 + smooth * plain
            };
            assert!((stretched - expected).abs() <= 1e-12 * expected, "{plain} {stretched} {expected}");
        }
        assert!(kinds.iter().all(|&count| count > 0), "{kinds:?}");
    }

    #[test]
    fn an_odd_width_is_refused() {
        assert!(Rotary::new(7, 10_000.0, None).is_err());
    }
}
