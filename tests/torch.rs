//! What `optpipe export` writes for PyTorch, run by PyTorch: real processes over gloo, gradients against the
//! model without a pipeline, memory against the schedule's prediction.

#[path = "torch/formats.rs"]
mod formats;
mod support;
#[path = "torch/training.rs"]
mod training;
#[path = "torch/tuner.rs"]
mod tuner;

use std::path::{Path, PathBuf};
use std::process::Command;

use optpipe_solver::problem::{Problem, Sizes, Times};
use optpipe_solver::schedule::{OpKind, ScheduleFile};
use serde_json::{Value, json};
use support::{file, optpipe, stderr, stdout};

const MICROBATCHES: usize = 4;
/// What torch keeps of a microbatch at a stage of the tests' model, bytes: after F, and after I (split).
const FIRST: (i64, i64) = (16640, 16640);
const MIDDLE: (i64, i64) = (15616, 15616);
const LAST: (i64, i64) = (17352, 17344);

/// A problem of the tests' model; `room` is what a device may hold, in microbatches of all of its stages.
fn problem(placement: &[usize], room: f64, split_backward: bool) -> Problem {
    let stages = placement.len();
    let devices = placement.iter().max().map_or(0, |d| d + 1);
    let sizes: Vec<(i64, i64)> = (0..stages)
        .map(|s| {
            if s == 0 {
                FIRST
            } else if s + 1 == stages {
                LAST
            } else {
                MIDDLE
            }
        })
        .collect();
    let whole: Vec<i64> = sizes.iter().map(|x| x.0).collect();
    let capacity = |d: usize| {
        let all: i64 = placement.iter().zip(&whole).filter(|(device, _)| **device == d).map(|(_, bytes)| bytes).sum();
        (all as f64 * room) as i64
    };
    Problem {
        devices,
        placement: placement.to_vec(),
        microbatches: MICROBATCHES,
        split_backward,
        time_ns: Times {
            forward: vec![100_000; stages],
            backward_input: vec![110_000; stages],
            backward_weight: vec![90_000; stages],
            send_forward: vec![5_000; stages - 1],
            send_backward: vec![5_000; stages - 1],
            offload: vec![60_000; stages],
            reload: vec![60_000; stages],
        },
        bytes: Sizes {
            weight_context: sizes.iter().map(|x| x.1).collect(),
            capacity: (0..devices).map(capacity).collect(),
            offloadable: whole.clone(),
            activation: whole,
            r#static: vec![0; devices],
        },
        offload_channel: (0..devices).collect(),
        reload_channel: (devices..2 * devices).collect(),
    }
}

struct Cases {
    folder: tempfile::TempDir,
    list: Vec<Value>,
}

impl Cases {
    fn new() -> Self {
        Cases { folder: tempfile::tempdir().expect("temporary folder"), list: Vec::new() }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        file(self.path(), name, text)
    }

    /// Solves a problem; the paths of both files.
    fn solve(&self, name: &str, problem: &Problem) -> (PathBuf, PathBuf) {
        self.solve_by(name, problem, "auto")
    }

    fn solve_by(&self, name: &str, problem: &Problem, method: &str) -> (PathBuf, PathBuf) {
        let yaml = serde_yaml::to_string(problem).expect("a problem can be written");
        let problem = self.write(&format!("{name}.problem.yaml"), &yaml);
        let schedule = self.path().join(format!("{name}.schedule.yaml"));
        let mut command = optpipe();
        command.arg("solve").arg(&problem).arg("-o").arg(&schedule).args([
            "--time-limit",
            "1s",
            "--quiet",
            "--method",
            method,
        ]);
        let output = command.output().expect("runs");
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        (problem, schedule)
    }

    fn export(&self, name: &str, problem: &Path, schedule: &Path) -> PathBuf {
        let folder = self.path().join(format!("{name}.export"));
        let mut command = optpipe();
        command.arg("export").arg(problem).arg(schedule).args(["--to", "torch", "-o"]).arg(&folder);
        let output = command.output().expect("runs");
        assert!(output.status.success(), "{name}: {}", stderr(&output));
        folder
    }

