//! Files and places that nobody should give to a program, and moments at which nobody should end one.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use optpipe_configs::file;
use optpipe_solver::check::check;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{SolveOptions, solve};
use proptest::prelude::*;

use crate::support::{data, file, no_cache, optpipe, stderr, tiny_job};

/// Runs a command that must end soon, by itself, with one of these codes and, where it failed, one clear error.
fn ends(command: &mut Command, codes: &[i32]) -> Output {
    let shown = format!("{command:?}");
    command.env("OPTPIPE_CACHE_DIR", no_cache()).env("RUST_BACKTRACE", "0").stdin(Stdio::null());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts");
    let begun = Instant::now();
    while child.try_wait().expect("a child").is_none() {
        if begun.elapsed() > Duration::from_secs(60) {
            child.kill().expect("a child");
            panic!("{shown} does not end");
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let output = child.wait_with_output().expect("a child");
    let said = stderr(&output);
    assert!(output.status.code().is_some_and(|code| codes.contains(&code)), "{shown}: {:?}\n{said}", output.status);
    assert!(!said.contains("panicked"), "{shown}: {said}");
    if !output.status.success() {
        assert!(said.lines().any(|line| line.starts_with("error: ")), "{shown}: {said}");
    }
    output
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_optpipe"));
    command.args(args);
    command
}

/// Every command that reads a file, with that file as its first operand.
fn readers(path: &Path) -> Vec<Command> {
    let (path, problem) = (path.display().to_string(), data("instances/a_spec_example.yaml").display().to_string());
    let (profile, job) =
        (data("tiny/profile.yaml").display().to_string(), data("tiny/config.json").display().to_string());
    [
        vec!["solve", &path, "--time-limit", "100ms", "-q"],
        vec!["check", &path, &path],
        vec!["check", &problem, &path],
        vec!["compare", &path, "--time-limit", "100ms", "-q"],
        vec!["export", &problem, &path, "--to", "csv", "-o", "/nowhere"],
        vec!["profile", &path, "-q"],
        vec!["run", &path, &path, "--problem", &path, "-q"],
        vec!["rehearse", &path, &path, "-q"],
        vec!["search", &path, "-q"],
        vec!["solve", &profile, "--job", &path, "--hardware", &path, "-q"],
        vec!["solve", &job, "--profile", &path, "-q"],
        vec!["tune", &path, "--out", "/nowhere", "-q"],
    ]
    .iter()
    .map(|args| command(args))
    .collect()
}

#[test]
fn hostile_files_are_refused_by_every_command() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let bytes = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        std::fs::write(&path, bytes).expect("a temporary folder can be written");
        path
    };
    let laughs = "a: &a [x, x, x, x, x, x, x, x, x]\n".to_owned()
        + &["b", "c", "d", "e", "f", "g", "h", "i", "j"]
            .iter()
            .zip("abcdefghi".chars())
            .map(|(name, of)| format!("{name}: &{name} [{}]\n", format!("*{of}, ").repeat(9)))
            .collect::<String>();
    let hostile: Vec<PathBuf> = vec![
        bytes("empty.yaml", b""),
        bytes("latin1.yaml", b"model: caf\xe9\n"),
        bytes("zeros.yaml", &[0; 4096]),
        bytes("laughs.yaml", laughs.as_bytes()),
        bytes("deep.yaml", "[".repeat(100_000).as_bytes()),
        bytes("deep.json", "{\"a\":".repeat(100_000).as_bytes()),
        bytes("scalar.yaml", b"42\n"),
        bytes("list.yaml", b"- 1\n- 2\n"),
        bytes("cut.yaml", b"version: 1\ndevices: 2\nplacement: [0, \n"),
        bytes("cyclic.yaml", b"model: &a [*a]\ndevices: *a\n"),
        bytes("cyclic_map.yaml", b"a: &a {<<: *a, model: *a}\ntime_ns: *a\n"),
        folder.path().to_owned(),
        folder.path().join("absent.yaml"),
        // Of no length, and without an end.
        #[cfg(target_os = "linux")]
        "/dev/zero".into(),
    ];
    for path in &hostile {
        for mut command in readers(path) {
            ends(&mut command, &[2]);
        }
    }
}

#[test]
fn hostile_numbers_are_refused_where_they_stand() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let good = std::fs::read_to_string(data("instances/a_spec_example.yaml")).expect("the instance is there");
    let lines: Vec<&str> = good.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        let Some((key, value)) = line.split_once(": ") else { continue };
        for number in ["1000000000", "-1", ".nan", ".inf", "1e400", "9223372036854775807", "99999999999999999999999"] {
            // In a list the first number, else the number itself.
            let changed = match value.split_once('[') {
                Some((before, list)) => {
                    let rest = list.find([',', ']']).map_or("", |end| &list[end..]);
                    format!("{key}: {before}[{number}{rest}")
                }
                None if value.trim().starts_with(|c: char| c.is_ascii_digit()) => format!("{key}: {number}"),
                None => continue,
            };
            let text = [&lines[..at], &[changed.as_str()], &lines[at + 1..]].concat().join("\n");
            let path = file(folder.path(), "problem.yaml", &text);
            let path = path.display().to_string();
            let output = ends(&mut command(&["solve", &path, "--time-limit", "50ms", "-q"]), &[0, 2, 3]);
            if output.status.code() == Some(2) {
                let said = stderr(&output);
                assert!(said.contains("problem.yaml:"), "`{changed}` without its line: {said}");
            }
        }
    }
}

