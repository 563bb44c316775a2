//! Memory as precedence: which frees an allocation has to wait for.
//!
//! Take a device's allocations (F and R) in the order of its sequence, its B and W in the same
//! sequence, and its offloads in the order of their channel. An allocation may start once enough has
//! been freed for everything allocated up to and with it: by B and W that stand before it, and by a
//! prefix of the offloads, the shortest that does. At any time, all allocations that have started
//! stand at or before the last of them in the sequence, and that one has waited for what they all
//! need: so the limit holds at every instant, whatever the times are, and memory becomes arcs of the
//! graph. Conversely, a legal schedule meets every one of these waits for its own order.

use crate::graph::{Graph, Node};
use crate::schedule::OpKind;

/// The waits of an op, as they were before they changed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waits {
    pub(crate) op: u32,
    pub(crate) copy: u32,
    pub(crate) freed: u32,
}

/// Sets the waits of an op; notes in `changed` what they were, if they are others now.
pub(crate) fn set_waits(nodes: &mut [Node], changed: &mut Vec<Waits>, op: u32, copy: u32, freed: u32) {
    let node = &mut nodes[op as usize];
    if (node.copy, node.freed) != (copy, freed) {
        changed.push(Waits { op, copy: node.copy, freed: node.freed });
        (node.copy, node.freed) = (copy, freed);
    }
}

/// Buffers of [`derive`], kept between calls.
#[derive(Debug, Clone, Default)]
pub(crate) struct Scratch {
    /// Bytes freed by the device's B and W up to each of them.
    freed: Vec<i64>,
    /// These B and W.
    by: Vec<u32>,
}

/// Sets the waits (`copy` and `freed`) of a device's F and R. `offloads` are the device's O in the
/// order of their channel. With `room` as `None` there is no limit. Waits that change are added to `changed`
/// as they were.
///
/// # Errors
/// The allocation for which all frees before it and all offloads are not enough, and the bytes that
/// lack.
pub(crate) fn derive(
    graph: &Graph<'_>,
    room: Option<i64>,
    sequence: &[u32],
    offloads: &[u32],
    nodes: &mut [Node],
    changed: &mut Vec<Waits>,
    scratch: &mut Scratch,
) -> Result<(), (u32, i64)> {
    let none = graph.none();
    scratch.freed.clear();
    scratch.by.clear();
    let (mut allocated, mut freed) = (0, 0);
    // The prefix of the offloads, and its bytes.
    let (mut prefix, mut copied) = (0, 0);
    for &op in sequence {
        let kind = graph.kind(op);
        let bytes = graph.bytes(op);
        if matches!(kind, OpKind::B | OpKind::W) {
            freed += bytes;
            scratch.freed.push(freed);
            scratch.by.push(op);
            continue;
        }
        allocated += bytes;
        let Some(room) = room else {
            set_waits(nodes, changed, op, none, none);
            continue;
        };
        let lacking = allocated - freed - room;
        while copied < lacking {
            let Some(&o) = offloads.get(prefix) else {
                return Err((op, lacking - copied));
            };
            copied += graph.bytes(o);
            prefix += 1;
        }
        while prefix > 0 && copied - graph.bytes(offloads[prefix - 1]) >= lacking {
            prefix -= 1;
            copied -= graph.bytes(offloads[prefix]);
        }
        let copy = if prefix > 0 { offloads[prefix - 1] } else { none };
        // F follows all B and W before it anyway; R waits for those alone that it needs.
        let needed = if kind == OpKind::R { allocated - copied - room } else { 0 };
        let freed = if needed <= 0 { none } else { scratch.by[scratch.freed.partition_point(|&x| x < needed)] };
        set_waits(nodes, changed, op, copy, freed);
    }
    Ok(())
}
