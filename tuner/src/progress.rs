//! What is happening and how long it may take, on stderr: a line that is redrawn on a terminal, plain lines in a pipe.

use std::cell::RefCell;
use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::{table, text};

/// Where progress goes.
#[derive(Debug)]
pub struct Progress {
    quiet: bool,
    bar: Option<ProgressBar>,
    last: RefCell<Instant>,
    ends: Arc<Mutex<Ends>>,
}

/// In a pipe, updates of a running phase come at most this often.
const PLAIN_EVERY: Duration = Duration::from_secs(5);

/// When things will be over, as far as that is known.
#[derive(Debug, Default)]
struct Ends {
    phase: Option<End>,
    /// What the phase is a part of.
    whole: Option<End>,
}

/// When something will be over.
#[derive(Debug, Clone, Copy)]
struct End {
    at: Instant,
    /// Whether that is a limit and not an estimate.
    limit: bool,
}

impl End {
    fn after(left: Duration, limit: bool) -> Option<End> {
        // Who waits for centuries is told nothing.
        Instant::now().checked_add(left).map(|at| End { at, limit })
    }
}

impl fmt::Display for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (end, of) in [(self.phase, "left"), (self.whole, "left in all")] {
            // What takes longer than it should is left without a time: a wrong one is worse.
            let Some(end) = end else { continue };
            let left = end.at.saturating_duration_since(Instant::now());
            if !left.is_zero() {
                let how = if end.limit { "at most" } else { "about" };
                write!(f, ", {how} {} {of}", text::waiting(left))?;
            }
        }
        Ok(())
    }
}

impl Progress {
    /// Progress on stderr, or none.
    pub fn new(quiet: bool) -> Self {
        let ends = Arc::new(Mutex::new(Ends::default()));
        let bar = (!quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new_spinner();
            // What does not fit the line is cut, so that it can be drawn over.
            if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed:.dim}{left:.dim}") {
                let ends = Arc::clone(&ends);
                let left = move |_: &ProgressState, out: &mut dyn fmt::Write| {
                    let ends = ends.lock().unwrap_or_else(PoisonError::into_inner);
                    // A line that lacks its time is still a line.
                    let _ = write!(out, "{ends}");
                };
                bar.set_style(style.with_key("left", left));
            }
            bar
        });
        Progress { quiet, bar, last: RefCell::new(Instant::now()), ends }
    }

    /// A phase begins; how long it takes is not known.
    pub fn phase(&self, text: &str) {
        self.begin(text, None);
    }

    /// A phase begins that has so much time.
    pub fn phase_within(&self, text: &str, limit: Duration) {
        self.begin(text, End::after(limit, true));
    }

    /// A phase begins that takes about so long.
    pub fn phase_about(&self, text: &str, expected: Duration) {
        self.begin(text, End::after(expected, false));
    }

    fn begin(&self, text: &str, end: Option<End>) {
        tracing::debug!("{text}");
        self.ends().phase = end;
        match &self.bar {
            Some(bar) => {
                bar.reset_elapsed();
                bar.enable_steady_tick(Duration::from_millis(100));
                bar.set_message(text.to_owned());
            }
            None => self.line(&self.timed(text)),
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
                    self.line(&self.timed(text));
                }
            }
        }
    }

    /// The running phase takes about so much longer.
    pub fn left(&self, expected: Duration) {
        self.ends().phase = End::after(expected, false);
    }

    /// What the phases are parts of takes about so much longer, or nobody knows how long.
    pub fn left_in_all(&self, expected: Option<Duration>) {
        self.ends().whole = expected.and_then(|expected| End::after(expected, false));
    }

    fn ends(&self) -> std::sync::MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn timed(&self, text: &str) -> String {
        format!("{text}{}", self.ends())
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
        let width = std::io::stderr().is_terminal().then(table::terminal_width).flatten();
        self.print(&text::wrapped(&format!("warning: {text}"), width));
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
        *self.ends() = Ends::default();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_says_how_long_it_may_take_until_that_is_over() {
        let progress = Progress::new(true);
        progress.phase_within("solving", Duration::from_secs(30));
        assert_eq!(progress.timed("solving"), "solving, at most 30 s left");
        progress.left_in_all(Some(Duration::from_secs(150)));
        progress.left(Duration::from_secs(9));
        assert_eq!(progress.timed("step 1"), "step 1, about 9 s left, about 3 min left in all");
        progress.phase("writing");
        assert_eq!(progress.timed("writing"), "writing, about 3 min left in all");
        progress.phase_about("solving", Duration::ZERO);
        progress.left_in_all(None);
        assert_eq!(progress.timed("solving"), "solving");
        progress.phase_within("solving on", Duration::MAX);
        assert_eq!(progress.timed("solving on"), "solving on");
    }
}
