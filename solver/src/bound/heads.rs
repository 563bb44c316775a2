//! Heads and tails: longest paths over the k-th ops of the stages, with work and memory.

use crate::problem::Problem;

/// For the k-th F, B, W of stage s, at `s · M + k`: no such op starts earlier (heads), or so much time
/// at least is left at its end (tails, k from the last), ns.
#[derive(Debug, Clone)]
pub(super) struct Heads {
    pub(super) f: Vec<i64>,
    pub(super) b: Vec<i64>,
    pub(super) w: Vec<i64>,
}

impl Heads {
    /// Nothing is known.
    pub(super) fn none(p: &Problem) -> Self {
        let none = vec![0; p.stages() * p.microbatches];
        Heads { f: none.clone(), b: none.clone(), w: none }
    }
}

/// The stages of one device, as stage s sees them.
struct Own {
    /// Stages at or before s.
    upto: Vec<usize>,
    /// Sums over the stages before and after s.
    f_before: i64,
    f_after: i64,
    block_after: i64,
    bw_before: i64,
    bw_after: i64,
}

struct Times<'a> {
    p: &'a Problem,
    f: &'a [i64],
    b: &'a [i64],
    w: &'a [i64],
    /// B, with W where they are fused.
    block: Vec<i64>,
    own: Vec<Own>,
}

impl<'a> Times<'a> {
    fn new(p: &'a Problem) -> Self {
        let (f, b, w) = (&p.time_ns.forward, &p.time_ns.backward_input, &p.time_ns.backward_weight);
        let block: Vec<i64> = (0..p.stages()).map(|s| if p.split_backward { b[s] } else { b[s] + w[s] }).collect();
        let stages_of: Vec<Vec<usize>> = (0..p.devices).map(|d| p.stages_of(d).collect()).collect();
        let own = (0..p.stages())
            .map(|s| {
                let all = &stages_of[p.placement[s]];
                let before = || all.iter().copied().filter(|&x| x < s);
                let after = || all.iter().copied().filter(|&x| x > s);
                Own {
                    upto: all.iter().copied().filter(|&x| x <= s).collect(),
                    f_before: before().map(|x| f[x]).sum(),
                    f_after: after().map(|x| f[x]).sum(),
                    block_after: after().map(|x| block[x]).sum(),
                    bw_before: before().map(|x| b[x] + w[x]).sum(),
                    bw_after: after().map(|x| b[x] + w[x]).sum(),
                }
            })
            .collect();
        Times { p, f, b, w, block, own }
    }
}

/// Two ops of a stage between which a microbatch holds memory.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Span {
    ForwardToB,
    ForwardToW,
    BToForward,
    WToForward,
}

/// Memory between two ops of a stage: how long the k-th op must wait for it.
///
/// Forwards, from F to B: when the k-th F starts, k + 1 microbatches have started it; n = k + 1 - i have
/// not ended B, if i have. Each of the n holds the stage's activation, and, being between F and B at
/// every earlier stage of the device, theirs too, less what is offloaded; the one that starts has
/// nothing of this stage offloaded. All that is offloaded went through the channel after `ready`, the
/// earliest end of an F of these stages. So the op starts after the i-th end (`out(i)`) and after the
/// channel could copy what exceeds the room: the earliest such time over all i is a bound, as the real i
/// is one of them. From F to W likewise: up to the end of W each holds the weight context, or, where
/// offloading spares more, at least what cannot be offloaded. Backwards in time the same holds with
/// frees for allocations and reloads for offloads. With an F or B of length 0, which could start and end
/// at one instant, there is no wait.
struct Gate {
    /// Bytes of a microbatch, and how much of them can be offloaded; of this stage alone.
    total: i64,
    off: i64,
    off_here: i64,
    room: i64,
    /// Size and time of each copy.
    copies: Vec<(i64, i64)>,
    ready: i64,
}

impl Gate {
    fn new(t: &Times<'_>, s: usize, span: Span, ready: i64) -> Option<Gate> {
        if t.f[s] == 0 || t.b[s] == 0 {
            return None;
        }
        let (p, bytes) = (t.p, &t.p.bytes);
        let mut room = bytes.capacity[p.placement[s]] - bytes.r#static[p.placement[s]];
        let (total, sizes) = match span {
            Span::ForwardToB | Span::BToForward => (
                t.own[s].upto.iter().map(|&x| bytes.activation[x]).sum(),
                t.own[s].upto.iter().map(|&x| (x, bytes.offloadable[x])).collect::<Vec<_>>(),
            ),
            Span::ForwardToW | Span::WToForward => {
                let context = bytes.weight_context[s];
                if span == Span::ForwardToW {
                    room -= bytes.activation[s] - context;
                }
                (context, vec![(s, (context - bytes.activation[s] + bytes.offloadable[s]).max(0))])
            }
        };
        let time = match span {
            Span::ForwardToB | Span::ForwardToW => &p.time_ns.offload,
            Span::BToForward | Span::WToForward => &p.time_ns.reload,
        };
        Some(Gate {
            total,
            off: sizes.iter().map(|x| x.1).sum(),
            off_here: sizes.iter().find(|x| x.0 == s).map_or(0, |x| x.1),
            room,
            copies: sizes.iter().filter(|x| x.1 > 0).map(|&(x, size)| (size, time[x])).collect(),
            ready,
        })
    }

