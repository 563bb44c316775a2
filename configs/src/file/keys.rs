//! The keys at the top of a file, by which kinds of files are told apart.

use std::collections::BTreeSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

/// The keys at the top of a file. Values are passed over, not kept: a schedule may have a million ops, and aliases
/// may stand for more than fits into memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys(BTreeSet<String>);

impl Keys {
    /// Whether the file has a key.
    pub fn has(&self, key: &str) -> bool {
        self.0.contains(key)
    }
}

impl<'de> Deserialize<'de> for Keys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Top;
        impl<'de> Visitor<'de> for Top {
            type Value = Keys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a map")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Keys, A::Error> {
                let mut keys = BTreeSet::new();
                while let Some((key, IgnoredAny)) = map.next_entry()? {
                    keys.insert(key);
                }
                Ok(Keys(keys))
            }
        }
        deserializer.deserialize_map(Top)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::super::parse;
    use super::Keys;

    #[test]
    fn keys_are_those_at_the_top_whatever_is_below() {
        let laughs = "a: &a [x, x]\nb: &b [*a, *a]\nc: {d: *b, <<: {e: 1}}\n";
        let keys: Keys = parse(Path::new("a.yaml"), laughs).unwrap();
        assert!(keys.has("a") && keys.has("c") && !keys.has("d") && !keys.has("x"));
        let keys: Keys = parse(Path::new("a.json"), "{\"ops\": [[1], {\"b\": null}]}").unwrap();
        assert!(keys.has("ops") && !keys.has("b"));
    }

    #[test]
    fn what_has_no_keys_is_refused_in_words() {
        let refused = |text| parse::<Keys>(Path::new("a.yaml"), text).unwrap_err().message;
        assert_eq!(refused("- 1\n"), "expected keys and values, found a list");
        assert_eq!(refused("42\n"), "expected keys and values, found 42");
    }
}
