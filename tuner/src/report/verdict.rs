//! The first screen: the verdict in one sentence, and its numbers.

use maud::{Markup, html};

use super::parts::{measured_time, time};
use super::run::Run;
use crate::summary::Outcome;
use crate::{table, text};

/// The verdict, in words.
pub(super) struct Verdict {
    /// How long a step takes.
    pub(super) step: String,
    /// Throughput, bubble, memory.
    pub(super) load: String,
    /// Gap to the bound.
    pub(super) bound: String,
    /// Against the best textbook schedule.
    pub(super) textbook: String,
    /// How far the prediction was off, where that is worth a word.
    pub(super) trust: Option<String>,
}

/// Prediction and measurement further apart than this are worth a word.
const OFF: f64 = 0.05;

impl Verdict {
    pub(super) fn of(run: &Run) -> Verdict {
        let summary = &run.summary;
        let best = &summary.best;
        let step = match (&best.measured, &best.predicted) {
            (Some(measured), _) => {
                format!("{} ± {}", measured_time(measured.step.median_ns), measured_time(measured.step.mad_ns))
            }
            (None, Some(predicted)) => format!("{} (predicted)", time(predicted.step_ns)),
            (None, None) => "an unknown time".to_owned(),
        };
        let (tokens, bubble) = match (&best.measured, &best.predicted) {
            (Some(measured), _) => (measured.tokens_per_second, measured.bubble),
            (None, Some(predicted)) => (predicted.tokens_per_second, predicted.bubble),
            (None, None) => (0.0, 0.0),
        };
        let memory = peak(run).map_or_else(String::new, |(device, peak, limit)| {
            format!(", and at most {} of {} on device {device}", text::bytes(peak), text::bytes(limit))
        });
        let bound = time(summary.bound_ns);
        let bound = if summary.proven {
            format!("proven optimal for the times of round {}", summary.best_round)
        } else {
            format!("at most {} above the bound {bound} of round {}", text::gap(summary.gap), summary.best_round)
        };
        let trust = best.ratio().filter(|ratio| (ratio - 1.0).abs() > OFF).map(|ratio| {
            let predicted = best.predicted.as_ref().map_or(0, |predicted| predicted.step_ns);
            format!("The prediction was {}; the measured step takes {}.", time(predicted), more(ratio - 1.0))
        });
        Verdict {
            step,
            load: format!(
                "{} tokens/s, a bubble of {}{memory}",
                text::count(tokens.round() as u64),
                text::percent(bubble)
            ),
            bound,
            textbook: against_textbook(run),
            trust,
        }
    }

    /// All of it as plain text.
    pub(super) fn plain(&self) -> String {
        format!("A step takes {}: {}. The schedule is {}. {}", self.step, self.load, self.bound, self.textbook)
    }

    pub(super) fn html(&self) -> Markup {
        html! {
            p .verdict {
                "A step takes " strong { (whole(&self.step)) } ": " (whole(&self.load)) ". The schedule is "
                strong { (whole(&self.bound)) } ". " (whole(&self.textbook))
                @if let Some(trust) = &self.trust { " " (whole(trust)) }
            }
        }
    }
}

/// Lines do not break before a percent sign.
fn whole(words: &str) -> String {
    words.replace(" %", "\u{a0}%")
}

/// `3.4 % more`, `3.4 % less`.
fn more(share: f64) -> String {
    format!("{} {}", text::percent(share.abs()), if share < 0.0 { "less" } else { "more" })
}

/// The device whose peak is nearest to its limit: number, peak and limit, bytes.
fn peak(run: &Run) -> Option<(usize, u64, u64)> {
    let best = &run.summary.best;
    let peaks = match (&best.measured, &best.predicted) {
        (Some(measured), _) => &measured.peak_bytes,
        (None, Some(predicted)) => &predicted.peak_bytes,
        (None, None) => return None,
    };
    let devices = peaks.iter().zip(&run.summary.memory).enumerate();
    devices
        .map(|(device, (&peak, memory))| (device, peak, memory.capacity))
        .max_by(|a, b| (a.1 as f64 / a.2.max(1) as f64).total_cmp(&(b.1 as f64 / b.2.max(1) as f64)))
}

