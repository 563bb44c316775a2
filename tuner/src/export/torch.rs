//! A folder with which PyTorch runs a schedule: for `torch.distributed.pipelining` as it is, for trainers on
//! it, and, with offloads, for the package `optpipe_torch`, which the folder brings.

use std::fmt::Write as _;
use std::path::PathBuf;

use optpipe_configs::model::Model;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{OpKind, ScheduleFile};
use serde_json::json;

use super::table::complete;
use super::units;

mod layers;
mod settings;
mod traps;

pub use layers::{Naming, modules};
pub use traps::{Action, Adapted, adapt, as_run, cells};

/// Why PyTorch cannot run a schedule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TorchError {
    /// A rank has at least one stage.
    #[error("device {device} holds no stage: torch.distributed.pipelining needs one on every rank")]
    EmptyDevice {
        /// The device.
        device: usize,
    },
    /// The first stage's ops could not be joined.
    #[error("the first stage's B and W, which PyTorch runs as one, cannot be joined: {0}")]
    Reordering(
        /// What the simulator says.
        String,
    ),
    /// The layer split is not one of this model and these stages.
    #[error("layer_split {split:?} is not one of {blocks} blocks over {stages} stages")]
    Split {
        /// The split.
        split: Vec<usize>,
        /// Blocks of the model.
        blocks: usize,
        /// Stages of the problem.
        stages: usize,
    },
    /// A file cannot be written as text.
    #[error("cannot write {file}: {reason}")]
    Text {
        /// Its name.
        file: &'static str,
        /// What the serialiser says.
        reason: String,
    },
}

/// The package, file by file.
pub(crate) const PACKAGE: [(&str, &str); 8] = [
    ("__init__.py", include_str!("../../python/optpipe_torch/__init__.py")),
    ("agree.py", include_str!("../../python/optpipe_torch/agree.py")),
    ("files.py", include_str!("../../python/optpipe_torch/files.py")),
    ("measure.py", include_str!("../../python/optpipe_torch/measure.py")),
    ("program.py", include_str!("../../python/optpipe_torch/program.py")),
    ("saved.py", include_str!("../../python/optpipe_torch/saved.py")),
    ("schedule.py", include_str!("../../python/optpipe_torch/schedule.py")),
    ("swap.py", include_str!("../../python/optpipe_torch/swap.py")),
];

/// `schedule.csv`: the compute-only file, one row a rank.
pub fn compute_only(problem: &Problem, adapted: &Adapted) -> String {
    let mut text = String::new();
    for row in cells(problem, &adapted.schedule) {
        let row: Vec<String> = row.iter().map(|(s, action, j)| format!("{s}{}{j}", action.letter())).collect();
        let _ = writeln!(text, "{}", row.join(","));
    }
    text
}

/// Every file of the folder, by its path there.
///
/// # Errors
/// [`TorchError`], where PyTorch cannot run the schedule: nothing is written then.
pub fn torch(
    problem: &Problem,
    file: &ScheduleFile,
    model: Option<&Model>,
) -> Result<Vec<(PathBuf, String)>, TorchError> {
    let adapted = adapt(problem, &file.schedule)?;
    let split = match (model, &file.layer_split) {
        (Some(model), Some(split)) => {
            if split.len() != problem.stages() || split.iter().sum::<usize>() != model.layers {
                let (blocks, stages) = (model.layers, problem.stages());
                return Err(TorchError::Split { split: split.clone(), blocks, stages });
            }
            Some((model, split.as_slice()))
        }
        _ => None,
    };
    let yaml_error = |file| move |e: serde_yaml::Error| TorchError::Text { file, reason: e.to_string() };
    let (run, schedule) =
        as_run(problem, &adapted.schedule).unwrap_or_else(|| (problem.clone(), adapted.schedule.clone()));
    let own = complete(problem, &ScheduleFile { schedule, ..file.clone() });
    let stages = json!({
        "devices": problem.devices,
        "microbatches": problem.microbatches,
        "stage_to_rank": problem.placement,
        "model": file.model,
        "architecture": model.map(|m| m.family.architecture()),
        "layer_split": file.layer_split,
        "modules": split.map(|(model, split)| modules(model, split, Naming::HuggingFace)),
        "tied_embeddings": model.map(|m| m.tied_embeddings),
    });
    let mut files: Vec<(PathBuf, String)> = vec![
        ("README.md".into(), readme(problem, file, &adapted, split.is_some())),
        ("schedule.csv".into(), compute_only(problem, &adapted)),
        ("schedule.yaml".into(), own.to_yaml().map_err(yaml_error("schedule.yaml"))?),
        ("problem.yaml".into(), serde_yaml::to_string(&run).map_err(yaml_error("problem.yaml"))?),
        ("stages.json".into(), format!("{stages:#}\n")),
        ("launch.sh".into(), LAUNCH.replace("DEVICES", &problem.devices.to_string())),
        ("train.py".into(), include_str!("../../python/train.py").to_owned()),
    ];
    files.extend(PACKAGE.iter().map(|&(name, text)| (PathBuf::from("optpipe_torch").join(name), text.to_owned())));
    files.extend(settings::settings(problem, split));
    Ok(files)
}

