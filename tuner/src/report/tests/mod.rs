#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_configs::hardware::{CopyPoint, Device, Hardware, Link};
use optpipe_configs::profile::{LayerBytes, LayerKind, LayerProfile, Profile, Sample};
use optpipe_solver::method::Method;
use optpipe_solver::problem::{Problem, Sizes, Times};
use optpipe_solver::schedule::Schedule;
use optpipe_solver::solve::{SolveOptions, solve};

use super::run::{Compared, RoundFiles};
use super::*;
use crate::measured::{Measured, MeasuredOp};
use crate::plan::{DeviceMemory, StagePlan};
use crate::progress::Progress;
use crate::sensitivity::file::SensitivityFile;
use crate::solved::Solved;
use crate::summary::{Cost, Observed, Outcome, Predicted, Round, StopReason, Summary};

mod accessible;
mod browser;
mod chromium;
mod drawn;

const GIB: i64 = 1 << 30;

/// Stages alike but for their times, which are no round numbers; memory for some of the microbatches.
fn problem(devices: usize, chunks: usize, microbatches: usize) -> Problem {
    let stages = devices * chunks;
    let times = |ns: i64| (0..stages as i64).map(|s| ns + 1_234_567 * (s % 5)).collect::<Vec<_>>();
    Problem {
        devices,
        placement: (0..stages).map(|s| s % devices).collect(),
        microbatches,
        split_backward: true,
        time_ns: Times {
            forward: times(31_415_926),
            backward_input: times(35_897_932),
            backward_weight: times(28_462_643),
            send_forward: vec![383_279; stages - 1],
            send_backward: vec![502_884; stages - 1],
            offload: times(41_971_693),
            reload: times(39_937_510),
        },
        bytes: Sizes {
            activation: vec![GIB; stages],
            weight_context: vec![GIB / 3; stages],
            offloadable: vec![GIB / 2; stages],
            r#static: vec![10 * GIB; devices],
            capacity: vec![(10 + 2 * chunks as i64 + devices as i64 / 4) * GIB; devices],
        },
        offload_channel: (0..devices).collect(),
        reload_channel: (devices..2 * devices).collect(),
    }
}

fn sample(ns: u64) -> Sample {
    Sample { median_ns: ns, mad_ns: ns / 90, p05_ns: ns - ns / 40, p95_ns: ns + ns / 20, count: 9, stable: false }
}

/// The schedule as it may have run: ops take up to a seventh longer, and everything moves accordingly.
fn ran(problem: &Problem, schedule: &Schedule) -> Measured {
    let mut noise = 12_345_u64;
    let mut ops = Vec::new();
    for (device, list) in schedule.ops.iter().enumerate() {
        for x in list {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let late = |ns: i64| ns as u64 + ns as u64 / 10;
            let length = problem.duration(x.op, x.stage) as u64;
            let start_ns = late(x.start_ns) + (noise >> 50);
            let end_ns = start_ns + length + length * ((noise >> 40) % 140) / 1000;
            let median_ns = end_ns - start_ns;
            ops.push(MeasuredOp {
                device,
                op: x.op,
                stage: x.stage,
                microbatch: x.microbatch,
                start_ns,
                end_ns,
                median_ns,
            });
        }
    }
    let step = ops.iter().map(|x| x.end_ns).max().unwrap_or(0);
    let report = optpipe_solver::check::check(problem, schedule);
    Measured {
        version: 1,
        backend: "cuda".to_owned(),
        step: sample(step),
        optimizer: sample(1000),
        steps_ns: vec![step; 3],
        losses: vec![1.0; 3],
        peak_bytes: report.peak_bytes.iter().map(|&bytes| bytes as u64 - 1000).collect(),
        allocator_peak_bytes: None,
        offloaded_bytes: report.offloaded_bytes as u64,
        ops,
    }
}

fn link() -> Link {
    let point = |bytes: u64| CopyPoint { bytes, time: sample(2000 + bytes / 20) };
    Link {
        latency_ns: 1500.0,
        bytes_per_second: 2e10,
        residual: 0.03,
        points: (16..29).map(|i| point(1 << i)).collect(),
    }
}

