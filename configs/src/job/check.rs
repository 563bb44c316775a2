//! What a job's fields may be, alone, together, and for a model.

use std::fmt::Display;

use super::{Count, Job, LayerSplit, NamedPlacement, Placement};
use crate::file::{self, Check, Invalid};
use crate::model::Model;

/// The most devices of a job; far above what a schedule can be found for in useful time.
pub(super) const MOST_DEVICES: usize = 1024;
/// The most chunks a device.
pub(super) const MOST_CHUNKS: usize = 64;
/// The most microbatches a step, sequences a microbatch, steps a measurement.
pub(super) const MOST: usize = 1 << 16;

pub(super) fn within<T: PartialOrd + Display>(field: &str, value: T, least: T, most: T) -> Result<(), Invalid> {
    if value >= least && value <= most {
        return Ok(());
    }
    Err(Invalid::new(field, format!("expected {least} to {most}, found {value}")))
}

impl Check for Job {
    fn check(&self) -> Result<(), Invalid> {
        file::check_version(self.version)?;
        if self.model.trim().is_empty() {
            return Err(Invalid::new("model", "expected a preset or the path of a config.json, found nothing"));
        }
        within("batch.sequence_length", self.batch.sequence_length, 1, 1 << 24)?;
        if let Count::Fixed(size) = self.batch.microbatch_size {
            within("batch.microbatch_size", size, 1, MOST)?;
        }
        within("batch.microbatches", self.batch.microbatches, 1, MOST)?;
        self.check_global_batch()?;
        within("pipeline.devices", self.pipeline.devices, 1, MOST_DEVICES)?;
        if let Count::Fixed(chunks) = self.pipeline.chunks {
            within("pipeline.chunks", chunks, 1, MOST_CHUNKS)?;
        }
        self.check_placement()?;
        if let LayerSplit::List(split) = &self.pipeline.layer_split {
            self.check_length("pipeline.layer_split", "numbers of blocks", split.len())?;
            self.check_no_empty_stage(split)?;
        }
        self.memory_limits()?;
        self.time_limit()?;
        self.check_run()?;
        if !(0.0..1.0).contains(&self.stop.tolerance) {
            return Err(Invalid::new(
                "stop.tolerance",
                format!("expected at least 0 and below 1 (0.01 is one percent), found {}", self.stop.tolerance),
            ));
        }
        within("stop.patience", self.stop.patience, 1, 1000)?;
        within("stop.max_rounds", self.stop.max_rounds, 1, 1000)
    }
}

impl Job {
    /// Whether the job fits a model: the split's sum, no more stages than layers, the sequence's length.
    pub fn check_model(&self, model: &Model) -> Result<(), Invalid> {
        if self.batch.sequence_length > model.max_positions {
            return Err(Invalid::new(
                "batch.sequence_length",
                format!(
                    "expected at most the {} positions of {}, found {}",
                    model.max_positions, model.name, self.batch.sequence_length
                ),
            ));
        }
        let (stages, layers) = (self.stages(), model.layers + 2);
        if stages > layers {
            let (devices, chunks) = (self.pipeline.devices, self.chunks());
            return Err(Invalid::new(
                "pipeline.devices",
                format!(
                    "expected at most {layers} stages, as {} has {layers} layers (embedding, {} blocks, head), found {devices} devices x {chunks} chunks = {stages}",
                    model.name, model.layers
                ),
            ));
        }
        if let Some(split) = self.layer_split() {
            let sum = split.iter().fold(0_usize, |sum, &blocks| sum.saturating_add(blocks));
            if sum != model.layers {
                return Err(Invalid::new(
                    "pipeline.layer_split",
                    format!("expected a sum of {}, the blocks of {}, found {sum}", model.layers, model.name),
                )
                .hint("embedding and head are not counted here: they come with the first and the last stage"));
            }
        }
        Ok(())
    }

    /// `global_batch` and `microbatch_size: auto` come together.
    fn check_global_batch(&self) -> Result<(), Invalid> {
        match (self.batch.microbatch_size, self.batch.global_batch) {
            (Count::Auto, Some(sequences)) => within("batch.global_batch", sequences, 1, MOST),
            (Count::Auto, None) => Err(Invalid::new(
                "batch.global_batch",
                "missing; with microbatch_size: auto it says how many sequences a step has",
            )),
            (Count::Fixed(_), Some(_)) => Err(Invalid::new(
                "batch.global_batch",
                "expected only with microbatch_size: auto; with a number a step has microbatch_size x microbatches \
                 sequences",
            )),
            (Count::Fixed(_), None) => Ok(()),
        }
    }

