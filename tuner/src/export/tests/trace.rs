use std::collections::BTreeMap;

use optpipe_solver::check::check;
use proptest::prelude::*;
use serde_json::Value;

use super::{any_problem, any_schedule, example, near, ops_of};
use crate::export::trace_json;

/// The events, with `ts` and `dur` as nanoseconds as Perfetto reads them: the whole part of 1000 times
/// the microseconds. (The numbers are read from the text: serde_json's may be off in the last bit.)
fn events(text: &str) -> Vec<Value> {
    let trace: Value = serde_json::from_str(text).unwrap();
    let mut events = trace["traceEvents"].as_array().unwrap().clone();
    let lines = text.lines().skip(1).take(events.len());
    for (event, line) in events.iter_mut().zip(lines) {
        for key in ["ts", "dur"] {
            let Some((_, rest)) = line.split_once(&format!("\"{key}\":")) else { continue };
            let us: f64 = rest[..rest.find([',', '}']).unwrap()].parse().unwrap();
            event[key] = Value::from((us * 1000.0) as i64);
        }
    }
    events
}

fn of<'a>(events: &'a [Value], pid: u64, phase: &'a str) -> impl Iterator<Item = &'a Value> {
    events.iter().filter(move |e| e["pid"] == pid && e["ph"] == phase)
}

fn nanos(value: &Value) -> i64 {
    value.as_i64().unwrap()
}

/// Start and duration of the complete events by op; fails on a second event of an op.
fn complete(events: &[Value], pid: u64) -> BTreeMap<(char, usize, usize), (i64, i64)> {
    let mut found = BTreeMap::new();
    for e in of(events, pid, "X") {
        let args = &e["args"];
        let op = args["op"].as_str().unwrap().chars().next().unwrap();
        let (stage, microbatch) =
            (args["stage"].as_u64().unwrap() as usize, args["microbatch"].as_u64().unwrap() as usize);
        let times = (nanos(&e["ts"]), nanos(&e["dur"]));
        assert_eq!(times, (args["start_ns"].as_i64().unwrap(), args["duration_ns"].as_i64().unwrap()));
        assert_eq!(e["name"], format!("{op} s{stage} m{microbatch}"));
        assert!(found.insert((op, stage, microbatch), times).is_none(), "{op} {stage} {microbatch} twice");
    }
    found
}

fn assert_tracks_are_free_of_overlap(events: &[Value]) {
    let mut tracks: BTreeMap<u64, Vec<(i64, i64)>> = BTreeMap::new();
    for e in events.iter().filter(|e| e["ph"] == "X") {
        let start = nanos(&e["ts"]);
        tracks.entry(e["tid"].as_u64().unwrap()).or_default().push((start, start + nanos(&e["dur"])));
    }
    for (tid, mut ops) in tracks {
        ops.sort_unstable();
        assert!(ops.windows(2).all(|w| w[0].1 <= w[1].0), "track {tid}: {ops:?}");
        let name = |what: &str| events.iter().filter(|e| e["tid"] == tid && e["name"] == what).count();
        assert_eq!((name("thread_name"), name("thread_sort_index")), (1, 1));
    }
}

/// Largest value of a series, a device.
fn largest(events: &[Value], pid: u64, devices: usize, series: &str) -> Vec<Option<i64>> {
    (0..devices)
        .map(|device| {
            let name = format!("memory of device {device}");
            of(events, pid, "C")
                .filter(|e| e["name"].as_str().unwrap().starts_with(&name))
                .map(|e| e["args"][series].as_i64().unwrap())
                .max()
        })
        .collect()
}

