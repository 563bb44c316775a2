#![allow(clippy::unwrap_used)]
use super::*;
use crate::check::check;
use crate::testing::uniform;

/// The older methods are stated for a backward in one piece.
fn fused(problem: Problem) -> Problem {
    Problem { split_backward: false, ..problem }
}

/// Bubble of the longest device span: what zero-bubble papers count.
fn idle_in_span(problem: &Problem, schedule: &Schedule) -> i64 {
    let span = |list: &Vec<crate::schedule::ScheduledOp>| {
        let first = list.iter().map(|x| x.start_ns).min().unwrap();
        let last = list.iter().map(|x| x.start_ns + problem.duration(x.op, x.stage)).max().unwrap();
        last - first - list.iter().map(|x| problem.duration(x.op, x.stage)).sum::<i64>()
    };
    schedule.ops.iter().map(span).max().unwrap()
}

#[test]
fn one_f_one_b_has_its_bubble_and_memory() {
    for (p, m) in [(2, 2), (4, 8), (8, 8), (8, 24)] {
        let problem = fused(uniform(p, (0..p).collect(), m));
        let schedule = schedule(&problem, Method::OneFOneB).unwrap();
        let report = check(&problem, &schedule);
        assert_eq!(report.violations, Vec::<String>::new());
        let x = (p - 1) as f64 / (m + p - 1) as f64;
        assert!((report.bubble - x).abs() < 1e-9, "p={p} m={m}: {} instead of {x}", report.bubble);
        let peaks: Vec<i64> = (0..p).map(|d| 2 * (p - d).min(m) as i64).collect();
        assert_eq!(report.peak_bytes, peaks);
    }
}

#[test]
fn gpipe_has_the_bubble_of_1f1b_and_holds_every_microbatch() {
    let problem = fused(uniform(4, (0..4).collect(), 8));
    let report = check(&problem, &schedule(&problem, Method::Gpipe).unwrap());
    assert!((report.bubble - 3.0 / 11.0).abs() < 1e-9);
    assert_eq!(report.peak_bytes, vec![16; 4]);
}

#[test]
fn interleaved_divides_the_bubble_by_the_chunks() {
    for (p, v, m) in [(4, 2, 8), (4, 4, 8), (2, 3, 6)] {
        let placement = (0..p * v).map(|s| s % p).collect();
        let problem = fused(uniform(p, placement, m));
        let report = check(&problem, &schedule(&problem, Method::Interleaved).unwrap());
        let (work, idle) = ((3 * v * m) as f64, (3 * (p - 1)) as f64);
        assert!((report.bubble - idle / (work + idle)).abs() < 1e-9, "p={p} v={v} m={m}: {}", report.bubble);
    }
}

#[test]
fn zb_h1_has_a_third_of_the_idle_time_at_the_memory_of_1f1b() {
    for (p, m) in [(4, 8), (8, 16), (8, 24)] {
        let problem = uniform(p, (0..p).collect(), m);
        let schedule = schedule(&problem, Method::ZbH1).unwrap();
        let report = check(&problem, &schedule);
        assert_eq!(report.makespan_ns, (3 * m + p - 1) as i64);
        assert_eq!(*report.peak_bytes.iter().max().unwrap(), 2 * p as i64);
    }
}

#[test]
fn zb_h2_has_no_idle_time_within_a_span_at_twice_the_memory() {
    for (p, m) in [(4, 8), (8, 16), (8, 24)] {
        let problem = uniform(p, (0..p).collect(), m);
        let schedule = schedule(&problem, Method::ZbH2).unwrap();
        assert_eq!(idle_in_span(&problem, &schedule), 0, "p={p} m={m}");
        let most = *check(&problem, &schedule).peak_bytes.iter().max().unwrap();
        assert!(most <= 2 * (2 * p as i64 - 1), "{most}");
    }
}

#[test]
fn zb_v_has_no_idle_time_within_a_span_at_the_memory_of_1f1b() {
    for (p, m) in [(2, 4), (4, 8), (8, 16)] {
        let placement = (0..p).chain((0..p).rev()).collect();
        let problem = uniform(p, placement, m);
        let schedule = schedule(&problem, Method::ZbV).unwrap();
        assert_eq!(idle_in_span(&problem, &schedule), 0, "p={p} m={m}");
        // A stage is half of what a device holds, so 1F1B would hold p pairs.
        let most = *check(&problem, &schedule).peak_bytes.iter().max().unwrap();
        assert!(most <= 2 * 2 * p as i64, "{most}");
    }
}

#[test]
fn v_half_and_v_min_trade_bubble_for_memory() {
    // Shares of the bubble and memory of 1F1B; above that, what W that wait and the microbatch that is
    // running hold.
    for (method, bubble, memory) in [(Method::VHalf, 1.0 / 2.0, 1.0 / 2.0), (Method::VMin, 2.0 / 3.0, 1.0 / 3.0)] {
        for (p, m) in [(1, 3), (2, 6), (3, 9), (4, 12), (5, 15), (6, 18), (7, 14), (8, 24), (12, 24), (16, 48)] {
            let placement = (0..p).chain((0..p).rev()).collect();
            let problem = uniform(p, placement, m);
            let schedule = schedule(&problem, method).unwrap();
            let report = check(&problem, &schedule);
            let idle = report.makespan_ns - (6 * m) as i64;
            let most = *report.peak_bytes.iter().max().unwrap();
            // Of 1F1B with both stages as one: 6 (p - 1) idle, 2 p activations of 2 bytes.
            let (idle_1f1b, most_1f1b) = ((6 * (p - 1)) as f64, (4 * p) as f64);
            assert!(idle as f64 <= bubble * idle_1f1b + 1e-9, "{method} p={p} m={m}: idle {idle}");
            assert!(most as f64 <= memory * most_1f1b + 6.0, "{method} p={p} m={m}: {most} bytes");
        }
    }
}

#[test]
fn a_method_names_the_placement_that_it_needs() {
    let problem = uniform(2, vec![0, 1, 0, 1], 4);
    let error = schedule(&problem, Method::ZbV).unwrap_err();
    assert_eq!(error.to_string(), "zb-v needs two stages a device, down the devices and back up (vshape)");
    assert!(schedule(&problem, Method::OneFOneB).is_err());
    assert!(matches!(schedule(&problem, Method::Milp), Err(MethodError::NotTextbook(Method::Milp))));
}
