//! Pictures of a schedule: `trace.json` for Perfetto, `timeline.svg` for people.
