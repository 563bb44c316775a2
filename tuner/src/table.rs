//! Tables for a terminal.

use std::fmt;

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ColumnConstraint, ContentArrangement, Width};

use crate::summary::{Outcome, Summary};
use crate::text;

/// A table as it is shown: in one part, or in several with the first column repeated where it is too wide.
#[derive(Debug, Clone)]
pub struct Table(Vec<comfy_table::Table>);

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&text::joined(&self.0, "\n"))
    }
}

/// Columns of the terminal that stdout is; `None` elsewhere, where nothing has to fit.
pub fn terminal_width() -> Option<usize> {
    comfy_table::Table::new().width().map(usize::from)
}

/// A table with a heading; all columns but the first are numbers, aligned right.
pub fn table<S: Into<String>>(heading: impl IntoIterator<Item = S>, rows: Vec<Vec<String>>) -> Table {
    let heading: Vec<String> = heading.into_iter().map(Into::into).collect();
    laid_out(&heading, &rows, terminal_width())
}

/// What a column has beside its text: a space on each side, and a line.
const AROUND: usize = 3;

/// Headings, and what is in the first column, are broken between words where they have to be, numbers never are.
fn laid_out(heading: &[String], rows: &[Vec<String>], width: Option<usize>) -> Table {
    let longest = |cell: &str, of: fn(char) -> bool| cell.split(of).map(|part| part.chars().count()).max().unwrap_or(0);
    let needed = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let of: fn(char) -> bool = if column == 0 { char::is_whitespace } else { |c| c == '\n' };
        cells.map(|cell| longest(cell, of)).max().unwrap_or(0).max(longest(&heading[column], char::is_whitespace))
    };
    let needed: Vec<usize> = (0..heading.len()).map(needed).collect();
    let mut parts: Vec<Vec<usize>> = Vec::new();
    let total = |part: &[usize]| 1 + part.iter().map(|&column| needed[column] + AROUND).sum::<usize>();
    for (column, &more) in needed.iter().enumerate().skip(1) {
        match parts.last_mut() {
            Some(part) if width.is_none_or(|width| total(part) + more + AROUND <= width) => part.push(column),
            _ => parts.push(vec![0, column]),
        }
    }
    Table(parts.iter().map(|part| drawn(heading, rows, part, &needed, width)).collect())
}

fn drawn(
    heading: &[String],
    rows: &[Vec<String>],
    part: &[usize],
    needed: &[usize],
    width: Option<usize>,
) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    if let Some(width) = width {
        table.set_width(u16::try_from(width).unwrap_or(u16::MAX));
    }
    let cells = |row: &[String]| part.iter().map(|&i| row.get(i).cloned().unwrap_or_default()).collect::<Vec<_>>();
    table.set_header(cells(heading));
    table.add_rows(rows.iter().map(|row| cells(row)));
    for (i, column) in table.column_iter_mut().enumerate() {
        if i > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
        let least = u16::try_from(needed[part[i]] + AROUND - 1).unwrap_or(u16::MAX);
        column.set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(least)));
    }
    table
}

/// What a tune found, against the textbook schedules.
pub fn comparison(summary: &Summary) -> Table {
    let (heading, rows) = comparison_cells(summary);
    table(heading, rows)
}

