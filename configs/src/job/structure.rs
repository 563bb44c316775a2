//! What a job may leave open: fields that say `auto` are chosen by the structure search.

use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

use super::{Job, LayerSplit, NamedPlacement, Placement};
use crate::file::Invalid;

/// A number, or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Count {
    /// Chosen by the structure search.
    Auto,
    /// This many.
    Fixed(usize),
}

impl Count {
    /// The number; `None` for `auto`.
    pub fn number(self) -> Option<usize> {
        match self {
            Count::Auto => None,
            Count::Fixed(number) => Some(number),
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Count::Auto => f.write_str("auto"),
            Count::Fixed(number) => number.fmt(f),
        }
    }
}

impl Serialize for Count {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Count::Auto => serializer.serialize_str("auto"),
            Count::Fixed(number) => number.serialize(serializer),
        }
    }
}

struct CountVisitor;

impl Visitor<'_> for CountVisitor {
    type Value = Count;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auto or a whole number, 1 or more")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Count, E> {
        if word == "auto" { Ok(Count::Auto) } else { Err(E::invalid_value(serde::de::Unexpected::Str(word), &self)) }
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Count, E> {
        // Beyond what a usize holds is beyond every range that is checked later, too.
        Ok(Count::Fixed(usize::try_from(number).unwrap_or(usize::MAX)))
    }
}

impl<'de> Deserialize<'de> for Count {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CountVisitor)
    }
}

fn count_schema(most: usize) -> Schema {
    json_schema!({ "anyOf": [
        { "const": "auto", "description": "Chosen by the structure search." },
        { "type": "integer", "minimum": 1, "maximum": most },
    ] })
}

pub(super) fn chunks_schema(_: &mut SchemaGenerator) -> Schema {
    count_schema(super::check::MOST_CHUNKS)
}

pub(super) fn size_schema(_: &mut SchemaGenerator) -> Schema {
    count_schema(super::check::MOST)
}

/// Everything that a job may leave open, decided.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Structure {
    /// Chunks a device (V).
    pub chunks: usize,
    /// The placement's name; absent where the job lists the devices itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement: Option<NamedPlacement>,
    /// Sequences a microbatch.
    pub microbatch_size: usize,
    /// Microbatches a step.
    pub microbatches: usize,
    /// Transformer blocks of each stage.
    pub layer_split: Vec<usize>,
}

/// The search looks at up to this many chunks a device: more make stages of single blocks, whose sends
/// and launches are no longer small beside their compute.
const MOST_SEARCHED_CHUNKS: usize = 8;

impl Job {
    /// The fields that only the structure search can decide. (`placement` and `layer_split` have a
    /// default choice, too: interleaved, and balanced over times.)
    pub fn undecided(&self) -> Vec<&'static str> {
        let mut fields = Vec::new();
        if self.batch.microbatch_size == Count::Auto {
            fields.push("batch.microbatch_size");
        }
        if self.pipeline.chunks == Count::Auto {
            fields.push("pipeline.chunks");
        }
        fields
    }

    /// Refuses a job with [`Job::undecided`] fields.
    pub fn decided(&self) -> Result<(), Invalid> {
        match self.undecided().first() {
            None => Ok(()),
            Some(field) => Err(Invalid::new(*field, "expected a number, found auto").hint(
                "`optpipe search` and `optpipe tune` choose it; `optpipe search JOB --job-out FILE` writes a job with \
                 the choice",
            )),
        }
    }

    /// Chunks a device; 1 where undecided.
    pub fn chunks(&self) -> usize {
        self.pipeline.chunks.number().unwrap_or(1)
    }

    /// Sequences a microbatch; 1 where undecided.
    pub fn microbatch_size(&self) -> usize {
        self.batch.microbatch_size.number().unwrap_or(1)
    }

    /// Sequences a step.
    pub fn global_batch(&self) -> usize {
        match (self.batch.microbatch_size, self.batch.global_batch) {
            (Count::Auto, Some(sequences)) => sequences,
            _ => self.microbatch_size().saturating_mul(self.batch.microbatches),
        }
    }

    /// The microbatch sizes to look at, ascending: the job's, or for `auto` every divisor of the global
    /// batch that leaves at least one microbatch a device (with fewer, every device would idle for more
    /// than half of the step), and 1.
    pub fn microbatch_sizes(&self) -> Vec<usize> {
        match self.batch.microbatch_size {
            Count::Fixed(size) => vec![size],
            Count::Auto => {
                let sequences = self.global_batch();
                let fills = |size: usize| size == 1 || sequences / size >= self.pipeline.devices;
                (1..=sequences).filter(|size| sequences.is_multiple_of(*size) && fills(*size)).collect()
            }
        }
    }

    /// Chunks and placements to look at for a model of so many layers (embedding and head counted).
    pub fn layouts(&self, layers: usize) -> Vec<(usize, Placement)> {
        use NamedPlacement::{Auto, Interleaved, Linear, Vshape};
        let most = (layers / self.pipeline.devices.max(1)).clamp(1, MOST_SEARCHED_CHUNKS);
        let chunks = match self.pipeline.chunks {
            Count::Fixed(chunks) => chunks..=chunks,
            Count::Auto => 1..=most,
        };
        let mut layouts = Vec::new();
        for chunks in chunks {
            let named = |name: NamedPlacement| (chunks, Placement::Named(name));
            match &self.pipeline.placement {
                Placement::Named(Auto) if chunks == 1 => layouts.push(named(Linear)),
                Placement::Named(Auto) if chunks == 2 => layouts.extend([named(Interleaved), named(Vshape)]),
                Placement::Named(Auto) => layouts.push(named(Interleaved)),
                Placement::Named(Linear) if chunks != 1 => {}
                Placement::Named(Vshape) if chunks != 2 => {}
                given => layouts.push((chunks, given.clone())),
            }
        }
        layouts
    }

    /// This job with everything decided.
    #[must_use]
    pub fn with_structure(&self, structure: &Structure) -> Job {
        let mut job = self.clone();
        job.batch.microbatch_size = Count::Fixed(structure.microbatch_size);
        job.batch.microbatches = structure.microbatches;
        job.batch.global_batch = None;
        job.pipeline.chunks = Count::Fixed(structure.chunks);
        if let Some(name) = structure.placement {
            job.pipeline.placement = Placement::Named(name);
        }
        job.pipeline.layer_split = LayerSplit::List(structure.layer_split.clone());
        job
    }
}