/// A tune that solved this problem in two rounds. `name` is the model's, and whatever else may have a name.
pub(crate) fn run(problem: &Problem, name: &str) -> Run {
    // Of large ones the first that is found, which is always the same: one microbatch at a time, all offloaded.
    let small = problem.devices <= 4;
    let options = SolveOptions {
        method: Method::AdaptiveOffload,
        time_limit: if small { Duration::from_secs(5) } else { Duration::ZERO },
        ..SolveOptions::default()
    };
    let (never, tokens) = (AtomicBool::new(false), 1 << 20);
    let solution = solve(problem, &options, &mut |_| {}, &never).unwrap();
    let outcome = |name: &str, schedule: &Schedule| {
        let predicted = Predicted::of(problem, schedule, tokens);
        let measured = ran(problem, schedule);
        let outcome = Outcome {
            name: name.to_owned(),
            over_limit_bytes: predicted.over_limit(problem),
            predicted: Some(predicted),
            measured: Some(Observed::of(&measured, problem.devices, tokens)),
            note: Some(format!("a note of {name}")),
        };
        (outcome, Compared { name: name.to_owned(), schedule: schedule.clone(), measured })
    };
    let (best, own) = outcome("optpipe", &solution.schedule);
    let methods = crate::sensitivity::front::textbook_schedules(problem);
    let textbook: Vec<(Outcome, Compared)> =
        methods.iter().take(3).map(|(method, schedule)| outcome(method.name(), schedule)).collect();
    let round = |number: usize| Round {
        version: 1,
        round: number,
        method: name.to_owned(),
        predicted: best.predicted.clone().unwrap(),
        measured: best.measured.clone().unwrap(),
        ratio: 1.1,
        bound_ns: solution.bound_ns,
        gap: solution.gap(),
        proven: false,
        gain: (number > 1).then_some(-0.01),
        best_so_far: number == 1,
        solve_ns: 300_000_000,
        run_ns: 9_000_000_000,
        milp: None,
    };
    let files = |number: usize| RoundFiles {
        round: round(number),
        problem: problem.clone(),
        schedule: solution.schedule.clone(),
        measured: own.measured.clone(),
        solved: Some(Solved::of(&solution, None)),
    };
    let progress = Progress::new(true);
    let limit = Duration::from_millis(20);
    let sensitivity =
        small.then(|| SensitivityFile::solve(problem, &solution.schedule, &options, limit, &progress, &never).unwrap());
    let layer = |kind, count| LayerProfile {
        kind,
        count,
        forward: sample(10_000_000),
        backward_input: sample(11_000_000),
        backward_weight: sample(9_000_000),
        bytes: LayerBytes { activation: 8, weight_context: 4, offloadable: 8, output: 2, workspace: 1 },
        parameters: 7,
        unexplained_bytes: None,
        conditions: None,
    };
    let summary = Summary {
        version: 1,
        optpipe: "0.1.0".to_owned(),
        model: name.to_owned(),
        backend: "cuda".to_owned(),
        precision: "bf16".to_owned(),
        parameters: 70_000_000_000,
        tokens_per_step: tokens,
        devices: problem.devices,
        microbatches: problem.microbatches,
        stop: StopReason::Converged,
        failure: None,
        best_round: 1,
        bound_ns: solution.bound_ns,
        gap: solution.gap(),
        proven: false,
        textbook: textbook.iter().map(|x| x.0.clone()).collect(),
        rounds: vec![round(1), round(2)],
        stages: (0..problem.stages())
            .map(|s| StagePlan {
                device: problem.placement[s],
                layers: format!("2 blocks {name}"),
                blocks: 2,
                parameters: 1_000_000_000,
                forward_ns: problem.time_ns.forward[s],
                backward_input_ns: problem.time_ns.backward_input[s],
                backward_weight_ns: problem.time_ns.backward_weight[s],
                activation_bytes: problem.bytes.activation[s],
                offloadable_bytes: problem.bytes.offloadable[s],
            })
            .collect(),
        memory: (0..problem.devices)
            .map(|d| DeviceMemory {
                weights: 4 << 30,
                gradients: 4 << 30,
                optimizer: 1 << 30,
                workspace: 1 << 30,
                capacity: problem.bytes.capacity[d] as u64,
            })
            .collect(),
        cost: Cost::default(),
        milp: None,
        files: BTreeMap::new(),
        best: best.clone(),
    };
    let device = Device { name: name.to_owned(), memory_bytes: 80 << 30, cores: 132 };
    Run {
        summary,
        hardware: Hardware {
            version: 1,
            backend: "cuda".to_owned(),
            clock: "events".to_owned(),
            devices: vec![device; problem.devices],
            offload: link(),
            reload: link(),
            offload_duplex: link(),
            reload_duplex: link(),
            offload_neighbour: None,
            reload_neighbour: None,
            send: link(),
            offload_channel: problem.offload_channel.clone(),
            reload_channel: problem.reload_channel.clone(),
            cost_ns: 1,
            details: None,
        },
        profile: Profile {
            version: 1,
            model: name.to_owned(),
            backend: "cuda".to_owned(),
            precision: "bf16".to_owned(),
            sequence_length: 4096,
            microbatch_size: 1,
            clock: "events".to_owned(),
            layers: vec![layer(LayerKind::Embedding, 1), layer(LayerKind::Block, 80), layer(LayerKind::Head, 1)],
            cost_ns: 1,
        },
        rounds: vec![files(1), files(2)],
        compared: std::iter::once(own.clone()).chain(textbook.into_iter().map(|x| x.1)).collect(),
        sensitivity: sensitivity.flatten(),
    }
}

