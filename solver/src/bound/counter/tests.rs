use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::certificate::Certificate;
use super::model::{Known, Meaning, Model, Queue, Scope};
use super::{counter_bound, solver};
use crate::bound::lower_bound;
use crate::common::{Most, problems};
use crate::method::Method;
use crate::problem::Problem;
use crate::schedule::{OpKind, Schedule, ScheduledOp};
use crate::solve::{Solution, SolveOptions, solve};
use crate::testing::uniform;

const MOST: Most = Most { devices: 4, stages: 6, microbatches: 5, least_time: 0 };
const SMALL: Most = Most { devices: 3, stages: 3, microbatches: 3, least_time: 0 };

fn solved(problem: &Problem, method: Method, seed: u64) -> Solution {
    let options = SolveOptions {
        method,
        seed,
        iterations: Some(2_000),
        time_limit: Duration::from_secs(2),
        ..SolveOptions::default()
    };
    solve(problem, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn refined(problem: &Problem, best_ns: i64) -> i64 {
    counter_bound(problem, 0, &|| best_ns, soon(), &AtomicBool::new(false), &mut |_| {})
}

/// The value of each column in a schedule.
fn counts(problem: &Problem, schedule: &Schedule, model: &Model, devices: &[usize]) -> Vec<i64> {
    let first = schedule.ops.iter().flatten().map(|x| x.start_ns).min().unwrap_or(0);
    let starts = |kind: OpKind, stage: usize| {
        let ops = schedule.ops.iter().flatten().filter(move |x| x.op == kind && x.stage == stage);
        ops.map(|x| (x.microbatch, x.start_ns - first)).collect::<Vec<_>>()
    };
    let offloaded = |s: usize| starts(OpKind::O, s).iter().map(|x| x.0).collect::<Vec<_>>();
    let value = |meaning: &Meaning| match *meaning {
        Meaning::Started(kind, s, t) => starts(kind, s).iter().filter(|x| x.1 <= t).count(),
        Meaning::Kept(s, t) => starts(OpKind::F, s).iter().filter(|x| x.1 <= t && !offloaded(s).contains(&x.0)).count(),
        Meaning::Offloaded(s) => offloaded(s).len(),
        Meaning::Resident(s) => problem.microbatches - offloaded(s).len(),
        Meaning::Idle(queue, from, to) => {
            let own = |x: &&ScheduledOp| match queue {
                Queue::Compute(d) => x.op.is_compute() && problem.placement[x.stage] == d,
                Queue::Channel(c) => {
                    let d = problem.placement[x.stage];
                    let of = if x.op == OpKind::O { problem.offload_channel[d] } else { problem.reload_channel[d] };
                    !x.op.is_compute() && of == c && devices.contains(&d)
                }
            };
            let ops = schedule.ops.iter().flatten().filter(own);
            let done = ops.map(|x| problem.duration(x.op, x.stage).min((to - (x.start_ns - first)).max(0)));
            (to - from - done.sum::<i64>()) as usize
        }
    };
    model.meanings.iter().map(|x| value(x) as i64).collect()
}

/// What the model forbids of a schedule.
fn broken(problem: &Problem, schedule: &Schedule, step_ns: i64, devices: Vec<usize>) -> Option<String> {
    let scope = Scope { horizon_ns: schedule.makespan_ns, step_ns, devices: devices.clone() };
    let model = Model::build(&Known::new(problem), &scope);
    let counts = counts(problem, schedule, &model, &devices);
    for ((&(low, high), count), meaning) in model.columns.iter().zip(&counts).zip(&model.meanings) {
        if *count < low || *count > high {
            return Some(format!("{meaning:?} is {count}, not in {low}..={high}"));
        }
    }
    for row in &model.rows {
        let sum: i64 = row.terms.iter().map(|&(column, x)| x * counts[column]).sum();
        if sum > row.most {
            let terms: Vec<_> = row.terms.iter().map(|&(c, x)| (x, model.meanings[c], counts[c])).collect();
            return Some(format!("{sum} > {} in {terms:?}", row.most));
        }
    }
    None
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_legal_schedule_is_a_solution(
        problem in problems(MOST), step in 1..12_i64, left_out in 0..5_usize, seed in 0..1000_u64,
        method in prop::sample::select(vec![Method::AdaptiveOffload, Method::Search, Method::OneFOneB, Method::Gpipe]),
    ) {
        let schedule = solved(&problem, method, seed).schedule;
        let devices: Vec<usize> = (0..problem.devices).filter(|&d| d != left_out).collect();
        prop_assert_eq!(broken(&problem, &schedule, step, devices), None);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_bound_lies_between_the_combinatorial_one_and_the_optimum(problem in problems(SMALL)) {
        let makespan = solved(&problem, Method::Auto, 0).makespan_ns;
        // As if a longer schedule were the best known: the bound must stop at the optimum by itself.
        let bound = refined(&problem, 2 * makespan + 10);
        prop_assert!(bound <= makespan, "{} > {}", bound, makespan);
        prop_assert!(bound >= lower_bound(&problem));
    }
}

/// Four devices in a row, room for two microbatches, one link for each two devices.
fn tight() -> Problem {
    let mut problem = uniform(4, vec![0, 1, 2, 3], 8);
    let t = &mut problem.time_ns;
    for times in [&mut t.forward, &mut t.backward_input, &mut t.backward_weight] {
        *times = vec![10; 4];
    }
    (t.offload, t.reload) = (vec![15; 4], vec![15; 4]);
    problem.bytes.capacity = vec![4; 4];
    (problem.offload_channel, problem.reload_channel) = (vec![0, 0, 1, 1], vec![2, 2, 3, 3]);
    problem
}

#[test]
fn tight_memory_on_shared_links_is_bounded_well() {
    let problem = tight();
    assert_eq!(lower_bound(&problem), 270);
    let bound = refined(&problem, 305);
    assert!((290..=305).contains(&bound), "{bound}");
}

#[test]
fn a_certificate_proves_only_what_it_was_made_for() {
    let (problem, never) = (tight(), AtomicBool::new(false));
    let known = Known::new(&problem);
    let model = |horizon_ns| Model::build(&known, &Scope { horizon_ns, step_ns: 5, devices: vec![0, 1, 2, 3] });
    let refuted = model(280);
    let limits = solver::Limits { deadline: soon(), cancel: &never };
    let multipliers = solver::multipliers(&refuted, &limits).unwrap().0;
    let certificate = Certificate::round(&multipliers);
    assert!(certificate.proves(&refuted));
    // A schedule of 305 exists; what has no effect proves nothing; nor do multipliers of the wrong sign.
    let zero = Certificate { multipliers: vec![0; refuted.rows.len()] };
    assert!(!zero.proves(&refuted));
    let possible = model(305);
    let mut other = certificate.clone();
    other.multipliers.resize(possible.rows.len(), 0);
    assert!(!other.proves(&possible));
    let negative = Certificate { multipliers: certificate.multipliers.iter().map(|x| -x).collect() };
    assert!(!negative.proves(&refuted));
    let mut longer = certificate.clone();
    longer.multipliers.push(0);
    assert!(!longer.proves(&refuted));
    // Without one of the resources that it rests on, the contradiction is gone.
    let mut without = certificate;
    for (row, multiplier) in refuted.rows.iter().zip(&mut without.multipliers) {
        if row.limit > 0 {
            *multiplier = 0;
        }
    }
    assert!(!without.proves(&refuted));
}

#[test]
fn what_overflows_proves_nothing() {
    let row = super::model::Row { terms: vec![(0, i64::MAX), (0, i64::MAX)], most: i64::MIN, norm: 1, limit: 1 };
    let model = Model { columns: vec![(0, i64::MAX)], units: vec![1], meanings: Vec::new(), rows: vec![row; 6] };
    assert!(!Certificate { multipliers: vec![i64::MAX; 6] }.proves(&model));
}

#[test]
fn two_at_once_agree_with_one() {
    let problem = tight();
    let one = refined(&problem, 305);
    let both = std::thread::scope(|scope| {
        let threads = [(); 2].map(|()| scope.spawn(|| refined(&tight(), 305)));
        threads.map(|x| x.join().unwrap())
    });
    assert_eq!(both, [one; 2]);
}

#[test]
fn nothing_is_proven_once_cancelled() {
    let problem = tight();
    let mut heard = Vec::new();
    let bound = counter_bound(&problem, 0, &|| 305, soon(), &AtomicBool::new(true), &mut |x| heard.push(x));
    assert_eq!((bound, heard), (270, vec![270]));
}
