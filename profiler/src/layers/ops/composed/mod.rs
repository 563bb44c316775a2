//! The operations composed of tensor operations: for any device.

pub(super) mod activation;
pub(super) mod heads;
pub(super) mod norm;
pub(super) mod scatter;
pub(super) mod softmax;
