//! Disks that are full or read-only under a tune: it says so, and loses nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{data, no_cache, optpipe, stderr, tiny_job};

fn job(folder: &Path) -> PathBuf {
    tiny_job(folder, "run: {textbook: false, steps: 1}\nsolver: {time_limit: 200ms}\n")
}

/// The words of a tune into a folder, the program first.
fn tune(job: &Path, out: &Path) -> Vec<std::ffi::OsString> {
    let (hardware, profile) = (data("tiny/hardware.yaml"), data("tiny/profile.yaml"));
    vec![
        env!("CARGO_BIN_EXE_optpipe").into(),
        "tune".into(),
        "--resume".into(),
        "-q".into(),
        job.into(),
        "--out".into(),
        out.into(),
        "--hardware".into(),
        hardware.into(),
        "--profile".into(),
        profile.into(),
    ]
}

fn run(words: &[std::ffi::OsString]) -> Output {
    Command::new(&words[0]).args(&words[1..]).env("OPTPIPE_CACHE_DIR", no_cache()).output().expect("runs")
}

/// The records of measured rounds, which took the time.
fn rounds(out: &Path) -> Vec<String> {
    let record = |round: usize| out.join(format!("rounds/{round:02}/round.yaml"));
    (1..)
        .map(record)
        .take_while(|path| path.exists())
        .map(|path| std::fs::read_to_string(path).expect("text"))
        .collect()
}

/// One clear error that names a file or folder below `out` and the cause.
fn assert_says(output: &Output, out: &Path, cause: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    // On a busy machine a warning may stand before it.
    let error = said.split_once("error: ").map(|(_, error)| error.to_owned()).unwrap_or_default();
    assert!(error.contains(&out.display().to_string()), "{said}");
    assert!(error.contains("cannot") && error.contains(cause), "{said}");
}

/// The tune goes on to its end with the rounds that were measured.
fn assert_goes_on(job: &Path, out: &Path, before: &[String]) {
    let output = run(&tune(job, out));
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(rounds(out).starts_with(before), "a measured round was lost");
    optpipe().arg("check").arg(out.join("problem.yaml")).arg(out.join("schedule.yaml")).assert().success();
    assert!(out.join("report.html").exists());
}

#[test]
#[cfg(unix)]
fn files_that_cannot_be_written_to_their_end_cost_no_round() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let job = job(folder.path());
    let mut kept = 0;
    // The system's limit on a file's size, KiB, stands for a disk that gets full at one moment or another.
    for limit in ["0", "1", "2", "4", "16"] {
        let out = folder.path().join(limit);
        let limited = format!("trap '' XFSZ; ulimit -f {limit}; exec \"$@\"");
        let mut words = vec!["bash".into(), "-c".into(), limited.into(), "bash".into()];
        words.extend(tune(&job, &out));
        assert_says(&run(&words), &out, "File too large");
        let before = rounds(&out);
        kept += before.len();
        let leftovers = std::fs::read_dir(&out).expect("a folder").flatten().map(|entry| entry.path());
        let leftovers: Vec<_> = leftovers.filter(|path| path.extension().is_some_and(|x| x == "tmp")).collect();
        assert!(leftovers.is_empty(), "{leftovers:?}");
        assert_goes_on(&job, &out, &before);
    }
    assert!(kept > 0, "no limit let a round through");
}

/// A disk of its own, where the system lets us have one.
#[cfg(target_os = "linux")]
struct Disk(PathBuf);

#[cfg(target_os = "linux")]
impl Disk {
    fn mount(words: &[&str], place: &Path) -> bool {
        Command::new("mount").args(words).arg(place).output().is_ok_and(|output| output.status.success())
    }

    fn new(place: &Path, size: &str) -> Option<Disk> {
        std::fs::create_dir(place).expect("a folder");
        Disk::mount(&["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"], place).then(|| Disk(place.to_owned()))
    }

    fn change(&self, options: &str) {
        assert!(Disk::mount(&["-o", &format!("remount,{options}")], &self.0), "{options}");
    }
}

#[cfg(target_os = "linux")]
impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_is_full_or_read_only_costs_no_round() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let job = job(folder.path());
    for size in ["16k", "48k", "96k"] {
        let Some(disk) = Disk::new(&folder.path().join(size), size) else {
            eprintln!("skipped: no disk can be mounted here");
            return;
        };
        let out = disk.0.join("out");
        assert_says(&run(&tune(&job, &out)), &out, "No space left on device");
        disk.change("ro");
        assert_says(&run(&tune(&job, &out)), &out, "Read-only file system");
        disk.change("rw,size=64m");
        let before = rounds(&out);
        assert_goes_on(&job, &out, &before);
    }
}
