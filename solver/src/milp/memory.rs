//! Memory rows: at every allocation, what is absent suffices.
//!
//! Memory is at its peak right after an allocation, the start of an F or of an R. At that moment every
//! other (stage, microbatch) of the device holds its activation, unless it is absent: its F is still to
//! come, its B or W has ended, or it is offloaded, its O ended and its R still to come. A row asks that
//! the absent bytes make up for what everything together exceeds the capacity by. Each absence is a
//! binary whose arcs (see `model`) make it true; where none is claimed, the bytes count as held. An F
//! and an R that start at one instant must not both count as "still to come" for the other: the two
//! claims exclude each other.

use super::model::{Arc, Lit, Program, Row};
use super::network::{Known, Unit};

/// Adds the rows of every device that can run out of memory.
pub(super) fn add_rows(program: &mut Program) {
    for device in 0..program.network.problem.devices {
        if program.network.tight[device] {
            Device::new(program, device).add_rows(program);
        }
    }
}

struct Device {
    /// Units on the device.
    units: Vec<usize>,
    /// What everything together exceeds the capacity by, bytes.
    excess: i64,
    /// For pairs of places in `units` (i, a): i is offloaded when F of a starts.
    away_at_f: Vec<Lit>,
    /// For pairs (i, a): R of i starts no later than F of a.
    back_at_f: Vec<Lit>,
}

impl Device {
    fn new(program: &Program, device: usize) -> Device {
        let network = program.network;
        let bytes = &network.problem.bytes;
        let units = network.units_of(device);
        let all: i64 = units.iter().map(|&u| bytes.activation[u / network.problem.microbatches]).sum();
        let excess = bytes.r#static[device] + all - bytes.capacity[device];
        let pairs = units.len() * units.len();
        Device { units, excess, away_at_f: vec![Lit::Never; pairs], back_at_f: vec![Lit::Never; pairs] }
    }

    fn add_rows(mut self, program: &mut Program) {
        let n = self.units.len();
        for i in 0..n {
            for a in 0..n {
                if i != a {
                    self.relate(program, i, a);
                }
            }
        }
        for a in 0..n {
            self.at_forward(program, a);
            if program.network.units[self.units[a]].copies.is_some() {
                self.at_reload(program, a);
            }
        }
    }

    /// The binaries of unit i's copies against F of unit a.
    fn relate(&mut self, program: &mut Program, i: usize, a: usize) {
        let network = program.network;
        let (unit, other) = (network.units[self.units[i]], network.units[self.units[a]]);
        let Some((o, r)) = unit.copies else { return };
        let offloaded = program.offload[self.units[i]];
        let place = i * self.units.len() + a;
        let f = other.f;
        let f_first = network.known(f, unit.f) == Known::Before;
        let b_first = network.known(unit.b, f) == Known::Before;
        if !f_first && !b_first {
            let out = Arc { from: o, to: f, delay_ns: network.jobs[o].span_ns };
            let back = Arc { from: f, to: r, delay_ns: 0 };
            self.away_at_f[place] = program.when(out, Some(back));
        }
        if b_first {
            // R ends before that B: no variable needed.
            self.back_at_f[place] = offloaded;
        } else if !f_first {
            self.back_at_f[place] = program.when(Arc { from: r, to: f, delay_ns: 0 }, None);
            let back = self.back_at_f[place];
            at_most_one(program, &[self.away_at_f[place], back], offloaded);
            imply(program, back, program.before(unit.f, f));
        }
    }

    /// The row of F of unit a.
    fn at_forward(&self, program: &mut Program, a: usize) {
        let network = program.network;
        let f = network.units[self.units[a]].f;
        let mut row = Cover::new(self.excess, Lit::Always);
        for (i, &other) in self.units.iter().enumerate() {
            if i == a {
                continue;
            }
            let (size, unit) = (Bytes::of(program, other), network.units[other]);
            let to_come = program.before(f, unit.f);
            let done = program.before(unit.b, f);
            let away = self.away_at_f[i * self.units.len() + a];
            row.absent(size.activation, to_come);
            match unit.w {
                Some(w) => {
                    let weight_done = program.before(w, f);
                    row.absent(size.activation - size.weight, done);
                    row.absent(size.weight, weight_done);
                    imply(program, weight_done, done);
                }
                None => row.absent(size.activation, done),
            }
            row.absent(size.offloadable, away);
            at_most_one(program, &[to_come, done, away], Lit::Always);
        }
        row.finish(program);
    }

