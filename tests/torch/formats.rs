//! What `optpipe export` writes for trainers that take less, and for readers of one's own.

use std::path::Path;
use std::process::Command;

use optpipe_solver::schedule::ScheduleFile;
use serde_json::Value;

use super::support::{optpipe, stderr, stdout};
use super::{Cases, MICROBATCHES, problem, python, reversed};

fn export_text(problem: &Path, schedule: &Path, format: &str, more: &[&str]) -> Result<String, String> {
    let output = optpipe().arg("export").arg(problem).arg(schedule).args(["--to", format]).args(more).output();
    let output = output.expect("runs");
    if output.status.success() { Ok(stdout(&output)) } else { Err(stderr(&output)) }
}

#[test]
fn deepspeed_ranks_do_not_wait_for_each_other_and_keep_what_they_need() {
    let python = python();
    let cases = Cases::new();
    for (name, placement, room) in
        [("two", &[0, 1][..], 8.0), ("four", &[0, 1, 2, 3][..], 8.0), ("tight", &[0, 1, 2, 3][..], 1.6)]
    {
        let (problem, schedule) = cases.solve(name, &problem(placement, room, true));
        for (order, schedule) in [("as solved", schedule.clone()), ("renamed", reversed(&cases, "renamed", &schedule))]
        {
            // DeepSpeed loads the last stage's labels in the order of its data: microbatches have to be in order.
            let text = export_text(&problem, &schedule, "deepspeed", &[]).expect("is exported");
            let path = cases.write(&format!("{name}.py"), &text);
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/torch/deepspeed_ranks.py");
            let output = Command::new(&python).arg(script).arg(&path).output().expect("python runs");
            assert!(output.status.success(), "{name}, {order}: {}\n{text}", stderr(&output));
            assert_eq!(stdout(&output).trim(), "ran");
        }
    }
    let (problem, schedule) = cases.solve("loop", &problem(&[0, 1, 0, 1], 8.0, true));
    let refused = export_text(&problem, &schedule, "deepspeed", &[]).expect_err("has two stages a rank");
    assert!(refused.contains("DeepSpeed has one stage a rank"), "{refused}");
}

#[test]
fn readers_of_ones_own_find_what_they_need() {
    let python = python();
    let cases = Cases::new();
    let (problem, schedule) = cases.solve("loop", &problem(&[0, 1, 0, 1], 1.2, true));
    let text = export_text(&problem, &schedule, "json", &[]).expect("is exported");
    let path = cases.write("schedule.json", &text);
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("python/reader/read_schedule.py");
    let run = |path: &Path| Command::new(&python).arg(&reader).arg(path).output().expect("python runs");
    let output = run(&path);
    assert!(output.status.success(), "{}", stderr(&output));
    let csv = export_text(&problem, &schedule, "csv", &[]).expect("is exported");
    let offloads = csv.lines().filter(|line| line.split(',').nth(1) == Some("O")).count();
    assert!(offloads > 0 && stdout(&output).contains(&format!("\n{offloads} activations leave the device")));
    assert_eq!(csv.lines().count(), 1 + 3 * 4 * MICROBATCHES + 2 * offloads);
    let broken = run(&cases.write("broken.json", &text.replace("\"version\":1", "\"version\":2")));
    assert!(!broken.status.success() && stderr(&broken).contains("this reader knows 1"), "{}", stderr(&broken));
    // The same schedule, as yaml.
    let yaml = export_text(&problem, &schedule, "yaml", &[]).expect("is exported");
    let both: (ScheduleFile, ScheduleFile) =
        (serde_yaml::from_str(&yaml).expect("is a schedule"), serde_json::from_str(&text).expect("is a schedule"));
    assert_eq!(both.0, both.1);

    // A folder has all that a reader starts from; the problem lies beside the schedule then.
    for format in ["json", "yaml"] {
        let folder = format!("{}/", cases.path().join(format).display());
        let named = ["--problem".as_ref(), problem.as_os_str(), "--to".as_ref(), format.as_ref(), "-o".as_ref()];
        let output = optpipe().arg("export").arg(&schedule).args(named).arg(&folder).output().expect("runs");
        assert!(output.status.success(), "{}", stderr(&output));
        let folder = Path::new(&folder);
        let exported = folder.join(format!("schedule.{format}"));
        let read = Command::new(&python).arg(folder.join("read_schedule.py")).arg(&exported).output();
        assert_eq!(stdout(&read.expect("python runs")), stdout(&run(&path)), "{format}");
        assert!(std::fs::read_to_string(folder.join("README.md")).expect("a page").contains("start_ns"));
        let value = |name: &str| -> Value {
            serde_yaml::from_str(&std::fs::read_to_string(folder.join(name)).expect(name)).expect(name)
        };
        for kind in ["schedule", "problem"] {
            let (schema, mut found) = (value(&format!("{kind}.schema.json")), value(&format!("{kind}.{format}")));
            assert_eq!(misfit(&schema, &schema, &found), None, "{kind}.{format}");
            found["microbatches"] = "many".into();
            assert_eq!(misfit(&schema, &schema, &found), Some("microbatches: \"many\"".to_owned()));
        }
    }
    let beside = cases.path().join("yaml/schedule.yaml");
    let output = optpipe().arg("export").arg(&beside).args(["--to", "csv"]).output().expect("runs");
    assert_eq!(stdout(&output), csv, "{}", stderr(&output));
    let mut twice = optpipe();
    twice.arg("export").args([&problem, &schedule, Path::new("--problem"), &problem]);
    let twice = twice.args(["--to", "csv"]).output().expect("runs");
    assert!(twice.status.code() == Some(2) && stderr(&twice).contains("given twice"), "{}", stderr(&twice));
    let lonely = optpipe().arg("export").arg(&schedule).args(["--to", "csv"]).output().expect("runs");
    assert!(lonely.status.code() == Some(2) && stderr(&lonely).contains("no problem beside it"), "{}", stderr(&lonely));
}

