//! `optpipe solve --noise`: several schedules, and the one that does best under noise.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use optpipe_solver::method::Method;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::{Event, Solution, SolveOptions, solve};
use schemars::JsonSchema;
use serde::Serialize;

use crate::error::Result;
use crate::noise::{self, Noise, Percentiles, Spreads};
use crate::progress::Progress;
use crate::{table, text};

/// Seeds that share the time limit.
const SEEDS: usize = 4;
/// Share of the time limit for all methods that take no time.
const QUICK: f64 = 0.1;
/// The least and the most share of it for the replays.
const REPLAYED: (f64, f64) = (0.1, 0.2);

/// How the candidates did.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub(in crate::cli) struct Robust {
    /// `profile`, or a percentage.
    source: String,
    /// Draws of all op times; none where the user stopped before the first one was replayed.
    draws: usize,
    /// The one that was chosen.
    chosen: usize,
    /// The schedules that there were to choose from.
    candidates: Vec<Candidate>,
}

/// A schedule that could be chosen.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(deny_unknown_fields)]
struct Candidate {
    /// What found the schedule.
    method: String,
    /// The seed of its solve.
    seed: u64,
    /// Without noise, ns.
    makespan_ns: i64,
    #[serde(flatten)]
    noisy: Option<Percentiles>,
}

/// Solves with several seeds and with the methods that take no time, and chooses the schedule with the
/// lowest 90th percentile of the step time; of equals, or without draws, the one with the lower median,
/// then the shorter one. All solves and the replays share the time limit. The bound is the best of all
/// solves.
pub(super) fn choose(
    problem: &Problem,
    options: &SolveOptions,
    noise: Noise,
    spreads: &Spreads,
    progress: &Progress,
    cancel: &AtomicBool,
) -> Result<(Solution, Robust)> {
    let seeds = (0..SEEDS).map(|i| (options.method, options.seed.wrapping_add(i as u64)));
    // Textbook orders are regular, which may be worth more than a little time.
    let quick = Method::ALL.into_iter().filter(|method| method.is_textbook() || *method == Method::AdaptiveOffload);
    let runs: Vec<(Method, u64)> = seeds.chain(quick.map(|method| (method, options.seed))).collect();
    let begun = Instant::now();
    let share = |share: f64| options.time_limit.mul_f64(share);
    let replaying = noise::time(problem, runs.len()).clamp(share(REPLAYED.0), share(REPLAYED.1));
    let solving = begun + options.time_limit.saturating_sub(replaying);
    let searching = begun + options.time_limit.saturating_sub(replaying + share(QUICK));
    let mut found: Vec<(u64, Solution)> = Vec::new();
    let mut bound_ns = 0;
    for (i, &(method, seed)) in runs.iter().enumerate() {
        let over = cancel.load(Ordering::SeqCst) || Instant::now() >= solving;
        if over && !found.is_empty() {
            break;
        }
        // An equal part of what is left, for each that follows.
        let (until, runs) = if i < SEEDS { (searching, SEEDS - i) } else { (solving, runs.len() - i) };
        let time_limit = until.saturating_duration_since(Instant::now()).div_f64(runs as f64);
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
    let schedules: Vec<_> = found.iter().map(|(_, solution)| &solution.schedule).collect();
    let deadline = begun + options.time_limit;
    let left = deadline.saturating_duration_since(Instant::now());
    progress.phase_within(&format!("replaying {} schedules under noise", found.len()), left);
    let evaluated = noise::evaluate(problem, &schedules, spreads, options.seed, deadline, cancel);
    let candidates: Vec<Candidate> = found
        .iter()
        .zip(evaluated.percentiles)
        .map(|((seed, solution), noisy)| Candidate {
            method: solution.method.clone(),
            seed: *seed,
            makespan_ns: solution.makespan_ns,
            noisy,
        })
        .collect();
    let rank = |i: &usize| {
        let noisy = candidates[*i].noisy.map(|x| (x.p90_ns, x.p50_ns));
        (noisy.is_none(), noisy, candidates[*i].makespan_ns)
    };
    let chosen = (0..candidates.len()).min_by_key(rank).unwrap_or(0);
    let (_, mut solution) = found.swap_remove(chosen);
    solution.raise_bound(bound_ns);
    let source = match noise {
        Noise::Profile => "profile".to_owned(),
        Noise::Share(share) => format!("{}%", (1e8 * share).round() / 1e6),
    };
    Ok((solution, Robust { source, draws: evaluated.draws, chosen, candidates }))
}

impl Robust {
    /// For people.
    pub(super) fn text(&self) -> String {
        let rows = self.candidates.iter().enumerate().map(|(i, candidate)| {
            let noisy = |of: fn(Percentiles) -> i64| candidate.noisy.map_or("-".to_owned(), |x| text::duration(of(x)));
            vec![
                format!("{}{}", candidate.method, if i == self.chosen { " (chosen)" } else { "" }),
                candidate.seed.to_string(),
                text::duration(candidate.makespan_ns),
                noisy(|x| x.p50_ns),
                noisy(|x| x.p90_ns),
            ]
        });
        let heading = ["schedule found by", "seed", "without noise", "p50 with noise", "p90 with noise"];
        let chosen = if self.draws > 0 { "lowest p90" } else { "shortest" };
        format!(
            "noise      {}, {} draws of all op times; the {chosen} is chosen\n{}",
            self.source,
            self.draws,
            table::table(heading, rows.collect())
        )
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;

    fn chosen(options: &SolveOptions, cancel: bool) -> (Solution, Robust) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/data/instances/b_p3m6_free_memory.yaml");
        let problem: Problem = optpipe_configs::file::read_checked(&path).unwrap();
        let (noise, spreads) = (Noise::Share(0.1), Spreads::share(&problem, 0.1));
        let (progress, cancel) = (Progress::new(true), AtomicBool::new(cancel));
        choose(&problem, options, noise, &spreads, &progress, &cancel).unwrap()
    }

    #[test]
    fn the_lowest_p90_is_chosen_and_no_draw_is_left_out() {
        let options = SolveOptions { iterations: Some(200), ..SolveOptions::default() };
        let (solution, robust) = chosen(&options, false);
        assert_eq!(robust.draws, 200);
        let p90 = |candidate: &Candidate| candidate.noisy.unwrap().p90_ns;
        let best = &robust.candidates[robust.chosen];
        assert!(robust.candidates.len() > 2 && robust.candidates.iter().all(|x| p90(x) >= p90(best)));
        assert_eq!(solution.makespan_ns, best.makespan_ns);
        assert!(solution.bound_ns <= solution.makespan_ns);
    }

    #[test]
    fn a_user_who_stops_gets_the_first_schedule_without_draws() {
        let (_, robust) = chosen(&SolveOptions::default(), true);
        assert_eq!((robust.draws, robust.candidates.len(), robust.chosen), (0, 1, 0));
        assert!(robust.candidates[0].noisy.is_none());
        assert!(robust.text().contains("0 draws of all op times; the shortest is chosen"));
    }
}
