//! Files of every kind, damaged: each is refused or used, and whatever is done with it ends soon, without a panic.
//!
//! `PROPTEST_CASES` sets how many damaged files are tried; `make fuzz` tries many.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use optpipe::analysis::{channel_loads, idle, waits};
use optpipe::export::bars::Bars;
use optpipe::export::{self, TimelineOptions};
use optpipe::measured::{self, Measured};
use optpipe::readers::{READERS, Reader};
use optpipe::rehearsed::Rehearsed;
use optpipe::report;
use optpipe::tune::update::{round_times, updated};
use optpipe_configs::file::{self, Check};
use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::Job;
use optpipe_configs::model::Model;
use optpipe_configs::profile::Profile;
use optpipe_solver::bound::lower_bound;
use optpipe_solver::check::check;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::ScheduleFile;
use optpipe_solver::solve::{SolveOptions, solve};
use proptest::prelude::*;
use proptest::sample::Index;
use serde::de::DeserializeOwned;

use crate::support::{data, optpipe, tiny_job};

/// One damaged file with all that is done with it may take so long, on a machine that does much else.
const LONGEST: Duration = Duration::from_secs(30);
/// Problems with more stage-microbatch pairs are read, but not drawn or solved here.
const MOST_PAIRS: usize = 2000;

/// A file that is as it should be.
struct Sample {
    reader: &'static Reader,
    name: PathBuf,
    text: String,
}

struct Samples {
    all: Vec<Sample>,
    /// The files of a tune's folder, by their place in it.
    run: BTreeMap<PathBuf, String>,
}

fn reader(name: &str) -> &'static Reader {
    READERS.iter().find(|reader| reader.name == name).unwrap_or_else(|| panic!("no reader {name}"))
}

/// The kind of a file in a tune's folder.
fn kind(path: &Path) -> Option<&'static Reader> {
    let stem = path.file_stem()?.to_str()?;
    let name = if stem.starts_with("profile") { "profile" } else { stem };
    (path.extension()? == "yaml").then(|| reader(name))
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Files of every kind, made once.
fn samples() -> &'static Samples {
    static SAMPLES: OnceLock<Samples> = OnceLock::new();
    SAMPLES.get_or_init(|| {
        let folder = tempfile::tempdir().expect("temporary folder");
        let (root, out) = (folder.path(), folder.path().join("out"));
        let text = |path: &Path| std::fs::read_to_string(path).expect("text");
        let few = "run: {warmup_steps: 0, steps: 1}\nsolver: {time_limit: 200ms}\nstop: {max_rounds: 1}\n";
        let decided = text(&tiny_job(root, few));
        // In this one the structure is searched for.
        let job = tiny_job(root, &format!("{few}pipeline: {{chunks: auto}}\n"));
        let mut tune = optpipe();
        tune.arg("tune").arg(&job).arg("--out").arg(&out).arg("-q");
        tune.arg("--hardware").arg(data("tiny/hardware.yaml")).arg("--profile").arg(data("tiny/profile.yaml"));
        tune.assert().success();
        let open = text(&job);
        let job = crate::support::file(root, "decided.yaml", &decided);
        let rehearsed = root.join("rehearsed.json");
        let mut rehearse = optpipe();
        rehearse.arg("rehearse").arg(&job).arg(out.join("schedule.yaml")).args(["--rounds", "1", "--steps", "1"]);
        rehearse.arg("-q").arg("-o").arg(&rehearsed).assert().success();

        let run: BTreeMap<PathBuf, String> = files(&out)
            .into_iter()
            .filter(|path| path.extension().is_some_and(|x| x == "yaml"))
            .map(|path| (path.strip_prefix(&out).expect("inside").to_owned(), text(&path)))
            .collect();
        let sample = |name: &str, path: &str, text: String| Sample { reader: reader(name), name: path.into(), text };
        let mut all = vec![
            sample("model", "config.json", text(&data("tiny/config.json"))),
            sample("job", "job.yaml", decided),
            sample("job", "job.yaml", open),
            sample("job", "job.yaml", Job::template("gpt2")),
            sample("rehearsed", "rehearsed.json", text(&rehearsed)),
        ];
        for problem in ["d_p4m6_fused_backward", "g_p4m5_shared_switch", "i_p3v2m4_vshape", "k_p2v2m3_offload_required"]
        {
            all.push(sample("problem", "problem.yaml", text(&data(&format!("instances/{problem}.yaml")))));
        }
        for (path, text) in &run {
            let reader = kind(path).expect("a kind of its own");
            all.push(Sample { reader, name: path.clone(), text: text.clone() });
        }
        Samples { all, run }
    })
}

