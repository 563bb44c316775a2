//! What a report is made from: the files of a tune's folder.

use std::path::Path;

use optpipe_configs::file::{self, Check, FileError};
use optpipe_configs::hardware::Hardware;
use optpipe_configs::profile::Profile;
use optpipe_solver::problem::Problem;
use optpipe_solver::schedule::{Schedule, ScheduleFile};
use serde::de::DeserializeOwned;

use crate::error::{Error, Result};
use crate::measured::Measured;
use crate::sensitivity::file::SensitivityFile;
use crate::solved::Solved;
use crate::summary::{Round, Summary};

/// A tune, as its folder holds it.
#[derive(Debug, Clone)]
pub struct Run {
    /// `summary.yaml`.
    pub summary: Summary,
    /// `hardware.yaml`.
    pub hardware: Hardware,
    /// `profile.yaml`.
    pub profile: Profile,
    /// The rounds, in order.
    pub rounds: Vec<RoundFiles>,
    /// What ran one after another at the end: the best schedule first, then the textbook ones.
    pub compared: Vec<Compared>,
    /// `sensitivity.yaml`, if it is about the best schedule.
    pub sensitivity: Option<SensitivityFile>,
}

/// The files of one round.
#[derive(Debug, Clone)]
pub struct RoundFiles {
    /// `round.yaml`.
    pub round: Round,
    /// `problem.yaml`.
    pub problem: Problem,
    /// `schedule.yaml`.
    pub schedule: Schedule,
    /// `measured.yaml`.
    pub measured: Measured,
    /// `solve.yaml`; a folder of an older OptPipe has none.
    pub solved: Option<Solved>,
}

/// A schedule that ran beside others.
#[derive(Debug, Clone)]
pub struct Compared {
    /// `optpipe`, or the textbook schedule's name.
    pub name: String,
    /// The schedule.
    pub schedule: Schedule,
    /// What it took.
    pub measured: Measured,
}

impl Run {
    /// Reads a tune's folder.
    ///
    /// # Errors
    /// Bad input: not the folder of a finished tune, or a file that cannot be read.
    pub fn read(folder: &Path) -> Result<Run> {
        let summary = folder.join("summary.yaml");
        if !summary.exists() {
            return Err(Error::input(format!(
                "{}: not the folder of a finished tune: no summary.yaml",
                folder.display()
            ))
            .hint("`optpipe tune JOB --out FOLDER` makes one; with --resume it finishes one that was stopped"));
        }
        let summary: Summary = file::read_checked(&summary)?;
        let mut rounds = Vec::with_capacity(summary.rounds.len());
        for number in 1..=summary.rounds.len() {
            rounds.push(round(&folder.join("rounds").join(format!("{number:02}")))?);
        }
        let names = std::iter::once(&summary.best).chain(&summary.textbook).map(|outcome| &outcome.name);
        let mut all = Vec::new();
        for name in names {
            all.extend(compared(folder, name)?);
        }
        let run = Run {
            hardware: file::read_checked(&folder.join("hardware.yaml"))?,
            profile: file::read_checked(&folder.join("profile.yaml"))?,
            sensitivity: optional(&folder.join("sensitivity.yaml"))?,
            rounds,
            compared: all,
            summary,
        };
        run.consistent(folder)
    }

    /// What every part of the report relies on.
    fn consistent(mut self, folder: &Path) -> Result<Run> {
        let place = folder.join("summary.yaml");
        let refused = |field: &str, message: String| Err(FileError::field(&place, field, message).into());
        let rounds = self.rounds.len();
        if self.summary.best_round == 0 || self.summary.best_round > rounds {
            return refused("best_round", format!("expected 1 to {rounds}, found {}", self.summary.best_round));
        }
        if self.summary.devices != self.best().problem.devices {
            let devices = self.best().problem.devices;
            return refused("devices", format!("expected the problem's {devices}, found {}", self.summary.devices));
        }
        for files in &self.rounds {
            if files.problem.devices != self.summary.devices {
                let place = folder.join("rounds").join(format!("{:02}", files.round.round)).join("problem.yaml");
                let (devices, found) = (self.summary.devices, files.problem.devices);
                let message = format!("expected the summary's {devices}, found {found}");
                return Err(FileError::field(&place, "devices", message).into());
            }
        }
        let (best, found) = (self.best(), self.sensitivity.as_ref());
        if found.is_some_and(|found| !found.is_about(&best.problem, &best.schedule)) {
            self.sensitivity = None;
        }
        Ok(self)
    }

    /// The round that made the best schedule.
    pub fn best(&self) -> &RoundFiles {
        &self.rounds[self.summary.best_round - 1]
    }

    /// The measurement that [`Summary::best`] is about.
    pub fn best_measured(&self) -> &Measured {
        let own = self.compared.iter().find(|compared| compared.name == self.summary.best.name);
        own.map_or(&self.best().measured, |compared| &compared.measured)
    }
}

fn round(folder: &Path) -> Result<RoundFiles> {
    Ok(RoundFiles {
        round: file::read_checked(&folder.join("round.yaml"))?,
        problem: file::read_checked(&folder.join("problem.yaml"))?,
        schedule: file::read_checked::<ScheduleFile>(&folder.join("schedule.yaml"))?.schedule,
        measured: file::read_checked(&folder.join("measured.yaml"))?,
        solved: optional(&folder.join("solve.yaml"))?,
    })
}

fn compared(folder: &Path, name: &str) -> Result<Option<Compared>> {
    // A name of the summary is no way out of the folder.
    if name.contains(['/', '\\']) || name.starts_with('.') {
        return Ok(None);
    }
    let folder = folder.join("comparison").join(name);
    let measured = folder.join("measured.yaml");
    if !measured.exists() {
        return Ok(None);
    }
    Ok(Some(Compared {
        name: name.to_owned(),
        schedule: file::read_checked::<ScheduleFile>(&folder.join("schedule.yaml"))?.schedule,
        measured: file::read_checked(&measured)?,
    }))
}

fn optional<T: DeserializeOwned + Check>(path: &Path) -> Result<Option<T>> {
    if path.exists() { Ok(Some(file::read_checked(path)?)) } else { Ok(None) }
}
