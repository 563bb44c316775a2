//! The period of a schedule: the longest span of a device, from the start of its first op to the end of its
//! last. Zero-bubble papers optimise this (Qi et al., arXiv 2401.10241): where the next step starts on a
//! device as soon as its own is over, a step takes the period, not the makespan.
//!
//! The order of the ops leaves the starts free. With `release[d]`, before which device `d` does not start,
//! the ends are a max-plus linear function of the releases; the least period of an order is that function's
//! eigenvalue, and an eigenvector is a set of releases that reaches it (Baccelli et al., *Synchronization
//! and Linearity*, 1992). Power iteration finds both.

use crate::graph::{Graph, Node};
use crate::plan::Plan;
use crate::problem::Problem;
use crate::schedule::Schedule;

/// The longest span of a device, ns.
pub fn period_ns(problem: &Problem, schedule: &Schedule) -> i64 {
    let span = |list: &Vec<crate::schedule::ScheduledOp>| {
        let first = list.iter().map(|x| x.start_ns).min()?;
        let last = list.iter().map(|x| x.start_ns + problem.duration(x.op, x.stage)).max()?;
        Some(last - first)
    };
    schedule.ops.iter().filter_map(span).max().unwrap_or(0)
}

/// Most steps of the power iteration.
const STEPS: usize = 64;

/// The least period of a plan and, in [`Compactor::end`], the ends that reach it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Compactor {
    /// End of each op, ns, the earliest start being 0.
    pub(crate) end: Vec<i64>,
    /// Ops, each after all that it waits for.
    topological: Vec<u32>,
    /// The op before each in its queue.
    before: Vec<u32>,
    waits: Vec<u32>,
}

impl Compactor {
    /// The least period that power iteration finds for a plan whose `nodes` are derived; ns. `None` where
    /// some ops wait for each other.
    pub(crate) fn run(&mut self, graph: &Graph<'_>, nodes: &[Node], plan: &Plan) -> Option<i64> {
        self.sort(graph, nodes, plan)?;
        let devices = graph.problem.devices;
        let mut releases = vec![vec![0; devices]];
        let mut best = (i64::MAX, Vec::new());
        for step in 0..STEPS {
            let release = &releases[step];
            let (first, last) = self.pass(graph, nodes, plan, release);
            let period = (0..devices).map(|d| last[d] - first[d]).max().unwrap_or(0);
            if period < best.0 {
                best = (period, first);
            }
            if let Some(cycle) = cycle(&releases, &last) {
                let release = eigenvector(&releases, &last, cycle);
                let (first, last) = self.pass(graph, nodes, plan, &release);
                let period = (0..devices).map(|d| last[d] - first[d]).max().unwrap_or(0);
                if period < best.0 {
                    best = (period, first);
                }
                break;
            }
            releases.push(last);
        }
        let (period, mut release) = best;
        let earliest = release.iter().copied().min().unwrap_or(0);
        release.iter_mut().for_each(|x| *x -= earliest);
        self.pass(graph, nodes, plan, &release);
        Some(period)
    }

    /// Orders the ops by what they wait for.
    fn sort(&mut self, graph: &Graph<'_>, nodes: &[Node], plan: &Plan) -> Option<()> {
        let none = graph.none();
        self.before.clear();
        self.before.resize(nodes.len(), none);
        let mut after = vec![none; nodes.len()];
        let mut count = 0;
        for queue in &plan.queues {
            count += queue.len();
            for pair in queue.windows(2) {
                self.before[pair[1] as usize] = pair[0];
                after[pair[0] as usize] = pair[1];
            }
        }
        // Ops that wait for an op by data, copy or memory: lists in one array.
        let waits_for = |op: u32| {
            let node = &nodes[op as usize];
            [node.data, node.copy, node.freed].into_iter().filter(move |&x| x != none)
        };
        let mut begin = vec![0_u32; nodes.len() + 1];
        self.waits.clear();
        self.waits.resize(nodes.len(), 0);
        for &op in plan.queues.iter().flatten() {
            for x in waits_for(op) {
                begin[x as usize + 1] += 1;
                self.waits[op as usize] += 1;
            }
            self.waits[op as usize] += u32::from(self.before[op as usize] != none);
        }
        for i in 0..nodes.len() {
            begin[i + 1] += begin[i];
        }
        let mut place = begin.clone();
        let mut waiting = vec![0_u32; begin[nodes.len()] as usize];
        for &op in plan.queues.iter().flatten() {
            for x in waits_for(op) {
                waiting[place[x as usize] as usize] = op;
                place[x as usize] += 1;
            }
        }
        self.topological.clear();
        self.topological.extend(plan.queues.iter().flatten().copied().filter(|&op| self.waits[op as usize] == 0));
        let mut at = 0;
        while let Some(&op) = self.topological.get(at) {
            at += 1;
            let own = &waiting[begin[op as usize] as usize..begin[op as usize + 1] as usize];
            for &x in own.iter().chain(Some(&after[op as usize]).filter(|&&x| x != none)) {
                self.waits[x as usize] -= 1;
                if self.waits[x as usize] == 0 {
                    self.topological.push(x);
                }
            }
        }
        (self.topological.len() == count).then_some(())
    }

