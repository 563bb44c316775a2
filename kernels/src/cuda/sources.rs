//! OptPipe's own kernels as CUDA C.
//!
//! What all share stands in `sources/common.cuh`, which is put before each of them: NVRTC brings no headers.

/// What every source begins with: bf16, vectors of 16 bytes, reductions.
pub const COMMON: &str = include_str!("sources/common.cuh");

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Its name, e.g. `norm`.
    pub name: &'static str,
    /// CUDA C without [`COMMON`].
    pub text: &'static str,
    /// The names of its kernels, which are `extern "C"`.
    pub kernels: &'static [&'static str],
}

/// RMSNorm and LayerNorm.
pub const NORM: Source = Source {
    name: "norm",
    text: include_str!("sources/norm.cu"),
    kernels: &["rms_norm_forward_f32", "rms_norm_forward_bf16"],
};

/// All files of kernels.
pub const ALL: &[Source] = &[NORM];

impl Source {
    /// The whole program, with line numbers of the two files it comes from.
    pub fn program(&self) -> String {
        format!("#line 1 \"common.cuh\"\n{COMMON}\n#line 1 \"{}.cu\"\n{}", self.name, self.text)
    }

    /// The file that a kernel is in.
    pub fn of(kernel: &str) -> Option<Source> {
        ALL.iter().find(|source| source.kernels.contains(&kernel)).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique() {
        let names: Vec<_> = ALL.iter().flat_map(|source| source.kernels).collect();
        assert_eq!(names.len(), names.iter().collect::<HashSet<_>>().len());
        assert!(ALL.iter().all(|source| source.kernels.iter().all(|kernel| Source::of(kernel) == Some(*source))));
        assert_eq!(Source::of("unheard_of"), None);
    }
}