fn readme(problem: &Problem, file: &ScheduleFile, adapted: &Adapted, layers: bool) -> String {
    let count = |kind| file.schedule.ops.iter().flatten().filter(|x| x.op == kind).count();
    let fused = cells(problem, &adapted.schedule).iter().flatten().filter(|x| x.1 == Action::Full).count();
    let mut changes = vec![];
    if adapted.renamed() {
        changes.push(
            "Microbatches have other numbers: PyTorch looks losses up by number, so the last stage's forwards run in \
             order."
                .to_owned(),
        );
    }
    if adapted.joined > 0 {
        changes.push(format!(
            "The first stage's input and weight gradient of {} microbatches are one op: PyTorch has none of its own \
             for the input. The step is predicted to take {} (before: {}).",
            adapted.joined,
            units::time(adapted.schedule.makespan_ns),
            units::time(file.schedule.makespan_ns)
        ));
    }
    if fused > 0 {
        changes.push(format!("{fused} backwards are whole (`B`), their two parts standing next to each other."));
    }
    let offloads = count(OpKind::O);
    if offloads > 0 {
        changes.push(format!(
            "{offloads} activations leave for the host and come back. `schedule.csv` cannot say so: run alone it \
             takes more memory than the limit. `optpipe_torch` runs them."
        ));
    }
    let changes: String = changes.iter().map(|line| format!("- {line}\n")).collect();
    let modules = if layers {
        "the rank of each stage, and its modules by their names in Hugging Face transformers"
    } else {
        "the rank of each stage; no modules, as the schedule names no model and layer_split"
    };
    README.replace("CHANGES", &changes).replace("MODULES", modules).replace("DEVICES", &problem.devices.to_string())
}

const LAUNCH: &str = "#!/usr/bin/env bash
# Trains on this machine. For more nodes: NNODES=2 RDZV_ENDPOINT=host:29500 on each of them.
set -euo pipefail
cd \"$(dirname \"$0\")\"
nnodes=${NNODES:-1}
if [ \"$nnodes\" -eq 1 ]; then
    rendezvous=(--standalone)
else
    rendezvous=(--rdzv-backend c10d --rdzv-endpoint \"${RDZV_ENDPOINT:?host:port of the first node}\")
fi
exec torchrun --nnodes \"$nnodes\" --nproc-per-node $((DEVICES / nnodes)) \"${rendezvous[@]}\" train.py \"$@\"
";

const README: &str = "# A pipeline schedule for PyTorch

| file | what |
| --- | --- |
| `schedule.yaml`, `problem.yaml` | the schedule, and what it solves: the first stage's backward is whole there, as it runs |
| `schedule.csv` | its compute ops in the compute-only format of torch.distributed.pipelining (2.7 and later) |
| `stages.json` | MODULES |
| `optpipe_torch/` | runs `schedule.yaml` with its offloads on torch.distributed.pipelining |
| `train.py`, `launch.sh` | an example: `bash launch.sh --model NAME` on DEVICES ranks |
| `torchtitan.sh`, `nemo_automodel.yaml` | settings for these trainers, where they can place the stages |

## What differs from the schedule as solved

CHANGES
Gradients are those of the model without a pipeline.

## With offloads

```python
from optpipe_torch import OptPipeSchedule
schedule = OptPipeSchedule(\"schedule.yaml\", stages, loss_fn)   # stages: this rank's PipelineStages, ascending
loss = schedule.step(inputs, target=targets)                   # a new schedule.yaml is taken up between steps
schedule.write_measured(\"measured.yaml\")                       # what the tuner reads
```

`optpipe solve problem.yaml -o schedule.yaml --watch --measured measured.yaml --problem-out problem.yaml` beside it
goes on solving, for the times that `write_measured` wrote last (`train.py` does so every few steps).

Activations are moved that autograd saves through its hooks. What microbatches share stays: parameters, buffers, and
every tensor that was there before the first forward; name others in `shared=`. Past the hooks go tensors that a custom function keeps
as attributes, checkpointing without re-entry, and CUDA graphs. On torch's side gradients that are sent stay
until the step ends, or with `max_outstanding_sends=N` (torch 2.15) until N later ones are sent. The loss that `step`
returns is a tensor: reading it waits for the device.

## Without offloads, on torch alone

```python
from torch.distributed.pipelining.schedules import _PipelineScheduleRuntime
schedule = _PipelineScheduleRuntime(stages, microbatches, loss_fn=loss_fn)
schedule._load_csv(\"schedule.csv\")
```
";
