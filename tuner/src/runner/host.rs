//! The host's side of a channel thread: where it runs, and the memory that its copies go to.

use optpipe_kernels::arena::room_for;
use optpipe_kernels::cuda::affinity::Affinity;

use super::error::Worker;
use super::worker::Runner;

impl Runner {
    /// Keeps a thread that copies near the first device that it copies for.
    pub(super) fn near(&self) -> Option<Affinity> {
        let device = self.copies_for().next()?;
        self.shared.backend.near(self.place(device))
    }

    /// The devices whose copies this thread makes.
    fn copies_for(&self) -> impl Iterator<Item = usize> {
        let (problem, worker) = (&self.shared.problem, self.worker());
        (0..problem.devices).filter(move |&device| {
            let channels = [problem.offload_channel[device], problem.reload_channel[device]];
            let here = problem.stages_of(device).any(|stage| self.shared.board.program.is_here(stage));
            here && channels.iter().any(|&channel| worker == Worker::Channel(channel))
        })
    }

    /// Host memory for what this thread will offload.
    pub(super) fn prepare_host(&self) {
        let (shared, worker) = (&*self.shared, self.worker());
        for device in self.copies_for() {
            if worker != Worker::Channel(shared.problem.offload_channel[device]) {
                continue;
            }
            let mut sizes = Vec::new();
            for stage in shared.problem.stages_of(device) {
                let bytes = usize::try_from(shared.problem.bytes.offloadable[stage]).unwrap_or(0);
                let count = if bytes > 0 { shared.board.program.on_host(stage) } else { 0 };
                sizes.extend(std::iter::repeat_n(room_for(bytes), count));
            }
            // An offload that finds no memory makes its own, or says so.
            let _ = shared.backend.prepare_host(self.place(device), &sizes);
        }
    }
}
