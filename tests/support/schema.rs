//! A small validator for the keywords of JSON Schema that `optpipe schema` writes. It panics on any other, so that
//! none is passed over.

use serde_json::Value;

use super::{optpipe, stderr};

/// The schema that `optpipe schema NAME` prints.
pub(crate) fn schema(name: &str) -> Value {
    let output = optpipe().args(["schema", name]).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("a schema is JSON")
}

/// Fails with all that is wrong with a value.
pub(crate) fn assert_fits(schema: &Value, value: &Value) {
    let found = complaints(schema, value);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

/// What is wrong with a value, each with its place.
pub(crate) fn complaints(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    Validator { root: schema }.check(schema, value, "$", &mut found);
    found
}

/// Keywords that say nothing about which values are right.
const REMARKS: [&str; 6] = ["$schema", "$defs", "title", "description", "format", "default"];

struct Validator<'a> {
    root: &'a Value,
}

impl Validator<'_> {
    fn check(&self, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
        let keywords = match schema {
            Value::Bool(true) => return,
            Value::Bool(false) => return found.push(format!("{at}: nothing may be here")),
            _ => schema.as_object().expect("a schema is an object"),
        };
        for (keyword, rule) in keywords.iter().filter(|(keyword, _)| !REMARKS.contains(&keyword.as_str())) {
            match keyword.as_str() {
                "$ref" => {
                    let pointer = rule.as_str().and_then(|text| text.strip_prefix('#')).expect("a reference within");
                    self.check(self.root.pointer(pointer).expect("a definition"), value, at, found);
                }
                "type" => {
                    let one = [rule.clone()];
                    let types = rule.as_array().map_or(one.as_slice(), Vec::as_slice);
                    if !types.iter().any(|name| is(name.as_str().expect("a name"), value)) {
                        found.push(format!("{at}: expected {rule}, found {value}"));
                    }
                }
                "enum" if !rule.as_array().expect("a list").contains(value) => {
                    found.push(format!("{at}: expected one of {rule}, found {value}"));
                }
                "const" if rule != value => found.push(format!("{at}: expected {rule}, found {value}")),
                "minimum" if value.as_f64() < rule.as_f64() => found.push(format!("{at}: {value} is below {rule}")),
                "maximum" if value.as_f64() > rule.as_f64() => found.push(format!("{at}: {value} is above {rule}")),
                "required" => {
                    let names = rule.as_array().expect("a list").iter().filter_map(Value::as_str);
                    let Some(object) = value.as_object() else { continue };
                    found.extend(
                        names.filter(|name| !object.contains_key(*name)).map(|name| format!("{at}: lacks {name}")),
                    );
                }
                "properties" | "additionalProperties" => {
                    let Some(object) = value.as_object() else { continue };
                    for (name, value) in object {
                        let own = schema["properties"].get(name);
                        let rule = if keyword == "properties" { own } else { own.is_none().then_some(rule) };
                        if let Some(rule) = rule {
                            self.check(rule, value, &format!("{at}.{name}"), found);
                        }
                    }
                }
                "items" | "prefixItems" => {
                    let Some(list) = value.as_array() else { continue };
                    let first = schema["prefixItems"].as_array().map_or(0, Vec::len);
                    for (i, value) in list.iter().enumerate() {
                        let rule = if keyword == "items" { (i >= first).then_some(rule) } else { rule.get(i) };
                        if let Some(rule) = rule {
                            self.check(rule, value, &format!("{at}[{i}]"), found);
                        }
                    }
                }
                "minItems" if value.as_array().is_some_and(|list| (list.len() as u64) < bound(rule)) => {
                    found.push(format!("{at}: fewer than {rule}"));
                }
                "maxItems" if value.as_array().is_some_and(|list| list.len() as u64 > bound(rule)) => {
                    found.push(format!("{at}: more than {rule}"));
                }
                "oneOf" | "anyOf" => {
                    let tried = rule.as_array().expect("a list").iter().map(|rule| {
                        let mut found = Vec::new();
                        self.check(rule, value, at, &mut found);
                        found
                    });
                    let tried: Vec<Vec<String>> = tried.collect();
                    let fit = tried.iter().filter(|found| found.is_empty()).count();
                    if fit == 0 || (keyword == "oneOf" && fit > 1) {
                        found.push(format!("{at}: {fit} of {keyword} fit: {tried:?}"));
                    }
                }
                "enum" | "const" | "minimum" | "maximum" | "minItems" | "maxItems" => {}
                other => panic!("{at}: the validator does not know {other}"),
            }
        }
    }
}

fn bound(rule: &Value) -> u64 {
    rule.as_u64().expect("a number of items")
}

fn is(name: &str, value: &Value) -> bool {
    match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("no type of JSON: {other}"),
    }
}