#[test]
fn there_are_sound_files_of_every_kind() {
    for reader in &READERS {
        let of_kind: Vec<_> = samples().all.iter().filter(|sample| sample.reader.name == reader.name).collect();
        assert!(!of_kind.is_empty(), "no sample of {}", reader.name);
        for sample in of_kind {
            sample.reader.read(&sample.name, &sample.text).unwrap_or_else(|e| panic!("{}: {e}", reader.name));
        }
    }
}

/// What stands where a value should.
const HOSTILE: [&str; 22] = [
    "1000000000",
    "1e9",
    "-1",
    "0",
    "7",
    ".nan",
    ".inf",
    "-.inf",
    "1e400",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "99999999999999999999999",
    "1e-320",
    "null",
    "true",
    "\"\"",
    "[]",
    "{}",
    "&a [*a]",
    "&b {<<: *b}",
    "*a",
];

#[derive(Debug, Clone)]
struct Edit {
    what: u8,
    at: Index,
    other: Index,
    text: String,
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let edit = (0_u8..12, any::<Index>(), any::<Index>(), "[-0-9.,:*&<\"{} \\[\\]a-z\\PC]{0,6}")
        .prop_map(|(what, at, other, text)| Edit { what, at, other, text });
    prop::collection::vec(edit, 1..4)
}

/// The numbers of a line, as ranges of bytes.
fn numbers(line: &str) -> Vec<std::ops::Range<usize>> {
    let mut found: Vec<std::ops::Range<usize>> = Vec::new();
    for (at, _) in line.char_indices().filter(|(_, c)| c.is_ascii_digit() || *c == '.') {
        match found.last_mut().filter(|range| range.end == at) {
            Some(range) => range.end = at + 1,
            None => found.push(at..at + 1),
        }
    }
    found
}

fn damage(text: &str, edits: &[Edit], stranger: &str) -> String {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for Edit { what, at, other, text } in edits {
        if lines.is_empty() {
            break;
        }
        let (here, there) = (at.index(lines.len()), other.index(lines.len()));
        let hostile = HOSTILE[other.index(HOSTILE.len())];
        let line = &mut lines[here];
        let boundary = |index: &Index, line: &str| {
            (0..=index.index(line.len() + 1)).rev().find(|&i| line.is_char_boundary(i)).unwrap_or(0)
        };
        match what {
            0 => drop(lines.remove(here)),
            1 => {
                let copy = line.clone();
                lines.insert(there, copy);
            }
            2 => lines.swap(here, there),
            // A number becomes another one: what readers meet first, and most often.
            3..=6 => {
                let found = numbers(line);
                if let Some(range) = found.get(at.index(found.len().max(1))) {
                    line.replace_range(range.clone(), hostile);
                }
            }
            7 => {
                if let Some((key, _)) = line.clone().split_once(':') {
                    let comma = if line.ends_with(',') { "," } else { "" };
                    *line = format!("{key}: {hostile}{comma}");
                }
            }
            8 => {
                let place = boundary(other, line);
                line.insert_str(place, text);
            }
            9 => {
                let (from, to) = (boundary(at, line), boundary(other, line));
                line.replace_range(from.min(to)..from.max(to), text);
            }
            10 => {
                let strange: Vec<&str> = stranger.lines().collect();
                if let Some(strange) = strange.get(other.index(strange.len().max(1))) {
                    lines.insert(here, (*strange).to_owned());
                }
            }
            _ => lines.truncate(here + 1),
        }
    }
    lines.join("\n") + "\n"
}

/// A file as its type, where it passes its checks.
fn parsed<T: DeserializeOwned + Check>(path: &Path, text: &str) -> Option<T> {
    file::parse(path, text).and_then(|value| file::checked(path, text, value)).ok()
}

fn of_run<T: DeserializeOwned + Check>(name: &str) -> T {
    parsed(Path::new(name), &samples().run[Path::new(name)]).expect("a sound file")
}

fn is_small(problem: &Problem) -> bool {
    problem.stages() * problem.microbatches <= MOST_PAIRS && problem.devices <= MOST_PAIRS
}

