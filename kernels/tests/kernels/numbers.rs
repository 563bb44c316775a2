//! Operands, random numbers, comparisons.

use crate::executor::Memory;
use half::bf16;
use optpipe_kernels::cuda::launch::{Format, Input, Output};

/// Numbers on each side of an operand that no kernel may touch.
const GUARD: usize = 16;
/// What they are.
const UNTOUCHED: u8 = 0xa5;

/// Memory as a kernel's operand, between guards; the numbers at first NaN where none are given.
pub(crate) struct Operand {
    memory: Memory,
    offset: usize,
    length: usize,
    format: Format,
}

impl Operand {
    /// Of so many numbers that nobody has written.
    pub(crate) fn unwritten(length: usize, format: Format) -> Self {
        let mut memory = Memory::new((length + 2 * GUARD + 1) * format.bytes());
        memory.bytes_mut().fill(UNTOUCHED);
        let mut operand = Self { memory, offset: GUARD, length, format };
        operand.bytes_mut().fill(0xff);
        operand
    }

    /// As `unwritten`, but the first number is not aligned to 16 bytes.
    pub(crate) fn shifted(mut self) -> Self {
        let values = self.values();
        self.memory.bytes_mut().fill(UNTOUCHED);
        self.offset = GUARD + 1;
        self.write(&values);
        self
    }

    /// Numbers, rounded to the format.
    pub(crate) fn of(values: &[f64], format: Format) -> Self {
        let mut operand = Self::unwritten(values.len(), format);
        operand.write(values);
        operand
    }

    fn write(&mut self, values: &[f64]) {
        let format = self.format;
        for (bytes, &value) in self.bytes_mut().chunks_exact_mut(format.bytes()).zip(values) {
            match format {
                Format::F32 => bytes.copy_from_slice(&(value as f32).to_ne_bytes()),
                Format::Bf16 => bytes.copy_from_slice(&bf16::from_f64(value).to_ne_bytes()),
                Format::U32 => bytes.copy_from_slice(&(value as u32).to_ne_bytes()),
            }
        }
    }

    /// The numbers as they are stored.
    pub(crate) fn values(&self) -> Vec<f64> {
        self.bytes()
            .chunks_exact(self.format.bytes())
            .map(|bytes| match self.format {
                Format::F32 => f64::from(f32::from_ne_bytes(bytes.try_into().unwrap())),
                Format::Bf16 => bf16::from_ne_bytes(bytes.try_into().unwrap()).to_f64(),
                Format::U32 => f64::from(u32::from_ne_bytes(bytes.try_into().unwrap())),
            })
            .collect()
    }

    fn range(&self) -> std::ops::Range<usize> {
        let start = self.offset * self.format.bytes();
        start..start + self.length * self.format.bytes()
    }

    fn bytes(&self) -> &[u8] {
        &self.memory.bytes()[self.range()]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        let range = self.range();
        &mut self.memory.bytes_mut()[range]
    }

    pub(crate) fn input(&self) -> Input<'_> {
        // SAFETY: the memory lives as long as the operand is borrowed.
        unsafe { Input::at(self.bytes().as_ptr() as u64, self.length, self.format) }
    }

    pub(crate) fn output(&mut self) -> Output<'_> {
        // SAFETY: the memory is borrowed alone, and lives as long.
        unsafe { Output::at(self.bytes_mut().as_mut_ptr() as u64, self.length, self.format) }
    }

    /// Compares with `expected`: the error may be `tolerance` of the larger of the number and `scale`, and
    /// what rounding to the format adds. `scale` is the size of what is summed, where numbers may cancel. The
    /// guards must be as they were.
    #[track_caller]
    pub(crate) fn check(&self, what: &str, expected: &[f64], tolerance: f64, scale: f64) {
        let range = self.range();
        let (before, after) = (&self.memory.bytes()[..range.start], &self.memory.bytes()[range.end..]);
        assert!(before.iter().chain(after).all(|&byte| byte == UNTOUCHED), "{what}: written outside of the operand");
        let rounding = if self.format == Format::Bf16 { 0.5f64.powi(8) } else { 0.5f64.powi(24) };
        let values = self.values();
        assert_eq!(values.len(), expected.len(), "{what}");
        for (i, (&value, &expected)) in values.iter().zip(expected).enumerate() {
            let allowed = expected.abs().max(scale) * tolerance + expected.abs() * rounding;
            assert!(
                (value - expected).abs() <= allowed,
                "{what}[{i}]: {value}, expected {expected} within {allowed:e}"
            );
        }
    }
}

/// Reproducible random numbers (SplitMix64, Steele, Lea and Flood, 2014).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// In `[0, 1)`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 * 0.5f64.powi(53)
    }

    /// Normal numbers (by twelve uniform ones) around a mean, rounded to a format so that kernel and
    /// reference see the same.
    pub(crate) fn normal(&mut self, count: usize, mean: f64, deviation: f64, format: Format) -> Vec<f64> {
        let sum = |random: &mut Self| (0..12).map(|_| random.unit()).sum::<f64>() - 6.0;
        let values: Vec<f64> = (0..count).map(|_| mean + deviation * sum(self)).collect();
        Operand::of(&values, format).values()
    }
}

/// The formats of activations.
pub(crate) const FORMATS: [Format; 2] = [Format::F32, Format::Bf16];
