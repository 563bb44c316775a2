//! Device work: the memory budget of a device, copies between device and host, the backends that
//! carry them out, and the allocator that counts bytes.
//!
//! | module | holds |
//! | --- | --- |
//! | [`budget`] | a device's tracked memory, handed out in the order of a schedule |
//! | [`arena`] | reusable host buffers, and tensors stored in them |
//! | [`copy`] | why a copy failed |
//! | [`backend`] | what a backend can do; choosing one |
//! | [`cpu`] | the backend of this machine's processor |
//! | [`cuda`] | NVIDIA devices, and own kernels for them |
//! | [`mod@reference`] | what these kernels compute, as plain loops in f64 |
//! | [`rig`] | what measuring copies needs of a machine |
//! | [`gradient`] | sums over microbatches, in place |
//! | [`reuse`] | large blocks of memory, kept for the next use |
//! | [`alloc`] | a counting global allocator |
//!
//! `unsafe` code of OptPipe is in this crate; beside it, only the callbacks of HiGHS need some, in one module of the
//! solver.

pub mod alloc;
pub mod arena;
pub mod backend;
pub mod budget;
pub mod copy;
pub mod cpu;
pub mod cuda;
pub mod gradient;
pub mod reference;
pub mod reuse;
pub mod rig;
