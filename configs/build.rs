//! Lists the measurements that come with OptPipe, so that a file put into their folder is known by its name.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let mut text = String::new();
    for (list, folder, of) in [("HARDWARE", "hardware", "hardware"), ("PROFILES", "profiles", "profile")] {
        println!("cargo::rerun-if-changed={folder}");
        let _ = writeln!(text, "/// Name and text of each recorded {of}.\npub const {list}: &[(&str, &str)] = &[");
        for (name, path) in records(&root.join(folder))? {
            let _ = writeln!(text, "    ({name:?}, include_str!({path:?})),");
        }
        text.push_str("];\n");
    }
    fs::write(PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default()).join("records.rs"), text)
}

/// The YAML files of a folder by their names, in order.
fn records(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "yaml")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            found.push((name.to_owned(), path));
        }
    }
    found.sort();
    Ok(found)
}