/// The heading and the rows of [`comparison`].
pub fn comparison_cells(summary: &Summary) -> (Vec<String>, Vec<Vec<String>>) {
    let outcomes: Vec<&Outcome> = std::iter::once(&summary.best).chain(&summary.textbook).collect();
    let heading = std::iter::once(String::new()).chain(outcomes.iter().map(|outcome| title(&outcome.name)));
    let row = |name: String, cell: &dyn Fn(&Outcome) -> Option<String>| {
        let cells = outcomes.iter().map(|outcome| cell(outcome).unwrap_or_else(|| "-".to_owned()));
        std::iter::once(name).chain(cells).collect::<Vec<String>>()
    };
    let mut rows = vec![
        row("step time, predicted".into(), &|o| Some(text::duration(o.predicted.as_ref()?.step_ns))),
        row("step time, measured".into(), &|o| {
            let step = &o.measured.as_ref()?.step;
            Some(format!("{} ±{}", text::duration(step.median_ns as i64), text::duration(step.mad_ns as i64)))
        }),
        row("measured / predicted".into(), &|o| Some(format!("{:.2}", o.ratio()?))),
        row("tokens/s, measured".into(), &|o| Some(text::count(o.measured.as_ref()?.tokens_per_second.round() as u64))),
        row("bubble, predicted".into(), &|o| Some(text::percent(o.predicted.as_ref()?.bubble))),
        row("bubble, measured".into(), &|o| Some(text::percent(o.measured.as_ref()?.bubble))),
    ];
    for (device, memory) in summary.memory.iter().enumerate() {
        let name = format!("peak of device {device}, predicted (limit {})", text::bytes(memory.capacity));
        rows.push(row(name, &|o| {
            let peak = text::bytes(*o.predicted.as_ref()?.peak_bytes.get(device)?);
            match o.over_limit_bytes.get(device) {
                Some(&over) if over > 0 => Some(format!("{peak}\nover by {}", text::bytes(over))),
                _ => Some(peak),
            }
        }));
        rows.push(row(format!("peak of device {device}, measured"), &|o| {
            Some(text::bytes(*o.measured.as_ref()?.peak_bytes.get(device)?))
        }));
    }
    rows.push(row("offloaded a step".into(), &|o| Some(text::bytes(o.predicted.as_ref()?.offloaded_bytes))));
    rows.push(row("fits the limit".into(), &|o| {
        o.predicted.as_ref()?;
        Some(if o.fits() { "yes" } else { "no" }.to_owned())
    }));
    (heading.collect(), rows)
}

/// A schedule's name as people write it.
pub fn title(name: &str) -> String {
    match name {
        "optpipe" => "OptPipe",
        "gpipe" => "GPipe",
        "1f1b" => "1F1B",
        "interleaved" => "interleaved 1F1B",
        "zb-h1" => "ZB-H1",
        "zb-h2" => "ZB-H2",
        "zb-v" => "ZB-V",
        "v-half" => "V-Half",
        "v-min" => "V-Min",
        other => other,
    }
    .to_owned()
}

/// Every round on a line.
pub fn rounds(summary: &Summary) -> Table {
    let (heading, rows) = round_cells(summary);
    table(heading, rows)
}

/// The heading and the rows of [`rounds`].
pub fn round_cells(summary: &Summary) -> (Vec<String>, Vec<Vec<String>>) {
    let rows = summary.rounds.iter().map(|round| {
        let best = if round.round == summary.best_round { " best" } else { "" };
        vec![
            format!("{}{best}", round.round),
            text::duration(round.predicted.step_ns),
            text::duration(round.measured.step.median_ns as i64),
            format!("{:.2}", round.ratio),
            round.gain.map_or_else(|| "-".to_owned(), |gain| format!("{:+.1} %", 100.0 * gain)),
            text::gap(round.gap),
            text::bytes(round.predicted.offloaded_bytes),
            round.method.clone(),
        ]
    });
    let heading =
        ["round", "predicted", "measured", "measured / predicted", "gain", "gap to bound", "offloaded", "found by"];
    (heading.map(str::to_owned).to_vec(), rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(width: Option<usize>) -> String {
        let heading = ["method", "makespan", "gap", "largest peak", "solve time"].map(str::to_owned);
        let row = |method: &str| [method, "217 ms", "< 0.1 %", "1.27 GiB", "48.1 ms"].map(str::to_owned).to_vec();
        laid_out(&heading, &[row("adaptive-offload"), row("interleaved 1F1B")], width).to_string()
    }

    #[test]
    fn what_is_too_wide_is_broken_between_words_or_continued_below() {
        let lines = |width: usize| shown(Some(width)).lines().map(|line| line.chars().count()).max().unwrap_or(0);
        assert_eq!(shown(None), shown(Some(500)), "where there is room nothing is broken");
        for width in [40, 50, 60, 75] {
            let text = shown(Some(width));
            assert!(lines(width) <= width, "{width}:\n{text}");
            for words in ["adaptive-offload", "interleaved", "217 ms", "< 0.1 %", "1.27 GiB", "48.1 ms", "makespan"] {
                assert!(text.contains(words), "{words} at {width}:\n{text}");
            }
        }
        assert_eq!(shown(Some(40)).matches("method").count(), 4, "{}", shown(Some(40)));
        // Not even one column fits: it is broken somewhere, but shown.
        assert!(shown(Some(10)).contains('m'));
    }
}
