//! What a structure search found: every structure with its fate, and the memory-time front.

use optpipe_configs::file::{Check, Invalid, VERSION, check_version};
use optpipe_configs::job::Structure;
use optpipe_solver::check::check;
use optpipe_solver::problem::Problem;
use optpipe_solver::solve::Solution;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::candidates::{Candidate, State};
use super::profiles::Times;
use crate::{table, text};

/// How far a structure came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It cannot run one microbatch at a time.
    Infeasible,
    /// The time was over before its turn.
    NotTried,
    /// Its bound proves that it cannot be the best.
    CutByBound,
    /// Others were faster in this round: 0 is list scheduling, then come rounds of search.
    Dropped {
        /// The last round in which it was solved.
        round: usize,
    },
    /// It was solved in full.
    Finalist,
    /// The shortest step.
    Chosen,
}

/// A structure that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// The structure.
    pub structure: Structure,
    /// Where its layer times come from.
    pub times: Times,
    /// How far it came.
    pub fate: Fate,
    /// No schedule of it is shorter, ns. Of what was not solved, it may be a bound that takes no time.
    pub bound_ns: i64,
    /// The best schedule found, ns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub makespan_ns: Option<i64>,
    /// That over the bound, less 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<f64>,
    /// Its peak, a device, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<Vec<i64>>,
    /// What the device that lacks the most lacks, where it cannot run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing_bytes: Option<i64>,
}

/// A point of the memory-time front.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FrontPoint {
    /// The limit of each device, bytes.
    pub capacity_bytes: Vec<i64>,
    /// The structure with the shortest step found; absent where none can run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub structure: Option<Structure>,
    /// Its step, ns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub makespan_ns: Option<i64>,
    /// No schedule of this structure is shorter at this capacity, ns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_ns: Option<i64>,
    /// Step over bound, less 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<f64>,
    /// Peak of each device, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_bytes: Option<Vec<i64>>,
}

/// All of it; `structure/search.yaml` of a tune.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Report {
    /// Format version: 1.
    pub version: u32,
    /// What was chosen.
    pub chosen: Structure,
    /// Its step, ns.
    pub makespan_ns: i64,
    /// No schedule of the chosen structure is shorter, ns.
    pub bound_ns: i64,
    /// No schedule of any structure that was looked at is shorter, ns.
    pub bound_over_all_ns: i64,
    /// Every structure, the fastest first, then by bound.
    pub points: Vec<Point>,
    /// The memory-time front, from little memory to much.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub front: Vec<FrontPoint>,
}

impl Check for Report {
    fn check(&self) -> Result<(), Invalid> {
        check_version(self.version)
    }
}

fn gap(makespan_ns: i64, bound_ns: i64) -> f64 {
    (makespan_ns as f64 / bound_ns.max(1) as f64 - 1.0).max(0.0)
}

impl Report {
    pub(super) fn new(candidates: &[Candidate], chosen: usize, front: Vec<FrontPoint>) -> Report {
        let mut points: Vec<Point> = candidates.iter().map(Point::new).collect();
        let feasible = candidates.iter().filter(|x| x.missing_bytes == 0);
        let best = &candidates[chosen];
        points.sort_by_key(|x| (x.fate != Fate::Chosen, x.makespan_ns.unwrap_or(i64::MAX), x.bound_ns));
        Report {
            version: VERSION,
            chosen: best.structure.clone(),
            makespan_ns: best.makespan_ns().unwrap_or(0),
            bound_ns: best.bound_ns,
            bound_over_all_ns: feasible.map(|x| x.bound_ns).min().unwrap_or(0),
            points,
            front,
        }
    }

