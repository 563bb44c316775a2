//! `optpipe solve --noise`: several schedules, and the one that does best under noise.

use std::sync::atomic::{AtomicBool, Ordering};

use optpipe_solver::method::Method;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{Event, Solution, SolveOptions, StopReason, solve};
use serde::Serialize;

use crate::error::Result;
use crate::noise::{self, Noise, Percentiles, Spreads};
use crate::progress::Progress;
use crate::{table, text};

/// Seeds that share the time limit.
const SEEDS: u32 = 4;

/// How the candidates did.
#[derive(Debug, Serialize)]
pub(super) struct Robust {
    /// `profile`, or a percentage.
    source: String,
    /// Draws of all op times.
    draws: usize,
    /// The one that was chosen.
    chosen: usize,
    candidates: Vec<Candidate>,
}

#[derive(Debug, Serialize)]
struct Candidate {
    /// What found the schedule.
    method: String,
    seed: u64,
    /// Without noise, ns.
    makespan_ns: i64,
    #[serde(flatten)]
    noisy: Percentiles,
}

/// Solves with several seeds, which share the time limit, and with the methods that take no time, and
/// chooses the schedule with the lowest 90th percentile of the step time; of equals the one with the
/// lower median, then the shorter one. The bound is the best of all solves.
pub(super) fn choose(
    problem: &Problem,
    options: &SolveOptions,
    noise: Noise,
    spreads: &Spreads,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<(Solution, Robust)> {
    let seeds = (0..SEEDS).map(|i| (options.method, options.seed.wrapping_add(u64::from(i))));
    // Textbook orders are regular, which may be worth more than a little time.
    let quick = Method::ALL.into_iter().filter(|method| method.is_textbook() || *method == Method::AdaptiveOffload);
    let runs: Vec<(Method, u64)> = seeds.chain(quick.map(|method| (method, options.seed))).collect();
    let mut found: Vec<(u64, Solution)> = Vec::new();
    let mut bound_ns = 0;
    for (i, &(method, seed)) in runs.iter().enumerate() {
        if cancel.load(Ordering::SeqCst) && !found.is_empty() {
            break;
        }
        let searches = i < SEEDS as usize;
        let time_limit = if searches { options.time_limit / SEEDS } else { options.time_limit / 20 };
        let options = SolveOptions { method, seed, time_limit, ..options.clone() };
        let mut on_event = |event: &Event| progress.update(&format!("candidate {}: {event}", i + 1));
        let solution = solve(problem, &options, &mut on_event, cancel)?;
        bound_ns = bound_ns.max(solution.bound_ns);
        // A textbook order that does not fit is answered by another method, which has its own run.
        let stands_in = method.is_textbook() && solution.method != method.name();
        if !stands_in && found.iter().all(|(_, other)| other.schedule != solution.schedule) {
            found.push((seed, solution));
        }
    }
    progress.phase(&format!("replaying {} schedules under noise", found.len()));
    let schedules: Vec<_> = found.iter().map(|(_, solution)| &solution.schedule).collect();
    let noisy = noise::evaluate(problem, &schedules, spreads, options.seed);
    let candidates: Vec<Candidate> = found
        .iter()
        .zip(noisy)
        .map(|((seed, solution), noisy)| Candidate {
            method: solution.method.clone(),
            seed: *seed,
            makespan_ns: solution.makespan_ns,
            noisy,
        })
        .collect();
    let rank = |i: &usize| (candidates[*i].noisy.p90_ns, candidates[*i].noisy.p50_ns, candidates[*i].makespan_ns);
    let chosen = (0..candidates.len()).min_by_key(rank).unwrap_or(0);
    let (_, mut solution) = found.swap_remove(chosen);
    solution.bound_ns = bound_ns;
    solution.proven = solution.makespan_ns <= bound_ns;
    if !solution.proven && solution.stop == StopReason::Optimal {
        solution.stop = StopReason::MethodDone;
    }
    let source = match noise {
        Noise::Profile => "profile".to_owned(),
        Noise::Share(share) => format!("{}%", 100.0 * share),
    };
    Ok((solution, Robust { source, draws: noise::draws(problem), chosen, candidates }))
}

impl Robust {
    /// For people.
    pub(super) fn text(&self) -> String {
        let rows = self.candidates.iter().enumerate().map(|(i, candidate)| {
            vec![
                format!("{}{}", candidate.method, if i == self.chosen { " (chosen)" } else { "" }),
                candidate.seed.to_string(),
                text::duration(candidate.makespan_ns),
                text::duration(candidate.noisy.p50_ns),
                text::duration(candidate.noisy.p90_ns),
            ]
        });
        let heading = ["schedule found by", "seed", "without noise", "p50 with noise", "p90 with noise"];
        format!(
            "noise      {}, {} draws of all op times; the lowest p90 is chosen\n{}",
            self.source,
            self.draws,
            table::table(heading, rows.collect())
        )
    }
}