/// Each arrow leaves within the op that it comes from and arrives at the start of the one that waits,
/// on another device.
fn assert_flows_join_ops(events: &[Value], pid: u64) -> usize {
    let track = |e: &Value| {
        let name = of(events, pid, "M").find(|m| m["tid"] == e["tid"] && m["name"] == "thread_name").unwrap();
        name["args"]["name"].as_str().unwrap().to_owned()
    };
    let mut joined = 0;
    for start in of(events, pid, "s") {
        let end = of(events, pid, "f").find(|e| e["id"] == start["id"]).unwrap();
        let on = |e: &Value, at: i64| {
            of(events, pid, "X")
                .find(|x| {
                    let from = nanos(&x["ts"]);
                    x["tid"] == e["tid"] && (from..from + nanos(&x["dur"])).contains(&at)
                })
                .unwrap()
                .clone()
        };
        let source = on(start, nanos(&start["ts"]));
        let target = on(end, nanos(&end["ts"]));
        assert_eq!(source["args"]["microbatch"], target["args"]["microbatch"]);
        let stage = |x: &Value| x["args"]["stage"].as_i64().unwrap();
        assert_eq!((stage(&source) - stage(&target)).abs(), 1);
        assert!(nanos(&source["ts"]) + nanos(&source["dur"]) <= nanos(&target["ts"]));
        assert_ne!(track(start), track(end));
        joined += 1;
    }
    joined
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_op_is_once_on_a_track_and_counters_reach_the_peak(
        problem in any_problem(), seed in any::<u64>(), offset in -5000_i64..5000,
    ) {
        let mut schedule = any_schedule(&problem, seed, true);
        schedule.ops.iter_mut().flatten().for_each(|op| op.start_ns += offset);
        let events = events(&trace_json(&problem, &schedule, None).unwrap());
        prop_assert_eq!(complete(&events, 1), ops_of(&problem, &schedule));
        assert_tracks_are_free_of_overlap(&events);
        assert_flows_join_ops(&events, 1);
        let peaks: Vec<_> = check(&problem, &schedule).peak_bytes.into_iter().map(Some).collect();
        prop_assert_eq!(largest(&events, 1, problem.devices, "bytes"), peaks);
        let limits: Vec<_> = problem.bytes.capacity.iter().copied().map(Some).collect();
        prop_assert_eq!(largest(&events, 1, problem.devices, "limit"), limits);
    }

    #[test]
    fn a_measurement_is_a_process_of_its_own(problem in any_problem(), seed in any::<u64>()) {
        let schedule = any_schedule(&problem, seed, true);
        let measured = near(&problem, &schedule);
        let events = events(&trace_json(&problem, &schedule, Some(&measured)).unwrap());
        prop_assert_eq!(complete(&events, 1), ops_of(&problem, &schedule));
        let origin = measured.ops.iter().map(|op| op.start_ns).min().unwrap();
        let expected = measured.ops.iter().map(|op| {
            let times = ((op.start_ns - origin) as i64, (op.end_ns - op.start_ns) as i64);
            ((op.op.letter(), op.stage, op.microbatch), times)
        });
        prop_assert_eq!(complete(&events, 2), expected.collect::<BTreeMap<_, _>>());
        assert_tracks_are_free_of_overlap(&events);
        let peaks: Vec<_> = measured.peak_bytes.iter().map(|&bytes| Some(bytes as i64)).collect();
        prop_assert_eq!(largest(&events, 2, problem.devices, "measured_peak"), peaks);
    }
}

#[test]
fn devices_hand_over_with_arrows() {
    let problem = example();
    let schedule = any_schedule(&problem, 3, false);
    let events = events(&trace_json(&problem, &schedule, None).unwrap());
    // Activation and gradient of three microbatches over one boundary.
    assert_eq!(assert_flows_join_ops(&events, 1), 6);
    let names: Vec<&str> = of(&events, 1, "M").filter_map(|e| e["args"]["name"].as_str()).collect();
    assert_eq!(names, ["predicted", "device 0 compute", "device 1 compute"]);
}

#[test]
fn one_event_stands_on_a_line() {
    let problem = example();
    let text = trace_json(&problem, &any_schedule(&problem, 3, true), None).unwrap();
    let count = events(&text).len();
    assert_eq!(text.lines().count(), count + 2);
}
