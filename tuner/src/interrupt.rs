//! Ctrl-C: the first asks the command to finish what it can keep, the second quits at once.

use std::io::Write;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);
static INSTALLED: OnceLock<()> = OnceLock::new();

/// Takes over SIGINT, SIGTERM and SIGHUP for the rest of the process and returns the flag that the
/// first of them sets. Where the handler cannot be installed the signals keep ending the process.
pub fn install() -> &'static AtomicBool {
    INSTALLED.get_or_init(|| {
        let handler = || {
            if ASKED.swap(true, Ordering::SeqCst) {
                std::process::exit(130);
            }
            let _ = writeln!(std::io::stderr(), "\nstopping: keeping the best so far (Ctrl-C again quits at once)");
        };
        if let Err(e) = ctrlc::set_handler(handler) {
            tracing::warn!("Ctrl-C will end the process at once: {e}");
        }
    });
    &ASKED
}
