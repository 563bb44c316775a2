use std::sync::atomic::AtomicBool;
use std::time::Duration;

use proptest::prelude::*;

use super::{Known, MilpOptions, MilpOutcome, improve};
use crate::bound::lower_bound;
use crate::check::check;
use crate::order::Order;
use crate::problem::{Problem, Sizes, Times};
use crate::schedule::{Op, OpKind, Schedule};
use crate::simulate::simulate;

const OPTIONS: MilpOptions = MilpOptions { time_limit: Duration::from_secs(20), threads: 1 };

fn op(kind: OpKind, stage: usize, microbatch: usize) -> Op {
    Op { kind, stage, microbatch }
}

/// Names of the channels, ascending.
fn channel_names(problem: &Problem) -> Vec<usize> {
    let mut names: Vec<usize> = problem.offload_channel.iter().chain(&problem.reload_channel).copied().collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// One microbatch at a time, everything offloaded that can be: legal whenever a schedule exists.
pub(crate) fn serial(problem: &Problem) -> Schedule {
    let names = channel_names(problem);
    let mut order = Order { devices: vec![Vec::new(); problem.devices], channels: vec![Vec::new(); names.len()] };
    let stages = problem.stages();
    for j in 0..problem.microbatches {
        let moves = |s: usize| s + 1 < stages && problem.bytes.offloadable[s] > 0;
        for s in 0..stages {
            let d = problem.placement[s];
            order.devices[d].push(op(OpKind::F, s, j));
            if moves(s) {
                let channel = names.binary_search(&problem.offload_channel[d]).unwrap();
                order.channels[channel].push(op(OpKind::O, s, j));
            }
        }
        for s in (0..stages).rev() {
            let d = problem.placement[s];
            if moves(s) {
                let channel = names.binary_search(&problem.reload_channel[d]).unwrap();
                order.channels[channel].push(op(OpKind::R, s, j));
                order.devices[d].push(op(OpKind::R, s, j));
            }
            order.devices[d].extend([op(OpKind::B, s, j), op(OpKind::W, s, j)]);
        }
    }
    simulate(problem, &order).unwrap().schedule
}

/// All ways to merge sequences into one.
fn merges(sequences: &[Vec<Op>]) -> Vec<Vec<Op>> {
    fn go(sequences: &[Vec<Op>], at: &mut [usize], merged: &mut Vec<Op>, out: &mut Vec<Vec<Op>>) {
        if at.iter().zip(sequences).all(|(&i, s)| i == s.len()) {
            out.push(merged.clone());
            return;
        }
        for k in 0..sequences.len() {
            if let Some(&next) = sequences[k].get(at[k]) {
                at[k] += 1;
                merged.push(next);
                go(sequences, at, merged, out);
                merged.pop();
                at[k] -= 1;
            }
        }
    }
    let mut out = Vec::new();
    go(sequences, &mut vec![0; sequences.len()], &mut Vec::new(), &mut out);
    out
}

/// The optimum by trying every order of every queue and every set of offloads.
pub(crate) fn brute_force(problem: &Problem) -> i64 {
    let (stages, microbatches) = (problem.stages(), problem.microbatches);
    let names = channel_names(problem);
    let movable: Vec<(usize, usize)> = (0..stages)
        .filter(|&s| problem.bytes.offloadable[s] > 0)
        .flat_map(|s| (0..microbatches).map(move |j| (s, j)))
        .collect();
    let mut best = i64::MAX;
    for set in 0..1_u32 << movable.len() {
        let moved =
            |s: usize, j: usize| movable.iter().position(|&x| x == (s, j)).is_some_and(|bit| set >> bit & 1 == 1);
        let mut queues: Vec<Vec<Vec<Op>>> = Vec::new();
        for d in 0..problem.devices {
            let chains: Vec<Vec<Op>> = problem
                .stages_of(d)
                .flat_map(|s| (0..microbatches).map(move |j| (s, j)))
                .map(|(s, j)| {
                    let mut chain = vec![op(OpKind::F, s, j)];
                    if moved(s, j) {
                        chain.push(op(OpKind::R, s, j));
                    }
                    chain.extend([op(OpKind::B, s, j), op(OpKind::W, s, j)]);
                    chain
                })
                .collect();
            // A fused W stands right behind its B, but for the place of a reload's allocation.
            let fused = |queue: &Vec<Op>| {
                let compute: Vec<&Op> = queue.iter().filter(|x| x.kind.is_compute()).collect();
                problem.split_backward
                    || compute
                        .windows(2)
                        .all(|x| x[0].kind != OpKind::B || *x[1] == op(OpKind::W, x[0].stage, x[0].microbatch))
            };
            // Microbatches are numbered by their F on the first stage.
            let numbered = |queue: &Vec<Op>| {
                let place = |j| queue.iter().position(|x| *x == op(OpKind::F, 0, j));
                place(0) <= place(1)
            };
            queues.push(merges(&chains).into_iter().filter(|x| fused(x) && numbered(x)).collect());
        }
        for name in &names {
            let mut chains: Vec<Vec<Op>> = Vec::new();
            for &(s, j) in movable.iter().filter(|&&(s, j)| moved(s, j)) {
                let d = problem.placement[s];
                let mut chain = Vec::new();
                if problem.offload_channel[d] == *name {
                    chain.push(op(OpKind::O, s, j));
                }
                if problem.reload_channel[d] == *name {
                    chain.push(op(OpKind::R, s, j));
                }
                chains.push(chain);
            }
            queues.push(merges(&chains));
        }
        let mut chosen = vec![0; queues.len()];
        'combinations: loop {
            let pick = |range: std::ops::Range<usize>| range.map(|q| queues[q][chosen[q]].clone()).collect();
            let order = Order { devices: pick(0..problem.devices), channels: pick(problem.devices..queues.len()) };
            if let Ok(simulated) = simulate(problem, &order) {
                best = best.min(simulated.schedule.makespan_ns);
            }
            for q in 0..queues.len() {
                chosen[q] += 1;
                if chosen[q] < queues[q].len() {
                    continue 'combinations;
                }
                chosen[q] = 0;
            }
            break;
        }
    }
    best
}

