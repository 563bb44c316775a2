//! Profiles by microbatch size: measured, or scaled from a measured one.

use std::collections::BTreeMap;

use optpipe_configs::profile::{Profile, Sample};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Where the layer times of a microbatch size come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Times {
    /// Measured with this size.
    Measured,
    /// Times and bytes of this other size in proportion. Larger microbatches usually take less than that.
    ScaledFrom(usize),
}

/// The profiles of a model.
#[derive(Debug, Clone, Default)]
pub struct Profiles {
    measured: BTreeMap<usize, Profile>,
}

impl Profiles {
    /// Adds a measured profile.
    ///
    /// # Errors
    /// Bad input if there is one of its microbatch size.
    pub fn add(&mut self, profile: Profile) -> Result<()> {
        let size = profile.microbatch_size;
        match self.measured.insert(size, profile) {
            None => Ok(()),
            Some(_) => Err(Error::input(format!("two profiles with microbatch_size {size}"))),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.measured.is_empty()
    }

    /// The measured profile of a size.
    pub fn measured(&self, size: usize) -> Option<&Profile> {
        self.measured.get(&size)
    }

    /// The profile of a size: measured, or in proportion to the measured size that is nearest by ratio,
    /// the smaller of two.
    ///
    /// # Errors
    /// Bad input if there is no profile at all.
    pub fn get(&self, size: usize) -> Result<(Profile, Times)> {
        if let Some(profile) = self.measured.get(&size) {
            return Ok((profile.clone(), Times::Measured));
        }
        let ratio = |other: usize| (other.max(size) as f64) / (other.min(size).max(1) as f64);
        let nearest = self.measured.iter().min_by(|a, b| ratio(*a.0).total_cmp(&ratio(*b.0)));
        let (&from, profile) = nearest.ok_or_else(|| Error::input("expected at least one profile, found none"))?;
        Ok((scaled(profile, size), Times::ScaledFrom(from)))
    }
}

/// A profile as if times and bytes grew with the microbatch size.
fn scaled(profile: &Profile, size: usize) -> Profile {
    let scale = |x: u64| {
        let scaled = u128::from(x) * size as u128 / profile.microbatch_size.max(1) as u128;
        u64::try_from(scaled).unwrap_or(u64::MAX)
    };
    let sample = |sample: &mut Sample| {
        for ns in [&mut sample.median_ns, &mut sample.mad_ns, &mut sample.p05_ns, &mut sample.p95_ns] {
            *ns = scale(*ns);
        }
    };
    let mut scaled = Profile { microbatch_size: size, ..profile.clone() };
    for layer in &mut scaled.layers {
        sample(&mut layer.forward);
        sample(&mut layer.backward_input);
        sample(&mut layer.backward_weight);
        let b = &mut layer.bytes;
        for bytes in [&mut b.activation, &mut b.weight_context, &mut b.offloadable, &mut b.output, &mut b.workspace] {
            *bytes = scale(*bytes);
        }
    }
    scaled
}