#[test]
fn places_that_cannot_be_written_are_named_and_nothing_is_lost() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let problem = data("instances/a_spec_example.yaml").display().to_string();
    let solve = |to: &str| ends(&mut command(&["solve", &problem, "-q", "-o", to]), &[0, 1]);
    // A file where a folder is needed, a system folder that takes no files, a folder instead of a file.
    let blocked = file(folder.path(), "file", "precious");
    for to in [
        format!("{}/schedule.yaml", blocked.display()),
        "/proc/schedule.yaml".to_owned(),
        folder.path().display().to_string(),
    ] {
        let output = solve(&to);
        assert_eq!(output.status.code(), Some(1), "{to}");
        assert!(stderr(&output).contains("cannot write"), "{}", stderr(&output));
    }
    assert_eq!(std::fs::read_to_string(&blocked).expect("still there"), "precious");
    // A device is written to, not replaced.
    #[cfg(target_os = "linux")]
    {
        assert_eq!(solve("/dev/null").status.code(), Some(0));
        let full = solve("/dev/full");
        assert_eq!(full.status.code(), Some(1));
        assert!(stderr(&full).contains("No space left"), "{}", stderr(&full));
        use std::os::unix::fs::FileTypeExt;
        let kind = std::fs::metadata("/dev/full").expect("a device").file_type();
        assert!(kind.is_char_device());
        let full = std::fs::File::options().write(true).open("/dev/full").expect("a device");
        let mut command = command(&["solve", &problem, "-q"]);
        let output = command.env("OPTPIPE_CACHE_DIR", no_cache()).stdout(full).output().expect("runs");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("cannot write to stdout"), "{}", stderr(&output));
    }
    // A link keeps pointing where it did.
    #[cfg(unix)]
    {
        let (real, link) = (file(folder.path(), "real.yaml", "old"), folder.path().join("link.yaml"));
        std::os::unix::fs::symlink(&real, &link).expect("a link");
        assert_eq!(solve(&link.display().to_string()).status.code(), Some(0));
        assert!(link.is_symlink());
        assert!(std::fs::read_to_string(&real).expect("there").contains("ops"), "written through the link");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever is done to a problem's text: it is refused, or solved to a schedule that holds.
    #[test]
    fn changed_problems_are_refused_or_solved(
        which in 0_usize..14,
        edits in prop::collection::vec((any::<prop::sample::Index>(), 0_u8..6, "[-0-9.,: \\[\\]a-z]{0,6}"), 1..4),
    ) {
        let folder = data("instances");
        let mut names: Vec<PathBuf> = std::fs::read_dir(folder).expect("a folder").flatten().map(|e| e.path()).collect();
        names.retain(|path| path.extension().is_some_and(|x| x == "yaml"));
        names.sort();
        let mut lines: Vec<String> =
            std::fs::read_to_string(&names[which % names.len()]).expect("text").lines().map(str::to_owned).collect();
        for (at, what, text) in edits {
            let at = at.index(lines.len().max(1)).min(lines.len().saturating_sub(1));
            let Some(line) = lines.get_mut(at) else { break };
            match what {
                0 => drop(lines.remove(at)),
                1 => { let copy = line.clone(); lines.insert(at, copy) }
                2 => line.push_str(&text),
                3 => { let middle = line.len() / 2; if line.is_char_boundary(middle) { line.insert_str(middle, &text) } }
                4 => if let Some(digit) = line.find(|c: char| c.is_ascii_digit()) { line.replace_range(digit..=digit, &text) },
                _ => *line = text,
            }
        }
        let (path, text) = (Path::new("problem.yaml"), lines.join("\n"));
        let read = file::parse::<Problem>(path, &text).and_then(|problem| file::checked(path, &text, problem));
        let Ok(problem) = read else { return Ok(()) };
        let options = SolveOptions { time_limit: Duration::from_millis(20), ..SolveOptions::default() };
        let never = std::sync::atomic::AtomicBool::new(false);
        if let Ok(solution) = solve(&problem, &options, &mut |_| {}, &never) {
            let report = check(&problem, &solution.schedule);
            prop_assert!(report.is_legal(), "{:?}", report.violations);
            prop_assert!(solution.bound_ns <= solution.makespan_ns);
        }
    }
}