/// The page as XML: void elements of HTML closed, what stands in scripts and styles left out.
fn as_xml(page: &str) -> String {
    let mut xml = page.replace("<!DOCTYPE html>", "");
    for element in ["style", "script"] {
        let mut kept = String::new();
        let mut rest = xml.as_str();
        while let Some(begin) = rest.find(&format!("<{element}")) {
            let open = begin + rest[begin..].find('>').unwrap() + 1;
            kept.push_str(&rest[..open]);
            rest = &rest[open + rest[open..].find(&format!("</{element}>")).unwrap()..];
            kept.push_str(&format!("</{element}>"));
            rest = &rest[format!("</{element}>").len()..];
        }
        kept.push_str(rest);
        xml = kept;
    }
    let mut out = String::new();
    let mut rest = xml.as_str();
    while let Some(begin) = rest.find("<meta") {
        let end = begin + rest[begin..].find('>').unwrap();
        out.push_str(&rest[..end]);
        out.push('/');
        rest = &rest[end..];
    }
    out.push_str(rest);
    // Attributes without a value.
    out.replace(" hidden>", " hidden=\"\">")
}

#[test]
fn a_page_of_32_devices_and_256_microbatches_is_small() {
    for chunks in [1, 2] {
        let page = html(&run(&problem(32, chunks, 256), "a model")).unwrap();
        assert!(page.contains("OptPipe, measured"));
        assert!(page.len() < 2_000_000, "{} bytes", page.len());
    }
}

#[test]
fn a_page_is_well_formed_and_loads_nothing() {
    let page = html(&run(&problem(4, 1, 8), "a model")).unwrap();
    let xml = as_xml(&page);
    let document = roxmltree::Document::parse(&xml).unwrap_or_else(|e| panic!("{e}"));
    let ids: Vec<&str> = document.descendants().filter_map(|node| node.attribute("id")).collect();
    let mut once = ids.clone();
    once.sort_unstable();
    once.dedup();
    assert_eq!(once.len(), ids.len(), "ids stand once: {ids:?}");
    for node in document.descendants().filter(roxmltree::Node::is_element) {
        for attribute in ["src", "href", "action", "srcset", "data"] {
            assert_eq!(node.attribute(attribute), None, "{} loads something", node.tag_name().name());
        }
        if let Some(label) = node.attribute("aria-labelledby") {
            assert!(label.split(' ').all(|id| ids.contains(&id)), "{label}");
        }
    }
    // Names of namespaces are no addresses to load from.
    let rest = page.replace("http://www.w3.org/2000/svg", "");
    for word in ["http:", "https:", "url(", "@import", "import(", "fetch(", "XMLHttpRequest", "WebSocket"] {
        assert!(!rest.contains(word), "{word}");
    }
}

#[test]
fn text_cannot_leave_its_place() {
    let name = "</script><script>alert(1)</script><img src=x onerror=alert(1)> \"'&<!--";
    let page = html(&run(&problem(2, 1, 3), name)).unwrap();
    assert_eq!(page.matches("<script").count(), 2, "the data and the script");
    assert_eq!(page.matches("</script").count(), 2);
    assert!(!page.contains("<img") && !page.contains("<!--"));
    let xml = as_xml(&page);
    let document = roxmltree::Document::parse(&xml).unwrap_or_else(|e| panic!("{e}"));
    let heading = document.descendants().find(|node| node.has_tag_name("h1")).unwrap();
    assert_eq!(heading.text(), Some(name));
}

#[test]
fn the_verdict_says_what_fits_and_what_does_not() {
    let with = |fits: bool| {
        let mut run = run(&problem(2, 1, 8), "a model");
        for outcome in &mut run.summary.textbook {
            outcome.over_limit_bytes = vec![if fits { 0 } else { 3 << 30 }; 2];
        }
        verdict::Verdict::of(&run).plain()
    };
    assert!(with(true).contains("The best textbook schedule that fits, "), "{}", with(true));
    let refused = with(false);
    assert!(refused.contains("No textbook schedule fits") && refused.contains("3.00 GiB too much"), "{refused}");
}
