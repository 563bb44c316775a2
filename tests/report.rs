//! `optpipe report` on the built binary: what it needs, what it writes.

use std::path::Path;

use crate::support::{data, file, optpipe, stderr, stdout, tiny_job};

/// A finished tune of the tiny model.
fn tuned(folder: &Path) -> std::path::PathBuf {
    let (job, out) = (tiny_job(folder, "stop: {max_rounds: 1}\n"), folder.join("out"));
    let mut tune = optpipe();
    tune.arg("tune").arg(&job).arg("--out").arg(&out).arg("-q");
    tune.arg("--hardware").arg(data("tiny/hardware.yaml")).arg("--profile").arg(data("tiny/profile.yaml"));
    tune.assert().success();
    out
}

#[test]
fn a_report_is_made_again_from_the_files_and_elsewhere() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let out = tuned(folder.path());
    let written = std::fs::read_to_string(out.join("report.html")).expect("a tune writes it");
    assert!(written.contains("What more memory or bandwidth would buy") && written.contains("Memory against time"));
    let elsewhere = folder.path().join("page.html");
    let output = optpipe().arg("report").arg(&out).arg("-o").arg(&elsewhere).output().expect("runs");
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("wrote ") && stderr(&output).contains("page.html"));
    assert!(stdout(&output).is_empty(), "the page is in its file");
    assert_eq!(std::fs::read_to_string(&elsewhere).expect("a page"), written, "the same files make the same page");

    // Without what takes solving it says how to get that; with it, the limit asked for.
    std::fs::remove_file(out.join("sensitivity.yaml")).expect("a tune writes it");
    optpipe().arg("report").arg(&out).assert().success();
    let without = std::fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(without.contains("--sensitivity"));
    let solved = optpipe().arg("report").arg(&out).args(["--sensitivity", "--time-limit", "60ms", "-q"]).output();
    assert!(solved.is_ok_and(|output| output.status.success()));
    let with = std::fs::read_to_string(out.join("report.html")).expect("a page");
    assert!(with.contains("at most 60.0 ms each"), "says which limit was used");
}

#[cfg(target_os = "linux")]
#[test]
fn a_browser_is_started_and_not_waited_for() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let out = tuned(folder.path());
    let shown = folder.path().join("shown");
    let opener = |script: &str| {
        let path = file(folder.path(), "xdg-open", &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
    };
    let report = |path: &str| {
        let mut report = optpipe();
        report.arg("report").arg(&out).arg("--open").env("PATH", path).env("SHOWN", &shown);
        report.output().expect("runs")
    };
    let path = format!("{}:/usr/bin:/bin", folder.path().display());
    // It shows its page for as long as the user looks at it.
    opener("echo $$ $1 >$SHOWN.new; mv $SHOWN.new $SHOWN; exec sleep 600");
    let output = report(&path);
    assert!(output.status.success(), "{}", stderr(&output));
    let begun = std::time::Instant::now();
    while !shown.exists() {
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "the opener was not started");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = std::fs::read_to_string(&shown).expect("text");
    let (browser, page) = said.trim().split_once(' ').expect("two words");
    assert_eq!(Path::new(page), out.join("report.html"));
    // That a signal reaches it says that it still runs.
    let ended = std::process::Command::new("kill").arg(browser).status();
    assert!(ended.is_ok_and(|status| status.success()), "the browser was waited for");

    opener("exit 3");
    // On a busy machine an opener may take longer to fail than anyone waits for it.
    let failed = (0..20).map(|_| report(&path)).find(|output| !output.status.success());
    for output in [failed.expect("the opener's failure is noticed"), report("/nowhere")] {
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("hint: open the file"), "{}", stderr(&output));
    }
}

#[test]
fn what_cannot_be_shown_is_refused_with_advice() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let refused = |advice: &str| {
        let output = optpipe().arg("report").arg(folder.path().join("out")).output().expect("runs");
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains(advice), "{}", stderr(&output));
    };
    refused("optpipe tune");
    let out = tuned(folder.path());
    let schedule = out.join("rounds/01/schedule.yaml");
    let text = std::fs::read_to_string(&schedule).expect("a schedule");
    std::fs::write(&schedule, text.replacen("microbatch: 0", "microbatch: 99", 1)).expect("writable");
    refused("microbatch 99");
    std::fs::write(&schedule, "ops: [").expect("writable");
    refused("rounds/01/schedule.yaml");
    let summary = out.join("summary.yaml");
    let text = std::fs::read_to_string(&summary).expect("a summary");
    std::fs::write(&schedule, "{makespan_ns: 0, ops: []}").expect("writable");
    std::fs::write(&summary, text.replace("best_round: 1", "best_round: 7")).expect("writable");
    refused("best_round");
}
