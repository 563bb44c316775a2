//! How far apart two devices are.

use std::fmt;

use nvml_wrapper::enum_wrappers::device::TopologyLevel;

/// The nearest thing that two devices have in common, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ancestor {
    /// One board.
    Board,
    /// One PCIe switch.
    Switch,
    /// Several PCIe switches, but no host bridge between them.
    Switches,
    /// The host bridge.
    HostBridge,
    /// The NUMA node, across host bridges.
    NumaNode,
    /// The machine, across NUMA nodes.
    Machine,
}

impl Ancestor {
    /// Whether the two must share a link on the way to the host: behind one switch they have one uplink,
    /// on one board one slot.
    pub fn shares_uplink(self) -> bool {
        self <= Ancestor::Switches
    }
}

impl From<TopologyLevel> for Ancestor {
    fn from(level: TopologyLevel) -> Self {
        match level {
            TopologyLevel::Internal => Ancestor::Board,
            TopologyLevel::Single => Ancestor::Switch,
            TopologyLevel::Multiple => Ancestor::Switches,
            TopologyLevel::HostBridge => Ancestor::HostBridge,
            TopologyLevel::Node => Ancestor::NumaNode,
            TopologyLevel::System => Ancestor::Machine,
        }
    }
}

impl fmt::Display for Ancestor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ancestor::Board => "one board",
            Ancestor::Switch => "one PCIe switch",
            Ancestor::Switches => "several PCIe switches",
            Ancestor::HostBridge => "one host bridge",
            Ancestor::NumaNode => "one NUMA node",
            Ancestor::Machine => "the machine",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_behind_switches_share_an_uplink_and_others_do_not() {
        let nearest_first = [
            TopologyLevel::Internal,
            TopologyLevel::Single,
            TopologyLevel::Multiple,
            TopologyLevel::HostBridge,
            TopologyLevel::Node,
            TopologyLevel::System,
        ]
        .map(Ancestor::from);
        assert!(nearest_first.is_sorted());
        assert_eq!(nearest_first.map(Ancestor::shares_uplink), [true, true, true, false, false, false]);
    }
}