    fn add(&mut self, name: &str, what: &str, placement: &[usize], more: Value) {
        let ranks = placement.iter().max().map_or(0, |d| d + 1);
        let mut case = json!({
            "name": name, "do": what, "ranks": ranks, "placement": placement, "microbatches": MICROBATCHES,
        });
        for (key, value) in more.as_object().expect("an object") {
            case[key] = value.clone();
        }
        self.list.push(case);
    }
}

/// The python that has torch: the environment's, or the one that the script makes.
fn python() -> PathBuf {
    if let Some(python) = std::env::var_os("OPTPIPE_TORCH_PYTHON") {
        return python.into();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.ci/torch");
    let output = Command::new(&script).output().expect("the script runs");
    assert!(output.status.success(), "no torch to test with: {}", stderr(&output));
    stdout(&output).trim().into()
}

/// Has every case run on its ranks with the packages of a folder; what each says, by rank.
fn run_cases(cases: &Cases, packages: &Path) -> Value {
    let list = serde_json::to_string(&cases.list).expect("JSON");
    cases.write("cases.json", &list);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(python())
        .arg(root.join("../tests/torch/ranks.py"))
        .arg(cases.path())
        .env("PYTHONPATH", packages)
        .env("OMP_NUM_THREADS", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .output()
        .expect("python runs");
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}{}", stdout(&output), stderr(&output)))
}

fn peaks(problem: &Path, schedule: &Path) -> Vec<i64> {
    let output = optpipe().arg("check").arg(problem).arg(schedule).arg("--json").output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    report["peak_bytes"].as_array().expect("a list").iter().filter_map(Value::as_i64).collect()
}

/// The compute-only file as a naive exporter would write it.
fn naive_csv(schedule: &Path) -> String {
    let text = std::fs::read_to_string(schedule).expect("was written");
    let schedule: ScheduleFile = serde_yaml::from_str(&text).expect("is a schedule");
    let row = |ops: &Vec<optpipe_solver::schedule::ScheduledOp>| {
        let compute = ops.iter().filter(|x| x.op.is_compute());
        let cell = |x: &optpipe_solver::schedule::ScheduledOp| {
            let letter = if x.op == OpKind::B { 'I' } else { x.op.letter() };
            format!("{}{letter}{}", x.stage, x.microbatch)
        };
        compute.map(cell).collect::<Vec<_>>().join(",") + "\n"
    };
    schedule.schedule.ops.iter().map(row).collect()
}

/// The same schedule with microbatches renamed: legal, as all are alike, but the last stage runs them 3, 2, 1, 0.
fn reversed(cases: &Cases, name: &str, schedule: &Path) -> PathBuf {
    let text = std::fs::read_to_string(schedule).expect("was written");
    let mut schedule: ScheduleFile = serde_yaml::from_str(&text).expect("is a schedule");
    let last = schedule.placement.as_ref().map_or(0, |p| p.len() - 1);
    let mut forwards: Vec<(i64, usize)> = schedule
        .schedule
        .ops
        .iter()
        .flatten()
        .filter(|x| x.op == OpKind::F && x.stage == last)
        .map(|x| (x.start_ns, x.microbatch))
        .collect();
    forwards.sort_unstable();
    for op in schedule.schedule.ops.iter_mut().flatten() {
        let place = forwards.iter().position(|&(_, j)| j == op.microbatch).expect("is one of them");
        op.microbatch = MICROBATCHES - 1 - place;
    }
    cases.write(&format!("{name}.schedule.yaml"), &schedule.to_yaml().expect("can be written"))
}

#[test]
fn torch_runs_schedules_with_the_gradients_of_the_model_without_a_pipeline() {
    let mut cases = Cases::new();
    let placements: [(&str, &[usize]); 7] = [
        ("p2", &[0, 1]),
        ("p2loop", &[0, 1, 0, 1]),
        ("p2v", &[0, 1, 1, 0]),
        ("p4", &[0, 1, 2, 3]),
        ("p4loop", &[0, 1, 2, 3, 0, 1, 2, 3]),
        ("p4v", &[0, 1, 2, 3, 3, 2, 1, 0]),
        ("p3any", &[1, 0, 2, 2, 0, 1]),
    ];
    // Which cases offload, and the predicted peaks of each.
    let mut trained: Vec<(String, bool, Vec<i64>)> = Vec::new();
    for (shape, placement) in placements {
        for (how, room) in [("free", 8.0), ("tight", 1.6)] {
            let name = format!("{shape}.{how}");
            let (problem_file, schedule) = cases.solve(&name, &problem(placement, room, true));
            let folder = cases.export(&name, &problem_file, &schedule);
            let (problem_file, schedule) = (folder.join("problem.yaml"), folder.join("schedule.yaml"));
            let offloads = std::fs::read_to_string(&schedule).expect("was written").contains("op: O");
            // The solver may offload though it need not, where that costs nothing.
            let known = ["p2", "p2loop", "p2v", "p4", "p4loop"].contains(&shape);
            assert!(how == "tight" || !offloads || !known, "{name} offloads without need");
            assert!(how == "free" || offloads || placement.len() < 8, "{name} does not offload");
            assert_trains_right(&std::fs::read_to_string(folder.join("schedule.csv")).expect("was written"), placement);
            trained.push((name.clone(), offloads, peaks(&problem_file, &schedule)));
            cases.add(&name, "train", placement, json!({"problem": problem_file, "schedule": schedule}));
            cases.add(&format!("{name}.plain"), "plain", placement, json!({"csv": folder.join("schedule.csv")}));
        }
    }
    assert!(trained.iter().filter(|x| x.1).count() >= 3, "too few schedules offload: {trained:?}");

    // The raw schedule, not exported; then, between steps, another one, and one for another batch.
    let place = placements[1].1;
    let (free, newer) =
        (cases.path().join("p2loop.free.schedule.yaml"), cases.path().join("p2loop.tight.schedule.yaml"));
    let other = cases.write(
        "other.yaml",
        &std::fs::read_to_string(&newer).expect("was written").replace("microbatches: 4", "microbatches: 5"),
    );
    let problem_file = cases.path().join("p2loop.tight.problem.yaml");
    cases.add("switch", "train", place, json!({"problem": problem_file, "schedule": free, "newer": [newer, other]}));

    // Order of losses: the naive file trains on wrong gradients, the exported one does not.
    let place = placements[0].1;
    let problem_file = cases.path().join("p2.free.problem.yaml");
    // All forwards first: the loss that torch looks up is there, and another microbatch's.
    let (_, all_first) = cases.solve_by("gpipe", &problem(place, 8.0, true), "gpipe");
    let backwards = reversed(&cases, "backwards", &all_first);
    let naive = cases.write("naive.csv", &naive_csv(&backwards));
    let folder = cases.export("backwards", &problem_file, &backwards);
    cases.add("naive", "plain", place, json!({"csv": naive}));
    cases.add("renamed", "plain", place, json!({"csv": folder.join("schedule.csv")}));
    cases.add("renamed.adapter", "train", place, json!({"problem": problem_file, "schedule": backwards}));

    // Whole backwards.
    let (whole_problem, whole) = cases.solve("whole", &problem(place, 8.0, false));
    let folder = cases.export("whole", &whole_problem, &whole);
    let csv = std::fs::read_to_string(folder.join("schedule.csv")).expect("was written");
    assert!(!csv.contains('I') && !csv.contains('W'), "{csv}");
    cases.add("whole", "plain", place, json!({"csv": folder.join("schedule.csv")}));

    // Boundary gradients that leave in time: torch's own limit on sends under way.
    let (problem_file, free) =
        (cases.path().join("p2loop.free.problem.yaml"), cases.path().join("p2loop.free.schedule.yaml"));
    let sends = json!({"problem": problem_file, "schedule": free, "options": {"max_outstanding_sends": 2}});
    cases.add("sends", "train", placements[1].1, sends);
    // A stage that turns out slow, and a solver beside the run that follows what is measured.
    let follow = cases.export("follow", &problem_file, &free);
    let solver = json!({"folder": follow, "optpipe": env!("CARGO_BIN_EXE_optpipe"), "no_cache": support::no_cache()});
    cases.add("follow", "follow", placements[1].1, solver);
    cases.add("alone", "alone", &[0], json!({}));
    cases.add("one_rank", "one_rank", &[0], json!({}));

    let place = placements[0].1;
    let (problem_file, free) = (cases.path().join("p2.free.problem.yaml"), cases.path().join("p2.free.schedule.yaml"));
    for (how, _) in REFUSED {
        let mut more = json!({"problem": problem_file, "schedule": free, "how": how});
        if how == "model" {
            more["model_placement"] = json!([0, 1, 0, 1]);
        }
        cases.add(&format!("refused.{how}"), "refused", place, more);
    }

    // The package as the binary brings it.
    let results = run_cases(&cases, &folder);
    let of = |name: &str| -> Vec<Value> { results[name].as_array().expect("a list").clone() };
    let worst = |name: &str| -> f64 {
        let ranks = of(name);
        let error = |rank: &Value| {
            let errors = rank["errors"].as_array().unwrap_or_else(|| panic!("{name}: {rank}"));
            errors.iter().map(|e| e.as_f64().unwrap_or(f64::INFINITY)).fold(0.0, f64::max)
        };
        ranks.iter().map(error).fold(0.0, f64::max)
    };

    for (name, offloads, peaks) in &trained {
        assert!(worst(name) < 1e-10, "{name}: {}", worst(name));
        assert!(worst(&format!("{name}.plain")) < 1e-10, "{name}.plain");
        let mut offloaded = 0;
        for (rank, (found, &predicted)) in of(name).iter().zip(peaks).enumerate() {
            for peak in found["peaks"].as_array().expect("a list") {
                let ratio = peak.as_f64().unwrap_or(0.0) / predicted as f64;
                assert!((0.95..=1.05).contains(&ratio), "{name}, rank {rank}: {peak} of {predicted} predicted");
            }
            assert_eq!(found["left"], 0, "{name}, rank {rank} keeps something after the step");
            offloaded += found["offloaded"].as_i64().unwrap_or(0);
        }
        assert_eq!(offloaded > 0, *offloads, "{name}");
        // The tuner reads what was measured.
        let text = std::fs::read_to_string(cases.path().join(format!("{name}.measured.yaml"))).expect("was written");
        let measured: optpipe::measured::Measured = serde_yaml::from_str(&text).expect("is measured.yaml");
        let computed = measured.ops.iter().filter(|x| x.op.is_compute()).count();
        let stages = cases
            .list
            .iter()
            .find(|c| c["name"] == **name)
            .map_or(0, |c| c["placement"].as_array().map_or(0, Vec::len));
        assert_eq!(computed, 3 * stages * MICROBATCHES, "{name}");
        assert_eq!(measured.peak_bytes.len(), peaks.len());
        assert_eq!(measured.offloaded_bytes as i64, offloaded);
        assert!(measured.step.median_ns > 0 && measured.ops.iter().all(|x| x.end_ns >= x.start_ns));
    }

    assert!(worst("switch") < 1e-10, "switch: {}", worst("switch"));
    for rank in of("switch") {
        assert_eq!(rank["swaps"], 1, "{rank}");
        let said = rank["rejected"].as_str().unwrap_or_default();
        assert!(said.contains("schedule.yaml has microbatches 5, problem.yaml 4"), "{rank}");
    }

    assert!(worst("naive") > 1e-3, "torch no longer mixes losses up: {}", worst("naive"));
    for name in ["renamed", "renamed.adapter", "whole"] {
        assert!(worst(name) < 1e-10, "{name}: {}", worst(name));
    }

    assert!(worst("follow") < 1e-10, "follow: {}", worst("follow"));
    for rank in of("follow") {
        assert!(rank["swaps"].as_u64() >= Some(1) && rank["rejected"].is_null(), "{rank}");
        let times = &rank["times"];
        let (forward, weight) = (&times["forward"], &times["backward_weight"]);
        assert!(forward[1].as_i64() > Some(5_000_000) && forward[1].as_i64() > forward[0].as_i64(), "{rank}");
        // The first stage's backward is whole when it runs, and so in what is solved.
        assert!(weight[0] == 0 && weight[1].as_i64() > Some(0), "{rank}");
    }
    assert!(worst("sends") < 1e-10, "sends: {}", worst("sends"));
    let most = |name: &str| of(name).iter().filter_map(|rank| rank["sends"].as_u64()).max();
    assert!(most("sends") == Some(2) && most("p2loop.free") > Some(2), "{:?}", (most("sends"), most("p2loop.free")));
    for (how, words) in REFUSED {
        let ranks = of(&format!("refused.{how}"));
        let said = ranks[0]["error"].as_str().unwrap_or_else(|| panic!("{how}: {ranks:?}"));
        assert!(said.contains(words), "{how}: {said}");
        assert!(ranks.iter().all(|rank| rank["error"] == said), "{how}: {ranks:?}");
    }
    assert!(worst("refused.batch") < 1e-10, "a step after a batch that did not fit");

    let parts = &of("alone")[0];
    for (part, words) in [("changed", "modified by an inplace operation"), ("missing", "reloads it too late")] {
        assert!(parts[part].as_str().is_some_and(|said| said.contains(words)), "{parts}");
    }
    let one = &of("one_rank")[0];
    for case in ["target", "attribute", "global", "table", "tied", "named", "kept"] {
        assert!(one[case].as_f64().is_some_and(|error| error < 1e-10), "{case}: {one}");
    }
    assert!(one["fresh"].as_str().is_some_and(|said| said.contains("name it in shared=")), "{one}");
    assert_eq!(one["lengths"], json!([3, 3, 2]));
}

/// How a run is wrong on one rank of two, and what all ranks say of it.
const REFUSED: [(&str, &str); 12] = [
    ("torch", "torch 2.6.0: this package knows"),
    ("disagree", "ranks disagree: schedule: "),
    ("missing", "rank 1: FileNotFoundError"),
    ("model", "the schedule has 2 stages, the model 4"),
    ("doubled", "twice or out of place"),
    ("lost", "schedule.yaml lacks ['W'] of stage 1"),
    ("reload", "schedule.yaml lacks O or R of stage 1"),
    ("empty", "rank 1: ScheduleError: no stages"),
    ("watch", "ranks disagree: watch: True on rank 0, False on rank 1"),
    ("scale", "ranks disagree: scale_grads: True on rank 0, False on rank 1"),
    ("split", "rank 1: ScheduleError: the schedule is for another model: layer_split [2, 1], this run has [1, 2]"),
    ("batch", "rank 0: ScheduleError: a batch of 7 does not divide by 4 microbatches"),
];

/// That an exported file has none of what PyTorch trains wrong or slowly with.
fn assert_trains_right(csv: &str, placement: &[usize]) {
    let cells: Vec<Vec<&str>> = csv.lines().map(|row| row.split(',').collect()).collect();
    let all: Vec<&str> = cells.iter().flatten().copied().collect();
    // Junk behind a cell and an op that is there twice PyTorch takes without a word.
    let mut ops = std::collections::HashMap::new();
    for cell in &all {
        let at = cell.find(|c: char| !c.is_ascii_digit()).unwrap_or_else(|| panic!("{cell}"));
        let (stage, rest) = (&cell[..at], &cell[at..]);
        let (kind, microbatch) = rest.split_at(1);
        let known = stage.parse::<usize>().is_ok_and(|s| s < placement.len())
            && microbatch.parse::<usize>().is_ok_and(|j| j < MICROBATCHES);
        assert!(known && "FIWB".contains(kind), "{cell} in {csv}");
        // The first stage's I does nothing and its W all.
        assert!(stage != "0" || "FB".contains(kind), "{cell} in {csv}");
        let parts = if kind == "B" { "IW" } else { kind };
        for part in parts.chars() {
            assert!(ops.insert((stage, part, microbatch), ()).is_none(), "{cell} twice in {csv}");
        }
    }
    assert_eq!(ops.len(), 3 * placement.len() * MICROBATCHES, "{csv}");
    // I and W next to each other cost more than B.
    for pair in cells.iter().flat_map(|row| row.windows(2)) {
        assert!(pair[1] != pair[0].replace('I', "W") || !pair[0].contains('I'), "{pair:?} in {csv}");
    }
    // The last stage's forwards are in order: losses are looked up by it.
    let last = format!("{}F", placement.len() - 1);
    let forwards: Vec<&str> = all.iter().filter_map(|cell| cell.strip_prefix(&last)).collect();
    assert!(forwards.is_sorted() && forwards.len() == MICROBATCHES, "{csv}");
}
