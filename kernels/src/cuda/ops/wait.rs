//! Waiting on the device.

use crate::cuda::launch::{Argument, Builder, Format, Launch, LaunchError};

/// Keeps a stream busy with nothing, so that what it is given meanwhile starts without gaps.
#[derive(Debug, Clone, Copy)]
pub struct Hold {
    /// For so long.
    pub ns: u64,
}

impl Hold {
    /// The launch, of one warp.
    ///
    /// # Errors
    /// None for any time; as all launches, it is checked.
    pub fn launch(self) -> Result<Launch<'static>, LaunchError> {
        Builder::new("hold").argument(Argument::U64(self.ns)).on(Format::U32, 1, 32, 0)
    }
}
