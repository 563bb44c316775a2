//! Copies booked on channels, and the memory that they free and take.

use std::cmp::Reverse;

use super::run::Run;
use super::{ARRIVED, NEVER, WAKE};
use crate::schedule::OpKind;

impl Run<'_> {
    /// Books reloads of what is wanted next.
    pub(super) fn reload_pending(&mut self, d: usize, now: i64) {
        let mut tries = self.policy.ahead;
        while tries > 0 && !self.state.devices[d].pending.is_empty() {
            tries -= 1;
            let pending = &self.state.devices[d].pending;
            let Some((at, &pair)) = pending.iter().enumerate().min_by_key(|x| self.state.ranks[*x.1 as usize]) else {
                return;
            };
            if !self.reload(d, pair, now) {
                return;
            }
            self.state.devices[d].pending.swap_remove(at);
        }
    }

    /// Books a reload, if memory has room for it at some time that is known.
    pub(super) fn reload(&mut self, d: usize, pair: u32, now: i64) -> bool {
        let graph = self.graph;
        let r = graph.op(OpKind::R, 0, 0) + pair;
        let (bytes, length) = (graph.bytes(r), self.time(r));
        let known = self.state.pairs[pair as usize];
        let most = graph.room[d] - bytes;
        let from = loop {
            if let Some(from) = self.state.devices[d].held.settles(most, known.offload_end) {
                break from;
            }
            let waits = self.shape.stages_of[d].iter().any(|&s| !self.state.stages[s].ready.is_empty());
            let busy = self.state.devices[d].busy;
            if waits || busy || self.state.devices[d].locked + bytes > graph.room[d] {
                return false;
            }
            let Some((victim, _)) = self.victim(d, now) else { return false };
            self.offload(d, victim, now);
        };
        let channel = &self.state.channels[graph.reload_channel[d]];
        let late = if self.policy.late { channel.latest(from, known.gradient.max(now), length) } else { None };
        let start = late.unwrap_or_else(|| channel.earliest(from, length));
        self.state.channels[graph.reload_channel[d]].book(start, length, r);
        let device = &mut self.state.devices[d];
        device.held.add(start, bytes);
        device.locked += bytes;
        device.reloads.push((start, device.compute.len(), r));
        let end = start + length;
        let booked = &mut self.state.pairs[pair as usize];
        (booked.reload_start, booked.reload_end) = (start, end);
        let comes = end.max(known.gradient).max(now);
        device.coming_b.push(Reverse(comes));
        self.event(comes, ARRIVED, graph.sibling(r, OpKind::B));
        true
    }

    /// What to offload, and the end of its offload: what is used again last among all that can be gone by
    /// now, else what can be gone first. What has its gradient on the way stays.
    pub(super) fn victim(&self, d: usize, now: i64) -> Option<(u32, i64)> {
        let graph = self.graph;
        let channel = &self.state.channels[graph.offload_channel[d]];
        let mut gone: Option<(u32, u32, i64)> = None;
        let mut soonest: Option<(i64, Reverse<u32>, u32)> = None;
        for &pair in &self.state.devices[d].resident {
            let known = self.state.pairs[pair as usize];
            let rank = self.state.ranks[pair as usize];
            if known.ready || known.gradient != NEVER || gone.is_some_and(|x| x.0 >= rank) {
                continue;
            }
            let length = self.time(graph.op(OpKind::O, 0, 0) + pair);
            let end = channel.earliest(known.forward_end, length) + length;
            if end <= now {
                gone = Some((rank, pair, end));
            } else if soonest.is_none_or(|x| (end, Reverse(rank), pair) < x) {
                soonest = Some((end, Reverse(rank), pair));
            }
        }
        gone.map(|x| (x.1, x.2)).or(soonest.map(|x| (x.2, x.0)))
    }

    pub(super) fn offload(&mut self, d: usize, pair: u32, now: i64) {
        let graph = self.graph;
        let o = graph.op(OpKind::O, 0, 0) + pair;
        let length = self.time(o);
        let channel = &mut self.state.channels[graph.offload_channel[d]];
        let start = channel.earliest(self.state.pairs[pair as usize].forward_end, length);
        channel.book(start, length, o);
        let end = start + length;
        let device = &mut self.state.devices[d];
        device.held.add(end, -graph.bytes(o));
        device.no_longer_resident(pair);
        self.state.pairs[pair as usize].offload_end = end;
        if end > now {
            self.event(end, WAKE, d as u32);
        }
    }

    /// Whether an F keeps memory safe.
    pub(super) fn is_safe(&self, d: usize, s: usize, j: usize) -> bool {
        let graph = self.graph;
        let device = &self.state.devices[d];
        let room = graph.room[d];
        if device.locked + graph.problem.bytes.activation[s] > room {
            return false;
        }
        let (whole, largest) = (self.state.keeps[d], self.state.largest[d]);
        if whole == 0 {
            return true;
        }
        let keeps = graph.problem.bytes.activation[s] - graph.problem.bytes.offloadable[s];
        let mut younger = 0;
        let entered = device.in_flight.iter().any(|x| x.microbatch == j);
        if !entered {
            if whole + largest > room && !device.in_flight.is_empty() {
                return false;
            }
            younger = keeps;
        }
        for x in device.in_flight.iter().rev() {
            if younger + x.will_keep + largest > room && younger > 0 {
                return false;
            }
            younger += x.keeps + if x.microbatch == j { keeps } else { 0 };
        }
        true
    }

    /// Makes room for an F, by offloads where need be. Whether it may start now.
    pub(super) fn admit(&mut self, d: usize, s: usize, now: i64) -> bool {
        let most = self.graph.room[d] - self.graph.problem.bytes.activation[s];
        loop {
            if let Some(from) = self.state.devices[d].held.settles(most, now) {
                return from <= now;
            }
            let Some((victim, end)) = self.victim(d, now) else { return false };
            if end > now && self.policy.weights_before && !self.state.devices[d].weights.is_empty() {
                return false;
            }
            self.offload(d, victim, now);
        }
    }
}