    /// The k-th op, allowed from `t` on by all else. `out` must not fall.
    fn open(&self, k: usize, t: i64, out: impl Fn(usize) -> i64) -> i64 {
        let excess = |i: usize| (k + 1 - i) as i64 * self.total - self.room;
        let possible = |i: usize| excess(i) <= (k + 1 - i) as i64 * self.off - self.off_here;
        let left = |i: usize| if i == 0 { t } else { t.max(out(i)) };
        let copied = |i: usize| {
            let excess = excess(i);
            if excess <= 0 {
                return i64::MIN;
            }
            let wait = match self.copies[..] {
                [(size, time)] => (excess + size - 1) / size * time,
                _ => self
                    .copies
                    .iter()
                    .map(|&(size, time)| (i128::from(excess) * i128::from(time) / i128::from(size)) as i64)
                    .min()
                    .unwrap_or(0),
            };
            self.ready + wait
        };
        // With i, `left` rises and `copied` falls; so the best i stands where they cross.
        let cross = partition_point(k + 1, |i| !possible(i) || left(i) < copied(i));
        let at = |i: usize| left(i).max(copied(i));
        let mut best = None;
        if cross <= k {
            best = Some(at(cross));
        }
        if cross > 0 && possible(cross - 1) {
            best = Some(best.map_or(at(cross - 1), |x: i64| x.min(at(cross - 1))));
        }
        best.unwrap_or(t)
    }
}