/// The step times by which two schedules compare: measured where both are.
fn steps(a: &Outcome, b: &Outcome) -> Option<(f64, f64, &'static str)> {
    if let (Some(a), Some(b)) = (&a.measured, &b.measured) {
        return Some((a.step.median_ns as f64, b.step.median_ns as f64, "measured"));
    }
    let (a, b) = (a.predicted.as_ref()?, b.predicted.as_ref()?);
    Some((a.step_ns as f64, b.step_ns as f64, "predicted"))
}

/// The fastest textbook schedule, of those that fit the limit or, where none does, of all; its step, and how both
/// steps are known.
fn fastest(run: &Run) -> Option<(&Outcome, f64, f64, &'static str)> {
    let best = &run.summary.best;
    let known =
        || run.summary.textbook.iter().filter_map(|x| steps(best, x).map(|(own, step, how)| (x, own, step, how)));
    let fastest = |fits: bool| known().filter(|x| x.0.fits() || !fits).min_by(|a, b| a.2.total_cmp(&b.2));
    fastest(true).or_else(|| fastest(false))
}

fn against_textbook(run: &Run) -> String {
    let Some((textbook, own, step, how)) = fastest(run) else {
        return "No textbook schedule is made for this placement.".to_owned();
    };
    let name = table::title(&textbook.name);
    let step_words = time(step as i64);
    let than = more(own / step.max(1.0) - 1.0);
    if textbook.fits() {
        return format!(
            "The best textbook schedule that fits, {name}, takes {step_words} ({how}): this one takes {than}."
        );
    }
    let over = textbook.over_limit_bytes.iter().max().copied().unwrap_or(0);
    format!(
        "No textbook schedule fits the limit: {name}, the fastest, would take {step_words} ({how}; this one takes {than}) \
         with {} too much memory.",
        text::bytes(over)
    )
}

/// The numbers of the verdict, one a card.
pub(super) fn figures(run: &Run) -> Markup {
    let summary = &run.summary;
    let best = &summary.best;
    let none = || "-".to_owned();
    let measured = best.measured.as_ref();
    let predicted = best.predicted.as_ref();
    let predicted_time = predicted.map_or_else(none, |x| time(x.step_ns));
    let peak = peak(run);
    let fastest = fastest(run);
    let card = |name: &str, value: String, more: String| {
        html! { div .figure { dt { (name) } dd { span .value { (value) } span .more { (more) } } } }
    };
    html! {
        dl .figures {
            (card("Step time",
                measured.map_or_else(|| predicted_time.clone(), |x| measured_time(x.step.median_ns)),
                measured.map_or_else(|| "predicted".to_owned(), |x| format!(
                    "± {} over {} steps; predicted {predicted_time}", measured_time(x.step.mad_ns), x.step.count))))
            (card("Throughput",
                text::count(measured.map(|x| x.tokens_per_second)
                    .or(predicted.map(|x| x.tokens_per_second)).unwrap_or(0.0).round() as u64),
                format!("tokens/s; {} tokens a step", text::count(summary.tokens_per_step))))
            (card("Bubble",
                measured.map(|x| x.bubble).or(predicted.map(|x| x.bubble)).map_or_else(none, text::percent),
                predicted.map_or_else(none, |x| format!("predicted {}", text::percent(x.bubble)))))
            (card("Peak memory",
                peak.map_or_else(none, |(_, peak, _)| text::bytes(peak)),
                peak.map_or_else(none, |(device, peak, limit)| format!(
                    "{} of the limit {} on device {device}",
                    text::percent(peak as f64 / limit.max(1) as f64), text::bytes(limit)))))
            (card("Gap to the bound",
                if summary.proven { "optimal".to_owned() } else { text::gap(summary.gap) },
                format!("no schedule takes less than {}", time(summary.bound_ns))))
            (card(&fastest.map_or_else(|| "Textbook schedules".to_owned(), |(x, ..)| format!("Against {}", table::title(&x.name))),
                fastest.map_or_else(none, |(_, own, step, _)| more(own / step.max(1.0) - 1.0)),
                fastest.map_or_else(none, |(x, _, step, how)| format!(
                    "time than its {} {how}{}", time(step as i64),
                    if x.fits() { "" } else { ", which does not fit the limit" }))))
        }
    }
}
