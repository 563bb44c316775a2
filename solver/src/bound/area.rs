//! Memory times time.
//!
//! At stage s a microbatch holds the activation for at least `life`, the way from the start of F(s) to
//! the end of B(s), then the weight context for the length of W. Offloading lowers that for at most
//! `life` less F, O, R and B themselves. With makespan T a device has room times T, less what surely
//! comes before and after. Where all uses together exceed that, the rest must be spared by offloading,
//! each of which costs its channels the time of O and R, and a channel has no more than T less what
//! surely comes before its first and after its last copy. Which stages to offload is relaxed to
//! fractions, best spare for the channel's time first, each channel and device on its own. A larger T
//! only eases all this, so the least T that passes is a bound.
//!
//! Sizes are also counted in units: what fits in the room fits as well if every size, and then the room,
//! is rounded down to a multiple of any unit. With a unit just above half the room, for instance: of
//! things larger than that, one at a time.

use std::collections::BTreeMap;

use super::heads::Heads;
use crate::problem::Problem;

/// A device's memory, counted in some unit.
struct Case {
    device: usize,
    /// Units that fit.
    room: i128,
    /// Unit-time used without offloading.
    used: i128,
    /// Unit-time that offloading everything spares.
    spared: i128,
    /// Time surely outside of any use, ns.
    outside: i128,
    /// For each channel of the device: (spare, channel time) of one offload, cheapest first.
    offers: Vec<(usize, Vec<(i128, i128)>)>,
}

/// The least makespan at which memory times time suffices, ns.
pub(super) fn area(p: &Problem, heads: &Heads, tails: &Heads) -> i64 {
    let m = p.microbatches;
    let cases = cases(p, heads, tails);
    // For each channel, what surely comes before its first and after its last copy.
    let mut outside: BTreeMap<usize, (i64, i64)> = BTreeMap::new();
    for s in 0..p.stages() {
        let d = p.placement[s];
        let t = &p.time_ns;
        let start = heads.f[s * m] + t.forward[s];
        let tail = t.backward_input[s] + tails.b[s * m];
        for (c, before, after) in
            [(p.offload_channel[d], start, t.reload[s] + tail), (p.reload_channel[d], start + t.offload[s], tail)]
        {
            let entry = outside.entry(c).or_insert((before, after));
            *entry = (entry.0.min(before), entry.1.min(after));
        }
    }

    let passes = |makespan: i64| {
        // The time that each channel needs for each device: the most of all units.
        let mut busy: BTreeMap<(usize, usize), i128> = BTreeMap::new();
        for case in &cases {
            let lack = case.used - case.room * (i128::from(makespan) - case.outside);
            if lack <= 0 {
                continue;
            }
            if lack > case.spared {
                return false;
            }
            for (channel, offers) in &case.offers {
                let (mut left, mut time) = (lack, 0);
                for &(spare, cost) in offers {
                    let part = left.min(m as i128 * spare);
                    time += part * cost / spare;
                    left -= part;
                }
                let entry = busy.entry((*channel, case.device)).or_insert(0);
                *entry = time.max(*entry);
            }
        }
        let mut total: BTreeMap<usize, i128> = BTreeMap::new();
        for ((channel, _), time) in busy {
            *total.entry(channel).or_insert(0) += time;
        }
        total.into_iter().all(|(channel, time)| {
            let (before, after) = outside.get(&channel).copied().unwrap_or((0, 0));
            time == 0 || time <= i128::from(makespan) - i128::from(before) - i128::from(after)
        })
    };
    let (mut low, mut high) = (-1, 1);
    while !passes(high) {
        low = high;
        high *= 2;
        if high > 1 << 61 {
            // No makespan passes: an infeasible problem, of which nothing is said.
            return 0;
        }
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if passes(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

fn cases(p: &Problem, heads: &Heads, tails: &Heads) -> Vec<Case> {
    let (m, t) = (p.microbatches, &p.time_ns);
    let mut life = vec![0; p.stages()];
    let mut beyond = 0;
    for s in (0..p.stages()).rev() {
        if s + 1 < p.stages() {
            let block = t.backward_input[s + 1] + if p.split_backward { 0 } else { t.backward_weight[s + 1] };
            beyond += t.forward[s + 1] + block + p.hop_forward(s) + p.hop_backward(s);
        }
        life[s] = t.forward[s] + beyond + t.backward_input[s];
    }
    let mut cases = Vec::new();
    for device in 0..p.devices {
        let room = p.bytes.capacity[device] - p.bytes.r#static[device];
        let size = |s: usize| {
            let act = p.bytes.activation[s];
            [act, act - p.bytes.offloadable[s], p.bytes.weight_context[s]]
        };
        let own: Vec<usize> = p.stages_of(device).collect();
        let mut units: Vec<i64> = own.iter().flat_map(|&s| size(s)).collect();
        units.extend((2..9).map(|k| room / k + 1));
        units.push(1);
        units.sort_unstable();
        units.dedup();
        for unit in units.into_iter().filter(|&x| x > 0) {
            let mut used = 0;
            let mut spares = Vec::new();
            let (mut before, mut after) = (i64::MAX, i64::MAX);
            for &s in &own {
                let [full, rest, context] = size(s).map(|x| i128::from(x / unit));
                used += m as i128 * (full * i128::from(life[s]) + context * i128::from(t.backward_weight[s]));
                let idle = life[s] - t.forward[s] - t.offload[s] - t.reload[s] - t.backward_input[s];
                let spare = (full - rest) * i128::from(idle.max(0));
                if spare > 0 {
                    spares.push((s, spare));
                }
                if full > 0 {
                    before = before.min(heads.f[s * m]);
                    after = after.min(if context > 0 { tails.w[s * m] } else { tails.b[s * m] });
                }
            }
            if used == 0 {
                continue;
            }
            let (o, r) = (p.offload_channel[device], p.reload_channel[device]);
            let offers = |channel: usize| {
                let cost = |s: usize| t.offload[s] * i64::from(o == channel) + t.reload[s] * i64::from(r == channel);
                let mut offers: Vec<(i128, i128)> =
                    spares.iter().map(|&(s, spare)| (spare, i128::from(cost(s)))).collect();
                offers.sort_by(|x, y| (x.1 * y.0).cmp(&(y.1 * x.0)));
                (channel, offers)
            };
            cases.push(Case {
                device,
                room: i128::from(room / unit),
                used,
                spared: m as i128 * spares.iter().map(|x| x.1).sum::<i128>(),
                outside: i128::from(before) + i128::from(after),
                offers: if o == r { vec![offers(o)] } else { vec![offers(o), offers(r)] },
            });
        }
    }
    cases
}