    /// Tables for people; at most so many structures.
    pub fn text(&self, most: usize) -> String {
        let rows = self.points.iter().take(most).map(|point| {
            let mut row = layout(&point.structure);
            if point.times != Times::Measured {
                row[2].push_str(" (scaled)");
            }
            row.extend([
                point.makespan_ns.map_or_else(|| "-".to_owned(), text::duration),
                text::duration(point.bound_ns),
                point.gap.map_or_else(|| "-".to_owned(), text::gap),
                point.peak_bytes.as_deref().map_or_else(|| "-".to_owned(), largest),
                fate(point),
            ]);
            row
        });
        let heading = ["chunks", "placement", "microbatches", "layer split", "step", "bound", "gap", "peak", "fate"];
        let mut lines = vec![table::table(heading, rows.collect()).to_string()];
        if self.points.len() > most {
            lines.push(format!("and {} more; --json lists all", self.points.len() - most));
        }
        if let Some(point) = self.points.iter().find(|point| matches!(point.times, Times::ScaledFrom(_))) {
            let Times::ScaledFrom(from) = point.times else { return lines.join("\n") };
            let mut sizes: Vec<usize> = self
                .points
                .iter()
                .filter(|point| point.times != Times::Measured)
                .map(|point| point.structure.microbatch_size)
                .collect();
            sizes.sort_unstable();
            sizes.dedup();
            lines.push(format!(
                "Layer times of microbatch size {} are not measured: they are scaled, from size {from} and the like, \
                 in proportion; `optpipe profile JOB --microbatch-size N` measures one.",
                text::list(sizes, |size| size.to_string())
            ));
        }
        if !self.front.is_empty() {
            lines.push("\nThe shortest step found by memory limit; limits between these gain nothing more:".to_owned());
            // More memory that gains nothing is left out here.
            let mut before = None;
            let gains = self.front.iter().filter(|point| {
                let gains = before != Some(point.makespan_ns);
                before = Some(point.makespan_ns);
                gains
            });
            let rows = gains.map(|point| {
                let own = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
                let mut row = vec![
                    largest(&point.capacity_bytes),
                    own(point.peak_bytes.as_deref().map(largest)),
                    own(point.makespan_ns.map(text::duration)),
                    own(point.gap.map(text::gap)),
                ];
                row.extend(point.structure.as_ref().map_or_else(|| vec!["no structure fits".to_owned()], layout));
                row.resize(8, String::new());
                row
            });
            let heading = ["capacity", "peak", "step", "gap", "chunks", "placement", "microbatches", "layer split"];
            lines.push(table::table(heading, rows.collect()).to_string());
        }
        lines.push(format!(
            "\nNo schedule of any structure looked at takes less than {}.",
            text::duration(self.bound_over_all_ns)
        ));
        lines.join("\n")
    }
}

impl Point {
    fn new(candidate: &Candidate) -> Point {
        let solution = match &candidate.state {
            State::Unsolved => None,
            State::Solved(solution) => Some(solution),
        };
        let makespan_ns = candidate.makespan_ns();
        Point {
            structure: candidate.structure.clone(),
            times: candidate.times,
            fate: candidate.fate,
            bound_ns: candidate.bound_ns,
            makespan_ns,
            gap: makespan_ns.map(|makespan| gap(makespan, candidate.bound_ns)),
            peak_bytes: solution.map(|x| check(candidate.problem(), &x.schedule).peak_bytes),
            missing_bytes: Some(candidate.missing_bytes).filter(|&missing| missing > 0),
        }
    }
}

impl FrontPoint {
    pub(super) fn new(candidate: &Candidate, problem: &Problem, solution: &Solution) -> FrontPoint {
        FrontPoint {
            capacity_bytes: problem.bytes.capacity.clone(),
            structure: Some(candidate.structure.clone()),
            makespan_ns: Some(solution.makespan_ns),
            bound_ns: Some(solution.bound_ns),
            gap: Some(gap(solution.makespan_ns, solution.bound_ns)),
            peak_bytes: Some(check(problem, &solution.schedule).peak_bytes),
        }
    }

    pub(super) fn infeasible(capacity: &[i64]) -> FrontPoint {
        FrontPoint {
            capacity_bytes: capacity.to_vec(),
            structure: None,
            makespan_ns: None,
            bound_ns: None,
            gap: None,
            peak_bytes: None,
        }
    }
}

fn largest(bytes: &[i64]) -> String {
    text::bytes(bytes.iter().copied().max().unwrap_or(0).unsigned_abs())
}

/// Chunks, placement, microbatches and split of a structure, as cells.
fn layout(structure: &Structure) -> Vec<String> {
    vec![
        structure.chunks.to_string(),
        structure.placement.map_or("as listed", |name| name.name()).to_owned(),
        format!("{} x {}", structure.microbatches, structure.microbatch_size),
        split(&structure.layer_split),
    ]
}

/// `3 2 2 1`; equal ones in a row as `4x2`.
pub(crate) fn split(blocks: &[usize]) -> String {
    let runs = blocks.chunk_by(|a, b| a == b).map(|run| match run {
        [one] => one.to_string(),
        [a, b] => format!("{a} {b}"),
        [first, ..] => format!("{}x{first}", run.len()),
        [] => String::new(),
    });
    runs.collect::<Vec<_>>().join(" ")
}

fn fate(point: &Point) -> String {
    match point.fate {
        Fate::Infeasible => {
            format!("lacks {}", text::bytes(point.missing_bytes.unwrap_or(0).unsigned_abs()))
        }
        Fate::NotTried => "not tried".to_owned(),
        Fate::CutByBound => "cut by bound".to_owned(),
        Fate::Dropped { round } => format!("dropped in round {round}"),
        Fate::Finalist => "finalist".to_owned(),
        Fate::Chosen => "chosen".to_owned(),
    }
}