    fn check_placement(&self) -> Result<(), Invalid> {
        let devices = self.pipeline.devices;
        let needs = |placement: &str, expected: usize| match self.pipeline.chunks {
            Count::Fixed(chunks) if chunks != expected => Err(Invalid::new(
                "pipeline.chunks",
                format!("expected {expected} for placement {placement}, found {chunks}"),
            )),
            _ => Ok(()),
        };
        match &self.pipeline.placement {
            Placement::Named(NamedPlacement::Auto | NamedPlacement::Interleaved) => Ok(()),
            Placement::Named(NamedPlacement::Linear) => needs("linear", 1),
            Placement::Named(NamedPlacement::Vshape) => needs("vshape", 2),
            Placement::List(list) => {
                self.check_length("pipeline.placement", "devices", list.len())?;
                match list.iter().position(|&device| device >= devices) {
                    None => Ok(()),
                    Some(stage) => Err(Invalid::new(
                        format!("pipeline.placement[{stage}]"),
                        format!("expected a device from 0 to {}, found {}", devices - 1, list[stage]),
                    )),
                }
            }
        }
    }

    /// A list with one entry a stage.
    fn check_length(&self, field: &str, entries: &str, found: usize) -> Result<(), Invalid> {
        let Count::Fixed(chunks) = self.pipeline.chunks else {
            return Err(Invalid::new(
                "pipeline.chunks",
                format!("expected a number where {field} lists one entry a stage, found auto"),
            ));
        };
        let (stages, devices) = (self.stages(), self.pipeline.devices);
        if found == stages {
            return Ok(());
        }
        Err(Invalid::new(
            field,
            format!("expected {stages} {entries}, one a stage ({devices} devices x {chunks} chunks), found {found}"),
        ))
    }

