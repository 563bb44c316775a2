//! Replays against the solver's own simulator, and the numbers made from them.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_configs::file;
use optpipe_solver::method::Method;
use optpipe_solver::schedule::OpKind;
use optpipe_solver::simulate::simulate;
use optpipe_solver::solve::{SolveOptions, solve};
use optpipe_solver::textbook;

use super::*;

fn instances() -> Vec<(String, Problem)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/instances");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|x| x == "yaml"));
    files.sort();
    let problems = files.iter().map(|path| (path.display().to_string(), file::read_checked::<Problem>(path).unwrap()));
    let feasible: Vec<_> = problems.filter(|(_, problem)| problem.feasible().is_ok()).collect();
    assert!(feasible.len() > 10);
    feasible
}

fn schedule(problem: &Problem, method: Method) -> Schedule {
    let options = SolveOptions { method, time_limit: Duration::from_millis(300), ..SolveOptions::default() };
    solve(problem, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap().schedule
}

fn exact_times(problem: &Problem) -> Vec<i64> {
    let stages = || 0..problem.stages();
    let of = |(kind, stage)| std::iter::repeat_n(problem.duration(kind, stage), problem.microbatches);
    KINDS.into_iter().flat_map(|kind| stages().map(move |stage| (kind, stage))).flat_map(of).collect()
}

#[test]
fn without_noise_a_replay_takes_what_the_schedule_takes() {
    for (name, problem) in instances() {
        for method in [Method::AdaptiveOffload, Method::Search] {
            let schedule = schedule(&problem, method);
            let order = Order::of(&problem, &schedule);
            let simulated = simulate(&problem, &order).unwrap().schedule.makespan_ns;
            let replayed = Replay::new(&problem, &order).makespan(&exact_times(&problem)).unwrap();
            // Memory may come free in another order than the simulator counts on, never later.
            assert!(replayed <= simulated, "{name}, {method}: {replayed} after {simulated}");
            assert!(replayed >= optpipe_solver::bound::lower_bound(&problem), "{name}, {method}");
        }
    }
}

#[test]
fn any_times_come_to_an_end() {
    for (name, problem) in instances() {
        let schedule = schedule(&problem, Method::AdaptiveOffload);
        let replay = Replay::new(&problem, &Order::of(&problem, &schedule));
        let spreads = Spreads::share(&problem, 1.0);
        let mut rng = Pcg64Mcg::seed_from_u64(7);
        let ops: usize = schedule.ops.iter().map(Vec::len).sum();
        for _ in 0..20 {
            let times = spreads.draw(&problem, &mut rng);
            let busiest = (0..problem.devices).map(|d| {
                let stages = problem.stages_of(d).flat_map(|s| (0..problem.microbatches).map(move |j| (s, j)));
                let at =
                    |kind: usize, s: usize, j: usize| times[(kind * problem.stages() + s) * problem.microbatches + j];
                stages.map(|(s, j)| at(0, s, j) + at(1, s, j) + at(2, s, j)).sum::<i64>()
            });
            let makespan = replay.makespan(&times).expect("comes to its end");
            assert!(makespan >= busiest.max().unwrap_or(0), "{name}: {ops} ops");
            let doubled: Vec<i64> = times.iter().map(|time| 2 * time).collect();
            let mut hops = problem.clone();
            hops.time_ns.send_forward.iter_mut().chain(&mut hops.time_ns.send_backward).for_each(|x| *x *= 2);
            let twice = Replay::new(&hops, &Order::of(&problem, &schedule)).makespan(&doubled);
            assert_eq!(twice, Some(2 * makespan), "{name}: all times doubled double the step");
        }
    }
}

#[test]
fn no_spread_is_no_noise_and_more_spread_is_more() {
    let (_, problem) = instances().into_iter().find(|(name, _)| name.contains("b_p3m6")).unwrap();
    let schedule = textbook::schedule(&problem, Method::OneFOneB).unwrap();
    let none =
        Spreads { parts: KINDS.map(|_| vec![vec![Part { low: 1.0, median: 1.0, high: 1.0 }]; problem.stages()]) };
    let evaluate = |schedules: &[&Schedule], spreads: &Spreads, seed| {
        let evaluated = evaluate(&problem, schedules, spreads, seed, later(), &AtomicBool::new(false));
        assert_eq!(evaluated.draws, draws(&problem));
        evaluated.percentiles.into_iter().map(Option::unwrap).collect::<Vec<_>>()
    };
    let still = evaluate(&[&schedule], &none, 0)[0];
    assert_eq!((still.p50_ns, still.p90_ns), (schedule.makespan_ns, schedule.makespan_ns));
    let width = |share: f64| {
        let found = evaluate(&[&schedule], &Spreads::share(&problem, share), 0)[0];
        assert!(found.p50_ns <= found.p90_ns);
        found.p90_ns - schedule.makespan_ns
    };
    assert!(width(0.02) > 0 && width(0.5) > width(0.1) && width(0.1) > width(0.02));
    let twice = [0, 1].map(|_| evaluate(&[&schedule], &Spreads::share(&problem, 0.2), 3));
    assert_eq!(twice[0], twice[1], "the same seed, the same draws");
    // Common random numbers: equal schedules have equal percentiles.
    let pair = evaluate(&[&schedule, &schedule], &Spreads::share(&problem, 0.2), 3);
    assert_eq!(pair[0], pair[1]);
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

#[test]
fn an_order_that_gets_stuck_has_no_length() {
    let (_, problem) = instances().into_iter().find(|(name, _)| name.contains("b_p3m6")).unwrap();
    let mut order = Order::of(&problem, &schedule(&problem, Method::AdaptiveOffload));
    assert!(Replay::new(&problem, &order).makespan(&exact_times(&problem)).is_some());
    // The first device waits for a gradient before it has sent anything, the others for its activations.
    let backward = order.devices[0].iter().position(|op| op.kind == OpKind::B).unwrap();
    let op = order.devices[0].remove(backward);
    order.devices[0].insert(0, op);
    assert_eq!(Replay::new(&problem, &order).makespan(&exact_times(&problem)), None);
}

#[test]
fn a_deadline_leaves_one_draw_and_a_user_who_stops_none() {
    let (_, problem) = instances().into_iter().find(|(name, _)| name.contains("b_p3m6")).unwrap();
    let schedule = schedule(&problem, Method::AdaptiveOffload);
    let (two, spreads) = ([&schedule, &schedule], Spreads::share(&problem, 0.2));
    let late = evaluate(&problem, &two, &spreads, 0, Instant::now(), &AtomicBool::new(false));
    assert_eq!(late.draws, 1);
    assert!(late.percentiles.iter().all(|x| x.is_some_and(|x| x.p50_ns == x.p90_ns)));
    let stopped = evaluate(&problem, &two, &spreads, 0, later(), &AtomicBool::new(true));
    assert_eq!(stopped, Evaluated { draws: 0, percentiles: vec![None, None] });
}

#[test]
fn layers_are_drawn_one_by_one() {
    let sample = |p05_ns, median_ns, p95_ns| Sample { median_ns, mad_ns: 0, p05_ns, p95_ns, count: 9, stable: true };
    let (a, b) = (sample(90, 100, 150), sample(300, 300, 300));
    let both = parts(&[&a, &b]);
    assert_eq!(both[0], Part { low: 0.225, median: 0.25, high: 0.375 });
    assert_eq!(both[1], Part { low: 0.75, median: 0.75, high: 0.75 });
    let mut rng = Pcg64Mcg::seed_from_u64(1);
    let draws: Vec<f64> = (0..1000).map(|_| both.iter().map(|part| part.draw(&mut rng)).sum()).collect();
    assert!(draws.iter().all(|x| (0.975..=1.125).contains(x)));
    assert!(draws.iter().any(|&x| x > 1.1) && draws.iter().any(|&x| x < 0.98));
}

#[test]
fn a_noise_is_a_word_or_a_percentage() {
    assert_eq!("profile".parse::<Noise>(), Ok(Noise::Profile));
    assert_eq!("5%".parse::<Noise>(), Ok(Noise::Share(0.05)));
    for wrong in ["5", "%", "-1%", "0%", "101%", "nan%", "much"] {
        assert!(wrong.parse::<Noise>().unwrap_err().contains("such as 5%"), "{wrong}");
    }
}
