//! AdamW (Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019), of one weight.

use crate::cuda::ops::optimizer::AdamWStep;

/// Weight, first and second moment after the step.
pub fn adamw((weight, first, second): (f64, f64, f64), gradient: f64, step: AdamWStep) -> (f64, f64, f64) {
    let first = step.beta1 * first + (1.0 - step.beta1) * gradient;
    let second = step.beta2 * second + (1.0 - step.beta2) * gradient * gradient;
    let unbiased_first = first / (1.0 - step.beta1.powi(step.step));
    let unbiased_second = second / (1.0 - step.beta2.powi(step.step));
    let change = unbiased_first / (unbiased_second.sqrt() + step.epsilon) + step.weight_decay * weight;
    (weight - step.learning_rate * change, first, second)
}
