//! Normal forms, hits and what must not be one.

#![allow(clippy::unwrap_used)]

use std::sync::Barrier;
use std::sync::atomic::AtomicBool;

use optpipe_configs::file;
use optpipe_solver::check::check;
use optpipe_solver::method::Method;
use optpipe_solver::objective::Objective;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{Solution, StopReason};
use proptest::prelude::*;

use super::entry::signed;
use super::solve::{Stored as Found, User};
use super::*;

fn instance(name: &str) -> Problem {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../tests/data/instances/{name}.yaml"));
    file::read_checked(&path).unwrap()
}

fn options(time_limit_ms: u64) -> SolveOptions {
    SolveOptions { time_limit: Duration::from_millis(time_limit_ms), ..SolveOptions::default() }
}

fn normal(problem: &Problem) -> Normal {
    Normal::of(problem, Objective::Makespan)
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
        assert_eq!(normal(&problem).problem, normal(&other).problem, "{name}");
        let cache = Cache::new(folder.path());
        let (first, hit) = solved(&problem, &options(500), &cache);
        assert_eq!(hit, None);
        let (again, hit) = solved(&other, &options(500), &cache);
        assert_eq!(hit, Some(Hit::Exact), "{name}");
        assert_eq!((again.makespan_ns, again.bound_ns), (11 * first.makespan_ns, 11 * first.bound_ns));
        let mut tighter = problem.clone();
        let room: i64 = normal(&problem).problem.bytes.capacity[0];
        assert!(room > 1);
        tighter.bytes.capacity[0] -= 1;
        if tighter.feasible().is_ok() && normal(&tighter).problem != normal(&problem).problem {
            assert_ne!(solved(&tighter, &options(100), &cache).1, Some(Hit::Exact), "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn normal_forms_are_their_own(time in 1_i64..50, bytes in 1_i64..50, more in 0_i64..1000) {
        let form = normal(&disguised(&instance("k_p2v2m3_offload_required"), time, bytes, more));
        prop_assert_eq!(&normal(&form.problem).problem, &form.problem);
        prop_assert_eq!(form.problem, normal(&instance("k_p2v2m3_offload_required")).problem);
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
    assert_eq!(hit, Some(Hit::OtherOptions));
    assert!(other.makespan_ns <= longer.makespan_ns);
    // A method by name shows what it can do itself.
    let search = SolveOptions { method: Method::Search, ..options(50) };
    assert_eq!(solved(&problem, &search, &cache).1, None);
    assert_eq!(solved(&problem, &search, &cache).1, Some(Hit::Exact));
}

#[test]
fn an_exact_hit_tells_how_it_was_found() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let problem = instance("k_p2v2m3_offload_required");
    let (first, _) = solved(&problem, &options(500), &cache);
    assert!(!first.parts.is_empty() && !first.trace.is_empty());
    assert_eq!(solved(&problem, &options(500), &cache), (first.clone(), Some(Hit::Exact)));
    // In other units these numbers would be wrong.
    let (other, hit) = solved(&disguised(&problem, 3, 1, 0), &options(500), &cache);
    assert_eq!((hit, other.makespan_ns), (Some(Hit::Exact), 3 * first.makespan_ns));
    assert!(other.parts.is_empty() && other.trace.is_empty() && other.milp.is_none());
}

#[test]
fn a_period_is_not_proven_by_that_of_a_multiple() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let period = SolveOptions { objective: Objective::Period, ..options(300) };
    for name in ["a_spec_example", "b_p3m6_free_memory", "k_p2v2m3_offload_required"] {
        let problem = instance(name);
        let doubled = disguised(&problem, 2, 1, 0);
        assert_eq!(Normal::of(&doubled, Objective::Period).unit_ns, 1);
        let (first, _) = solved(&problem, &period, &cache);
        assert_eq!(solved(&problem, &period, &cache).1, Some(Hit::Exact), "{name}");
        let (alone, _) = solve(&doubled, &period, None, &mut |_| {}, &AtomicBool::new(false)).unwrap();
        let (beside, hit) = solved(&doubled, &period, &cache);
        assert_ne!(hit, Some(Hit::Exact), "{name}");
        assert!(beside.bound_ns <= alone.period_ns && beside.period_ns <= 2 * first.period_ns, "{name}");
    }
}

/// What is stored for a problem under these options.
fn stored(problem: &Problem, options: &SolveOptions, cache: &Cache) -> Found {
    let user = User { problem, options, cache, normal: normal(problem) };
    user.stored(&Key::new(&user.normal, options)).unwrap()
}