    fn check_no_empty_stage(&self, split: &[usize]) -> Result<(), Invalid> {
        let inner = 1..split.len().saturating_sub(1);
        match inner.into_iter().find(|&stage| split[stage] == 0) {
            None => Ok(()),
            Some(stage) => Err(Invalid::new(
                format!("pipeline.layer_split[{stage}]"),
                "expected at least 1 block, found 0: only the first and the last stage have a layer besides",
            )),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::hardware::tests::hardware;

    fn job(yaml: &str) -> Job {
        file::parse(Path::new("job.yaml"), &format!("model: llama-15m\n{yaml}")).unwrap()
    }

    /// The field and message of the check of a job.
    fn refusal(yaml: &str) -> String {
        let invalid = job(yaml).check().unwrap_err();
        format!("{}: {}", invalid.field, invalid.message)
    }

    #[test]
    fn every_range_names_field_bounds_and_what_was_found() {
        for (yaml, message) in [
            ("version: 2", "version: expected 1, found 2"),
            ("batch: {sequence_length: 0}", "batch.sequence_length: expected 1 to 16777216, found 0"),
            ("batch: {microbatch_size: 0}", "batch.microbatch_size: expected 1 to 65536, found 0"),
            ("batch: {microbatches: 70000}", "batch.microbatches: expected 1 to 65536, found 70000"),
            ("pipeline: {devices: 0}", "pipeline.devices: expected 1 to 1024, found 0"),
            ("pipeline: {chunks: 65}", "pipeline.chunks: expected 1 to 64, found 65"),
            ("run: {steps: 0}", "run.steps: expected 1 to 65536, found 0"),
            (
                "batch: {microbatch_size: auto}",
                "batch.global_batch: missing; with microbatch_size: auto it says how many sequences a step has",
            ),
            ("batch: {microbatch_size: auto, global_batch: 0}", "batch.global_batch: expected 1 to 65536, found 0"),
            (
                "batch: {global_batch: 8}",
                "batch.global_batch: expected only with microbatch_size: auto; with a number a step has \
                 microbatch_size x microbatches sequences",
            ),
            (
                "pipeline: {chunks: auto, layer_split: [3, 3]}",
                "pipeline.chunks: expected a number where pipeline.layer_split lists one entry a stage, found auto",
            ),
            ("stop: {patience: 0}", "stop.patience: expected 1 to 1000, found 0"),
            ("stop: {max_rounds: 0}", "stop.max_rounds: expected 1 to 1000, found 0"),
            (
                "stop: {tolerance: .nan}",
                "stop.tolerance: expected at least 0 and below 1 (0.01 is one percent), found NaN",
            ),
            ("memory_limit: 0", "memory_limit: expected more than 0 bytes, found 0"),
            ("memory_limit: [1GiB]", "memory_limit: expected 2 sizes, one a device (pipeline.devices), found 1"),
            ("memory_limit: [1GiB, 0]", "memory_limit[1]: expected more than 0 bytes, found 0"),
        ] {
            assert_eq!(refusal(yaml), message);
        }
        assert!(
            refusal("solver: {time_limit: soon}").starts_with("solver.time_limit: expected a duration such as 10s")
        );
    }

    #[test]
    fn placements_fit_devices_and_chunks() {
        assert_eq!(job("pipeline: {devices: 3}").placement(), [0, 1, 2]);
        assert_eq!(job("pipeline: {devices: 2, chunks: 2}").placement(), [0, 1, 0, 1]);
        let vshape = job("pipeline: {devices: 3, chunks: 2, placement: vshape}");
        vshape.check().unwrap();
        assert_eq!(vshape.placement(), [0, 1, 2, 2, 1, 0]);
        let list = job("pipeline: {devices: 2, chunks: 2, placement: [1, 1, 0, 0]}");
        list.check().unwrap();
        assert_eq!(list.placement(), [1, 1, 0, 0]);
        assert_eq!(
            refusal("pipeline: {chunks: 2, placement: linear}"),
            "pipeline.chunks: expected 1 for placement linear, found 2"
        );
        assert_eq!(
            refusal("pipeline: {placement: vshape}"),
            "pipeline.chunks: expected 2 for placement vshape, found 1"
        );
        assert_eq!(
            refusal("pipeline: {placement: [0]}"),
            "pipeline.placement: expected 2 devices, one a stage (2 devices x 1 chunks), found 1"
        );
        assert_eq!(
            refusal("pipeline: {placement: [0, 2]}"),
            "pipeline.placement[1]: expected a device from 0 to 1, found 2"
        );
    }

    #[test]
    fn splits_fit_stages_and_model() {
        let model = Model::read("llama-15m", None).unwrap();
        let refusal_of = |yaml: &str| {
            let job = job(yaml);
            job.check().unwrap();
            job.check_model(&model).unwrap_err().message
        };
        job("pipeline: {layer_split: [6, 0]}").check_model(&model).unwrap();
        assert!(refusal("pipeline: {layer_split: [6]}").contains("expected 2 numbers of blocks"));
        assert!(
            refusal("pipeline: {devices: 3, layer_split: [3, 0, 3]}")
                .starts_with("pipeline.layer_split[1]: expected at least 1 block, found 0")
        );
        assert_eq!(
            refusal_of("pipeline: {layer_split: [2, 3]}"),
            "expected a sum of 6, the blocks of llama-15m, found 5"
        );
        assert!(refusal_of("pipeline: {devices: 5, chunks: 2}").contains("at most 8 stages"));
        assert!(refusal_of("batch: {sequence_length: 257}").contains("at most the 256 positions of llama-15m"));
    }

    #[test]
    fn capacity_is_the_limit_or_what_there_is() {
        let gib = 1_u64 << 30;
        let shared = hardware("cpu", &[8 * gib, 8 * gib]);
        let own = hardware("cuda", &[8 * gib, 4 * gib]);
        assert_eq!(job("").capacity_bytes(&shared).unwrap(), [4 * gib, 4 * gib]);
        assert_eq!(job("").capacity_bytes(&own).unwrap(), [7 * gib - 8 * gib / 50, 3 * gib]);
        assert_eq!(job("memory_limit: [1GiB, 2GiB]").capacity_bytes(&own).unwrap(), [gib, 2 * gib]);
        let refused = |yaml: &str, hardware| job(yaml).capacity_bytes(hardware).unwrap_err();
        assert_eq!(refused("memory_limit: [1GiB, 5GiB]", &own).field, "memory_limit[1]");
        assert_eq!(
            refused("memory_limit: 5GiB", &shared).message,
            "expected at most the 8.00 GiB that there are, found 10.0 GiB"
        );
        assert_eq!(refused("pipeline: {devices: 3}", &own).field, "pipeline.devices");
    }
}
