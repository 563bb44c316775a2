//! Pieces that several sections of the page are made of.

use maud::{Markup, html};

use crate::text;

/// `1.23 s`, `45.6 µs`.
pub(super) fn time(ns: i64) -> String {
    text::duration(ns).replace("us", "µs")
}

/// [`time`] of a measured time, ns.
pub(super) fn measured_time(ns: u64) -> String {
    time(i64::try_from(ns).unwrap_or(i64::MAX))
}

/// A table with a heading; the first column names the row, all others are aligned right.
pub(super) fn table<S: AsRef<str>>(heading: &[S], rows: Vec<Vec<String>>) -> Markup {
    html! {
        div .scroll {
            table {
                thead { tr { @for name in heading { th scope="col" { (name.as_ref()) } } } }
                tbody {
                    @for row in rows {
                        tr {
                            @for (i, cell) in row.iter().enumerate() {
                                @if i == 0 { th scope="row" { (cell) } } @else { td { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}