/// Where a value is not as its schema says: types, bounds, keys that lack or are unknown.
fn misfit(schema: &Value, root: &Value, value: &Value) -> Option<String> {
    if let Some(name) = schema["$ref"].as_str() {
        return misfit(&root["$defs"][name.trim_start_matches("#/$defs/")], root, value);
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(choices) = schema[key].as_array() {
            let fits = choices.iter().any(|choice| misfit(choice, root, value).is_none());
            return (!fits).then(|| format!(": {value}"));
        }
    }
    let is = |name: &str| match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        _ => value.is_null(),
    };
    let typed = match &schema["type"] {
        Value::String(name) => is(name),
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        _ => true,
    };
    let bounded = value.as_f64().is_none_or(|x| {
        schema["minimum"].as_f64().is_none_or(|least| x >= least)
            && schema["maximum"].as_f64().is_none_or(|most| x <= most)
    });
    let chosen = schema.get("const").is_none_or(|only| only == value)
        && schema["enum"].as_array().is_none_or(|choices| choices.contains(value));
    if !typed || !bounded || !chosen {
        return Some(format!(": {value}"));
    }
    if let Some(object) = value.as_object() {
        let lacking = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        if let Some(key) = lacking.into_iter().find(|key| !object.contains_key(*key)) {
            return Some(format!("{key} is not there"));
        }
        for (key, inner) in object {
            match schema["properties"].get(key) {
                Some(schema) => {
                    if let Some(why) = misfit(schema, root, inner) {
                        return Some(format!("{key}{}{why}", if why.starts_with(':') { "" } else { "." }));
                    }
                }
                None if schema["additionalProperties"] == false => return Some(format!("{key} is unknown")),
                None => {}
            }
        }
    }
    value.as_array()?.iter().find_map(|inner| misfit(&schema["items"], root, inner))
}

#[test]
fn the_committed_schemas_are_current() {
    for kind in ["schedule", "problem", "measured"] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../configs/schemas/{kind}.schema.json"));
        let output = optpipe().args(["schema", kind]).output().expect("runs");
        let expected: Value = serde_json::from_slice(&output.stdout).expect("JSON");
        if std::env::var_os("UPDATE").is_some() {
            std::fs::write(&path, format!("{expected:#}\n")).expect("can be written");
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        let found: Value = serde_json::from_str(&found).unwrap_or_default();
        assert!(
            found == expected,
            "{} is out of date: run `UPDATE=1 cargo test --release --workspace --test torch schemas` and commit it",
            path.display()
        );
    }
}

