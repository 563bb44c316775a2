//! The ways to a schedule, by name.

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A way to a schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
pub enum Method {
    /// All forwards, then all backwards (Huang et al. 2019).
    #[serde(rename = "gpipe")]
    Gpipe,
    /// One forward, one backward (Narayanan et al. 2019, PipeDream-Flush).
    #[serde(rename = "1f1b")]
    OneFOneB,
    /// Interleaved one forward, one backward: several chunks a device (Narayanan et al. 2021).
    #[serde(rename = "interleaved")]
    Interleaved,
    /// Zero Bubble H1: 1F1B's memory, W deferred (Qi et al. 2023).
    #[serde(rename = "zb-h1")]
    ZbH1,
    /// Zero Bubble H2: twice 1F1B's memory, no bubble within a device's span (Qi et al. 2023).
    #[serde(rename = "zb-h2")]
    ZbH2,
    /// Zero Bubble V: two chunks a device in a V, 1F1B's memory (Qi et al. 2024).
    #[serde(rename = "zb-v")]
    ZbV,
    /// V-Half: two chunks a device in a V, half of 1F1B's memory and half of its bubble (Qi et al. 2024).
    #[serde(rename = "v-half")]
    VHalf,
    /// V-Min: two chunks a device in a V, a third of 1F1B's memory (Qi et al. 2024).
    #[serde(rename = "v-min")]
    VMin,
    /// PipeOffload: microbatches go through the chunks in groups, and the activations of a device's first
    /// chunks are offloaded; group size and number of chunks are searched (Wan et al. 2025).
    #[serde(rename = "pipe-offload")]
    PipeOffload,
    /// List scheduling that offloads where memory demands it.
    #[serde(rename = "adaptive-offload")]
    AdaptiveOffload,
    /// Adaptive offload with searched parameters, then simulated annealing.
    #[serde(rename = "search")]
    Search,
    /// The mixed-integer program of OptPipe, from the adaptive-offload schedule.
    #[serde(rename = "milp")]
    Milp,
    /// All of them, one after another, on one record of what is best.
    #[default]
    #[serde(rename = "auto")]
    Auto,
}

impl Method {
    /// Every method, the textbook ones first.
    pub const ALL: [Method; 13] = [
        Method::Gpipe,
        Method::OneFOneB,
        Method::Interleaved,
        Method::ZbH1,
        Method::ZbH2,
        Method::ZbV,
        Method::VHalf,
        Method::VMin,
        Method::PipeOffload,
        Method::AdaptiveOffload,
        Method::Search,
        Method::Milp,
        Method::Auto,
    ];

    /// The name in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Gpipe => "gpipe",
            Method::OneFOneB => "1f1b",
            Method::Interleaved => "interleaved",
            Method::ZbH1 => "zb-h1",
            Method::ZbH2 => "zb-h2",
            Method::ZbV => "zb-v",
            Method::VHalf => "v-half",
            Method::VMin => "v-min",
            Method::PipeOffload => "pipe-offload",
            Method::AdaptiveOffload => "adaptive-offload",
            Method::Search => "search",
            Method::Milp => "milp",
            Method::Auto => "auto",
        }
    }

    /// Whether the method is a fixed order from the literature ([`crate::textbook`]).
    pub fn is_textbook(self) -> bool {
        use Method::{Gpipe, Interleaved, OneFOneB, VHalf, VMin, ZbH1, ZbH2, ZbV};
        matches!(self, Gpipe | OneFOneB | Interleaved | ZbH1 | ZbH2 | ZbV | VHalf | VMin)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that no method has.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown method `{0}`: expected one of {names}", names = Method::ALL.map(Method::name).join(", "))]
pub struct UnknownMethod(pub String);

impl FromStr for Method {
    type Err = UnknownMethod;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Method::ALL.into_iter().find(|x| x.name() == name).ok_or_else(|| UnknownMethod(name.to_owned()))
    }
}
