//! An order: which op goes before which on every queue, without times.

use crate::schedule::Op;

/// The sequences that, with a problem, determine a schedule: every op starts as early as they, the
/// precedences and the memory allow (see `simulate`).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Order {
    /// For each device: its F, B and W in the order in which they run, and among them its R, each
    /// standing where its memory is allocated.
    pub devices: Vec<Vec<Op>>,
    /// For each channel that the problem names, in ascending order of the names: its O and R in the
    /// order in which they are copied.
    pub channels: Vec<Vec<Op>>,
}