#[test]
fn megatron_gets_the_layout_and_the_distance() {
    let cases = Cases::new();
    let (tight, schedule) = cases.solve("loop", &problem(&[0, 1, 0, 1], 1.2, true));
    let text = export_text(&tight, &schedule, "megatron", &["--layer-split", "2,3,3,2"]).expect("is exported");
    assert!(text.contains("--pipeline-model-parallel-layout 'Ett|ttt|ttt|ttL'"), "{text}");
    assert!(text.contains("--offload-modules") && text.contains(", EXCEEDS the limit of "), "{text}");
    // The peak with and without what Megatron-Core offloads, and what its chunks go by.
    let peak = text.lines().find(|line| line.starts_with("# peak of device 0")).unwrap_or_else(|| panic!("{text}"));
    let kib = |after: &str| -> f64 {
        let rest = peak.split_once(after).unwrap_or_else(|| panic!("{after} in {peak}")).1;
        rest.split_whitespace().next().and_then(|x| x.parse().ok()).unwrap_or_else(|| panic!("{peak}"))
    };
    assert!(kib("with these modules away: ") < kib("simulated without offloading: "), "{peak}");
    for line in ["OPTPIPE_CHUNKS=2\n", "OPTPIPE_GROUP_SIZE=2\n", "-virtual-pipeline-stage \"$OPTPIPE_GROUP_SIZE\"\n"] {
        assert!(text.contains(line), "{line} in {text}");
    }
    assert!(text.contains("# step, simulated: "), "{text}");
    let bash = Command::new("bash").arg("-n").arg(cases.write("megatron.sh", &text)).output().expect("bash runs");
    assert!(bash.status.success(), "{}", stderr(&bash));
    let refused = export_text(&tight, &schedule, "megatron", &[]).expect_err("has no layers");
    assert!(refused.contains("layer_split"), "{refused}");
    let (v, schedule) = cases.solve("v", &problem(&[0, 1, 1, 0], 8.0, true));
    let refused = export_text(&v, &schedule, "megatron", &["--layer-split", "2,3,3,2"]).expect_err("is a V");
    assert!(refused.contains("stage s on device s mod P"), "{refused}");
}

#[test]
fn trainers_get_the_modules_of_each_stage() {
    let cases = Cases::new();
    let (problem, schedule) = cases.solve("two", &problem(&[0, 1], 8.0, true));
    let export = |model: &str, split: &str| {
        let folder = cases.path().join(model);
        let mut command = optpipe();
        command.arg("export").arg(&problem).arg(&schedule).args(["--to", "torch", "--model", model]);
        command.args(["--layer-split", split, "-o"]).arg(&folder);
        let output = command.output().expect("runs");
        if output.status.success() { Ok(folder) } else { Err(stderr(&output)) }
    };
    let read = |folder: &Path, name: &str| std::fs::read_to_string(folder.join(name)).expect("was written");
    let folder = export("llama-3.1-8b", "17,15").expect("is exported");
    let stages: Value = serde_json::from_str(&read(&folder, "stages.json")).expect("JSON");
    assert_eq!(stages["modules"][0][0], "model.embed_tokens");
    assert_eq!(stages["modules"][0][17], "model.layers.16");
    assert_eq!(stages["modules"][1][0], "model.layers.17");
    assert_eq!(stages["modules"][1][15], "model.norm");
    assert_eq!(stages["modules"][1][16], "lm_head");
    let titan = read(&folder, "torchtitan.sh");
    assert!(titan.contains("--parallelism.pipeline_parallel_schedule 1F1B\n"), "{titan}");
    assert!(read(&folder, "nemo_automodel.yaml").contains("    pp_schedule_csv: schedule.csv\n"));
    for script in ["launch.sh", "torchtitan.sh"] {
        let bash = Command::new("bash").arg("-n").arg(folder.join(script)).output().expect("bash runs");
        assert!(bash.status.success(), "{script}: {}", stderr(&bash));
    }
    // A matrix that two stages share: its gradients would be wrong in trainers that do not add them.
    let folder = export("llama-3.2-1b", "9,7").expect("is exported");
    for name in ["torchtitan.sh", "nemo_automodel.yaml"] {
        let text = read(&folder, name);
        assert!(text.starts_with("# No settings") && text.contains("share a matrix"), "{text}");
    }
    let refused = export("llama-3.1-8b", "17,16").expect_err("has a block too many");
    assert!(refused.contains("is not one of 32 blocks over 2 stages"), "{refused}");
}