/// The first index of `0..n` for which `before`, true and then false, is false.
fn partition_point(n: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, n);
    while low < high {
        let middle = low + (high - low) / 2;
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

fn wait(gate: &Option<Gate>, k: usize, t: i64, out: impl Fn(usize) -> i64) -> i64 {
    gate.as_ref().map_or(t, |gate| gate.open(k, t, out))
}

/// Once the first op of the stage has its head, its copies are known to begin later.
fn set_ready(gates: &mut (Option<Gate>, Option<Gate>), ready: Option<i64>) {
    for gate in [&mut gates.0, &mut gates.1].into_iter().flatten() {
        gate.ready = ready.unwrap_or(gate.ready);
    }
}

impl Heads {
    fn zero(p: &Problem) -> Self {
        let n = p.stages() * p.microbatches;
        Heads { f: vec![0; n], b: vec![0; n], w: vec![0; n] }
    }

    /// Heads. Memory makes k-th ops wait for earlier ones only, so k is the outer loop.
    pub(super) fn forwards(p: &Problem) -> Heads {
        let t = Times::new(p);
        let (stages, m) = (p.stages(), p.microbatches);
        let (f, b, w, block) = (t.f, t.b, t.w, &t.block);
        let mut e = Heads::zero(p);
        // The way of one microbatch to its first F on a device.
        let mut first = vec![0; p.devices];
        let mut way = 0;
        let mut seen = vec![false; p.devices];
        for (s, &d) in p.placement.iter().enumerate() {
            if !std::mem::replace(&mut seen[d], true) {
                first[d] = way;
            }
            if s + 1 < stages {
                way += f[s] + p.hop_forward(s);
            }
        }
        let mut gates: Vec<(Option<Gate>, Option<Gate>)> = Vec::new();
        for k in 0..m {
            let n = k as i64;
            for s in 0..stages {
                let (at, own) = (s * m + k, &t.own[s]);
                let first = first[p.placement[s]];
                let mut start = if s > 0 { e.f[at - m] + f[s - 1] + p.hop_forward(s - 1) } else { 0 };
                if k > 0 {
                    start = start.max(e.f[at - 1] + f[s]);
                }
                // Work before it: k + 1 F of each earlier stage here, k of this one.
                let load = first + (n + 1) * own.f_before + n * f[s];
                start = start.max(load);
                if k == 0 {
                    e.f[at] = start;
                    let ready = own.upto.iter().map(|&x| e.f[x * m] + f[x]).min().unwrap_or(0);
                    gates.push((Gate::new(&t, s, Span::ForwardToB, ready), Gate::new(&t, s, Span::ForwardToW, ready)));
                }
                // Work of a microbatch past B(s): that B, and F and B of the later stages here.
                let past = block[s] + own.f_after + own.block_after;
                let b_out = |i: usize| (e.b[s * m + i - 1] + b[s]).max(load + i as i64 * past);
                start = wait(&gates[s].0, k, start, b_out);
                let past = if p.split_backward { past + w[s] } else { past };
                let w_out = |i: usize| (e.w[s * m + i - 1] + w[s]).max(load + i as i64 * past);
                e.f[at] = wait(&gates[s].1, k, start, w_out);
                if k == 0 {
                    set_ready(&mut gates[s], own.upto.iter().map(|&x| e.f[x * m] + f[x]).min());
                }
            }
            for s in (0..stages).rev() {
                let (at, own) = (s * m + k, &t.own[s]);
                let mut start = e.f[at] + f[s];
                if s + 1 < stages {
                    start = start.max(e.b[at + m] + block[s + 1] + p.hop_backward(s));
                }
                if k > 0 {
                    start = start.max(e.b[at - 1] + block[s]);
                }
                // Work before it: k + 1 F of every stage here, k + 1 B of each later one, k of this one.
                let load = (n + 1) * (own.f_before + f[s] + own.f_after + own.block_after) + n * block[s];
                e.b[at] = start.max(first[p.placement[s]] + load);
                e.w[at] = (e.b[at] + b[s]).max(if k > 0 { e.w[at - 1] + w[s] } else { 0 });
            }
        }
        e
    }

    /// Tails: the heads of the problem run backwards in time, W before B before F.
    pub(super) fn backwards(p: &Problem) -> Heads {
        let t = Times::new(p);
        let (stages, m) = (p.stages(), p.microbatches);
        let (f, b, w, block) = (t.f, t.b, t.w, &t.block);
        let mut e = Heads::zero(p);
        let mut gates: Vec<(Option<Gate>, Option<Gate>)> = Vec::new();
        for k in 0..m {
            let n = k as i64;
            for s in 0..stages {
                let (at, own) = (s * m + k, &t.own[s]);
                let gradient = if s > 0 { e.b[at - m] + b[s - 1] + p.hop_backward(s - 1) } else { 0 };
                let mut left = if p.split_backward { n * w[s] } else { (n * block[s]).max(gradient) };
                if k > 0 && p.split_backward {
                    left = left.max(e.w[at - 1] + w[s]);
                }
                if k == 0 {
                    // The copies' last start lies before the last B of these stages.
                    let tail_b = if p.split_backward { (left + w[s]).max(gradient) } else { left + w[s] };
                    e.b[at] = tail_b;
                    let ready = own.upto.iter().map(|&x| e.b[x * m] + b[x]).min().unwrap_or(0);
                    gates.push((Gate::new(&t, s, Span::WToForward, ready), Gate::new(&t, s, Span::BToForward, ready)));
                }
                // Work of a microbatch before F(s): all of its ops from F(s) on but W(s).
                let future = f[s] + b[s] + own.f_after + own.bw_after;
                let f_out = |i: usize, load: i64| (e.f[s * m + i - 1] + f[s]).max(load);
                let w_out = |i: usize| f_out(i, n * w[s] + i as i64 * (future + own.bw_before));
                e.w[at] = wait(&gates[s].0, k, left, w_out);
                left = e.w[at] + w[s];
                if p.split_backward {
                    left = left.max(gradient);
                }
                if k > 0 {
                    left = left.max(e.b[at - 1] + block[s]);
                }
                // Work after it: k + 1 W of this stage, k + 1 B and W of each earlier one, k B of this one.
                let load = (n + 1) * (w[s] + own.bw_before) + n * b[s];
                let b_out = |i: usize| f_out(i, load + i as i64 * (future - b[s]));
                e.b[at] = wait(&gates[s].1, k, left.max(load), b_out);
                if k == 0 {
                    set_ready(&mut gates[s], own.upto.iter().map(|&x| e.b[x * m] + b[x]).min());
                }
            }
            for s in (0..stages).rev() {
                let (at, own) = (s * m + k, &t.own[s]);
                let mut left = e.b[at] + b[s];
                if s + 1 < stages {
                    left = left.max(e.f[at + m] + f[s + 1] + p.hop_forward(s));
                }
                if k > 0 {
                    left = left.max(e.f[at - 1] + f[s]);
                }
                let load = (n + 1) * (b[s] + w[s] + own.bw_before + own.bw_after + own.f_after) + n * f[s];
                e.f[at] = left.max(load);
            }
        }
        e
    }
}
