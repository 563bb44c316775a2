//! What is happening, on stderr: a line that is redrawn on a terminal, plain lines in a pipe.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Where progress goes.
#[derive(Debug)]
pub struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
    last: RefCell<Instant>,
}

/// In a pipe, updates of a running phase come at most this often.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

impl Progress {
    /// Progress on stderr, or none.
    pub fn new(quiet: bool) -> Self {
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} {elapsed:.dim}") {
                bar.set_style(style);
            }
            bar
        });
        Progress { quiet, bar, last: RefCell::new(Instant::now()) }
    }

    /// A phase begins.
    pub fn phase(&self, text: &str) {
        tracing::debug!("{text}");
        match &self.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.enable_steady_tick(Duration::from_millis(100));
                bar.set_message(text.to_owned());
            }
            None => self.line(text),
        }
        *self.last.borrow_mut() = Instant::now();
    }

    /// The running phase got somewhere.
    pub fn update(&self, text: &str) {
        tracing::trace!("{text}");
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => {
                let mut last = self.last.borrow_mut();
                if last.elapsed() >= PLAIN_EVERY {
                    *last = Instant::now();
                    self.line(text);
                }
            }
        }
    }

    /// A result that stays on the screen.
    pub fn line(&self, text: &str) {
        if self.quiet {
            return;
        }
        self.print(text);
    }

    /// Something the user should know even when progress is off.
    pub fn warn(&self, text: &str) {
        self.print(&format!("warning: {text}"));
    }

    fn print(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            // Progress that nobody can read is no reason to stop.
            None => drop(writeln!(std::io::stderr(), "{text}")),
        }
    }

    /// Nothing is running.
    pub fn done(&self) {
        if let Some(bar) = &self.bar {
            bar.disable_steady_tick();
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.done();
    }
}