fn solve(problem: &Problem) -> (MilpOutcome, Schedule) {
    let start = serial(problem);
    let mut last = i64::MAX;
    let mut progress = |point: &super::MilpPoint, schedule: Option<&Schedule>| {
        assert!(point.incumbent_ns <= last && point.bound_ns <= point.incumbent_ns);
        assert!(schedule.is_none_or(|x| x.makespan_ns == point.incumbent_ns && check(problem, x).is_legal()));
        last = point.incumbent_ns;
    };
    let outcome = improve(
        problem,
        &start,
        lower_bound(problem),
        &OPTIONS,
        &mut progress,
        &mut Known::default,
        &AtomicBool::new(false),
    )
    .unwrap();
    let best = outcome.schedule.clone().unwrap_or(start);
    (outcome, best)
}

prop_compose! {
    /// Two microbatches on one or two devices, at most three pairs that can be offloaded, tight memory.
    pub(crate) fn tiny()(
        placement in prop_oneof![Just(vec![0]), Just(vec![0, 1]), Just(vec![1, 0])],
        split_backward in any::<bool>(),
        times in prop::collection::vec(1_i64..6, 10),
        zero_weight in any::<bool>(),
        sends in prop::collection::vec(0_i64..3, 2),
        activation in prop::collection::vec(3_i64..7, 2),
        weight in prop::collection::vec(0_i64..4, 2),
        keeps in prop::collection::vec(0_i64..3, 2),
        static_stage in 0_usize..2,
        slack in prop::collection::vec(0_i64..6, 2),
        channels in prop_oneof![Just((vec![0, 1], vec![2, 3])), Just((vec![0, 1], vec![0, 1])), Just((vec![0, 0], vec![1, 1])), Just((vec![0, 0], vec![0, 0]))],
        unit in prop_oneof![Just(1_i64), Just(1_000_003_i64)],
    ) -> Problem {
        let s = placement.len();
        let devices = s;
        let time = |k: usize| (0..s).map(|i| times[2 * k + i] * unit).collect::<Vec<i64>>();
        let mut offloadable: Vec<i64> = (0..s).map(|i| (activation[i] - keeps[i]).max(0)).collect();
        if s == 2 {
            offloadable[static_stage] = 0;
        }
        let mut problem = Problem {
            devices,
            placement,
            microbatches: 2,
            split_backward,
            time_ns: Times {
                forward: time(0),
                backward_input: time(1),
                backward_weight: if zero_weight { vec![0; s] } else { time(2) },
                send_forward: vec![sends[0] * unit; s - 1],
                send_backward: vec![sends[1] * unit; s - 1],
                offload: time(3),
                reload: time(4),
            },
            bytes: Sizes {
                activation: activation[..s].to_vec(),
                weight_context: (0..s).map(|i| weight[i].min(activation[i])).collect(),
                offloadable,
                r#static: vec![1; devices],
                capacity: vec![0; devices],
            },
            offload_channel: channels.0[..devices].to_vec(),
            reload_channel: channels.1[..devices].to_vec(),
        };
        for (d, slack) in slack.iter().enumerate().take(devices) {
            let needed: i64 = problem.stages_of(d).map(|s| problem.bytes.activation[s]).max().unwrap_or(0);
            problem.bytes.capacity[d] = 1 + needed + slack;
        }
        problem
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn proves_what_brute_force_finds(problem in tiny()) {
        let optimum = brute_force(&problem);
        let (outcome, best) = solve(&problem);
        let report = check(&problem, &best);
        prop_assert!(report.is_legal(), "{:?}", report.violations);
        prop_assert_eq!(report.makespan_ns, best.makespan_ns);
        prop_assert_eq!(best.makespan_ns, optimum);
        prop_assert!(outcome.proven);
        prop_assert!(outcome.bound_ns.is_none_or(|bound| bound == optimum));
    }
}

/// Two devices whose one link carries all copies both ways.
pub(crate) fn overtaking() -> Problem {
    Problem {
        devices: 2,
        placement: vec![0, 1],
        microbatches: 2,
        split_backward: false,
        time_ns: Times {
            forward: vec![1, 1],
            backward_input: vec![1, 1],
            backward_weight: vec![3, 2],
            send_forward: vec![1],
            send_backward: vec![1],
            offload: vec![3, 4],
            reload: vec![4, 4],
        },
        bytes: Sizes {
            activation: vec![5, 4],
            weight_context: vec![0, 3],
            offloadable: vec![5, 4],
            r#static: vec![0, 0],
            capacity: vec![5, 5],
        },
        offload_channel: vec![0, 0],
        reload_channel: vec![0, 0],
    }
}

#[test]
fn finds_the_optimum_that_needs_overtaking() {
    let (outcome, best) = solve(&overtaking());
    assert_eq!(best.makespan_ns, 20);
    assert!(outcome.proven);
    assert_eq!(outcome.stats.in_order_bound_ns, Some(21), "in order nothing is shorter than 21");
}

#[test]
fn proves_zero_bubble_with_the_memory_of_1f1b() {
    let problem = Problem {
        devices: 3,
        placement: vec![0, 1, 2],
        microbatches: 4,
        split_backward: true,
        time_ns: Times {
            forward: vec![100; 3],
            backward_input: vec![110; 3],
            backward_weight: vec![90; 3],
            send_forward: vec![10; 2],
            send_backward: vec![10; 2],
            offload: vec![0; 3],
            reload: vec![0; 3],
        },
        bytes: Sizes {
            activation: vec![10; 3],
            weight_context: vec![4; 3],
            offloadable: vec![0; 3],
            r#static: vec![0; 3],
            capacity: vec![30, 20, 10],
        },
        offload_channel: vec![0, 1, 2],
        reload_channel: vec![3, 4, 5],
    };
    let (outcome, best) = solve(&problem);
    assert!(outcome.proven && check(&problem, &best).is_legal());
    // The model's units are the divisor of the times, so that its claims are exact in ns.
    assert_eq!(best.makespan_ns % 10, 0);
    assert!(best.makespan_ns >= lower_bound(&problem));
}

#[test]
fn stops_when_cancelled_and_refuses_what_is_not_legal() {
    let problem = overtaking();
    let start = serial(&problem);
    let cancelled = AtomicBool::new(true);
    let outcome = improve(&problem, &start, 0, &OPTIONS, &mut |_, _| {}, &mut Known::default, &cancelled).unwrap();
    assert!(!outcome.proven && outcome.stats.nodes == 0);
    let mut broken = start;
    broken.ops[0].pop();
    assert!(improve(&problem, &broken, 0, &OPTIONS, &mut |_, _| {}, &mut Known::default, &cancelled).is_err());
}

#[test]
fn what_others_find_is_taken_over() {
    let problem = overtaking();
    let (_, best) = solve(&problem);
    let mut news = || Known { schedule: Some(best.clone()), bound_ns: 20 };
    let start = serial(&problem);
    let never = AtomicBool::new(false);
    let outcome = improve(&problem, &start, 0, &OPTIONS, &mut |_, _| {}, &mut news, &never).unwrap();
    // With a schedule of 20 and a bound of 20 nothing is left to find or to prove.
    assert!(outcome.schedule.is_none_or(|x| x.makespan_ns >= 20));
    assert!(outcome.bound_ns.is_none_or(|x| x <= 20));
}

#[test]
fn a_model_that_takes_too_long_is_left_behind() {
    // Building this one alone takes longer than its limit.
    let mut problem = crate::testing::uniform(4, (0..8).map(|s| s % 4).collect(), 10);
    problem.bytes.capacity = vec![14; 4];
    let options = MilpOptions { time_limit: Duration::from_millis(1), threads: 1 };
    let start = serial(&problem);
    let never = AtomicBool::new(false);
    let outcome = improve(&problem, &start, 0, &options, &mut |_, _| {}, &mut Known::default, &never).unwrap();
    assert_eq!((outcome.stats.nodes, outcome.proven), (0, false));
    assert!(outcome.schedule.is_none_or(|x| check(&problem, &x).is_legal()));
}
