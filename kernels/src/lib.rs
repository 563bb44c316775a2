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
//!
//! # Example
//! A device has room for one activation. It goes to the host while another one has the room, and comes back.
//!
//! ```
//! use candle_core::Tensor;
//! use optpipe_kernels::backend::Backend;
//! use optpipe_kernels::budget::Budget;
//! use optpipe_kernels::cpu::CpuBackend;
//!
//! let cpu = CpuBackend::new(1)?;
//! let budget = Budget::new(0, Some(1000));
//!
//! // A schedule fixes the order of the allocations: this is the first one, and then there is no room for a second.
//! let room = budget.reserve(0, 800)?;
//! let activation = Tensor::arange(0_f32, 200.0, cpu.device(0)?)?;
//! assert!(budget.must_wait(1, 800));
//!
//! // Offloaded, its memory is free; the copy on the host is not the device's.
//! let on_host = cpu.offload(std::slice::from_ref(&activation))?;
//! drop((activation, room));
//! let other = budget.reserve(1, 800)?;
//! drop(other);
//!
//! let _room = budget.reserve(2, 800)?;
//! let activation = cpu.reload(&on_host, 0)?.remove(0);
//! assert_eq!(activation.to_vec1::<f32>()?[199], 199.0);
//! assert_eq!(budget.peak(), 800);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

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
