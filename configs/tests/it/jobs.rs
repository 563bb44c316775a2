use std::path::{Path, PathBuf};

use optpipe_configs::file;
use optpipe_configs::job::{Job, MemoryLimit, Placement};

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    let mut jobs: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    jobs.sort();
    assert!(jobs.len() >= 3);
    jobs
}

#[test]
fn every_shipped_job_reads_and_fits_its_model() {
    for path in shipped() {
        let (job, model) = Job::read(&path).unwrap();
        assert_eq!(job.placement().len(), job.stages(), "{}", path.display());
        assert!(job.stages() <= model.layers + 2);
    }
}

#[test]
fn jobs_survive_writing_and_reading() {
    let folder = tempfile::tempdir().unwrap();
    for path in shipped() {
        let (mut job, _) = Job::read(&path).unwrap();
        if job.undecided().is_empty() {
            job.pipeline.placement = Placement::List(job.placement());
        }
        job.memory_limit = Some(MemoryLimit::Each(vec!["70GB".to_owned(); job.pipeline.devices]));
        for name in ["job.yaml", "job.json"] {
            let copy = folder.path().join(name);
            file::write(&copy, &job).unwrap();
            assert_eq!(Job::read(&copy).unwrap().0, job);
        }
    }
}

#[test]
fn a_model_path_starts_at_the_jobs_folder() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("mine")).unwrap();
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/gpt2/config.json");
    std::fs::copy(config, folder.path().join("mine/config.json")).unwrap();
    for reference in ["mine/config.json", "./mine/config.json", "mine"] {
        let job = folder.path().join("job.yaml");
        std::fs::write(&job, format!("model: {reference}\n")).unwrap();
        let (_, model) = Job::read(&job).unwrap();
        assert_eq!((model.name.as_str(), model.layers), (reference, 12));
    }
}

#[cfg(unix)]
#[test]
fn written_files_are_for_others_to_read_and_no_temporary_file_stays() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let (plain, ours) = (folder.path().join("plain"), folder.path().join("new/ours.yaml"));
    std::fs::write(&plain, "").unwrap();
    file::write_text(&ours, "a: 1\n").unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    assert_eq!(mode(&ours), mode(&plain));
    assert_eq!(std::fs::read_dir(ours.parent().unwrap()).unwrap().count(), 1);
}