#[test]
fn what_two_find_at_once_is_merged() {
    let problem = instance("n_p4m8_real_60");
    let never = AtomicBool::new(false);
    let options = options(300);
    let (good, _) = solve(&problem, &options, None, &mut |_| {}, &never).unwrap();
    let poor = SolveOptions { method: Method::Gpipe, ..options.clone() };
    let (poor, _) = solve(&problem, &poor, None, &mut |_| {}, &never).unwrap();
    assert!(good.makespan_ns < poor.makespan_ns && good.bound_ns > 1);
    // One has the better schedule, one the better bound, one the longer limit.
    let all = [
        Found { solution: Solution { bound_ns: 1, proven: false, ..good.clone() }, time_limit_ns: 20 },
        Found { solution: Solution { bound_ns: good.bound_ns, ..poor.clone() }, time_limit_ns: 0 },
        Found { solution: Solution { bound_ns: 1, ..poor }, time_limit_ns: 300 },
    ];
    for _ in 0..8 {
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::new(folder.path());
        let together = Barrier::new(all.len());
        std::thread::scope(|scope| {
            for found in &all {
                scope.spawn(|| {
                    let user = User { problem: &problem, options: &options, cache: &cache, normal: normal(&problem) };
                    let key = Key::new(&user.normal, &options);
                    together.wait();
                    user.store(&key, found.clone());
                });
            }
        });
        let merged = stored(&problem, &options, &cache);
        assert_eq!(merged.solution.schedule, good.schedule);
        assert_eq!((merged.solution.bound_ns, merged.time_limit_ns), (good.bound_ns, 300));
    }
}

#[test]
fn a_solve_that_is_cut_short_takes_nothing_away() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let problem = instance("n_p4m8_real_60");
    let (first, _) = solved(&problem, &options(200), &cache);
    assert!(!first.proven);
    let before = stored(&problem, &options(200), &cache);
    let cancelled = AtomicBool::new(true);
    let (short, hit) = solve(&problem, &options(60_000), Some(&cache), &mut |_| {}, &cancelled).unwrap();
    assert_eq!((hit, short.stop), (Some(Hit::Shorter), StopReason::Cancelled));
    assert!(short.makespan_ns <= first.makespan_ns && short.bound_ns >= first.bound_ns);
    let after = stored(&problem, &options(200), &cache);
    assert_eq!(after.time_limit_ns, before.time_limit_ns);
    assert!(after.solution.makespan_ns <= first.makespan_ns && after.solution.bound_ns >= first.bound_ns);
}

#[test]
fn a_callers_start_keeps_its_name_and_is_never_lost() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::new(folder.path());
    let problem = instance("n_p4m8_real_60");
    let never = AtomicBool::new(false);
    let (good, _) = solve(&problem, &options(500), None, &mut |_| {}, &never).unwrap();
    // Found within this limit, but nearly at once.
    let cancelled = AtomicBool::new(true);
    let poor = SolveOptions { method: Method::Gpipe, ..options(0) };
    let (poor, _) = solve(&problem, &poor, None, &mut |_| {}, &cancelled).unwrap();
    assert!(good.makespan_ns < poor.makespan_ns);
    let limit = options(50);
    let user = User { problem: &problem, options: &limit, cache: &cache, normal: normal(&problem) };
    user.store(&Key::new(&user.normal, &limit), Found { solution: poor, time_limit_ns: u64::MAX });
    assert_eq!(solved(&problem, &limit, &cache).1, Some(Hit::Exact));
    let start = Some(good.schedule.clone());
    let start = SolveOptions { start, start_method: Some("mine".to_owned()), ..limit.clone() };
    // Told to stop at once, the solver has nothing but the start.
    let (better, hit) = solve(&problem, &start, Some(&cache), &mut |_| {}, &cancelled).unwrap();
    assert_eq!((hit, better.method.as_str()), (None, "mine"));
    assert!(better.makespan_ns <= good.makespan_ns);
    let (again, hit) = solved(&problem, &limit, &cache);
    assert_eq!((hit, again.method.as_str()), (Some(Hit::Exact), "mine"));
    assert_eq!(again.makespan_ns, better.makespan_ns);
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
    // What is signed may still be wrong: a bound above the makespan, ops and devices that there are not.
    let mut lines = good.lines().skip(1);
    let (head, body) = (lines.next().unwrap(), lines.next().unwrap());
    let lie = body.replace("\"bound_ns\":101", "\"bound_ns\":999");
    let stranger = body.replacen("\"stage\":0", "\"stage\":77", 1);
    let misplaced = head.replacen("\"placement\":[0", "\"placement\":[9", 1);
    let shorter = head.replacen("\"offload_channel\":[", "\"offload_channel\":[5,5,5,", 1);
    assert!(lie != body && stranger != body && misplaced != head && shorter != head);
    let lying = signed(head, &lie);
    let foreign = [signed(head, &stranger), signed(&misplaced, body), signed(&shorter, body), signed(body, head)];
    let damaged = [String::new(), "x".to_owned(), good[..good.len() / 2].to_owned(), bound, "{}\n{}".to_owned()];
    for text in damaged.iter().chain(&foreign).chain([&lying]) {
        std::fs::write(&path, text).unwrap();
        let (again, hit) = solved(&problem, &options(500), &cache);
        // The order of the lying entry is still an order; it is simulated, and its claims are not used.
        assert!(hit.is_none() || hit == Some(Hit::OtherOptions) && *text == lying, "{hit:?}");
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
