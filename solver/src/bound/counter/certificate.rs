//! Proof, in integers, that a relaxation has no solution.

use super::model::Model;

/// Multipliers of the rows of a [`Model`], one each, at least 0.
///
/// Every solution satisfies the sum of the rows, each times its multiplier. Where even the least value
/// that this sum can take within the bounds of the columns exceeds its right-hand side, there is no
/// solution. That holds for any multipliers, so that errors in them cost strength and never truth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) multipliers: Vec<i64>,
}

/// Multipliers are whole numbers of this fraction.
const ONE: f64 = (1_u64 << 58) as f64;

impl Certificate {
    /// From the multipliers that a floating-point solver found; negative or undefined ones count as 0.
    pub(super) fn round(multipliers: &[f64]) -> Certificate {
        let largest = multipliers.iter().copied().filter(|x| x.is_finite()).fold(0.0, f64::max);
        let scale = if largest > 0.0 { ONE / largest } else { 0.0 };
        // The cast saturates, and what is not a number becomes 0.
        let round = |x: &f64| if x.is_finite() { (x * scale).round().max(0.0) as i64 } else { 0 };
        Certificate { multipliers: multipliers.iter().map(round).collect() }
    }

    /// Whether it proves that the model has no solution. What overflows proves nothing.
    pub(super) fn proves(&self, model: &Model) -> bool {
        self.excess(model).is_some_and(|x| x > 0)
    }

    /// Least value of the sum of the rows, less its right-hand side; None on overflow or where it does
    /// not belong to the model.
    fn excess(&self, model: &Model) -> Option<i128> {
        if self.multipliers.len() != model.rows.len() {
            return None;
        }
        let mut coefficients = vec![0_i128; model.columns.len()];
        let mut excess = 0_i128;
        for (row, &multiplier) in model.rows.iter().zip(&self.multipliers) {
            if multiplier < 0 {
                return None;
            }
            let multiplier = i128::from(multiplier);
            if multiplier == 0 {
                continue;
            }
            for &(column, coefficient) in &row.terms {
                let sum = coefficients.get_mut(column)?;
                *sum = sum.checked_add(multiplier.checked_mul(i128::from(coefficient))?)?;
            }
            excess = excess.checked_sub(multiplier.checked_mul(i128::from(row.most))?)?;
        }
        for (&(low, high), coefficient) in model.columns.iter().zip(coefficients) {
            if low > high {
                return None;
            }
            let value = if coefficient > 0 { low } else { high };
            excess = excess.checked_add(coefficient.checked_mul(i128::from(value))?)?;
        }
        Some(excess)
    }
}
