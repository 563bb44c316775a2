//! RMSNorm and LayerNorm.

use crate::emulator::run;
use crate::numbers::{FORMATS, Operand, Random};
use optpipe_kernels::cuda::launch::Format;
use optpipe_kernels::cuda::ops::norm;
use optpipe_kernels::reference;

/// Rows and width: one number, less than a warp, no whole vectors, several vectors a thread.
const SHAPES: [(usize, usize); 6] = [(1, 1), (3, 24), (5, 37), (2, 264), (4, 1031), (3, 4096)];

#[test]
fn rms_norm_forward() {
    let mut random = Random(1);
    for format in FORMATS {
        for (rows, width) in SHAPES {
            for shift in [false, true] {
                let (x, weight) =
                    (random.normal(rows * width, 0.5, 2.0, format), random.normal(width, 1.0, 0.3, format));
                let mut x_operand = Operand::of(&x, format);
                if shift {
                    x_operand = x_operand.shifted();
                }
                let weight_operand = Operand::of(&weight, format);
                let mut y = Operand::unwritten(rows * width, format);
                let mut statistics = Operand::unwritten(rows, Format::F32);
                // SAFETY: the operands are valid until the run is over.
                unsafe {
                    run(&norm::rms_norm_forward(
                        &x_operand.input(),
                        &weight_operand.input(),
                        &mut y.output(),
                        &mut statistics.output(),
                        (rows, width),
                        1e-5,
                    )
                    .unwrap());
                }
                let (expected, scales) = reference::norm::rms_norm_forward(&x, &weight, 1e-5);
                y.check("y", &expected, 1e-6, 0.0);
                statistics.check("statistics", &scales, 1e-6, 0.0);
            }
        }
    }
}
