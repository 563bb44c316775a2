//! Measurements that come with OptPipe: what `calibrate` and `profile` wrote on machines that were at hand, known by
//! the names of their files. A job that names them is solved and simulated without the devices.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::file::{self, Check, FileError, Invalid};

include!(concat!(env!("OUT_DIR"), "/records.rs"));

/// A job's word for a measurement: the name of a recorded one, or a path that starts at the job file's folder.
///
/// # Errors
/// There is none of that name, which the job's `field` is blamed for; the file cannot be read.
pub(crate) fn find<T: DeserializeOwned + Check>(
    records: &[(&str, &str)],
    field: &str,
    word: &Path,
    job_file: &Path,
) -> Result<T, FileError> {
    if let Some((name, text)) = records.iter().find(|(name, _)| word == Path::new(name)) {
        let path = Path::new(name);
        return file::checked(path, text, file::parse(path, text)?);
    }
    let beside = job_file.parent().map_or_else(|| word.to_owned(), |folder| folder.join(word));
    if is_path(word) || beside.is_file() {
        return file::read_checked(&beside);
    }
    let known: Vec<&str> = records.iter().map(|(name, _)| *name).collect();
    let message = format!("expected the path of a file or one of {}, found {}", known.join(", "), word.display());
    let invalid = Invalid::new(field, message);
    Err(match file::read_text(job_file) {
        Ok(text) => file::located(job_file, &text, invalid),
        Err(_) => FileError::field(job_file, invalid.field, invalid.message),
    })
}

/// Whether a job's word is the name of a recorded measurement.
pub fn is_recorded(records: &[(&str, &str)], word: &Path) -> bool {
    records.iter().any(|(name, _)| word == Path::new(name))
}

/// Whether a word cannot be a name: it has folders, or ends as files do. Names may have dots.
fn is_path(word: &Path) -> bool {
    let ends_as_files = |ending: &std::ffi::OsStr| ["yaml", "yml", "json"].iter().any(|known| ending == *known);
    word.components().count() > 1 || word.extension().is_some_and(ends_as_files)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::hardware::Hardware;
    use crate::profile::Profile;

    #[test]
    fn every_record_can_be_read_by_its_name() {
        let job = Path::new("job.yaml");
        for (name, _) in HARDWARE {
            let found: Hardware = find(HARDWARE, "hardware", Path::new(name), job).unwrap();
            assert!(!found.devices.is_empty() && !found.offload.points.is_empty(), "{name}: measured");
        }
        for (name, _) in PROFILES {
            let found: Profile = find(PROFILES, "profile", Path::new(name), job).unwrap();
            assert!(found.layers.iter().all(|layer| layer.forward.count > 1), "{name}: with its spread");
        }
    }

    #[test]
    fn names_may_have_dots() {
        let records = [("cpu-3.2-1b", HARDWARE[0].1)];
        let found: Hardware = find(&records, "hardware", Path::new("cpu-3.2-1b"), Path::new("job.yaml")).unwrap();
        assert!(!found.devices.is_empty() && is_recorded(&records, Path::new("cpu-3.2-1b")));
        let error = find::<Hardware>(&records, "hardware", Path::new("cpu-3.3-1b"), Path::new("job.yaml"));
        assert!(error.unwrap_err().to_string().contains("cpu-3.2-1b"));
    }

    #[test]
    fn other_names_are_refused_with_those_that_there_are() {
        let folder = tempfile::tempdir().unwrap();
        let job = folder.path().join("job.yaml");
        std::fs::write(&job, "model: gpt2\nhardware: abacus\n").unwrap();
        let error = find::<Hardware>(HARDWARE, "hardware", Path::new("abacus"), &job).unwrap_err();
        assert_eq!((error.line, error.path.as_path()), (Some(2), job.as_path()));
        assert!(error.to_string().contains(HARDWARE[0].0), "{error}");
        let error = find::<Hardware>(HARDWARE, "hardware", Path::new("abacus.yaml"), &job).unwrap_err();
        assert!(error.to_string().contains("abacus.yaml"), "a path: {error}");
    }
}
