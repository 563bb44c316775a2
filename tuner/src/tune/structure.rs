//! Before the rounds: what the job leaves to the structure search is decided, once for a folder.

use optpipe_configs::hardware::Hardware;
use optpipe_configs::job::{Count, Job};

use super::{Tuning, unstable};
use crate::error::{Error, Result};
use crate::structure::profiles::Profiles;
use crate::structure::report::{Report, split};
use crate::structure::{Front, Search};
use crate::text;

/// Where a search's outcome is kept.
const SEARCH: &str = "structure/search.yaml";

impl Tuning<'_> {
    /// The job with everything decided: as the folder says, or by a search that takes as long as one
    /// solve. Layers are measured at every microbatch size that the search looks at.
    pub(super) fn decided_job(&mut self, hardware: &Hardware) -> Result<Job> {
        let sizes = self.job.microbatch_sizes();
        let several = sizes.len() > 1 || self.job.layouts(self.model.layers + 2).len() > 1;
        if !several && self.job.undecided().is_empty() && self.job.layer_split().is_some() {
            return Ok(self.job.clone());
        }
        let profiles = self.profiles(&sizes, hardware)?;
        let report = match self.folder.read::<Report>(SEARCH)? {
            Some(report) => report,
            None => {
                let report = self.report(hardware, &profiles)?;
                self.folder.write(SEARCH, &report)?;
                report
            }
        };
        if let Some(profile) = profiles.measured(report.chosen.microbatch_size) {
            self.folder.write("profile.yaml", profile)?;
        }
        Ok(self.job.with_structure(&report.chosen))
    }

    fn search<'a>(&'a self, hardware: &'a Hardware, profiles: &'a Profiles) -> Result<Search<'a>> {
        Ok(Search {
            job: self.job,
            model: self.model,
            hardware,
            profiles,
            cache: self.cache,
            time_limit: self.job.time_limit().map_err(|invalid| Error::invalid("job", invalid))?,
            front: &Front::None,
            progress: self.progress,
            cancel: self.cancel,
        })
    }

    fn report(&self, hardware: &Hardware, profiles: &Profiles) -> Result<Report> {
        let report = self.search(hardware, profiles)?.run()?.report;
        let chosen = &report.chosen;
        self.progress.line(&format!(
            "structure: {} chunks a device, {}, {} microbatches of {}, blocks {}; predicted {}, one of {} looked at",
            chosen.chunks,
            chosen.placement.map_or("placed as listed", |name| name.name()),
            chosen.microbatches,
            chosen.microbatch_size,
            split(&chosen.layer_split),
            text::duration(report.makespan_ns),
            report.points.len()
        ));
        Ok(report)
    }

    /// The profile of each size that may run: the folder's, the given one, or measured now.
    fn profiles(&mut self, sizes: &[usize], hardware: &Hardware) -> Result<Profiles> {
        let mut profiles = Profiles::default();
        if let ([_], None) = (sizes, self.job.batch.global_batch) {
            profiles.add(self.profile()?)?;
            return Ok(profiles);
        }
        let mut given = self.profile.take();
        for &size in sizes {
            let name = format!("structure/profile-{size}.yaml");
            if let Some(found) = self.folder.read(&name)? {
                profiles.add(found)?;
                continue;
            }
            let profile = match given.take_if(|given| given.microbatch_size == size) {
                Some(given) => given,
                None if !profiles.is_empty() && !self.search(hardware, &profiles)?.may_run(size)? => continue,
                None => {
                    self.progress.phase(&format!("profiling: layers of the model, {size} sequences a microbatch"));
                    let mut sized = self.job.clone();
                    sized.batch.microbatch_size = Count::Fixed(size);
                    self.machine.profile(&sized, self.model, self.progress, self.cancel)?
                }
            };
            self.folder.write(&name, &profile)?;
            for warning in unstable(&profile) {
                self.progress.warn(&warning);
            }
            profiles.add(profile)?;
        }
        if let Some(given) = given {
            return Err(Error::input(format!(
                "profile: microbatch_size: expected one of {}, found {}",
                text::list(sizes, |size| size.to_string()),
                given.microbatch_size
            )));
        }
        Ok(profiles)
    }
}
