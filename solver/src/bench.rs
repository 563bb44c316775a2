//! The evaluator that search runs on, for benchmarks alone.
#![doc(hidden)]

use crate::adaptive::Constructor;
use crate::graph::Graph;
use crate::order::Order;
use crate::plan::{Evaluator, Plan};
use crate::problem::Problem;
use crate::search::Trial;

/// A plan of a problem with its arrays in place.
pub struct Timing<'p> {
    graph: Graph<'p>,
    plan: Plan,
    evaluator: Evaluator,
    problem: &'p Problem,
}

impl<'p> Timing<'p> {
    /// The adaptive-offload plan of the first policy that fits; `None` where none does.
    pub fn new(problem: &'p Problem) -> Option<Self> {
        let graph = Graph::new(problem);
        let plan = {
            let mut constructor = Constructor::new(&graph);
            let grid = crate::adaptive::policy::Policy::grid(problem.devices);
            grid.iter().find_map(|policy| constructor.construct(policy))?.0
        };
        let evaluator = Evaluator::new(&graph);
        Some(Timing { graph, plan, evaluator, problem })
    }

    /// Ops of the plan, copies included.
    pub fn ops(&self) -> usize {
        self.plan.queues.iter().map(Vec::len).sum()
    }

    /// Derives the waits of all devices and finds the makespan.
    pub fn run(&mut self) -> Option<i64> {
        self.evaluator.run(&self.graph, &self.plan, true).ok()
    }

    /// The plan's order.
    pub fn order(&self) -> Order {
        let mut evaluator = self.evaluator.clone();
        let timed = evaluator.run(&self.graph, &self.plan, true);
        debug_assert!(timed.is_ok(), "a constructed plan can run");
        Order::of(self.problem, &evaluator.schedule(&self.graph, &self.plan))
    }

    /// Annealing from the plan.
    pub fn annealing(&self, seed: u64) -> Option<Annealing<'_>> {
        Some(Annealing(Trial::new(&self.graph, self.plan.clone(), seed)?))
    }

    /// The plan of the policies' best, instead of the first that fits.
    pub fn improve(&mut self) {
        let mut constructor = Constructor::new(&self.graph);
        let grid = crate::adaptive::policy::Policy::grid(self.problem.devices);
        let plans = grid.iter().filter_map(|policy| constructor.construct(policy));
        if let Some((plan, _)) = plans.min_by_key(|x| x.1) {
            self.plan = plan;
        }
    }
}

/// Simulated annealing, step by step.
pub struct Annealing<'g>(Trial<'g>);

impl Annealing<'_> {
    /// Tries so many edits, at a temperature in mean times of an op.
    pub fn steps(&mut self, count: u64, temperature: f64) {
        self.0.steps(count, temperature);
    }

    /// The makespan of the accepted plan, ns.
    pub fn makespan_ns(&self) -> i64 {
        self.0.makespan_ns()
    }
}
