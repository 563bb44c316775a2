//! How an error looks on stderr: what is wrong, the line that is to blame with a mark below, and what to do.

use std::io::IsTerminal;
use std::ops::Range;

use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report, ThemeCharacters,
    ThemeStyles,
};
use optpipe_configs::file;

use crate::error::{Error, Place};

/// Lines longer than this are not shown: a file of one line is no help to a reader.
const LONGEST_LINE: usize = 300;

/// The error as text, with colours and frames where a terminal shows it.
pub(super) fn text(error: &Error) -> String {
    render(error, std::io::stderr().is_terminal(), super::coloured())
}

fn render(error: &Error, framed: bool, coloured: bool) -> String {
    let mut out = match error.place().and_then(marked) {
        Some(shown) => excerpt(error, shown, framed, coloured),
        None => format!("error: {error}\n"),
    };
    if let Some(hint) = error.advice() {
        out.push_str(&format!("hint: {hint}\n"));
    }
    out
}

/// The error with the line to blame.
fn excerpt(error: &Error, (name, text, mark): (String, String, Range<usize>), framed: bool, coloured: bool) -> String {
    let styles = if coloured { ThemeStyles::ansi() } else { ThemeStyles::none() };
    let mut characters = if framed { ThemeCharacters::unicode() } else { ThemeCharacters::ascii() };
    characters.error = "error:".to_owned();
    let theme = GraphicalTheme { characters, styles };
    // What is wrong stays on one line, for those who search in logs.
    let handler = GraphicalReportHandler::new_themed(theme).with_width(usize::MAX).with_context_lines(1);
    let diagnostic = MietteDiagnostic::new(error.to_string()).with_label(LabeledSpan::underline(mark));
    let report = Report::new(diagnostic).with_source_code(NamedSource::new(name, text));
    let mut out = String::new();
    match handler.render_report(&mut out, report.as_ref()) {
        Ok(()) => out.trim().to_owned() + "\n",
        Err(_) => format!("error: {error}\n"),
    }
}

/// The file's name, its text and the bytes to mark; nothing where the file is not there any more, or as a reader
/// cannot make use of.
fn marked(place: &Place) -> Option<(String, String, Range<usize>)> {
    let text = file::read_text(&place.path).ok()?;
    let start = text.split_inclusive('\n').take(place.line.checked_sub(1)?).map(str::len).sum::<usize>();
    let line = text.get(start..)?.lines().next()?;
    if line.len() > LONGEST_LINE {
        return None;
    }
    let word = place.column.and_then(|column| line.char_indices().nth(column.checked_sub(1)?)).map(|(at, _)| at);
    let from = word.unwrap_or_else(|| line.len() - line.trim_start().len());
    // A comment behind is not to blame.
    let rest = &line[from..];
    let to = from + rest.find(" #").map_or(rest, |at| &rest[..at]).trim_end().len();
    Some((place.path.display().to_string(), text.clone(), start + from..start + to.max(from)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use optpipe_configs::job::Job;

    use super::*;

    fn complaint(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("job.yaml");
        std::fs::write(&path, text).unwrap();
        let error = Error::from(Job::read(&path).unwrap_err());
        render(&error, false, false).replace(&folder.path().display().to_string(), "")
    }

    #[test]
    fn the_line_to_blame_is_shown_with_a_mark() {
        let shown = complaint("model: llama-15m\npipeline:\n  placement: vshap # a V\n");
        insta::assert_snapshot!(shown, @r#"
        error: /job.yaml:3:14: pipeline.placement: expected auto, linear, interleaved, vshape or a list with the device of each stage, found "vshap"
           ,-[/job.yaml:3:14]
         2 | pipeline:
         3 |   placement: vshap # a V
           :              ^^^^^
           `----
        hint: did you mean `vshape`?
        "#);
    }

    #[test]
    fn what_no_line_is_to_blame_for_stays_one_line() {
        let shown = render(&Error::input("no such thing").hint("look elsewhere"), true, false);
        assert_eq!(shown, "error: no such thing\nhint: look elsewhere\n");
    }

    #[test]
    fn files_of_one_line_are_not_shown() {
        let shown = complaint(&format!(
            "{{\"model\": \"llama-15m\", \"solver\": {{\"seed\": -1, {}\"a\": 1}}}}",
            " ".repeat(400)
        ));
        assert_eq!(shown.lines().filter(|line| line.contains("llama")).count(), 0, "{shown}");
    }
}
