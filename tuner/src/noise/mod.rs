//! Robust choice: how schedules do when ops do not take exactly the time that the problem says.
//!
//! Every candidate is run through the same draws of all op times (common random numbers), its orders
//! kept; the one with the lowest 90th percentile of the step time is chosen. A draw is uniform in the
//! quantile between the measured 5th percentile, median and 95th percentile, linear in between, and
//! never beyond them. The layers of a stage are drawn one by one, as they were measured.

use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use optpipe_configs::hardware::Link;
use optpipe_configs::profile::{LayerProfile, Sample};
use optpipe_solver::order::Order;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::Schedule;
use rand::{RngExt, SeedableRng};
use rand_pcg::Pcg64Mcg;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::replay::{KINDS, Replay};

/// Where the spread of op times comes from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Noise {
    /// As measured, by the profile and the calibration.
    Profile,
    /// The same for every op: 5th and 95th percentile are so far from its time, as a share.
    Share(f64),
}

impl FromStr for Noise {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "profile" {
            return Ok(Noise::Profile);
        }
        let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<f64>().ok());
        match number {
            Some(percent) if percent > 0.0 && percent <= 100.0 => Ok(Noise::Share(percent / 100.0)),
            _ => Err(format!("expected `profile` or a percentage above 0 and up to 100 such as 5%, found `{text}`")),
        }
    }
}

/// One independent part of an op's time, relative to the op's: quantiles at 5, 50 and 95 %.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Part {
    low: f64,
    median: f64,
    high: f64,
}

impl Part {
    fn draw(self, rng: &mut Pcg64Mcg) -> f64 {
        let quantile = rng.random::<f64>().clamp(0.05, 0.95);
        if quantile <= 0.5 {
            self.low + (self.median - self.low) * (quantile - 0.05) / 0.45
        } else {
            self.median + (self.high - self.median) * (quantile - 0.5) / 0.45
        }
    }
}

/// The spreads of all ops of a problem: parts by kind and stage.
#[derive(Debug, Clone)]
pub struct Spreads {
    parts: [Vec<Vec<Part>>; 5],
}

impl Spreads {
    /// The same share for every op.
    pub fn share(problem: &Problem, share: f64) -> Spreads {
        let part = Part { low: (1.0 - share).max(0.0), median: 1.0, high: 1.0 + share };
        Spreads { parts: KINDS.map(|_| vec![vec![part]; problem.stages()]) }
    }

    /// As measured: `layers` are those of each stage. Copies spread as those of the calibration did, in
    /// the median over its sizes; a calibration without points says nothing, and copies take their time.
    pub fn measured(layers: &[Vec<&LayerProfile>], offload: &Link, reload: &Link) -> Spreads {
        let compute = |of: fn(&LayerProfile) -> &Sample| {
            layers.iter().map(|held| parts(&held.iter().map(|layer| of(layer)).collect::<Vec<_>>())).collect()
        };
        let copies = |link: &Link| vec![vec![spread(link)]; layers.len()];
        Spreads {
            parts: [
                compute(|layer| &layer.forward),
                compute(|layer| &layer.backward_input),
                compute(|layer| &layer.backward_weight),
                copies(offload),
                copies(reload),
            ],
        }
    }

    /// One draw of all op times, ns, by kind, stage and microbatch.
    fn draw(&self, problem: &Problem, rng: &mut Pcg64Mcg) -> Vec<i64> {
        let mut times = Vec::with_capacity(5 * problem.stages() * problem.microbatches);
        for (kind, parts) in KINDS.into_iter().zip(&self.parts) {
            for (stage, parts) in parts.iter().enumerate() {
                let time = problem.duration(kind, stage) as f64;
                for _ in 0..problem.microbatches {
                    let factor: f64 = parts.iter().map(|part| part.draw(rng)).sum();
                    times.push((time * factor).round() as i64);
                }
            }
        }
        times
    }
}

/// The parts of an op that does these, one after another.
fn parts(samples: &[&Sample]) -> Vec<Part> {
    let whole: u64 = samples.iter().map(|sample| sample.median_ns).sum();
    if whole == 0 {
        return vec![Part { low: 1.0, median: 1.0, high: 1.0 }];
    }
    let share = |ns: u64| ns as f64 / whole as f64;
    samples
        .iter()
        .map(|sample| Part {
            low: share(sample.p05_ns.min(sample.median_ns)),
            median: share(sample.median_ns),
            high: share(sample.p95_ns.max(sample.median_ns)),
        })
        .collect()
}

