//! How near to the optimum whole solves come, and what each part adds: the heuristic alone, with search,
//! and with bounds and MILPs (`auto`), after some budgets of time. Prints a table in Markdown.
//!
//! ```sh
//! cargo bench --workspace --bench solves -- --budgets 1,10,60
//! ```

#![allow(clippy::unwrap_used, missing_docs)]

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use optpipe_solver::method::Method;
use optpipe_solver::problem::{Problem, Sizes, Times};
use optpipe_solver::solve::{Solution, SolveOptions, solve};

/// Heuristic alone, plus search, plus bounds and MILPs.
const METHODS: [Method; 3] = [Method::AdaptiveOffload, Method::Search, Method::Auto];

/// What sets a problem apart.
struct Shape {
    devices: usize,
    chunks: usize,
    microbatches: usize,
    /// Share of the memory that 1F1B takes on its first device.
    memory: f64,
    /// Time of an offload or reload as a share of a forward.
    copy: f64,
    /// Devices that share a channel.
    sharing: usize,
}

const SHAPES: [Shape; 5] = [
    Shape { devices: 4, chunks: 1, microbatches: 8, memory: 0.5, copy: 1.0, sharing: 1 },
    Shape { devices: 4, chunks: 2, microbatches: 8, memory: 0.5, copy: 0.6, sharing: 2 },
    Shape { devices: 8, chunks: 4, microbatches: 16, memory: 0.5, copy: 0.8, sharing: 2 },
    Shape { devices: 16, chunks: 2, microbatches: 32, memory: 0.5, copy: 0.8, sharing: 2 },
    Shape { devices: 64, chunks: 2, microbatches: 256, memory: 0.5, copy: 0.8, sharing: 1 },
];

impl Shape {
    fn name(&self) -> String {
        let links = if self.sharing == 1 { "own links".to_owned() } else { format!("{} a link", self.sharing) };
        format!("P={} V={} M={}, {links}", self.devices, self.chunks, self.microbatches)
    }

    /// Attention-heavy and uneven: B outweighs F and W, and the last stage has the head.
    fn problem(&self) -> Problem {
        let stages = self.devices * self.chunks;
        let forward: Vec<i64> = (0..stages).map(|s| 2_000_000 + 40_000 * (s as i64 % 7)).collect();
        let scaled = |share: f64| forward.iter().map(|&x| (x as f64 * share) as i64).collect::<Vec<_>>();
        let (mut backward_input, mut backward_weight) = (scaled(1.7), scaled(0.5));
        backward_input[stages - 1] += 300_000;
        backward_weight[stages - 1] += 300_000;
        // What 1F1B, interleaved where there are chunks, holds on its first device.
        let ahead = if self.chunks == 1 { 1 } else { 2 };
        let held = ahead * (self.devices - 1) + (self.chunks - 1) * self.devices + 1;
        let room = (held.min(self.chunks * self.microbatches) as f64 * self.memory) as i64;
        Problem {
            devices: self.devices,
            placement: (0..stages).map(|s| s % self.devices).collect(),
            microbatches: self.microbatches,
            split_backward: true,
            time_ns: Times {
                offload: scaled(self.copy),
                reload: scaled(self.copy),
                forward,
                backward_input,
                backward_weight,
                send_forward: vec![50_000; stages - 1],
                send_backward: vec![50_000; stages - 1],
            },
            bytes: Sizes {
                activation: vec![256 << 20; stages],
                weight_context: vec![128 << 20; stages],
                offloadable: vec![256 << 20; stages],
                r#static: vec![0; self.devices],
                capacity: vec![room.max(self.chunks as i64) * (256 << 20); self.devices],
            },
            offload_channel: (0..self.devices).map(|d| d / self.sharing).collect(),
            reload_channel: (0..self.devices).map(|d| self.devices + d / self.sharing).collect(),
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let given = arguments.iter().position(|x| x == "--budgets").and_then(|at| arguments.get(at + 1));
    let budgets: Vec<f64> =
        given.map_or("1,10,60", String::as_str).split(',').map(|x| x.trim_end_matches('s').parse().unwrap()).collect();
    let longest = budgets.iter().copied().fold(0.0, f64::max);

    let columns: Vec<String> = budgets.iter().map(|x| format!("{x} s")).collect();
    println!("| problem | ops | method | {} |", columns.join(" | "));
    println!("| --- | --- | --- |{}", " --- |".repeat(budgets.len()));
    for shape in SHAPES {
        let problem = shape.problem();
        let ops = 3 * problem.stages() * problem.microbatches;
        let solutions = METHODS.map(|method| {
            let options =
                SolveOptions { method, time_limit: Duration::from_secs_f64(longest), ..SolveOptions::default() };
            solve(&problem, &options, &mut |_| {}, &AtomicBool::new(false)).unwrap()
        });
        // All are measured by the best bound that any has found.
        let bound_ns = solutions.iter().map(|x| x.bound_ns).max().unwrap_or(0);
        for (method, solution) in METHODS.iter().zip(&solutions) {
            let gaps: Vec<String> = budgets.iter().map(|&budget| gap_after(solution, bound_ns, budget)).collect();
            println!("| {} | {ops} | {method} | {} |", shape.name(), gaps.join(" | "));
        }
    }
}

/// How far the schedule of that time is above a bound.
fn gap_after(solution: &Solution, bound_ns: i64, budget: f64) -> String {
    match solution.trace.iter().take_while(|x| x.time_s <= budget).last() {
        None => "none".to_owned(),
        Some(x) => format!("{:.1} %", 100.0 * (x.makespan_ns as f64 / bound_ns as f64 - 1.0)),
    }
}