    /// The row of R of unit a, if it is offloaded.
    fn at_reload(&self, program: &mut Program, a: usize) {
        let network = program.network;
        let n = self.units.len();
        let Unit { f, b, copies, .. } = network.units[self.units[a]];
        let Some((_, r)) = copies else { return };
        let offloaded = program.offload[self.units[a]];
        let mut row = Cover::new(self.excess, offloaded);
        for (i, &other) in self.units.iter().enumerate() {
            if i == a {
                continue;
            }
            let (size, unit) = (Bytes::of(program, other), network.units[other]);
            let to_come = if network.known(b, unit.f) == Known::Before {
                offloaded
            } else if network.known(unit.f, f) == Known::Before {
                Lit::Never
            } else {
                self.back_at_f[a * n + i]
            };
            row.absent(size.activation, to_come);
            let never_done = network.known(b, unit.b) == Known::Before;
            let mut ended = |from: usize, delay_ns: i64| {
                if never_done {
                    Lit::Never
                } else if network.known(from, f) == Known::Before {
                    offloaded
                } else {
                    program.when(Arc { from, to: r, delay_ns }, None)
                }
            };
            let (done, weight_done) = match unit.w {
                Some(w) => (ended(unit.b, network.free_after_ns(unit.b, false)), ended(w, network.jobs[w].span_ns)),
                None if network.free_after_ns(unit.b, true) == network.free_after_ns(unit.b, false) => {
                    let done = ended(unit.b, network.free_after_ns(unit.b, true));
                    (done, done)
                }
                None => (
                    ended(unit.b, network.free_after_ns(unit.b, false)),
                    ended(unit.b, network.free_after_ns(unit.b, true)),
                ),
            };
            row.absent(size.activation - size.weight, done);
            row.absent(size.weight, weight_done);
            if size.weight > 0 {
                imply(program, weight_done, done);
            }
            let away = self.away_at_reload(program, i, a);
            row.absent(size.offloadable, away);
            at_most_one(program, &[to_come, done, away], offloaded);
        }
        row.finish(program);
    }

    /// Whether unit i is offloaded when R of unit a starts.
    fn away_at_reload(&self, program: &mut Program, i: usize, a: usize) -> Lit {
        let network = program.network;
        let (unit, other) = (network.units[self.units[i]], network.units[self.units[a]]);
        let (Some((o, r)), Some((_, at))) = (unit.copies, other.copies) else { return Lit::Never };
        let done = network.known(unit.b, other.b) == Known::Before && program.copies_in_order(r, at);
        if done || network.known(unit.b, other.f) == Known::Before || network.known(other.b, unit.f) == Known::Before {
            return Lit::Never;
        }
        let out = Arc { from: o, to: at, delay_ns: network.jobs[o].span_ns };
        let back = Arc { from: at, to: r, delay_ns: network.jobs[at].span_ns };
        let away = program.when(out, Some(back));
        // A reload of length 0 may start with another one: the channel's order breaks the tie.
        if let Some(&first) = program.copy_order.get(&(at, r)) {
            imply(program, away, first);
        }
        imply(program, away, program.offload[self.units[i]]);
        away
    }
}

struct Bytes {
    activation: i64,
    weight: i64,
    offloadable: i64,
}

impl Bytes {
    fn of(program: &Program, unit: usize) -> Bytes {
        let problem = program.network.problem;
        let (bytes, stage) = (&problem.bytes, unit / problem.microbatches);
        Bytes {
            activation: bytes.activation[stage],
            weight: bytes.weight_context[stage],
            offloadable: bytes.offloadable[stage],
        }
    }
}

/// `a` is at most `b`.
fn imply(program: &mut Program, a: Lit, b: Lit) {
    if a.is_open() && !matches!(b, Lit::Always) {
        program.at_least_zero(Row::default().lit(1.0, b).lit(-1.0, a));
    }
}

/// At most one of them, none unless `all`.
fn at_most_one(program: &mut Program, lits: &[Lit], all: Lit) {
    let open = lits.iter().filter(|lit| lit.is_open()).count();
    if open > 1 || (open == 1 && all.is_open()) {
        let row = lits.iter().fold(Row::default().lit(1.0, all), |row, &lit| row.lit(-1.0, lit));
        program.at_least_zero(row);
    }
}

/// Absent bytes that must reach a need.
struct Cover {
    need: i64,
    when: Lit,
    terms: Vec<(i64, Lit)>,
}

impl Cover {
    fn new(need: i64, when: Lit) -> Cover {
        Cover { need, when, terms: Vec::new() }
    }

    fn absent(&mut self, bytes: i64, lit: Lit) {
        match (lit, self.when) {
            (Lit::Never, _) => {}
            (Lit::Always, _) => self.need -= bytes,
            // Absent whenever the row counts.
            (Lit::Is(v), Lit::Is(w)) if v == w => self.need -= bytes,
            _ if bytes > 0 => self.terms.push((bytes, lit)),
            _ => {}
        }
    }

    /// Adds the row. More than the whole need counts as the need, and sizes over their greatest common
    /// divisor lose nothing by rounding the need up; then numbers are brought to the magnitude of 1.
    fn finish(self, program: &mut Program) {
        let divisor = self.terms.iter().fold(0, |d, &(bytes, _)| super::scale::gcd(d, bytes)).max(1);
        let need = if self.need > 0 { (self.need + divisor - 1) / divisor } else { return };
        let largest = need as f64;
        let mut row = Row::default().lit(-1.0, self.when);
        for (bytes, lit) in self.terms {
            row = row.lit((bytes / divisor).min(need) as f64 / largest, lit);
        }
        program.at_least_zero(row.add(1e-9));
    }
}