/// All that commands do with a schedule of a problem, whether or not it is one.
fn use_schedule(problem: &Problem, schedule: &ScheduleFile, measured: Option<&Measured>) {
    let (found, plain) = (check(problem, &schedule.schedule), &schedule.schedule);
    let _ = export::trace_json(problem, plain, measured);
    let _ = export::timeline_svg(problem, plain, measured, &TimelineOptions::default());
    if !found.is_legal() {
        return;
    }
    assert!(lower_bound(problem) <= found.makespan_ns);
    let bars = Bars::predicted(problem, plain).expect("a legal schedule can be drawn");
    let waits = waits(problem, &bars);
    let _ = (idle(problem, &bars, &waits), channel_loads(problem, &bars), waits.critical_path(&bars));
    let _ = export::megatron(problem, schedule);
    let _ = export::deepspeed(problem, schedule);
    let _ = export::table::csv(problem, schedule);
    let _ = export::table::complete(problem, schedule).to_yaml();
    let _ = export::torch::torch(problem, schedule, None);
    if let Some(measured) = measured {
        let _ = measured::compare(problem, plain, measured);
        let _ = updated(problem, &[round_times(measured)]).check();
    }
}

/// What is done with a file of this kind that passed its checks.
fn use_file(reader: &Reader, path: &Path, text: &str) {
    let run_problem = || of_run::<Problem>("problem.yaml");
    let run_schedule = || of_run::<ScheduleFile>("schedule.yaml");
    match reader.name {
        "problem" => {
            let Some(problem) = parsed::<Problem>(path, text).filter(is_small) else { return };
            use_schedule(&problem, &run_schedule(), None);
            let options = SolveOptions { time_limit: Duration::from_millis(10), ..SolveOptions::default() };
            if let Ok(solution) = solve(&problem, &options, &mut |_| {}, &AtomicBool::new(false)) {
                let report = check(&problem, &solution.schedule);
                assert!(report.is_legal(), "{:?}", report.violations);
                assert!(solution.bound_ns <= solution.makespan_ns);
                use_schedule(&problem, &ScheduleFile::new(solution.schedule), None);
            }
        }
        "schedule" => {
            let Some(schedule) = parsed::<ScheduleFile>(path, text) else { return };
            use_schedule(&run_problem(), &schedule, Some(&of_run("rounds/01/measured.yaml")));
        }
        "measured" | "rehearsed" => {
            let measured = match reader.name {
                "measured" => parsed::<Measured>(path, text),
                _ => parsed::<Rehearsed>(path, text).map(Measured::from),
            };
            use_schedule(&run_problem(), &run_schedule(), measured.as_ref());
        }
        "job" | "hardware" | "profile" => {
            let (mut job, mut hardware, mut profile): (Job, Hardware, Profile) = (
                parsed(Path::new("job.yaml"), &samples().all[1].text).expect("a sound job"),
                of_run("hardware.yaml"),
                of_run("profile.yaml"),
            );
            match reader.name {
                "job" => job = parsed(path, text).unwrap_or(job),
                "hardware" => hardware = parsed(path, text).unwrap_or(hardware),
                _ => profile = parsed(path, text).unwrap_or(profile),
            }
            let model = Model::read(&data("tiny/config.json").display().to_string(), None).expect("a sound model");
            if job.decided().is_ok() {
                let _ = optpipe::plan::problem(&profile, &hardware, &job, &model);
            }
        }
        _ => {}
    }
}

/// The report of the tune's folder with one file in place of its own.
fn use_in_report(path: &Path, text: &str) {
    let run = &samples().run;
    if !run.contains_key(path) {
        return;
    }
    let folder = tempfile::tempdir().expect("temporary folder");
    for (name, sound) in run {
        let place = folder.path().join(name);
        std::fs::create_dir_all(place.parent().expect("a folder")).expect("a folder");
        std::fs::write(place, if name == path { text } else { sound }).expect("written");
    }
    if let Ok(run) = report::Run::read(folder.path()) {
        let _ = report::html(&run);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn damaged_files_are_refused_or_used(which: Index, stranger: Index, as_other: Index, edits in edits()) {
        let all = &samples().all;
        let (sample, stranger) = (&all[which.index(all.len())], &all[stranger.index(all.len())]);
        let text = damage(&sample.text, &edits, &stranger.text);
        let begun = Instant::now();
        // JSON is YAML too, and any file may be given for any other.
        let _ = sample.reader.read(&sample.name.with_extension("yaml"), &text);
        let _ = READERS[as_other.index(READERS.len())].read(&sample.name, &text);
        if sample.reader.read(&sample.name, &text).is_ok() {
            use_file(sample.reader, &sample.name, &text);
            use_in_report(&sample.name, &text);
        }
        prop_assert!(begun.elapsed() < LONGEST, "{:?}", begun.elapsed());
    }
}