/// Every file below a folder, but for those that are being written or locked.
fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Whether a file of a tune is all there.
fn is_whole(path: &Path) -> bool {
    let text = std::fs::read_to_string(path).expect("text");
    let name = path.file_name().and_then(|name| name.to_str()).expect("a name");
    match path.extension().and_then(|x| x.to_str()) {
        Some("yaml" | "json") => serde_yaml::from_str::<serde_yaml::Value>(&text).is_ok_and(|value| value.is_mapping()),
        Some("html") => text.trim_end().ends_with("</html>"),
        Some("svg") => text.trim_end().ends_with("</svg>"),
        // What a kill in the middle of a write leaves; nobody reads it, and the next tune removes it.
        Some("tmp") => name.starts_with(".optpipe-"),
        _ => name == ".lock",
    }
}

#[test]
fn a_tune_killed_at_any_moments_goes_on_and_never_leaves_half_a_file() {
    let folder = tempfile::tempdir().expect("temporary folder");
    // By iterations, not by time: the same problem gets the same schedule.
    let solver = "solver: {time_limit: 60s, iterations: 40}\n";
    let job = tiny_job(folder.path(), &format!("run: {{textbook: false, steps: 1}}\n{solver}"));
    let (hardware, profile) = (data("tiny/hardware.yaml"), data("tiny/profile.yaml"));
    let tune = |out: &Path| {
        let mut tune = command(&["tune", "--resume", "-q"]);
        tune.arg(&job).arg("--out").arg(out).arg("--hardware").arg(&hardware).arg("--profile").arg(&profile);
        tune.env("OPTPIPE_CACHE_DIR", no_cache()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        tune
    };
    let undisturbed = folder.path().join("undisturbed");
    assert!(tune(&undisturbed).status().expect("runs").success());
    let first = |out: &Path, name: &str| std::fs::read_to_string(out.join("rounds/01").join(name)).expect("text");
    let mut random = 88_172_645_463_325_252_u64 ^ u64::from(std::process::id());
    let mut tunes = 0;
    let mut out = folder.path().join("0");
    for _ in 0..50 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let mut child = tune(&out).spawn().expect("starts");
        std::thread::sleep(Duration::from_millis(random % 400));
        child.kill().expect("a child");
        child.wait().expect("a child");
        for path in files(&out) {
            assert!(is_whole(&path), "half a file: {}", path.display());
        }
        if out.join("summary.yaml").exists() && out.join("report.html").exists() {
            tunes += 1;
            out = folder.path().join(tunes.to_string());
        }
    }
    let output = tune(&out).stderr(Stdio::piped()).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(files(&out).iter().all(|path| path.extension().is_none_or(|x| x != "tmp")), "{:?}", files(&out));
    // The same as without kills, as far as it does not depend on measured times...
    for out in (0..tunes).map(|tune| folder.path().join(tune.to_string())).chain([out.clone()]) {
        for name in ["problem.yaml", "schedule.yaml"] {
            assert_eq!(first(&out, name), first(&undisturbed, name), "{name} of {}", out.display());
        }
        // What is kept is one pair, not the problem of one round and the schedule of another.
        optpipe().arg("check").arg(out.join("problem.yaml")).arg(out.join("schedule.yaml")).assert().success();
    }
    // ... and where it does: the best measured round is what is kept.
    let read = |path: PathBuf| -> serde_yaml::Value {
        serde_yaml::from_str(&std::fs::read_to_string(path).expect("text")).expect("YAML")
    };
    let rounds: Vec<u64> = (1..)
        .map(|round| out.join(format!("rounds/{round:02}/round.yaml")))
        .take_while(|path| path.exists())
        .map(|path| read(path)["measured"]["step"]["median_ns"].as_u64().expect("a time"))
        .collect();
    let best = read(out.join("summary.yaml"))["best"]["measured"]["step"]["median_ns"].as_u64().expect("a time");
    assert_eq!(Some(&best), rounds.iter().min(), "{rounds:?}");
}

#[test]
fn a_pair_of_files_torn_by_a_kill_is_mended_before_anything_else_is_done() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (job, out) = (tiny_job(folder.path(), "stop: {max_rounds: 1}\n"), folder.path().join("out"));
    let tune = || {
        let mut tune = command(&["tune", "--resume", "-q"]);
        let (hardware, profile) = (data("tiny/hardware.yaml"), data("tiny/profile.yaml"));
        tune.arg(&job).arg("--out").arg(&out).arg("--hardware").arg(&hardware).arg("--profile").arg(&profile);
        tune
    };
    ends(&mut tune(), &[0]);
    // As after a kill between the two: the schedule is older. What comes next must not get to its end.
    std::fs::write(out.join("schedule.yaml"), "makespan_ns: 0\nops: [[], []]\n").expect("written");
    std::fs::remove_file(out.join("summary.yaml")).expect("a tune writes it");
    for method in std::fs::read_dir(out.join("comparison")).expect("a folder").flatten() {
        std::fs::remove_file(method.path().join("measured.yaml")).expect("a comparison writes it");
        std::fs::remove_file(method.path().join("schedule.yaml")).expect("a comparison writes it");
        std::fs::create_dir(method.path().join("schedule.yaml")).expect("a folder in the way");
    }
    ends(&mut tune(), &[1]);
    optpipe().arg("check").arg(out.join("problem.yaml")).arg(out.join("schedule.yaml")).assert().success();
}
