//! optpipe
fn main() {}