/// The middle of a link's relative spreads.
fn spread(link: &Link) -> Part {
    let ratios = |of: fn(&Sample) -> u64| {
        let measured = link.points.iter().filter(|point| point.time.median_ns > 0);
        let mut ratios: Vec<f64> = measured.map(|x| of(&x.time) as f64 / x.time.median_ns as f64).collect();
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().unwrap_or(1.0)
    };
    Part { low: ratios(|time| time.p05_ns).min(1.0), median: 1.0, high: ratios(|time| time.p95_ns).max(1.0) }
}

/// Step times of one schedule under noise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Percentiles {
    /// Median step time, ns.
    pub p50_ns: i64,
    /// 90th percentile of the step time, ns.
    pub p90_ns: i64,
}

/// Draws of all op times, at most; long schedules get fewer, see [`evaluate`].
const MOST_DRAWS: usize = 200;
/// The fewest.
const LEAST_DRAWS: usize = 20;
/// About so many stage-microbatch pairs are replayed for one schedule.
const PAIRS: usize = 4_000_000;
/// About the time that the replay of a pair takes on one core.
const PAIR_TIME: Duration = Duration::from_micros(1);

/// How many draws [`evaluate`] makes for a problem, if it has the time: 200, fewer above 20,000
/// stage-microbatch pairs, never below 20.
pub fn draws(problem: &Problem) -> usize {
    (PAIRS / pairs(problem)).clamp(LEAST_DRAWS, MOST_DRAWS)
}

/// About the time that [`evaluate`] takes for so many schedules.
pub fn time(problem: &Problem, schedules: usize) -> Duration {
    let pairs = draws(problem).saturating_mul(pairs(problem)).saturating_mul(schedules);
    PAIR_TIME.saturating_mul(u32::try_from(pairs).unwrap_or(u32::MAX))
}

fn pairs(problem: &Problem) -> usize {
    (problem.stages() * problem.microbatches).max(1)
}

/// What [`evaluate`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evaluated {
    /// Draws of all op times that every schedule was replayed with.
    pub draws: usize,
    /// By schedule. `None` where there were no draws, or one in which the schedule got stuck, as no legal
    /// one does.
    pub percentiles: Vec<Option<Percentiles>>,
}

/// The step times of every schedule over the same draws; the same seed gives the same numbers. Schedules
/// must be legal. The deadline ends it after the first draw at the earliest, `cancel` even before.
pub fn evaluate(
    problem: &Problem,
    schedules: &[&Schedule],
    spreads: &Spreads,
    seed: u64,
    deadline: Instant,
    cancel: &AtomicBool,
) -> Evaluated {
    let mut times: Vec<Vec<Option<i64>>> = vec![Vec::new(); schedules.len()];
    let mut made = 0;
    let stopped = |made: usize| cancel.load(Ordering::SeqCst) || (made > 0 && Instant::now() >= deadline);
    let mut replays: Vec<Replay<'_>> = Vec::with_capacity(schedules.len());
    for schedule in schedules {
        if stopped(made) {
            return Evaluated { draws: made, percentiles: vec![None; schedules.len()] };
        }
        replays.push(Replay::new(problem, &Order::of(problem, schedule)));
    }
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    'draws: while made < draws(problem) && !stopped(made) {
        let drawn = spreads.draw(problem, &mut rng);
        let mut steps = Vec::with_capacity(replays.len());
        for replay in &replays {
            // A draw that not all schedules had is left out, so that they remain comparable.
            if stopped(made) {
                break 'draws;
            }
            steps.push(replay.makespan(&drawn));
        }
        times.iter_mut().zip(steps).for_each(|(times, step)| times.push(step));
        made += 1;
    }
    let percentiles = times.into_iter().map(|times| percentiles(times.into_iter().collect::<Option<_>>()?)).collect();
    Evaluated { draws: made, percentiles }
}

/// `None` of no times.
fn percentiles(mut times: Vec<i64>) -> Option<Percentiles> {
    times.sort_unstable();
    let at = |share: f64| times.get((times.len().checked_sub(1)? as f64 * share).round() as usize).copied();
    Some(Percentiles { p50_ns: at(0.5)?, p90_ns: at(0.9)? })
}

#[cfg(test)]
mod tests;
