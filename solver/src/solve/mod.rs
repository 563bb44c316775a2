//! The engine: constructors, search and MILP, one after another, on one record of the best schedule and
//! the best bound; it can be stopped at any time, and says why it stopped.

mod lanes;
mod record;

use std::sync::atomic::AtomicBool;
use std::time::Duration;

pub use record::{Event, PartRecord, Solution, StopReason, TracePoint};

use crate::adaptive::policy::Policy;
use crate::adaptive::{Constructor, dispatch::ComputeOrder};
use crate::bound::{lower_bound, period_bound};
use crate::graph::Graph;
use crate::method::Method;
use crate::milp::MilpStats;
use crate::objective::{self, Objective};
use crate::order::Order;
use crate::plan::{Evaluator, Plan};
use crate::problem::{Infeasible, Problem};
use crate::schedule::{Op, Schedule};
use crate::simulate::simulate_unlimited;
use crate::textbook;
use lanes::Lanes;
use record::Record;

/// Policies of the grid that are constructed before the search, which has all of them, on all threads.
const FIRST: usize = 6;
/// The part that takes the schedule given.
const START: &str = "start";

/// How to solve.
#[derive(Debug, Clone, PartialEq)]
pub struct SolveOptions {
    /// What to use.
    pub method: Method,
    /// What to minimise.
    pub objective: Objective,
    /// When to stop, at the latest. The first schedule is made whatever the limit.
    pub time_limit: Duration,
    /// Seed of everything random.
    pub seed: u64,
    /// A schedule that is known already; used if it is legal.
    pub start: Option<Schedule>,
    /// What found `start`: [`Solution::method`] where nothing beats it, which else is `start`.
    pub start_method: Option<String>,
    /// With this, the search of each thread ends after so many evaluations, and what depends on the clock
    /// is left out of `auto`: if the time limit does not strike first, the same problem, seed and
    /// iterations give the same schedule.
    pub iterations: Option<u64>,
}

impl Default for SolveOptions {
    fn default() -> Self {
        SolveOptions {
            method: Method::Auto,
            objective: Objective::Makespan,
            time_limit: Duration::from_secs(30),
            seed: 0,
            start: None,
            start_method: None,
            iterations: None,
        }
    }
}

/// The best schedule that the method finds in time, with a bound that no schedule can beat.
///
/// A textbook method's order is completed by offloads where memory demands them; where that is not
/// possible, or the method is not made for the placement, the answer is that of adaptive offload, and the
/// method's [`PartRecord::note`] says why. Every schedule has passed [`check`](crate::check::check). `on_event` hears of each better schedule and bound; `cancel`, set
/// at any time by anyone, ends the solve with the best so far.
///
/// # Errors
/// [`Infeasible`], when no legal schedule exists: which device lacks how many bytes.
pub fn solve(
    problem: &Problem,
    options: &SolveOptions,
    on_event: &mut dyn FnMut(&Event),
    cancel: &AtomicBool,
) -> Result<Solution, Infeasible> {
    problem.feasible()?;
    let graph = Graph::new(problem);
    let mut engine = Engine {
        problem,
        graph: &graph,
        options,
        record: Record::new(problem, options.objective, options.time_limit, on_event, cancel),
        milp: None,
    };
    engine.run();
    let mut solution = engine.record.into_solution(engine.milp);
    if solution.method == START
        && let Some(method) = &options.start_method
    {
        solution.method.clone_from(method);
    }
    Ok(solution)
}

struct Engine<'a> {
    problem: &'a Problem,
    graph: &'a Graph<'a>,
    options: &'a SolveOptions,
    record: Record<'a>,
    milp: Option<MilpStats>,
}

