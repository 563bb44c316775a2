//! The end of a tune: textbook schedules, summary, pictures.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use optpipe_configs::file;
use optpipe_configs::hardware::Hardware;
use optpipe_configs::profile::Profile;
use optpipe_solver::solve::SolveOptions;

use super::{Done, Tuning, best, tokens_per_step};
use crate::error::{Error, Result};
use crate::export;
use crate::plan::Plan;
use crate::report;
use crate::sensitivity::{self, file::SensitivityFile};
use crate::summary::{Cost, Outcome, StopReason, Summary};

/// What the files of the folder hold.
const FILES: [(&str, &str); 12] = [
    ("schedule.yaml", "the best measured schedule"),
    ("problem.yaml", "the problem it solves"),
    ("hardware.yaml", "calibration of copies and devices"),
    ("profile.yaml", "times and bytes of the layers"),
    ("summary.yaml", "this summary"),
    ("report.html", "all of it on a page: timeline, comparison, why"),
    ("sensitivity.yaml", "what more memory or bandwidth would buy"),
    ("trace.json", "predicted and measured, for Perfetto"),
    ("timeline.svg", "the schedule as a picture"),
    ("structure/", "what the structure search looked at, and the layers at every microbatch size"),
    ("rounds/", "problem, schedule, measurement and record of each round"),
    ("comparison/", "the best schedule and the textbook ones, measured one after another"),
];

impl Tuning<'_> {
    pub(super) fn finish(
        &mut self,
        hardware: &Hardware,
        profile: &Profile,
        plan: &Plan,
        rounds: Vec<Done>,
        stop: StopReason,
        failure: Option<String>,
    ) -> Result<Summary> {
        let Some(best) = best(&rounds) else {
            return Err(Error::failed("no round was measured"));
        };
        let run = self.job.run.textbook && failure.is_none();
        let again = if run { self.measure_again(plan, best)? } else { None };
        let textbook = self.textbook(plan, &best.problem, hardware, failure.is_some())?;
        let stop = if self.cancel.load(Ordering::SeqCst) { StopReason::Interrupted } else { stop };
        let (round, problem) = (&best.round, &best.problem);

        self.folder.write("problem.yaml", problem)?;
        let yaml = file::read_text(&self.folder.round(round.round, "schedule.yaml"))?;
        file::write_text(&self.folder.path("schedule.yaml"), &yaml).map_err(Error::write)?;
        self.pictures(best)?;
        self.sensitivity(best)?;

        let mut summary = Summary {
            version: file::VERSION,
            optpipe: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.model.name.clone(),
            backend: profile.backend.clone(),
            precision: profile.precision.clone(),
            parameters: self.model.parameters(),
            tokens_per_step: tokens_per_step(self.job),
            devices: problem.devices,
            microbatches: problem.microbatches,
            stop,
            failure,
            best: Outcome {
                name: "optpipe".to_owned(),
                predicted: Some(round.predicted.clone()),
                measured: Some(again.unwrap_or_else(|| round.measured.clone())),
                over_limit_bytes: round.predicted.over_limit(problem),
                note: None,
            },
            best_round: round.round,
            bound_ns: round.bound_ns,
            gap: round.gap,
            proven: round.proven,
            textbook,
            milp: round.milp.clone(),
            cost: Cost {
                calibrate_ns: hardware.cost_ns,
                profile_ns: profile.cost_ns,
                solve_ns: rounds.iter().map(|done| done.round.solve_ns).sum(),
                run_ns: rounds.iter().map(|done| done.round.run_ns).sum(),
            },
            rounds: rounds.iter().map(|done| done.round.clone()).collect(),
            stages: plan.stages.clone(),
            memory: plan.memory.clone(),
            files: FILES
                .iter()
                .filter(|(name, _)| {
                    // These two are written last.
                    matches!(*name, "summary.yaml" | "report.html")
                        || self.folder.path(name.trim_end_matches('/')).exists()
                })
                .map(|(name, what)| ((*name).to_owned(), (*what).to_owned()))
                .collect::<BTreeMap<_, _>>(),
        };
        self.folder.write("summary.yaml", &summary)?;
        // Everything that it shows is on disk: a page that fails is no failed tune.
        if let Err(error) = self.page() {
            summary.files.remove("report.html");
            self.folder.write("summary.yaml", &summary)?;
            // One of an earlier end of this tune would tell another story; there mostly is none.
            let _ = std::fs::remove_file(self.folder.path("report.html"));
            self.progress.warn(&format!("no report.html: {error}; `optpipe report` makes it from the folder's files"));
        }
        self.progress.done();
        Ok(summary)
    }

    /// What more memory or bandwidth would buy for the best schedule, unless the folder has it, or the user wants
    /// to stop.
    fn sensitivity(&self, best: &Done) -> Result<()> {
        let known = self.folder.read::<SensitivityFile>("sensitivity.yaml")?;
        if known.is_some_and(|known| known.is_about(&best.problem, &best.schedule)) {
            return Ok(());
        }
        let of_solve = self.job.time_limit().map_err(|invalid| Error::invalid("job", invalid))?;
        let options = SolveOptions {
            seed: self.job.solver.seed,
            iterations: Some(self.job.solver.iterations).filter(|&n| n > 0),
            ..SolveOptions::default()
        };
        let limit = sensitivity::file::time_limit(of_solve);
        let (problem, schedule) = (&best.problem, &best.schedule);
        match SensitivityFile::solve(problem, schedule, &options, limit, self.progress, self.cancel)? {
            Some(found) => self.folder.write("sensitivity.yaml", &found),
            None => Ok(()),
        }
    }

    fn page(&self) -> Result<()> {
        let page = report::html(&report::Run::read(self.folder.root())?)?;
        file::write_text(&self.folder.path("report.html"), &page).map_err(Error::write)
    }

    fn pictures(&self, best: &Done) -> Result<()> {
        let failed = |e: export::ExportError| Error::failed(format!("cannot draw the schedule: {e}"));
        let trace = export::trace_json(&best.problem, &best.schedule, Some(&best.measured)).map_err(failed)?;
        file::write_text(&self.folder.path("trace.json"), &trace).map_err(Error::write)?;
        let options = export::TimelineOptions {
            title: format!("{}, round {}", self.model.name, best.round.round),
            ..Default::default()
        };
        let picture =
            export::timeline_svg(&best.problem, &best.schedule, Some(&best.measured), &options).map_err(failed)?;
        file::write_text(&self.folder.path("timeline.svg"), &picture).map_err(Error::write)
    }
}
