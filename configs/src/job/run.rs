//! How schedules are measured: by OptPipe itself, or by PyTorch under torchrun.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Job;
use super::check::{MOST, MOST_DEVICES, within};
use crate::file::Invalid;
use crate::size;

/// How schedules are measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Run {
    /// Steps before measuring.
    #[schemars(range(max = 65536))]
    pub warmup_steps: usize,
    /// Measured steps a schedule; the median counts.
    #[schemars(range(min = 1, max = 65536))]
    pub steps: usize,
    /// Also run GPipe, 1F1B and ZB-H1 for comparison.
    pub textbook: bool,
    /// What calibrates, profiles and runs.
    pub engine: Engine,
    /// torch: the Python that has PyTorch; OPTPIPE_TORCH_PYTHON in the environment goes before it.
    pub python: String,
    /// torch: whose layers are trained.
    pub modules: Modules,
    /// A run in which nothing gets done for so long counts as hung; with the engine torch a calibration or profile too.
    pub timeout: String,
    /// torch: nodes, each with an equal part of the devices. With more than one they share the folder that
    /// files are in.
    #[schemars(range(min = 1, max = 1024))]
    pub nnodes: usize,
    /// torch: ranks a node; `nnodes` times this many are pipeline.devices, which it follows from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1024))]
    pub nproc_per_node: Option<usize>,
    /// torch: host and port of the first node where the nodes meet; with more than one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rdzv_endpoint: Option<String>,
    /// torch: words before the command of torchrun. With `{node}` in them it is started once a node, from node 0;
    /// without, once, and the launcher starts it on every node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub launcher: Option<String>,
}

/// What calibrates, profiles and runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Engine {
    /// OptPipe, in one process.
    #[default]
    Native,
    /// torch.distributed.pipelining, a process a device, started by torchrun.
    Torch,
}

/// Whose layers PyTorch trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Modules {
    /// Those of transformers where it is installed, else plain ones.
    #[default]
    Auto,
    /// Those of Hugging Face transformers.
    Transformers,
    /// OptPipe's own in plain torch.
    Plain,
}

const PYTHON: &str = "python3";
const TIMEOUT: &str = "10m";

impl Default for Run {
    fn default() -> Self {
        Run {
            warmup_steps: 1,
            steps: 3,
            textbook: true,
            engine: Engine::default(),
            python: PYTHON.to_owned(),
            modules: Modules::default(),
            timeout: TIMEOUT.to_owned(),
            nnodes: 1,
            nproc_per_node: None,
            rdzv_endpoint: None,
            launcher: None,
        }
    }
}

impl Run {
    /// The longest time in which nothing gets done.
    ///
    /// # Errors
    /// It is no duration.
    pub fn timeout(&self) -> Result<Duration, Invalid> {
        size::parse_duration(&self.timeout).map_err(|e| Invalid::new("run.timeout", e.to_string()))
    }
}

impl Job {
    /// Ranks a node of the engine torch.
    pub fn ranks_per_node(&self) -> usize {
        self.run.nproc_per_node.unwrap_or_else(|| self.pipeline.devices / self.run.nnodes.max(1))
    }

    pub(super) fn check_run(&self) -> Result<(), Invalid> {
        let run = &self.run;
        within("run.warmup_steps", run.warmup_steps, 0, MOST)?;
        within("run.steps", run.steps, 1, MOST)?;
        within("run.nnodes", run.nnodes, 1, MOST_DEVICES)?;
        run.timeout()?;
        match run.engine {
            Engine::Native => self.check_native(),
            Engine::Torch => self.check_torch(),
        }
    }

    /// What only torchrun knows is refused where it would be ignored.
    fn check_native(&self) -> Result<(), Invalid> {
        let run = &self.run;
        let given = [
            ("python", run.python != PYTHON),
            ("modules", run.modules != Modules::Auto),
            ("timeout", run.timeout != TIMEOUT),
            ("nnodes", run.nnodes != 1),
            ("nproc_per_node", run.nproc_per_node.is_some()),
            ("rdzv_endpoint", run.rdzv_endpoint.is_some()),
            ("launcher", run.launcher.is_some()),
        ];
        match given.into_iter().find(|(_, given)| *given) {
            None => Ok(()),
            Some((field, _)) => {
                Err(Invalid::new(format!("run.{field}"), "expected only with engine: torch, found with engine: native"))
            }
        }
    }

