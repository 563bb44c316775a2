//! Any text as JSON of any kind of file.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use optpipe::readers::READERS;

fuzz_target!(|input: (u8, &str)| {
    let (kind, text) = input;
    let _ = READERS[usize::from(kind) % READERS.len()].read(Path::new("file.json"), text);
});
