//! Where a field stands in a file's text.
//!
//! The text goes through the file format's own parser once more, into a visitor that walks down the
//! field's path and fails on reaching it: the parser then says where it was.

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// One step of a field's path: a key or an index.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    Key(String),
    Index(usize),
}

/// `time_ns.forward[3]` as steps.
fn steps(field: &str) -> Vec<Step> {
    let mut steps = Vec::new();
    for part in field.split('.') {
        let (key, indices) = part.find('[').map_or((part, ""), |at| part.split_at(at));
        if !key.is_empty() {
            steps.push(Step::Key(key.to_owned()));
        }
        let numbers = indices.split(['[', ']']).filter(|s| !s.is_empty());
        steps.extend(numbers.filter_map(|s| s.parse().ok()).map(Step::Index));
    }
    steps
}

/// Line and column of a field in YAML, or of the nearest field around it that is there.
pub(super) fn yaml(text: &str, field: &str) -> Option<(usize, Option<usize>)> {
    nearest(field, |steps| {
        let error = Find(steps).deserialize(serde_yaml::Deserializer::from_str(text)).err()?;
        if !error.to_string().contains(FOUND) {
            return None;
        }
        error.location().map(|at| (at.line(), Some(at.column())))
    })
}

/// Line of a field in JSON, or of the nearest field around it that is there. (The parser's column is
/// the end of the key, no help to a reader.)
pub(super) fn json(text: &str, field: &str) -> Option<(usize, Option<usize>)> {
    nearest(field, |steps| {
        let error = Find(steps).deserialize(&mut serde_json::Deserializer::from_str(text)).err()?;
        error.to_string().contains(FOUND).then(|| (error.line(), None))
    })
}

fn nearest<T>(field: &str, find: impl Fn(&[Step]) -> Option<T>) -> Option<T> {
    let steps = steps(field);
    (1..=steps.len()).rev().find_map(|n| find(&steps[..n]))
}

/// The message of the error that means success.
const FOUND: &str = "the field is here";

/// Fails with [`FOUND`] where the path ends; succeeds if the path is not in the text.
struct Find<'a>(&'a [Step]);

impl<'de> DeserializeSeed<'de> for Find<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Find<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(key), rest)) = self.0.split_first() else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        while let Some(matches) = map.next_key_seed(IsKey { key, last: rest.is_empty() })? {
            if matches {
                map.next_value_seed(Find(rest))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let Some((Step::Index(index), rest)) = self.0.split_first() else {
            while seq.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        for _ in 0..*index {
            if seq.next_element::<IgnoredAny>()?.is_none() {
                return Ok(());
            }
        }
        if rest.is_empty() {
            seq.next_element_seed(Here)?;
        } else {
            seq.next_element_seed(Find(rest))?;
        }
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    // A scalar where the path goes on: not found.
    fn visit_bool<E: Error>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Reads a key: whether it is the one sought; fails with [`FOUND`] if the path ends here.
struct IsKey<'a> {
    key: &'a str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for IsKey<'_> {
    type Value = bool;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<bool, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for IsKey<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, found: &str) -> Result<bool, E> {
        match found == self.key {
            true if self.last => Err(E::custom(FOUND)),
            matches => Ok(matches),
        }
    }
}

/// Fails with [`FOUND`] on any value.
struct Here;

impl<'de> DeserializeSeed<'de> for Here {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Here {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FOUND)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const YAML: &str = "a: 1\nb:\n  # why\n  c: [1, 2]\n  d:\n    - 5\n    - e: x\nlast: ~\n";

    #[test]
    fn yaml_fields_are_found_with_line_and_column() {
        assert_eq!(yaml(YAML, "a"), Some((1, Some(1))));
        assert_eq!(yaml(YAML, "b.c"), Some((4, Some(3))));
        assert_eq!(yaml(YAML, "b.c[1]"), Some((4, Some(10))));
        assert_eq!(yaml(YAML, "b.d[0]"), Some((6, Some(7))));
        assert_eq!(yaml(YAML, "b.d[1].e"), Some((7, Some(7))));
        assert_eq!(yaml(YAML, "last"), Some((8, Some(1))));
    }

    #[test]
    fn an_absent_field_is_at_the_nearest_one_around_it() {
        assert_eq!(yaml(YAML, "b.nothing"), Some((2, Some(1))));
        assert_eq!(yaml(YAML, "b.c[9]"), Some((4, Some(3))));
        assert_eq!(yaml(YAML, "a.x.y"), Some((1, Some(1))));
        assert_eq!(yaml(YAML, "nothing"), None);
    }

    #[test]
    fn json_fields_are_found_with_their_line() {
        let text = "{\n  \"a\": {\"x\": 1,\n    \"b\": [1,\n 2]},\n  \"c\": null\n}";
        assert_eq!(json(text, "a"), Some((2, None)));
        assert_eq!(json(text, "a.b"), Some((3, None)));
        assert_eq!(json(text, "a.b[1]"), Some((4, None)));
        assert_eq!(json(text, "c"), Some((5, None)));
        assert_eq!(json(text, "d"), None);
    }
}
