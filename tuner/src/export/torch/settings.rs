//! Settings of trainers that take a schedule as a file.

use std::fmt::Write as _;
use std::path::PathBuf;

use optpipe_configs::model::{Family, Model};
use optpipe_solver::problem::Problem;

use super::layers::{Naming, modules};

/// The files, each with settings or with the reason why there are none.
pub(super) fn settings(problem: &Problem, split: Option<(&Model, &[usize])>) -> Vec<(PathBuf, String)> {
    vec![
        ("torchtitan.sh".into(), torchtitan(problem, split).unwrap_or_else(|reason| refused("torchtitan", &reason))),
        (
            "nemo_automodel.yaml".into(),
            nemo(problem, split).unwrap_or_else(|reason| refused("NeMo AutoModel", &reason)),
        ),
    ]
}

fn refused(trainer: &str, reason: &str) -> String {
    format!("# No settings: {trainer} cannot train with this schedule.\n# {reason}\n")
}

/// The trainer's own schedule that places stages as this one does: the file replaces its order only.
fn places_like(problem: &Problem) -> Result<&'static str, String> {
    let (devices, stages) = (problem.devices, problem.stages());
    let placed = |device: &dyn Fn(usize) -> usize| problem.placement.iter().enumerate().all(|(s, &d)| d == device(s));
    if stages == devices && placed(&|s| s) {
        Ok("1F1B")
    } else if stages > devices && stages.is_multiple_of(devices) && placed(&|s| s % devices) {
        Ok("Interleaved1F1B")
    } else if stages == 2 * devices && placed(&|s| s.min(2 * devices - 1 - s)) {
        Ok("ZBVZeroBubble")
    } else {
        Err(format!("It places stages in a line, a loop or a V; here they are on {:?}.", problem.placement))
    }
}

fn layered<'a>(split: Option<(&'a Model, &'a [usize])>) -> Result<(&'a Model, &'a [usize]), String> {
    let (model, split) = split.ok_or("The schedule names no model and layer_split to name modules by.")?;
    // Both keep the embedding's matrix twice then and train the copies apart.
    if model.tied_embeddings && split.len() > 1 {
        return Err(
            "Embedding and head share a matrix, whose two gradients pipeline parallelism there does not add.".into()
        );
    }
    Ok((model, split))
}

fn torchtitan(problem: &Problem, split: Option<(&Model, &[usize])>) -> Result<String, String> {
    let schedule = places_like(problem)?;
    let (model, split) = layered(split)?;
    if model.family == Family::Gpt2 {
        return Err("It has no GPT-2.".into());
    }
    let names = modules(model, split, Naming::Torchtitan);
    let parts: Vec<String> = names
        .iter()
        .map(|stage| format!("[{}]", stage.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ")))
        .collect();
    let mut text = "# Arguments for torchtitan (written for 0.3.0), for a model of this shape.\n".to_owned();
    text.push_str("# pipeline_parallel_schedule only decides where stages lie; the file says what runs when.\n");
    let _ = writeln!(text, "# Modules of each stage, for the setting parallelism.module_fqns_per_model_part:");
    for (stage, part) in parts.iter().enumerate() {
        let _ = writeln!(text, "#   stage {stage}: {part}");
    }
    let _ = writeln!(text, "# The local batch has to be {} microbatches.", problem.microbatches);
    let _ = writeln!(text, "OPTPIPE_ARGS=(");
    let _ = writeln!(text, "  --parallelism.pipeline_parallel_degree {}", problem.devices);
    let _ = writeln!(text, "  --parallelism.pipeline_parallel_schedule {schedule}");
    let _ = writeln!(text, "  --parallelism.pipeline_parallel_schedule_csv \"$PWD/schedule.csv\"");
    let _ = writeln!(text, ")");
    Ok(text)
}

fn nemo(problem: &Problem, split: Option<(&Model, &[usize])>) -> Result<String, String> {
    let schedule = places_like(problem)?;
    let (model, split) = layered(split)?;
    let mut text = "# Settings for NeMo AutoModel (written for 0.7.0).\n".to_owned();
    let _ = writeln!(text, "# pp_schedule only decides where stages lie; the file says what runs when.");
    let _ = writeln!(text, "# pp_batch_size is {} times pp_microbatch_size.", problem.microbatches);
    let _ = writeln!(text, "distributed:\n  pp_size: {}\n  pipeline:", problem.devices);
    let _ = writeln!(text, "    pp_schedule: {schedule}\n    pp_schedule_csv: schedule.csv");
    let _ = writeln!(text, "    pp_microbatch_size: 1\n    pp_batch_size: {}", problem.microbatches);
    let _ = writeln!(text, "    module_fqns_per_model_part:");
    for stage in modules(model, split, Naming::HuggingFace) {
        let _ = writeln!(text, "      - [{}]", stage.join(", "));
    }
    Ok(text)
}