impl NamedPlacement {
    /// The word in files.
    pub fn name(self) -> &'static str {
        match self {
            NamedPlacement::Auto => "auto",
            NamedPlacement::Linear => "linear",
            NamedPlacement::Interleaved => "interleaved",
            NamedPlacement::Vshape => "vshape",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::file::{self, Check};

    fn job(yaml: &str) -> Job {
        let job: Job = file::parse(Path::new("job.yaml"), &format!("model: llama-15m\n{yaml}")).unwrap();
        job.check().unwrap();
        job
    }

    #[test]
    fn auto_opens_what_it_stands_for_and_nothing_else() {
        assert!(job("").undecided().is_empty());
        assert_eq!(job("").layouts(8), [(1, Placement::Named(NamedPlacement::Linear))]);
        let open = job("batch: {microbatch_size: auto, global_batch: 12}\npipeline: {chunks: auto}\n");
        assert_eq!(open.undecided(), ["batch.microbatch_size", "pipeline.chunks"]);
        assert_eq!(open.decided().unwrap_err().field, "batch.microbatch_size");
        assert_eq!(open.microbatch_sizes(), [1, 2, 3, 4, 6]);
        let names: Vec<_> = open
            .layouts(8)
            .into_iter()
            .map(|(chunks, placement)| match placement {
                Placement::Named(name) => (chunks, name.name()),
                Placement::List(_) => (chunks, "list"),
            })
            .collect();
        let expected = [(1, "linear"), (2, "interleaved"), (2, "vshape"), (3, "interleaved"), (4, "interleaved")];
        assert_eq!(names, expected);
        assert_eq!(job("pipeline: {chunks: auto, placement: vshape}").layouts(8).len(), 1);
    }

    #[test]
    fn a_structure_decides_everything() {
        let open = job("batch: {microbatch_size: auto, global_batch: 12}\npipeline: {chunks: auto}\n");
        let structure = Structure {
            chunks: 2,
            placement: Some(NamedPlacement::Vshape),
            microbatch_size: 3,
            microbatches: 4,
            layer_split: vec![1, 2, 2, 1],
        };
        let decided = open.with_structure(&structure);
        decided.check().unwrap();
        decided.decided().unwrap();
        assert_eq!((decided.global_batch(), decided.placement()), (12, vec![0, 1, 1, 0]));
        // What it is written as reads back.
        let text = serde_yaml::to_string(&decided).unwrap();
        assert_eq!(file::parse::<Job>(Path::new("job.yaml"), &text).unwrap(), decided);
        assert!(serde_yaml::to_string(&open).unwrap().contains("microbatch_size: auto"));
    }
}
