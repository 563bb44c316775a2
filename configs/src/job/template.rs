//! The job file that a newcomer starts from: made from the types' own defaults and doc lines, so that
//! it cannot fall behind them.

use std::path::PathBuf;

use serde_json::Value;

use super::{Batch, Job, MemoryLimit, Run};
use crate::model::PRESETS;

/// Width of comments.
const WIDTH: usize = 100;

pub(super) fn template(model: &str) -> String {
    let schema = schemars::schema_for!(Job);
    let schema = schema.as_value();
    // The fields that are absent by default stand as comments, with these values as examples.
    let absent = ["memory_limit", "hardware", "profile", "global_batch", "nproc_per_node", "rdzv_endpoint", "launcher"];
    let job = Job {
        model: model.to_owned(),
        batch: Batch { global_batch: Some(8), ..Batch::default() },
        memory_limit: Some(MemoryLimit::All("512MiB".to_owned())),
        hardware: Some(PathBuf::from("hardware.yaml")),
        profile: Some(PathBuf::from("profile.yaml")),
        run: Run {
            nproc_per_node: Some(2),
            rdzv_endpoint: Some("node0:29500".to_owned()),
            launcher: Some("srun --nodes 2".to_owned()),
            ..Run::default()
        },
        ..Job::default()
    };
    // Types of words, numbers and lists of them: YAML can hold every one.
    let yaml = serde_yaml::to_string(&job).unwrap_or_default();
    let mut text = comment("", "A tuning job for `optpipe tune`. Fields left out have the values given here.");
    let mut path: Vec<&str> = Vec::new();
    for line in yaml.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        let key = line.trim_start().split(':').next().unwrap_or_default();
        path.truncate(indent.len() / 2);
        path.push(key);
        if indent.is_empty() {
            text.push('\n');
        }
        if let Some(field) = field(schema, &path) {
            text.push_str(&comment(indent, description(field)));
            if path == ["model"] {
                let names: Vec<&str> = PRESETS.iter().map(|(name, _)| *name).collect();
                text.push_str(&comment(indent, &format!("- presets: {}", names.join(", "))));
            }
            for (word, meaning) in choices(schema, field) {
                text.push_str(&comment(indent, &format!("- {word}: {meaning}")));
            }
        }
        let lead = if absent.contains(&key) { "# " } else { "" };
        text.push_str(&format!("{lead}{line}\n"));
    }
    text
}

/// A comment, wrapped; the lines of a list's item are set in.
fn comment(indent: &str, words: &str) -> String {
    let further = if words.starts_with("- ") { "  " } else { "" };
    let mut lines = vec![String::new()];
    for word in words.split_whitespace() {
        let line = lines.len() - 1;
        if !lines[line].is_empty() && indent.len() + 2 + lines[line].len() + 1 + word.len() > WIDTH {
            lines.push(format!("{further}{word}"));
        } else {
            let space = if lines[line].is_empty() { "" } else { " " };
            lines[line].push_str(space);
            lines[line].push_str(word);
        }
    }
    lines.iter().map(|line| format!("{indent}# {line}\n")).collect()
}

/// The schema of a field.
fn field<'a>(root: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(root, |schema, key| resolved(root, schema).get("properties")?.get(key))
}

/// What a schema's `$ref` refers to.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let target = schema.get("$ref").and_then(Value::as_str).and_then(|r| r.strip_prefix('#'));
    target.and_then(|pointer| root.pointer(pointer)).unwrap_or(schema)
}

fn description(schema: &Value) -> &str {
    schema.get("description").and_then(Value::as_str).unwrap_or_default()
}

/// The words that a field accepts, with their meanings, and its list form if it has one.
fn choices<'a>(root: &'a Value, schema: &'a Value) -> Vec<(&'a str, &'a str)> {
    let schema = resolved(root, schema);
    if let Some(word) = schema.get("const").and_then(Value::as_str) {
        return vec![(word, description(schema))];
    }
    if schema.get("type").and_then(Value::as_str) == Some("array") {
        return vec![("a list", description(schema))];
    }
    let alternatives = ["oneOf", "anyOf"].iter().filter_map(|key| schema.get(key)?.as_array());
    alternatives.flatten().flat_map(|alternative| choices(root, alternative)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::file;

    #[test]
    fn the_template_is_the_defaults() {
        let job: Job = file::parse(Path::new("job.yaml"), &template("gpt2")).unwrap();
        assert_eq!(job, Job { model: "gpt2".to_owned(), ..Job::default() });
    }

    #[test]
    fn every_field_stands_there_under_its_doc_line() {
        let text = template("gpt2");
        let schema = schemars::schema_for!(Job);
        let mut fields = 0;
        let mut visit = |properties: &Value| {
            for (name, field) in properties.as_object().unwrap() {
                fields += 1;
                let words = description(field).split_whitespace().take(5).collect::<Vec<_>>().join(" ");
                let documented = text.find(&format!("# {words}")).unwrap_or_else(|| panic!("no doc line of {name}"));
                assert!(text[documented..].contains(&format!("{name}:")), "{name}");
            }
        };
        visit(&schema.as_value()["properties"]);
        for group in ["Batch", "Pipeline", "Solver", "Run", "Stop"] {
            visit(&schema.as_value()["$defs"][group]["properties"]);
        }
        let keys = text.lines().filter(|l| l.contains(": ") && !l.contains("# ")).count();
        let groups = text.lines().filter(|l| l.ends_with(':')).count();
        assert_eq!(fields, keys + groups + 7, "seven fields are comments");
    }
}
