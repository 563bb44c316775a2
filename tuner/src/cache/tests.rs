//! Normal forms, hits and what must not be one.

#![allow(clippy::unwrap_used)]

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_configs::file;
use optpipe_solver::check::check;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::SolveOptions;
use proptest::prelude::*;

use super::*;

fn instance(name: &str) -> Problem {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/data/instances/{name}.yaml"));
    file::read_checked(&path).unwrap()
}

fn options(time_limit_ms: u64) -> SolveOptions {
    SolveOptions { time_limit: Duration::from_millis(time_limit_ms), ..SolveOptions::default() }
}

fn solved(problem: &Problem, options: &SolveOptions, cache: &Cache) -> (Solution, Option<Hit>) {
    let (solution, hit) = solve(problem, options, Some(cache), &mut |_| {}, &AtomicBool::new(false)).unwrap();
    assert!(check(problem, &solution.schedule).is_legal());
    (solution, hit)
}

/// The same problem in other units, with other channel names and more `static`.
fn disguised(problem: &Problem, time: i64, bytes: i64, more: i64) -> Problem {
    let mut p = problem.clone();
    let t = &mut p.time_ns;
    for list in [
        &mut t.forward,
        &mut t.backward_input,
        &mut t.backward_weight,
        &mut t.send_forward,
        &mut t.send_backward,
        &mut t.offload,
        &mut t.reload,
    ] {
        list.iter_mut().for_each(|x| *x *= time);
    }
    let b = &mut p.bytes;
    for list in [&mut b.activation, &mut b.weight_context, &mut b.offloadable, &mut b.r#static, &mut b.capacity] {
        list.iter_mut().for_each(|x| *x *= bytes);
    }
    for d in 0..p.devices {
        p.bytes.r#static[d] += more;
        p.bytes.capacity[d] += more + (bytes - 1);
    }
    for channel in p.offload_channel.iter_mut().chain(&mut p.reload_channel) {
        *channel = 900 - 7 * *channel;
    }
    p
}

#[test]
fn what_changes_no_schedule_changes_no_normal_form() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["a_spec_example", "f_p3m5_half_duplex", "h_p2v2m4_interleaved"] {
        let problem = instance(name);
        let other = disguised(&problem, 11, 5, 100);
        assert_eq!(Normal::of(&problem).problem, Normal::of(&other).problem, "{name}");
        let cache = Cache::new(folder.path());
        let (first, hit) = solved(&problem, &options(500), &cache);
        assert_eq!(hit, None);
        let (again, hit) = solved(&other, &options(500), &cache);
        assert_eq!(hit, Some(Hit::Exact), "{name}");
        assert_eq!((again.makespan_ns, again.bound_ns), (11 * first.makespan_ns, 11 * first.bound_ns));
        let mut tighter = problem.clone();
        let room: i64 = Normal::of(&problem).problem.bytes.capacity[0];
        assert!(room > 1);
        tighter.bytes.capacity[0] -= 1;
        if tighter.feasible().is_ok() && Normal::of(&tighter).problem != Normal::of(&problem).problem {
            assert_ne!(solved(&tighter, &options(100), &cache).1, Some(Hit::Exact), "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn normal_forms_are_their_own(time in 1_i64..50, bytes in 1_i64..50, more in 0_i64..1000) {
        let normal = Normal::of(&disguised(&instance("k_p2v2m3_offload_required"), time, bytes, more));
        prop_assert_eq!(&Normal::of(&normal.problem).problem, &normal.problem);
        prop_assert_eq!(normal.problem, Normal::of(&instance("k_p2v2m3_offload_required")).problem);
    }
}

#[test]
fn an_unproven_hit_is_improved_when_there_is_more_time() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let problem = instance("n_p4m8_real_60");
    let (short, hit) = solved(&problem, &options(50), &cache);
    assert!(hit.is_none() && !short.proven);
    assert_eq!(solved(&problem, &options(40), &cache).1, Some(Hit::Exact));
    let (longer, hit) = solved(&problem, &options(300), &cache);
    assert_eq!(hit, Some(Hit::Shorter));
    assert!(longer.makespan_ns <= short.makespan_ns && longer.method != "start");
    let (stored, hit) = solved(&problem, &options(300), &cache);
    assert_eq!((hit, stored.makespan_ns), (Some(Hit::Exact), longer.makespan_ns));
    // Another seed is another solve, which starts from what is known.
    let (other, hit) = solved(&problem, &SolveOptions { seed: 5, ..options(50) }, &cache);
    assert_eq!(hit, Some(Hit::Near));
    assert!(other.makespan_ns <= longer.makespan_ns);
}

#[test]
fn similar_times_are_a_start_and_different_ones_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let problem = instance("n_p4m8_real_60");
    solved(&problem, &options(100), &cache);
    let mut similar = problem.clone();
    similar.time_ns.forward[1] += similar.time_ns.forward[1] / 20;
    assert_eq!(solved(&similar, &options(50), &cache).1, Some(Hit::Near));
    let mut different = problem.clone();
    different.time_ns.forward[1] *= 3;
    assert_eq!(solved(&different, &options(50), &cache).1, None);
}

