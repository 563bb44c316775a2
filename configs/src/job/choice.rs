//! Reading fields that are a word or a list. (Serde's untagged enums say only that nothing matched;
//! these say what was expected.)

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor, value};

use super::{LayerSplit, MemoryLimit, NamedPlacement, NamedSplit, Placement};
use crate::size::{self, NotASize};

struct PlacementVisitor;

impl<'de> Visitor<'de> for PlacementVisitor {
    type Value = Placement;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auto, linear, interleaved, vshape or a list with the device of each stage")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<Placement, E> {
        NamedPlacement::deserialize(value::StrDeserializer::<value::Error>::new(word))
            .map(Placement::Named)
            .map_err(|_| E::invalid_value(Unexpected::Str(word), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Placement, A::Error> {
        Vec::deserialize(value::SeqAccessDeserializer::new(seq)).map(Placement::List)
    }
}

impl<'de> Deserialize<'de> for Placement {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(PlacementVisitor)
    }
}

struct LayerSplitVisitor;

impl<'de> Visitor<'de> for LayerSplitVisitor {
    type Value = LayerSplit;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("auto or a list with the blocks of each stage")
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<LayerSplit, E> {
        NamedSplit::deserialize(value::StrDeserializer::<value::Error>::new(word))
            .map(LayerSplit::Named)
            .map_err(|_| E::invalid_value(Unexpected::Str(word), &self))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<LayerSplit, A::Error> {
        Vec::deserialize(value::SeqAccessDeserializer::new(seq)).map(LayerSplit::List)
    }
}

impl<'de> Deserialize<'de> for LayerSplit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(LayerSplitVisitor)
    }
}

/// A size, written with a unit or as a plain number of bytes.
struct Size(String);

struct SizeVisitor;

impl Visitor<'_> for SizeVisitor {
    type Value = Size;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as 512MiB")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
        size::parse_bytes(text).map_err(|e: NotASize| E::custom(e))?;
        Ok(Size(text.to_owned()))
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<Size, E> {
        self.visit_str(&bytes.to_string())
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SizeVisitor)
    }
}

struct MemoryLimitVisitor;

impl<'de> Visitor<'de> for MemoryLimitVisitor {
    type Value = MemoryLimit;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size such as 512MiB or a list of sizes, one a device")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<MemoryLimit, E> {
        SizeVisitor.visit_str(text).map(|Size(text)| MemoryLimit::All(text))
    }

    fn visit_u64<E: Error>(self, bytes: u64) -> Result<MemoryLimit, E> {
        self.visit_str(&bytes.to_string())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<MemoryLimit, A::Error> {
        let sizes = Vec::<Size>::deserialize(value::SeqAccessDeserializer::new(seq))?;
        Ok(MemoryLimit::Each(sizes.into_iter().map(|Size(text)| text).collect()))
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(MemoryLimitVisitor)
    }
}
