//! What a schedule is judged by.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::graph::Graph;
use crate::period::{Compactor, period_ns};
use crate::plan::{Evaluator, Plan};
use crate::problem::Problem;
use crate::schedule::Schedule;

/// What a schedule is judged by; less is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Objective {
    /// The latest end of any op: the time of a step that ends with all devices together.
    #[default]
    Makespan,
    /// The longest span of a device, from the start of its first op to the end of its last: the time of a
    /// step where the next one starts on a device as soon as its own is over.
    Period,
}

impl Objective {
    /// Every objective.
    pub const ALL: [Objective; 2] = [Objective::Makespan, Objective::Period];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Objective::Makespan => "makespan",
            Objective::Period => "period",
        }
    }

    /// A schedule's makespan or period, ns.
    pub fn value_ns(self, problem: &Problem, schedule: &Schedule) -> i64 {
        match self {
            Objective::Makespan => schedule.makespan_ns,
            Objective::Period => period_ns(problem, schedule),
        }
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no objective has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown objective `{0}`: expected makespan or period")]
pub struct UnknownObjective(pub String);

impl FromStr for Objective {
    type Err = UnknownObjective;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Objective::ALL.into_iter().find(|x| x.name() == name).ok_or_else(|| UnknownObjective(name.to_owned()))
    }
}

/// Times a plan: its objective, ns, with ends that reach it in `evaluator`. `None` where it cannot run.
pub(crate) fn evaluate(objective: Objective, graph: &Graph<'_>, evaluator: &mut Evaluator, plan: &Plan) -> Option<i64> {
    let makespan_ns = evaluator.run(graph, plan, true).ok()?;
    match objective {
        Objective::Makespan => Some(makespan_ns),
        Objective::Period => {
            let mut compactor = Compactor::default();
            let period_ns = compactor.run(graph, &evaluator.nodes, plan)?;
            evaluator.path.end = compactor.end;
            Some(period_ns)
        }
    }
}