    /// Earliest starts under releases: for each device the start of its first op and the end of its last;
    /// of a device without ops the release, twice.
    fn pass(&mut self, graph: &Graph<'_>, nodes: &[Node], plan: &Plan, release: &[i64]) -> (Vec<i64>, Vec<i64>) {
        self.end.clear();
        self.end.resize(nodes.len(), 0);
        for &op in &self.topological {
            let node = &nodes[op as usize];
            let before = self.before[op as usize];
            let free = if before == graph.none() && graph.kind(op).is_compute() {
                release[graph.device(op)]
            } else {
                self.end[before as usize]
            };
            // An op that is not waited for has no end: the number that stands for none keeps 0, so data of
            // none must not count, releases being below 0 nowhere.
            let data = if node.data == graph.none() { 0 } else { self.end[node.data as usize] + node.lag };
            let start = free.max(data).max(self.end[node.copy as usize]).max(self.end[node.freed as usize]);
            self.end[op as usize] = start + node.duration;
        }
        let ends = |x: Option<&u32>| x.map(|&op| (self.end[op as usize], nodes[op as usize].duration));
        let queues = &plan.queues[..graph.problem.devices];
        let first = queues.iter().zip(release).map(|(x, &r)| ends(x.first()).map_or(r, |(end, time)| end - time));
        let last = queues.iter().zip(release).map(|(x, &r)| ends(x.last()).map_or(r, |(end, _)| end));
        (first.collect(), last.collect())
    }
}

/// How many steps ago the releases were the same but for a constant.
fn cycle(releases: &[Vec<i64>], last: &[i64]) -> Option<usize> {
    (1..=releases.len()).find(|back| {
        let old = &releases[releases.len() - back];
        last.iter().zip(old).all(|(x, y)| x - y == last[0] - old[0])
    })
}

/// `max over k < cycle of (release of k steps into the cycle - k * eigenvalue)`, rounded down.
fn eigenvector(releases: &[Vec<i64>], last: &[i64], cycle: usize) -> Vec<i64> {
    let begin = &releases[releases.len() - cycle..];
    let whole = last[0] - begin[0][0];
    let passed = |k: usize| (k as i64 * whole).div_euclid(cycle as i64);
    (0..last.len()).map(|d| begin.iter().enumerate().map(|(k, x)| x[d] - passed(k)).max().unwrap_or(0)).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::method::Method;
    use crate::plan::Evaluator;
    use crate::testing::uniform;
    use crate::textbook;

    fn least(problem: &Problem, method: Method) -> i64 {
        let graph = Graph::new(problem);
        let plan = Plan::from_order(&graph, &textbook::order(problem, method).unwrap()).unwrap();
        let mut evaluator = Evaluator::new(&graph);
        evaluator.run(&graph, &plan, false).unwrap();
        Compactor::default().run(&graph, &evaluator.nodes, &plan).unwrap()
    }

    #[test]
    fn zero_bubble_schedules_have_the_period_of_their_work() {
        for (p, m) in [(2, 4), (4, 8), (8, 24)] {
            let linear = uniform(p, (0..p).collect(), m);
            assert_eq!(least(&linear, Method::ZbH2), 3 * m as i64, "p={p} m={m}");
            let vee = uniform(p, (0..p).chain((0..p).rev()).collect(), m);
            assert_eq!(least(&vee, Method::ZbV), 6 * m as i64, "p={p} m={m}");
        }
    }

    #[test]
    fn a_period_is_between_the_work_of_a_device_and_the_makespan() {
        for (p, m) in [(2, 3), (4, 8), (5, 7)] {
            let mut problem = uniform(p, (0..p).collect(), m);
            problem.time_ns.send_forward.fill(2);
            for method in [Method::Gpipe, Method::OneFOneB, Method::ZbH1] {
                let makespan = textbook::schedule(&problem, method).unwrap().makespan_ns;
                let period = least(&problem, method);
                assert!(3 * m as i64 <= period && period <= makespan, "{method} p={p} m={m}: {period}, {makespan}");
            }
            // The first device waits for the last B of 1F1B; its own span is the makespan.
            let schedule = textbook::schedule(&problem, Method::OneFOneB).unwrap();
            assert_eq!(period_ns(&problem, &schedule), schedule.makespan_ns);
        }
    }
}
