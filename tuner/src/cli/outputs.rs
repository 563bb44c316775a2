//! What the commands print with `--json`, as JSON Schemas.

use clap::ValueEnum;
use optpipe_configs::hardware::Hardware;
use optpipe_configs::profile::Profile;
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use super::{budgets, check, compare, devices, doctor, explain, search, solve};
use crate::measured::Measured;
use crate::rehearsed::Rehearsed;
use crate::summary::Summary;

/// What a command prints with `--json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    #[value(name = "output-tune")]
    Tune,
    #[value(name = "output-calibrate")]
    Calibrate,
    #[value(name = "output-profile")]
    Profile,
    #[value(name = "output-search")]
    Search,
    #[value(name = "output-solve")]
    Solve,
    #[value(name = "output-check")]
    Check,
    #[value(name = "output-explain")]
    Explain,
    #[value(name = "output-compare")]
    Compare,
    /// Of `compare --budgets`.
    #[value(name = "output-compare-budgets")]
    CompareBudgets,
    #[value(name = "output-run")]
    Run,
    #[value(name = "output-rehearse")]
    Rehearse,
    #[value(name = "output-devices")]
    Devices,
    #[value(name = "output-doctor")]
    Doctor,
}

/// The schema of what is printed, which says of each field whether it is always there.
pub(super) fn schema(output: Output) -> Schema {
    fn of<T: JsonSchema + ?Sized>() -> Schema {
        SchemaSettings::default().for_serialize().into_generator().into_root_schema_for::<T>()
    }
    match output {
        Output::Tune => of::<Summary>(),
        Output::Calibrate => of::<Hardware>(),
        Output::Profile => of::<Profile>(),
        Output::Search => of::<search::Searched<'_>>(),
        Output::Solve => of::<solve::Solved<'_>>(),
        Output::Check => of::<check::Facts<'_>>(),
        Output::Explain => of::<explain::Explanation>(),
        Output::Compare => of::<compare::Comparison<'_>>(),
        Output::CompareBudgets => of::<budgets::Comparison<'_>>(),
        Output::Run => of::<Measured>(),
        Output::Rehearse => of::<Rehearsed>(),
        Output::Devices => of::<devices::Found>(),
        Output::Doctor => of::<[doctor::Finding]>(),
    }
}