    fn check_torch(&self) -> Result<(), Invalid> {
        let (run, devices) = (&self.run, self.pipeline.devices);
        if run.python.trim().is_empty() {
            return Err(Invalid::new("run.python", "expected a command such as python3, found nothing"));
        }
        match run.nproc_per_node {
            Some(ranks) if ranks.checked_mul(run.nnodes) != Some(devices) => {
                return Err(Invalid::new(
                    "run.nproc_per_node",
                    format!(
                        "expected {} nodes x ranks to be the {devices} of pipeline.devices, found {ranks} ranks",
                        run.nnodes
                    ),
                ));
            }
            None if devices % run.nnodes != 0 => {
                return Err(Invalid::new(
                    "run.nnodes",
                    format!("expected a divisor of the {devices} of pipeline.devices, found {}", run.nnodes),
                ));
            }
            _ => {}
        }
        if let Some(device) = (0..devices).find(|device| !self.placement().contains(device)) {
            return Err(Invalid::new(
                "pipeline.placement",
                format!("expected a stage on every device for engine: torch, found none on device {device}"),
            ));
        }
        if let Some(endpoint) = &run.rdzv_endpoint {
            let port = endpoint.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse());
            if !matches!(port, Some(Ok(1_u16..))) {
                return Err(Invalid::new(
                    "run.rdzv_endpoint",
                    format!("expected host:port such as node0:29500, found {endpoint:?}"),
                ));
            }
        }
        if let Some(launcher) = &run.launcher {
            if launcher.trim().is_empty() {
                return Err(Invalid::new("run.launcher", "expected words such as srun, found nothing"));
            }
            if launcher.replace("{node}", "").contains(['{', '}']) {
                return Err(Invalid::new(
                    "run.launcher",
                    format!("expected no braces but {{node}}, a node's number, found {launcher:?}"),
                ));
            }
        }
        if run.nnodes == 1 {
            return Ok(());
        }
        let missing = |field: &str, what: &str| Err(Invalid::new(field, format!("missing; {what}")));
        if run.rdzv_endpoint.is_none() {
            return missing("run.rdzv_endpoint", "with more than one node it says where they meet, as node0:29500");
        }
        if run.launcher.is_none() {
            return missing(
                "run.launcher",
                "with more than one node it starts torchrun there, as `srun --nodes 2` or `ssh node{node}`",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::file::{self, Check};

    fn refusal(yaml: &str) -> String {
        let job: Job = file::parse(Path::new("job.yaml"), &format!("model: llama-15m\n{yaml}")).unwrap();
        job.check().map_or_else(|invalid| format!("{}: {}", invalid.field, invalid.message), |()| "fine".to_owned())
    }

    #[test]
    fn torchrun_is_described_wholly_or_not_at_all() {
        let four = "pipeline: {devices: 4}\nrun: {engine: torch, ";
        for (yaml, expected) in [
            ("run: {engine: torch}", "fine"),
            ("run: {nnodes: 2}", "run.nnodes: expected only with engine: torch"),
            ("run: {launcher: srun}", "run.launcher: expected only with engine: torch"),
            ("run: {engine: torch, nnodes: 2}", "run.rdzv_endpoint: missing"),
            ("run: {engine: torch, nnodes: 3}", "run.nnodes: expected a divisor of the 2"),
            ("run: {engine: torch, nproc_per_node: 3}", "run.nproc_per_node: expected 1 nodes x ranks to be the 2"),
            ("run: {engine: torch, timeout: 0s}", "run.timeout: expected a duration"),
            ("run: {engine: torch, timeout: never}", "run.timeout: expected a duration"),
            ("run: {engine: torch, launcher: 'ssh {host}'}", "run.launcher: expected no braces but {node}"),
            ("run: {engine: torch, rdzv_endpoint: node0}", "run.rdzv_endpoint: expected host:port"),
            (
                "pipeline: {devices: 2, placement: [0]}\nrun: {engine: torch}",
                "pipeline.placement: expected 2 devices, one a stage",
            ),
            (
                "pipeline: {devices: 2, chunks: 1, placement: [1, 1]}\nrun: {engine: torch}",
                "pipeline.placement: expected a stage on every device for engine: torch, found none on device 0",
            ),
        ] {
            assert!(refusal(yaml).starts_with(expected), "{yaml}: {}", refusal(yaml));
        }
        let two = format!("{four}nnodes: 2, rdzv_endpoint: 'node0:29500'");
        assert!(refusal(&format!("{two}}}")).starts_with("run.launcher: missing"));
        assert_eq!(refusal(&format!("{two}, launcher: 'ssh node{{node}}'}}")), "fine");
        assert_eq!(refusal(&format!("{two}, launcher: srun, nproc_per_node: 2}}")), "fine");
        assert!(refusal(&format!("{two}, launcher: srun, nproc_per_node: 4}}")).starts_with("run.nproc_per_node"));
    }
}
