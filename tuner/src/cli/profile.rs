//! `optpipe profile`

use std::path::PathBuf;

use optpipe_configs::file;
use optpipe_configs::job::{Count, Job};
use optpipe_configs::profile::{LayerKind, Profile, Sample};

use crate::error::{Error, Result};
use crate::interrupt;
use crate::progress::Progress;
use crate::tune::machine;
use crate::{table, text, tune};

/// Measure the times and bytes of a model's layers
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Times are medians over samples taken after warm-up, ± the median absolute deviation. A measurement
that does not settle is marked with a `?` and named on stderr.

Example:
  optpipe profile job.yaml -o profile.yaml
  optpipe solve profile.yaml --job job.yaml -o schedule.yaml")]
pub(super) struct Args {
    /// Model, batch and precision
    job: PathBuf,
    /// Where to write profile.yaml; without it only the numbers are printed
    #[arg(short, long)]
    output: Option<PathBuf>,
    /// Sequences a microbatch, instead of the job's
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65536))]
    microbatch_size: Option<u32>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// No progress on stderr
    #[arg(long, short)]
    quiet: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let (mut job, model) = Job::read(&args.job)?;
    if let Some(size) = args.microbatch_size {
        job.batch.microbatch_size = Count::Fixed(size as usize);
    }
    if job.batch.microbatch_size == Count::Auto {
        return Err(Error::input(format!(
            "{}: batch.microbatch_size: expected a number, found auto",
            args.job.display()
        ))
        .hint("name one with --microbatch-size; `optpipe search` measures each that it looks at"));
    }
    let progress = Progress::new(args.quiet);
    let cancel = interrupt::install();
    let mut machine = machine::open(&job, &model, &args.job, None)?;
    progress.phase("profiling: layers of the model");
    let profile = machine.profile(&job, &model, &progress, cancel)?;
    progress.done();
    for warning in tune::unstable(&profile) {
        progress.warn(&warning);
    }
    if let Some(path) = &args.output {
        file::write(path, &profile).map_err(Error::write)?;
    }
    if args.json {
        super::emit_json(&profile)?
    } else {
        super::emit_words(&report(&profile))?
    }
    if let Some(path) = &args.output {
        super::wrote(args.quiet, path.display());
    }
    Ok(())
}

fn report(profile: &Profile) -> String {
    let time = |sample: &Sample| {
        let mark = if sample.stable { "" } else { " ?" };
        format!("{} ±{}{mark}", text::duration(sample.median_ns as i64), text::duration(sample.mad_ns as i64))
    };
    let rows = profile.layers.iter().map(|layer| {
        let kind = match layer.kind {
            LayerKind::Embedding => "embedding",
            LayerKind::Block => "block",
            LayerKind::Head => "head",
        };
        vec![
            format!("{} x {kind}", layer.count),
            time(&layer.forward),
            time(&layer.backward_input),
            time(&layer.backward_weight),
            text::bytes(layer.bytes.activation),
            text::bytes(layer.bytes.weight_context),
            text::bytes(layer.bytes.offloadable),
            text::bytes(layer.bytes.workspace),
            text::count(layer.parameters),
        ]
    });
    let heading = [
        "layers",
        "forward",
        "backward_input",
        "backward_weight",
        "activation",
        "weight context",
        "offloadable",
        "workspace",
        "parameters",
    ];
    let lines = [
        table::table(heading, rows.collect()).to_string(),
        format!(
            "{}, {}, {} x {} tokens a microbatch; backend {}, clock {}, took {}",
            profile.model,
            profile.precision,
            profile.microbatch_size,
            profile.sequence_length,
            profile.backend,
            profile.clock,
            text::duration(profile.cost_ns as i64)
        ),
    ];
    lines.join("\n")
}
