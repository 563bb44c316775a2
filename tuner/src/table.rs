//! Tables for a terminal.

use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{CellAlignment, ContentArrangement, Table};

use crate::summary::{Outcome, Summary};
use crate::text;

/// A table with a heading; all columns but the first are numbers, aligned right.
pub fn table<S: Into<String>>(heading: impl IntoIterator<Item = S>, rows: Vec<Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(heading.into_iter().map(Into::into));
    table.add_rows(rows);
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
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