impl Engine<'_> {
    fn run(&mut self) {
        self.record.part("bound", |record| {
            let bound_ns = match self.options.objective {
                Objective::Makespan => lower_bound(self.problem),
                Objective::Period => period_bound(self.problem),
            };
            record.bound(bound_ns, "bound");
            None
        });
        self.start();
        if self.options.method.is_textbook() || self.options.method == Method::PipeOffload {
            match self.options.method {
                Method::PipeOffload => self.pipe_offload(),
                method => self.textbook(method),
            }
            if self.record.schedule().is_some() {
                return;
            }
        }
        self.serial();
        let searches = matches!(self.options.method, Method::Search | Method::Auto);
        self.policies(
            Method::AdaptiveOffload,
            Policy::grid(self.problem.devices).into_iter().take(if searches { FIRST } else { usize::MAX }),
        );
        if self.options.method == Method::Auto {
            for method in Method::ALL.into_iter().filter(|x| x.is_textbook()) {
                if textbook::applies(self.problem, method) {
                    self.textbook(method);
                }
            }
        }
        if searches || self.options.method == Method::Milp {
            self.improve();
        }
    }

    /// The schedule given, without the waiting that its order does not need, where that can be told.
    fn start(&mut self) {
        let Some(start) = &self.options.start else { return };
        self.record.part(START, |record| {
            if !record.incumbent(start.clone(), START) {
                return Some("not a legal schedule of this problem".to_owned());
            }
            if let Ok(plan) = Plan::from_order(self.graph, &Order::of(self.problem, start)) {
                offer(record, self.graph, &mut Evaluator::new(self.graph), &plan, START);
            }
            None
        });
    }

    /// The schedule that always exists.
    fn serial(&mut self) {
        let mut constructor = Constructor::new(self.graph);
        self.record.part("serial", |record| {
            if let Some((plan, _)) = constructor.construct_serial() {
                offer(record, self.graph, &mut constructor.evaluator, &plan, "serial");
            }
            None
        });
    }

    /// PipeOffload's groups and chunks, all of them.
    fn pipe_offload(&mut self) {
        let devices = 0..self.problem.devices;
        let chunks = devices.map(|d| self.problem.stages_of(d).count()).max().unwrap_or(0);
        self.policies(Method::PipeOffload, Policy::pipe_offload(self.problem.devices, chunks));
    }

    /// The schedules of policies, until the time is over.
    fn policies(&mut self, method: Method, policies: impl IntoIterator<Item = Policy>) {
        if self.record.schedule().is_some() && self.record.stopped().is_some() {
            return;
        }
        let mut constructor = Constructor::new(self.graph);
        self.record.part(method.name(), |record| {
            let mut fits = false;
            for policy in policies {
                if record.schedule().is_some() && record.stopped().is_some() {
                    return None;
                }
                if let Some((plan, makespan_ns)) = constructor.construct(&policy) {
                    fits = true;
                    if is_worth(record, makespan_ns) {
                        offer(record, self.graph, &mut constructor.evaluator, &plan, method.name());
                    }
                }
            }
            if fits { None } else { Some("none of its schedules fits in memory".to_owned()) }
        });
    }

    /// A textbook order, completed by offloads where it does not fit as it is.
    fn textbook(&mut self, method: Method) {
        if self.record.schedule().is_some() && self.record.stopped().is_some() {
            return;
        }
        let (problem, graph) = (self.problem, self.graph);
        self.record.part(method.name(), |record| {
            let order = match textbook::order(problem, method) {
                Ok(order) => order,
                Err(error) => return Some(error.to_string()),
            };
            let free = match simulate_unlimited(problem, &order) {
                Ok(simulated) => simulated.schedule,
                Err(error) => return Some(error.to_string()),
            };
            let mut end = vec![0; 3 * graph.pairs];
            for x in free.ops.iter().flatten() {
                end[graph.op(x.op, x.stage, x.microbatch) as usize] = x.start_ns + problem.duration(x.op, x.stage);
            }
            let legal = record.incumbent(free, method.name());
            // In this order, an F may also wait until there is room; a period has starts of its own.
            let mut constructor = Constructor::new(graph);
            let plan = Plan::from_order(graph, &order);
            let mut fits =
                plan.is_ok_and(|plan| offer(record, graph, &mut constructor.evaluator, &plan, method.name()));
            if legal {
                return None;
            }
            let ops = |x: &Vec<Op>| x.iter().map(|x| graph.op(x.kind, x.stage, x.microbatch)).collect();
            let order = ComputeOrder { sequences: order.devices.iter().map(ops).collect(), end };
            for policy in Policy::completions() {
                if record.schedule().is_some() && record.stopped().is_some() {
                    break;
                }
                if let Some((plan, makespan_ns)) = constructor.complete(&order, &policy) {
                    fits = true;
                    if is_worth(record, makespan_ns) {
                        offer(record, graph, &mut constructor.evaluator, &plan, method.name());
                    }
                }
            }
            if fits { None } else { Some("its order does not fit in memory, even with offloading".to_owned()) }
        });
    }

    /// Search and exact methods side by side, until the best schedule is proven or the time is over.
    fn improve(&mut self) {
        if self.record.stopped().is_some() {
            return;
        }
        let lanes = Lanes::new(self.problem, self.graph, self.options, self.record.deadline());
        self.milp = lanes.run(&mut self.record);
    }
}

/// Whether a plan of this makespan may be better than what is there.
fn is_worth(record: &Record<'_>, makespan_ns: i64) -> bool {
    record.objective() == Objective::Period || record.value_ns().is_none_or(|x| makespan_ns < x)
}

/// Offers a plan to the record, if its objective is less than that of what is there. Returns whether the
/// plan can run.
fn offer(record: &mut Record<'_>, graph: &Graph<'_>, evaluator: &mut Evaluator, plan: &Plan, part: &str) -> bool {
    let Some(value_ns) = objective::evaluate(record.objective(), graph, evaluator, plan) else { return false };
    if record.value_ns().is_none_or(|x| value_ns < x) {
        record.incumbent(evaluator.schedule(graph, plan), part);
    }
    true
}
