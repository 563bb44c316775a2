//! Latency and bandwidth from measured copies.

use optpipe_configs::hardware::{CopyPoint, Link};

/// A bandwidth that stands for "the time does not grow with the bytes", bytes a second.
pub const UNBOUNDED: f64 = 1e15;

/// Rounds of reweighting; the weights settle in a handful.
const ROUNDS: usize = 20;

/// Fits `latency + bytes / bandwidth` to the medians.
///
/// Sizes span orders of magnitude, so relative errors are what is made small: least squares of
/// `(fitted - measured) / measured`, reweighted in rounds by Huber's function (Huber, "Robust
/// estimation of a location parameter", 1964) so that single disturbed points pull little. Latency is
/// at least 0; where times do not grow with the bytes the bandwidth is [`UNBOUNDED`].
pub fn fit(points: Vec<CopyPoint>) -> Link {
    let measured: Vec<(f64, f64)> =
        points.iter().map(|point| (point.bytes as f64, (point.time.median_ns as f64).max(1.0))).collect();
    let mut weights = vec![1.0; measured.len()];
    let (mut latency, mut slope) = (0.0, 0.0);
    for _ in 0..ROUNDS {
        (latency, slope) = least_squares(&measured, &weights);
        let errors: Vec<f64> = measured.iter().map(|&point| relative_error(latency, slope, point)).collect();
        // Huber's constant: 95 % efficient on normal errors; their deviation from the median error.
        let threshold = 1.345 * 1.4826 * median(&errors);
        for (weight, error) in weights.iter_mut().zip(&errors) {
            *weight = if *error <= threshold { 1.0 } else { threshold / error };
        }
    }
    let slope = slope.max(1e9 / UNBOUNDED);
    let errors: Vec<f64> = measured.iter().map(|&point| relative_error(latency, slope, point)).collect();
    Link { latency_ns: latency, bytes_per_second: 1e9 / slope, residual: median(&errors), points }
}

fn relative_error(latency: f64, slope: f64, (bytes, ns): (f64, f64)) -> f64 {
    ((latency + slope * bytes - ns) / ns).abs()
}

/// Latency and slope, both at least 0, that make the weighted squares of relative errors least.
fn least_squares(measured: &[(f64, f64)], weights: &[f64]) -> (f64, f64) {
    // Divided by the measured time, each point reads 1 = latency * u + slope * v.
    let (mut uu, mut uv, mut vv, mut u1, mut v1) = (0.0, 0.0, 0.0, 0.0, 0.0);
    for (&(bytes, ns), &weight) in measured.iter().zip(weights) {
        let (u, v) = (1.0 / ns, bytes / ns);
        uu += weight * u * u;
        uv += weight * u * v;
        vv += weight * v * v;
        u1 += weight * u;
        v1 += weight * v;
    }
    let alone = |product: f64, square: f64| if square > 0.0 { product / square } else { 0.0 };
    let determinant = uu * vv - uv * uv;
    // One size alone, or none: nothing tells latency and slope apart, so all is slope.
    if determinant <= 1e-12 * uu * vv {
        return (0.0, alone(v1, vv));
    }
    let (latency, slope) = ((u1 * vv - v1 * uv) / determinant, (v1 * uu - u1 * uv) / determinant);
    match (latency >= 0.0, slope >= 0.0) {
        (true, true) => (latency, slope),
        // The squares are convex: with one of the two at its bound, the other is the best beside it.
        (false, _) => (0.0, alone(v1, vv)),
        (true, false) => (alone(u1, uu), 0.0),
    }
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        n if n % 2 == 1 => sorted[n / 2],
        n => (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use optpipe_configs::profile::Sample;
    use proptest::prelude::*;

    use super::*;

    fn points(times: impl IntoIterator<Item = (u64, f64)>) -> Vec<CopyPoint> {
        let sample =
            |ns: f64| Sample { median_ns: ns.round() as u64, mad_ns: 0, p05_ns: 0, p95_ns: 0, count: 1, stable: true };
        times.into_iter().map(|(bytes, ns)| CopyPoint { bytes, time: sample(ns) }).collect()
    }

    fn sizes() -> impl Iterator<Item = u64> {
        (16..=28).map(|power| 1 << power)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_link_is_found_again(latency in 0.0..200_000.0f64, gigabytes in 0.5..100.0f64) {
            let link = fit(points(sizes().map(|b| (b, latency + b as f64 / gigabytes))));
            prop_assert!((link.bytes_per_second / (gigabytes * 1e9) - 1.0).abs() < 1e-2, "{link:?}");
            prop_assert!((link.latency_ns - latency).abs() < 100.0 + latency * 1e-2, "{link:?}");
            prop_assert!(link.residual < 1e-2);
        }

        /// One point in thirteen off by any factor hardly matters.
        #[test]
        fn one_disturbed_point_pulls_little(which in 0usize..13, factor in 1.5..20.0f64) {
            let times = sizes().enumerate().map(|(i, b)| {
                let ns = 10_000.0 + b as f64 / 8.0;
                (b, if i == which { ns * factor } else { ns })
            });
            let link = fit(points(times));
            prop_assert!((link.bytes_per_second / 8e9 - 1.0).abs() < 0.05, "{link:?}");
            prop_assert!(link.residual < 0.05);
        }

        /// Whatever the points: finite, not negative, and a copy of more bytes takes no less time.
        #[test]
        fn any_points_give_a_usable_link(times in proptest::collection::vec((1u64..1 << 30, 1.0..1e10f64), 0..12)) {
            let link = fit(points(times));
            prop_assert!(link.latency_ns >= 0.0 && link.latency_ns.is_finite());
            prop_assert!(link.bytes_per_second > 0.0 && link.residual >= 0.0);
            prop_assert!(link.copy_ns(1 << 20) <= link.copy_ns(1 << 28));
        }
    }

    #[test]
    fn a_constant_time_is_all_latency() {
        let link = fit(points(sizes().map(|b| (b, 5_000.0))));
        assert!((link.latency_ns - 5_000.0).abs() < 5.0, "{link:?}");
        assert!(link.bytes_per_second >= 1e14);
        assert!(link.copy_ns(1 << 28) < 5_300);
    }

    #[test]
    fn one_size_alone_is_all_bandwidth() {
        let link = fit(points([(1000, 500.0)]));
        assert_eq!(link.latency_ns, 0.0);
        assert!((link.bytes_per_second - 2e9).abs() < 1e3);
    }
}