#[test]
fn repeatable_solves_do_not_depend_on_others() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let problem = instance("n_p4m8_real_60");
    let repeatable = SolveOptions { iterations: Some(300), ..options(60_000) };
    let (alone, _) = solve(&problem, &repeatable, None, &mut |_| {}, &AtomicBool::new(false)).unwrap();
    solved(&problem, &options(300), &cache);
    let (beside, hit) = solved(&problem, &repeatable, &cache);
    assert_eq!((beside.schedule, hit), (alone.schedule.clone(), None));
    let (again, hit) = solved(&problem, &repeatable, &cache);
    assert_eq!((again.schedule, hit), (alone.schedule, Some(Hit::Exact)));
}

#[test]
fn damaged_and_foreign_files_are_no_entries() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let problem = instance("a_spec_example");
    let (first, _) = solved(&problem, &options(500), &cache);
    let files = cache.files();
    let path = cache.folder.join(&files[0].name);
    assert_eq!(files.len(), 1);
    let good = std::fs::read_to_string(&path).unwrap();
    let bound = good.replace("\"bound_ns\":101", "\"bound_ns\":999");
    assert_ne!(bound, good);
    // A bound above the makespan is a lie even where the fingerprint holds.
    let body = bound.split_once('\n').unwrap().1;
    let signed = format!("{MAGIC}{:016x}\n{body}", fingerprint(&[body.as_bytes()]));
    for damaged in ["", "x", &good[..good.len() / 2], &bound, &signed, "{\"options\": 1}\n{}"] {
        std::fs::write(&path, damaged).unwrap();
        let (again, hit) = solved(&problem, &options(500), &cache);
        // The order of the lying entry is still an order; it is simulated, and its claims are not used.
        assert!(hit.is_none() || hit == Some(Hit::Near) && damaged == signed, "{hit:?}");
        assert_eq!((again.makespan_ns, again.bound_ns), (first.makespan_ns, first.bound_ns));
    }
    std::fs::write(&path, b"\xff\xfe").unwrap();
    assert_eq!(solved(&problem, &options(500), &cache).1, None);
    assert_eq!(solved(&problem, &options(500), &cache).1, Some(Hit::Exact));
}

#[test]
fn the_oldest_entries_go_first() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    for (age, name) in ["a-1.entry", "b-2.entry", "c-3.entry"].iter().enumerate() {
        let path = cache.folder.join(name);
        file::write_text(&path, "1234567890").unwrap();
        let old = SystemTime::now() - Duration::from_secs(1000 * (3 - age as u64));
        std::fs::File::options().append(true).open(path).unwrap().set_modified(old).unwrap();
    }
    let left = |cache: &Cache| {
        let mut names: Vec<_> = cache.files().into_iter().map(|file| file.name).collect();
        names.sort();
        names.join(" ")
    };
    cache.evict(1000, 10);
    assert_eq!(left(&cache), "a-1.entry b-2.entry c-3.entry");
    cache.evict(20, 10);
    assert_eq!(left(&cache), "b-2.entry c-3.entry");
    cache.evict(20, 1);
    assert_eq!(left(&cache), "c-3.entry");
    let leftover = cache.folder.join(".optpipe-x.tmp");
    std::fs::write(&leftover, "").unwrap();
    cache.evict(20, 1);
    assert!(leftover.exists(), "another process may be writing it");
    let old = SystemTime::now() - 2 * ABANDONED;
    std::fs::File::options().append(true).open(&leftover).unwrap().set_modified(old).unwrap();
    cache.evict(20, 1);
    assert!(!leftover.exists());
}

#[test]
fn a_folder_that_cannot_be_written_is_no_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let cache = Cache::new(&file);
    assert_eq!(solved(&instance("a_spec_example"), &options(500), &cache).1, None);
}

#[cfg(target_os = "linux")]
#[test]
fn the_folder_is_the_users() {
    let folder = |set: &[(&str, &str)]| {
        user_folder(|name| set.iter().find(|(key, _)| *key == name).map(|(_, value)| OsString::from(value)))
    };
    assert_eq!(folder(&[]), None);
    assert_eq!(folder(&[("HOME", "/home/a")]), Some("/home/a/.cache/optpipe".into()));
    let xdg = [("HOME", "/home/a"), ("XDG_CACHE_HOME", "/var/c")];
    assert_eq!(folder(&xdg), Some("/var/c/optpipe".into()));
    assert_eq!(folder(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "c")]), Some("/home/a/.cache/optpipe".into()));
    assert_eq!(folder(&[("OPTPIPE_CACHE_DIR", "mine"), ("HOME", "/home/a")]), Some("mine".into()));
    assert_eq!(folder(&[("OPTPIPE_CACHE_DIR", ""), ("HOME", "/home/a")]), Some("/home/a/.cache/optpipe".into()));
}
